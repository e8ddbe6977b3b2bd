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
from tiny_training import COLORS, COMMON, SIZE, Place, as_options, assert_same_runs, interrupt, place
from tiny_xl import encoded, tiny_xl

from ddim.cli import main
from ddim.data import Choice
from ddim.errors import ConfigError, DataError
from ddim.images.conditions import condition_of
from ddim.models import ControlNetModel, UNet2DConditionModel
from ddim.pipelines import (
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
)
from ddim.training import train
from ddim.training.run import make_trainer
from ddim.training.settings import ControlNetSettings

__all__ = ["place"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd1")
    tiny_reference(folder, 1)
    return folder


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xl")
    tiny_xl(folder)
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three shapes, each twice, with their captions; and in `conditions` what each is conditioned on."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "data").mkdir()
    (folder / "conditions").mkdir()
    for number, color in enumerate(COLORS):
        width, height = ((40, 20), (20, 20), (22, 45))[number % 3]
        noise = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "data" / f"{number}.png")
        (folder / "data" / f"{number}.txt").write_text(f"a {color} tile")
        Image.fromarray(noise).save(folder / "conditions" / f"{number}.png")
    return folder


BUCKETS: dict[str, Any] = {"aspect_ratio_buckets": (), "resolution": SIZE, "train_batch_size": 2}


def settings(output_dir: Path, place: Place, model: Path, **changes: Any) -> ControlNetSettings:
    given: dict[str, Any] = {"train_data_dir": str(place.data), "pretrained_model_name_or_path": str(model), **COMMON}
    given |= {"condition": "layout", "condition_cells": 4, "conditioning_embedding_out_channels": (4, 8)}
    if "conditioning_image_column" in changes or "conditioning_data_dir" in changes:
        given["condition"] = None
    given |= changes
    if given["condition"] != "layout" and "condition_cells" not in changes:
        del given["condition_cells"]
    return ControlNetSettings(output_dir=str(output_dir), **given)


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


@pytest.mark.parametrize(("rank", "precision"), [(None, "no"), (2, "no"), (2, "bf16")])
@pytest.mark.thin(fast=["None-no", "2-bf16"])
@pytest.mark.thin(every=2)
def test_one_for_xl_steers_the_pipeline_here_and_in_diffusers(
    rank: int | None, precision: Any, shapes: Path, xl: Path, tmp_path: Path
) -> None:
    data = Place(shapes / "data", xl)
    options: dict[str, Any] = {"rank": rank, "mixed_precision": precision, "max_train_steps": 3, "learning_rate": 1e-2}
    options |= {"validation_steps": 3, "validation_inference_steps": 2}
    train(settings(tmp_path, data, xl, **options, **BUCKETS))
    mine = ControlNetModel.from_pretrained(tmp_path)
    unet = diffusers.UNet2DConditionModel.from_pretrained(xl, subfolder="unet").state_dict()
    same = [name for name, tensor in mine.state_dict().items() if name in unet and tensor.equal(unet[name])]
    # Low-rank matrices leave the biases and norms as they were, to all their digits.
    assert any("resnets.0.conv1.bias" in name for name in same) == (rank is not None)
    moved = [name for name, tensor in mine.state_dict().items() if name in unet and name not in same]
    assert any("attentions" in name for name in moved)
    theirs = diffusers.ControlNetModel.from_pretrained(tmp_path)
    assert theirs.config.addition_embed_type == "text_time"
    shown, latents = Image.open(tmp_path / "condition.png"), torch.randn(1, 4, 8, 8)
    given: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 3, "output_type": "np"}
    drawn = []
    for kind, network, more in (
        (diffusers.StableDiffusionXLControlNetPipeline, theirs, {"add_watermarker": False}),
        (StableDiffusionXLControlNetPipeline, mine, {}),
    ):
        pipe: Any = kind.from_pretrained(xl, controlnet=network, **more)  # type: ignore[attr-defined]
        pipe.set_progress_bar_config(disable=True)
        drawn += [
            pipe("a red tile", image=shown.resize((16, 16)), latents=latents, controlnet_conditioning_scale=s, **given)
            for s in (1.0, 0.0)
        ]
    assert np.abs(drawn[0].images - drawn[2].images).max() < 1e-3
    assert np.abs(drawn[2].images - drawn[3].images).max() > 1e-3


