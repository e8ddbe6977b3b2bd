"""Training text to image: what is learnt and saved, fine-tuning, and that an interruption changes nothing."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import tiny_reference
from tiny_training import (
    SIZE,
    Place,
    as_options,
    assert_same,
    assert_same_runs,
    interrupt,
    losses_of,
    place,
    text_settings,
)

import ddim
from ddim.checkpoint import read_json, read_tensors, write_json
from ddim.errors import ConfigError
from ddim.training import train
from ddim.training.checkpoints import checkpoints
from ddim.training.run import make_objective, make_trainer

__all__ = ["place"]

ZERO_SNR: dict[str, Any] = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
# All at once that is random or remembered.
EVERYTHING: dict[str, Any] = {
    **ZERO_SNR,
    "random_background": True,
    "random_flip": True,
    "caption_dropout": 0.3,
    "dropout": 0.2,
    "gradient_accumulation_steps": 2,
    "snr_gamma": 5.0,
    "noise_offset": 0.1,
    "input_perturbation": 0.1,
}


def unet(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors")


def text_encoder(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "text_encoder" / "model.safetensors")


@pytest.fixture(scope="module", params=[1, 2], ids=["SD 1", "SD 2"])
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"sd{request.param}")
    tiny_reference(folder, request.param)
    return folder


def both_sample(folder: Path, prompt: str, steps: int, **options: Any) -> None:
    """Ours and diffusers' pipeline from a folder make the same image of the same latents."""
    diffusers = pytest.importorskip("diffusers")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = []
    for pipe in (diffusers.DiffusionPipeline.from_pretrained(folder), ddim.DiffusionPipeline.from_pretrained(folder)):
        pipe.set_progress_bar_config(disable=True)
        images.append(pipe(prompt, num_inference_steps=steps, latents=latents, output_type="np", **options).images)
    assert images[0].shape == images[1].shape == (1, SIZE, SIZE, 3)
    assert images[0].std() > 0.02
    assert np.abs(images[0] - images[1]).max() < 1e-4


# --- what is saved ---------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_pipeline_that_says_what_was_trained_and_diffusers_agrees(tmp_path: Path, place: Place) -> None:
    chosen = text_settings(
        tmp_path,
        place,
        **ZERO_SNR,
        snr_gamma=5.0,
        validation_steps=6,
        validation_prompts=("a red square", "a blue tile"),
        report_to="tensorboard",
    )
    folder = train(chosen)
    pipe = ddim.DiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipe, ddim.StableDiffusionPipeline)
    config = pipe.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert (config.timestep_spacing, config.beta_schedule, config.clip_sample) == ("trailing", "scaled_linear", False)
    assert pipe.vae.config.scaling_factor == 1.5
    both_sample(folder, "a red square, flat style", 4, guidance_scale=3.0, guidance_rescale=0.7)
    both_sample(folder, "quite unknown", 5, guidance_scale=1.0)
    with Image.open(folder / "samples" / "step-0000006.png") as grid:
        assert grid.size[0] >= 2 * SIZE
    record = read_json(folder / "training.json")
    assert (record["step"], record["images"], record["captions"]) == (6, 12, 18)
    assert list(folder.glob("logs/**/events.out.tfevents.*"))


def test_a_run_leaves_the_words_of_its_captions(tmp_path: Path, place: Place) -> None:
    """Of a new model, and of one that is trained further, to which it adds them."""
    folder = train(text_settings(tmp_path / "new", place, max_train_steps=1, random_background=True))
    pipe = ddim.StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.unknown_words("Red squares on a turquoise background, flat style, and a cup") == {"cup": ()}
    (folder / "words.json").write_text('{"words": ["cup"], "near": {"tile": ["stone"], "mug": ["cup"]}}')
    further = text_settings(tmp_path / "further", place, pretrained_model_name_or_path=str(folder), max_train_steps=1)
    pipe = ddim.StableDiffusionPipeline.from_pretrained(train(further))
    assert pipe.unknown_words("a red cup, a tile, a mug and a turquoise") == {"mug": ("cup",), "turquoise": ()}


