"""`ddim interpolate`: what lies between seeds, texts, classes or real pictures."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ddim.cli.opening import draws_texts, open_pipeline, suitable_guidance
from ddim.cli.options import Backend, Device, DType, GuidanceRescale, ModelOrBundled, NegativePrompt, Spacing
from ddim.cli.pictures import made_by, read_images, save_picture, save_pictures
from ddim.errors import ConfigError, require

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ddim.interpolation import Denoisers
    from ddim.plan import SamplingPlan


@dataclass(frozen=True)
class InterpolateSettings:
    """Draw what lies between seeds, texts, classes or real pictures.

    Give two or more of one kind, and of the others one or as many: they go along together. A path is a strip, an
    animation or a folder of frames, as --out says; four corners are a square with --grid.

        ddim interpolate --seeds 0 1 2 --out strip.png
        ddim interpolate "a red heart" "a blue heart" --frames 24 --loop --out hearts.gif
        ddim interpolate --images a.png b.png --model emoji --out between.png
        ddim interpolate --seeds 0 1 2 3 --grid --out grid.png
    """

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to go between, or one for all frames, for a text-to-image model. Before all options."""
    model: ModelOrBundled = None
    seeds: tuple[int, ...] = ()
    """Noises to go between, each what `ddim sample --seed` draws its first picture from; or one for all frames. If not
    given, 0, and 1 (with --grid also 2 and 3) where nothing else differs."""
    images: tuple[str, ...] = ()
    """Picture files to go between, instead of seeds: each is led up to its noise by DDIM's inversion, under its text
    or class and without guidance."""
    method: Literal["ddim", "fixed-point"] = "ddim"
    """How --images are led up to their noise. ddim: one evaluation a step; the ends of the path are near the pictures.
    fixed-point: several; they are the pictures, as far as the model's autoencoder can show them."""
    class_labels: tuple[int, ...] = ()
    """Classes to go between, or one for all frames, for a class-conditional model: the predictions for the two are
    mixed. If not given, no class in particular."""
    negative_prompt: NegativePrompt = None
    frames: int = 8
    """Pictures from each point to the next, both included; with --grid, on each side."""
    grid: bool = False
    """A square between four corners: top left, top right, bottom left, bottom right."""
    rows: bool = False
    """A strip with a row from each point to the next, rather than one row for all."""
    between_texts: Literal["linear", "spherical"] = "linear"
    """How to go between two texts' embeddings. Noises always go along a sphere."""
    steps: int = 50
    """Sampling steps, 1 to the model's training timesteps; with --images, as many up as down."""
    guidance_scale: float | None = None
    """How much to prefer the text or class over none; 1 is no guidance. If not given, 1 for classes and --images, 3 for
    a text-to-image model with zero terminal SNR, 7.5 for others."""
    guidance_rescale: GuidanceRescale = None
    spacing: Spacing = None
    batch_size: int = 16
    """How many frames are drawn at a time. Makes no difference to what they show."""
    loop: bool = False
    """An animation that goes there and back."""
    fps: float = 12.0
    """Frames a second of an animation, 1 to 60."""
    scale: int | None = None
    """Enlarge each picture so many times. If not given, small ones: to about 64 pixels in a strip or grid, to about 256
    in an animation, not at all in a folder."""
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    out: str = "interpolation.png"
    """A picture for a strip or a square; a .gif, .webp or .mp4 for an animation; a folder (existing, or
    ending in /) for one file each."""


