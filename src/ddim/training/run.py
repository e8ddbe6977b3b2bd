"""From settings to a run: which objective is trained, and on which devices."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from ddim.errors import ConfigError, MissingExtraError, require
from ddim.training.objective import Objective
from ddim.training.settings import (
    ControlNetSettings,
    DistillSettings,
    LoraSettings,
    PixelSettings,
    TextToImageSettings,
    TextualInversionSettings,
    TrainSettings,
    VAESettings,
)
from ddim.training.trainer import Trainer

# How long processes wait for the first one to encode the pictures.
ENCODING = timedelta(days=1)

Kind = TypeVar("Kind", bound=TrainSettings)


def make_objective(settings: TrainSettings) -> Objective:
    """What the settings ask to be trained.

    Raises:
        ConfigError, DataError: settings or data that cannot work together.
    """
    torch.manual_seed(settings.seed)  # decides the weights of new networks
    if isinstance(settings, PixelSettings):
        from ddim.training.pixels import Pixels

        return Pixels(settings)
    if isinstance(settings, VAESettings):
        from ddim.training.autoencoder import Autoencoder

        return Autoencoder(settings)
    if isinstance(settings, TextualInversionSettings):
        from ddim.training.textual_inversion import TextualInversion

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as for text to image
        return TextualInversion(settings)
    if isinstance(settings, ControlNetSettings):
        from ddim.training.controlnet import control

        return control(settings)
    if isinstance(settings, LoraSettings):
        from ddim.training.lora import lora

        return lora(settings)
    from ddim.training.text_to_image import text_to_image

    assert isinstance(settings, TextToImageSettings)
    return text_to_image(settings)


def make_trainer(settings: TrainSettings) -> Trainer:
    """A run of what the settings say, ready to begin or to go on."""
    settings, accelerator = make_accelerator(settings)
    return Trainer(settings, make_objective(settings), accelerator)


def make_accelerator(settings: Kind) -> tuple[Kind, Any]:
    """What runs a training on the devices that there are, and the settings with the precision that is used.

    Raises:
        MissingExtraError: a library that the settings need is not installed.
        ConfigError: there is no such precision, or not on this device.
    """
    settings.check_installed()
    accelerate = require("accelerate", "train")
    precision = settings.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16", "fp16"):
        raise ConfigError(f"accelerate was told mixed precision {precision}, which is none of no, bf16 and fp16")
    settings = replace(settings, mixed_precision=precision)  # type: ignore[arg-type]  # it is one of them
    if settings.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    shared = accelerate.state.AcceleratorState
    if shared._shared_state and shared().mixed_precision != settings.mixed_precision:
        shared._reset_state()  # an earlier run in this process had another precision
    accelerator = accelerate.Accelerator(
        mixed_precision=settings.mixed_precision,
        kwargs_handlers=[accelerate.InitProcessGroupKwargs(timeout=ENCODING)],
        log_with=list(settings.trackers) or None,
        project_dir=settings.output_dir,
    )
    if precision == "fp16" and accelerator.device.type == "cpu":  # which accelerate lets pass, and does not do
        raise ConfigError("mixed_precision=fp16 is for GPUs, and this run is on the processor: give bf16 or no")
    lost = [name for name in settings.trackers if name not in map(str, accelerator.log_with)]
    if lost:
        raise MissingExtraError(
            f"report_to={settings.report_to}: accelerate does not find {', '.join(lost)}: install it anew"
        )
    return settings, accelerator


def distill(settings: DistillSettings) -> Path:
    """Make a student of few steps, stage by stage; returns its folder, which `from_pretrained` loads.

    A stage that is finished is not made again, and one that was interrupted goes on.

    Raises:
        ConfigError, DataError: settings, model or data that cannot work together, before anything is written.
        Interrupted, NonFiniteError: as `train`.
    """
    from ddim.pipelines import DiffusionPipeline
    from ddim.scheduler.recommended import suitable_guidance
    from ddim.training.distillation import Distillation, check_fits, read_prompts, stages_of

    settings.check_installed()
    teacher = DiffusionPipeline.from_pretrained(settings.model, **settings.hub)
    check_fits(settings, teacher)
    prompts = read_prompts(settings) if teacher.draws_texts else []
    given = settings.guidance_scale, settings.guidance_rescale
    stages = stages_of(settings, suitable_guidance(teacher.scheduler.config, teacher.draws_texts, *given))
    folder = Path(settings.output_dir)
    for stage in stages:
        is_last = stage is stages[-1]
        own = replace(settings, output_dir=str(folder if is_last else folder / f"steps-{stage.steps}"))
        if is_last or not (Path(own.output_dir) / "training.json").is_file():
            own, accelerator = make_accelerator(own)
            torch.manual_seed(settings.seed)
            Trainer(own, Distillation(own, stage, teacher, prompts), accelerator).run()
        if not is_last:
            teacher = DiffusionPipeline.from_pretrained(own.output_dir)
    return folder
