"""From an image to the noise that it is sampled from, and back again: three ways.

- "ddim": the ODE of equations 13 and 14 run upwards, as the paper does it (section 5.4). One evaluation a step, which
  is made at the wrong end: x_{t-1} stands for the x_t that is looked for. So what comes back is near, and nearer with
  more steps.
- "fixed-point": the x_t from which the sampler's own step leads to x_{t-1}, x_t = (x_{t-1} - b·out(x_t, t)) / a, by
  iteration with Anderson's acceleration (Pan et al. 2023, "Effective Real Image Editing with Accelerated Iterative
  Diffusion Inversion"). What comes back is exact as far as the iteration converges; what is sampled is the sampler's
  own.
- "bidirectional": a sampler that is exactly reversible by its form (Zhang et al. 2023, "Exact Diffusion Inversion via
  Bi-directional Integration Approximation"). With up(x) and down(x), the two DDIM steps that one evaluation at x_t
  gives, x_{t-1} = γ x_{t+1} - γ up(x_t) + down(x_t), and that is solved for x_{t+1} by hand. One evaluation a step; its
  state is two neighbours of the run, so two latents are kept.

    encoded = METHODS["fixed-point"].encode(denoiser, x0, plan)
    again = METHODS["fixed-point"].decode(denoiser, encoded, plan)

All three work under guidance, but guidance makes the network's output change faster with x: the plain way then comes
back further off and the iteration may not converge. To get within rounding of where one started, keep x in float64 and
let the network compute in its own type: `keeping(denoiser, torch.float32)`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddim.errors import ConfigError, NonFiniteError
from ddim.plan import SamplingPlan
from ddim.process import ddim_step
from ddim.sampling import Denoiser, SampleStep, sample
from ddim.step import Row

__all__ = [
    "GAMMA",
    "METHODS",
    "Method",
    "Notice",
    "invert",
    "invert_bidirectional",
    "invert_fixed_point",
    "keeping",
    "sample_bidirectional",
]

# Called after each step, for progress.
Notice = Callable[[SampleStep], object]

# γ of the reversible sampler: how much of the sample before last is in each step. The way up divides by γ at each step
# and the way down multiplies by it, so a γ below 1 makes rounding errors grow upwards; at 1 they grow neither way.
GAMMA = 1.0


def keeping(denoiser: Denoiser, dtype: torch.dtype) -> Denoiser:
    """The denoiser for samples of any type: it computes in `dtype` and answers in theirs."""
    return lambda x, timestep: denoiser(x.to(dtype), timestep).to(x.dtype)


def invert(denoiser: Denoiser, x0: Tensor, plan: SamplingPlan) -> Iterator[SampleStep]:
    """Plain DDIM inversion: `sample` over the plan's reversed pairs of ᾱ; what `DDIMInverseScheduler` does.

    Args:
        denoiser: of one condition, the same on the way back.
        x0: clean samples in model space, (b …).
        plan: the sampling plan to invert; its η is ignored.

    Yields:
        A step from each timestep's previous one up to it; the last step's `sample` is x_T.
    """
    return sample(denoiser, x0, plan.inverted(), return_x0=False)


def invert_fixed_point(
    denoiser: Denoiser, x0: Tensor, plan: SamplingPlan, *, iterations: int = 1000, tolerance: float = 5e-7
) -> Iterator[SampleStep]:
    """Solve the sampler's own step for where it came from, at each step, beginning with the plain inversion's answer.

    Args:
        denoiser, x0: as in `invert`.
        plan: without clipping.
        iterations: 1 or more; at most so many evaluations at one step. Most steps need about 5; the one next to the
            image some thirty, rarely hundreds, since there the network takes many inputs to nearly one image.
        tolerance: enough, where the step leads back to within this of x_{t-1} (largest absolute difference, in model
            space). Below some 3e-7 a float32 network's own rounding is in the way.

    Raises:
        ConfigError: the plan clips or adds noise.
        NonFiniteError: the iteration ran away.

    Warns:
        UserWarning: it was not near enough somewhere.
    """
    _check_linear(plan, "fixed-point")
    up = plan.inverted()
    timesteps = torch.tensor(up.timesteps)
    target, left = x0, {}  # the residuals of the steps at which it was not near enough
    for index, step in enumerate(up):
        timestep, row = step.timestep, plan.row(step.timestep)
        output = denoiser(target, timesteps[index])
        x = up.step(output, timestep, target, return_x0=False).prev_sample
        anderson = _Anderson()
        for _ in range(iterations):
            output = denoiser(x, timesteps[index])
            missing = target - row.a * x - row.b * output
            each = missing.flatten(1).abs().amax(1)
            residual = float(each.max())
            if residual < tolerance:
                break
            if not math.isfinite(residual):
                raise NonFiniteError(
                    f"the fixed-point iteration ran away at timestep {timestep}: use more steps, less guidance, or "
                    "the bidirectional method"
                )
            open_ones = (each >= tolerance).view(-1, *[1] * (x.ndim - 1))
            x = torch.where(open_ones, anderson(x, missing / row.a), x)
        else:
            left[timestep] = residual
        target = x
        yield SampleStep.of(index, step, x, None, output)
    if left:
        worst = max(left, key=lambda timestep: left[timestep])
        warnings.warn(
            f"the fixed-point iteration was not within {tolerance:g} at {len(left)} of {len(plan)} steps (at worst "
            f"{left[worst]:.2g}, at timestep {worst}): use more steps, less guidance, or the bidirectional method",
            stacklevel=2,
        )


class _Anderson:
    """Anderson's acceleration of x <- x + f(x), for each sample by itself, at every second step of the first `steps`.

    The accelerated x is the combination of the last ones whose f, were f linear, would be smallest (Walker and Ni 2011,
    "Anderson Acceleration for Fixed-Point Iterations", equation 2.2). Plain steps between keep it from running away
    (Banerjee et al. 2016, "Periodic Pulay method"). Where f is so far from linear that it does not get there in
    `steps`, plain steps alone do.
    """

    depth, steps = 5, 50

    def __init__(self) -> None:
        self.past: list[tuple[Tensor, Tensor]] = []
        self.calls = 0

    def __call__(self, x: Tensor, f: Tensor) -> Tensor:
        """(b …), (b …) -> the next x."""
        self.past = [*self.past[-self.depth :], (x, f)]
        self.calls += 1
        if self.calls % 2 or self.calls > self.steps:
            return x + f
        dx, df = (
            torch.stack([b - a for a, b in pairwise(each)], 1).flatten(2) for each in zip(*self.past, strict=True)
        )
        gram = df @ df.mT  # (b k k)
        scale = gram.diagonal(dim1=1, dim2=2).amax(1)[:, None, None].clamp_min(torch.finfo(gram.dtype).tiny)
        damping = 1e-10 * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        shares = torch.linalg.solve(gram / scale + damping, df @ f.flatten(1)[..., None] / scale)  # (b k 1)
        accelerated: Tensor = x + f - ((dx + df).mT @ shares).view_as(x)
        return accelerated


def invert_bidirectional(
    denoiser: Denoiser, x0: Tensor, plan: SamplingPlan, *, gamma: float = GAMMA
) -> Iterator[SampleStep]:
    """Up by the reversible sampler. The samples of the last two steps are its state: x_T and the one before it.

    The first step, to the lowest timestep, is that of `invert`.

    Args:
        denoiser, x0: as in `invert`.
        plan: of two steps or more, without clipping.
        gamma: γ in (0, 1]; on the way up rounding grows with 1/γ at each step.

    Raises:
        ConfigError: the plan clips or has one step, or γ is out of range.
    """
    _check_linear(plan, "bidirectional")
    _check_gamma(gamma, plan)
    up = plan.inverted()
    timesteps = torch.tensor(up.timesteps)
    output = denoiser(x0, timesteps[0])
    below, x = x0, up.step(output, up.timesteps[0], x0, return_x0=False).prev_sample
    yield SampleStep.of(0, up.rows[0], x, None, output)
    for index, (here, there) in enumerate(pairwise(up), start=1):
        output = denoiser(x, timesteps[index - 1])
        above, down = _both_ways(output, x, plan.row(here.timestep), there.alpha_bar_prev)
        below, x = x, (below - down) / gamma + above
        yield SampleStep.of(index, there, x, None, output)


def sample_bidirectional(
    denoiser: Denoiser, x: Tensor, plan: SamplingPlan, before: Tensor | None = None, *, gamma: float = GAMMA
) -> Iterator[SampleStep]:
    """Down by the reversible sampler: what undoes `invert_bidirectional`.

    Args:
        denoiser: of one condition.
        x: x_T, (b …).
        plan: as there.
        before: the sample at the second timestep; None takes a DDIM step to it, as one does from noise.
        gamma: as there.

    Yields:
        A step from each timestep to the one below it; the last step's `sample` is the image.
    """
    _check_linear(plan, "bidirectional")
    _check_gamma(gamma, plan)
    timesteps = torch.tensor(plan.timesteps)
    above, output = x, None
    if before is None:
        output = denoiser(x, timesteps[0])
        x = plan.step(output, plan.timesteps[0], x, return_x0=False).prev_sample
    else:
        x = before
    yield SampleStep.of(0, plan.rows[0], x, None, output)
    for index, (last, row) in enumerate(pairwise(plan), start=1):
        output = denoiser(x, timesteps[index])
        up, down = _both_ways(output, x, row, last.alpha_bar)
        above, x = x, gamma * (above - up) + down
        yield SampleStep.of(index, row, x, None, output)


def _both_ways(output: Tensor, x: Tensor, row: Row, alpha_bar: float) -> tuple[Tensor, Tensor]:
    """The DDIM steps that one evaluation at x_t gives: up to the level `alpha_bar`, and down along the plan's row.

    Equation 12 is applied to the coefficients of x0 and eps, which are floats, so that each way is one sum of tensors.
    """
    up = ddim_step(row.p, row.r, alpha_bar) * x + ddim_step(row.q, row.s, alpha_bar) * output
    return up, row.a * x + row.b * output


def _check_linear(plan: SamplingPlan, method: str) -> None:
    if plan.clip_range is not None or plan.thresholding is not None:
        raise ConfigError(
            f"{method} inversion needs steps that can be undone, and clipped ones cannot: use a scheduler with "
            "clip_sample=False and thresholding=False"
        )
    if plan.eta != 0:
        raise ConfigError(f"{method} inversion needs a deterministic plan: eta must be 0, not {plan.eta}")


def _check_gamma(gamma: float, plan: SamplingPlan) -> None:
    if not 0 < gamma <= 1:
        raise ConfigError(f"gamma must be in (0, 1], not {gamma}")
    if len(plan) < 2:
        raise ConfigError("bidirectional inversion needs two steps or more")


# --- by name ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A way to the noise and back.

    Attributes:
        up: (denoiser, x0, plan) -> steps.
        down: (denoiser, states, plan) -> steps.
        states: how many of the last samples of `up` are what `down` begins with, x_T first.
    """

    up: Callable[[Denoiser, Tensor, SamplingPlan], Iterator[SampleStep]]
    down: Callable[[Denoiser, tuple[Tensor, ...], SamplingPlan], Iterator[SampleStep]]
    states: int = 1

    def encode(
        self, denoiser: Denoiser, x0: Tensor, plan: SamplingPlan, notice: Notice | None = None
    ) -> tuple[Tensor, ...]:
        """What `decode` begins with: x_T (b …), and whatever else the way back needs."""
        found: tuple[Tensor, ...] = ()
        for step in self.up(denoiser, x0, plan):
            found = (step.sample, *found)[: self.states]
            if notice is not None:
                notice(step)
        return found

    def decode(
        self, denoiser: Denoiser, states: tuple[Tensor, ...], plan: SamplingPlan, notice: Notice | None = None
    ) -> Tensor:
        """The samples (b …) that were encoded, or what another denoiser makes of the same noise."""
        x = states[0]
        for step in self.down(denoiser, states, plan):
            x = step.sample
            if notice is not None:
                notice(step)
        return x


def _sample_states(denoiser: Denoiser, states: tuple[Tensor, ...], plan: SamplingPlan) -> Iterator[SampleStep]:
    return sample(denoiser, states[0], plan, return_x0=False)


METHODS: dict[str, Method] = {
    "ddim": Method(invert, _sample_states),
    "fixed-point": Method(invert_fixed_point, _sample_states),
    "bidirectional": Method(
        invert_bidirectional,
        lambda denoiser, states, plan: sample_bidirectional(denoiser, states[0], plan, *states[1:]),
        2,
    ),
}
