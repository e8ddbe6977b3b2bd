"""The options of Stable Diffusion XL: second texts, what the model is told of sizes, and its refiner."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ddim.cli.checks import is_single_file
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from ddim.pipelines import DiffusionPipeline

SecondPrompt = Annotated[
    str | None,
    tyro.conf.arg(help="The text for the second text encoder of Stable Diffusion XL. If not given, the prompt."),
]
SecondNegativePrompt = Annotated[
    str | None,
    tyro.conf.arg(
        help="What guidance is to keep away from, for the second text encoder of Stable Diffusion XL. If not given, "
        "--negative-prompt."
    ),
]
OriginalSize = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(
        metavar="HEIGHT WIDTH",
        help="What Stable Diffusion XL is told of the size of the picture before it was resized: a small one makes it "
        "blurred. If not given, the size that is drawn.",
    ),
]
Crop = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(
        metavar="TOP LEFT",
        help="What Stable Diffusion XL is told of where the picture was cut, in pixels. If not given, 0 0, for things "
        "that are in the middle.",
    ),
]
TargetSize = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(
        metavar="HEIGHT WIDTH",
        help="What Stable Diffusion XL is told of the size that the picture is to have. If not given, the size that is "
        "drawn.",
    ),
]
NegativeOriginalSize = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(
        metavar="HEIGHT WIDTH",
        help="What is told of the --original-size with the negative prompt. If not given, --original-size.",
    ),
]
NegativeCrop = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(
        metavar="TOP LEFT",
        help="What is told of the --crop with the negative prompt. If not given, or 0 0, --crop.",
    ),
]
NegativeTargetSize = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(
        metavar="HEIGHT WIDTH",
        help="What is told of the --target-size with the negative prompt. If not given, --target-size.",
    ),
]
AestheticScore = Annotated[
    float | None,
    tyro.conf.arg(
        help="How good the picture is to look, told to a model that knows scores, as Stable Diffusion XL's refiner "
        "does. If not given, 6."
    ),
]
NegativeAestheticScore = Annotated[
    float | None,
    tyro.conf.arg(help="What is told of the --aesthetic-score with the negative prompt. If not given, 2.5."),
]
DenoisingStart = Annotated[
    float | None,
    tyro.conf.arg(
        help="The share of the way, from 0 to 1, that another model has gone: --image is what it left, with the noise "
        "of there. For Stable Diffusion XL. If not given, the way is gone from its beginning."
    ),
]
DenoisingEnd = Annotated[
    float | None,
    tyro.conf.arg(
        help="The share of the way, from 0 to 1, at which to stop, with the noise of there. For Stable Diffusion XL; "
        "for its refiner give --refiner, which hands over without a file between. If not given, the way is gone to "
        "its end."
    ),
]
Refiner = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="MODEL",
        help="A model that makes the last steps, such as Stable Diffusion XL's refiner: a folder or an id on the hub. "
        "If not given, the model makes all.",
    ),
]

# The settings that are told to the pipeline, by the names of its call's arguments.
TOLD = {
    "prompt_2": "prompt_2",
    "negative_prompt_2": "negative_prompt_2",
    "original_size": "original_size",
    "crop": "crops_coords_top_left",
    "target_size": "target_size",
    "negative_original_size": "negative_original_size",
    "negative_crop": "negative_crops_coords_top_left",
    "negative_target_size": "negative_target_size",
    "aesthetic_score": "aesthetic_score",
    "negative_aesthetic_score": "negative_aesthetic_score",
    "denoising_start": "denoising_start",
    "denoising_end": "denoising_end",
}


def told(settings: Any) -> dict[str, Any]:
    """What is given of them, as arguments of the pipeline's call."""
    return {theirs: value for ours, theirs in TOLD.items() if (value := getattr(settings, ours)) is not None}


def given(settings: Any) -> dict[str, Any]:
    """What is given of the options of Stable Diffusion XL, as the user types them."""
    values = {f"--{name.replace('_', '-')}": getattr(settings, name, None) for name in (*TOLD, "refiner")}
    return {option: value for option, value in values.items() if value is not None}


def check_parts(settings: Any, given: Collection[str]) -> None:
    """Refuse shares of the way that do not go together, or not with what the run starts from.

    Args:
        settings: with `denoising_start`, `denoising_end`, `refiner` and `image`.
        given: the names of the settings that were typed.

    Raises:
        ConfigError: says which option to leave out, or what to give.
    """
    start, end = settings.denoising_start, settings.denoising_end
    for option, share in (("--denoising-start", start), ("--denoising-end", end)):
        if share is not None and settings.refiner is not None:
            raise ConfigError(f"--refiner takes over at --refiner-start: leave {option} out")
    if start is not None and settings.image is None:
        raise ConfigError("--denoising-start needs what another model left there: give it as --image")
    if start is not None and "strength" in given:
        raise ConfigError("--strength says how much noise to add, and with --denoising-start none is: leave it out")
    if start is not None and start == 1:
        raise ConfigError("--denoising-start 1 leaves no step: give less")
    if start is not None and end is not None and start >= end:
        raise ConfigError(f"--denoising-start {start:g} must be below --denoising-end {end:g}")


def check_xl(is_xl: bool | None, model: str, options: Mapping[str, Any]) -> None:
    """Refuse the options for another model.

    Raises:
        ConfigError: says which to leave out.
    """
    if is_xl is False and options:
        raise ConfigError(
            f"{' and '.join(options)} {'is' if len(options) == 1 else 'are'} for Stable Diffusion XL, which {model} is "
            "not: leave it out, or give another --model"
        )


def open_refiner(settings: Any, pipe: DiffusionPipeline) -> Any:
    """The refiner of a command's settings, loaded as its model is; None without.

    Raises:
        ConfigError: it is no model of Stable Diffusion XL, or its latents are others.
        CheckpointError: there is no such model.
    """
    if settings.refiner is None:
        return None

    from ddim.cli.opening import open_pipeline
    from ddim.pipelines import StableDiffusionXLPipeline

    plain = {"model": settings.refiner, "lora": (), "textual_inversion": (), "controlnet": (), "vae": None}
    plain |= {"tokenizer": None, "prediction_type": None}
    if is_single_file(settings.refiner):  # it has no tokenizer, and the model has one, or was told of one
        place = settings.tokenizer if is_single_file(str(settings.model)) else settings.model
        plain |= {"tokenizer": place, "variant": None}
    refiner = open_pipeline(dataclasses.replace(settings, **plain))
    if not isinstance(refiner, StableDiffusionXLPipeline):
        raise ConfigError(f"--refiner {settings.refiner} is a {type(refiner).__name__}, and no Stable Diffusion XL")
    one, other = (each.components["vae"].config.latent_channels for each in (pipe, refiner))
    if one != other or refiner.scheduler.config.prediction_type is None:
        raise ConfigError(f"--refiner {settings.refiner} has latents of {other} channels, and the model's have {one}")
    refiner.set_progress_bar_config(disable=True)
    return StableDiffusionXLPipeline.from_pipe(refiner)
