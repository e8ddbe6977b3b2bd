"""`ddim interpolate`: what lies between seeds, texts, classes or real pictures."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ddim.cli.bundled import with_model
from ddim.cli.checks import ANIMATIONS
from ddim.cli.fitting import fit_pictures
from ddim.cli.opening import check_kind, check_model, open_pipeline, suitable_guidance, suitable_steps
from ddim.cli.options import (
    Autoencoder,
    Backend,
    Device,
    DType,
    GuidanceRescale,
    GuidanceScale,
    Loras,
    ModelOrBundled,
    NegativePrompt,
    Overwrite,
    Predicts,
    PromptWeights,
    Spacing,
    SuitableOrder,
    SuitableSteps,
    TextualInversions,
    TokenizerPlace,
    Variant,
)
from ddim.cli.pictures import check_images, made_by, save_picture, save_pictures
from ddim.cli.places import announce, is_folder, place
from ddim.errors import ConfigError, check_installed

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ddim.cli.known import Kind
    from ddim.pipelines import DiffusionPipeline
    from ddim.pipelines.between import Way
    from ddim.plan import SamplingPlan


@dataclass(frozen=True)
class InterpolateSettings:
    """Draw what lies between seeds, texts, classes or real pictures.

    Give two or more points of one kind, and of each other kind one, as many, or none: the kinds go along together. The
    frames on the way become a strip, an animation or a folder, as --out says; with --grid, four points are the corners
    of a square.

        ddim interpolate --seeds 0 1 2 --out strip.png
        ddim interpolate "a red heart" "a blue heart" --loop --out hearts.gif
        ddim interpolate --images heart.png blue.png --model emoji --out between.png
        ddim interpolate --seeds 0 1 2 3 --grid --out grid.png
    """

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts to go between, or one text for all frames, for a text-to-image model. They stand before all options."""
    model: ModelOrBundled = None
    lora: Loras = ()
    textual_inversion: TextualInversions = ()
    weights: PromptWeights = None
    vae: Autoencoder = None
    variant: Variant = None
    tokenizer: TokenizerPlace = None
    prediction_type: Predicts = None
    seeds: Annotated[
        tuple[int, ...],
        tyro.conf.arg(
            help="The seeds of the noises to go between, or one seed for all frames. Each noise is the one that `ddim "
            "sample --seed` draws its first picture from. If not given, 0; or, where there is nothing else to go "
            "between, 0 and 1, and with --grid 0 to 3.",
        ),
    ] = ()
    images: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help="The picture files to go between, instead of seeds. Each is led up to its noise by inverting DDIM, "
            "under its text or class and without guidance. As the way down comes back to the pictures only without "
            "guidance and by many steps, --guidance-scale is 1 then and --steps 50, of first order, if they are not "
            "given.",
        ),
    ] = ()
    method: Annotated[
        Literal["ddim", "fixed-point"],
        tyro.conf.arg(
            help="How --images are led up to their noise. ddim asks the network once a step, and the path begins and "
            "ends near the pictures. fixed-point asks it several times a step, and the path begins and ends with the "
            "pictures, as far as the model's autoencoder can show them.",
        ),
    ] = "ddim"
    class_labels: Annotated[
        tuple[int, ...],
        tyro.conf.arg(
            help="The classes to go between, or one class for all frames, for a class-conditional model. Between two "
            "classes, the predictions for both are mixed. If not given, no class in particular.",
        ),
    ] = ()
    negative_prompt: NegativePrompt = None
    frames: int = 8
    """How many frames to draw from each point to the next, both included; with --grid, along each side."""
    grid: bool = False
    """Draw a square between four points, which are its corners: top left, top right, bottom left, bottom right."""
    rows: bool = False
    """Draw a strip that has a row from each point to the next, rather than one row for all."""
    between_texts: Literal["linear", "spherical"] = "linear"
    """How to go between the embeddings of two texts. Noises always go along a sphere."""
    steps: SuitableSteps = None
    order: SuitableOrder = None
    guidance_scale: GuidanceScale = None
    guidance_rescale: GuidanceRescale = None
    spacing: Spacing = None
    batch_size: int = 16
    """How many frames to draw at a time. It makes no difference to what they show."""
    loop: bool = False
    """Let the animation go there and back again, so that it ends where it began."""
    fps: float = 12.0
    """How many frames the animation shows in a second, from 1 to 60."""
    scale: Annotated[
        int | None,
        tyro.conf.arg(
            help="How many times to enlarge each picture. If not given, small pictures are enlarged to about 64 "
            "pixels in a strip or a square and to about 256 in an animation; those in a folder are left as they are.",
        ),
    ] = None
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    out: Annotated[
        str,
        tyro.conf.arg(
            help="Where the frames go: a picture file for a strip or a square; a .gif, .webp or .mp4 for an "
            "animation; or a folder, which exists or ends in /, for one file each.",
        ),
    ] = "interpolation.png"
    overwrite: Overwrite = False

    def check_together(self, given: Collection[str]) -> None:
        _check_out(_with_points(self))
        if "method" in given and not self.images:
            raise ConfigError("--method says how --images are led up to their noise: give some, or leave it out")
        if self.images and self.order == 2:
            raise ConfigError("--order 2 leads --images to no noise that they come back from: leave one of them out")
        if "between_texts" in given and len(self.prompts) < 2:
            raise ConfigError("--between-texts says how to go from one text to another: give two, or leave it out")
        if "fps" in given and not _is_animation(self):
            raise ConfigError(f"--fps is for animations: let --out end in {', '.join(ANIMATIONS)}, or leave it out")


