"""`ddim edit`: another text for a real picture's noise."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ddim.cli.batches import chunk_size, chunks
from ddim.cli.fitting import fit_pictures
from ddim.cli.opening import check_kind, check_model, open_pipeline, suitable_guidance
from ddim.cli.options import (
    Autoencoder,
    Backend,
    Device,
    DType,
    GuidanceRescale,
    GuidanceScale,
    Labels,
    Loras,
    Model,
    Overwrite,
    PictureFiles,
    PictureOut,
    Predicts,
    PromptWeights,
    Scale,
    Spacing,
    TextualInversions,
    TokenizerPlace,
    Variant,
)
from ddim.cli.pictures import check_images, check_look, choose_scale, made_by, save_pictures
from ddim.cli.places import announce
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ddim.cli.known import Kind
    from ddim.pipelines import DiffusionPipeline
    from ddim.plan import SamplingPlan


@dataclass(frozen=True)
class EditSettings:
    """Change what a picture shows: find its noise under one text, and draw that noise under another.

    This takes a text-to-image model.

        ddim edit heart.png --source "a red heart" --target "a blue heart"
        ddim edit heart.png --source "a red heart" --target "a blue heart" --batch 4
    """

    images: tyro.conf.Positional[PictureFiles]
    source: str
    """A text that says what the pictures show."""
    target: str
    """A text that says what they are to show instead."""
    model: Model = "emoji"
    lora: Loras = ()
    textual_inversion: TextualInversions = ()
    weights: PromptWeights = None
    vae: Autoencoder = None
    variant: Variant = None
    tokenizer: TokenizerPlace = None
    prediction_type: Predicts = None
    method: Annotated[
        Literal["cycle", "ddim", "fixed-point", "bidirectional"],
        tyro.conf.arg(
            help="How to find the noise. cycle is CycleDiffusion: it keeps the noise of every step of a random "
            "sampler. The others invert DDIM as `ddim invert` does, which explains them.",
        ),
    ] = "cycle"
    strength: float = 0.7
    """How far up to the noise to go, above 0 and up to 1, which is all the way. Less keeps more of the picture."""
    steps: int = 100
    """The number of steps of the whole way to the noise. The share that --strength says is made, there and back."""
    eta: float = 1.0
    """How much noise the random sampler of cycle adds at each step, above 0 and up to 1."""
    source_guidance_scale: float = 1.0
    """How strongly to prefer --source over no text on the way to the noise; 1 is no guidance."""
    guidance_scale: GuidanceScale = None
    guidance_rescale: GuidanceRescale = None
    spacing: Spacing = None
    seed: int = 0
    """The seed of the noise that cycle draws on its way."""
    batch: int = 1
    """How many results to make of each picture. Only cycle has more than one."""
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    before: bool = False
    """Show each picture, as the model draws it, before its results."""
    scale: Scale = None
    labels: Labels = False
    out: PictureOut = "edited.png"
    overwrite: Overwrite = False

    def check_together(self, given: Collection[str]) -> None:
        check_look(self.labels, self.out)
        if self.batch > 1 and self.method != "cycle":
            raise ConfigError(
                f"--batch {self.batch} cannot be: a picture has one result, or with --method cycle several"
            )
        for name in ("eta", "seed"):
            if name in given and self.method != "cycle":
                raise ConfigError(f"--{name} is for --method cycle, as {self.method} draws no noise: leave it out")


def run_edit(settings: EditSettings) -> None:
    started = time.perf_counter()

    def suits(kind: Kind) -> None:
        check_kind(kind, settings.model, only_texts=True)

    check_model(settings, suits)
    announce(settings.out, settings.overwrite)
    check_images(settings.images)
    pipe = open_pipeline(settings, suits)
    pictures = fit_pictures(settings.images, pipe)
    columns, size = settings.batch + settings.before, pictures[0].size
    count = columns * len(pictures)
    scale = choose_scale(settings.scale, size, count, settings.out, columns=columns, labels=settings.labels)
    settings = dataclasses.replace(settings, scale=scale)
    eta = settings.eta if settings.method == "cycle" else 0.0
    plan = pipe.scheduler.plan(settings.steps, eta=eta).unclipped().shortened(settings.strength)
    import torch

    with torch.no_grad():
        x0 = pipe.encode(pictures)
        results = list(_edited(pipe, x0, plan, settings))
        shown = pipe.decode(x0) if settings.before else []
    if settings.before:
        per = settings.batch
        rows = [[shown[index], *results[index * per : (index + 1) * per]] for index in range(len(shown))]
        results = [image for row in rows for image in row]
    paths = save_pictures(
        results,
        settings.out,
        made_by("edit", settings),
        overwrite=settings.overwrite,
        scale=scale,
        columns=columns,
        labels=_labels(settings) * len(pictures) if settings.labels else None,
    )
    for path in paths:
        print(path)
    print(
        f"{settings.source!r} to {settings.target!r} by {settings.method} with {settings.model}: {len(plan)} of "
        f"{settings.steps} steps there and back, seed {settings.seed}, {time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )


def _labels(settings: EditSettings) -> list[str]:
    """What is written under the pictures of a row."""
    return [settings.source] * settings.before + [settings.target] * settings.batch


def _edited(pipe: DiffusionPipeline, x0: Tensor, plan: SamplingPlan, settings: EditSettings) -> Iterator[Image.Image]:
    """The results, of which those of one picture follow one another; a few are made at a time."""
    from ddim.editing import decode_cycle, edit, encode_cycle
    from ddim.noise import seeded_generators

    x0 = x0.repeat_interleave(settings.batch, dim=0)
    scale, rescale = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale)
    _, height, width = pipe.picture_shape()
    parts = list(chunks(range(len(x0)), chunk_size(pipe, (width, height))))
    with pipe.progress_bar(2 * len(plan) * len(parts)) as bar:
        for part in parts:
            x, count = x0[part.start : part.stop], len(part)
            source = pipe.denoiser(plan, count, prompt=settings.source, guidance_scale=settings.source_guidance_scale)
            target = pipe.denoiser(plan, count, prompt=settings.target, guidance_scale=scale, guidance_rescale=rescale)
            if settings.method == "cycle":
                generators = seeded_generators(settings.seed, count, part.start)
                cycle = encode_cycle(source, x, plan, generators, lambda step: bar.update())
                for step in decode_cycle(target, cycle, plan):
                    x = step.sample
                    bar.update()
            else:
                x = edit(source, target, x, plan, settings.method, lambda step: bar.update())
            yield from pipe.decode(x)
