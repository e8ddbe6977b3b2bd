"""In which size a picture of any size is started from, and the picture in that size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from ddim.images import read_picture, upright
from ddim.images.flat import flatten, is_grey

if TYPE_CHECKING:
    from ddim.images.reading import Picture
    from ddim.pipelines.base import DiffusionPipeline

__all__ = ["Size", "are_alike", "read_fitted", "read_plain", "resized", "start_size", "structure"]

Size = tuple[int, int]  # width and height in pixels, as Pillow has them

# A picture's sides are multiples of so many pixels, if it may choose them; those of a latent, where these are more.
MULTIPLE = 8


def start_size(own: Size, pipe: DiffusionPipeline, height: int | None, width: int | None) -> Size:
    """The size in which a picture is started from: what is given of it; else about as many pixels as the model draws.

    The proportions are the picture's, as nearly as whole latents allow, unless both sides are given.
    """
    if height is not None and width is not None:
        return width, height
    _, trained_height, trained_width = pipe.picture_shape()
    if height is None and width is None:
        if own[0] * trained_height == own[1] * trained_width:
            return trained_width, trained_height
        share = math.sqrt(trained_width * trained_height / (own[0] * own[1]))
    else:
        share = height / own[1] if height is not None else (width or 0) / own[0]
    factor, depth = structure(pipe)
    multiple, least = math.lcm(MULTIPLE, factor), factor * 2 ** (depth - 1)
    wide, high = (max(least, round(side * share / multiple) * multiple) for side in own)
    return wide if width is None else width, high if height is None else height


def resized(picture: Image.Image, size: Size, channels: int) -> Image.Image:
    """A picture in another size, grey for one channel and else RGB; what is too much for the size's proportions is cut
    off at both ends.

    One that was enlarged by whole pixels comes back exactly.
    """
    picture = flatten(picture, "L" if channels == 1 else "RGB")
    times = picture.width // size[0]
    if times > 1 and picture.size == (size[0] * times, size[1] * times):
        small = picture.reduce(times)
        if small.resize(picture.size, Image.Resampling.NEAREST).tobytes() == picture.tobytes():
            return small
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def read_fitted(picture: Picture, name: str, own: Size, size: Size, channels: int) -> Image.Image:
    """A picture's file in another size than its own, upright and on white; it may be decoded at once in less.

    Args:
        name: what the error calls it.
        own: the size of the upright picture.

    Raises:
        DataError: it is no picture, or too large.
    """
    share = max(size[0] / own[0], size[1] / own[1])
    return resized(read_plain(picture, name, math.ceil(share * min(own))), size, channels)


def read_plain(picture: Picture, name: str, least: int | None = None) -> Image.Image:
    """A picture's file, upright, in mode "L" or "RGB"; one that anything shows through is put on white.

    Args:
        name: what the error calls it.
        least: the fewest pixels that both sides need to keep; see `ddim.images.read_picture`.

    Raises:
        DataError: it is no picture, or too large.
    """
    image = upright(read_picture(picture, name, least))
    return flatten(image, "L" if is_grey(image) else "RGB")


def are_alike(one: Size, other: Size) -> bool:
    """Whether two sizes have the same proportions, but for rounding to whole pixels."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(sum(one), sum(other))


def structure(pipe: DiffusionPipeline) -> tuple[int, int]:
    """(pixels that a latent stands for on each axis, resolutions of the U-Net)"""
    config = pipe.components["unet"].config
    return int(getattr(pipe, "vae_scale_factor", 1)), len(config.block_out_channels)
