"""Reads one picture at a time, and finds out before training which pictures can be used.

A picture is checked in three steps, each slower than the one before. Its header says how large it is, Pillow's `verify`
finds damage in a PNG, and decoding finds whatever else is damaged or cut off. Pictures are decoded only until
`DECODED_AT_START` pixels were, which takes some ten seconds. It is pixels that are counted and not seconds, so that
every process of a run, and a run that is resumed, chooses the same pictures.
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
# The only formats that are read. Pillow knows many more, and for one of them it runs another program, Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_PIXELS = 89_000_000  # a little less than the size at which Pillow warns of a decompression bomb
DECODED_AT_START = 1_000_000_000  # pixels

Picture = Path | bytes  # an image's file, or the bytes of one


class PictureError(Exception):
    """Why a picture cannot be used, in words that read on from a number, such as "unreadable" in "2 unreadable"."""


def read_picture(picture: Picture, name: str) -> Image.Image:
    """Decode a picture. Mode, transparency and EXIF rotation stay as they are; of several frames it is the first.

    Args:
        picture: the picture.
        name: what the error calls it.

    Raises:
        DataError: the picture cannot be read.
    """
    try:
        with _open(picture) as image:
            image.load()
            return image
    except Exception as error:  # a damaged file can make Pillow's decoders raise an error of any kind
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
    with warnings.catch_warnings(), tqdm(total=min(count, most or count), leave=False, delay=1, unit="image") as bar:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_inspect` refuses such pictures anyway
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
    """How many pixels a picture has by its header. Raises `PictureError` if they are too many or too few, or if
    `verify` finds damage."""
    try:
        with _open(picture) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                image.verify()
    except Image.DecompressionBombError:  # the picture is over twice as large as what Pillow warns of
        width = height = MAX_PIXELS
    except Exception as error:
        raise PictureError("unreadable") from error
    if width * height > MAX_PIXELS:
        raise PictureError(f"of more than {MAX_PIXELS // 1_000_000} megapixels")
    if min(width, height) < minimum:
        raise PictureError(f"with a side of less than {minimum} pixels")
    return width * height


def _decode(picture: Picture) -> None:
    """Raise `PictureError` if a picture cannot be decoded."""
    try:
        read_picture(picture, "")
    except DataError as error:
        raise PictureError("unreadable") from error


@dataclass(frozen=True)
class PictureFiles:
    """Loads the images in files by their numbers; the `load` of a source.

    It is a class and no closure, as only then it can be sent to other processes that load images.
    """

    paths: Sequence[Path]

    def __call__(self, index: int) -> Image.Image:
        return read_picture(self.paths[index], str(self.paths[index]))