@pytest.mark.parametrize("on_xl", [False, True])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.thin(fast=["None-False", "2-True"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    rank: int | None, on_xl: bool, place: Place, model: Path, xl: Path, shapes: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"rank": rank, "random_flip": True}
    if on_xl:
        place, model = Place(shapes / "data", xl), xl
        options |= {**BUCKETS, "conditioning_data_dir": str(shapes / "conditions"), "center_crop": False}
    else:
        options |= {"random_background": True, "condition": "edges"}
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


@pytest.mark.parametrize("buckets", [False, True])
def test_the_loss_is_that_of_diffusers_script_for_xl(
    buckets: bool, place: Place, shapes: Path, xl: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**BUCKETS, "center_crop": False, "train_data_dir": str(shapes / "data")}
    options = options if buckets else {"resolution": SIZE}
    trainer = make_trainer(settings(tmp_path, place, xl, **options, caption_dropout=0.5, random_flip=True))
    objective: Any = trainer.objective
    objective.prepare({})
    control = objective.controlnet
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in (*control.controlnet_down_blocks, control.controlnet_cond_embedding.conv_out):
            torch.nn.init.normal_(layer.weight, std=0.2)
        for parameter in control.add_embedding.parameters():
            parameter.mul_(1.5)
    seen = set()
    for batch in trainer._loader():
        count = len(batch["caption"])
        assert batch["condition"].shape[2:] == batch["image"].shape[2:] if buckets else (SIZE, SIZE)
        torch.manual_seed(1)
        losses = objective(batch)
        torch.manual_seed(1)
        latents = objective.encode_images(batch)
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (count,))
        with torch.no_grad():
            reference = diffusers.UNet2DConditionModel.from_pretrained(xl, subfolder="unet")
            other = diffusers.ControlNetModel.from_config(control.config)
            other.load_state_dict(control.state_dict())
            scheduler = diffusers.DDPMScheduler.from_pretrained(xl, subfolder="scheduler")
            noisy = scheduler.add_noise(latents, noise, timesteps)
            text, pooled = encoded(xl, batch["caption"])
            sizes = batch["sizes"] if buckets else torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * count)
            told = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}, "return_dict": False}
            down, middle = other(noisy, timesteps, text, controlnet_cond=batch["condition"], **told)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            (predicted,) = reference(noisy, timesteps, text, **told, **added)
        assert torch.allclose((predicted - noise).square().mean((1, 2, 3)), losses.loss, rtol=1e-4)
        seen.add((latents.shape[2:], count))
    assert len({shape for shape, _ in seen}) == (3 if buckets else 1)
    losses.loss.mean().backward()
    assert all(p.grad is None for p in objective.frozen.parameters())
    assert control.add_embedding.linear_1.weight.grad is not None


def test_what_is_not_trained_is_kept_in_the_precision_of_computing(xl: Path, shapes: Path, tmp_path: Path) -> None:
    data = Place(shapes / "data", xl)
    for rank in (None, 2):
        trainer = make_trainer(settings(tmp_path, data, xl, rank=rank, mixed_precision="bf16", **BUCKETS))
        objective: Any = trainer.objective
        assert {parameter.dtype for parameter in objective.unet.parameters()} == {torch.bfloat16}
        own = [*objective.controlnet.parameters()]
        assert {parameter.dtype for parameter in own if parameter.requires_grad} == {torch.float32}
        assert {parameter.dtype for parameter in own if not parameter.requires_grad} <= {torch.bfloat16}


@pytest.mark.parametrize("on_xl", [False, True])
@pytest.mark.parametrize("buckets", [False, True])
def test_conditions_that_are_given_lie_over_their_pictures(
    buckets: bool, on_xl: bool, model: Path, xl: Path, shapes: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"conditioning_data_dir": str(shapes / "conditions"), "cache_latents": False}
    options |= {"center_crop": False, "random_flip": True, **(BUCKETS if buckets else {"resolution": SIZE})}
    base = xl if on_xl else model
    trainer = make_trainer(settings(tmp_path, Place(shapes / "data", base), base, **options))
    trainer.objective.prepare({})
    found = set()
    for batch in trainer._loader():
        assert torch.equal(batch["condition"], batch["image"] / 2 + 0.5)
        found.add(batch["image"].shape[2:])
    assert len(found) == (3 if buckets else 1)


