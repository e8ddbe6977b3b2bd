"""Conditions for a ControlNet that are made of a picture itself: its edges, or its colours in a few coarse cells.

The same code makes them for training and for drawing, so a picture gives the condition that the network has learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddim.errors import ConfigError
from ddim.images.flat import flatten

LOW, HIGH = 0.15, 0.3  # the steps of colour from which on an edge goes on, and begins; 1 is black beside white
BLUR = (1.0, 4.0, 6.0, 4.0, 1.0)  # a binomial, close to a Gaussian with a deviation of 1 pixel
SOBEL = (1.0, 2.0, 1.0)
STEEPEST = 0.625  # what the filters make of a step from 0 to 1


def edges(picture: Tensor) -> Tensor:
    """Thin white lines on black where the colours change, after Canny (1986): (b 3 h w) in [0, 1], both ways.

    The picture is blurred a little. A pixel is on an edge if its colours change faster there than on either side of it,
    across the edge; and if they do so by `HIGH`, or by `LOW` where the line goes on from a pixel with `HIGH`. Of the
    three colours the one that changes fastest counts.
    """
    blur = torch.tensor(BLUR, dtype=picture.dtype, device=picture.device) / sum(BLUR)
    smooth = torch.tensor(SOBEL, dtype=picture.dtype, device=picture.device) / sum(SOBEL)
    change = torch.tensor((-1.0, 0.0, 1.0), dtype=picture.dtype, device=picture.device)
    b, c, h, w = picture.shape
    x = _filtered(picture.reshape(b * c, 1, h, w), blur, blur)
    across = _filtered(x, smooth, change).view(b, c, h, w)
    along = _filtered(x, change, smooth).view(b, c, h, w)
    slopes = (across.square() + along.square()).sqrt() / STEEPEST
    slope, which = slopes.max(dim=1, keepdim=True)  # (b 1 h w)
    across, along = across.gather(1, which), along.gather(1, which)

    # The direction of the slope in eighths of a turn, and the slopes of both neighbours in that direction.
    eighth = (torch.atan2(along, across) * (4 / math.pi)).round().long() % 4
    around = F.pad(slope, (1, 1, 1, 1))

    def beside(down: int, right: int) -> Tensor:
        return around[:, :, 1 + down : 1 + down + h, 1 + right : 1 + right + w]

    steps = ((0, 1), (1, 1), (1, 0), (1, -1))  # down and right, for each direction
    before = torch.stack([beside(-down, -right) for down, right in steps]).gather(0, eighth[None])[0]
    after = torch.stack([beside(down, right) for down, right in steps]).gather(0, eighth[None])[0]
    is_top = (slope >= before) & (slope > after)
    possible, found = is_top & (slope >= LOW), is_top & (slope >= HIGH)
    while True:  # each round goes on by a pixel
        more = possible & (F.max_pool2d(found.to(picture.dtype), 3, 1, 1) > 0)
        if bool((more == found).all()):
            return found.to(picture.dtype).expand(b, 3, h, w)
        found = more


def layout(picture: Tensor, cells: int = 8) -> Tensor:
    """The mean colours of coarse cells, each a plain square: (b 3 h w) in [0, 1], both ways.

    Args:
        picture: (b 3 h w) in [0, 1].
        cells: how many cells the shorter side has; the longer one has as many of about the same size.
    """
    h, w = picture.shape[-2:]
    shorter = min(h, w)
    size = (max(1, round(cells * h / shorter)), max(1, round(cells * w / shorter)))
    return F.interpolate(F.adaptive_avg_pool2d(picture, size), (h, w), mode="nearest")


def _filtered(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """x (n 1 h w) filtered along both sides; what lies outside of the picture is like its border."""
    for weights, shape, pad in ((down, (1, 1, -1, 1), (0, 0, 1, 1)), (right, (1, 1, 1, -1), (1, 1, 0, 0))):
        half = len(weights) // 2
        x = F.conv2d(F.pad(x, [half * side for side in pad], mode="replicate"), weights.view(shape))
    return x


CONDITIONS: dict[str, Callable[..., Tensor]] = {"edges": edges, "layout": layout}


def condition_of(picture: Tensor, condition: str, cells: int | None = None) -> Tensor:
    """The condition of this name of pictures: (b 3 h w) in [0, 1], both ways.

    Args:
        picture: (b 3 h w) in [0, 1].
        condition: a key of `CONDITIONS`.
        cells: for "layout", see there.

    Raises:
        ConfigError: there is no such condition.
    """
    if condition not in CONDITIONS:
        raise ConfigError(f"unknown condition {condition!r:.50}; known are {', '.join(CONDITIONS)}")
    more = {"cells": cells} if condition == "layout" and cells is not None else {}
    return CONDITIONS[condition](picture, **more)


def condition_image(picture: Image.Image, condition: str, cells: int | None = None) -> Image.Image:
    """The same of a PIL picture, which is put on white if it is transparent: an RGB picture of its size."""
    pixels = torch.from_numpy(np.asarray(flatten(picture, "RGB", (255, 255, 255)), dtype=np.float32) / 255)
    made = condition_of(pixels.permute(2, 0, 1)[None], condition, cells)[0]
    return Image.fromarray((made.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