@pytest.mark.thin(every=2)
def test_of_a_model_that_does_not_say_what_it_had_seen_nothing_is_said(
    tmp_path: Path, place: Place, pretrained: Path
) -> None:
    chosen = text_settings(tmp_path, place, pretrained_model_name_or_path=str(pretrained), max_train_steps=1)
    folder = train(chosen)
    assert not (folder / "words.json").exists()
    assert ddim.StableDiffusionPipeline.from_pretrained(folder).unknown_words("a cup") == {}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.thin(every=2)
def test_the_saved_type_is_that_of_all_parts(dtype: str, tmp_path: Path, place: Place) -> None:
    folder = train(text_settings(tmp_path, place, save_dtype=dtype, max_train_steps=1))
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        tensors = read_tensors(folder / f"{part}.safetensors")
        assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {getattr(torch, dtype)}
    both_sample(folder, "a red square", 2)


# The fast test beside it is test_the_loss_falls of test_pixels.py.
@pytest.mark.slow
def test_the_loss_falls(tmp_path: Path, place: Place) -> None:
    chosen = text_settings(tmp_path, place, max_train_steps=120, learning_rate=1e-2, checkpointing_steps=1000)
    losses = losses_of(make_trainer(chosen))
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


# --- fine-tuning -----------------------------------------------------------------------------------------------------


SD_1, SD_2 = pytest.param(1, id="SD 1"), pytest.param(2, id="SD 2")
# The other structure once more, where what is tested does not depend on it.
AGAIN_1, AGAIN_2 = (pytest.param(version, id=f"SD {version}", marks=pytest.mark.slow) for version in (1, 2))


@pytest.mark.parametrize("pretrained", [SD_1, AGAIN_2], indirect=True)
@pytest.mark.parametrize("changes", [{}, ZERO_SNR, {"prediction_type": "sample", "timestep_spacing": "trailing"}])
@pytest.mark.thin(every=3)
def test_fine_tuning_keeps_or_changes_the_schedule_and_saves_it(
    changes: dict[str, Any], pretrained: Path, tmp_path: Path, place: Place
) -> None:
    before = ddim.DiffusionPipeline.from_pretrained(pretrained).components["scheduler"].config
    chosen = {"pretrained_model_name_or_path": str(pretrained), "max_train_steps": 1, **changes}
    folder = train(text_settings(tmp_path, place, **chosen))
    after = ddim.DiffusionPipeline.from_pretrained(folder).components["scheduler"].config
    expected = {**before, **changes}
    if changes == ZERO_SNR:
        expected["timestep_spacing"] = "trailing"  # which the last timestep needs, if it is to be sampled
    assert {key: value for key, value in after.items() if not key.startswith("_")} == {
        key: value for key, value in expected.items() if not key.startswith("_")
    }
    both_sample(folder, "a photo of a red cat", 4)


@pytest.mark.parametrize("pretrained", [AGAIN_1, SD_2], indirect=True)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.thin(fast=["True-SD 2"])
def test_the_text_encoder_is_trained_when_asked_and_only_then(
    trained: bool, pretrained: Path, tmp_path: Path, place: Place
) -> None:
    chosen = {"pretrained_model_name_or_path": str(pretrained), "max_train_steps": 2, "train_text_encoder": trained}
    folder = train(text_settings(tmp_path, place, **chosen))
    before, after = text_encoder(pretrained), text_encoder(folder)
    changed = [name for name in after if not torch.equal(after[name], before.get(name, before.get(name[11:])))]
    assert bool(changed) == trained
    if trained:
        assert [name for name in after if "position_ids" not in name] == changed
    assert all(not torch.equal(value, unet(pretrained)[name]) for name, value in unet(folder).items())
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert_same(read_tensors(pretrained / vae), read_tensors(folder / vae))


