"""The options of Stable Diffusion XL: second texts, what the model is told of sizes, and its refiner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import tyro

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
}


def told(settings: Any) -> dict[str, Any]:
    """What is given of them, as arguments of the pipeline's call."""
    return {theirs: value for ours, theirs in TOLD.items() if (value := getattr(settings, ours)) is not None}


def given(settings: Any) -> dict[str, Any]:
    """What is given of the options of Stable Diffusion XL, as the user types them."""
    values = {f"--{name.replace('_', '-')}": getattr(settings, name) for name in (*TOLD, "refiner")}
    return {option: value for option, value in values.items() if value is not None}


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
    plain |= {"tokenizer": None}
    refiner = open_pipeline(dataclasses.replace(settings, **plain))
    if not isinstance(refiner, StableDiffusionXLPipeline):
        raise ConfigError(f"--refiner {settings.refiner} is a {type(refiner).__name__}, and no Stable Diffusion XL")
    one, other = (each.components["vae"].config.latent_channels for each in (pipe, refiner))
    if one != other or refiner.scheduler.config.prediction_type is None:
        raise ConfigError(f"--refiner {settings.refiner} has latents of {other} channels, and the model's have {one}")
    refiner.set_progress_bar_config(disable=True)
    return StableDiffusionXLPipeline.from_pipe(refiner)
