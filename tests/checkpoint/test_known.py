"""What is known of a model before it is loaded: what its pipeline says when it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny
from tiny_sd import tiny_reference

from ddim import DiffusionPipeline
from ddim.checkpoint.hub import BUNDLED
from ddim.checkpoint.known import Known, known
from ddim.errors import CheckpointError
from ddim.pipelines.latents import LatentPipeline


def check(model: str, teacher: str | None = None) -> None:
    found, pipe = known(model), DiffusionPipeline.from_pretrained(model)
    assert found == Known(
        pipe.draws_texts,
        pipe.class_count,
        pipe.scheduler.config.num_train_timesteps,
        pipe.scheduler.config.prediction_type,
        pipe.vae_scale_factor if isinstance(pipe, LatentPipeline) else None,
        pipe.scheduler.config.recommended_guidance_scale,
        pipe.unet.config.get("time_cond_proj_dim") is not None,
        pipe.picture_shape()[1],
        is_xl=False,
        teacher=teacher,
    )


@pytest.mark.parametrize(
    ("model", "teacher"), [("digits", None), ("digits-fast", "digits"), ("emoji", None), ("emoji-fast", "emoji")]
)
def test_the_bundled_models(model: str, teacher: str | None) -> None:
    check(model, teacher)


@pytest.mark.parametrize("said", ['{"kind": "DistillSettings"}', '{"kind": "TrainSettings"}', "[]", "{", "\0"])
def test_a_log_of_training_that_names_no_teacher(tmp_path: Path, said: str) -> None:
    save_tiny(tmp_path)
    (tmp_path / "training.json").write_text(said)
    check(str(tmp_path))


def test_other_models(tmp_path: Path) -> None:
    check(save_tiny(tmp_path / "plain"))
    check(save_tiny(tmp_path / "classes", num_class_embeds=4))
    tiny_reference(tmp_path / "sd", 2, prediction_type="v_prediction")
    check(str(tmp_path / "sd"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("unet/config.json", "{"),
        ("unet/config.json", {"num_class_embeds": "many"}),
        ("unet/config.json", None),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "x", "prediction_type": 7}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": -1}),
        ("model_index.json", {"_class_name": "OtherPipeline"}),
        ("model_index.json", {"_class_name": ["a", "list"]}),
    ],
)
def test_what_is_broken_is_left_to_the_loading(file: str, content: Any, tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "digits", tmp_path / "model")
    path = tmp_path / "model" / file
    path.unlink()
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    found = known(str(tmp_path / "model"))
    assert found is None if file == "model_index.json" else found is not None and not found.draws_texts


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no model_index\.json: it is no pipeline"):
        known(str(tmp_path))


def test_a_part_of_a_pipeline_is_called_so() -> None:
    with pytest.raises(CheckpointError, match="it is no pipeline but a part of one, a ControlNetModel"):
        known("emoji-layout")
