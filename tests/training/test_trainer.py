"""The training loop and its settings, on text to image: what is drawn, weighted, logged, refused, and shared out."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import tiny_reference
from tiny_training import (
    Place,
    as_options,
    assert_same,
    assert_same_runs,
    lora_settings,
    place,
    text_settings,
    vae_settings,
)
from torch.utils.data import DataLoader

import ddim
from ddim.checkpoint import locks, read_tensors
from ddim.cli import main
from ddim.data.preparation import Choice
from ddim.errors import CheckpointError, ConfigError, DDIMError, NonFiniteError
from ddim.training import text_to_image, train
from ddim.training.checkpoints import checkpoints, discard
from ddim.training.diffusion import draw_noise, draw_timesteps
from ddim.training.interruption import Interrupted
from ddim.training.objective import Losses
from ddim.training.run import make_objective, make_trainer
from ddim.training.settings import LoraSettings, PixelSettings, TextToImageSettings, TrainSettings, VAESettings
from ddim.training.trainer import Trainer, _Log, learning_rate_factor

__all__ = ["place"]

ZERO_SNR: dict[str, Any] = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def one_batch(objective: Any, size: int = 8) -> dict[str, Any]:
    batch: dict[str, Any] = next(iter(DataLoader(objective.dataset(), size, sampler=range(size))))
    return batch


# --- what is drawn and weighted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_min_snr_is_finite_and_trains_every_timestep(
    kind: str, zero_snr: bool, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"prediction_type": kind, "rescale_betas_zero_snr": zero_snr, "snr_gamma": 5.0}
    if kind == "epsilon" and zero_snr:
        with pytest.raises(ConfigError, match="v_prediction"):
            make_objective(text_settings(tmp_path, place, **chosen))
        return
    objective = make_objective(text_settings(tmp_path, place, **chosen)).train()
    objective.prepare({})
    batch = one_batch(objective)
    for timestep in (0, 500, 999):
        monkeypatch.setattr(text_to_image, "draw_timesteps", lambda total, x0, t=timestep: torch.full((len(x0),), t))
        objective.zero_grad()
        losses = objective(batch)
        assert losses.timesteps.tolist() == [timestep] * 8
        assert losses.loss.isfinite().all()
        losses.loss.mean().backward()
        slopes = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
        assert all(slope.isfinite().all() for slope in slopes)
        assert sum(float(slope.abs().sum()) for slope in slopes) > 1e-3


def test_noise_is_offset_alike_for_all_pixels_of_a_channel(tmp_path: Path, place: Place) -> None:
    x0 = torch.zeros(400, 4, 16, 16)
    plain = draw_noise(text_settings(tmp_path, place), x0)
    moved = draw_noise(text_settings(tmp_path, place, noise_offset=0.5), x0)
    assert plain.mean(dim=(2, 3)).std().item() == pytest.approx(1 / 16, rel=0.1)
    assert moved.mean(dim=(2, 3)).std().item() == pytest.approx((0.5**2 + 1 / 256) ** 0.5, rel=0.1)
    within = moved - moved.mean(dim=(2, 3), keepdim=True)
    assert within.std().item() == pytest.approx(1.0, rel=0.01)


def test_timesteps_are_all_equally_likely() -> None:
    drawn = draw_timesteps(10, torch.zeros(20_000, 1))
    assert torch.bincount(drawn).tolist() == pytest.approx([2000] * 10, rel=0.1)


def test_the_input_is_perturbed_as_much_as_asked(tmp_path: Path, place: Place) -> None:
    objective = make_objective(text_settings(tmp_path, place, input_perturbation=0.3))
    objective.prepare({})
    seen: list[Any] = []

    def loss(denoiser: Any, x0: Any, eps: Any, timesteps: Any, perturbation: Any) -> torch.Tensor:
        seen.extend((x0, eps, perturbation))
        return torch.zeros(len(x0))

    objective.loss.forward = loss
    objective(one_batch(objective, 12))
    x0, eps, perturbation = seen
    assert x0.shape == eps.shape == perturbation.shape == (12, 4, 8, 8)
    assert perturbation.std().item() == pytest.approx(0.3, rel=0.1)
    assert abs(float((perturbation * eps).mean())) < 0.03


@pytest.mark.parametrize("kind", ["cosine_with_restarts", "polynomial", "cosine", "linear", "constant"])
def test_learning_rates_are_those_of_diffusers(kind: str, tmp_path: Path, place: Place) -> None:
    optimization = pytest.importorskip("diffusers.optimization")
    chosen = text_settings(tmp_path, place, lr_scheduler=kind, lr_warmup_steps=0, lr_num_cycles=3, lr_power=2.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycles = 3 if "restarts" in kind else 1
    theirs = optimization.get_scheduler(
        kind, optimizer, num_warmup_steps=0, num_training_steps=60, num_cycles=cycles, power=2.0
    )
    (factor,) = theirs.lr_lambdas
    for step in range(60):
        assert learning_rate_factor(chosen, step, 60) == pytest.approx(factor(step), abs=1e-6)
    assert learning_rate_factor(chosen, 60, 60) == pytest.approx(1.0 if kind == "constant" else 0.0, abs=1e-9)


def test_the_learning_rate_reaches_the_optimizer_and_scales(tmp_path: Path, place: Place) -> None:
    changes = {"scale_lr": True, "gradient_accumulation_steps": 2, "lr_scheduler": "linear", "lr_warmup_steps": 1}
    trainer = make_trainer(text_settings(tmp_path, place, **changes, learning_rate=1e-4))
    rates: list[float] = []
    step = trainer.optimizer.step

    def noted() -> None:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        step()

    trainer.optimizer.step = noted
    trainer.run()
    assert rates == pytest.approx([8e-4 * factor for factor in (0.5, 1.0, 0.8, 0.6, 0.4, 0.2)])


# --- the time --------------------------------------------------------------------------------------------------------


def test_the_last_share_falls_by_steps_or_by_the_time(tmp_path: Path, place: Place) -> None:
    chosen = text_settings(tmp_path, place, lr_scheduler="warmup_stable_decay", lr_warmup_steps=2, lr_decay_share=0.25)
    steps = [learning_rate_factor(chosen, step, 42) for step in (0, 1, 2, 31, 32, 37, 42)]
    assert steps == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 0.5, 0])
    times = [learning_rate_factor(chosen, 10, 10_000, time) for time in (0.0, 0.75, 0.8, 0.95, 1.0)]
    assert times == pytest.approx([1, 1, 0.8, 0.2, 0])
    linear = dataclasses.replace(chosen, lr_scheduler="linear")
    assert learning_rate_factor(linear, 10, 10_000, 0.3) == pytest.approx(0.7)
    assert learning_rate_factor(linear, 0, 10_000, 0.1) == pytest.approx(1 / 3)  # the warm-up is by steps
    assert learning_rate_factor(linear, 1, 10_000, 0.9) == pytest.approx(0.1)  # but the end may come before its end
    assert learning_rate_factor(linear, 22, 42, 0.1) == pytest.approx(0.5)  # whichever is farther


def timed(trainer: Trainer, seconds: float = 10.0, before: float = 0.0) -> list[float]:
    """Let each step take so many seconds, and what is before the first one; the learning rates of the steps."""
    first, rates, prepared = trainer.step, [], []
    prepare, step = trainer.objective.prepare, trainer.optimizer.step
    trainer.clock = lambda: (before if prepared else 0.0) + seconds * (trainer.step - first)

    def noted(*_: Any) -> None:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        step()

    def preparing(began: dict[str, Any]) -> None:
        prepare(began)
        prepared.append(True)

    trainer.optimizer.step, trainer.objective.prepare = noted, preparing  # type: ignore[method-assign]
    return rates


@pytest.mark.parametrize("steps", [None, 500])
@pytest.mark.thin(fast=["500"])
def test_a_run_ends_by_the_time_with_a_checkpoint_and_a_model(
    steps: int | None, tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {
        "max_train_steps": steps,
        "max_train_seconds": 65.0,
        "lr_scheduler": "warmup_stable_decay",
        "lr_decay_share": 0.5,
        "lr_warmup_steps": 1,
        "checkpointing_steps": 100,
        "validation_steps": 100,
        "validation_inference_steps": 1,
    }
    trainer = make_trainer(text_settings(tmp_path, place, **changes))
    rates = timed(trainer, before=20.0)
    trainer.run()
    assert trainer.step == 5  # the first step that ends after 65 seconds, of which 20 are before the first
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 2e-3 * (1 - 30 / 45), 2e-3 * (1 - 40 / 45)])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5"]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-0000005.png"]
    average = read_tensors(tmp_path / "checkpoint-5" / "average.safetensors")
    pipe = ddim.DiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(pipe.unet.conv_in.weight, average["unet.conv_in.weight"])
    told = capsys.readouterr().err
    assert "ends by the time, 65 seconds after it began, in about 4 steps of 10 s" in told
    assert "epochs" not in told.replace("500 steps of 4: 167 epochs", "")
    again = make_trainer(text_settings(tmp_path, place, **changes))  # has as much time again
    again.resume()
    assert again.step == 5
    timed(again)
    again.run()
    assert again.step == 12
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-12"]


# The fast test beside it is test_a_run_ends_by_the_time_with_a_checkpoint_and_a_model.
@pytest.mark.slow
def test_steps_that_are_made_before_the_time_end_a_run_as_ever(tmp_path: Path, place: Place) -> None:
    whole, timeless = (tmp_path / name for name in ("whole", "timeless"))
    for folder, changes in ((whole, {"max_train_seconds": 1000.0}), (timeless, {})):  # of a constant learning rate
        trainer = make_trainer(text_settings(folder, place, lr_scheduler="constant", **changes))
        timed(trainer)
        trainer.run()
        assert trainer.step == 6
    assert_same_runs(whole, timeless)


def test_a_run_that_ends_by_the_time_can_be_interrupted_before(tmp_path: Path, place: Place) -> None:
    trainer = make_trainer(text_settings(tmp_path, place, max_train_steps=None, max_train_seconds=1000.0))
    timed(trainer)
    step = trainer.optimizer.step

    def signalled(*_: Any) -> None:
        step()
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.optimizer.step = signalled
    with pytest.raises(Interrupted, match=r"step 4 is saved in .*checkpoint-4"):
        trainer.run()
    assert checkpoints(tmp_path)[-1].name == "checkpoint-4"


def test_several_processes_agree_on_the_time_and_on_whether_to_stop(tmp_path: Path, place: Place) -> None:
    trainer = make_trainer(text_settings(tmp_path, place, max_train_seconds=1000.0))
    asked: list[list[float]] = []

    def reduce(told: torch.Tensor, how: str) -> torch.Tensor:
        asked.append(told.tolist())
        return (told + torch.tensor([1.0, 30.0])) / 2  # the other process was interrupted and has another clock

    trainer.accelerator = SimpleNamespace(num_processes=2, device=torch.device("cpu"), reduce=reduce)
    trainer.clock = lambda: 105.0
    for trainer.step in range(1, 11):
        trainer._agree(began=5.0)
        assert (trainer.stops, trainer.seconds) == ((True, 65.0) if trainer.step == 10 else (False, 0.0))
    assert asked == [[0.0, 100.0]]


@pytest.mark.parametrize("given", [{"max_train_seconds": 0}, {"lr_decay_share": 0}, {"lr_decay_share": 1.5}])
def test_times_that_cannot_be_are_refused(given: dict[str, Any], tmp_path: Path, place: Place) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        text_settings(tmp_path, place, **given)


def test_a_step_never_waits_for_the_device(tmp_path: Path, place: Place) -> None:
    """On the device "meta", which has no numbers, whoever asks it for one gets an error."""
    for changes in ({}, {"random_background": True, "random_flip": True}):
        trainer = make_trainer(text_settings(tmp_path / str(len(changes)), place, **changes))
        trainer.objective.prepare({})
        trainer.objective.to("meta")
        assert trainer.average is not None
        trainer.average.module.to("meta")
        batches, log, losses = iter(trainer._loader()), _Log(1), []
        trainer.accelerator = SimpleNamespace(
            device=torch.device("meta"), process_index=0, num_processes=1, backward=lambda loss: loss.backward()
        )
        for _ in range(2):
            trainer._accumulate(batches, log)
            torch.nn.utils.clip_grad_norm_(trainer.objective.networks.parameters(), 1.0)
            trainer.average.update_parameters(trainer.objective.networks)
            losses.append(log.losses[-1])
            trainer.step += 1
        assert [loss.device.type for loss in losses] == ["meta"] * 2
        with pytest.raises(RuntimeError, match="meta"):
            float(losses[0])


# --- what is logged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1000, 999, 50, 7])
def test_losses_are_told_by_the_right_timesteps(total: int) -> None:
    log = _Log(10)
    timesteps = torch.randperm(total)
    for chunk in timesteps.split(3):
        log.add(Losses(chunk.double(), chunk, {"part": chunk.double().mean()}))  # the loss of timestep t is t
    values = log.values(total)
    assert values.pop("part") == pytest.approx(float(torch.stack(log.parts["part"]).mean()))
    covered: list[int] = []
    for name, value in values.items():
        first, last = (int(number) for number in name.removeprefix("loss_by_timestep/").split("-"))
        assert value == pytest.approx((first + last) / 2)
        covered += range(first, last + 1)
    assert covered == list(range(total))
    assert len(values) == min(total, 10)


def test_every_batch_of_an_accumulated_step_is_logged(tmp_path: Path, place: Place) -> None:
    trainer = make_trainer(text_settings(tmp_path, place, gradient_accumulation_steps=3, max_train_steps=2))
    logs: list[_Log] = []
    trainer._report = lambda log, norm, bar: logs.append(log)  # type: ignore[method-assign]
    trainer.run()
    assert [len(log.losses) for log in logs] == [6]
    assert sum(len(timesteps) for timesteps, _ in logs[0].by_timestep) == 6 * 4


# --- precision and memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.thin(fast=["True"])
def test_gradient_checkpointing_gives_the_same_result(cache: bool, tmp_path: Path, place: Place) -> None:
    plain, less = (
        train(
            text_settings(
                tmp_path / str(on),
                place,
                gradient_checkpointing=on,
                cache_latents=cache,
                dropout=0.2,
                max_train_steps=2,
            )
        )
        for on in (False, True)
    )
    for file in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        expected = read_tensors(plain / f"{file}.safetensors")
        for name, value in read_tensors(less / f"{file}.safetensors").items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


# The fast test beside it is test_nan_stops_the_run_and_leaves_the_last_checkpoint.
@pytest.mark.slow
def test_one_process_may_train_in_two_precisions(tmp_path: Path, place: Place) -> None:
    for number, precision in enumerate(("bf16", "no", "bf16")):
        chosen = text_settings(tmp_path / str(number), place, mixed_precision=precision, max_train_steps=1)
        trainer = make_trainer(chosen)
        assert trainer.accelerator.mixed_precision == precision
        assert {parameter.dtype for parameter in trainer.objective.parameters()} == {torch.float32}
        trainer.run()
    assert_same(*(read_tensors(tmp_path / n / "unet" / "diffusion_pytorch_model.safetensors") for n in "02"))


@pytest.mark.parametrize("mode", ["no", "bf16"])
def test_the_precision_of_accelerate_launch_is_followed(
    mode: str, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", mode)
    trainer = make_trainer(text_settings(tmp_path, place))
    assert trainer.accelerator.mixed_precision == trainer.settings.mixed_precision == mode
    told = make_trainer(text_settings(tmp_path, place, mixed_precision="no"))
    assert told.accelerator.mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ConfigError, match="fp8"):
        make_trainer(text_settings(tmp_path, place))


def test_half_precision_that_a_processor_lacks_is_refused(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match="mixed_precision=fp16 is for GPUs, and this run is on the processor"):
        train(text_settings(tmp_path / "run", place, mixed_precision="fp16"))
    assert not (tmp_path / "run").exists()
    train(text_settings(tmp_path / "run", place, mixed_precision="no", max_train_steps=1))


def test_the_average_rises_as_that_of_diffusers(tmp_path: Path, place: Place) -> None:
    training_utils = pytest.importorskip("diffusers.training_utils")
    chosen = {"ema_power": 0.75, "ema_inv_gamma": 2.0, "ema_decay": 0.7, "max_train_steps": 5}
    trainer = make_trainer(text_settings(tmp_path, place, **chosen))
    networks = trainer.objective.networks
    theirs = training_utils.EMAModel(
        networks.parameters(), decay=0.7, use_ema_warmup=True, inv_gamma=2.0, power=0.75, update_after_step=0
    )
    average = trainer.average
    assert average is not None
    update = average.update_parameters

    def both(model: torch.nn.Module) -> None:
        update(model)
        theirs.step(networks.parameters())

    average.update_parameters = both  # type: ignore[method-assign]
    trainer.run()
    for ours, expected in zip(average.module.parameters(), theirs.shadow_params, strict=True):
        torch.testing.assert_close(ours.detach(), expected, rtol=1e-5, atol=1e-7)


def test_an_average_on_the_host_is_the_same(tmp_path: Path, place: Place) -> None:
    plain, host = (
        train(text_settings(tmp_path / str(on), place, offload_ema=on, max_train_steps=3)) for on in (False, True)
    )
    assert_same(*(read_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (plain, host)))


def test_steps_are_those_that_are_given_else_those_of_the_epochs(tmp_path: Path, place: Place) -> None:
    def total(kind: Any = text_settings, **changes: Any) -> int:
        return make_trainer(kind(tmp_path, place, **{"max_train_steps": None, **changes})).total

    assert total(num_train_epochs=5) == 5 * 12 // 4
    assert total(num_train_epochs=5, max_train_steps=7) == 7  # as diffusers' scripts have it
    assert total() == 10_000


def test_the_model_is_written_on_the_way_if_asked(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    export = Trainer._export

    def noted(self: Trainer) -> Any:
        steps.append(self.step)
        return export(self)

    monkeypatch.setattr(Trainer, "_export", noted)
    train(text_settings(tmp_path, place, save_model_epochs=1, max_train_steps=7))
    assert steps == [3, 6, 7]


@pytest.mark.parametrize("way", ["nearest", "nearest_exact", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_pictures_are_resized_as_asked(way: str, tmp_path: Path, place: Place) -> None:
    picture = Image.effect_noise((64, 64), 80).convert("RGB")
    chosen = text_settings(tmp_path, place, image_interpolation_mode=way)
    prepared = make_objective(chosen).prepare_image(picture, Choice())
    resampling = Image.Resampling[way.removesuffix("_exact").upper()]
    expected = np.asarray(picture.resize((16, 16), resampling), dtype=np.float32) / 127.5 - 1
    np.testing.assert_allclose(prepared.permute(1, 2, 0).numpy(), expected, atol=1e-6)


# --- what stops a run ------------------------------------------------------------------------------------------------


def test_nan_stops_the_run_and_leaves_the_last_checkpoint(tmp_path: Path, place: Place) -> None:
    train(text_settings(tmp_path, place, max_train_steps=3, lr_scheduler="constant"))
    chosen = text_settings(tmp_path, place, lr_scheduler="constant")
    trainer = make_trainer(chosen)
    trainer.objective.loss.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the loss is nan at step 6: try a lower learning_rate"):
        trainer.run()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]
    train(chosen)


def test_a_gradient_that_is_not_finite_is_not_saved_though_the_loss_is(tmp_path: Path, place: Place) -> None:
    trainer = make_trainer(text_settings(tmp_path, place))

    clip = trainer.accelerator.clip_grad_norm_

    def spoil(parameters: list[torch.nn.Parameter], limit: float) -> Any:
        if trainer.step == 5:  # the last one: no later loss would tell
            assert parameters[0].grad is not None
            parameters[0].grad.fill_(float("inf"))
        return clip(parameters, limit)

    trainer.accelerator.clip_grad_norm_ = spoil
    with pytest.raises(NonFiniteError, match="gradient's norm is inf at step 6"):
        trainer.run()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rescale_betas_zero_snr": True}, "use prediction_type='v_prediction'"),
    ({**ZERO_SNR, "prediction_type": "epsilon"}, "v_prediction"),
    ({"resolution": 18}, "resolution must be a multiple of 4"),
    ({"train_data_dir": None}, "dataset_name or train_data_dir"),
    ({"dataset_name": "some/set"}, "dataset_name or train_data_dir"),
    ({"vocab_size": 513}, "vocab_size must be 514 or more"),
    ({"max_tokens": 2}, "max_tokens"),
    ({"attention_levels": (2,)}, "attention_levels has 2.*levels 0 to 1"),
    ({"attention_levels": (-3,)}, "attention_levels has -3"),
    ({"text_heads": 3}, "heads"),
    ({"block_out_channels": ()}, "block_out_channels"),
    ({"caption_dropout": -0.1}, "caption_dropout"),
    ({"snr_gamma": 0.0}, "snr_gamma"),
    ({"caption_column": "words"}, "words.*did you mean 'text'"),
    ({"train_data_dir": "/no/such/folder"}, "no/such/folder"),
    ({"pretrained_vae_model_name_or_path": "/no/such/vae"}, "no/such/vae"),
    ({"lr_num_cycles": 0}, "lr_num_cycles"),
    ({"lr_power": float("inf")}, "lr_power"),
    ({"resume_from_checkpoint": "checkpoint-7"}, "checkpoint-7"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((DDIMError, ValueError), match=message):
        train(text_settings(tmp_path / "run", place, **changes))
    assert not (tmp_path / "run").exists()


def test_pixels_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"resolution": 9}, "multiple of 2"),
        ({"resolution": 16}, "leave out resolution"),
        ({"attention_levels": (5,)}, "attention_levels"),
    ]
    for change, message in changes:
        with pytest.raises(DDIMError, match=message):
            train(PixelSettings(str(tmp_path / "run"), block_out_channels=(8, 16), attention_head_dim=8, **change))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_deleted_in_part_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    assert checkpoints(tmp_path) == [folder]
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)  # killed before anything is deleted
    discard(folder)
    assert checkpoints(tmp_path) == []


# --- previews, and what becomes of the output folder -----------------------------------------------------------------


def previews(tmp_path: Path, place: Place, **changes: Any) -> TextToImageSettings:
    """A run that draws before anything else has made its folder: no cache, no logs, and no checkpoint until the end."""
    chosen = {"cache_latents": False, "validation_steps": 1, "checkpointing_steps": 100, "report_to": "none"}
    return text_settings(tmp_path, place, **{**chosen, "max_train_steps": 2, **changes})


# The fast test beside it is test_the_first_checkpoint_and_preview_come_by_the_time of test_forecast.py.
@pytest.mark.slow
def test_the_first_preview_comes_before_the_first_checkpoint(tmp_path: Path, place: Place) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for folder in (tmp_path / "deep" / "run", tmp_path / "link"):
        train(previews(folder, place))
        assert [path.name for path in sorted((folder / "samples").iterdir())] == [
            "step-0000001.png",
            "step-0000002.png",
        ]
        assert [path.name for path in checkpoints(folder)] == ["checkpoint-2"]


def test_a_folder_that_is_deleted_on_the_way_is_made_again(tmp_path: Path, place: Place) -> None:
    trainer = make_trainer(previews(tmp_path / "run", place))
    preview = trainer.objective.preview

    def delete(model: Any) -> Any:
        if trainer.step == 1:
            shutil.rmtree(tmp_path / "run")
        return preview(model)

    trainer.objective.preview = delete  # type: ignore[method-assign]
    trainer.run()
    assert [path.name for path in sorted((tmp_path / "run" / "samples").iterdir())] == [
        "step-0000001.png",
        "step-0000002.png",
    ]
    ddim.DiffusionPipeline.from_pretrained(tmp_path / "run")


def test_a_preview_that_finds_no_room_does_not_end_the_run(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, path: Path, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.warns(UserWarning, match=r"training goes on, .*step-0000001\.png was not written: No space left"):
        train(previews(tmp_path / "run", place, max_train_steps=1))
    assert list((tmp_path / "run" / "samples").iterdir()) == []
    ddim.DiffusionPipeline.from_pretrained(tmp_path / "run")


def test_an_output_folder_that_cannot_be_made_is_found_out_before_the_first_step(tmp_path: Path, place: Place) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to("loop")
    for bad in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "loop", tmp_path / ("x" * 300)):
        trainer = make_trainer(previews(bad, place))
        with pytest.raises(CheckpointError, match=r"output_dir=.* cannot be (made|read)"):
            trainer.run()
        assert trainer.step == 0
    assert (tmp_path / "file").read_text() == "precious"


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["train"], ["train", "text-to-image"], ["train", "lora"]])
def test_help_is_instant_and_imports_no_torch(command: list[str]) -> None:
    code = f"import sys; from ddim.cli import main\ntry: main([*{command}, '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    code += "import time; assert time.process_time() < 0.6, time.process_time()"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "lora" in done.stdout if command == ["train"] else "--train-batch-size" in done.stdout


# Of diffusers' train_text_to_image.py and train_text_to_image_lora.py.
KNOWN = """pretrained_model_name_or_path dataset_name dataset_config_name train_data_dir image_column caption_column
max_train_samples output_dir seed resolution center_crop random_flip train_batch_size num_train_epochs max_train_steps
gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps snr_gamma use_ema
adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm prediction_type mixed_precision report_to
checkpointing_steps checkpoints_total_limit resume_from_checkpoint noise_offset input_perturbation validation_prompts
validation_epochs dataloader_num_workers push_to_hub""".split()


def test_the_flags_are_those_that_people_know() -> None:
    def names(kind: type[TrainSettings]) -> set[str]:
        return {field.name for field in dataclasses.fields(kind)}

    assert set(KNOWN) <= names(TextToImageSettings)
    assert {*KNOWN, "rank"} <= names(LoraSettings)
    images = {
        "caption_column",
        "snr_gamma",
        "prediction_type",
        "noise_offset",
        "input_perturbation",
        "validation_prompts",
    }
    assert set(KNOWN) - images <= names(VAESettings)


def test_text_to_image_from_the_command_line_in_either_spelling(
    tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    network = "--block_out_channels 8 16 --attention-levels -1 --attention_heads 2 --text-dim 16 --text_layers 1 "
    network += "--text-heads 2 --vocab_size 600 --resolution 16 --max_tokens 32"
    for spelling in ("_", "-"):
        run = "--train_batch_size 4 --mixed_precision no --max_train_steps 1 --report_to none --validation_steps 0 "
        run += "--use_ema --rescale_betas_zero_snr --caption_column text"
        paths = ["--output-dir", str(tmp_path / spelling), "--train_data_dir", str(place.data)]
        paths += ["--pretrained_vae_model_name_or_path", str(place.vae)]
        options = [*paths, *network.split(), *run.replace("_", spelling).split(), "--prediction-type", "v_prediction"]
        assert main(["train", "text-to-image", *options]) == 0
        assert capsys.readouterr().out.strip().endswith(str(tmp_path / spelling))
        scheduler = ddim.DDIMScheduler.from_pretrained(tmp_path / spelling, subfolder="scheduler")
        assert scheduler.config.timestep_spacing == "trailing"


# --- several processes -----------------------------------------------------------------------------------------------

# What a process encodes is noted in a file of its own.
WATCHED = """
import os, sys
from ddim.training.caches import LatentCache
encode = LatentCache._encode
def note(what):
    with open(os.path.join(os.environ["NOTES"], f"{what}-by-{os.environ['RANK']}"), "a") as file:
        file.write("x")
