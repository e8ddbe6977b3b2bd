"""What a pipeline's call does with the recommendations of its model; see `ddim.scheduler.recommended`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ddim.checkpoint.config import level_of_caller
from ddim.plan import SamplingPlan
from ddim.process import Eta, Order
from ddim.scheduler import DDIMScheduler
from ddim.scheduler.recommended import USUAL_STEPS, Steps, choose_steps, not_trained_for


def plan_of_call(
    scheduler: DDIMScheduler,
    num_inference_steps: int | None,
    eta: Eta,
    timesteps: Sequence[int] | None,
    order: Order | None,
    strength: float = 1.0,
    spacing: Any = None,
) -> SamplingPlan:
    """The plan that a call asks for; what it leaves open is as the model recommends it or, without that, as usual.

    Args:
        num_inference_steps, eta, timesteps, order: as in a call of a pipeline. `timesteps` go before the number.
        strength: of a run that starts from a picture, the share of the steps that is made, as in diffusers. Searched
            timesteps are not evenly apart, so of them it is the share of the training timesteps: the run starts there,
            and goes on through those of the list that are below.
        spacing: how the timesteps are chosen, as `timestep_spacing` says it; the model's unless told. What the model
            recommends of steps and their order goes with its own spacing, and is not used with another one.

    Raises:
        ConfigError: no such plan can be made, or what the model recommends cannot be followed.
    """
    if timesteps is not None:
        plan = scheduler.plan(eta=eta, timesteps=timesteps, order=1 if order is None else order)
        return plan if strength == 1 else plan.shortened(strength)
    steps = steps_of_call(scheduler, num_inference_steps, eta, order, spacing)
    other: dict[str, Any] = {} if steps.spacing == scheduler.config.timestep_spacing else {"spacing": steps.spacing}
    plan = scheduler.plan(steps.number, eta=eta, order=steps.order, **other)
    if strength == 1:
        return plan
    if steps.spacing == "optimized" and scheduler.config.get("trained_timesteps") is None:
        return _from_level(plan, strength)
    return plan.shortened(strength)


def steps_of_call(
    scheduler: DDIMScheduler, num_inference_steps: int | None, eta: Eta, order: Order | None, spacing: Any = None
) -> Steps:
    """The number, order and spacing of a call's steps; arguments as in `plan_of_call`."""
    if spacing is None:
        return choose_steps(scheduler.config, num_inference_steps, order, eta=eta)
    number = USUAL_STEPS if num_inference_steps is None else num_inference_steps
    return Steps(number, 1 if order is None else order, spacing)


def _from_level(plan: SamplingPlan, strength: float) -> SamplingPlan:
    """The plan from the timestep on below which a share `strength` of all T timesteps is."""
    share = strength if isinstance(strength, (int, float)) and 0 <= strength < 1 else 0.0
    start = round(share * len(plan.alphas_cumprod)) - 1
    if start < 0:
        return plan.shortened(strength)  # which says what is wrong with it
    return replace(plan, timesteps=(start, *(timestep for timestep in plan.timesteps if timestep < start)))


def warn_if_not_trained(
    scheduler: DDIMScheduler, plan: SamplingPlan, guidance_scale: float, *, takes_scale: bool = False
) -> None:
    """Warn of a run that a distilled network was not trained for; see `not_trained_for`."""
    sentence = not_trained_for(scheduler.config, plan.timesteps, guidance_scale, takes_scale=takes_scale)
    if sentence is not None:
        warnings.warn(sentence, stacklevel=level_of_caller())
