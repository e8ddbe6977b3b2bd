"""What a model's configs say of it before it is loaded.

Only folders and bundled models are read, as that takes a millisecond and no PyTorch. The hub is asked whether it has
the model, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddim.checkpoint.files import read_json
from ddim.checkpoint.hub import Repository
from ddim.errors import CheckpointError

INDEX = "model_index.json"
PIXELS = ("DDIMPipeline", "DDPMPipeline")
TEXTS = tuple(
    f"StableDiffusion{family}{steered}{start}Pipeline"
    for family in ("", "XL")
    for steered in ("", "ControlNet")
    for start in ("", "Img2Img", "Inpaint")
)


@dataclass(frozen=True)
class Known:
    """What is known of a model. None means that nothing is.

    Attributes:
        draws_texts: whether it draws what a text says.
        class_count: how many classes can be asked for; None where the model knows none.
        timesteps: how many it was trained on.
        prediction_type: what its network predicts.
        factor: how many pixels a latent stands for, on each side.
        guidance: the guidance scale that it recommends.
        takes_scale: whether its network takes the guidance scale as an input.
        side: of the square pictures that it was trained on, in pixels.
        is_xl: whether it is Stable Diffusion XL; None where that is not known.
        has_controlnet: whether its folder has a ControlNet.
        teacher: the model that it was distilled from, as whoever distilled it named it.
    """

    draws_texts: bool
    class_count: int | None
    timesteps: int | None
    prediction_type: str | None
    factor: int | None
    guidance: float | None = None
    takes_scale: bool = False
    side: int | None = None
    is_xl: bool | None = None
    has_controlnet: bool = False
    teacher: str | None = None


# What all single files hold that are read: Stable Diffusion 1, 2 or XL.
SINGLE_FILE = Known(draws_texts=True, class_count=None, timesteps=1000, prediction_type=None, factor=None)


def find_index(repository: Repository) -> Path:
    """The local path of a pipeline's index.

    Raises:
        CheckpointError: there is none, so this is no pipeline; the message says what it is a part of one, if it is.
    """
    path = repository.find(INDEX)
    if path is not None:
        return path
    part = repository.find("config.json")
    kind = None if part is None else read_json(part).get("_class_name")
    what = f" but a part of one, a {kind:.100}" if isinstance(kind, str) else ""
    raise CheckpointError(f"{repository.name} has no {INDEX}: it is no pipeline{what}")


def known(model: str) -> Known | None:
    """What the configs of a folder or a bundled model say; None for a model of the hub, or one that is not understood.

    Raises:
        CheckpointError: there is no such model, it is no pipeline, or the hub cannot be reached.
    """
    repository = Repository(model)
    path = find_index(repository)
    if repository.folder is None:
        return None
    index = read_json(path)
    pipeline = index.get("_class_name")
    if pipeline not in (*PIXELS, *TEXTS):
        return None
    unet, scheduler, vae = (_config(repository, part) for part in ("unet", "scheduler", "vae"))
    classes, levels = unet.get("num_class_embeds"), vae.get("block_out_channels")
    prediction = scheduler.get("prediction_type", "epsilon")
    factor = 2 ** (len(levels) - 1) if isinstance(levels, list) and 0 < len(levels) < 10 else None
    latents = _count(unet.get("sample_size"))
    draws_texts = pipeline in TEXTS
    pixels = 1 if not draws_texts else factor  # that a position of the U-Net's stands for
    return Known(
        draws_texts=draws_texts,
        class_count=classes - 1 if pipeline in PIXELS and type(classes) is int else None,
        timesteps=_count(scheduler.get("num_train_timesteps", 1000)),
        prediction_type=prediction if isinstance(prediction, str) else None,
        factor=factor,
        side=None if latents is None or pixels is None else latents * pixels,
        is_xl=pipeline.startswith("StableDiffusionXL"),
        has_controlnet=bool(index.get("controlnet")),
        teacher=_teacher(repository),
        **guidance_of(unet, scheduler),
    )


def guidance_of(unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What the configs of a U-Net and a scheduler say of guidance, as arguments of `Known`."""
    scale = scheduler.get("recommended_guidance_scale")
    return {
        "guidance": float(scale) if isinstance(scale, (int, float)) else None,
        "takes_scale": unet.get("time_cond_proj_dim") is not None,
    }


def _teacher(repository: Repository) -> str | None:
    """The model that a student was distilled from, as its log of training says."""
    try:
        path = repository.find("training.json")
        said = {} if path is None else read_json(path)
    except CheckpointError:
        return None
    settings = said.get("settings")
    if said.get("kind") != "DistillSettings" or not isinstance(settings, dict):
        return None
    teacher = settings.get("model")
    return teacher if isinstance(teacher, str) else None


def _config(repository: Repository, part: str) -> dict[str, Any]:
    """The config of a part; empty if it is elsewhere or broken, of which loading the model tells more."""
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    try:
        path: Path | None = repository.find(name, part)
        return {} if path is None else read_json(path)
    except CheckpointError:
        return {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
