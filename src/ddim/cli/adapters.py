"""`--lora PATH[:WEIGHT]`: low-rank adapters, read, checked and loaded into a pipeline."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ddim.checkpoint.nearby import did_you_mean, nearby
from ddim.cli.pickles import refuse_pickle
from ddim.errors import CheckpointError, ConfigError, WeightsError

if TYPE_CHECKING:
    from ddim.pipelines import DiffusionPipeline
    from ddim.pipelines.words import WordList

FILES = (".safetensors", ".bin")


class Adapter(NamedTuple):
    """One adapter as it was asked for.

    Attributes:
        place: a file, a folder, or "owner/name" on the hub.
        file: the file's name on the hub, where it was given.
        weight: how strong it is to be; 1 is as it was trained.
    """

    place: str
    file: str | None
    weight: float


def adapter(text: str) -> Adapter:
    r"""What PATH[:WEIGHT] asks for.

    The weight is what follows the last colon, unless that belongs to a path, as in `C:\\loras\\ink.safetensors`.

    >>> adapter("ink.safetensors:0.5")
    Adapter(place='ink.safetensors', file=None, weight=0.5)
    >>> adapter("owner/name/ink.safetensors")
    Adapter(place='owner/name', file='ink.safetensors', weight=1.0)

    Raises:
        ConfigError: the weight is no finite number.
    """
    place, weight = text, "1"
    before, colon, after = text.rpartition(":")
    if colon and not os.path.exists(text) and not re.match(r"[\\/]", after):
        place, weight = before, after
    try:
        strength = float(weight)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength) or not place:
        raise ConfigError(
            f"--lora {text} has {weight!r} where its weight should be: give a number, such as {place}:0.8"
        )
    owner, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    is_here = os.path.exists(place) or os.path.isdir(owner) or not re.fullmatch(r"\w[\w.-]*", owner)
    if file.endswith(FILES) and "/" not in file and not is_here:
        return Adapter(f"{owner}/{name}", file, strength)
    return Adapter(place, None, strength)


def listed(given: Sequence[str | Sequence[str]] | None) -> tuple[str, ...]:
    """All adapters in one tuple, however often --lora was given.

    >>> listed((("a", "b:0.5"), ("c",))), listed(("a", "b:0.5"))
    (('a', 'b:0.5', 'c'), ('a', 'b:0.5'))
    """
    groups = [(each,) if isinstance(each, str) else each for each in given or ()]
    return tuple(each for group in groups for each in group)


def joined(settings: Any) -> Any:
    """A command's settings in which `lora` and the like are one tuple each, however often they were given."""
    names = [name for name in ("lora", "textual_inversion", "controlnet", "control_image") if hasattr(settings, name)]
    return dataclasses.replace(settings, **{name: listed(getattr(settings, name)) for name in names})


def check_adapter(given: str | Sequence[str], option: str) -> None:
    """The rule of --lora: a file or folder that is there, or what can be an id on the hub, which is not asked.

    Raises:
        ConfigError: there is no such file, it is no adapter's, or its weight is no number.
    """
    if not isinstance(given, str):
        for one in given:
            check_adapter(one, option)
        return
    place = adapter(given).place
    if Path(place).suffix.lower() != ".bin":  # of which only tensors are read
        refuse_pickle(place)
    if os.path.isdir(place):
        return
    if os.path.exists(place):
        if not os.path.isfile(place) or Path(place).suffix.lower() not in FILES:
            raise ConfigError(f"{option} {place} is no {' or '.join(FILES)} file, and nothing else is read")
        return
    if place.lower().endswith(FILES) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", place):
        meant = nearby(place, lambda path: path.suffix.lower() in FILES or path.is_dir())
        raise ConfigError(f"there is no file or folder {place[:300]!r}, given as {option}{did_you_mean(meant)}")


def refuse_adapters(model: str, given: Sequence[str | Sequence[str]] | None) -> None:
    """Raise a ConfigError if adapters were given, for a model that takes none."""
    if given:
        raise ConfigError(f"{model} takes no adapters: leave out --lora, or use a text-to-image model")


def add_adapters(pipe: DiffusionPipeline, model: str, given: Sequence[str | Sequence[str]] | None) -> None:
    """Load adapters into a pipeline and use them together, each at its weight.

    Args:
        pipe: the pipeline.
        model: what the user calls it.
        given: as --lora has them.

    Raises:
        ConfigError: the pipeline takes none.
        CheckpointError: one is not there or is broken; the message names it.
        WeightsError: one does not fit.
    """
    from ddim.pipelines.adapters import TakesAdapters
    from ddim.pipelines.words import KnowsWords

    if not given:
        return
    if not isinstance(pipe, TakesAdapters) or not isinstance(pipe, KnowsWords):
        refuse_adapters(model, given)
        return
    adapters = [adapter(text) for text in listed(given)]
    names = [f"lora-{number}" for number in range(len(adapters))]
    for name, each in zip(names, adapters, strict=True):
        try:
            pipe.load_lora_weights(each.place, name, weight_name=each.file)
        except WeightsError as error:
            raise WeightsError(f"--lora {each.place} is not for {model}: {error}") from error
        except CheckpointError as error:
            said = str(error).replace("give weight_name=", "give --lora the file itself")
            raise CheckpointError(f"--lora {each.place}: {said}") from error
    pipe.set_adapters(names, [each.weight for each in adapters])
    for each in adapters:
        learnt = _words_beside(each.place)
        pipe.words = pipe.words.joined(learnt) if pipe.words is not None and learnt is not None else None


def _words_beside(place: str) -> WordList | None:
    """The words that an adapter was trained on, where training has written them beside it."""
    from ddim.pipelines.words import FILE, read_word_file

    path = (Path(place) if os.path.isdir(place) else Path(place).parent) / FILE
    return read_word_file(path) if os.path.exists(place) and path.is_file() else None
