"""`ddim info`: what a model is."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from ddim.cli.opening import open_pipeline
from ddim.cli.options import Eta, Model, Predicts, TokenizerPlace, Variant


@dataclass(frozen=True)
class InfoSettings:
    """Say what a model is: its parts and their sizes, and the plan that its scheduler makes of a number of steps.

    ddim info emoji --steps 25
    """

    model: tyro.conf.Positional[Model] = "digits"
    variant: Variant = None
    tokenizer: TokenizerPlace = None
    prediction_type: Predicts = None
    steps: int = 10
    """How many sampling steps the plan that is shown has."""
    eta: Eta = 0.0


def run_info(settings: InfoSettings) -> str:
    pipe = open_pipeline(settings)
    from ddim.checkpoint import bundled_models
    from ddim.pipelines.info import model_info

    plan = pipe.scheduler.plan(settings.steps, eta=settings.eta)
    return f"{settings.model}: {model_info(pipe)!r}\n\n{plan!r}\n\nbundled models: {', '.join(bundled_models())}"
