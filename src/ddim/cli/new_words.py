"""`--textual-inversion PATH[=TOKEN]`: learnt words, read, checked and loaded into a pipeline."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ddim.checkpoint.nearby import did_you_mean, nearby
from ddim.cli.adapters import listed
from ddim.errors import CheckpointError, ConfigError, WeightsError

if TYPE_CHECKING:
    from ddim.pipelines import DiffusionPipeline

FILES = (".safetensors", ".pt", ".bin")


class NewWord(NamedTuple):
    """A learnt word as it was asked for.

    Attributes:
        place: a file, a folder, or "owner/name" on the hub.
        file: the file's name on the hub, where it was given.
        token: what prompts are to say for it, where it was given.
    """

    place: str
    file: str | None
    token: str | None


def new_word(text: str) -> NewWord:
    """What PATH[=TOKEN] asks for. The token is what follows the last "=", unless there is a file called like all of it.

    >>> new_word("ink.pt=<ink>")
    NewWord(place='ink.pt', file=None, token='<ink>')
    >>> new_word("owner/name/ink.safetensors")
    NewWord(place='owner/name', file='ink.safetensors', token=None)

    Raises:
        ConfigError: there is nothing before or behind the sign.
    """
    place, token = text, None
    before, sign, after = text.rpartition("=")
    if sign and not os.path.exists(text):
        place, token = before, after
    if not place or token == "":
        raise ConfigError(f"--textual-inversion {text} is not PATH or PATH=TOKEN, such as {place or 'ink.pt'}=<ink>")
    owner, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    is_here = os.path.exists(place) or os.path.isdir(owner) or not re.fullmatch(r"\w[\w.-]*", owner)
    if file.endswith(FILES) and "/" not in file and not is_here:
        return NewWord(f"{owner}/{name}", file, token)
    return NewWord(place, None, token)


def check_word(given: str | Sequence[str], option: str) -> None:
    """The rule of --textual-inversion: a file or folder that is there, or what can be an id on the hub.

    Raises:
        ConfigError: there is no such file, or it is no embedding's.
    """
    if not isinstance(given, str):
        for one in given:
            check_word(one, option)
        return
    place = new_word(given).place
    if os.path.isdir(place):
        return
    if os.path.exists(place):
        if not os.path.isfile(place) or Path(place).suffix.lower() not in FILES:
            raise ConfigError(f"{option} {place} is no {', '.join(FILES[:-1])} or {FILES[-1]} file")
        return
    if place.lower().endswith(FILES) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", place):
        meant = nearby(place, lambda path: path.suffix.lower() in FILES or path.is_dir())
        raise ConfigError(f"there is no file or folder {place[:300]!r}, given as {option}{did_you_mean(meant)}")


def refuse_words(model: str, given: Sequence[str | Sequence[str]] | None) -> None:
    """Raise a ConfigError if words were given, for a model that reads none."""
    if given:
        raise ConfigError(f"{model} reads no texts: leave out --textual-inversion, or use a text-to-image model")


def add_words(pipe: DiffusionPipeline, model: str, given: Sequence[str | Sequence[str]] | None) -> None:
    """Load learnt words into a pipeline.

    Args:
        pipe: the pipeline.
        model: what the user calls it.
        given: as --textual-inversion has them.

    Raises:
        ConfigError: the pipeline reads no texts, or a token cannot be.
        CheckpointError: one is not there or is broken; the message names it.
        WeightsError: one does not fit.
    """
    from ddim.pipelines.textual_inversion import TakesWords

    if not given:
        return
    if not isinstance(pipe, TakesWords):
        refuse_words(model, given)
        return
    for text in listed(given):
        word = new_word(text)
        try:
            pipe.load_textual_inversion(word.place, word.token, weight_name=word.file)
        except WeightsError as error:
            raise WeightsError(f"--textual-inversion {word.place} is not for {model}: {error}") from error
        except CheckpointError as error:
            said = str(error).replace("give weight_name=", "give --textual-inversion the file itself")
            raise CheckpointError(f"--textual-inversion {word.place}: {said}") from error
        except ValueError as error:
            said = str(error).replace("give another token=", "give another one as PATH=TOKEN")
            said = said.replace("give token=", "give one as PATH=TOKEN")
            raise ConfigError(f"--textual-inversion {word.place}: {said}") from error
