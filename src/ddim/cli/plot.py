"""`ddim plot`: schedules, trajectories and trade-offs as pictures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ddim.cli.bundled import with_model
from ddim.cli.checks import check_order
from ddim.cli.opening import check_kind, check_model, open_pipeline, suitable_guidance, suitable_steps
from ddim.cli.options import (
    Device,
    Eta,
    GuidanceRescale,
    GuidanceScale,
    ModelOrBundled,
    NegativePrompt,
    Overwrite,
    PlotOut,
    Precision,
    Predicts,
    Prompt,
    Spacing,
    SuitableOrder,
    SuitableSteps,
    TokenizerPlace,
    Variant,
    ZeroSNR,
)
from ddim.cli.places import announce, place
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from ddim.cli.known import Kind
    from ddim.pipelines import DiffusionPipeline


@dataclass(frozen=True)
class PlotScheduleSettings:
    """Plot the noise level and the signal-to-noise ratio of every timestep, and which timesteps each spacing picks.

    ddim plot schedule --out schedule.png
    ddim plot schedule --model emoji --steps 25 --out emoji.svg
    """

    model: str | None = None
    """The model whose schedule to plot: a folder, a name or an id. If not given, the three usual schedules."""
    steps: int = 10
    """How many timesteps each spacing picks."""
    zero_snr: bool = False
    """Rescale the schedules to zero terminal SNR, so that the last timestep is pure noise."""
    out: PlotOut = "schedule.png"
    overwrite: Overwrite = False


@dataclass(frozen=True)
class PlotTrajectorySettings:
    """Plot one run, step by step: the sample x_t, and below it the image x0 that the network sees in it.

    The run is that of `ddim sample` with the same options.

        ddim plot trajectory "a red heart" --steps 25 --out trajectory.png
    """

    prompt: tyro.conf.Positional[Prompt] = None
    model: ModelOrBundled = None
    variant: Variant = None
    tokenizer: TokenizerPlace = None
    prediction_type: Predicts = None
    negative_prompt: NegativePrompt = None
    class_label: int | None = None
    """The class to draw, for a class-conditional model. If not given, no class in particular."""
    guidance_scale: GuidanceScale = None
    guidance_rescale: GuidanceRescale = None
    steps: SuitableSteps = None
    eta: Eta = 0.0
    order: SuitableOrder = None
    spacing: Spacing = None
    zero_snr: ZeroSNR = None
    seed: int = 0
    """The seed of the noise."""
    moments: int = 9
    """How many of the steps to show; they are evenly apart, and the first and the last are among them."""
    dtype: Precision = "float32"
    """The type of number to compute in."""
    device: Device = None
    out: PlotOut = "trajectory.png"
    overwrite: Overwrite = False

    def check_together(self, given: Collection[str]) -> None:
        check_order(self.order, self.eta)


@dataclass(frozen=True)
class PlotTradeoffSettings:
    """Plot what `ddim evaluate` found: the distance to the data by the number of steps, and by their seconds.

    ddim plot tradeoff evaluation --out tradeoff.png
    """

    results: tyro.conf.Positional[tuple[str, ...]]
    """The folders that `ddim evaluate` has written, or their results.json files. Each gets a row of the plot."""
    out: PlotOut = "tradeoff.png"
    overwrite: Overwrite = False


def run_schedule(settings: PlotScheduleSettings) -> Path:
    from ddim.plots.schedule import plot_schedule

    announce(settings.out, settings.overwrite)
    out = str(place(settings.out, settings.overwrite))
    return plot_schedule(out, settings.model, settings.steps, settings.zero_snr)


def run_trajectory(settings: PlotTrajectorySettings) -> Path:
    settings = with_model(settings, for_texts=settings.prompt is not None)
    model = str(settings.model)

    def suits(kind: Kind) -> None:
        _check_kind(kind, model, settings)

    check_model(settings, suits)
    announce(settings.out, settings.overwrite)
    pipe = open_pipeline(settings, suits)
    from ddim.noise import gaussian_noise, seeded_generators
    from ddim.plots.trajectory import plot_trajectory, record

    conditions = _conditions(pipe, settings)
    steps = suitable_steps(pipe, settings.steps, settings.order, eta=settings.eta)
    plan = pipe.scheduler.plan(steps.number, eta=settings.eta, order=steps.order)
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
    title = f"{subject}: {len(plan)} steps{' of second order' * (plan.order == 2)}, {eta}, seed {settings.seed}"
    return plot_trajectory(trajectory, pipe.decode, title, str(place(settings.out, settings.overwrite)))


def _check_kind(kind: Kind, model: str, settings: PlotTrajectorySettings) -> None:
    check_kind(
        kind,
        model,
        for_texts={"the prompt": settings.prompt, "--negative-prompt": settings.negative_prompt},
        for_classes={"--class-label": settings.class_label},
        example=f'ddim plot trajectory "a red heart" --model {model}',
    )


def _conditions(pipe: DiffusionPipeline, settings: PlotTrajectorySettings) -> dict[str, Any]:
    """What the denoiser is to draw."""
    scale, rescale = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale)
    guidance = {"guidance_scale": scale, "guidance_rescale": rescale}
    if pipe.draws_texts:
        return {"prompt": settings.prompt, "negative_prompt": settings.negative_prompt, **guidance}
    return {"class_labels": settings.class_label, **guidance}


def run_tradeoff(settings: PlotTradeoffSettings) -> Path:
    from ddim.plots.style import check_name
    from ddim.plots.tradeoff import plot_tradeoff

    check_name(settings.out)
    announce(settings.out, settings.overwrite)
    out = place(settings.out, settings.overwrite)
    return plot_tradeoff([_results(Path(given)) for given in settings.results], str(out))


def _results(given: Path) -> dict[str, Any]:
    """What `ddim evaluate` has written, by its folder or its results.json.

    Raises:
        ConfigError: there is nothing of the kind.
    """
    from ddim.checkpoint.files import read_json
    from ddim.plots.tradeoff import check_results

    path = given / "results.json" if given.is_dir() else given
    if not path.is_file():
        if (given / "consistency.json").is_file():
            raise ConfigError(
                f"{given} has no distances to plot: it is of `ddim evaluate --consistency`, which plots by itself"
            )
        raise ConfigError(f"there is no {path}: give the folder that `ddim evaluate` has written by --out")
    if path.suffix.lower() != ".json":
        raise ConfigError(f"{path} is no results.json: give that file of `ddim evaluate`, or its folder")
    results = read_json(path)
    try:
        check_results(results)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return results
