"""Training on pictures of several shapes: aspect-ratio buckets, from the command line to the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_sd import tiny_reference
from tiny_training import (
    COLORS,
    SIZE,
    Place,
    as_options,
    assert_same,
    assert_same_runs,
    drawing,
    interrupt,
    lora_settings,
    place,
    text_settings,
)

from ddim.checkpoint import read_json, read_tensors
from ddim.cli import main
from ddim.data.buckets import BucketBatches
from ddim.errors import ConfigError
from ddim.training import train
from ddim.training.run import make_objective, make_trainer
from ddim.training.settings import LoraSettings, TextToImageSettings

__all__ = ["place"]

SHAPES = [(16, 16), (40, 20), (20, 40), (32, 32), (24, 16), (300, 20), (16, 16)]


def write_shapes(folder: Path, shapes: list[tuple[int, int]]) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for number, shape in enumerate(shapes):
        color = [*COLORS][number % len(COLORS)]
        drawing(color, number % 2 == 0, shape).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a {color} box, flat style"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def shapes(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(write_shapes(tmp_path_factory.mktemp("shapes") / "data", SHAPES), place.vae)


def bucketed(output_dir: Path, place: Place, **changes: Any) -> TextToImageSettings:
    return text_settings(output_dir, place, **{"aspect_ratio_buckets": (), **changes})


EVERYTHING: dict[str, Any] = {
    "random_flip": True,
    "random_background": True,
    "caption_dropout": 0.3,
    "gradient_accumulation_steps": 2,
    "train_batch_size": 2,
    "max_train_steps": 6,
    "max_tokens": 48,
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"cache_latents": False, "center_crop": False}, {"dataloader_num_workers": 1, "cache_latents": False}],
    ids=["cached", "random crops", "another process reads"],
)
@pytest.mark.thin(fast=["cached"])
def test_a_run_in_two_parts_ends_with_the_same_weights(changes: dict[str, Any], tmp_path: Path, shapes: Place) -> None:
    train(bucketed(tmp_path / "whole", shapes, **EVERYTHING, **changes))
    parts = bucketed(tmp_path / "parts", shapes, **EVERYTHING, **changes)
    interrupt(parts)
    shutil.rmtree(tmp_path / "parts" / "cache", ignore_errors=True)
    train(parts)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("steps", [1, 2, 4, 5])
@pytest.mark.thin(fast=["4"])
def test_a_run_goes_on_at_any_step(steps: int, tmp_path: Path, shapes: Place) -> None:
    whole = train(bucketed(tmp_path / "whole", shapes, lr_decay_steps=6))
    train(bucketed(tmp_path / "parts", shapes, lr_decay_steps=6, max_train_steps=steps, checkpointing_steps=1))
    changed = bucketed(tmp_path / "parts", shapes, lr_decay_steps=6)
    train(changed)
    assert_same(
        *(read_tensors(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (whole, tmp_path / "parts"))
    )


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.thin(fast=["False"])
def test_where_all_pictures_are_square_buckets_change_nothing(cache: bool, tmp_path: Path, place: Place) -> None:
    kinds = ("plain", None), ("buckets", ())
    for name, buckets in kinds:
        train(bucketed(tmp_path / name, place, aspect_ratio_buckets=buckets, cache_latents=cache, random_flip=True))
    assert_same_runs(tmp_path / "plain", tmp_path / "buckets")
    caches = [[(path.name, path.read_bytes()) for path in (tmp_path / name).glob("cache/*")] for name, _ in kinds]
    assert caches[0] == caches[1]
    assert len(caches[0]) == cache


def test_pictures_of_one_shape_that_is_not_square_are_read_without_short_batches(tmp_path: Path, place: Place) -> None:
    one = Place(write_shapes(tmp_path / "data", [(24, 16)] * 7), place.vae)
    trainer = make_trainer(bucketed(tmp_path / "run", one, num_train_epochs=4, max_train_steps=None))
    assert trainer.objective.buckets is not None
    assert trainer.objective.buckets.sizes == ((20, 12),)
    assert trainer.total == 7
    trainer.objective.prepare({})
    assert [batch["latents"].shape for batch in trainer._loader()] == [(4, 2, 4, 6, 10)] * 7


def test_batches_have_one_shape_and_an_epoch_all_pictures(tmp_path: Path, shapes: Place) -> None:
    for cache in (True, False):
        trainer = make_trainer(
            bucketed(tmp_path / "run", shapes, cache_latents=cache, num_train_epochs=3, max_train_steps=None)
        )
        buckets = trainer.objective.buckets
        assert buckets is not None
        assert [buckets.size(index) for index in range(7)] == [
            (16, 16), (20, 12), (12, 20), (16, 16), (20, 12), (32, 8), (16, 16),
        ]  # fmt: skip
        per_epoch = buckets.per_epoch(4)
        assert per_epoch == 4
        assert trainer.total == 12
        trainer.objective.prepare({})
        seen: list[tuple[int, int]] = []
        for batch in trainer._loader():
            height, width = batch["latents"].shape[-2:] if cache else [side // 2 for side in batch["image"].shape[-2:]]
            seen += [(width * 2, height * 2)] * len(batch["weight"])
            assert batch["weight"].tolist() == [len(batch["weight"]) / 4] * len(batch["weight"])
            losses = trainer.model({**batch})
            assert losses.weights is batch["weight"]
        assert sorted(seen) == sorted([buckets.size(index) for index in range(7)] * 3)


def test_cached_latents_are_those_of_the_pictures_in_their_buckets(tmp_path: Path, shapes: Place) -> None:
    cached, direct = (
        make_objective(bucketed(tmp_path, shapes, cache_latents=cache, random_flip=True, caption_dropout=0))
        for cache in (True, False)
    )
    cached.prepare({})
    buckets = cached.buckets
    assert buckets is not None
    for draws in BucketBatches(buckets, 0, 3, range(12)):
        one, other = (
            torch.utils.data.default_collate([objective.dataset()[draw] for draw in draws])  # type: ignore[index]
            for objective in (cached, direct)
        )
        assert one["caption"] == other["caption"]
        latents = direct.vae.encode(other["image"]).latent_dist  # type: ignore[operator, union-attr]
        torch.testing.assert_close(one["latents"][:, 0].float(), latents.mean, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(one["latents"][:, 1].float(), latents.std, rtol=2e-3, atol=2e-3)
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    again = make_objective(bucketed(tmp_path, shapes, random_flip=True, min_bucket_reso=12))
    again.prepare({})
    assert len({path.name for path in (tmp_path / "cache").iterdir()} - names) == 1  # other sizes have their own file


def test_a_short_batch_counts_by_its_pictures(tmp_path: Path, shapes: Place) -> None:
    """Its gradient is the sum of its pictures', divided by what a whole batch would have."""
    trainer = make_trainer(bucketed(tmp_path / "run", shapes, train_batch_size=4))
    trainer.objective.prepare({})
    batch = next(batch for batch in trainer._loader() if len(batch["weight"]) == 1)
    torch.manual_seed(3)
    trainer._backward(batch, 1)
    gradients = [p.grad.clone() for p in trainer.objective.networks.parameters() if p.grad is not None]
    trainer.optimizer.zero_grad()
    torch.manual_seed(3)
    trainer.objective({key: value for key, value in batch.items() if key != "weight"}).loss.sum().backward()
    alone = [p.grad for p in trainer.objective.networks.parameters() if p.grad is not None]
    for one, other in zip(gradients, alone, strict=True):
        torch.testing.assert_close(one, other / 4)


