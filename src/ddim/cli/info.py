"""`ddim info`: what a model is."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from ddim.cli.opening import open_pipeline, suitable_steps
from ddim.cli.options import Eta, Model, Predicts, TokenizerPlace, Variant


@dataclass(frozen=True)
class InfoSettings:
    """Say what a model is: its parts and their sizes, how it is best sampled, and the plan of a number of steps.

    ddim info emoji --steps 25
    """

    model: tyro.conf.Positional[Model] = "digits"
    variant: Variant = None
    tokenizer: TokenizerPlace = None
    prediction_type: Predicts = None
    steps: int | None = None
    """How many sampling steps the plan that is shown has. If not given, as many as the model recommends, or else 10."""
    eta: Eta = 0.0


def run_info(settings: InfoSettings) -> str:
    pipe = open_pipeline(settings)
    from ddim.checkpoint import bundled_controlnets, bundled_models
    from ddim.pipelines.info import model_info
    from ddim.scheduler.recommended import recommendation, recommended_steps

    config = pipe.scheduler.config
    said = recommendation(config)
    number = settings.steps if settings.steps is not None or recommended_steps(config) is not None else 10
    steps = suitable_steps(pipe, number, eta=settings.eta)
    plan = pipe.scheduler.plan(steps.number, eta=settings.eta, order=steps.order)
    parts = [f"{settings.model}: {model_info(pipe)!r}", f"{steps}:\n{plan!r}"]
    parts[1:1] = [f"recommended: {said}"] * bool(said)
    parts.append(
        f"bundled models: {', '.join(bundled_models())}\nbundled ControlNets: {', '.join(bundled_controlnets())}"
    )
    return "\n\n".join(parts)
