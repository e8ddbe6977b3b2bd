"""Pictures of any size, as large as a model draws them; in their own proportions, with a line that says so."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddim.cli.pictures import size_of
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from ddim.pipelines import DiffusionPipeline
    from ddim.pipelines.fitting import Size


def fit_pictures(paths: Sequence[str], pipe: DiffusionPipeline) -> list[Image.Image]:
    """The pictures of files in the one size that a model draws; what has other proportions is cropped in the middle.

    Lines on stderr say what was done.

    Raises:
        DataError: one is no picture, or too large.
    """
    from ddim.pipelines.fitting import read_fitted

    channels, height, width = pipe.picture_shape()
    fitted = []
    for path in paths:
        own = size_of(path)
        _say(path, own, (width, height))
        fitted.append(read_fitted(path, path, own, (width, height), channels))
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
    from ddim.pipelines.fitting import are_alike, read_fitted, start_size

    own, over = size_of(image), None if mask is None else size_of(mask)
    if over is not None and not are_alike(over, own):
        raise ConfigError(
            f"--mask-image is {_spelt(over)} and --image {_spelt(own)}: as the mask lies over the whole "
            "picture, give one of the picture's size, or of its proportions"
        )
    size = start_size(own, pipe, height, width)
    _say("--image", own, size, "" if height or width else "; --height and --width decide otherwise")
    picture = read_fitted(image, image, own, size, 3)
    return picture, None if mask is None or over is None else read_fitted(mask, mask, over, size, 1)


def fit_shown(path: str, option: str, size: Size) -> Image.Image:
    """The picture of a file in (width, height), for a ControlNet; a line on stderr says what was done to it.

    Raises:
        DataError: it is no picture, or too large.
    """
    from ddim.pipelines.fitting import read_fitted

    own = size_of(path)
    _say(option, own, size)
    return read_fitted(path, path, own, size, 3)


def warn_of_size(pipe: DiffusionPipeline, model: str, size: tuple[int | None, int | None]) -> None:
    """Say on stderr that (height, width) are far from what a model was trained to draw.

    Raises:
        ValueError: they cannot be drawn at all.
    """
    from ddim.pipelines.fitting import structure
    from ddim.pipelines.inputs import check_sides

    if size == (None, None):
        return
    check_sides(*size, structure(pipe)[0])
    _, height, width = pipe.picture_shape()
    drawn = (size[0] or height, size[1] or width)
    shares = (drawn[0] / height, drawn[1] / width, drawn[0] * drawn[1] / (height * width))
    if any(not 0.5 <= share <= 2 for share in shares):
        print(
            f"ddim: {_spelt((drawn[1], drawn[0]))} is far from {_spelt((width, height))}, which {model} was trained to "
            "draw: expect broken or repeated shapes",
            file=sys.stderr,
        )


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
