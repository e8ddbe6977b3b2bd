"""`ddim plot trajectory` and `ddim plot tradeoff`: plots that need more than their settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddim.cli.opening import draws_texts, open_pipeline, suitable_guidance
from ddim.errors import ConfigError
from ddim.settings import PlotTradeoffSettings, PlotTrajectorySettings


def run_trajectory(settings: PlotTrajectorySettings) -> Path:
    from ddim.plots.style import check_name
    from ddim.plots.trajectory import plot_trajectory, record
    from ddim.process import gaussian_noise, seeded_generators

    check_name(settings.out)
    model = settings.model or ("digits" if settings.prompt is None else "emoji")
    pipe = open_pipeline(model, settings.dtype, settings.device, spacing=settings.spacing, zero_snr=settings.zero_snr)
    conditions = _conditions(pipe, model, settings)
    plan = pipe.scheduler.plan(settings.steps, eta=settings.eta)
    generators = seeded_generators(settings.seed, 1)
    x = gaussian_noise(pipe.sample_shape(1), generators, pipe.device, pipe.dtype)
    with pipe.progress_bar(len(plan)) as bar:
        trajectory = record(
            pipe.denoiser(plan, 1, **conditions), x, plan, settings.moments, generator=generators, progress=bar.update
        )
    subject = repr(settings.prompt) if settings.prompt is not None else model
    if settings.class_label is not None:
        subject = f"class {settings.class_label} of {model}"
    eta = "σ̂" if settings.eta == "sigma_hat" else f"η = {settings.eta:g}"
    title = f"{subject}: {len(plan)} steps, {eta}, seed {settings.seed}"
    return plot_trajectory(trajectory, pipe.decode, title, settings.out)


def _conditions(pipe: Any, model: str, settings: PlotTrajectorySettings) -> dict[str, Any]:
    """What the denoiser is to draw; options that this kind of model has no use for are errors."""
    scale, rescale = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale)
    guidance = {"guidance_scale": scale, "guidance_rescale": rescale}
    if draws_texts(pipe):
        if settings.class_label is not None:
            raise ConfigError(f"{model} knows no classes: leave out --class-label")
        if settings.prompt is None:
            raise ConfigError(f'{model} draws what a text says: ddim plot trajectory "a red heart" --model {model}')
        return {"prompt": settings.prompt, "negative_prompt": settings.negative_prompt, **guidance}
    if settings.prompt is not None or settings.negative_prompt is not None:
        raise ConfigError(f"{model} draws no texts: leave out the prompt")
    if settings.class_label is not None and pipe.unet.config.num_class_embeds is None:
        raise ConfigError(f"{model} knows no classes: leave out --class-label")
    return {"class_labels": settings.class_label, **guidance}


def run_tradeoff(settings: PlotTradeoffSettings) -> Path:
    from ddim.files import read_json
    from ddim.plots.tradeoff import plot_tradeoff

    return plot_tradeoff([read_json(path) for path in settings.results], settings.out)
