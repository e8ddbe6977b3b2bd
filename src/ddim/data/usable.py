"""One picture at a time: what can be used is found out before training, by the same code that reads it later.

A picture is checked in three steps, each dearer than the last: its header says how large it is; `verify` finds what is
damaged in a PNG; and it is decoded, which finds whatever is cut off. The last is done for the first
`DECODED_AT_START` pixels only (some ten seconds), counted and not timed, so that every process of a run and every
resumption of it chooses the same pictures.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from ddim.errors import DataError
from ddim.data.source import Omissions

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# Pillow knows many more, one of which runs Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_PIXELS = 89_000_000  # a little below where Pillow warns of a decompression bomb
DECODED_AT_START = 1_000_000_000

Picture = Path | bytes
"""Where an image is: a file, or the bytes of one."""


class PictureError(Exception):
    """Why one picture cannot be used, in words that read on from a number: "2 unreadable"."""


def read_picture(picture: Picture, name: str) -> Image.Image:
    """Decode a picture as it is: its mode, its transparency, its EXIF rotation; of several frames the first.

    Raises:
        DataError: it cannot be read; names it.
    """
    try:
        with _open(picture) as image:
            image.load()
            return image
    except Exception as error:  # Pillow's decoders raise whatever the damage leads to
        raise DataError(f"{name} cannot be read: {error or type(error).__name__}") from error


def usable(
    count: int,
    find: Callable[[int], Picture],
    name: Callable[[int], str],
    omissions: Omissions,
    *,
    minimum: int,
    most: int | None = None,
) -> list[int]:
    """The numbers of the pictures that can be used, in order. A bar shows how far it is, if it takes over a second.

    Args:
        count: of the candidates.
        find: number -> picture; may raise `PictureError`.
        name: number -> what to call it.
        omissions: gets those that cannot be used.
        minimum: of both sides, in pixels.
        most: stop at so many.
    """
    found: list[int] = []
    budget = DECODED_AT_START
    with warnings.catch_warnings(), tqdm(total=min(count, most or count), leave=False, delay=1, unit="image") as bar:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_inspect` has a limit of its own
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


def _open(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS)


def _inspect(picture: Picture, minimum: int) -> int:
    """How many pixels the header announces; PictureError if too many, too few, or what can be verified is damaged."""
    try:
        with _open(picture) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                image.verify()
    except Image.DecompressionBombError:  # twice Pillow's limit
        width = height = MAX_PIXELS
    except Exception as error:
        raise PictureError("unreadable") from error
    if width * height > MAX_PIXELS:
        raise PictureError(f"of more than {MAX_PIXELS // 1_000_000} megapixels")
    if min(width, height) < minimum:
        raise PictureError(f"with a side of less than {minimum} pixels")
    return width * height


def _decode(picture: Picture) -> None:
    try:
        read_picture(picture, "")
    except DataError as error:
        raise PictureError("unreadable") from error


@dataclass(frozen=True)
class PictureFiles:
    """A source's `load` for files. No closure, so that it can be sent to a process that loads images."""

    paths: Sequence[Path]

    def __call__(self, index: int) -> Image.Image:
        return read_picture(self.paths[index], str(self.paths[index]))
