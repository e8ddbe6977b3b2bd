"""Pictures of any mode as plain ones of 8 bits, band by band, so that no second picture of their size is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from ddim.images.reading import bands, loaded

Color: TypeAlias = tuple[int, int, int]


def flatten(image: Image.Image, mode: str, background: Color = (255, 255, 255)) -> Image.Image:
    """A picture in PIL's mode "L" (grey) or "RGB", on a plain background where it is transparent.

    Args:
        image: a picture in any of PIL's modes, also one with a palette or with 16 or 32 bits of grey.
        mode: "L" or "RGB".
        background: red, green and blue, each 0 to 255.

    Returns:
        The picture itself, if it is in this mode and not transparent.

    Raises:
        DataError: the image was opened and not decoded yet, and cannot be; see `ddim.images.loaded`.
    """
    image = loaded(image, "a picture")
    if image.mode == mode and "transparency" not in image.info:
        return image
    high = 255.0
    if is_deep(image):
        high = max(65535.0 * (np.asarray(band).max(initial=0) > 255) for _, band in bands(image)) or 255.0
    flat = Image.new(mode, image.size)
    for top, band in bands(image):
        if is_deep(band):
            array = np.asarray(band, dtype=np.float32)
            band = Image.fromarray((array.clip(0, high) * (255 / high)).astype(np.uint8))
        if "A" in band.mode or "transparency" in band.info:
            rgba = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba)
        flat.paste(band.convert(mode), (0, top))
    return flat


def is_deep(image: Image.Image) -> bool:
    """Whether a picture's greys have more than 8 bits, which Pillow's own conversions cut off."""
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def is_grey(image: Image.Image) -> bool:
    """Whether a picture has no colours."""
    return is_deep(image) or image.mode in ("1", "L", "LA", "La")


def shows_background(image: Image.Image | Tensor) -> bool:
    """Whether a picture is transparent anywhere, so that a background behind it can be seen."""
    if isinstance(image, Tensor) or not ("A" in image.mode or "transparency" in image.info):
        return False
    alphas: Iterator[Any] = (band.convert("RGBA").getchannel("A").getextrema() for _, band in bands(image))
    return any(lowest < 255 for lowest, _ in alphas)
