"""Pictures that clients send and are sent: decoded within bounds, and written with their recipe."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddim.errors import DataError
from ddim.images import check_picture, read_picture, upright
from ddim.images.flat import flatten, is_grey
from ddim.serving.limits import Limits
from ddim.serving.refusal import Refusal

__all__ = ["MEDIA_TYPES", "OutputFormat", "Sent", "encoded", "from_base64", "read_controls", "read_image", "read_mask"]

OutputFormat = Literal["png", "webp", "jpeg"]
MEDIA_TYPES: Mapping[OutputFormat, str] = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}


class Sent(NamedTuple):
    """The pictures that came with a request, decoded.

    Attributes:
        image: to start from.
        mask: of it, white where to paint.
        controls: for ControlNets.
    """

    image: Image.Image | None = None
    mask: Image.Image | None = None
    controls: Sequence[Image.Image] = ()


def encoded(
    image: Image.Image, kind: OutputFormat, compression: int | None = None, recipe: Mapping[str, Any] | None = None
) -> bytes:
    """A picture's file.

    Args:
        image: grey or RGB.
        compression: the quality of a webp or jpeg, from 0 to 100, which is also the default; for webp 100 loses
            nothing.
        recipe: what a PNG says of how it was made, as those of `ddim sample` do.
    """
    file = io.BytesIO()
    if kind == "png":
        note = PngInfo()
        if recipe is not None:
            note.add_text("ddim", json.dumps(recipe))
        image.save(file, "PNG", pnginfo=note)
    elif kind == "webp":
        quality = 100 if compression is None else compression
        image.save(file, "WEBP", quality=quality, lossless=quality == 100)
    else:
        image.save(file, "JPEG", quality=100 if compression is None else compression, subsampling=0)
    return file.getvalue()


def read_image(data: bytes, limits: Limits) -> Image.Image:
    """A picture that a client sent, upright, grey or RGB, on white where it was transparent.

    Raises:
        Refusal: it is none, or larger than is read; this is found out before it is decoded.
    """
    image = _decoded(data, "image", limits.image_bytes, limits)
    return flatten(image, "L" if is_grey(image) else "RGB")


def read_controls(files: Sequence[bytes], limits: Limits) -> list[Image.Image]:
    """Pictures for ControlNets that a client sent, as `read_image` reads them; the bounds are of all together.

    Raises:
        Refusal: as `read_image`.
    """
    found, bytes_left, pixels_left = list[Image.Image](), limits.image_bytes, limits.image_pixels
    for data in files:
        image = _decoded(data, "control_image", bytes_left, replace(limits, image_pixels=pixels_left))
        found.append(flatten(image, "L" if is_grey(image) else "RGB"))
        bytes_left -= len(data)
        pixels_left -= image.width * image.height
    return found


def from_base64(text: str, name: str) -> bytes:
    """The bytes of a picture that stands in a text, by itself or as a data: address.

    Raises:
        Refusal: it is no base64; `name` says what of.
    """
    head, comma, rest = text.partition(",")
    is_address = bool(comma) and head.startswith("data:") and head.endswith(";base64")
    try:
        return base64.b64decode("".join((rest if is_address else text).split()), validate=True)
    except ValueError as error:
        raise Refusal(
            f"the {name} is no base64 of a picture's file: no path and no address is opened here, so send the picture "
            "itself",
            name,
            code="invalid_image",
        ) from error


def read_mask(data: bytes, size: tuple[int, int], limits: Limits) -> Image.Image:
    """A mask as OpenAI's clients send it, as one in mode "L" that is white where the picture is to be painted anew.

    Args:
        data: of a PNG that is wholly transparent, with an alpha of 0, where to paint.
        size: (width, height) of the picture that it belongs to.

    Raises:
        Refusal: it is no such mask.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise Refusal("the mask must be a PNG, as it says by being transparent where to paint", "mask")
    mask = _decoded(data, "mask", limits.mask_bytes, limits)
    if mask.size != size:
        raise Refusal(f"the mask is {_spelt(mask.size)} and the image {_spelt(size)}: give one of its size", "mask")
    if "A" not in mask.mode and "transparency" not in mask.info:
        raise Refusal(
            "the mask has no transparency: where its alpha is 0 the image is painted anew, so give a PNG with an alpha "
            "channel",
            "mask",
        )
    painted = mask.convert("RGBA").getchannel("A").point([255, *[0] * 255])
    if painted.getextrema() == (0, 0):
        raise Refusal("the mask is transparent nowhere, so that nothing would be painted", "mask")
    return painted


def _decoded(data: bytes, name: str, most: int, limits: Limits) -> Image.Image:
    if len(data) >= most:
        raise Refusal(f"the {name} has {len(data)} bytes, and must have fewer than {most}", name)
    try:
        width, height = check_picture(data, f"the {name}")
        if width * height > limits.image_pixels:
            raise Refusal(
                f"the {name} has {_spelt((width, height))} pixels, and {limits.image_pixels} are the most: make it "
                "smaller first",
                name,
            )
        return upright(read_picture(data, f"the {name}"))
    except DataError as error:
        raise Refusal(str(error), name, code="invalid_image") from error


def _spelt(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
