"""The one door through which pictures come in: from files and bytes that may be anyone's, and as Pillow's own objects.

`containers` finds the first picture of a file, and Pillow decodes what it found by the class of that format. So no
other of Pillow's some fifty formats looks at the file, of which some start programs, no other file is opened, and what
the user's program set in Pillow, such as MAX_IMAGE_PIXELS, is neither changed nor followed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from PIL import ExifTags, Image, ImageFile, ImageOps

from ddim.errors import DataError
from ddim.images.containers import find_picture, png_chunks
from ddim.images.spans import BrokenError, Found, Spans, at

MAX_PIXELS = 89_000_000  # a little less than the size at which Pillow warns of a decompression bomb
MAX_SIDE = 32_767  # of width and height

_LARGE = 1 << 24  # pixels; a picture of more is reduced band by band
_BAND = 1 << 22  # pixels of a band

Picture: TypeAlias = str | Path | bytes  # an image's file, or the bytes of one

# The modules and classes of Pillow that decode the formats that are read. One built without libavif has none for AVIF.
_CLASSES = {
    "PNG": "PngImagePlugin:PngImageFile",
    "JPEG": "JpegImagePlugin:JpegImageFile",
    "WEBP": "WebPImagePlugin:WebPImageFile",
    "GIF": "GifImagePlugin:GifImageFile",
    "BMP": "BmpImagePlugin:BmpImageFile",
    "TIFF": "TiffImagePlugin:TiffImageFile",
    "AVIF": "AvifImagePlugin:AvifImageFile",
}
_ALSO_READ = ("MPO", "DIB")  # what Pillow calls a JPEG with further pictures, and a BMP without its first bytes


class TooLargeError(BrokenError):
    """Which pictures are too large to be read, in words that go on after a number: "of more than 89 megapixels".

    Attributes:
        size: (width, height) of this one.
    """

    def __init__(self, words: str, size: tuple[int, int]) -> None:
        super().__init__(words)
        self.size = size


def read_picture(picture: Picture, name: str, least: int | None = None) -> Image.Image:
    """Decode a picture. Mode and transparency stay as they are; of several frames it is the first.

    The picture says nothing but its transparency and, if it is to be turned, how, in its EXIF; see `upright`.

    Args:
        picture: the picture's file, or the bytes of one.
        name: what the error calls it.
        least: the fewest pixels that both sides need to keep. Where they have several times as many, a picture may be
            decoded smaller, with at least twice as many. None keeps all.

    Raises:
        DataError: it is no picture in one of the formats that are read, larger than what is read, or damaged.
    """
    with _explained(name), _opened(picture) as file:
        found = inspect(file)
        return shrunk(_decoded(file, found, least), least)


def check_picture(picture: Picture, name: str, *, whole: bool = True) -> tuple[int, int]:
    """The upright (width, height) of a picture of which all that can be known without decoding it is right.

    Args:
        picture, name: as for `read_picture`.
        whole: look through all of the picture's data. False reads a JPEG's header alone.

    Raises:
        DataError: as `read_picture`.
    """
    with _explained(name), _opened(picture) as file:
        found = inspect(file, whole)
        return found.size[::-1] if found.orientation > 4 else found.size


def upright_size(picture: Picture, name: str) -> tuple[int, int]:
    """(width, height) that a picture has when `upright` has turned it, as its file says.

    An AVIF is decoded for it, since how it is turned can be written in several places of the file.

    Args:
        picture, name: as for `read_picture`.

    Raises:
        DataError: as `read_picture`.
    """
    with _explained(name), _opened(picture) as file:
        found = inspect(file, whole=False)
        if found.format == "AVIF":
            return upright(_decoded(file, found, None)).size
        return found.size[::-1] if found.orientation > 4 else found.size


def png_text(picture: Picture, keyword: str, most: int, name: str | None = None) -> str | None:
    """A text that a PNG holds under a keyword; None if it holds none.

    Args:
        picture: the file, or the bytes of one.
        keyword: of the text, in ASCII.
        most: the most bytes that the text may have.
        name: what the error calls it; its path unless told.

    Raises:
        DataError: it is no PNG, or cut off, or the text is longer.
    """
    start = keyword.encode() + b"\0"
    with _explained(name or str(picture)), _opened(picture) as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            raise BrokenError("it is no PNG")
        for kind, place, length in png_chunks(file):
            if kind not in (b"tEXt", b"zTXt", b"iTXt") or length < len(start) or at(file, place, len(start)) != start:
                continue
            if length > most:
                raise BrokenError(f"what it says under {keyword} has over {most} bytes")
            text = at(file, place, length)[len(start) :]
            is_packed = kind == b"zTXt"
            if kind == b"iTXt":  # whether it is packed and how, the language, and the keyword in that language
                is_packed, text = text[0] == 1, text[2:].split(b"\0", 2)[2]
            if is_packed:
                text = zlib.decompressobj().decompress(text[kind == b"zTXt" :], most)
            return text.decode("utf-8" if kind == b"iTXt" else "latin-1")
    return None


def loaded(image: Image.Image, name: str) -> Image.Image:
    """A PIL image whose pixels are there. One that was opened and not decoded yet is checked first, and then decoded.

    Args:
        image: any PIL image.
        name: what the error calls it.

    Raises:
        DataError: it is not decoded yet, and of a format that is not read, larger than what is read, or damaged.
    """
    if not isinstance(image, ImageFile.ImageFile) or getattr(image, "_im", image.__dict__.get("im")) is not None:
        return image
    with _explained(name):
        if image.format not in (*_CLASSES, *_ALSO_READ):
            raise BrokenError(
                f"it is a file of format {image.format} that is not decoded yet, and read are "
                f"{', '.join(_CLASSES)}: if you trust the file, call the image's load() before"
            )
        check_size(Found(image.format, image.size, ()))
        file = getattr(image, "fp", None)
        if file is not None and image.format != "DIB" and image.tell() == 0:
            place = file.tell()
            file.seek(0)
            inspect(file)
            file.seek(place)
        image.load()
    return image


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says, or itself where there is nothing to turn."""
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if is_turned else image


