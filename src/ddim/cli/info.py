"""`ddim info`: what a model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from ddim.cli.options import Model

if TYPE_CHECKING:
    from ddim.pipelines import DiffusionPipeline


@dataclass(frozen=True)
class InfoSettings:
    """Say what a model is: its parts and sizes, and the plan that its scheduler makes."""

    model: tyro.conf.Positional[Model] = "digits"
    steps: int = 10
    """Of the plan to show."""
    eta: float | Literal["sigma_hat"] = 0.0
    """Of the plan to show."""


def run_info(settings: InfoSettings) -> None:
    from ddim.checkpoint import bundled_models
    from ddim.pipelines import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(settings.model)
    print(f"{settings.model}: {type(pipe).__name__} (bundled models: {', '.join(bundled_models())})\n")
    for line in _describe(pipe):
        print(line)
    scheduler = pipe.components["scheduler"]
    print(f"\n{scheduler.plan(settings.steps, eta=settings.eta)!r}")


def _describe(pipe: DiffusionPipeline) -> list[str]:
    lines = []
    for name, part in pipe.components.items():
        lines.append(f"{name}: {type(part).__name__}")
        if hasattr(part, "parameters"):
            weights = list(part.parameters())
            total = sum(weight.numel() for weight in weights)
            size = sum(weight.numel() * weight.element_size() for weight in weights)
            lines.append(f"  {total:,} parameters, {size / 2**20:.1f} MiB as {weights[0].dtype}")
        config = getattr(part, "config", {})
        settings = {key: value for key, value in config.items() if not key.startswith("_") and value is not None}
        lines += [f"  {key} = {value}" for key, value in sorted(settings.items())]
    return lines