def test_conditions_of_nearly_a_pictures_proportions_are_of_all_of_it_and_others_are_told_of(
    model: Path, shapes: Path, tmp_path: Path
) -> None:
    options = {"conditioning_data_dir": str(tmp_path / "conditions"), "resolution": SIZE}
    (tmp_path / "conditions").mkdir()

    def begun(sizes: tuple[tuple[int, int], ...]) -> Any:
        for number in range(6):
            width, height = sizes[number % 3]
            noise = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "conditions" / f"{number}.png")
        return make_trainer(settings(tmp_path / "run", Place(shapes / "data", model), model, **options)).objective

    rounded = begun(((42, 20), (20, 22), (20, 40)))
    assert not [line for line in rounded.introduction(rounded.settings, 6, 4) if "proportions" in line]
    rounded.prepare({})
    item = rounded.dataset().of(1, Choice())
    whole = Image.open(tmp_path / "conditions" / "1.png").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    assert torch.allclose(item, torch.from_numpy(np.asarray(whole) / 255).permute(2, 0, 1).float(), atol=1e-6)
    other = begun(((20, 20), (20, 20), (20, 40)))
    (line,) = [line for line in other.introduction(other.settings, 6, 4) if "proportions" in line]
    assert line.startswith("2 of 6 conditions that were looked at have other proportions than their pictures, such as")
    assert "20x20 for 40x20" in line


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


@pytest.mark.slow
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
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "blue.png")
    options |= {"validation_prompts": ("a tile",), "num_validation_images": 1}
    options |= {"validation_images": (str(tmp_path / "red.png"), str(tmp_path / "blue.png"))}
    objective = make_trainer(settings(tmp_path / "one", place, model, **options)).objective
    assert objective.prompts() == ["a tile"] * 2
    assert [image.getpixel((0, 0)) for image in objective.shown_conditions()] == [(255, 0, 0), (0, 0, 255)]


def test_a_preview_draws_each_condition_in_the_size_of_its_bucket(model: Path, shapes: Path, tmp_path: Path) -> None:
    objective: Any = make_trainer(settings(tmp_path, Place(shapes / "data", model), model, **BUCKETS)).objective
    conditions = objective.shown_conditions()
    assert len({condition.size for condition in conditions}) == 3
    objective.prepare({})
    finished = objective.finished(objective.networks)
    grid = objective.preview(finished, 3)
    assert grid.width > grid.height
    Image.new("RGB", (60, 30)).save(tmp_path / "wide.png")
    more = {"validation_prompts": ("a tile",), "validation_images": (str(tmp_path / "wide.png"),)}
    other: Any = make_trainer(settings(tmp_path, Place(shapes / "data", model), model, **BUCKETS, **more)).objective
    (wide,) = other.shown_conditions()
    assert wide.size in other.buckets.sizes
    assert wide.width > wide.height


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
        ({"condition_cells": 4, "condition": "edges"}, "condition_cells is for condition=layout"),
        ({"validation_images": ("a.png",), "validation_prompts": ("a",)}, "a.png cannot be read: No such file"),
        ({"controlnet_model_name_or_path": "OTHER"}, "OTHER: the ControlNet is for another model: it has block_out"),
        ({"validation_images": ("a.png",)}, "validation_images needs validation_prompts"),
        (
            {"validation_images": ("a.png",) * 2, "validation_prompts": ("a",) * 3},
            "there are 2 validation_images and 3 validation_prompts",
        ),
    ],
)
def test_settings_that_cannot_work(
    change: dict[str, Any], error: str, place: Place, model: Path, tmp_path: Path
) -> None:
    if "controlnet_model_name_or_path" in change:
        change = {"controlnet_model_name_or_path": str(tmp_path / "OTHER")}
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        unet = UNet2DConditionModel(block_out_channels=(8, 8), norm_num_groups=4, **blocks)
        ControlNetModel.from_unet(unet).save_pretrained(tmp_path / "OTHER")
    with pytest.raises((ConfigError, DataError), match=error):
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
