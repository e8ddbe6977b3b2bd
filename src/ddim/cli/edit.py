"""`ddim edit`: another text for a real picture's noise."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ddim.cli.opening import draws_texts, open_pipeline, suitable_guidance
from ddim.cli.options import Backend, Device, DType, Spacing
from ddim.cli.pictures import made_by, read_images, save_pictures
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.plan import SamplingPlan


@dataclass(frozen=True)
class EditSettings:
    """Change what a picture shows: its noise under one text, sampled under another.

    ddim edit face.png --source "a grinning face" --target "an angry face" --out angry.png
    """

    images: tyro.conf.Positional[tuple[str, ...]]
    """Picture files; resized to what the model draws."""
    source: str
    """What the pictures show."""
    target: str
    """What they shall show."""
    model: str = "emoji"
    """A text-to-image model: a folder in diffusers' layout, a bundled one, or an id on the hub."""
    method: Literal["cycle", "ddim", "fixed-point", "bidirectional"] = "cycle"
    """cycle: CycleDiffusion, the noise of every step of a random sampler. The others: DDIM inversion, see `ddim
    invert`."""
    strength: float = 0.7
    """In (0, 1]: the share of the steps that are made anew; less keeps more of the picture."""
    steps: int = 100
    """Of the whole way, of which the strength's share is made, there and back."""
    eta: float = 1.0
    """In (0, 1], for cycle: the noise of its sampler."""
    source_guidance_scale: float = 1.0
    """On the way to the noise."""
    guidance_scale: float | None = None
    """On the way back: how much to prefer the target. If not given, 3 for a model with zero
    terminal SNR, 7.5 for others."""
    guidance_rescale: float | None = None
    """In [0, 1]. If not given, 0.7 for a model with zero terminal SNR, else 0."""
    spacing: Spacing = None
    seed: int = 0
    """Of the path that cycle draws."""
    batch: int = 1
    """How many different results of each picture; cycle alone has them."""
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    before: bool = False
    """Show each picture beside its results."""
    out: str = "edited.png"
    """A file for one picture or a grid of all, or a folder (existing, or ending in /) for one file each."""


def run_edit(settings: EditSettings) -> None:
    import torch

    if settings.batch < 1 or (settings.batch > 1 and settings.method != "cycle"):
        raise ConfigError(f"--batch {settings.batch}: a picture has one result, or with --method cycle several")
    started = time.perf_counter()
    pictures = read_images(settings.images)
    pipe = open_pipeline(
        settings.model, settings.dtype, settings.device, backend=settings.backend, spacing=settings.spacing
    )
    if not draws_texts(pipe):
        raise ConfigError(f"{settings.model} draws no texts, so there is nothing to edit by: use a text-to-image model")
    eta = settings.eta if settings.method == "cycle" else 0.0
    plan = pipe.scheduler.plan(settings.steps, eta=eta).unclipped().shortened(settings.strength)
    with torch.no_grad():
        x0 = pipe.encode(pictures)
        results = pipe.decode(_edited(pipe, x0, plan, settings))
        shown = pipe.decode(x0) if settings.before else []
    if settings.before:
        per = settings.batch
        rows = [[shown[index], *results[index * per : (index + 1) * per]] for index in range(len(shown))]
        results = [image for row in rows for image in row]
    columns = settings.batch + settings.before
    for path in save_pictures(results, settings.out, made_by("edit", settings), columns=columns):
        print(path)
    print(
        f"{settings.source!r} to {settings.target!r} by {settings.method} with {settings.model}: {len(plan)} of "
        f"{settings.steps} steps there and back, seed {settings.seed}, {time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )


def _edited(pipe: Any, x0: Tensor, plan: SamplingPlan, settings: EditSettings) -> Tensor:
    """The results (p·batch z h w); those of one picture follow one another."""
    from ddim.editing import decode_cycle, edit, encode_cycle
    from ddim.noise import seeded_generators

    x0 = x0.repeat_interleave(settings.batch, dim=0)
    scale, rescale = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale)
    source = pipe.denoiser(plan, len(x0), prompt=settings.source, guidance_scale=settings.source_guidance_scale)
    target = pipe.denoiser(plan, len(x0), prompt=settings.target, guidance_scale=scale, guidance_rescale=rescale)
    with pipe.progress_bar(2 * len(plan)) as bar:
        if settings.method != "cycle":
            return edit(source, target, x0, plan, settings.method, lambda step: bar.update())
        generators = seeded_generators(settings.seed, len(x0))
        cycle = encode_cycle(source, x0, plan, generators, lambda step: bar.update())
        for step in decode_cycle(target, cycle, plan):
            x = step.sample
            bar.update()
        return x