def noted(self, vae):
    note("encoded")
    return encode(self, vae)
LatentCache._encode = noted
note("joined")
from ddim.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text-to-image", "lora", "vae"])
def test_two_processes_train_together_and_one_encodes(kind: str, tmp_path: Path, place: Place) -> None:
    (tmp_path / "watched.py").write_text(WATCHED)
    notes = tmp_path / "notes"
    notes.mkdir()
    settings: TrainSettings
    if kind == "text-to-image":
        settings = text_settings(tmp_path / "run", place, **ZERO_SNR, gradient_accumulation_steps=2, validation_steps=3)
    elif kind == "lora":
        tiny_reference(tmp_path / "model", 1)
        settings = lora_settings(tmp_path / "run", place, tmp_path / "model", train_text_encoder=True)
    else:
        settings = vae_settings(tmp_path / "run", place, mid_block_add_attention=True)
    # `accelerate launch --cpu` makes one process, whatever --num_processes says.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*launch, str(tmp_path / "watched.py"), "train", kind, *as_options(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NOTES": str(notes), "ACCELERATE_USE_CPU": "true"}
    for steps in (3, 6):  # the second time it goes on, and reads the cache
        options = ["--max_train_steps", str(steps)]
        done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Warning" not in done.stderr.replace("FutureWarning", ""), done.stderr[-3000:]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3", "checkpoint-6"]
    encoded = {path.name: path.read_text() for path in notes.iterdir()}
    assert encoded == ({"joined-by-0": "xx", "joined-by-1": "xx"} | ({} if kind == "vae" else {"encoded-by-0": "x"}))


# --- one at a time ---------------------------------------------------------------------------------------------------


def test_two_processes_do_not_train_into_one_folder(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    chosen = text_settings(tmp_path / "run", place, max_train_steps=1)
    (tmp_path / "run").mkdir()
    other = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from ddim.checkpoint.locks import alone_in
        with alone_in(Path(sys.argv[1])) as is_free:
            print(is_free, flush=True)
            time.sleep(100)
        """
    )
    command = [sys.executable, "-c", other, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with pytest.raises(ConfigError, match="is being trained into by another process: wait until it ends, or give"):
            train(chosen)
        assert not list((tmp_path / "run").iterdir())
        process.kill()
    train(chosen)
    assert checkpoints(tmp_path / "run")
