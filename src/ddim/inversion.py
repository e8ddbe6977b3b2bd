"""From an image to the noise that it is sampled from, and back again, in three ways.

- "ddim": the ODE of equations 13 and 14 is run upwards, as in section 5.4 of the DDIM paper. Each step evaluates the
  network once, but at x_{t-1}, because the x_t where it should be evaluated is what the step is looking for. So the
  image that comes back is close to the first one, and closer with more steps.
- "fixed-point": x_t is found such that the sampler's own step from it leads to x_{t-1}. That is the fixed point of
  x_t = (x_{t-1} - b·out(x_t, t)) / a, found by iteration with Anderson's acceleration (Pan et al. 2023, "Effective Real
  Image Editing with Accelerated Iterative Diffusion Inversion"). The image comes back as exactly as the iteration
  converges, and the way down is the ordinary sampler's.
- "bidirectional": another sampler, whose steps can be undone exactly (Zhang et al. 2023, "Exact Diffusion Inversion via
  Bi-directional Integration Approximation"). One evaluation at x_t gives two DDIM steps, up(x_t) to the timestep above
  and down(x_t) to the one below, and x_{t-1} = γ x_{t+1} - γ up(x_t) + down(x_t). The same equation gives x_{t+1} from
  x_{t-1} and x_t. It evaluates the network once a step; its state is the samples at two timesteps, so two are kept.

    encoded = METHODS["fixed-point"].encode(denoiser, x0, plan)
    again = METHODS["fixed-point"].decode(denoiser, encoded, plan)

All three work under guidance. But with it the network's output changes faster with x, so that with "ddim" the image
comes back less exactly, and the fixed-point iteration may not converge. To come back to within rounding, keep x in
float64 and let the network compute in its own type: `keeping(denoiser, torch.float32)`.
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
    "widened",
]

# Called after each step with the step, for example to show progress.
Notice = Callable[[SampleStep], object]

# γ of the reversible sampler: how much of the last sample but one is in each step. The way up divides by γ at each
# step, so with a γ below 1 rounding errors grow on the way up; with 1 they grow on neither way.
GAMMA = 1.0


def keeping(denoiser: Denoiser, dtype: torch.dtype) -> Denoiser:
    """A denoiser for samples of any type, whose network computes in one type.

    Args:
        denoiser: the network.
        dtype: the type that it is given samples in; its predictions are converted to the samples' type.
    """
    return lambda x, timestep: denoiser(x.to(dtype), timestep).to(x.dtype)


def widened(x: Tensor) -> Tensor:
    """Samples in float64, or in float32 where their device has no float64."""
    return x.float() if x.device.type == "mps" else x.double()


def invert(denoiser: Denoiser, x0: Tensor, plan: SamplingPlan) -> Iterator[SampleStep]:
    """Plain DDIM inversion: the plan's steps in reverse order, as `DDIMInverseScheduler` makes them.

    Args:
        denoiser: the network under one condition, which must be the same on the way back.
        x0: clean samples in model space, (b …).
        plan: the sampling plan to invert; its η does not matter.

    Yields:
        A step up to each timestep from the one before it; the last step's `sample` is x_T.
    """
    return sample(denoiser, x0, plan.inverted(), return_x0=False)


def invert_fixed_point(
    denoiser: Denoiser, x0: Tensor, plan: SamplingPlan, *, iterations: int = 1000, tolerance: float = 5e-7
) -> Iterator[SampleStep]:
    """Find at each step the sample from which the sampler's own step leads to the present one.

    The iteration begins at the answer of the plain inversion.

    Args:
        denoiser, x0: as in `invert`.
        plan: the sampling plan to invert, without clipping and with η = 0.
        iterations: the most evaluations of the network at one step, 1 or more. Most steps need about 5. The step next
            to the image needs some 30 and rarely hundreds, since there the network maps many inputs to almost the same
            image.
        tolerance: a step is found when it leads back to within this of x_{t-1} (the largest absolute difference, in
            model space). Below some 3e-7 the rounding of a float32 network prevents that.

    Yields:
        A step up to each timestep from the one before it; the last step's `sample` is x_T.

    Raises:
        ConfigError: the plan clips or adds noise.
        NonFiniteError: the iteration diverged.

    Warns:
        UserWarning: at some steps the tolerance was not reached.
    """
    _check_linear(plan, "fixed-point")
    up = plan.inverted()
    timesteps = torch.tensor(up.timesteps)
    target, left = x0, {}  # left: timestep -> the largest difference, where the tolerance was not reached
    for index, step in enumerate(up):
        timestep, row = step.timestep, plan.row(step.timestep)
        output = denoiser(target, timesteps[index])
        x = up.step(output, timestep, target, return_x0=False).prev_sample
        anderson = _Anderson()
        for _ in range(iterations):
            output = denoiser(x, timesteps[index])
            missing = target - row.a * x - row.b * output
            each = missing.flatten(1).abs().amax(1)  # (b)
            residual = float(each.max())
            if residual < tolerance:
                break
            if not math.isfinite(residual):
                raise NonFiniteError(
                    f"the fixed-point iteration diverged at timestep {timestep}: use more steps, less guidance, or "
                    "the bidirectional method"
                )
            open_ones = (each >= tolerance).view(-1, *[1] * (x.ndim - 1))  # (b 1 …), the samples still to be found
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
    """Anderson's acceleration of the iteration x <- x + f(x), for each sample by itself.

    An accelerated step goes to the combination of the last x that would have the smallest f if f were linear (Walker
    and Ni 2011, "Anderson Acceleration for Fixed-Point Iterations", equation 2.2). Every other step is a plain one,
    which keeps the iteration from diverging (Banerjee et al. 2016, "Periodic Pulay method"). After `steps` steps all
    are plain: if f is so far from linear that the acceleration has not converged by then, plain steps do.
    """

    depth, steps = 5, 50

    def __init__(self) -> None:
        self.past: list[tuple[Tensor, Tensor]] = []
        self.calls = 0

    def __call__(self, x: Tensor, f: Tensor) -> Tensor:
        """The next x (b …), given the present x (b …) and f of it (b …)."""
        self.past = [*self.past[-self.depth :], (x, f)]
        self.calls += 1
        if self.calls % 2 or self.calls > self.steps:
            return x + f
        dx, df = (  # (b k d) each, the changes over the last k steps
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
    """The reversible sampler from an image up to its noise.

    The first step, to the lowest timestep, is that of `invert`. To come back, `sample_bidirectional` needs the samples
    of the last two steps: x_T, and the one before it.

    Args:
        denoiser, x0: as in `invert`.
        plan: the sampling plan to invert: two steps or more, without clipping and with η = 0.
        gamma: γ in (0, 1]; at each step on the way up, rounding errors grow by 1/γ.

    Yields:
        A step up to each timestep from the one before it; the last step's `sample` is x_T.

    Raises:
        ConfigError: the plan clips, adds noise or has one step only, or γ is out of range.
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
    """The reversible sampler from noise down to an image, which undoes `invert_bidirectional`.

    Args:
        denoiser: the network under one condition.
        x: x_T, (b …).
        plan: as in `invert_bidirectional`.
        before: the sample at the plan's second timestep, (b …), as `invert_bidirectional` gave it in its last step but
            one. None makes it by a DDIM step from x_T, as from any noise.
        gamma: as in `invert_bidirectional`.

    Yields:
        A step from each timestep to the one below it; the last step's `sample` is the image.

    Raises:
        ConfigError: as `invert_bidirectional`.
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
    """The two DDIM steps that one evaluation at x_t gives: up to ᾱ = `alpha_bar`, and down as the plan's row says.

    For the step up, equation 12 is applied to the coefficients of x0 and eps, which are floats, so that both steps cost
    one sum of two tensors each.
    """
    up = ddim_step(row.p, row.r, alpha_bar) * x + ddim_step(row.q, row.s, alpha_bar) * output
    return up, row.a * x + row.b * output


def _check_linear(plan: SamplingPlan, method: str) -> None:
    """Raise a ConfigError unless the plan's steps can be undone: without clipping, and without noise."""
    if plan.clip_range is not None or plan.thresholding is not None:
        raise ConfigError(
            f"{method} inversion needs steps that can be undone, and clipped ones cannot: use a scheduler with "
            "clip_sample=False and thresholding=False"
        )
    if plan.eta != 0:
        raise ConfigError(f"{method} inversion needs a deterministic plan: eta must be 0, not {plan.eta}")


