"""Where commands write: a file that is there already is kept, and the new one gets a number, unless told otherwise."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

_NAME = re.compile(r"([0-9]{5}|[1-9][0-9]{5,17})(?:-([1-9][0-9]{0,8}))?\.png")


def is_folder(out: str) -> bool:
    """Whether --out names a folder, for a file each: one that exists, or a name that ends in /."""
    return out.endswith(("/", os.sep)) or Path(out).is_dir()


def place(out: str | Path, overwrite: bool) -> Path:
    """Where to write a file: at `out` or, if a file is there already and may not be replaced, beside it.

    The place beside `x.png` is the first of `x-1.png`, `x-2.png` and so on that is free.
    """
    path = Path(out)
    return path if overwrite else next(name for number in count() if not os.path.lexists(name := _with(path, number)))


@dataclass(frozen=True)
class Places:
    """Where numbered pictures go in a folder: `00000.png` and so on, or all of them as `00000-1.png` and so on.

    Attributes:
        folder: which need not exist.
        suffix: the number behind all names; 0 is none.
        done: the numbers of the pictures that are there already.
    """

    folder: Path
    suffix: int
    done: frozenset[int]

    def path(self, number: int) -> Path:
        return _with(self.folder / f"{number:05d}.png", self.suffix)


def places(
    folder: str | Path, numbers: range, overwrite: bool, *, ours: Callable[[Path, int], bool] | None = None
) -> Places:
    """Where to write numbered pictures in a folder.

    Args:
        overwrite: whether to take the plain names, whatever is there.
        ours: whether the file at a path is already the picture with this number. Such files are in nobody's way;
            without the function, every file is.
    """
    there: dict[int, set[int]] = {}  # suffix -> numbers
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        found = _NAME.fullmatch(name)
        if found and int(found[1]) in numbers:
            there.setdefault(int(found[2] or 0), set()).add(int(found[1]))
    for suffix in count():
        chosen = Places(Path(folder), suffix, frozenset())
        taken = there.get(suffix, set())
        done = frozenset(number for number in taken if ours is not None and ours(chosen.path(number), number))
        if overwrite or done == taken:
            return replace(chosen, done=done)
    raise AssertionError("unreachable")


def announce(out: str, overwrite: bool) -> None:
    """Say at once, on stderr, that a file will not be written at --out, because one is there already."""
    path = Path(out) / "00000.png" if is_folder(out) else Path(out)
    chosen = place(path, overwrite)
    if chosen != path:
        say_kept(path, chosen)


def say_kept(path: Path, chosen: Path) -> None:
    print(
        f"ddim: {path} is there already and is kept: writing {chosen.name} beside it (--overwrite replaces it)",
        file=sys.stderr,
    )


def _with(path: Path, number: int) -> Path:
    """
    >>> print(_with(Path("a/x.png"), 0), _with(Path("a/x.png"), 2))
    a/x.png a/x-2.png
    """
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path
