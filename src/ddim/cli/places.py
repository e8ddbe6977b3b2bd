"""Where commands write: a file that is there already is kept, and the new one gets a number, unless told otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path


def is_folder(out: str) -> bool:
    """Whether --out names a folder, for a file each: one that exists, or a name that ends in /."""
    return out.endswith(("/", os.sep)) or Path(out).is_dir()


def place(out: str | Path, overwrite: bool) -> Path:
    """Where to write a file: at `out` or, if a file is there already and may not be replaced, beside it.

    The place beside `x.png` is the first of `x-1.png`, `x-2.png` and so on that is free.
    """
    path = Path(out)
    return path if overwrite else next(name for number in count() if not os.path.lexists(name := _with(path, number)))


def places(
    folder: str | Path, numbers: Iterable[int], overwrite: bool, *, ours: Callable[[Path], bool] | None = None
) -> dict[int, Path]:
    """Where to write numbered pictures in a folder: `00000.png` and so on, or all of them as `00000-1.png` and so on.

    Args:
        folder: the folder, which need not exist.
        numbers: of the pictures.
        overwrite: whether to take the plain names, whatever is there.
        ours: whether a file that is there is one of these pictures. Such files are in nobody's way; without the
            function, every file is.
    """
    plain = {number: Path(folder) / f"{number:05d}.png" for number in numbers}
    if overwrite:
        return plain
    for suffix in count():
        names = {number: _with(path, suffix) for number, path in plain.items()}
        if not any(os.path.lexists(name) and not (ours and ours(name)) for name in names.values()):
            return names
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
