"""`ddim optimize`: timesteps for few steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ddim.cli.opening import draws_texts, open_pipeline, suitable_guidance
from ddim.cli.options import Backend, Device, DType, Model
from ddim.errors import ConfigError


@dataclass(frozen=True)
class OptimizeSettings:
    """Find the timesteps from which few steps come nearest to many: `--spacing optimized` then uses them.

    They are found for a model, its guidance and an order, on some samples, by a search over the timesteps of a fine
    run; see `ddim.search`. The time it takes grows with --reference and the largest of --steps. They are written into
    the scheduler's config, beside those that are there for other numbers of steps.
    """

    model: tyro.conf.Positional[Model]
    steps: tuple[int, ...] = (5, 6, 8, 10, 12, 15, 20)
    """The numbers of sampling steps to find timesteps for."""
    order: Literal[1, 2] = 1
    """Of the steps that will be made with them."""
    reference: int = 60
    """Steps of the fine run."""
    samples: int = 16
    """To search on."""
    prompts: tuple[str, ...] = ()
    """What the samples are of, in turn, for a text-to-image model."""
    guidance_scale: float | None = None
    """As it will be used. If not given, 1 for classes, 3 for a text-to-image model with zero terminal SNR, 7.5 for
    others."""
    guidance_rescale: float | None = None
    """As it will be used. If not given, 0.7 for a text-to-image model with zero terminal SNR, else 0."""
    seed: int = 0
    """Of the samples' noise."""
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where scheduler_config.json goes. If not given, into the model, if that is a folder."""

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1 or max(self.steps) > self.reference:
            raise ConfigError(f"steps must be from 1 to the {self.reference} of --reference, not {self.steps}")
        if self.samples < 1:
            raise ConfigError(f"samples must be 1 or more, not {self.samples}")


def run_optimize(settings: OptimizeSettings) -> str:
    import torch

    from ddim.noise import gaussian_noise, seeded_generators
    from ddim.sampling import sample
    from ddim.search import evaluations, find_timesteps

    if settings.out is None and not Path(settings.model).is_dir():
        raise ConfigError(f"say where scheduler_config.json is to go: --out FOLDER ({settings.model} is no folder)")
    folder = Path(settings.model) / "scheduler" if settings.out is None else Path(settings.out)
    pipe = open_pipeline(settings.model, settings.dtype, settings.device, backend=settings.backend)
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


def _conditions(pipe: Any, settings: OptimizeSettings) -> dict[str, Any]:
    scale, rescale = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale)
    if draws_texts(pipe):
        if not settings.prompts:
            raise ConfigError('a text-to-image model needs texts to search on: --prompts "a red heart" "a cat face" …')
        prompts = [settings.prompts[k % len(settings.prompts)] for k in range(settings.samples)]
        return {"prompt": prompts, "guidance_scale": scale, "guidance_rescale": rescale}
    if settings.prompts:
        raise ConfigError(f"{settings.model} draws no texts: leave out --prompts")
    classes = pipe.unet.config.num_class_embeds
    if classes is None:
        return {}
    labels = [k % (classes - 1) for k in range(settings.samples)]
    return {"class_labels": labels, "guidance_scale": scale, "guidance_rescale": rescale}