def test_other_shapes_under_the_same_names_are_refused_when_the_run_goes_on(tmp_path: Path, place: Place) -> None:
    data = write_shapes(tmp_path / "data", SHAPES)
    chosen = bucketed(tmp_path / "run", Place(data, place.vae), cache_latents=False)
    train(chosen)
    Image.new("RGB", (20, 40)).save(data / "0.png")
    with pytest.raises(ConfigError, match=r"data is not what the run began with \(buckets_sha256"):
        train(chosen)


# The fast test beside it is test_a_run_in_two_parts_ends_with_the_same_weights.
@pytest.mark.slow
def test_adapters_learn_from_buckets_too(tmp_path: Path, shapes: Place) -> None:
    tiny_reference(tmp_path / "model", 1)
    changes: dict[str, Any] = {"aspect_ratio_buckets": (), "resolution": SIZE, "train_text_encoder": True}
    whole = lora_settings(tmp_path / "whole", shapes, tmp_path / "model", **changes)
    train(whole)
    parts = lora_settings(tmp_path / "parts", shapes, tmp_path / "model", **changes)
    interrupt(parts)
    train(parts)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


# --- what is said and refused ----------------------------------------------------------------------------------------


def test_the_buckets_are_told_before_the_run(tmp_path: Path, shapes: Place, capsys: pytest.CaptureFixture[str]) -> None:
    options = as_options(text_settings(tmp_path / "run", shapes, max_train_steps=4, train_batch_size=8))
    assert main(["train", "text-to-image", *options, "--enable_bucket", "--seed", "3"]) == 0
    said = capsys.readouterr().err
    assert "7 pictures in 4 buckets, 4 steps of 8: 1 epoch\n" in said
    assert "buckets, with their pictures: 16x16 (3), 20x12 (2), 32x8 (1), 12x20 (1). 16x16, the largest, " in said
    assert "of a picture is cropped on average" in said
    assert "an epoch is 4 batches, of 1.75 pictures on average: a bucket's last one has those that are left" in said
    assert "most batches have fewer pictures than there is room for: --train-batch-size 2 " in said
    assert "a step of 8 is more than all" not in said
    assert read_json(tmp_path / "run" / "training.json")["settings"]["aspect_ratio_buckets"] == []


