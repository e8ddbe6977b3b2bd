"""Pictures of any size, as large as a model draws them; in their own proportions, with a line that says so."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddim.cli.pictures import read_image, size_of
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from ddim.pipelines import DiffusionPipeline

Size = tuple[int, int]  # width and height in pixels, as Pillow has them

# A picture's sides are multiples of so many pixels, if it may choose them; those of a latent, where these are more.
MULTIPLE = 8


def fit_pictures(paths: Sequence[str], pipe: DiffusionPipeline) -> list[Image.Image]:
    """The pictures of files in the one size that a model draws; what has other proportions is cropped in the middle.

    Lines on stderr say what was done.

    Raises:
        DataError: one is no picture, or too large.
    """
    channels, height, width = pipe.picture_shape()
    fitted = []
    for path in paths:
        own = size_of(path)
        _say(path, own, (width, height))
        fitted.append(_read(path, own, (width, height), channels))
    return fitted


def fit_start(
    image: str,
    mask: str | None,
    pipe: DiffusionPipeline,
    height: int | None = None,
    width: int | None = None,
) -> tuple[Image.Image, Image.Image | None]:
    """The picture that a run starts from and its mask, each from its file, in the size that `start_size` chooses.

    Raises:
        ConfigError: the mask has other proportions than the picture.
        DataError: one is no picture, or too large.
    """
    own, over = size_of(image), None if mask is None else size_of(mask)
    if over is not None and not _are_alike(over, own):
        raise ConfigError(
            f"--mask-image is {_spelt(over)} and --image {_spelt(own)}: as the mask lies over the whole "
            "picture, give one of the picture's size, or of its proportions"
        )
    size = start_size(own, pipe, height, width)
    _say("--image", own, size, "" if height or width else "; --height and --width decide otherwise")
    return _read(image, own, size, 3), None if mask is None or over is None else _read(mask, over, size, 1)


def _read(path: str, own: Size, size: Size, channels: int) -> Image.Image:
    """The picture of a file in another size than its own; it may be decoded at once in less than its own."""
    share = max(size[0] / own[0], size[1] / own[1])
    return resized(read_image(path, math.ceil(share * min(own))), size, channels)


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
    factor, depth = _structure(pipe)
    multiple, least = math.lcm(MULTIPLE, factor), factor * 2 ** (depth - 1)
    wide, high = (max(least, round(side * share / multiple) * multiple) for side in own)
    return wide if width is None else width, high if height is None else height


def resized(picture: Image.Image, size: Size, channels: int) -> Image.Image:
    """A picture in another size, grey for one channel and else RGB; what is too much for the size's proportions is cut
    off at both ends.

    One that was enlarged by whole pixels comes back exactly.
    """
    from PIL import Image, ImageOps

    from ddim.images.flat import flatten

    picture = flatten(picture, "L" if channels == 1 else "RGB")
    times = picture.width // size[0]
    if times > 1 and picture.size == (size[0] * times, size[1] * times):
        small = picture.reduce(times)
        if small.resize(picture.size, Image.Resampling.NEAREST).tobytes() == picture.tobytes():
            return small
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def warn_of_size(pipe: DiffusionPipeline, model: str, size: tuple[int | None, int | None]) -> None:
    """Say on stderr that (height, width) are far from what a model was trained to draw.

    Raises:
        ValueError: they cannot be drawn at all.
    """
    from ddim.pipelines.inputs import check_sides

    if size == (None, None):
        return
    check_sides(*size, _structure(pipe)[0])
    _, height, width = pipe.picture_shape()
    drawn = (size[0] or height, size[1] or width)
    shares = (drawn[0] / height, drawn[1] / width, drawn[0] * drawn[1] / (height * width))
    if any(not 0.5 <= share <= 2 for share in shares):
        print(
            f"ddim: {_spelt((drawn[1], drawn[0]))} is far from {_spelt((width, height))}, which {model} was trained to "
            "draw: expect broken or repeated shapes",
            file=sys.stderr,
        )


def _structure(pipe: DiffusionPipeline) -> tuple[int, int]:
    """(pixels that a latent stands for on each axis, resolutions of the U-Net)"""
    config = pipe.components["unet"].config
    return int(getattr(pipe, "vae_scale_factor", 1)), len(config.block_out_channels)


def _are_alike(one: Size, other: Size) -> bool:
    """Whether two sizes have the same proportions, but for rounding to whole pixels."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(sum(one), sum(other))


def _say(name: str, own: Size, size: Size, more: str = "") -> None:
    """Say what is done to a picture, if anything is."""
    if own == size:
        return
    share = max(size[0] / own[0], size[1] / own[1])
    kept = (min(own[0], round(size[0] / share)), min(own[1], round(size[1] / share)))
    crop = "" if kept == own else f"cropped to {_spelt(kept)} in the middle and "
    print(f"ddim: {name} is {_spelt(own)}: {crop}resized to {_spelt(size)}{more}", file=sys.stderr)


def _spelt(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
