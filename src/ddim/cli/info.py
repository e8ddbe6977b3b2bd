"""`ddim info`: what a model is."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from ddim.cli.options import Eta, Model


@dataclass(frozen=True)
class InfoSettings:
    """Say what a model is: its parts and their sizes, and the plan that its scheduler makes of a number of steps.

    ddim info emoji --steps 25
    """

    model: tyro.conf.Positional[Model] = "digits"
    steps: int = 10
    """How many sampling steps the plan that is shown has."""
    eta: Eta = 0.0


def run_info(settings: InfoSettings) -> str:
    from ddim.checkpoint import bundled_models
    from ddim.pipelines import DiffusionPipeline
    from ddim.pipelines.info import model_info

    pipe = DiffusionPipeline.from_pretrained(settings.model)
    plan = pipe.scheduler.plan(settings.steps, eta=settings.eta)
    return f"{settings.model}: {model_info(pipe)!r}\n\n{plan!r}\n\nbundled models: {', '.join(bundled_models())}"
