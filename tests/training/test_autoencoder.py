"""Training an autoencoder: what is learnt, the scale of its latents, and that others can load it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_sd import tiny_reference
from tiny_training import (
    SIZE,
    Place,
    assert_same,
    assert_same_runs,
    interrupt,
    losses_of,
    place,
    text_settings,
    vae_settings,
)

from ddim.checkpoint import read_json, read_tensors
from ddim.data.stream import Stream
from ddim.errors import ConfigError, DataError, DDIMError
from ddim.models import AutoencoderKL
from ddim.training import train
from ddim.training.autoencoder import permute_colors
from ddim.training.run import make_objective, make_trainer

__all__ = ["place"]

EVERYTHING: dict[str, Any] = {
    "random_background": True,
    "random_flip": True,
    "permute_colors": True,
    "gradient_accumulation_steps": 2,
    "mid_block_add_attention": True,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "diffusion_pytorch_model.safetensors")


def latents_of(vae: AutoencoderKL, stream: Stream, count: int) -> torch.Tensor:
    """Latents as text to image is trained on them: drawn, and scaled."""
    torch.manual_seed(7)
    images = torch.stack([stream[position]["image"] for position in range(count)])
    with torch.no_grad():
        return vae.encode(images).latent_dist.sample() * vae.config.scaling_factor


@pytest.mark.parametrize("kl_weight", [pytest.param(1e-4, marks=pytest.mark.slow), 3.0])
# The fast test beside it is test_what_was_trained_serves_text_to_image.
@pytest.mark.slow
def test_the_loss_falls_and_the_latents_have_a_deviation_of_one(kl_weight: float, tmp_path: Path, place: Place) -> None:
    chosen = vae_settings(
        tmp_path, place, max_train_steps=80, learning_rate=1e-2, checkpointing_steps=1000, kl_weight=kl_weight
    )
    trainer = make_trainer(dataclasses.replace(chosen, random_background=True))
    losses = losses_of(trainer)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    vae = AutoencoderKL.from_pretrained(tmp_path)
    assert vae.config.scaling_factor != 1.0
    # Twelve pictures are measured; the same on other backgrounds are the test.
    stream = trainer.objective.dataset()
    assert isinstance(stream, Stream)
    scaled = latents_of(vae, Stream(stream.source, stream.prepare, seed=99), 600)
    assert scaled.std().item() == pytest.approx(1.0, abs=0.05)


def test_diffusers_loads_what_was_saved(tmp_path: Path, place: Place) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = train(vae_settings(tmp_path, place, validation_steps=6, report_to="tensorboard", **EVERYTHING))
    theirs = diffusers.AutoencoderKL.from_pretrained(folder)
    ours = AutoencoderKL.from_pretrained(folder)
    assert theirs.config.scaling_factor == ours.config.scaling_factor
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(images)[0].mean, theirs.encode(images)[0].mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours(images)[0], theirs(images)[0], rtol=0, atol=1e-5)
    with Image.open(folder / "reconstructions" / "step-0000006.png") as grid:
        assert grid.size[0] >= 8 * SIZE
    record = read_json(folder / "training.json")
    assert (record["step"], record["images"], record["kind"]) == (6, 12, "VAESettings")
    assert list(folder.glob("logs/**/events.out.tfevents.*"))


@pytest.mark.parametrize("changes", [{}, {"use_ema": False}, {"mixed_precision": "bf16", "save_dtype": "bfloat16"}])
@pytest.mark.thin(every=3)
def test_a_run_in_two_parts_ends_with_the_same_weights(changes: dict[str, Any], tmp_path: Path, place: Place) -> None:
    train(vae_settings(tmp_path / "whole", place, **EVERYTHING, **changes))
    parts = vae_settings(tmp_path / "parts", place, **EVERYTHING, **changes)
    interrupt(parts)
    train(parts)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    config = "config.json"
    assert read_json(tmp_path / "whole" / config) == read_json(tmp_path / "parts" / config)


def test_other_data_is_noticed(tmp_path: Path, place: Place) -> None:
    chosen = vae_settings(tmp_path / "run", place, max_train_samples=10)
    interrupt(chosen)
    trainer = make_trainer(chosen)
    trainer.objective.count = 9
    with pytest.raises(ConfigError, match="images: 10 -> 9"):
        trainer.run()


# The fast test beside it is test_workers_do_not_change_the_result of test_pixels.py.
@pytest.mark.slow
def test_workers_do_not_change_the_result(tmp_path: Path, place: Place) -> None:
    train(vae_settings(tmp_path / "0", place, max_train_steps=3, **EVERYTHING))
    train(vae_settings(tmp_path / "2", place, max_train_steps=3, dataloader_num_workers=2, **EVERYTHING))
    assert_same_runs(tmp_path / "0", tmp_path / "2")


def test_training_goes_on_from_an_autoencoder_and_from_that_of_a_pipeline(tmp_path: Path, place: Place) -> None:
    tiny_reference(tmp_path / "model", 1)
    before = weights(tmp_path / "model" / "vae")
    tiny = {"learning_rate": 1e-7, "max_train_steps": 1, "lr_warmup_steps": 0, "resolution": None}
    for name in (tmp_path / "model", tmp_path / "model" / "vae"):
        chosen = vae_settings(tmp_path / name.name / "run", place, pretrained_model_name_or_path=str(name), **tiny)
        after = weights(train(chosen))
        assert after.keys() == before.keys()
        for key, value in after.items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=1e-6)
        assert any(not torch.equal(value, before[key]) for key, value in after.items())


def test_what_was_trained_serves_text_to_image(tmp_path: Path, place: Place) -> None:
    vae = train(vae_settings(tmp_path / "vae", place, latent_channels=3, max_train_steps=2))
    chosen = text_settings(
        tmp_path / "run", place, pretrained_vae_model_name_or_path=str(vae), max_train_steps=1, resolution=None
    )
    folder = train(chosen)
    assert_same(weights(vae), weights(folder / "vae"))
    config = read_json(folder / "unet" / "config.json")
    assert (config["in_channels"], config["out_channels"], config["sample_size"]) == (3, 3, 8)


def test_colors_are_exchanged_and_nothing_else() -> None:
    images = torch.rand(40, 3, 5, 6)
    mixed = permute_colors(images)
    assert torch.equal(mixed[:20], images[:20])
    assert torch.equal(mixed.sort(dim=1).values, images.sort(dim=1).values)
    orders = set()
    for one, other in zip(images, mixed, strict=True):
        order = tuple(next(i for i in range(3) if torch.equal(channel, one[i])) for channel in other)
        assert sorted(order) == [0, 1, 2]
        orders.add(order)
    assert len(orders) == 6


def test_gradient_checkpointing_gives_the_same_result(tmp_path: Path, place: Place) -> None:
    plain, less = (
        weights(train(vae_settings(tmp_path / str(on), place, gradient_checkpointing=on, max_train_steps=2)))
        for on in (False, True)
    )
    for name, value in plain.items():
        torch.testing.assert_close(less[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 17}, "resolution must be a multiple of 2"),
        ({"kl_weight": float("nan")}, "kl_weight"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"block_out_channels": (0,)}, "block_out_channels"),
        ({"train_data_dir": None}, "dataset_name or train_data_dir"),
        ({"dataset_name": "x"}, "dataset_name or train_data_dir"),
        ({"train_data_dir": "/no/such/folder"}, "no/such/folder"),
        ({"pretrained_model_name_or_path": "/no/such/model"}, "no/such/model"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((DDIMError, ValueError), match=message):
        train(vae_settings(tmp_path / "run", place, **changes))
    assert not (tmp_path / "run").exists()


def test_captions_are_not_needed(tmp_path: Path, place: Place) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        Image.new("RGBA", (20, 16), (80 * number, 0, 0, 80)).save(tmp_path / "data" / f"{number}.png")
    chosen = vae_settings(tmp_path / "run", place, train_data_dir=str(tmp_path / "data"))
    assert make_objective(chosen).count == 3
    with pytest.raises(DataError, match="caption"):
        make_objective(text_settings(tmp_path / "text", place, train_data_dir=str(tmp_path / "data")))
