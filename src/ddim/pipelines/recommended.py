"""What a pipeline's call does with the recommendations of its model; see `ddim.scheduler.recommended`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ddim.checkpoint.config import level_of_caller
from ddim.plan import SamplingPlan
from ddim.process import Eta, Order
from ddim.scheduler import DDIMScheduler
from ddim.scheduler.recommended import choose_steps, not_trained_for


def plan_of_call(
    scheduler: DDIMScheduler,
    num_inference_steps: int | None,
    eta: Eta,
    timesteps: Sequence[int] | None,
    order: Order | None,
) -> SamplingPlan:
    """The plan that a call asks for; what it leaves open is as the model recommends it or, without that, as usual.

    Args:
        num_inference_steps, eta, timesteps, order: as in a call of a pipeline. `timesteps` go before the number.

    Raises:
        ConfigError: no such plan can be made, or what the model recommends cannot be followed.
    """
    if timesteps is not None:
        return scheduler.plan(eta=eta, timesteps=timesteps, order=1 if order is None else order)
    steps = choose_steps(scheduler.config, num_inference_steps, order, eta=eta)
    other: dict[str, Any] = {} if steps.spacing == scheduler.config.timestep_spacing else {"spacing": steps.spacing}
    return scheduler.plan(steps.number, eta=eta, order=steps.order, **other)


def warn_if_not_trained(
    scheduler: DDIMScheduler, plan: SamplingPlan, guidance_scale: float, *, takes_scale: bool = False
) -> None:
    """Warn of a run that a distilled network was not trained for; see `not_trained_for`."""
    sentence = not_trained_for(scheduler.config, plan.timesteps, guidance_scale, takes_scale=takes_scale)
    if sentence is not None:
        warnings.warn(sentence, stacklevel=level_of_caller())
