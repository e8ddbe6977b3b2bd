"""Classifier-free guidance (Ho and Salimans 2022) as a denoiser made of denoisers.

    guided = u + w·(c - u)          u without the condition, c with it, w the guidance scale

With a large w the contrast of the result grows; `rescale` brings its standard deviation back to that of c (Lin et al.
2024, section 3.4). The loop that samples is given the guided denoiser and needs to know nothing of guidance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.sampling import Denoiser

__all__ = ["check_guidance", "guide", "rescale_noise", "weigh"]


def guide(
    both: Denoiser,
    conditional: Denoiser,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[int, int] | None = None,
) -> Denoiser:
    """A denoiser under classifier-free guidance.

    Args:
        both: the network on a batch of 2·b: the b samples without the condition, and then the same with it.
        conditional: the network on a batch of b with the condition. Where guidance is off, this alone is run.
        scale: w, any finite number; 1 is no guidance.
        rescale: φ in [0, 1], how much of the standard deviation is brought back; see `rescale_noise`.
        interval: (lowest, highest) timestep, both included, at which to guide (Kynkäänniemi et al. 2024); None guides
            at all.

    Returns:
        A denoiser of samples (b, …).

    Raises:
        ConfigError: the scale is not finite, rescale is outside [0, 1], or the interval is empty.
    """
    check_guidance(scale, rescale, interval)
    if scale == 1:
        return conditional

    def guided(x: Tensor, timestep: Tensor) -> Tensor:
        if interval is not None and not interval[0] <= int(timestep) <= interval[1]:
            return conditional(x, timestep)
        without, within = both(torch.cat([x, x]), timestep).chunk(2)
        return weigh(without, within, scale, rescale)

    return guided


def weigh(without: Tensor, within: Tensor, scale: float | Tensor, rescale: float | Tensor = 0.0) -> Tensor:
    """The guided prediction, (batch …), of those without and with the condition.

    Args:
        scale, rescale: w and φ, see `guide`; or tensors (batch 1 …) in float32, with one of each for each sample.
    """
    if isinstance(scale, Tensor):
        combined = torch.lerp(without.to(scale.dtype), within.to(scale.dtype), scale).to(within.dtype)
    else:
        combined = torch.lerp(without, within, scale)
    if not isinstance(rescale, Tensor) and not rescale:
        return combined
    return rescale_noise(combined, within, rescale)


def check_guidance(scale: float, rescale: float = 0.0, interval: tuple[int, int] | None = None) -> None:
    """Check what `guide` is to be told.

    Raises:
        ConfigError: the scale is not finite, rescale is outside [0, 1], or the interval is empty.
    """
    if not math.isfinite(scale):
        raise ConfigError(f"guidance_scale must be finite, not {scale}")
    if not 0 <= rescale <= 1:
        raise ConfigError(f"guidance_rescale must be in [0, 1], not {rescale}")
    if interval is not None and interval[0] > interval[1]:
        raise ConfigError(f"guidance_interval {interval} is empty: give (lowest timestep, highest timestep)")


def rescale_noise(guided: Tensor, conditional: Tensor, rescale: float | Tensor) -> Tensor:
    """φ·guided·std(conditional)/std(guided) + (1-φ)·guided, with a standard deviation for each sample.

    This is equations 15 and 16 of Lin et al. 2024. A constant prediction, whose deviation is zero, is left as it is.

    Args:
        guided: the prediction under guidance, (batch, …).
        conditional: the prediction with the condition, of the same shape.
        rescale: φ in [0, 1]; or one for each sample, (batch 1 …) in float32.

    Returns:
        (batch, …), of the type of `guided`.
    """
    wide = torch.promote_types(guided.dtype, torch.float32)
    each = tuple(range(1, guided.ndim))  # all dimensions but the batch's
    (variance, mean), (goal, _) = (torch.var_mean(x.to(wide), dim=each, keepdim=True) for x in (guided, conditional))
    rounding = (1e-5 * mean).square()  # the variance that rounding alone can give a constant prediction
    ratio = torch.where(variance > rounding, goal / variance, 1.0).sqrt()
    return guided * torch.lerp(ratio.new_ones(()), ratio, rescale).to(guided.dtype)