def _check_gamma(gamma: float, plan: SamplingPlan) -> None:
    """Raise a ConfigError unless the reversible sampler can run with this γ and this plan."""
    if not 0 < gamma <= 1:
        raise ConfigError(f"gamma must be in (0, 1], not {gamma}")
    if len(plan) < 2:
        raise ConfigError("bidirectional inversion needs two steps or more, but the plan has one")


# --- by name ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A way from images to their noise, and back.

    Attributes:
        up: (denoiser, x0, plan) -> the steps from the images to x_T.
        down: (denoiser, states, plan) -> the steps back.
        states: how many samples `down` begins with: the last ones of `up`, in reverse order, so that x_T is the first.
    """

    up: Callable[[Denoiser, Tensor, SamplingPlan], Iterator[SampleStep]]
    down: Callable[[Denoiser, tuple[Tensor, ...], SamplingPlan], Iterator[SampleStep]]
    states: int = 1

    def encode(
        self, denoiser: Denoiser, x0: Tensor, plan: SamplingPlan, notice: Notice | None = None
    ) -> tuple[Tensor, ...]:
        """The way up.

        Args:
            denoiser: the network under one condition.
            x0: clean samples in model space, (b …).
            plan: the sampling plan to invert.
            notice: called after each step, with the step.

        Returns:
            What `decode` begins with: x_T (b …), and whatever other samples (b …) the way back needs.

        Raises:
            ConfigError: the plan is not for this method.
            NonFiniteError: the network gave NaN, or an iteration diverged.
        """
        found: tuple[Tensor, ...] = ()
        for step in self.up(denoiser, x0, plan):
            found = (step.sample, *found)[: self.states]
            if notice is not None:
                notice(step)
        return found

    def decode(
        self, denoiser: Denoiser, states: tuple[Tensor, ...], plan: SamplingPlan, notice: Notice | None = None
    ) -> Tensor:
        """The way back: clean samples in model space, (b …).

        Args:
            denoiser: the network. Under the condition of `encode` the samples are those that were encoded; under
                another one they are what it makes of the same noise.
            states: what `encode` returned.
            plan: the plan that `encode` was given.
            notice: called after each step, with the step.
        """
        x = states[0]
        for step in self.down(denoiser, states, plan):
            x = step.sample
            if notice is not None:
                notice(step)
        return x


def _sample_states(denoiser: Denoiser, states: tuple[Tensor, ...], plan: SamplingPlan) -> Iterator[SampleStep]:
    """The ordinary sampler from x_T, for methods that need no other state."""
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
