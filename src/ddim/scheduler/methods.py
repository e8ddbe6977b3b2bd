"""Steps by the methods that a subclass of our schedulers has put in the place of ours.

Where nothing is replaced, a step is a row of the plan and none of this is used. Somebody's `_get_variance`,
`_threshold_sample` or `previous_timestep` is called by `step_by_methods`, which is equation 12 written out as the
`step` of diffusers has it; somebody's `step` or `set_timesteps` by a `PlanOfMethods`, which is what pipelines get for a
plan.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ddim.noise import Generators
from ddim.plan import SamplingPlan
from ddim.process import Eta, ddim_step, prediction
from ddim.step import DDIMSchedulerOutput, check_step, step_noise

# What `step` goes through, and what pipelines do.
OF_A_STEP = frozenset({"_get_variance", "_threshold_sample", "previous_timestep"})
OF_A_RUN = frozenset({*OF_A_STEP, "step", "set_timesteps"})


def step_by_methods(
    scheduler: Any,
    model_output: Tensor,
    timestep: int | Tensor,
    sample: Tensor,
    eta: Eta,
    use_clipped_model_output: bool,
    generator: Generators,
    variance_noise: Tensor | None,
) -> DDIMSchedulerOutput:
    """One step of a `DDIMScheduler` by its own `previous_timestep`, `_get_variance` and `_threshold_sample`.

    Arguments and errors are those of `DDIMScheduler.step`, with one timestep for all samples.
    """
    check_step(model_output, sample)
    if isinstance(timestep, Tensor) and timestep.numel() != 1:
        raise ValueError(f"{type(scheduler).__name__} has methods of its own, which take one timestep for all samples")
    config, levels = scheduler.config, scheduler._levels.numbers()
    here_at = int(timestep)
    there_at = int(scheduler.previous_timestep(here_at))
    here, there = levels[here_at], levels[there_at] if there_at >= 0 else scheduler._levels.final()
    kind = prediction(config.prediction_type)
    wide = torch.promote_types(torch.promote_types(sample.dtype, model_output.dtype), torch.float32)
    x_t, out = sample.to(wide), model_output.to(wide)
    (p, q), (r, s) = kind.x0(here), kind.eps(here)
    x0, eps = p * x_t + q * out, r * x_t + s * out
    if config.thresholding:
        x0 = scheduler._threshold_sample(x0)
    elif config.clip_sample:
        x0 = x0.clamp(-config.clip_sample_range, config.clip_sample_range)
    if use_clipped_model_output:
        eps = (x_t - here**0.5 * x0) / (1 - here) ** 0.5
    share = 1.0 if isinstance(eta, str) else eta
    sigma = share * float(scheduler._get_variance(here_at, there_at)) ** 0.5
    z = step_noise(model_output, generator, variance_noise).to(wide) if share else 0.0
    prev = ddim_step(x0, eps, there, sigma, z, direction=max(1 - there - sigma**2, 0.0) ** 0.5)
    return DDIMSchedulerOutput(prev.to(sample.dtype), x0.to(sample.dtype))


@dataclass(frozen=True, eq=False, repr=False)
class PlanOfMethods(SamplingPlan):
    """A plan whose steps are made by a scheduler, of which a method is not ours."""

    scheduler: Any = None

    @classmethod
    def of(cls, plan: SamplingPlan, scheduler: Any) -> PlanOfMethods:
        return cls(**_values(plan), scheduler=scheduler)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        return_x0: bool = True,
        out: tuple[Tensor, Tensor | None] | None = None,
        **options: Any,
    ) -> DDIMSchedulerOutput:
        """As `SamplingPlan.step`, by the scheduler; options that its `step` does not take must be at their defaults."""
        parameters = inspect.signature(self.scheduler.step).parameters
        given = {"eta": self.eta, **options}
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        accepted = given if takes_all else parameters
        refused = sorted(name for name, value in given.items() if name not in accepted and value)
        if refused:
            raise TypeError(f"{type(self.scheduler).__name__}.step takes no {', '.join(refused)}")
        result = self.scheduler.step(
            model_output, timestep, sample, **{n: v for n, v in given.items() if n in accepted}
        )
        prev, x0 = (
            (*result, None)[:2] if isinstance(result, tuple) else (result.prev_sample, result.pred_original_sample)
        )
        if out is not None:
            prev, x0 = out[0].copy_(prev), None if out[1] is None else out[1].copy_(x0)
        return DDIMSchedulerOutput(prev, x0 if return_x0 else None)

    def unclipped(self) -> SamplingPlan:
        """A plan of our own steps: what inversion follows is the ODE, whatever the scheduler does."""
        return SamplingPlan(**_values(self)).unclipped()

    def inverted(self) -> SamplingPlan:
        """A plan of our own steps, as `unclipped`."""
        return SamplingPlan(**_values(self)).inverted()


def _values(plan: SamplingPlan) -> dict[str, Any]:
    return {field.name: getattr(plan, field.name) for field in fields(SamplingPlan)}
