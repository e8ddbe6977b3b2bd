"""What is done to drawings of emoji before the scorer learns from them; see train_scorer.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ddim.data.preparation import BACKGROUNDS


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.empty(shape).uniform_(low, high, generator=generator)


def move(drawings: Tensor, generator: torch.Generator) -> Tensor:
    """Scaled, turned by up to 14 degrees, shifted by up to 7 pixels, and bent a little: (n 4 64 64)."""
    n = len(drawings)
    angle = uniform(generator, -0.25, 0.25, n)
    shear = uniform(generator, -0.1, 0.1, n)
    wide, high = (uniform(generator, math.log(0.85), math.log(1.4), n).exp() for _ in range(2))
    high = (wide * high.pow(0.3)).clamp(0.8, 1.5)  # much the same proportions
    matrix = torch.stack([wide * angle.cos(), shear - angle.sin(), angle.sin(), high * angle.cos()], 1).view(n, 2, 2)
    shift = uniform(generator, -0.22, 0.22, n, 2, 1)
    grid = F.affine_grid(torch.cat([matrix, shift], 2), list(drawings.shape), align_corners=False)
    bend = torch.randn((n, 2, 5, 5), generator=generator) * uniform(generator, 0, 0.05, n, 1, 1, 1)
    grid = grid + F.interpolate(bend, 64, mode="bilinear").permute(0, 2, 3, 1)
    return F.grid_sample(drawings, grid, align_corners=False)


def restyle(drawings: Tensor, generator: torch.Generator) -> Tensor:
    """As another hand might draw them: other saturation and contrast, perhaps a dark outline. (n 4 64 64)."""
    n = len(drawings)
    color, alpha = drawings[:, :3], drawings[:, 3:]
    grey = color.mean(1, keepdim=True)
    color = grey + (color - grey) * uniform(generator, 0.2, 1.6, n, 1, 1, 1)
    color = color + alpha * uniform(generator, -0.15, 0.15, n, 3, 1, 1)
    middle = 0.5 * alpha
    color = middle + (color - middle) * uniform(generator, 0.5, 1.5, n, 1, 1, 1)
    color = torch.minimum(color.clamp(min=0), alpha)
    luma = F.pad(color.mean(1, keepdim=True) - alpha, (1, 1, 1, 1))
    edges = F.max_pool2d(luma, 3, 1) + F.max_pool2d(-luma, 3, 1)
    ink = (edges * 3 - 0.3).clamp(0, 1) * (torch.rand((n, 1, 1, 1), generator=generator) < 0.5)
    return torch.cat([color * (1 - ink), torch.maximum(alpha, ink)], 1)


def compress(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blocks of 8x8 cosines, rounded, the faster ones more coarsely: much as JPEG does."""
    k = torch.arange(8.0)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) * torch.where(k[:, None] == 0, 0.125, 0.25).sqrt()
    blocks = images.unflatten(3, (8, 8)).unflatten(2, (8, 8)).transpose(3, 4)  # (n 3 8 8 y x)
    step = (0.15 + 0.1 * (k[:, None] + k)) * uniform(generator, 0.05, 1.5, len(images), 1, 1, 1, 1, 1)
    rounded = (dct @ blocks @ dct.T / step).round() * step
    return (dct.T @ rounded @ dct).transpose(3, 4).flatten(4).flatten(2, 3)


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Softened, compressed, noisy, a little off in colour: what an autoencoder might do to (n 3 64 64) in [-1, 1]."""
    n = len(images)
    soft, small = (torch.randperm(n, generator=generator)[: int(n * share)] for share in (0.4, 0.2))
    coarse = F.interpolate(images[soft], int(uniform(generator, 24, 60, 1)), mode="bilinear", antialias=True)
    part = uniform(generator, 0, 1, len(soft), 1, 1, 1)
    images = images.index_copy(0, soft, torch.lerp(images[soft], F.interpolate(coarse, 64, mode="bilinear"), part))
    images[small] = compress(images[small], generator)
    images = images * uniform(generator, 0.85, 1.1, n, 1, 1, 1) + uniform(generator, -0.08, 0.08, n, 3, 1, 1)
    noise = torch.randn(images.shape, generator=generator) * uniform(generator, -0.12, 0.08, n, 1, 1, 1).clamp(min=0)
    return (images + noise).clamp(-1, 1)


def augment(drawings: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Of drawings (n 4 64 64): pictures (n 3 64 64) in [-1, 1], their backgrounds (n,), which were restyled (n,)."""
    n = len(drawings)
    drawings = move(drawings, generator)
    foreign = torch.rand(n, generator=generator) < 0.25
    drawings[foreign] = restyle(drawings[foreign], generator)
    numbers = torch.randint(len(BACKGROUNDS), (n,), generator=generator)
    numbers[torch.rand(n, generator=generator) < 0.35] = 0
    behind = torch.tensor(list(BACKGROUNDS.values()))[numbers] / 255
    images = drawings[:, :3] + (1 - drawings[:, 3:]) * behind[:, :, None, None]
    return degrade(images * 2 - 1, generator), numbers, foreign
