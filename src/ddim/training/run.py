"""From settings to a run: which objective is trained, and on which devices."""

from __future__ import annotations

from datetime import timedelta

import torch

from ddim.errors import require
from ddim.training.objective import Objective
from ddim.training.settings import PixelSettings, TrainSettings, VAESettings
from ddim.training.trainer import Trainer

# How long processes wait for the first one to encode the pictures.
ENCODING = timedelta(days=1)


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
    from ddim.training.text_to_image import text_to_image

    return text_to_image(settings)


def make_trainer(settings: TrainSettings) -> Trainer:
    """A run of what the settings say, ready to begin or to go on."""
    accelerate = require("accelerate", "train")
    shared = accelerate.state.AcceleratorState
    if shared._shared_state and shared().mixed_precision != settings.mixed_precision:
        shared._reset_state()  # an earlier run in this process had another precision
    accelerator = accelerate.Accelerator(
        mixed_precision=settings.mixed_precision,
        kwargs_handlers=[accelerate.InitProcessGroupKwargs(timeout=ENCODING)],
        log_with=None if settings.report_to == "none" else settings.report_to,
        project_dir=settings.output_dir,
    )
    return Trainer(settings, make_objective(settings), accelerator)