# The fast test beside it is test_the_saved_type_is_that_of_all_parts.
@pytest.mark.slow
def test_a_pipeline_in_float16_is_trained_in_float32(tmp_path: Path, place: Place) -> None:
    reference = tiny_reference(tmp_path / "model", 1)
    reference.to(dtype=torch.float16).save_pretrained(tmp_path / "half")
    assert {tensor.dtype for tensor in unet(tmp_path / "half").values()} == {torch.float16}
    chosen = text_settings(
        tmp_path / "run", place, pretrained_model_name_or_path=str(tmp_path / "half"), learning_rate=1e-6
    )
    trainer = make_trainer(chosen)
    assert {parameter.dtype for parameter in trainer.objective.parameters()} == {torch.float32}
    trainer.run()
    moved = unet(tmp_path / "run")  # by less than half precision could tell
    assert all(not torch.equal(value, unet(tmp_path / "half")[name].float()) for name, value in moved.items())


def test_a_pipeline_with_another_scheduler_is_trained_on_its_noise(tmp_path: Path, place: Place) -> None:
    """As Stable Diffusion 1.5 is published."""
    tiny_reference(tmp_path / "model", 1)
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    write_json(path, {**read_json(path), "_class_name": "PNDMScheduler", "skip_prk_steps": True})
    index = read_json(tmp_path / "model" / "model_index.json")
    write_json(tmp_path / "model" / "model_index.json", {**index, "scheduler": ["diffusers", "PNDMScheduler"]})
    chosen = text_settings(tmp_path / "run", place, pretrained_model_name_or_path=str(tmp_path / "model"))
    config = read_json(train(chosen) / "scheduler" / "scheduler_config.json")
    assert config["_class_name"] == "DDIMScheduler"
    assert (config["beta_start"], config["beta_schedule"], config["steps_offset"]) == (0.00085, "scaled_linear", 1)


def test_a_schedule_that_is_listed_gives_way_to_one_that_is_asked_for(tmp_path: Path, place: Place) -> None:
    betas = (0.01,) * 50
    tiny_reference(tmp_path / "model", 1, trained_betas=[*betas], num_train_timesteps=50)
    chosen = {"pretrained_model_name_or_path": str(tmp_path / "model")}
    kept = make_objective(text_settings(tmp_path, place, **chosen))
    assert (kept.num_train_timesteps, kept.scheduler.config.trained_betas) == (50, betas)
    asked = make_objective(text_settings(tmp_path, place, **chosen, beta_schedule="linear", num_train_timesteps=40))
    assert asked.scheduler.config.trained_betas is None
    assert asked.num_train_timesteps == 40


# --- interruption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [EVERYTHING, {**EVERYTHING, "cache_latents": False, "use_ema": False}, {"mixed_precision": "bf16", **EVERYTHING}],
    ids=["cached", "not cached", "bf16"],
)
@pytest.mark.thin(fast=["not cached"])
def test_a_run_in_two_parts_ends_with_the_same_weights(changes: dict[str, Any], tmp_path: Path, place: Place) -> None:
    whole = train(text_settings(tmp_path / "whole", place, **changes))
    parts = text_settings(tmp_path / "parts", place, **changes)
    interrupt(parts)
    shutil.rmtree(tmp_path / "parts" / "cache", ignore_errors=True)  # is made again, to the last bit
    train(parts)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")
    assert_same(unet(whole), unet(tmp_path / "parts"))
    assert_same(text_encoder(whole), text_encoder(tmp_path / "parts"))


@pytest.mark.parametrize("pretrained", [AGAIN_1, SD_2], indirect=True)  # on SD 1, adapters are trained in two parts
# The fast test beside it is test_a_run_in_two_parts_ends_with_the_same_weights.
@pytest.mark.slow
def test_fine_tuning_in_two_parts_ends_with_the_same_weights(pretrained: Path, tmp_path: Path, place: Place) -> None:
    changes = {"pretrained_model_name_or_path": str(pretrained), "random_flip": True}
    train(text_settings(tmp_path / "whole", place, **changes))
    parts = text_settings(tmp_path / "parts", place, **changes)
    interrupt(parts)
    train(parts)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


