"""What somebody may have meant who named a file or a folder that is not there."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_ALIKE = 0.75  # how much of two names must agree, by difflib's ratio: emojo and emoji have 0.8
_LISTED = 500  # how many entries of a folder are looked at, at most


def alike(word: str, words: Iterable[str]) -> str | None:
    """The word that is most like another, capital letters aside; None if none is like it.

    >>> alike("Emojo", ["digits", "emoji"]), alike("gpt2", ["digits", "emoji"])
    ('emoji', None)
    """
    small = {each.lower(): each for each in words}
    found = difflib.get_close_matches(word.lower(), small, n=1, cutoff=_ALIKE)
    return small[found[0]] if found else None


def nearby(name: str, wanted: Callable[[Path], bool]) -> str | None:
    """A path near a name that is not there: a like name in its folder, or its like in a folder beside.

    Args:
        name: a path, relative to the working folder or not.
        wanted: whether a path could have been meant.

    Returns:
        The path as it would be typed, such as "./models/emoji2"; None if there is none.
    """
    path = Path(name)
    if not path.name:
        return None
    groups = [_listed(path.parent)]
    if not path.is_absolute():  # a folder may have been left out or misspelt
        groups += [_listed(Path()), (each for folder in _listed(Path()) if folder.is_dir() for each in _listed(folder))]
    for group in groups:
        found = {_stem(each): each for each in group if wanted(each)}
        best = alike(_stem(path), found)
        if best is not None:
            shown = str(found[best])
            return shown if found[best].is_absolute() or shown.startswith("..") else os.path.join(".", shown)
    return None


def did_you_mean(meant: str | None) -> str:
    """The end of an error's text; empty if nothing is known that may have been meant."""
    return "" if meant is None else f": did you mean {meant}?"


def _stem(path: Path) -> str:
    """A name without its ending, of which many are alike."""
    return path.stem if path.suffix else path.name


def _listed(folder: Path) -> Iterator[Path]:
    """The entries of a folder, save the hidden ones; none if it is not there or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield from sorted(
                folder / entry.name for entry in itertools.islice(entries, _LISTED) if entry.name[:1] != "."
            )
    except (OSError, ValueError):  # a ValueError: the name has a zero byte
        return
