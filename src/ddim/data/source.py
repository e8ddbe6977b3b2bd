"""What a source of images is, and in which words it tells what it leaves out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor

from ddim.errors import DataError
from ddim.images.reading import upright

# Names that columns of images and of captions often have, by which an error guesses what was meant.
USUAL_IMAGES = ("image", "img", "picture", "photo", "jpg", "png")
USUAL_CONDITIONS = ("conditioning_image", "conditioning_image_file_name", "condition", "control", "guide")
USUAL_CAPTIONS = ("text", "caption", "captions", "prompt", "description", "txt", "sentence")


@dataclass(frozen=True)
class Source:
    """Images that can be loaded by number.

    Attributes:
        count: how many images there are.
        load: from an image's number, 0 to count - 1, to a PIL image, or to a tensor (c h w) in [-1, 1] that needs no
            more preparation.
        channels: 1 for grey, 3 for RGB.
        labels: the class of each image; None without classes.
        class_names: the name of each class; empty without classes.
        captions: one or more texts for each image, any of which fits it; None without captions.
        conditions: from an image's number to the picture that it is conditioned on, of the same proportions; None
            without conditions.
    """

    count: int
    load: Callable[[int], Image.Image | Tensor]
    channels: int = 3
    labels: Sequence[int] | None = None
    class_names: tuple[str, ...] = ()
    captions: Sequence[tuple[str, ...]] | None = None
    conditions: Callable[[int], Image.Image] | None = None

    def at_least(self, least: int) -> Source:
        """The same source for somebody who needs no more than so many pixels of both sides.

        Pictures in files that are several times as large may then be decoded smaller, with at least twice as many.
        """
        found = {name: getattr(getattr(self, name), "at_least", None) for name in ("load", "conditions")}
        return replace(self, **{name: shrinking(least) for name, shrinking in found.items() if shrinking is not None})

    def size(self, index: int) -> tuple[int, int]:
        """An image's (width, height), upright. One that is in a file is not decoded for it.

        Raises:
            DataError: the file is damaged, or no longer there.
        """
        return _size(self.load, index)

    def condition_size(self, index: int) -> tuple[int, int]:
        """(width, height) of what an image is conditioned on, upright, in the same way.

        Raises:
            DataError: the file is damaged, or no longer there.
        """
        assert self.conditions is not None
        return _size(self.conditions, index)


def _size(load: Callable[[int], Image.Image | Tensor], index: int) -> tuple[int, int]:
    """(width, height) of what is loaded for a number, by a `size` that `load` may have, or else of the picture."""
    measure = getattr(load, "size", None)
    if measure is not None:
        width, height = measure(index)
        return width, height
    image = load(index)
    return (image.shape[-1], image.shape[-2]) if isinstance(image, Tensor) else upright(image).size


class Omissions:
    """Which images of a source are left out and why, told in one sentence, however many they are."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}  # reason -> the images

    def add(self, reason: str, name: str) -> None:
        """Note one image. The reason is in words that read on from a number, such as "unreadable" in "2 unreadable"."""
        self.names.setdefault(reason, []).append(name)

    @property
    def count(self) -> int:
        """How many images are left out."""
        return sum(map(len, self.names.values()))

    def __str__(self) -> str:
        return ", ".join(f"{len(names)} {reason} ({listed(names)})" for reason, names in self.names.items())


def listed(names: Sequence[str]) -> str:
    """The first five names and how many more there are. Characters that might upset a terminal are escaped."""
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def missing_column(where: str, column: str, columns: Iterable[str], likely: Iterable[str]) -> DataError:
    """The error for data that lacks a column. It says which columns there are, and which of them may be meant.

    Args:
        where: what to call the data.
        column: the column that was asked for.
        columns: the columns that there are.
        likely: names to look for among the columns if none resembles the one asked for, the best first.
    """
    columns = list(columns)
    by_name = {name.lower(): name for name in reversed(columns)}
    close = difflib.get_close_matches(column.lower(), by_name, 1, 0.75)
    guess = next((by_name[name.lower()] for name in (*close, *likely) if name.lower() in by_name), None)
    hint = f"; did you mean {guess!r}?" if guess else ""
    return DataError(f"{where} has no column {column!r}; it has {', '.join(columns) or 'none'}{hint}")