def run_interpolate(settings: InterpolateSettings) -> None:
    import torch

    from ddim.interpolation import draw

    settings = _with_points(settings)
    _check_out(settings)
    started = time.perf_counter()
    pipe = open_pipeline(
        str(settings.model), settings.dtype, settings.device, backend=settings.backend, spacing=settings.spacing
    )
    _check_kind(pipe, settings)
    settings = _with_guidance(settings, pipe)
    plan = pipe.scheduler.plan(settings.steps)
    if settings.images:
        plan = plan.unclipped()
    frames = len(_stations(settings)[0])
    batches = -(-frames // max(settings.batch_size, 1))
    with torch.no_grad(), pipe.progress_bar(len(plan) * (batches + bool(settings.images))) as bar:
        x = _along(_noise(pipe, plan, settings, bar.update), settings, "spherical")
        denoisers = _denoisers(pipe, plan, settings)
        pictures = draw(plan, x, denoisers, pipe.decode, batch_size=settings.batch_size, progress=bar.update)
    for path in _write(pictures, settings):
        print(path)
    print(
        f"{frames} frames by {settings.model}: {settings.steps} steps, guidance {settings.guidance_scale:g}, rescale "
        f"{settings.guidance_rescale:g}, {time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )


# --- what is asked for -----------------------------------------------------------------------------------------------


def _with_points(settings: InterpolateSettings) -> InterpolateSettings:
    """The settings with a model and seeds, where none were given.

    Raises:
        ConfigError: there is nothing to go between, or the points do not fit together.
    """
    if settings.seeds and settings.images:
        raise ConfigError("noise comes from --seeds or from --images, not from both: leave out one")
    others = (settings.prompts, settings.images, settings.class_labels)
    if not (settings.seeds or settings.images):
        several = max(map(len, others)) > 1
        settings = dataclasses.replace(settings, seeds=(0,) if several else (0, 1, 2, 3) if settings.grid else (0, 1))
    if settings.model is None:
        settings = dataclasses.replace(settings, model="emoji" if settings.prompts else "digits")
    points = _points(settings)
    if settings.grid and points != 4:
        raise ConfigError(f"--grid goes between four corners, not {points}: give four seeds, texts, classes or images")
    if points < 2:
        raise ConfigError("there is no way from one point: give two or more seeds, texts, classes or images")
    for name in ("prompts", "seeds", "images", "class_labels"):
        if len(getattr(settings, name)) not in (0, 1, points):
            raise ConfigError(f"{len(getattr(settings, name))} {name} do not fit {points} points: give 1 or {points}")
    if settings.frames < 2:
        raise ConfigError(f"--frames must be 2 or more, the two ends, not {settings.frames}")
    return settings


def _points(settings: InterpolateSettings) -> int:
    return max(map(len, (settings.prompts, settings.seeds, settings.images, settings.class_labels)))


def _check_out(settings: InterpolateSettings) -> None:
    """What cannot be written is better known before it is drawn."""
    from PIL import Image

    from ddim.images import SUFFIXES

    suffix = Path(settings.out).suffix.lower()
    if settings.scale is not None and settings.scale < 1:
        raise ConfigError(f"--scale must be 1 or more, not {settings.scale}")
    if not 1 <= settings.fps <= 60:
        raise ConfigError(f"--fps must be in 1…60, not {settings.fps:g}")
    if _is_animation(settings):
        if settings.grid or settings.rows:
            raise ConfigError(f"--grid and --rows make no animation: write them to a .png, not to {settings.out}")
        if suffix == ".mp4":
            require("av", "video")
        return
    if settings.rows and (settings.grid or _is_folder(settings)):
        raise ConfigError("--rows is for a strip: leave it out for a --grid or a folder")
    if settings.loop:
        raise ConfigError(f"--loop is for animations: write one to a name that ends in {', '.join(SUFFIXES)}")
    if not _is_folder(settings) and suffix not in Image.registered_extensions():
        raise ConfigError(f"--out {settings.out} is no picture's name: use .png, or {', '.join(SUFFIXES)}")


def _is_folder(settings: InterpolateSettings) -> bool:
    return settings.out.endswith(("/", os.sep)) or Path(settings.out).is_dir()


def _is_animation(settings: InterpolateSettings) -> bool:
    from ddim.images import SUFFIXES

    return not _is_folder(settings) and Path(settings.out).suffix.lower() in SUFFIXES


def _check_kind(pipe: Any, settings: InterpolateSettings) -> None:
    """Options that the kind of model has no use for are errors, not silence."""
    if draws_texts(pipe):
        if settings.class_labels:
            raise ConfigError(f"{settings.model} knows no classes: leave out --class-labels")
        if not (settings.prompts or settings.images):
            raise ConfigError(
                f'{settings.model} draws what a text says: ddim interpolate "a red heart" --model {settings.model}'
            )
        return
    if settings.prompts or settings.negative_prompt is not None:
        raise ConfigError(f"{settings.model} draws no texts: leave out the prompts")
    if settings.class_labels and pipe.unet.config.num_class_embeds is None:
        raise ConfigError(f"{settings.model} knows no classes: leave out --class-labels")


def _with_guidance(settings: InterpolateSettings, pipe: Any) -> InterpolateSettings:
    """Guidance that suits the model, where none was given. Pictures come back from their noise only without it."""
    for_texts = 1.0 if settings.images else None
    scale, rescale = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale, for_texts=for_texts)
    return dataclasses.replace(settings, guidance_scale=scale, guidance_rescale=rescale)


# --- from the points to the frames -----------------------------------------------------------------------------------


def _stations(settings: InterpolateSettings) -> tuple[Tensor, Tensor]:
    """Where each frame is: (the point before it, how far it is to the next); on a grid, (how far down, how far right).

    Both are (n,).
    """
    import torch

    from ddim.interpolation import stations

    if not settings.grid:
        return stations(_points(settings), settings.frames)
    share = torch.linspace(0, 1, settings.frames, dtype=torch.float64)
    return share.repeat_interleave(settings.frames), share.repeat(settings.frames)


def _along(points: Tensor, settings: InterpolateSettings, how: str) -> Tensor:
    """(p …), or (1 …) for all frames, to the frames (n …)."""
    from ddim.interpolation import BETWEEN, grid, path

    if len(points) == 1:
        return points.expand(len(_stations(settings)[0]), *points.shape[1:])
    return (grid if settings.grid else path)(points, settings.frames, BETWEEN[how])


def _noise(pipe: Any, plan: SamplingPlan, settings: InterpolateSettings, progress: Any) -> Tensor:
    """x_T of the points, (p c h w), or of all frames, (1 c h w)."""
    from ddim.interpolation import picture_noise, seed_noise

    if settings.seeds:
        return seed_noise(pipe, settings.seeds)
    count = len(settings.images)
    conditions: dict[str, Any] = {}
    if settings.prompts:
        conditions["prompt"] = list(settings.prompts[:count])
    if settings.class_labels:
        conditions["class_labels"] = list(settings.class_labels[:count])
    x0 = pipe.encode(read_images(settings.images))
    denoiser = pipe.denoiser(plan.inverted(), count, **conditions)
    return picture_noise(denoiser, x0, plan, settings.method, lambda step: progress())


def _denoisers(pipe: Any, plan: SamplingPlan, settings: InterpolateSettings) -> Denoisers:
    """What draws each frame: under its text, or between the classes that it is between."""
    from ddim.interpolation import conditioned, mixed

    guidance: dict[str, Any] = {
        "guidance_scale": settings.guidance_scale,
        "guidance_rescale": settings.guidance_rescale,
    }
    if draws_texts(pipe):
        embeds, negative = pipe.encode_prompt(
            list(settings.prompts) or "",
            do_classifier_free_guidance=guidance["guidance_scale"] > 1,
            negative_prompt=settings.negative_prompt,
        )
        each = {"prompt_embeds": _along(embeds, settings, settings.between_texts)}
        if negative is not None:
            each["negative_prompt_embeds"] = _along(negative[:1], settings, "linear")
        return conditioned(pipe, plan, each, **guidance)
    labels = settings.class_labels
    if len(labels) < 2:
        if labels:
            guidance["class_labels"] = labels[0]
        return conditioned(pipe, plan, **guidance)
    first, second = _stations(settings)

    def of(chosen: Sequence[int]) -> Denoisers:
        return conditioned(pipe, plan, {"class_labels": chosen}, **guidance)

    if settings.grid:
        corners = [of([label] * len(first)) for label in labels]
        return mixed(mixed(corners[0], corners[2], first), mixed(corners[1], corners[3], first), second)
    before = first.tolist()
    return mixed(of([labels[i] for i in before]), of([labels[i + 1] for i in before]), second)


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(pictures: list[Image.Image], settings: InterpolateSettings) -> list[Path]:
    """A strip or square, an animation, or a file for each frame; each says how it was made, if it can."""
    from ddim.images import enlarge, image_grid, there_and_back, write_animation

    out = Path(settings.out)
    if _is_animation(settings):
        frames = [enlarge(picture, settings.scale, least=256) for picture in pictures]
        frames = there_and_back(frames) if settings.loop else frames
        write_animation(out, frames, fps=settings.fps, note=made_by("interpolate", settings))
    elif _is_folder(settings):
        frames = [enlarge(picture, settings.scale or 1) for picture in pictures]
        return save_pictures(frames, settings.out, made_by("interpolate", settings))
    else:
        columns = settings.frames if settings.grid or settings.rows else len(pictures)
        if settings.rows:  # each row begins with the picture that the one before it ends with
            legs = range(0, len(pictures) - 1, columns - 1)
            pictures = [picture for leg in legs for picture in pictures[leg : leg + columns]]
        save_picture(image_grid(pictures, columns, settings.scale), out, made_by("interpolate", settings))
    return [out]
