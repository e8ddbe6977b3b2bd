"""What a source of images is, and how it says what it leaves out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from ddim.errors import DataError

# Names that image and caption columns usually have, to guess by.
USUAL_IMAGES = ("image", "img", "picture", "photo", "jpg", "png")
USUAL_CAPTIONS = ("text", "caption", "captions", "prompt", "description", "txt", "sentence")


@dataclass(frozen=True)
class Source:
    """Images that can be loaded by number.

    Attributes:
        count: how many there are.
        load: number -> PIL image, or a tensor (c h w) in [-1, 1] that needs no more work.
        channels: 1 or 3.
        labels: the class of each image, or None.
        class_names: their names, if there are labels.
        captions: one or more texts for each image, any of which fits it, or None.
    """

    count: int
    load: Callable[[int], Image.Image | Tensor]
    channels: int = 3
    labels: Sequence[int] | None = None
    class_names: tuple[str, ...] = ()
    captions: Sequence[tuple[str, ...]] | None = None


class Omissions:
    """What of some data is not used and why, told in one sentence, however much it is."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Note one image. `reason` reads on from a number: "2 unreadable"."""
        self.names.setdefault(reason, []).append(name)

    @property
    def count(self) -> int:
        return sum(map(len, self.names.values()))

    def __str__(self) -> str:
        return ", ".join(f"{len(names)} {reason} ({listed(names)})" for reason, names in self.names.items())


def listed(names: Sequence[str]) -> str:
    """The first five names; what no terminal should print is escaped."""
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def missing_column(where: str, column: str, columns: Iterable[str], likely: Iterable[str]) -> DataError:
    """The error for data without a column: says which there are, and which of them may be meant.

    Args:
        where: the data.
        column: what was asked for.
        columns: what there is.
        likely: names to look for among the columns if none looks like the one asked for, best first.
    """
    columns = list(columns)
    by_name = {name.lower(): name for name in reversed(columns)}
    close = difflib.get_close_matches(column.lower(), by_name, 1, 0.75)
    guess = next((by_name[name.lower()] for name in (*close, *likely) if name.lower() in by_name), None)
    hint = f"; did you mean {guess!r}?" if guess else ""
    return DataError(f"{where} has no column {column!r}; it has {', '.join(columns) or 'none'}{hint}")
