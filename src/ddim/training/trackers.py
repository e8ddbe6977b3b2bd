"""Where a run is shown: TensorBoard, Weights & Biases and the like, through accelerate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddim.training.settings import TrainSettings


def start_trackers(accelerator: Any, settings: TrainSettings, step: int) -> None:
    """Begin to show a run that goes on after `step`.

    What an earlier run showed after that step, because it was killed after its checkpoint, TensorBoard forgets.
    """
    project = settings.tracker_project_name or ("." if settings.report_to == "tensorboard" else "ddim")
    accelerator.project_configuration.logging_dir = str(Path(settings.output_dir) / settings.logging_dir)
    options = {"tensorboard": {"purge_step": step + 1}} if step else {}
    accelerator.init_trackers(project, init_kwargs=options)
    told = {key: str(value) for key, value in dataclasses.asdict(settings).items() if key != "hub_token"}
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard" or not step:  # which shows them once already
            tracker.store_init_configuration(told)


def show_picture(accelerator: Any, name: str, picture: Image.Image, step: int) -> None:
    """Show a picture wherever the run is shown and pictures can be."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.tracker.add_image(name, np.asarray(picture), step, dataformats="HWC")
            tracker.tracker.flush()
        elif hasattr(tracker, "log_images"):
            tracker.log_images({name: [picture]}, step=step)
