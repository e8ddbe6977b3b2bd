"""`ddim optimize`: timesteps for few steps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ddim.cli.checks import folder_to
from ddim.cli.opening import check_kind, open_pipeline, suitable_guidance
from ddim.cli.options import (
    Backend,
    Device,
    DType,
    GuidanceRescale,
    GuidanceScale,
    Model,
    Order,
    Overwrite,
    Predicts,
    TokenizerPlace,
    Variant,
)
from ddim.cli.places import place, say_kept
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from ddim.cli.known import Kind
    from ddim.pipelines import DiffusionPipeline


@dataclass(frozen=True)
class OptimizeSettings:
    """Find the timesteps by which few steps come nearest to what many steps give; `--spacing optimized` then uses them.

    They are found for one model, guidance and order of steps, by a search over the timesteps of a run with many steps
    (see `ddim.search`), and are written into the scheduler's config, beside those for other numbers of steps. The time
    that it takes grows with --reference and with the largest of --steps.

        ddim optimize digits --steps 5 8 --out digits-scheduler
    """

    model: tyro.conf.Positional[Model]
    variant: Variant = None
    tokenizer: TokenizerPlace = None
    prediction_type: Predicts = None
    steps: tuple[int, ...] = (5, 6, 8, 10, 12, 15, 20)
    """The numbers of sampling steps to find timesteps for."""
    order: Order = 1
    reference: int = 60
    """The number of steps of the run with many steps."""
    samples: int = 16
    """How many samples to search on."""
    prompts: tuple[str, ...] = ()
    """The texts that the samples are drawn of, in turn, instead of classes. A text-to-image model needs some."""
    guidance_scale: GuidanceScale = None
    guidance_rescale: GuidanceRescale = None
    seed: int = 0
    """The seed of the noise that the samples start from."""
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    out: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="FOLDER",
            help="The folder that scheduler_config.json is written to. If not given, the scheduler's folder of the "
            "model itself, where that is a folder.",
        ),
    ] = None
    overwrite: Overwrite = False

    def check_together(self, given: Collection[str]) -> None:
        if not self.steps or max(self.steps) > self.reference:
            said = " ".join(map(str, self.steps)) or "none"
            raise ConfigError(f"--steps must be from 1 to the {self.reference} of --reference, not {said}")
        if self.out is None and not Path(self.model).is_dir():
            raise ConfigError(
                f"{self.model} is no folder: say by --out FOLDER where scheduler_config.json is to be written"
            )
        if self.out is None:
            folder_to(str(Path(self.model) / "scheduler"), "the model")


def run_optimize(settings: OptimizeSettings) -> str:
    pipe = open_pipeline(settings, lambda kind: _check_kind(kind, settings))
    import torch

    from ddim.noise import gaussian_noise, seeded_generators
    from ddim.sampling import sample
    from ddim.search import evaluations, find_timesteps

    folder = _folder(settings)
    spaced = pipe.scheduler
    if spaced.config.timestep_spacing == "optimized":
        spaced = spaced.from_config(spaced.config, timestep_spacing="trailing")
    plan = spaced.plan(settings.reference).unclipped()
    count = settings.samples
    denoiser = pipe.denoiser(plan, count, **_conditions(pipe, settings))
    noise = gaussian_noise(pipe.sample_shape(count), seeded_generators(settings.seed, count), pipe.device, pipe.dtype)
    with torch.inference_mode(), pipe.progress_bar(evaluations(settings.steps, settings.reference)) as bar:
        found = find_timesteps(denoiser, noise, plan, settings.steps, order=settings.order, notice=bar.update)
        goal = list(sample(denoiser, noise, plan, return_x0=False))[-1].sample

        def distance(**chosen: Any) -> float:
            run = spaced.plan(**chosen, order=settings.order).unclipped()
            end = list(sample(pipe.denoiser(run, count, **_conditions(pipe, settings)), noise, run))[-1].sample
            return float((end - goal).square().mean().sqrt())

        rows = [(n, distance(num_inference_steps=n), distance(timesteps=found[n]), found[n]) for n in sorted(found)]
    known = {**(pipe.scheduler.config.optimized_timesteps or {}), **{str(n): list(found[n]) for n in sorted(found)}}
    pipe.scheduler.from_config(pipe.scheduler.config, optimized_timesteps=known).save_pretrained(folder)
    lines = [f"root mean square to {settings.reference} steps, on the samples of the search, order {settings.order}:"]
    lines += [f"{'steps':>5} {spaced.config.timestep_spacing:>9} {'optimized':>9}  timesteps"]
    lines += [f"{n:>5} {before:>9.4f} {after:>9.4f}  {' '.join(map(str, chosen))}" for n, before, after, chosen in rows]
    return "\n".join([*lines, str(folder / "scheduler_config.json")])


def _folder(settings: OptimizeSettings) -> Path:
    """Where the config goes: into the model itself, or a folder in which no config is that would be lost."""
    if settings.out is None:
        return Path(settings.model) / "scheduler"
    folder = Path(settings.out)
    if settings.overwrite or not (folder / "scheduler_config.json").exists():
        return folder
    chosen = place(folder, overwrite=False)
    say_kept(folder, chosen)
    return chosen


def _check_kind(kind: Kind, settings: OptimizeSettings) -> None:
    check_kind(
        kind,
        settings.model,
        for_texts={"--prompts": settings.prompts},
        example=f'ddim optimize {settings.model} --prompts "a red heart" "a cat face"',
    )


def _conditions(pipe: DiffusionPipeline, settings: OptimizeSettings) -> dict[str, Any]:
    """What the samples are drawn under: the texts in turn, or the classes in turn."""
    scale, rescale = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale)
    if pipe.draws_texts:
        prompts = [settings.prompts[k % len(settings.prompts)] for k in range(settings.samples)]
        return {"prompt": prompts, "guidance_scale": scale, "guidance_rescale": rescale}
    if not pipe.class_count:
        return {}
    labels = [k % pipe.class_count for k in range(settings.samples)]
    return {"class_labels": labels, "guidance_scale": scale, "guidance_rescale": rescale}
