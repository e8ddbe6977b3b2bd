"""FreeU (Si et al. 2023, "FreeU: Free Lunch in Diffusion U-Net"): the inputs of the way up are scaled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

THRESHOLD = 1  # frequencies from -1 to below 1 are scaled, those of rows and of columns


class FreeU(NamedTuple):
    """How one block on the way up changes its inputs (the paper's equations 4 to 6, in the form that was published).

    Attributes:
        backbone: b, what the first half of the backbone's channels is multiplied by.
        skip: s, what the skip connection's low frequencies are multiplied by.
    """

    backbone: float
    skip: float

    def apply(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's features (b c h w) and the skip connection's (b k h w), scaled, in new tensors."""
        half = x.shape[1] // 2
        return torch.cat([x[:, :half] * self.backbone, x[:, half:]], dim=1), scale_low_frequencies(skip, self.skip)


def scale_low_frequencies(x: Tensor, factor: float) -> Tensor:
    """A feature map (b c h w) whose low frequencies, of both axes together, are multiplied by a factor.

    The Fourier transform is in float32, as not every type and size can be transformed.
    """
    height, width = x.shape[-2:]
    frequencies = torch.fft.fftshift(torch.fft.fft2(x.float()), dim=(-2, -1))
    mask = torch.ones(height, width, device=x.device)
    rows, columns = (slice(side // 2 - THRESHOLD, side // 2 + THRESHOLD) for side in (height, width))
    mask[rows, columns] = factor
    filtered: Tensor = torch.fft.ifft2(torch.fft.ifftshift(frequencies * mask, dim=(-2, -1))).real
    return filtered.to(x.dtype)
