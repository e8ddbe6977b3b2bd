"""`ddim plot`: schedules, trajectories and trade-offs as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from ddim.cli.opening import draws_texts, open_pipeline, suitable_guidance
from ddim.cli.options import (
    Device,
    Eta,
    GuidanceRescale,
    GuidanceScale,
    ModelOrBundled,
    NegativePrompt,
    Spacing,
    Steps,
    ZeroSNR,
)
from ddim.errors import ConfigError


@dataclass(frozen=True)
class PlotScheduleSettings:
    """The noise level and SNR of every timestep, and which timesteps each spacing picks."""

    model: str | None = None
    """Draw this model's schedule instead of the three usual ones."""
    steps: int = 10
    """How many timesteps each spacing picks."""
    zero_snr: bool = False
    """Rescale to zero terminal SNR."""
    out: str = "schedule.png"
    """A .png, .svg or .pdf."""


@dataclass(frozen=True)
class PlotTrajectorySettings:
    """One run, step by step: the sample x_t, and the image x0 that the network sees in it.

    The run is that of `ddim sample` with the same options.
    """

    prompt: tyro.conf.Positional[str | None] = None
    """What to draw, for a text-to-image model."""
    model: ModelOrBundled = None
    negative_prompt: NegativePrompt = None
    class_label: int | None = None
    """The class to draw, for a class-conditional model. No class in particular if not given."""
    guidance_scale: GuidanceScale = None
    guidance_rescale: GuidanceRescale = None
    steps: Steps = 50
    eta: Eta = 0.0
    spacing: Spacing = None
    zero_snr: ZeroSNR = None
    seed: int = 0
    """Of the noise."""
    moments: int = 9
    """How many steps to show, evenly apart, the first and the last among them."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The type to run in."""
    device: Device = None
    out: str = "trajectory.png"
    """A .png, .svg or .pdf."""


@dataclass(frozen=True)
class PlotTradeoffSettings:
    """The distance to the data against steps, and against seconds, of what `ddim evaluate` found."""

    results: tyro.conf.Positional[tuple[str, ...]]
    """The results.json of one or more runs; each gets a row of its own."""
    out: str = "tradeoff.png"
    """A .png, .svg or .pdf."""


def run_schedule(settings: PlotScheduleSettings) -> Path:
    from ddim.plots.schedule import plot_schedule

    return plot_schedule(settings.out, settings.model, settings.steps, settings.zero_snr)


def run_trajectory(settings: PlotTrajectorySettings) -> Path:
    from ddim.noise import gaussian_noise, seeded_generators
    from ddim.plots.style import check_name
    from ddim.plots.trajectory import plot_trajectory, record

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
    from ddim.checkpoint.files import read_json
    from ddim.plots.tradeoff import plot_tradeoff

    return plot_tradeoff([read_json(path) for path in settings.results], settings.out)
