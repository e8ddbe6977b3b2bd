"""The DDIM paper once more, the slow and plain way: extended precision, one formula after the other, nothing shared.

Numbers are `numpy.longdouble` (80 bits where the machine has them), tensors float64. Nothing here imports `ddim`, so
an error there cannot hide here. Equation numbers are those of arXiv 2010.02502.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Long = np.longdouble


@dataclass(frozen=True)
class Settings:
    """What of a scheduler's config decides its numbers; the names and defaults are the config's."""

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    def as_config(self) -> dict[str, Any]:
        return dict(vars(self))


@lru_cache(maxsize=64)
def _levels(steps: int, start: float, end: float, schedule: str, zero_snr: bool) -> tuple[Long, ...]:
    betas: list[Long] = []
    for i in range(steps):
        share = Long(i) / (steps - 1) if steps > 1 else Long(0)
        if schedule == "linear":
            betas.append(Long(start) + share * (Long(end) - Long(start)))
        elif schedule == "scaled_linear":
            low, high = np.sqrt(Long(start)), np.sqrt(Long(end))
            betas.append((low + share * (high - low)) ** 2)
        else:
            half_pi = 2 * np.arctan(Long(1))

            def level(t: Long, half_pi: Long = half_pi) -> Long:
                return np.cos((t + Long("0.008")) / Long("1.008") * half_pi) ** 2

            betas.append(min(1 - level(Long(i + 1) / steps) / level(Long(i) / steps), Long("0.999")))
    product = Long(1)
    levels: list[Long] = []
    for beta in betas:
        product = product * (1 - beta)
        levels.append(product)
    if zero_snr:
        roots = [np.sqrt(level) for level in levels]
        scale = roots[0] / (roots[0] - roots[-1])
        levels = [((root - roots[-1]) * scale) ** 2 for root in roots]
    return tuple(levels)


def alpha_bars(settings: Settings) -> tuple[Long, ...]:
    """ᾱ_0 … ᾱ_{T-1}."""
    return _levels(
        settings.num_train_timesteps,
        settings.beta_start,
        settings.beta_end,
        settings.beta_schedule,
        settings.rescale_betas_zero_snr,
    )


def timesteps(settings: Settings, count: int) -> list[int]:
    """The spacings as diffusers documents them, without its faults: `count` values below T."""
    total = settings.num_train_timesteps
    if settings.timestep_spacing == "leading":
        ratio = total // count
        offset = settings.steps_offset
        while (count - 1) * ratio + offset > total - 1:
            offset -= 1
        return [i * ratio + offset for i in reversed(range(count))]
    if settings.timestep_spacing == "linspace":
        return np.linspace(0, total - 1, count).round()[::-1].astype(int).tolist()
    assert settings.timestep_spacing == "trailing"
    return (np.round(np.arange(total, 0, -total / count)).astype(int)[:count] - 1).tolist()


def level_at(settings: Settings, timestep: int) -> Long:
    """ᾱ of a timestep; of a negative one, of what lies past the end."""
    if timestep >= 0:
        return alpha_bars(settings)[timestep]
    return Long(1) if settings.set_alpha_to_one else alpha_bars(settings)[0]


def sigma(here: Long, there: Long, eta: float) -> Long:
    """Equation 16."""
    if eta == 0 or here == there:
        return Long(0)
    return Long(eta) * np.sqrt((1 - there) / (1 - here)) * np.sqrt(1 - here / there)


def x0_and_eps(kind: str, here: Long, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """What the network's output says of the image and of the noise, in float64."""
    signal, noise = float(np.sqrt(here)), float(np.sqrt(1 - here))
    if kind == "epsilon":
        return (x - noise * out) / signal, out
    if kind == "sample":
        return out, (x - signal * out) / noise
    assert kind == "v_prediction"
    return signal * x - noise * out, signal * out + noise * x


def limited(settings: Settings, x0: Tensor) -> Tensor:
    """Dynamic thresholding, else clipping, else nothing."""
    if settings.thresholding:
        rows = []
        for row in x0:
            magnitudes = sorted(row.abs().flatten().tolist())
            place = settings.dynamic_thresholding_ratio * (len(magnitudes) - 1)
            low = math.floor(place)
            high = min(low + 1, len(magnitudes) - 1)
            s = magnitudes[low] + (place - low) * (magnitudes[high] - magnitudes[low])
            s = min(max(s, 1.0), settings.sample_max_value)
            rows.append(row.clamp(-s, s) / s)
        return torch.stack(rows)
    if settings.clip_sample:
        return x0.clamp(-settings.clip_sample_range, settings.clip_sample_range)
    return x0


def step(
    settings: Settings,
    here: Long,
    there: Long,
    x: Tensor,
    out: Tensor,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
    use_clipped_model_output: bool = False,
) -> tuple[Tensor, Tensor]:
    """Equation 12: (x_prev, x0), in float64."""
    x, out = x.double(), out.double()
    x0, eps = x0_and_eps(settings.prediction_type, here, x, out)
    x0 = limited(settings, x0)
    if use_clipped_model_output:
        eps = (x - float(np.sqrt(here)) * x0) / float(np.sqrt(1 - here))
    deviation = sigma(here, there, eta)
    radicand = 1 - there - deviation**2
    if -1e-15 < radicand < 0:
        radicand = Long(0)
    prev = float(np.sqrt(there)) * x0 + float(np.sqrt(radicand)) * eps
    if eta:
        assert noise is not None
        prev = prev + float(deviation) * noise.double()
    return prev, x0


@dataclass(frozen=True)
class Gaussian:
    """The exact denoiser of images whose pixels are independent N(mean, deviation²).

    x_t is then N(√ᾱ·mean, v) with v = ᾱ·deviation² + 1 - ᾱ, and the best guess of the noise is
    E[ε | x_t] = √(1-ᾱ) (x_t - √ᾱ·mean) / v.
    """

    settings: Settings
    mean: float = 0.5
    deviation: float = 0.5

    def __call__(self, x: Tensor, timestep: Any) -> Tensor:
        return self.predict(x, level_at(self.settings, int(timestep)))

    def predict(self, x: Tensor, level: Long) -> Tensor:
        """The network's output for x at ᾱ, as `prediction_type` says."""
        ab = float(level)
        variance = ab * self.deviation**2 + 1 - ab
        centred = (x.double() - math.sqrt(ab) * self.mean) / variance
        eps = math.sqrt(1 - ab) * centred
        x0 = self.mean + self.deviation**2 * math.sqrt(ab) * centred
        kinds = {"epsilon": eps, "sample": x0, "v_prediction": math.sqrt(ab) * eps - math.sqrt(1 - ab) * x0}
        return kinds[self.settings.prediction_type].to(x.dtype)

    def at(self, z: Tensor, level: Long) -> Tensor:
        """The point at ᾱ of the probability-flow path (equation 14) whose standardized value is z at every ᾱ."""
        ab = float(level)
        return math.sqrt(ab) * self.mean + math.sqrt(ab * self.deviation**2 + 1 - ab) * z


def distance(found: Tensor, exact: Tensor) -> float:
    """The norm of the difference over the norm of the exact result."""
    return float((found.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-12))
