"""Training low-rank adapters: what is trained and saved, and that others can load it."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_hub import FakeApi
from PIL import Image
from tiny_sd import tiny_reference
from tiny_training import Place, assert_same, assert_same_runs, interrupt, lora_settings, place
from torch.utils.data import DataLoader

import ddim
from ddim.checkpoint import read_json, read_metadata, read_tensors
from ddim.cli import main
from ddim.errors import CheckpointError, DDIMError
from ddim.lora import METADATA, WEIGHTS
from ddim.pipelines.words import read_word_file
from ddim.training import train
from ddim.training.run import make_trainer
from ddim.training.trainer import Trainer

__all__ = ["place"]

EVERYTHING: dict[str, Any] = {
    "random_background": True,
    "random_flip": True,
    "gradient_accumulation_steps": 2,
    "snr_gamma": 5.0,
    "noise_offset": 0.1,
    "input_perturbation": 0.1,
    "use_ema": True,
    "ema_decay": 0.9,
    "train_text_encoder": True,
}


@pytest.fixture(scope="module", params=[1, 2], ids=["SD 1", "SD 2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"sd{request.param}")
    tiny_reference(folder, request.param)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    tiny_reference(folder, 1)
    return folder


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / WEIGHTS)


def image(pipe: Any) -> np.ndarray[Any, Any]:
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
    return np.asarray(pipe("a photo of a red cat", latents=latents, **options).images)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        pytest.param(1, True, id="SD 1-True"),
        pytest.param(2, False, id="SD 2-False"),
        pytest.param(1, False, id="SD 1-False", marks=pytest.mark.slow),  # these two combine the same once more
        pytest.param(2, True, id="SD 2-True", marks=pytest.mark.slow),
    ],
    indirect=["model"],
)
@pytest.mark.thin(every=2)
def test_what_is_saved_gives_the_same_image_in_diffusers(text: bool, model: Path, tmp_path: Path, place: Place) -> None:
    diffusers = pytest.importorskip("diffusers")
    changes = {"learning_rate": 0.05, "train_text_encoder": text, "rank": 3, "random_background": True}
    folder = train(lora_settings(tmp_path, place, model, **changes))
    parts = {key.split(".")[0] for key in adapters(folder)}
    assert parts == ({"unet", "text_encoder"} if text else {"unet"})
    assert {tensor.shape[0] for key, tensor in adapters(folder).items() if ".lora_A." in key} == {3}
    images = []
    for kind in (diffusers.DiffusionPipeline, ddim.DiffusionPipeline):
        pipe = kind.from_pretrained(model)
        before = image(pipe)
        pipe.load_lora_weights(folder)
        images.append(image(pipe))
        assert np.abs(images[-1] - before).max() > 0.01  # it has learnt something
    assert np.abs(images[0] - images[1]).max() < 1e-4
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["cache", "checkpoint-3", "checkpoint-6", WEIGHTS, "training.json", "words.json"]
    assert read_json(folder / "training.json")["kind"] == "LoraSettings"


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.thin(fast=["True"])
def test_only_adapters_change_and_all_of_them(text: bool, first: Path, tmp_path: Path, place: Place) -> None:
    trainer = make_trainer(lora_settings(tmp_path, place, first, train_text_encoder=text))
    before = {name: value.clone() for name, value in trainer.objective.named_parameters()}
    trainer.run()
    after = {name: p for name, p in trainer.objective.named_parameters() if p.device.type != "meta"}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    assert changed == {f"networks.{name}" for name in trainer.names}
    assert any("text_encoder" in name for name in changed) == text
    stored = read_tensors(tmp_path / "checkpoint-6" / "model.safetensors")
    assert {f"networks.{name}" for name in stored} == changed
    assert len(adapters(tmp_path)) == len(changed)
    # The pipeline that was fine-tuned is as it was, too.
    assert not list(first.rglob("*lora*"))


# The fast test beside it is test_the_loss_falls of test_pixels.py.
@pytest.mark.slow
def test_the_loss_falls(first: Path, tmp_path: Path, place: Place) -> None:
    changes = {"max_train_steps": 60, "learning_rate": 0.02, "rank": 8, "checkpointing_steps": 1000}
    trainer = make_trainer(lora_settings(tmp_path, place, first, **changes, max_grad_norm=10.0))
    trainer.objective.prepare({})
    batches = list(itertools.islice(DataLoader(trainer.objective.dataset(), 12, sampler=range(96)), 8))

    def loss() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return sum(float(trainer.objective(batch).loss.mean()) for batch in batches)

    before = loss()
    trainer.run()
    assert loss() < 0.95 * before


def gradient_norm(trainer: Trainer) -> float:
    slopes = [parameter.grad for parameter in trainer.objective.parameters() if parameter.grad is not None]
    assert len(slopes) == len(trainer.names)
    return float(torch.stack([slope.norm() for slope in slopes]).norm())


@pytest.mark.parametrize("limit", [1e-3, 1e6])
@pytest.mark.thin(every=2)
def test_the_norm_of_all_adapters_gradients_is_clipped_at_every_step(
    limit: float, first: Path, tmp_path: Path, place: Place
) -> None:
    trainer = make_trainer(
        lora_settings(tmp_path, place, first, max_grad_norm=limit, train_text_encoder=True, max_train_steps=4)
    )
    norms: list[tuple[float, float]] = []
    clip = trainer.accelerator.clip_grad_norm_

    def measured(*arguments: Any) -> Any:
        before = gradient_norm(trainer)
        reported = clip(*arguments)
        assert float(reported) == pytest.approx(before, rel=1e-4)
        norms.append((before, gradient_norm(trainer)))
        return reported

    trainer.accelerator.clip_grad_norm_ = measured
    trainer.run()
    assert len(norms) == 4
    for before, after in norms:
        assert before > 1e-3
        assert after == pytest.approx(min(limit, before), rel=1e-2)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        pytest.param(1, {}, id="SD 1"),
        # Resuming in bf16 is also tested with text to image, and with the layers of SD 2 when it is fine-tuned.
        pytest.param(2, {"mixed_precision": "bf16"}, id="SD 2 in bf16", marks=pytest.mark.slow),
    ],
    indirect=["model"],
)
def test_a_run_in_two_parts_ends_with_the_same_weights(
    changes: dict[str, Any], model: Path, tmp_path: Path, place: Place
) -> None:
    train(lora_settings(tmp_path / "whole", place, model, **EVERYTHING, **changes))
    parts = lora_settings(tmp_path / "parts", place, model, **EVERYTHING, **changes)
    interrupt(parts)
    shutil.rmtree(tmp_path / "parts" / "cache")
    train(parts)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")
    assert_same(adapters(tmp_path / "whole"), adapters(tmp_path / "parts"))


def test_captions_that_are_cached_change_nothing(first: Path, tmp_path: Path, place: Place) -> None:
    saved = []
    for cache in (True, False):
        trainer = make_trainer(lora_settings(tmp_path / str(cache), place, first, cache_text_embeddings=cache))
        saved.append(adapters(trainer.run()))
        assert (getattr(trainer.objective, "texts", None) is not None) == cache
    for name, value in saved[0].items():
        torch.testing.assert_close(value, saved[1][name], rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_result(first: Path, tmp_path: Path, place: Place) -> None:
    plain, less = (
        adapters(
            train(
                lora_settings(
                    tmp_path / str(on),
                    place,
                    first,
                    gradient_checkpointing=on,
                    train_text_encoder=True,
                    max_train_steps=2,
                )
            )
        )
        for on in (False, True)
    )
    for name, value in plain.items():
        torch.testing.assert_close(less[name], value, rtol=1e-3, atol=1e-6)


def test_the_average_is_saved_if_there_is_one(first: Path, tmp_path: Path, place: Place) -> None:
    folder = train(lora_settings(tmp_path, place, first, use_ema=True, ema_decay=0.9))
    average, plain = (read_tensors(folder / "checkpoint-6" / f"{name}.safetensors") for name in ("average", "model"))
    saved = {key.replace(".weight", ".default.weight"): value for key, value in adapters(folder).items()}
    assert_same(saved, average)
    assert any(not torch.equal(average[name], plain[name]) for name in plain)


def test_the_adapters_alone_are_pushed(
    first: Path, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = type("Api", (FakeApi,), {})
    monkeypatch.setattr("huggingface_hub.HfApi", api)
    train(lora_settings(tmp_path / "my-style", place, first, push_to_hub=True, max_train_steps=1))
    assert api.created[0] == "my-style"
    # Not the pictures' latents, the checkpoints, or where they are on this machine.
    assert api.files == {WEIGHTS, "words.json"}
    api.error = ConnectionError("no route")
    with pytest.raises(CheckpointError, match="no route"):
        train(lora_settings(tmp_path / "other", place, first, push_to_hub=True, max_train_steps=1))
    assert {WEIGHTS, "training.json", "checkpoint-1"} < {path.name for path in (tmp_path / "other").iterdir()}


def test_the_words_of_the_captions_lie_beside_the_adapters(first: Path, tmp_path: Path, place: Place) -> None:
    folder = train(lora_settings(tmp_path, place, first, max_train_steps=1))
    assert read_word_file(folder / "words.json").unknown("a red square, a cat") == {"cat": ()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.thin(fast=["float16"])
def test_the_saved_type_and_the_preview(dtype: str, first: Path, tmp_path: Path, place: Place) -> None:
    changes = {"save_dtype": dtype, "validation_steps": 6, "validation_prompts": ("a red cat", "a dog")}
    folder = train(lora_settings(tmp_path, place, first, **changes))
    assert {tensor.dtype for tensor in adapters(folder).values()} == {getattr(torch, dtype)}
    with Image.open(folder / "samples" / "step-0000006.png") as grid:
        assert grid.size[0] >= 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"pretrained_model_name_or_path": "/no/such/model"}, "no/such/model"),
        ({"resolution": 18}, "multiple of 4"),
        ({"rescale_betas_zero_snr": True}, "v_prediction"),
        ({"caption_dropout": 1.5}, "caption_dropout"),
        ({"train_data_dir": None}, "dataset_name or train_data_dir"),
        ({"caption_column": "said"}, "said"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, first: Path, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((DDIMError, ValueError), match=message):
        train(lora_settings(tmp_path / "run", place, **{"model": first, **changes}))
    assert not (tmp_path / "run").exists()


def test_the_command_line_in_diffusers_spelling(
    first: Path, tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = (
        f"--pretrained_model_name_or_path {first} --train_data_dir {place.data} --output_dir {out} --rank 2 "
        "--caption_column text --resolution 16 --center_crop --random_flip --train_batch_size 2 --max_train_steps 2 "
        "--learning_rate 1e-4 --lr_scheduler constant --lr_warmup_steps 0 --snr_gamma 5 --seed 42 --mixed_precision no "
        "--report_to none --checkpointing_steps 500 --validation_epochs 100 --noise_offset 0.05 --max_grad_norm 1 "
        "--gradient_checkpointing --dataloader_num_workers 0 --adam_weight_decay 1e-2 --gradient_accumulation_steps 1"
    )
    assert main(["train", "lora", *options.split(), "--validation_prompts", "a red cat", "a dog"]) == 0
    assert capsys.readouterr().out.strip().endswith(str(out))
    header = read_metadata(out / WEIGHTS)
    assert json.loads(header[METADATA])["unet.r"] == 2
    settings = read_json(out / "training.json")["settings"]
    assert (settings["seed"], settings["validation_prompts"]) == (42, ["a red cat", "a dog"])
    assert main(["train", "lora", "--output-dir", str(tmp_path / "x"), "--train-data-dir", "/no/such"]) == 1
    assert "/no/such" in capsys.readouterr().err