def inspect(file: IO[bytes], whole: bool = True) -> Found:
    """What is found in a file; see `containers.find_picture`.

    Raises:
        BrokenError: it is no picture that is read.
        TooLargeError: it is larger than what is read.
    """
    found = find_picture(file, whole)
    check_size(found)
    return found


def check_size(found: Found) -> None:
    """Raise `TooLargeError` if a picture is larger than what is read."""
    width, height = found.size
    most = int(MAX_PIXELS / found.weight)
    if width * height > most:
        kind = f" in this kind of {found.format}" if found.weight != 1 else ""
        raise TooLargeError(f"of more than {most // 1_000_000} megapixels{kind}", found.size)
    if max(width, height) > MAX_SIDE:
        raise TooLargeError(f"with a side of more than {MAX_SIDE} pixels", found.size)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Whatever goes wrong inside, as one `DataError`: a damaged file can make decoders raise an error of any kind."""
    shown = name if len(name) <= 300 else f"{name[:300]}…"
    shown = shown if shown.isprintable() else ascii(shown)
    try:
        yield
    except DataError:
        raise
    except TooLargeError as error:
        width, height = error.size
        raise DataError(
            f"{shown} cannot be read: it is {width}x{height}, and pictures {error} are not read; make it smaller first"
        ) from error
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {error.strerror or error}"[:1000]) from error
    except Exception as error:
        raise DataError(f"{shown} cannot be read: {error or type(error).__name__}"[:1000]) from error


@contextlib.contextmanager
def _opened(picture: Picture) -> Iterator[IO[bytes]]:
    """The picture's file. Only an ordinary file is opened: reading from a pipe or a device might never end."""
    if isinstance(picture, bytes):
        yield io.BytesIO(picture)
        return
    about = os.stat(picture)
    if stat.S_ISDIR(about.st_mode):
        raise BrokenError("it is a folder")
    if not stat.S_ISREG(about.st_mode):
        raise BrokenError("it is no ordinary file")
    if not about.st_size:
        raise BrokenError("it is empty")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(picture, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was another file a moment ago
            raise BrokenError("it is no ordinary file")
        yield file


def _decoded(file: IO[bytes], found: Found, least: int | None) -> Image.Image:
    """The picture as a plain image, without its file."""
    module, _, name = _CLASSES[found.format].partition(":")
    try:
        opener: Any = getattr(importlib.import_module(f"PIL.{module}"), name)
    except ImportError as error:
        raise BrokenError(f"this installation of Pillow reads no {found.format}") from error
    with opener(cast(IO[bytes], Spans(file, found.parts))) as image:
        check_size(found._replace(size=image.size))
        if least is not None and found.format == "JPEG":
            image.draft(None, (2 * least, 2 * least))
        image.load()
        plain: Image.Image = image._new(image.im)
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) if found.format == "AVIF" else found.orientation
    plain.info = {"transparency": plain.info["transparency"]} if "transparency" in plain.info else {}
    if turned != 1:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = turned
        plain.info["exif"] = exif.tobytes()
    return plain


def bands(image: Image.Image, step: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """(top, band) of a picture in bands from its top to its bottom, of a multiple of `step` rows each."""
    width, height = image.size
    rows = max(_BAND // width // step, 1) * step
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        box = (0, top, width, bottom)
        yield top, image.resize((width, bottom - top), Image.Resampling.NEAREST, box)  # `crop` asks MAX_IMAGE_PIXELS


def shrunk(image: Image.Image, least: int | None) -> Image.Image:
    """A picture of over 16 megapixels with fewer, at least twice as many on both sides as are needed.

    Others are given back as they are.
    """
    factor = 1 if least is None else min(image.size) // (2 * least)
    if factor < 2 or image.width * image.height <= _LARGE:
        return image
    small: Image.Image | None = None
    for top, band in bands(image, factor):
        reduced = _without_palette(band).reduce(factor)
        if small is None:
            small = Image.new(reduced.mode, (reduced.width, -(-image.height // factor)))
            small.info = {key: value for key, value in image.info.items() if key == "exif"}
        small.paste(reduced, (0, top // factor))
    assert small is not None
    return small


def _without_palette(image: Image.Image) -> Image.Image:
    """A picture in a mode of which means can be taken."""
    if "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode.startswith("I;16"):
        return image.convert("I")
    return image.convert({"1": "L", "P": "RGB", "PA": "RGBA"}.get(image.mode, image.mode))
