"""How near one picture comes to another, in numbers, in words and as a picture of the difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddim.images import to_images

__all__ = ["Nearness", "amplification", "as_tensor", "difference", "nearness", "noise_picture"]

_LEAST, _MOST = 4, 64  # times that a difference is amplified: half a level, which rounding makes, stays dark


@dataclass(frozen=True)
class Nearness:
    """How far two pictures are apart.

    Attributes:
        square: the mean square of the difference of pixels in [0, 1], as in the paper's Table 2.
        mean, largest: of the absolute difference, in levels of 255.
    """

    square: float
    mean: float
    largest: float

    @property
    def psnr(self) -> float:
        """The peak signal-to-noise ratio, in dB; infinity where the pictures are the same."""
        return math.inf if self.square == 0 else -10 * math.log10(self.square)

    def __str__(self) -> str:
        """
        >>> print(Nearness(1e-4, 1.6, 20.0), Nearness(0.0, 0.0, 0.0), sep="; ")
        PSNR 40.0 dB, mean error 1.6 levels of 255; the same to the last bit
        """
        if self.square == 0:
            return "the same to the last bit"
        mean = "under 0.01" if self.mean < 0.01 else f"{self.mean:.2g}"
        return f"PSNR {self.psnr:.1f} dB, mean error {mean} levels of 255"


def nearness(first: Tensor, second: Tensor) -> Nearness:
    """How far two pictures are apart, (… c h w) each, in [0, 1]."""
    apart = (first.double() - second.double()).abs().cpu()
    return Nearness(float(apart.square().mean()), 255 * float(apart.mean()), 255 * float(apart.max()))


def as_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size and mode as (b c h w) float64 in [0, 1]."""
    arrays = np.stack([np.asarray(picture, np.float64) / 255 for picture in pictures])
    tensor = torch.from_numpy(arrays)
    return tensor[:, None] if tensor.ndim == 3 else tensor.movedim(-1, 1)


def amplification(first: Tensor, second: Tensor) -> int:
    """How often a difference can be taken so that most of it is still below white: a power of two from 4 to 64."""
    high = float((first.double() - second.double()).abs().flatten().quantile(0.95))
    return _MOST if high * _MOST <= 1 else max(_LEAST, 2 ** math.floor(math.log2(1 / high)))


def difference(first: Tensor, second: Tensor, times: int) -> Image.Image:
    """The absolute difference of two pictures, (1 c h w) each in [0, 1], so many times amplified; black is none."""
    apart = ((first.double() - second.double()).abs() * times).clamp(0, 1)
    return to_images(2 * apart - 1)[0]


def noise_picture(x: Tensor) -> Image.Image:
    """A sample in model space, (1 c h w), as a picture of its first channels: from -3 (black) to 3 (white)."""
    return to_images(x[:, : 3 if x.shape[1] >= 3 else 1] / 3)[0]
