"""Reads one picture at a time, and finds out before training which pictures can be used.

A picture is checked in two steps, of which the second is slower. What its file says of itself is looked through, which
finds its size, and damage in a PNG; see `ddim.images.containers`. Decoding finds whatever else is damaged or cut off.
Pictures are decoded only until `DECODED_AT_START` pixels were, which takes some ten seconds. It is pixels that are
counted and not seconds, so that every process of a run, and a run that is resumed, chooses the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ddim.errors import DataError
from ddim.data.progress import progress
from ddim.data.source import Omissions
from ddim.images.reading import TooLargeError, check_picture, read_picture, upright_size

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
DECODED_AT_START = 1_000_000_000  # pixels

Picture = Path | bytes  # an image's file, or the bytes of one


class PictureError(Exception):
    """Why a picture cannot be used, in words that read on from a number, such as "unreadable" in "2 unreadable"."""


def usable(
    count: int,
    find: Callable[[int], Picture],
    name: Callable[[int], str],
    omissions: Omissions,
    *,
    minimum: int,
    most: int | None = None,
) -> list[int]:
    """The numbers of the pictures that can be used, in order. A progress bar shows if it takes over a second.

    Args:
        count: how many pictures there are.
        find: from a picture's number to the picture; may raise `PictureError`.
        name: from a picture's number to what warnings call it.
        omissions: the pictures that cannot be used are added to these.
        minimum: the fewest pixels of a side.
        most: stop when so many were found; None goes through all.
    """
    found: list[int] = []
    budget = DECODED_AT_START
    with progress(total=min(count, most or count), leave=False, unit="image") as bar:
        bar.set_description("checking images", refresh=False)
        for index in range(count):
            try:
                picture = find(index)
                budget -= _inspect(picture, minimum)
                if budget >= 0:
                    _decode(picture)
                found.append(index)
            except PictureError as reason:
                omissions.add(str(reason), name(index))
            bar.update()
            if len(found) == most:
                break
    return found


def check_condition(picture: Picture) -> None:
    """Raise `PictureError` if what a picture is conditioned on is no picture, as far as its file says."""
    try:
        _inspect(picture, 1)
    except PictureError as reason:
        raise PictureError(f"with a condition that is {reason}") from reason


def _inspect(picture: Picture, minimum: int) -> int:
    """How many pixels a picture has, as its file says. Raises `PictureError` if they are too many or too few, or if
    what the file says of itself is wrong."""
    try:
        width, height = check_picture(picture, "", whole=False)
    except DataError as error:
        reason = error.__cause__
        raise PictureError(str(reason) if isinstance(reason, TooLargeError) else "unreadable") from error
    if min(width, height) < minimum:
        raise PictureError(f"with a side of less than {minimum} pixels")
    return width * height


def _decode(picture: Picture) -> None:
    """Raise `PictureError` if a picture cannot be decoded."""
    try:
        read_picture(picture, "", least=1)
    except DataError as error:
        raise PictureError("unreadable") from error


@dataclass(frozen=True)
class PictureFiles:
    """Loads the images in files by their numbers; the `load` of a source.

    It is a class and no closure, as only then it can be sent to other processes that load images.

    Attributes:
        paths: the files.
        least: the fewest pixels that both sides need to keep; see `read_picture`.
    """

    paths: Sequence[Path]
    least: int | None = None

    def __call__(self, index: int) -> Image.Image:
        return read_picture(self.paths[index], str(self.paths[index]), self.least)

    def at_least(self, least: int) -> PictureFiles:
        return replace(self, least=least)

    def size(self, index: int) -> tuple[int, int]:
        """An image's (width, height), upright, from what its file says of itself."""
        return upright_size(self.paths[index], str(self.paths[index]))