def run_interpolate(settings: InterpolateSettings) -> None:
    settings = _with_points(settings)
    started = time.perf_counter()

    def suits(kind: Kind) -> None:
        _check_kind(kind, settings)

    check_model(settings, suits)
    announce(settings.out, settings.overwrite)
    if settings.images:
        check_images(settings.images)
    pipe = open_pipeline(settings, suits)
    import torch

    from ddim.interpolation import draw
    from ddim.pipelines.between import denoisers_along
    from ddim.scheduler.recommended import USUAL_STEPS, guidance_in_words

    settings = _with_guidance(settings, pipe)
    if settings.images:  # they come back from their noise by many steps of first order, whatever suits the way down
        steps = suitable_steps(pipe, settings.steps or USUAL_STEPS, 1)
    else:
        steps = suitable_steps(pipe, settings.steps, settings.order)
    settings = dataclasses.replace(settings, steps=steps.number, order=steps.order, spacing=steps.spacing)
    pictures = fit_pictures(settings.images, pipe)
    plan = pipe.scheduler.plan(steps.number, order=steps.order)
    if settings.images:
        plan = plan.unclipped()
    way = _way(settings)
    batches = -(-len(way) // max(settings.batch_size, 1))
    with torch.no_grad(), pipe.progress_bar(len(plan) * (batches + bool(settings.images))) as bar:
        x = way.along(_noise(pipe, plan, settings, pictures, bar.update))
        denoisers = denoisers_along(
            pipe,
            plan,
            way,
            prompts=settings.prompts,
            class_labels=settings.class_labels,
            negative_prompt=settings.negative_prompt,
            between_texts=settings.between_texts,
            guidance_scale=settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
        )
        frames_drawn = draw(plan, x, denoisers, pipe.decode, batch_size=settings.batch_size, progress=bar.update)
    for path in _write(frames_drawn, settings):
        print(path)
    print(
        f"{len(way)} frames by {settings.model}: {steps}, "
        f"{guidance_in_words(settings.guidance_scale or 0.0, settings.guidance_rescale or 0.0)}, "
        f"{time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )


# --- what is asked for -----------------------------------------------------------------------------------------------


def _with_points(settings: InterpolateSettings) -> InterpolateSettings:
    """The settings with a model and seeds, where none were given.

    Raises:
        ConfigError: there is nothing to go between, or the points do not fit together.
    """
    if settings.seeds and settings.images:
        raise ConfigError("the noise comes from --seeds or from --images, not from both: leave out one of them")
    others = (settings.prompts, settings.images, settings.class_labels)
    if not (settings.seeds or settings.images):
        several = max(map(len, others)) > 1
        settings = dataclasses.replace(settings, seeds=(0,) if several else (0, 1, 2, 3) if settings.grid else (0, 1))
    settings = with_model(settings, for_texts=bool(settings.prompts))
    points = _points(settings)
    if settings.grid and points != 4:
        raise ConfigError(f"--grid goes between four corners, not {points}: give four seeds, texts, classes or images")
    if points < 2:
        raise ConfigError("one point leads nowhere: give two or more seeds, texts, classes or images")
    for name in ("prompts", "seeds", "images", "class_labels"):
        if len(getattr(settings, name)) not in (0, 1, points):
            raise ConfigError(f"{len(getattr(settings, name))} {name} do not fit {points} points: give 1 or {points}")
    return settings


def _points(settings: InterpolateSettings) -> int:
    return max(map(len, (settings.prompts, settings.seeds, settings.images, settings.class_labels)))


def _check_out(settings: InterpolateSettings) -> None:
    """Refuse what cannot be written, before it is drawn.

    Raises:
        ConfigError: --out, or an option about it, that does not fit the others.
        MissingExtraError: the library that writes videos is not installed.
    """
    suffix = Path(settings.out).suffix.lower()
    if _is_animation(settings):
        if settings.grid or settings.rows:
            raise ConfigError(
                f"--grid and --rows make no animation: write them to a .png rather than to {settings.out}, or leave "
                "them out"
            )
        if suffix == ".mp4":
            check_installed("av", "video")
        return
    if settings.rows and (settings.grid or is_folder(settings.out)):
        raise ConfigError("--rows is for a strip: leave it out for a --grid or a folder")
    if settings.loop:
        raise ConfigError(f"--loop is for animations: write one to a name that ends in {', '.join(ANIMATIONS)}")


def _is_animation(settings: InterpolateSettings) -> bool:
    return not is_folder(settings.out) and Path(settings.out).suffix.lower() in ANIMATIONS


def _check_kind(kind: Kind, settings: InterpolateSettings) -> None:
    example = f'ddim interpolate "a red heart" --model {settings.model}'
    check_kind(
        kind,
        str(settings.model),
        for_texts={"the prompts": settings.prompts, "--negative-prompt": settings.negative_prompt},
        for_classes={"--class-labels": settings.class_labels},
        example=None if settings.images else example,  # pictures may be of the empty text
    )


def _with_guidance(settings: InterpolateSettings, pipe: DiffusionPipeline) -> InterpolateSettings:
    """The settings with guidance that suits the model, where none was given.

    For --images that is no guidance, as pictures come back from their noise only without it.
    """
    for_texts = 1.0 if settings.images else None
    scale, rescale = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale, for_texts=for_texts)
    return dataclasses.replace(settings, guidance_scale=scale, guidance_rescale=rescale)


# --- from the points to the frames -----------------------------------------------------------------------------------


def _way(settings: InterpolateSettings) -> Way:
    from ddim.pipelines.between import Way

    return Way(_points(settings), settings.frames, settings.grid)


def _noise(
    pipe: DiffusionPipeline,
    plan: SamplingPlan,
    settings: InterpolateSettings,
    pictures: list[Image.Image],
    progress: Callable[[], object],
) -> Tensor:
    """x_T of the points, (p c h w), or of all frames, (1 c h w)."""
    from ddim.interpolation import seed_noise
    from ddim.pipelines.between import noise_of_pictures

    if settings.seeds:
        return seed_noise(pipe, settings.seeds)
    return noise_of_pictures(
        pipe,
        plan,
        pictures,
        method=settings.method,
        prompts=settings.prompts,
        class_labels=settings.class_labels,
        notice=lambda step: progress(),
    )


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(pictures: list[Image.Image], settings: InterpolateSettings) -> list[Path]:
    """A strip or square, an animation, or a file for each frame; each says how it was made, if it can."""
    from ddim.images import enlarge, image_grid, there_and_back, write_animation

    if _is_animation(settings):
        frames = [enlarge(picture, settings.scale, least=256) for picture in pictures]
        frames = there_and_back(frames) if settings.loop else frames
        out = place(settings.out, settings.overwrite)
        write_animation(out, frames, fps=settings.fps, note=made_by("interpolate", settings))
    elif is_folder(settings.out):
        frames = [enlarge(picture, settings.scale or 1) for picture in pictures]
        made = made_by("interpolate", settings)
        return save_pictures(frames, settings.out, made, overwrite=settings.overwrite)
    else:
        columns = settings.frames if settings.grid or settings.rows else len(pictures)
        if settings.rows:  # each row begins with the picture that the one before it ends with
            legs = range(0, len(pictures) - 1, columns - 1)
            pictures = [picture for leg in legs for picture in pictures[leg : leg + columns]]
        out = place(settings.out, settings.overwrite)
        save_picture(image_grid(pictures, columns, settings.scale), out, made_by("interpolate", settings))
    return [out]
