"""`ddim invert`: a picture's noise, saved so that `ddim sample --from` makes the picture of it again."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ddim._version import __version__
from ddim.cli.fitting import fit_pictures
from ddim.cli.opening import check_kind, check_model, open_pipeline
from ddim.cli.options import (
    Autoencoder,
    Backend,
    Device,
    Loras,
    Model,
    NegativePrompt,
    Overwrite,
    PictureFiles,
    Precision,
    Predicts,
    PromptWeights,
    Spacing,
    Steps,
    TextualInversions,
    TokenizerPlace,
    Variant,
)
from ddim.cli.pictures import check_images, choose_scale, made_by, save_pictures
from ddim.cli.places import announce, place
from ddim.cli.recipe import PICTURES, read_noise_recipe, read_plan
from ddim.errors import CheckpointError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ddim.cli.known import Kind
    from ddim.cli.sample import SampleSettings
    from ddim.pipelines import DiffusionPipeline
    from ddim.plan import SamplingPlan
    from ddim.sampling import Denoiser


Inversion = Literal["ddim", "fixed-point", "bidirectional"]


@dataclass(frozen=True)
class InvertSettings:
    """Find the noise from which a model would draw a real picture, and say how near the way back comes to the picture.

    The noise is saved with all that is needed to draw the picture again, which `ddim sample --from noise.safetensors`
    does.

        ddim invert heart.png --prompt "a red heart" --out heart.safetensors
        ddim invert seven.png --model digits --class-label 7 --method fixed-point
    """

    images: tyro.conf.Positional[PictureFiles]
    model: Model = "emoji"
    lora: Loras = ()
    textual_inversion: TextualInversions = ()
    weights: PromptWeights = None
    vae: Autoencoder = None
    variant: Variant = None
    tokenizer: TokenizerPlace = None
    prediction_type: Predicts = None
    prompt: str | None = None
    """A text that says what the pictures show, for a text-to-image model. If not given, the empty text."""
    negative_prompt: NegativePrompt = None
    class_label: int | None = None
    """The class that the pictures show, for a class-conditional model. If not given, no class in particular."""
    method: Annotated[
        Inversion,
        tyro.conf.arg(
            help="How to find the noise. ddim goes the sampler's steps backwards, as in the paper, and comes back "
            "near the picture. fixed-point solves each step for where it came from, which is some ten times the work. "
            "bidirectional is a sampler that can be reversed exactly.",
        ),
    ] = "ddim"
    steps: Steps = 50
    guidance_scale: Annotated[
        float,
        tyro.conf.arg(
            help="How strongly to prefer the text or class over none. The default of 1, which is no guidance, comes "
            "back best, whatever the model recommends for drawing.",
        ),
    ] = 1.0
    guidance_rescale: float = 0.0
    """How much of the contrast that guidance adds to take back, from 0 (none) to 1 (all)."""
    spacing: Spacing = None
    check: bool = True
    """Draw the pictures again and say how near that comes, which takes as long as the inversion itself."""
    dtype: Annotated[
        Precision | None,
        tyro.conf.arg(
            help="The type of number that the network computes in; between its calls, the sample is kept in float64. "
            "If not given, float32, or with OpenVINO what suits the processor.",
        ),
    ] = None
    backend: Backend = "eager"
    device: Device = None
    out: str = "noise.safetensors"
    """The file to write. Its name ends in .safetensors."""
    overwrite: Overwrite = False


def run_invert(settings: InvertSettings) -> None:
    started = time.perf_counter()

    def suits(kind: Kind) -> None:
        _check_kind(kind, settings)

    check_model(settings, suits)
    announce(settings.out, settings.overwrite)
    check_images(settings.images)
    pipe = open_pipeline(settings, suits)
    import torch

    from ddim.checkpoint.files import save_tensors
    from ddim.inversion import METHODS, widened

    pictures = fit_pictures(settings.images, pipe)
    plan = pipe.scheduler.plan(settings.steps).unclipped()
    way = METHODS[settings.method]
    with torch.no_grad(), pipe.progress_bar(len(plan) * (1 + settings.check)) as bar:
        x0 = widened(pipe.encode(pictures))
        denoiser = _denoiser(pipe, plan, len(x0), settings)
        states = way.encode(denoiser, x0, plan, lambda step: bar.update())
        back = way.decode(denoiser, states, plan, lambda step: bar.update()) if settings.check else None
    said = {
        "ddim": json.dumps({"version": __version__, "command": "invert", "settings": dataclasses.asdict(settings)}),
        "plan": json.dumps(plan.to_dict()),
    }
    out = place(settings.out, settings.overwrite)
    save_tensors(out, {f"state.{index}": state for index, state in enumerate(states)}, said)
    print(out)
    if back is not None:
        print(_how_near(pipe, pictures, x0, back), file=sys.stderr)
    print(
        f"{len(x0)} image{'s' * (len(x0) > 1)} inverted by {settings.method} with {settings.model}: {settings.steps} "
        f"steps, guidance {settings.guidance_scale:g}, {time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )


def sample_again(path: str, given: SampleSettings) -> None:
    """Write the pictures of noise that `ddim invert` saved.

    Args:
        path: the file of the noise, which may be from anyone.
        given: what was typed beside it.

    Raises:
        CheckpointError: no such file, or not of `ddim invert`.
        ConfigError: what it says, or what was typed, cannot be followed.
    """
    import torch

    from ddim.checkpoint.files import read_metadata, read_tensors
    from ddim.cli.batches import chunk_size, chunks
    from ddim.inversion import METHODS, widened

    tensors = read_tensors(path)
    said = read_metadata(path)
    settings = read_noise_recipe(path, said, given)
    plan = read_plan(path, said)
    way = METHODS[settings.method]
    states = [tensors.get(f"state.{index}") for index in range(way.states)]
    settings = dataclasses.replace(settings, spacing=None)  # the plan has the spacing
    pipe = open_pipeline(settings, lambda kind: _check_kind(kind, settings))
    found = _noise(path, states, pipe)
    count, shape = len(found[0]), pipe.picture_shape()
    images: list[Image.Image] = []
    parts = list(chunks(range(count), chunk_size(pipe, (shape[2], shape[1]))))
    with torch.no_grad(), pipe.progress_bar(len(plan) * len(parts)) as bar:
        for part in parts:
            placed = tuple(widened(state[part.start : part.stop].to(pipe.device)) for state in found)
            denoiser = _denoiser(pipe, plan, len(part), settings)
            x = way.decode(denoiser, placed, plan, lambda step: bar.update())
            images += pipe.decode(x.to(pipe.dtype))
    made = made_by("invert", settings, noise=path)
    chosen = choose_scale(given.scale, images[0].size, len(images), given.out)
    for written in save_pictures(images, given.out, made, overwrite=given.overwrite, scale=chosen):
        print(written)


def _noise(path: str, states: Sequence[Tensor | None], pipe: DiffusionPipeline) -> list[Tensor]:
    """The states of a file of noise, (n c h w) each, if a pipeline can draw of them.

    Raises:
        CheckpointError: they are missing, of other shapes or types, or not finite.
    """
    found = [state for state in states if state is not None]
    if len(found) < len(states):
        raise CheckpointError(f"{path} is not noise that `ddim invert` saved: give --from the file that it wrote")
    shape = pipe.sample_shape(1)[1:]
    counts = {len(state) if state.ndim else 0 for state in found}
    if any(tuple(state.shape[1:]) != shape for state in found) or len(counts) != 1:
        raise CheckpointError(f"{path} holds noise of shape {tuple(found[0].shape)}, the model needs (n, *{shape})")
    if not 1 <= min(counts) <= PICTURES:
        raise CheckpointError(f"{path} holds noise of {min(counts)} pictures: from 1 to {PICTURES} are drawn")
    if not all(state.is_floating_point() and bool(state.isfinite().all()) for state in found):
        raise CheckpointError(f"{path} holds noise that is no finite numbers")
    return found


def _check_kind(kind: Kind, settings: InvertSettings) -> None:
    check_kind(
        kind,
        settings.model,
        for_texts={"--prompt": settings.prompt, "--negative-prompt": settings.negative_prompt},
        for_classes={"--class-label": settings.class_label},
    )


def _denoiser(pipe: DiffusionPipeline, plan: SamplingPlan, count: int, settings: InvertSettings) -> Denoiser:
    from ddim.inversion import keeping

    conditions: dict[str, Any] = {
        "guidance_scale": settings.guidance_scale,
        "guidance_rescale": settings.guidance_rescale,
    }
    if pipe.draws_texts:
        conditions |= {"prompt": settings.prompt, "negative_prompt": settings.negative_prompt}
    else:
        conditions["class_labels"] = settings.class_label
    return keeping(pipe.denoiser(plan, count, **conditions), pipe.dtype)


def _how_near(pipe: DiffusionPipeline, pictures: list[Image.Image], x0: Tensor, back: Tensor) -> str:
    """The error of the way there and back, in words: of the samples, and of the pictures as in the paper's Table 2.

    The pictures are compared with those that the model was given and with the files. The latter has the autoencoder's
    error too, if the model has one.
    """
    from ddim.pipelines.inputs import to_tensor

    channels, height, width = pipe.picture_shape()
    files = to_tensor(pictures, (height, width), factor=1, channels=channels, latents=0).double() / 2 + 0.5
    first, second = (pipe.decode(x.to(pipe.dtype), "pt").double().cpu() for x in (x0, back))
    error, whole = (float((given - second).square().mean()) for given in (first, files))
    largest = float((back - x0).abs().max())
    return (
        f"there and back: off by {largest:.2g} at most in model space; mean square {error:.2g} of pixels in [0, 1], "
        f"and {whole:.2g} against the file{'s' * (len(pictures) > 1)} at {width}x{height}"
    )
