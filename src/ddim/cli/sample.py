"""`ddim sample`: draw, and make again what was drawn."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim._version import __version__
from ddim.errors import ConfigError
from ddim.settings import SampleSettings

if TYPE_CHECKING:
    from PIL import Image


def run_sample(settings: SampleSettings) -> None:
    only = None  # the number of the image to make, of those that the settings make
    if settings.from_image is not None:
        settings, only = _remake(settings)
    if settings.model is None:
        settings = dataclasses.replace(settings, model="digits" if settings.prompt is None else "emoji")
    started = time.perf_counter()
    pipe = _open_pipeline(settings)
    settings = _with_defaults(settings, pipe)
    images = _draw(pipe, settings, only)
    for path in _write_images(images, settings, only):
        print(path)
    what = "" if settings.prompt is None else f"of {settings.prompt!r} "
    print(
        f"{len(images)} image{'s' * (len(images) > 1)} {what}by {settings.model}: {settings.steps} steps, guidance "
        f"{settings.guidance_scale:g}, rescale {settings.guidance_rescale:g}, seed {settings.seed}, "
        f"{time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )


def _with_defaults(settings: SampleSettings, pipe: Any) -> SampleSettings:
    """The settings with the guidance that suits the model, where none was given."""
    from ddim.pipelines import DDIMPipeline

    draws_texts = not isinstance(pipe, DDIMPipeline)
    guidance, rescale = settings.guidance_scale, settings.guidance_rescale
    if guidance is None:
        guidance = 7.5 if draws_texts else 1.0
    if rescale is None:
        rescale = 0.7 if draws_texts and pipe.scheduler.config.rescale_betas_zero_snr else 0.0
    return dataclasses.replace(settings, guidance_scale=guidance, guidance_rescale=rescale)


def _remake(settings: SampleSettings) -> tuple[SampleSettings, int | None]:
    """The settings of a picture that was made before, and which image of theirs it is."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(str(settings.from_image)) as image:
            made = json.loads(str(image.info["ddim"]))
        known = {field.name: field.default for field in dataclasses.fields(SampleSettings)}
        stored = {key: made["settings"][key] for key in known if key in made["settings"]}
        stored["class_labels"] = tuple(stored["class_labels"])
        only = made["image"]
    except (UnidentifiedImageError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{settings.from_image} is no PNG that says how ddim made it") from error
    if made.get("version") != __version__:
        print(f"ddim: made by version {made.get('version')}, this is {__version__}", file=sys.stderr)
    return SampleSettings(**{**stored, "device": settings.device, "from_image": None, "out": settings.out}), only


def _open_pipeline(settings: SampleSettings) -> Any:
    import torch

    from ddim.pipelines import DiffusionPipeline

    pipe: Any = DiffusionPipeline.from_pretrained(str(settings.model), dtype=getattr(torch, settings.dtype))
    changes: dict[str, Any] = {}
    if settings.spacing is not None:
        changes["timestep_spacing"] = settings.spacing
    if settings.zero_snr is not None:
        changes["rescale_betas_zero_snr"] = settings.zero_snr
    if changes:
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **changes)
    try:
        return pipe.to(settings.device or _best_device())
    except (RuntimeError, AssertionError) as error:  # torch's words for a device that is not there
        raise ConfigError(f"--device {settings.device} cannot be used: {str(error).splitlines()[0]}") from error


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _draw(pipe: Any, settings: SampleSettings, only: int | None) -> list[Image.Image]:
    """All images that the settings ask for, or the one with the number `only`."""
    import torch

    from ddim.pipelines import DDIMPipeline
    from ddim.process import seeded_generators

    by_class = isinstance(pipe, DDIMPipeline)
    _check_kind(settings, by_class)
    classes = pipe.unet.config.num_class_embeds if by_class else None  # the last one stands for no class
    labels = settings.class_labels or range((classes or 1) - 1)
    count = settings.batch or (len(labels) if classes else 16 if by_class else 1)
    numbers = range(count) if only is None else (only,)
    generators = seeded_generators(settings.seed, max(numbers) + 1)
    arguments: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "eta": settings.eta,
        "guidance_scale": settings.guidance_scale,
        "guidance_rescale": settings.guidance_rescale,
        "generator": [generators[number] for number in numbers],
    }
    if classes is not None:
        arguments["class_labels"] = [labels[number % len(labels)] for number in numbers]
    elif settings.class_labels:
        raise ConfigError(f"{settings.model} knows no classes: leave out --class-labels")
    if by_class:
        arguments["batch_size"] = len(numbers)
    else:
        arguments |= {
            name: getattr(settings, name) for name in ("prompt", "negative_prompt", "height", "width", "strength")
        }
        arguments["num_images_per_prompt"] = len(numbers)
        for name in ("image", "mask_image"):
            if getattr(settings, name) is not None:
                arguments[name] = _read_image(getattr(settings, name))
    with torch.inference_mode():
        images: list[Image.Image] = pipe(**arguments).images
    return images


def _check_kind(settings: SampleSettings, by_class: bool) -> None:
    """Options that the kind of model has no use for are errors, not silence."""
    texts = ("prompt", "negative_prompt", "height", "width", "image", "mask_image")
    if by_class:
        given = [name for name in texts if getattr(settings, name) is not None]
        if given:
            raise ConfigError(f"{settings.model} draws no texts: leave out {', '.join(given)}")
    elif settings.prompt is None:
        raise ConfigError(
            f'{settings.model} draws what a text says: ddim sample "a red heart" --model {settings.model}'
        )
    elif settings.class_labels:
        raise ConfigError(f"{settings.model} knows no classes: leave out --class-labels")


def _read_image(path: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except UnidentifiedImageError as error:
        raise ConfigError(f"{path} is no readable image") from error


def _write_images(images: Sequence[Image.Image], settings: SampleSettings, only: int | None) -> list[Path]:
    """One grid, or one file for each image; each PNG says how it was made."""
    from PIL.PngImagePlugin import PngInfo

    from ddim.files import atomic_write
    from ddim.pipelines import image_grid

    made = {"version": __version__, "settings": dataclasses.asdict(settings)}
    out = Path(settings.out)
    files: dict[Path, tuple[Image.Image, int | None]]
    if out.is_dir() or settings.out.endswith(("/", os.sep)):
        files = {out / f"{number:05d}.png": (image, number) for number, image in enumerate(images, start=only or 0)}
    elif only is not None:
        files = {out: (images[0], only)}
    else:
        columns = len(images) if len(images) <= 10 else None if len(images) % 10 else 10
        is_picture = len(images) == 1 and max(images[0].size) >= 64
        files = {out: (images[0] if is_picture else image_grid(images, columns), None)}
    for path, (image, number) in files.items():
        note = PngInfo()
        note.add_text("ddim", json.dumps({**made, "image": number}))
        with atomic_write(path) as temporary:
            if path.suffix.lower() == ".png":
                image.save(temporary, pnginfo=note)
            else:
                image.save(temporary)
    return list(files)