def test_small_pictures_are_told_of(tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    small = Place(write_shapes(tmp_path / "data", [(12, 8), (8, 12), (8, 12), (16, 16)]), place.vae)
    trainer = make_trainer(bucketed(tmp_path / "run", small, train_batch_size=1))
    assert "3 of 4 pictures are smaller than their bucket" in "\n".join(
        trainer.objective.introduction(trainer.settings, 6, 1)
    )
    kept = make_objective(bucketed(tmp_path / "run", small, bucket_no_upscale=True))
    assert kept.buckets is not None
    assert kept.buckets.sizes == ((8, 12), (16, 16), (12, 8))


LISTED = "16,16;8,20;20,8"


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (["--aspect_ratio_buckets", LISTED], ((16, 16), (8, 20), (20, 8))),
        ([f"--aspect-ratio-buckets={LISTED};"], ((16, 16), (8, 20), (20, 8))),
        (["--aspect-ratio-buckets"], ()),
        (["--aspect-ratio-buckets", "None"], None),
    ],
)
def test_sizes_are_made_or_listed_as_diffusers_lists_them(
    options: list[str], sizes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LoraSettings] = []
    monkeypatch.setattr("ddim.training.train", seen.append)
    monkeypatch.setattr("ddim.training.run.make_trainer", seen.append)
    arguments = ["train", "lora", "--output-dir", str(tmp_path / "x"), "--train-data-dir", str(tmp_path), *options]
    main(arguments)
    assert seen[0].aspect_ratio_buckets == sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-bucket-reso", "256"], "--min-bucket-reso is for --aspect-ratio-buckets: give that, too"),
        (["--bucket-no-upscale"], "--bucket-no-upscale is for --aspect-ratio-buckets"),
        (["--aspect-ratio-buckets", "8,8", "--max-bucket-reso", "9"], "--max-bucket-reso says how buckets are made"),
        (["--aspect-ratio-buckets", "0,8"], "the sides in --aspect-ratio-buckets must be 1 or more"),
        (["--aspect-ratio-buckets", "--bucket-reso-steps", "0"], "--bucket-reso-steps must be 1 or more"),
        (
            ["--aspect-ratio-buckets", "--min-bucket-reso", "9", "--max-bucket-reso", "8"],
            "--min-bucket-reso 9 is above --max-bucket-reso 8: exchange them",
        ),
        (["--aspect-ratio-buckets", "--resolution", "8", "--min-bucket-reso", "9"], "--resolution 8 must be between"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_loaded(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "lora", "--output-dir", str(tmp_path / "x"), "--train-data-dir", str(tmp_path)]
    assert main([*arguments, "--pretrained-model-name-or-path", "not/there", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_list_that_is_none_is_no_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "lora", "--output-dir", str(tmp_path / "x"), "--train-data-dir", str(tmp_path)]
    for wrong in ("8x8", "8", "8,8,8", "-8,8"):
        with pytest.raises(SystemExit):
            main([*arguments, f"--aspect-ratio-buckets={wrong}"])
        assert "height,width" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bucket_reso_steps": 6}, "bucket_reso_steps must be a multiple of 4 for this model, not 6"),
        ({"aspect_ratio_buckets": ((16, 18),)}, "must be multiples of 4 for this model, not 18"),
        ({"min_bucket_reso": 13, "max_bucket_reso": 19, "bucket_reso_steps": 12}, "no bucket has sides"),
    ],
)
def test_sizes_that_a_model_cannot_have_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, shapes: Place
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_objective(bucketed(tmp_path, shapes, **changes))
