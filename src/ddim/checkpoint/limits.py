"""What a config from a file may ask for.

A file may come from anyone. A setting of the wrong kind, or of a size that would take minutes and gigabytes to build
before it turns out wrong, is refused as soon as the file has been read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ddim.errors import ConfigError

MAX_TIMESTEPS = 100_000
MAX_BLOCKS = 1000  # a network's resolutions times the layers at each
MAX_SIDE = 2**16  # a sample's height or width
MAX_INT = 2**53  # above this, not every int has a float of the same value

# For each type in a constructor's annotations: its name in errors, and the types of JSON values that are accepted.
_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool, int)),
    int: ("an integer", (int,)),
    float: ("a number", (int, float)),
    str: ("a string", (str,)),
    **dict.fromkeys((tuple, list, Sequence), ("a list", (list,))),
    **dict.fromkeys((dict, Mapping), ("an object", (dict,))),
}


def check_size(config: Mapping[str, Any], path: Path) -> None:
    """Refuse sizes that would take minutes and gigabytes to build before they turn out not to fit the weights.

    Args:
        config: what was read.
        path: the file it is from, for the error.

    Raises:
        ConfigError: a size, or a number of timesteps or layers, is larger than anything has it, or negative.
    """
    timesteps = config.get("num_train_timesteps")
    if isinstance(timesteps, int) and timesteps > MAX_TIMESTEPS:
        raise ConfigError(
            f"{path}: num_train_timesteps={str(timesteps)[:20]} is over {MAX_TIMESTEPS}, the most allowed"
        )
    if max(_ints(config.get("sample_size")), default=0) > MAX_SIDE:
        raise ConfigError(f"{path}: sample_size={config['sample_size']!r:.100} is over {MAX_SIDE}, the most allowed")
    lists = [value for key, value in config.items() if isinstance(value, list) and key != "trained_betas"]
    levels = max(map(len, lists), default=1)
    counts = {key: list(_ints(value)) for key, value in config.items() if "layers" in key or "num_" in key}
    for key, values in counts.items():
        if min(values, default=0) < 0:
            raise ConfigError(f"{path}: {key} must not be negative, but is {min(values)}")
    layers = max((value for key in counts if "layers" in key for value in counts[key]), default=1)
    if levels * layers > MAX_BLOCKS:
        raise ConfigError(
            f"{path} asks for {levels} resolutions of {str(layers)[:20]} layers each: "
            f"{MAX_BLOCKS} in all is more than any network has"
        )


def _ints(value: Any) -> Iterator[int]:
    """All ints in a setting, which may be a list of lists."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _ints(item)


def check_kinds(cls: type, config: Mapping[str, Any], path: Path) -> None:
    """Refuse settings of another kind than the class's constructor is annotated with, such as a string for a number.

    Some of these would otherwise fail only when the object is used. The items of lists are left to the constructor.

    Args:
        cls: the class whose constructor says the kinds.
        config: what was read.
        path: the file it is from, for the error.

    Raises:
        ConfigError: a setting is of the wrong kind; the message names the file and the setting.
    """
    for name, hint in get_type_hints(cls.__init__).items():  # type: ignore[misc]
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [_KINDS[kind] for option in options if (kind := get_origin(option) or option) in _KINDS]
        if name not in config or not kinds or Any in options:
            continue
        value = config[name]
        accepted = {kind for _, types in kinds for kind in types} | ({NoneType} & set(options))
        if type(value) not in accepted or (isinstance(value, int) and abs(value) > MAX_INT):
            wanted = " or ".join(dict.fromkeys(words for words, _ in kinds))
            raise ConfigError(f"{path}: {name} must be {wanted}, not {'null' if value is None else repr(value)[:100]}")
