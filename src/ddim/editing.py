"""Editing real pictures: keep the noise, change the text.

A picture's noise under one text, run down again under another, gives a picture that keeps what both texts allow. The
noise is either

- x_T of DDIM inversion (`inversion.METHODS`), which is all there is at η = 0: `edit`; or
- of a random sampler (η > 0) x_T and the noise of every step: CycleDiffusion (Wu and De la Torre 2023, "A Latent Space
  of Stochastic Diffusion Models"), `encode_cycle` and `decode_cycle`. A path x_T … x_0 is drawn from the picture, and
  of each step is noted which noise the sampler would have needed to go that way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.inversion import METHODS, Notice
from ddim.noise import Generators, gaussian_noise
from ddim.plan import SamplingPlan
from ddim.process import add_noise, ddim_step
from ddim.sampling import Denoiser, SampleStep

__all__ = ["Cycle", "decode_cycle", "edit", "encode_cycle"]


def edit(
    source: Denoiser,
    target: Denoiser,
    x0: Tensor,
    plan: SamplingPlan,
    method: Literal["ddim", "fixed-point", "bidirectional"] = "ddim",
    notice: Notice | None = None,
) -> Tensor:
    """Invert under the source's condition and sample under the target's.

    Args:
        source: the network that looks at what the picture shows; guidance makes it less exact.
        target: the network that looks at what it shall show, under guidance or not.
        x0: clean samples in model space, (b …).
        plan: deterministic, and without clipping unless the method is "ddim"; a shorter one (`plan.shortened`) keeps
            more of the picture.
        method: a key of `inversion.METHODS`.
        notice: called after each step, up and down.

    Raises:
        ConfigError: no such method, or a plan that it cannot follow.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is none of {', '.join(METHODS)}")
    way = METHODS[method]
    return way.decode(target, way.encode(source, x0, plan, notice), plan, notice)


@dataclass(frozen=True)
class Cycle:
    """A picture as the noise of a random sampler.

    Attributes:
        x: x_T, (b …).
        noises: z of each step, (b …) each; None where the sampler adds none (σ = 0).
        rest: what the last step leaves, if it adds no noise that could take it up: x_0 less what it gives, (b …).
    """

    x: Tensor
    noises: tuple[Tensor | None, ...]
    rest: Tensor | None


def encode_cycle(
    denoiser: Denoiser, x0: Tensor, plan: SamplingPlan, generator: Generators = None, notice: Notice | None = None
) -> Cycle:
    """Draw a path x_T … x_1 for a picture and note the noise that the sampler needs to follow it.

    x_T is drawn by equation 4 and each x_prev by equation 7, q(x_prev | x_t, x0), of which the sampler is a copy that
    has only the network's guess of x0: z = (x_prev - mean of its step) / σ.

    Args:
        denoiser: under the condition that the picture shows.
        x0: (b …).
        plan: with η > 0; a shorter one (`plan.shortened`) keeps more of the picture.
        generator: of the path: one, or a list with one for each sample.

    Raises:
        ConfigError: η is 0: there is no noise to note.
    """
    if plan.eta == 0:
        raise ConfigError("CycleDiffusion is for a sampler that adds noise: use a plan with eta in (0, 1]")
    wide = x0.dtype if x0.dtype == torch.float64 else torch.float32

    def fresh_noise() -> Tensor:
        return gaussian_noise(x0.shape, generator, x0.device, wide)

    x = start = add_noise(x0, fresh_noise(), plan.rows[0].alpha_bar)
    timesteps = torch.tensor(plan.timesteps)
    noises: list[Tensor | None] = []
    rest = None
    nothing = torch.zeros_like(x)
    for index, row in enumerate(plan):
        output = denoiser(x, timesteps[index])
        mean = plan.step(output, row.timestep, x, variance_noise=nothing, return_x0=False).prev_sample
        is_last = index == len(plan) - 1
        if is_last and row.previous_timestep < 0:
            chosen = x0.to(wide)
        else:  # equation 7 is equation 12 with the real image, and the noise that is in x_t besides it
            eps = (x - row.signal_rate * x0) / row.noise_rate
            chosen = ddim_step(x0, eps, row.alpha_bar_prev, row.sigma, fresh_noise(), direction=row.direction)
        noises.append((chosen - mean) / row.sigma if row.sigma else None)
        if is_last and not row.sigma:
            rest = chosen - mean
        x = chosen
        if notice is not None:
            notice(SampleStep.of(index, row, x, None, output))
    return Cycle(start, tuple(noises), rest)


def decode_cycle(denoiser: Denoiser, cycle: Cycle, plan: SamplingPlan) -> Iterator[SampleStep]:
    """Sample with the noise of a picture: under its own condition the picture itself, under another one its like.

    Args:
        denoiser: under the condition that the result shall show.
        cycle: of `encode_cycle`.
        plan: the same.

    Yields:
        A step after each; the last one's `sample` is the result, (b …).

    Raises:
        ValueError: the noise is of another plan.
    """
    if len(cycle.noises) != len(plan):
        raise ValueError(f"the noise is of {len(cycle.noises)} steps, the plan has {len(plan)}")
    x, timesteps = cycle.x, torch.tensor(plan.timesteps)
    for index, (row, noise) in enumerate(zip(plan, cycle.noises, strict=True)):
        output = denoiser(x, timesteps[index])
        noise = torch.zeros_like(x) if noise is None else noise
        x = plan.step(output, row.timestep, x, variance_noise=noise, return_x0=False).prev_sample
        if index == len(plan) - 1 and cycle.rest is not None:
            x = x + cycle.rest
        yield SampleStep.of(index, row, x, None, output)
