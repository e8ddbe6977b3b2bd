"""What a config from a file may ask for: no nonsense, and nothing that takes minutes to turn out wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ddim.errors import ConfigError

MAX_TIMESTEPS = 100_000
MAX_BLOCKS = 1000  # the resolutions of a network times the layers at each

_KINDS: dict[Any, str] = {
    **dict.fromkeys((bool, int, float), "a number"),
    **dict.fromkeys((tuple, list, Sequence), "a list"),
    **dict.fromkeys((dict, Mapping), "an object"),
    str: "a string",
}


def check_size(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what would take minutes and gigabytes to build before it turns out not to fit its weights.

    Raises:
        ConfigError: too many timesteps, or more or fewer layers than a network can have; names the file.
    """
    timesteps = config.get("num_train_timesteps")
    if isinstance(timesteps, int) and timesteps > MAX_TIMESTEPS:
        raise ConfigError(f"{path}: num_train_timesteps={str(timesteps)[:20]} is over {MAX_TIMESTEPS}")
    lists = [value for key, value in config.items() if isinstance(value, list) and key != "trained_betas"]
    levels = max(map(len, lists), default=1)
    counts = [count for key in config if "layers" in key for count in _ints(config[key])]
    layers = max(counts, default=1)
    if min(counts, default=1) < 0:
        raise ConfigError(f"{path} asks for {min(counts)} layers")
    if levels * layers > MAX_BLOCKS:
        raise ConfigError(
            f"{path} asks for {levels} resolutions of {str(layers)[:20]} layers each: "
            f"{MAX_BLOCKS} in all is more than any network has"
        )


def _ints(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _ints(item)


def check_kinds(cls: type, config: Mapping[str, Any], path: Path) -> None:
    """Refuse a string where the class's constructor is annotated with a number, and the like.

    Some of it would only fail when the object is used. A null is left to the constructor, and so are a list's items.

    Raises:
        ConfigError: names the file and the setting.
    """
    for name, hint in get_type_hints(cls.__init__).items():  # type: ignore[misc]
        value = config.get(name)
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        wanted = {_KINDS[kind] for option in options if (kind := get_origin(option) or option) in _KINDS}
        if value is not None and wanted and Any not in options and _KINDS.get(type(value)) not in wanted:
            raise ConfigError(f"{path}: {name} must be {' or '.join(sorted(wanted))}, not {value!r:.100}")
