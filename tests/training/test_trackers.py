"""Where a run is shown: TensorBoard without doubled points, and services whose library is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_training import Place, as_options, place, text_settings

from ddim.training import train
from ddim.training.interruption import Interrupted
from ddim.training.trainer import Trainer

__all__ = ["place"]

SHOWN: dict[str, Any] = {"report_to": "tensorboard", "logging_steps": 1, "validation_steps": 2, "max_train_steps": 8}
SHOWN |= {"validation_prompts": ("a red box", "two"), "validation_inference_steps": 1}


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(folder), size_guidance=dict.fromkeys(accumulator.DEFAULT_SIZE_GUIDANCE, 0))
    shown.Reload()
    return shown


@pytest.mark.parametrize("from_checkpoint", ["latest", "checkpoint-3"])
@pytest.mark.thin(fast=["latest"])
def test_a_run_that_goes_on_shows_no_point_twice(
    from_checkpoint: str, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = text_settings(tmp_path, place, **SHOWN)  # with a checkpoint at each third step
    validate = Trainer._validate

    def killed(self: Trainer, most: int | None = None) -> None:
        validate(self, most)
        if self.step == 8:
            raise OSError("killed")  # before the last checkpoint

    with monkeypatch.context() as patched:
        patched.setattr(
            Trainer, "_checkpoint", lambda self, bar, together: self.save() or 0.0 if self.step < 8 else 0.0
        )
        patched.setattr(Trainer, "_validate", killed)
        with pytest.raises(OSError, match="killed"):
            train(settings)
    train(text_settings(tmp_path, place, **SHOWN, resume_from_checkpoint=from_checkpoint))
    shown = events(tmp_path / "logs")
    for tag in ("loss", "learning_rate", "gradient_norm"):
        assert [point.step for point in shown.Scalars(tag)] == list(range(1, 9))
    assert [picture.step for picture in shown.Images("samples")] == [2, 4, 6, 8]
    whole = events(train(text_settings(tmp_path / "whole", place, **SHOWN)) / "logs")
    assert [point.value for point in shown.Scalars("loss")] == [point.value for point in whole.Scalars("loss")]


def test_the_folder_of_the_events_and_the_name_of_the_project(tmp_path: Path, place: Place) -> None:
    chosen = {**SHOWN, "max_train_steps": 1, "validation_steps": 0}
    train(text_settings(tmp_path / "a", place, **chosen, logging_dir="events", tracker_project_name="mine"))
    assert len(events(tmp_path / "a" / "events" / "mine").Scalars("loss")) == 1
    train(text_settings(tmp_path / "b", place, **chosen, logging_dir=str(tmp_path / "elsewhere")))
    assert len(events(tmp_path / "elsewhere").Scalars("loss")) == 1
    assert not (tmp_path / "b" / "logs").exists()


def test_previews_carry_their_captions_in_files_and_in_tensorboard(tmp_path: Path, place: Place) -> None:
    chosen = {**SHOWN, "max_train_steps": 1, "num_validation_images": 2}
    train(text_settings(tmp_path, place, **chosen))
    with Image.open(tmp_path / "samples" / "step-0000001.png") as grid:
        pixels = np.asarray(grid.convert("L"))
    assert pixels.shape[0] > 128 + 10  # pictures of 16x16 are enlarged so far that words under them can be read
    assert pixels.shape[1] == 4 * 130 - 2
    for column in range(4):
        assert (pixels[128:, 130 * column : 130 * column + 128] < 100).any()
    (picture,) = events(tmp_path / "logs").Images("samples")
    assert (picture.width, picture.height) == pixels.shape[::-1]


FAKE = """
import json, os
class Image:
    def __init__(self, image): self.size = image.size
class Config:
    def update(self, values, allow_val_change): note("config", sorted(values))
class Run:
    def log(self, values, step, **more): note("log", sorted(values), step)
    def finish(self): note("finish")
def note(*what):
    with open(os.environ["NOTES"], "a") as file: file.write(json.dumps(what) + "\\n")
config = Config()
def init(project): note("init", project); return Run()
"""


# The fast test beside it is test_a_run_that_goes_on_shows_no_point_twice.
@pytest.mark.slow
def test_a_service_is_shown_losses_and_samples(tmp_path: Path, place: Place) -> None:
    (tmp_path / "wandb.py").write_text(FAKE)
    (tmp_path / "wandb-1.0.dist-info").mkdir()
    (tmp_path / "wandb-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 1.0\n")
    notes = tmp_path / "notes"
    chosen = {**SHOWN, "report_to": "wandb", "max_train_steps": 2}
    command = [sys.executable, "-m", "ddim", "train", "text-to-image"]
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*command, *as_options(text_settings(tmp_path / "run", place, **chosen)), "--hub_token", "hf_x"],
        env={**os.environ, "PYTHONPATH": paths, "NOTES": str(notes), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = notes.read_text().splitlines()
    kinds = Counter(line.split('"')[1] for line in lines)
    assert kinds == {"init": 1, "config": 1, "log": 3, "finish": 1}
    assert lines[0] == '["init", "ddim"]'
    assert "learning_rate" in lines[1]
    assert "hub_token" not in lines[1]
    assert '["log", ["samples"], 2]' in lines


def test_an_interrupted_run_closes_what_it_shows(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def agree(self: Trainer, began: float) -> None:
        self.stops = self.step == 2

    monkeypatch.setattr(Trainer, "_agree", agree)
    with pytest.raises(Interrupted):
        train(text_settings(tmp_path, place, **SHOWN))
    assert [point.step for point in events(tmp_path / "logs").Scalars("loss")] == [1, 2]
