"""`ddim sample`: draw, and make again what was drawn."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ddim._version import __version__
from ddim.cli.opening import draws_texts, open_pipeline, suitable_guidance
from ddim.cli.options import (
    Backend,
    Device,
    DType,
    Eta,
    GuidanceRescale,
    GuidanceScale,
    ModelOrBundled,
    NegativePrompt,
    Spacing,
    Steps,
    ZeroSNR,
)
from ddim.cli.pictures import made_by, read_image, save_pictures
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class SampleSettings:
    """Draw images from a model: of a text, of a class, or of nothing in particular.

    One picture with all of them in a grid is written, or, if --out is a folder, one file for each. A PNG says how it
    was made; --from makes it again.
    """

    prompt: tyro.conf.Positional[str | None] = None
    """What to draw, for a text-to-image model."""
    model: ModelOrBundled = None
    negative_prompt: NegativePrompt = None
    class_labels: tuple[int, ...] = ()
    """Classes to draw, for a class-conditional model; repeated to fill the batch. All of them in turn if not given."""
    guidance_scale: GuidanceScale = None
    guidance_rescale: GuidanceRescale = None
    guidance_interval: tuple[int, int] | None = None
    """Guide only at timesteps from LOW to HIGH, both included: the others take half the work. All if not given."""
    steps: Steps = 50
    eta: Eta = 0.0
    order: Literal[1, 2] = 1
    """Of the steps: 2 comes nearer to what many steps give, with as many evaluations; for --eta 0."""
    spacing: Spacing = None
    zero_snr: ZeroSNR = None
    seed: int = 0
    """Image k of a seed is the same whatever the batch size."""
    batch: int | None = None
    """How many images. If not given, the number of class labels, or all classes, or 1 for a text, or 16."""
    height: int | None = None
    """In pixels, for a text-to-image model. What it was trained on if not given."""
    width: int | None = None
    """In pixels, for a text-to-image model."""
    image: str | None = None
    """A picture to start from, for a text-to-image model."""
    strength: float = 0.8
    """In [0, 1]: how much of --image is lost."""
    mask_image: str | None = None
    """White where --image is to be painted anew."""
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    from_image: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """A PNG that this command wrote: make it again with its settings, except for --out and --device. Or the noise that
    `ddim invert` saved: sample the picture of it."""
    out: str = "samples.png"
    """A file for a grid of all images, or a folder (existing, or ending in /) for one file each."""


def run_sample(settings: SampleSettings) -> None:
    only = None  # the number of the image to make, of those that the settings make
    if settings.from_image is not None and settings.from_image.endswith(".safetensors"):
        from ddim.cli.invert import sample_again

        sample_again(settings.from_image, settings.device, settings.out)
        return
    if settings.from_image is not None:
        settings, only = _remake(settings)
    if settings.model is None:
        settings = dataclasses.replace(settings, model="digits" if settings.prompt is None else "emoji")
    started = time.perf_counter()
    pipe = open_pipeline(
        str(settings.model),
        settings.dtype,
        settings.device,
        backend=settings.backend,
        spacing=settings.spacing,
        zero_snr=settings.zero_snr,
    )
    scale, rescale = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale)
    settings = dataclasses.replace(settings, guidance_scale=scale, guidance_rescale=rescale)
    images = _draw(pipe, settings, only)
    for path in save_pictures(images, settings.out, made_by("sample", settings), first=only):
        print(path)
    what = "" if settings.prompt is None else f"of {settings.prompt!r} "
    print(
        f"{len(images)} image{'s' * (len(images) > 1)} {what}by {settings.model}: {settings.steps} steps, guidance "
        f"{settings.guidance_scale:g}, rescale {settings.guidance_rescale:g}, seed {settings.seed}, "
        + f"{pipe.backend}, " * (settings.backend != "eager")
        + f"{time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )


def _remake(settings: SampleSettings) -> tuple[SampleSettings, int | None]:
    """The settings of a picture that was made before, and which image of theirs it is."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(str(settings.from_image)) as image:
            made = json.loads(str(image.info["ddim"]))
        if made.get("command", "sample") != "sample":
            raise KeyError("command")
        known = {field.name: field.default for field in dataclasses.fields(SampleSettings)}
        stored = {key: made["settings"][key] for key in known if key in made["settings"]}
        for name in ("class_labels", "guidance_interval"):
            if stored.get(name) is not None:
                stored[name] = tuple(stored[name])
        only = made["image"]
    except (UnidentifiedImageError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{settings.from_image} is no PNG of `ddim sample` that says how ddim made it") from error
    if made.get("version") != __version__:
        print(f"ddim: made by version {made.get('version')}, this is {__version__}", file=sys.stderr)
    return SampleSettings(**{**stored, "device": settings.device, "from_image": None, "out": settings.out}), only


def _draw(pipe: Any, settings: SampleSettings, only: int | None) -> list[Image.Image]:
    """All images that the settings ask for, or the one with the number `only`."""
    import torch

    from ddim.noise import seeded_generators

    by_class = not draws_texts(pipe)
    _check_kind(settings, by_class)
    classes = pipe.unet.config.num_class_embeds if by_class else None  # the last one stands for no class
    labels = settings.class_labels or range((classes or 1) - 1)
    count = settings.batch or (len(labels) if classes else 16 if by_class else 1)
    numbers = range(count) if only is None else (only,)
    generators = seeded_generators(settings.seed, max(numbers) + 1)
    arguments: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "eta": settings.eta,
        "order": settings.order,
        "guidance_scale": settings.guidance_scale,
        "guidance_rescale": settings.guidance_rescale,
        "guidance_interval": settings.guidance_interval,
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
                arguments[name] = read_image(getattr(settings, name))
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
