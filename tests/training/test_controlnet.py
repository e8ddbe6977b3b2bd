"""Training ControlNets: what is trained and saved, that others load it, and that a run goes on to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import tiny_reference
from tiny_training import COLORS, COMMON, Place, as_options, assert_same_runs, interrupt, place

from ddim.cli import main
from ddim.errors import ConfigError, DataError
from ddim.images.conditions import condition_of
from ddim.models import ControlNetModel
from ddim.pipelines import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from ddim.training import train
from ddim.training.run import make_trainer
from ddim.training.settings import ControlNetSettings

__all__ = ["place"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd1")
    tiny_reference(folder, 1)
    return folder


def settings(output_dir: Path, place: Place, model: Path, **changes: Any) -> ControlNetSettings:
    given: dict[str, Any] = {"train_data_dir": str(place.data), "pretrained_model_name_or_path": str(model), **COMMON}
    given |= {"condition": "layout", "condition_cells": 4, "conditioning_embedding_out_channels": (4, 8)}
    if "conditioning_image_column" in changes or "conditioning_data_dir" in changes:
        given["condition"] = None
    return ControlNetSettings(output_dir=str(output_dir), **{**given, **changes})


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.thin(fast=["2"])
def test_what_is_saved_is_a_controlnet_for_diffusers_too(
    rank: int | None, place: Place, model: Path, tmp_path: Path
) -> None:
    before = StableDiffusionPipeline.from_pretrained(model).unet.state_dict()
    train(settings(tmp_path, place, model, rank=rank, max_train_steps=3))
    mine = ControlNetModel.from_pretrained(tmp_path)
    theirs = diffusers.ControlNetModel.from_pretrained(tmp_path)
    assert all(torch.equal(t, mine.state_dict()[name]) for name, t in theirs.state_dict().items())
    assert any(layer.weight.any() for layer in mine.controlnet_down_blocks)
    moved = [name for name, tensor in mine.state_dict().items() if name in before and not tensor.equal(before[name])]
    assert any(name.startswith("down_blocks") for name in moved)
    after = StableDiffusionPipeline.from_pretrained(model).unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(model, controlnet=mine)
    pipe.set_progress_bar_config(disable=True)
    shown = Image.open(tmp_path / "condition.png")
    drawn = pipe("a red tile", shown, num_inference_steps=2, seed=0, output_type="np").images
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.thin(fast=["None"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    rank: int | None, place: Place, model: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"rank": rank, "random_background": True, "random_flip": True, "condition": "edges"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(settings(whole, place, model, **options))
    interrupt(settings(parts, place, model, **options))
    train(settings(parts, place, model, **options))
    assert_same_runs(whole, parts)
    weights = "diffusion_pytorch_model.safetensors"
    assert (whole / weights).read_bytes() == (parts / weights).read_bytes()


def test_the_loss_is_that_of_diffusers_script(place: Place, model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(settings(tmp_path, place, model, caption_dropout=0.0))
    objective: Any = trainer.objective
    objective.prepare({})
    torch.manual_seed(0)
    for layer in (
        *objective.controlnet.controlnet_down_blocks,
        objective.controlnet.controlnet_cond_embedding.conv_out,
    ):
        torch.nn.init.normal_(layer.weight, std=0.2)
    batch = torch.utils.data.default_collate([objective.dataset()[k] for k in range(4)])
    torch.manual_seed(1)
    losses = objective(batch)

    torch.manual_seed(1)
    latents = objective.encode_images(batch)
    noise = torch.randn_like(latents)
    timesteps = torch.randint(1000, (4,))
    reference = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    control = diffusers.ControlNetModel.from_config(objective.controlnet.config)
    control.load_state_dict(objective.controlnet.state_dict())
    noisy = diffusers.DDIMScheduler.from_pretrained(model, subfolder="scheduler").add_noise(latents, noise, timesteps)
    text = objective.encode_captions(batch).embeds
    down, middle = control(noisy, timesteps, text, controlnet_cond=batch["condition"], return_dict=False)
    added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    predicted = reference(noisy, timesteps, text, **added).sample
    assert torch.allclose((predicted - noise).square().mean((1, 2, 3)), losses.loss, rtol=1e-4)
    losses.loss.mean().backward()
    assert all(p.grad is None for p in objective.frozen.parameters())
    assert objective.controlnet.conv_in.weight.grad is not None


@pytest.mark.parametrize("cached", [True, False])
def test_the_condition_is_of_the_picture_as_it_was_prepared(
    cached: bool, place: Place, model: Path, tmp_path: Path
) -> None:
    options = {"random_background": True, "random_flip": True, "cache_latents": cached}
    objective: Any = make_trainer(settings(tmp_path, place, model, **options)).objective
    objective.prepare({})
    data = objective.dataset()
    for position in range(20):
        item = data[position]
        stream = data.ready.stream
        index, rng = stream.at(position)
        picture = stream.image(index, stream.prepare.choose(rng))
        assert torch.equal(item["condition"], condition_of(picture[None] / 2 + 0.5, "layout", 4)[0])
        if not cached:
            assert torch.equal(item["image"], picture)


def given_conditions(folder: Path, place: Place) -> dict[str, Path]:
    """For each picture of the data a condition that says which it is: a plane of its colour."""
    folder.mkdir()
    made = {}
    for path in sorted(place.data.glob("*.png")):
        color = COLORS[path.stem.partition("-")[0]]
        Image.new("RGB", (24, 24), color).save(folder / path.name)
        made[path.name] = folder / path.name
    return made


@pytest.mark.parametrize("way", ["folder", "column", "table"])
def test_conditions_that_are_given_go_with_their_pictures(way: str, place: Place, model: Path, tmp_path: Path) -> None:
    made = given_conditions(tmp_path / "conditions", place)
    rows = [json.loads(line) for line in (place.data / "metadata.jsonl").read_text().splitlines()]
    options: dict[str, Any] = {"conditioning_data_dir": str(tmp_path / "conditions")}
    if way == "column":
        data = tmp_path / "data"
        (data / "c").mkdir(parents=True)
        for row in rows:
            (data / row["file_name"]).write_bytes((place.data / row["file_name"]).read_bytes())
            (data / "c" / row["file_name"]).write_bytes(made[row["file_name"]].read_bytes())
            row["cond"] = f"c/{row['file_name']}"
        (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        options = {"train_data_dir": str(data), "conditioning_image_column": "cond"}
    if way == "table":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        columns = {
            "image": [{"bytes": (place.data / row["file_name"]).read_bytes()} for row in rows],
            "cond": [{"bytes": made[row["file_name"]].read_bytes()} for row in rows],
            "text": [row["text"] if isinstance(row["text"], list) else [row["text"]] for row in rows],
        }
        pq.write_table(pa.table(columns), tmp_path / "data.parquet")
        options = {"train_data_dir": None, "dataset_name": str(tmp_path / "data.parquet")}
        options |= {"conditioning_image_column": "cond"}
    objective: Any = make_trainer(settings(tmp_path / "run", place, model, **options)).objective
    objective.prepare({})
    data = objective.dataset()
    for position in range(12):
        item = data[position]
        color = next(color for color in COLORS if color in " ".join(objective.source.captions[item["index"]]))
        assert item["condition"].shape == (3, 16, 16)
        assert torch.allclose(item["condition"].mean((1, 2)) * 255, torch.tensor(COLORS[color]).float(), atol=1.0)


def test_previews_show_each_condition_beside_its_picture(place: Place, model: Path, tmp_path: Path) -> None:
    train(settings(tmp_path, place, model, max_train_steps=2, validation_steps=2, validation_inference_steps=2))
    assert (tmp_path / "samples" / "step-0000002.png").is_file()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    options: dict[str, Any] = {"validation_prompts": ("a red tile", "a blue tile"), "num_validation_images": 2}
    options |= {"validation_images": (str(tmp_path / "red.png"),)}
    objective: Any = make_trainer(settings(tmp_path / "other", place, model, **options)).objective
    shown = objective.shown_conditions()
    assert len(shown) == objective.shown == 4
    assert all(image.getpixel((0, 0)) == (255, 0, 0) for image in shown)


def test_one_may_be_trained_further(place: Place, model: Path, tmp_path: Path) -> None:
    train(settings(tmp_path / "first", place, model, max_train_steps=2))
    (tmp_path / "file.safetensors").write_bytes((tmp_path / "first/diffusion_pytorch_model.safetensors").read_bytes())
    first = ControlNetModel.from_pretrained(tmp_path / "first")
    for name in ("first", "file.safetensors"):
        more = {"max_train_steps": 2, "controlnet_model_name_or_path": str(tmp_path / name)}
        trainer = make_trainer(settings(tmp_path / "second" / name, place, model, **more))
        own = trainer.objective.networks["controlnet"]
        assert all(torch.equal(t, own.state_dict()[n]) for n, t in first.state_dict().items())
        assert own.config["attention_head_dim"] == first.config["attention_head_dim"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"condition": None}, "give one of condition, conditioning_image_column and conditioning_data_dir"),
        ({"condition": "edges", "conditioning_data_dir": "x"}, "give one of condition"),
        ({"conditioning_embedding_out_channels": (4,)}, "must be 2 widths for this model"),
        ({"conditioning_embedding_out_channels": (4, 0)}, "conditioning_embedding_out_channels must be positive"),
        ({"rank": 0}, "rank must be 1 or more"),
        ({"condition_cells": 0}, "condition_cells must be 1 or more"),
        ({"validation_images": ("a.png",)}, "validation_images needs validation_prompts"),
    ],
)
def test_settings_that_cannot_work(
    change: dict[str, Any], error: str, place: Place, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=error):
        make_trainer(settings(tmp_path, place, model, **change))


def test_data_without_conditions(place: Place, model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'pose'"):
        make_trainer(settings(tmp_path, place, model, conditioning_image_column="pose"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="12 without a condition"):
        make_trainer(settings(tmp_path, place, model, conditioning_data_dir=str(tmp_path / "empty")))


def test_the_command_takes_the_flags_of_diffusers_script(
    place: Place, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "shown.png")
    given = settings(
        tmp_path / "run", place, model, max_train_steps=1, validation_steps=1, validation_inference_steps=2
    )
    flags = ["--proportion_empty_prompts", "0.5", "--validation_image", str(tmp_path / "shown.png")]
    flags += ["--validation_prompt", "a red tile", "--enable_xformers_memory_efficient_attention"]
    assert main(["train", "controlnet", *as_options(given), *flags]) == 0
    said = capsys.readouterr()
    assert "is not needed" in said.err
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["settings"]["caption_dropout"] == 0.5
    assert record["settings"]["validation_images"] == [str(tmp_path / "shown.png")]
    assert "--controlnet" in said.err