# The fast test beside it is test_a_checkpoint_is_found_by_its_name_and_one_of_another_kind_is_refused.
@pytest.mark.slow
def test_a_checkpoint_of_before_a_setting_was_there_goes_on(tmp_path: Path, place: Place) -> None:
    chosen = text_settings(tmp_path, place)
    interrupt(chosen)
    state = read_json(tmp_path / "checkpoint-3" / "state.json")
    for younger in ("kind", "captions_sha256", "pictures_sha256", "autoencoder_sha256"):
        del state[younger]
    del state["settings"]["noise_offset"]
    write_json(tmp_path / "checkpoint-3" / "state.json", state)
    with pytest.raises(ConfigError, match=r"noise_offset: 0\.0 -> 0\.1"):
        train(dataclasses.replace(chosen, noise_offset=0.1))
    train(chosen)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-6"]


def test_a_checkpoint_is_found_by_its_name_and_one_of_another_kind_is_refused(tmp_path: Path, place: Place) -> None:
    chosen = text_settings(tmp_path, place)
    train(chosen)
    trainer = make_trainer(dataclasses.replace(chosen, resume_from_checkpoint="checkpoint-3"))
    trainer.resume()
    assert trainer.step == 3
    state = read_json(tmp_path / "checkpoint-6" / "state.json")
    write_json(tmp_path / "checkpoint-6" / "state.json", {**state, "kind": "LoraSettings"})
    with pytest.raises(ConfigError, match="LoraSettings -> TextToImageSettings"):
        train(chosen)


def test_data_that_changed_on_the_way_is_noticed(tmp_path: Path, place: Place) -> None:
    shutil.copytree(place.data, tmp_path / "data")
    own = Place(tmp_path / "data", place.vae)
    chosen = text_settings(tmp_path / "run", own)
    interrupt(chosen)
    metadata = own.data / "metadata.jsonl"
    before = metadata.read_text()
    metadata.write_text(before.replace("red box", "red bag"))
    with pytest.raises(ConfigError, match=r"captions_sha256: .* -> .*another output_dir"):
        train(chosen)
    metadata.write_text("".join(before.splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match="images: 12 -> 11"), pytest.warns(UserWarning, match="without a caption"):
        train(chosen)
    metadata.write_text(before)
    Image.new("RGB", (SIZE, SIZE), "white").save(own.data / "red-full.png")
    with pytest.raises(ConfigError, match=r"not what the run began with \(pictures_sha256"):
        train(chosen)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3"]
    assert len(list((tmp_path / "run" / "cache").iterdir())) == 1
    shutil.copy(place.data / "red-full.png", own.data / "red-full.png")
    train(chosen)


def _command(output_dir: Path, place: Place) -> list[str]:
    changes = {"max_train_steps": 240, "checkpoints_total_limit": 2, **EVERYTHING}
    options = as_options(text_settings(output_dir, place, **changes))
    return [sys.executable, "-m", "ddim", "train", "text-to-image", *options]


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_with_the_same_weights(tmp_path: Path, place: Place) -> None:
    def start(name: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = _command(tmp_path / name, place)
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def newest() -> int:
        return max((int(path.name[11:]) for path in checkpoints(tmp_path / "killed")), default=0)

    began = time.monotonic()
    assert start("whole").wait() == 0
    seconds = time.monotonic() - began
    rng = random.Random(0)
    steps = []
    for number in range(20):
        process, before = start("killed"), newest()
        if number % 4:  # soon after it has saved something; the others at any time, mostly before that
            while process.poll() is None and newest() == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.02 * seconds))
        else:
            time.sleep(rng.uniform(0.0, 0.5 * seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for checkpoint in checkpoints(tmp_path / "killed"):
            for file in ("model", "average", "optimizer"):
                read_tensors(checkpoint / f"{file}.safetensors")
        steps.append(newest())
    assert start("killed").wait() == 0
    assert steps == sorted(steps)
    assert len(set(steps)) > 5
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")
    assert_same(unet(tmp_path / "whole"), unet(tmp_path / "killed"))
    assert not list((tmp_path / "killed").glob(".*"))
