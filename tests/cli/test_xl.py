"""The command line with Stable Diffusion XL: its options, its refiner, and the commands that draw texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import original
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_xl import tiny_xl

import ddim
from ddim.cli import main
from ddim.models.tokenizer import CLIPTokenizer
from ddim.noise import seeded_generators
from ddim.pipelines import StableDiffusionXLPipeline


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("base", "refiner"):
        tiny_xl(folder / kind, kind)  # type: ignore[arg-type]
    return {kind: folder / kind for kind in ("base", "refiner")}


def run(*words: Any) -> int:
    return main([str(word) for word in words])


def drawn(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=int)


def pipeline(folder: Path) -> Any:
    pipe = StableDiffusionXLPipeline.from_pipe(ddim.DiffusionPipeline.from_pretrained(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


OPTIONS = [
    "--prompt-2", "a dog", "--negative-prompt", "bad", "--negative-prompt-2", "blurry", "--original-size", 99, 77,
    "--crop", 3, 4, "--target-size", 512, 256, "--steps", 4, "--height", 24, "--width", 32, "--seed", 5, "--scale", 1,
]  # fmt: skip
CALL: dict[str, Any] = {
    "prompt": "a red cat",
    "prompt_2": "a dog",
    "negative_prompt": "bad",
    "negative_prompt_2": "blurry",
    "original_size": (99, 77),
    "crops_coords_top_left": (3, 4),
    "target_size": (512, 256),
    "num_inference_steps": 4,
}


def test_a_picture_is_that_of_the_call_and_is_made_again(models: dict[str, Path], tmp_path: Path) -> None:
    out, again = tmp_path / "a.png", tmp_path / "b.png"
    assert run("sample", "a red cat", "--model", models["base"], *OPTIONS, "--out", out) == 0
    expected = pipeline(models["base"])(**CALL, height=24, width=32, seed=5).images[0]
    assert np.abs(drawn(out) - np.asarray(expected, dtype=int)).max() <= 1
    assert run("sample", "--from", out, "--trust", "--out", again) == 0
    assert np.array_equal(drawn(again), drawn(out))
    other = tmp_path / "c.png"
    assert run("sample", "--from", out, "--trust", "--crop", 0, 0, "--out", other) == 0
    assert not np.array_equal(drawn(other), drawn(out))


def test_all_else_that_it_is_told(models: dict[str, Path], tmp_path: Path) -> None:
    image, out, again = tmp_path / "start.png", tmp_path / "a.png", tmp_path / "b.png"
    Image.effect_noise((16, 16), 60).convert("RGB").save(image)
    beside = ["--image", image]
    sizes = ["--negative-original-size", 9, 7, "--negative-crop", 1, 2, "--negative-target-size", 8, 9]
    shares = ["--denoising-start", 0.25, "--denoising-end", 0.75]
    asked = ["a red cat", "--model", models["base"], "--steps", 8, "--seed", 5, "--scale", 1, *sizes, *shares]
    assert run("sample", *asked, *beside, "--out", out) == 0
    told: dict[str, Any] = {"negative_original_size": (9, 7), "negative_crops_coords_top_left": (1, 2)}
    told |= {"negative_target_size": (8, 9), "denoising_start": 0.25, "denoising_end": 0.75, "num_inference_steps": 8}
    expected = pipeline(models["base"])("a red cat", image=Image.open(image), seed=5, **told).images[0]
    assert np.abs(drawn(out) - np.asarray(expected, dtype=int)).max() <= 1
    assert run("sample", "--from", out, "--trust", *beside, "--out", again) == 0
    assert np.array_equal(drawn(again), drawn(out))
    asked = ["a", "--model", models["refiner"], "--steps", 4, *beside, "--aesthetic-score", 9, "--out", out]
    assert run("sample", *asked, "--negative-aesthetic-score", 1, "--overwrite", "--scale", 1) == 0
    scores = {"aesthetic_score": 9.0, "negative_aesthetic_score": 1.0}
    expected = pipeline(models["refiner"])(
        "a", image=Image.open(image), strength=0.8, num_inference_steps=4, seed=0, **scores
    ).images[0]
    assert np.abs(drawn(out) - np.asarray(expected, dtype=int)).max() <= 1


def test_a_table_says_what_sample_says(models: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        {"prompt": "a red cat", "prompt_2": "a dog", "negative_prompt_2": "bad", "crop": [3, 4], "seed": 1},
        {"prompt": "a red cat", "original_size": [99, 77], "negative_crops_coords_top_left": [1, 2], "seed": 2},
        {"prompt": "a red cat", "denoising_end": 0.5, "seed": 3},
    ]
    options = [
        ["--prompt-2", "a dog", "--negative-prompt-2", "bad", "--crop", 3, 4, "--seed", 1],
        ["--original-size", 99, 77, "--negative-crop", 1, 2, "--seed", 2],
        ["--denoising-end", 0.5, "--seed", 3],
    ]
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps({"id": str(n), **row}) + "\n" for n, row in enumerate(rows)))
    same = ["--model", models["base"], "--steps", 4, "--target-size", 48, 32]
    assert run("generate", table, *same, "--out", tmp_path / "out") == 0
    for number, more in enumerate(options):
        one = tmp_path / f"{number}.png"
        assert run("sample", "a red cat", *same, *more, "--scale", 1, "--out", one) == 0
        picture = tmp_path / "out" / "00000" / f"{number}.png"
        assert np.abs(drawn(picture) - drawn(one)).max() <= 1
        assert run("sample", "--from", picture, "--trust", "--out", tmp_path / f"{number}-again.png") == 0
        assert np.abs(drawn(tmp_path / f"{number}-again.png") - drawn(one)).max() <= 1
    table = tmp_path / "bad.csv"
    table.write_text("prompt,aesthetic_score\na,5\n")
    assert run("generate", table, *same, "--out", tmp_path / "bad") == 1
    assert "aesthetic_score changes nothing" in (tmp_path / "bad" / "errors.jsonl").read_text()


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.thin(fast=["True"])
def test_the_refiner_makes_the_last_steps(start: bool, models: dict[str, Path], tmp_path: Path) -> None:
    out, again, image = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "start.png"
    Image.effect_noise((32, 24), 60).convert("RGB").save(image)
    more = ["--image", image, "--strength", 0.9] if start else []
    asked = ["a red cat", "--model", models["base"], *OPTIONS, *more, "--refiner", models["refiner"]]
    assert run("sample", *asked, "--refiner-start", 0.5, "--out", out) == 0
    given: dict[str, Any] = {**CALL, "generator": seeded_generators(5, 1)}
    size: dict[str, Any] = {"height": 24, "width": 32}
    if start:
        size |= {"image": Image.open(image), "strength": 0.9}
    latents = pipeline(models["base"])(**given, **size, denoising_end=0.5, output_type="latent").images
    expected = pipeline(models["refiner"])(**given, image=latents, denoising_start=0.5).images[0]
    assert np.abs(drawn(out) - np.asarray(expected, dtype=int)).max() <= 1
    beside = ["--refiner", models["refiner"], *(["--image", image] if start else [])]
    assert run("sample", "--from", out, "--trust", *beside, "--out", again) == 0
    assert np.array_equal(drawn(again), drawn(out))


def test_a_refiner_of_one_file_has_the_models_tokenizer(models: dict[str, Path], tmp_path: Path) -> None:
    words = len(CLIPTokenizer.from_pretrained(models["base"] / "tokenizer"))
    of_text = {**original.TINY_BIG_G, "words": words, "positions": 77}
    file, out = tmp_path / "refiner.safetensors", tmp_path / "a.png"
    save_file(original.tensors(original.xl_shapes(refiner=True, of_text_2=of_text)), file)
    asked = ["a red cat", "--model", models["base"], "--refiner", file, "--steps", 2, "--refiner-start", 0.5]
    assert run("sample", *asked, "--height", 16, "--width", 16, "--out", out) == 0
    assert out.exists()


def test_a_recipe_names_no_refiner(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.png"
    asked = ["a", "--model", models["base"], "--refiner", models["refiner"], "--steps", 4, "--batch", 2]
    assert run("sample", *asked, "--out", out) == 0
    assert run("sample", "--from", out, "--trust", "--out", tmp_path / "b.png") == 1
    assert "--refiner" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "emoji", "--prompt-2", "b"], "--prompt-2 is for Stable Diffusion XL, which emoji is not"),
        (["--model", "emoji", "--refiner", "emoji"], "--refiner is for Stable Diffusion XL, which emoji is not"),
        (["--model", "BASE", "--refiner", "emoji"], "--refiner emoji is a StableDiffusionPipeline, and no Stable"),
        (["--model", "BASE", "--refiner-start", "0.5"], "--refiner-start says where --refiner takes over"),
        (["--model", "BASE", "--refiner", "BASE", "--refiner-start", "2"], "--refiner-start"),
        (["--model", "BASE", "--refiner", "BASE", "--refiner-start", "1"], "must be above 0 and below 1, not 1"),
        (
            ["--model", "BASE", "--negative-prompt-2", "b", "--guidance-scale", "1"],
            "--negative-prompt-2 changes nothing without guidance",
        ),
        (["--model", "BASE", "--crop", "-1", "0"], "--crop"),
        (["--model", "BASE", "--denoising-start", "0.5"], "--denoising-start needs what another model left there"),
        (["--model", "BASE", "--denoising-end", "0"], "--denoising-end must be above 0"),
        (["--model", "BASE", "--refiner", "BASE", "--denoising-end", "0.5"], "leave --denoising-end out"),
        (["--model", "BASE", "--negative-crop", "1", "2", "--guidance-scale", "1"], "--negative-crop changes nothing"),
        (["--model", "emoji", "--aesthetic-score", "5"], "--aesthetic-score is for Stable Diffusion XL"),
        (["--model", "BASE", "--original-size", "5"], "--original-size"),
        (["--model", "BASE", "--refiner", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_what_cannot_work_is_one_line(
    options: list[str], message: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(models["base"]) if word == "BASE" else word for word in options]
    with pytest.raises(SystemExit) as end:  # which the parser ends with, where an option is not what it takes
        sys.exit(run("sample", "a", *given, "--steps", 2, "--out", tmp_path / "a.png"))
    assert end.value.code in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "a.png").exists()


# The fast test beside it is test_a_picture_is_that_of_the_call_and_is_made_again.
@pytest.mark.slow
def test_the_other_commands_take_it(models: dict[str, Path], tmp_path: Path) -> None:
    base, image = models["base"], tmp_path / "start.png"
    Image.effect_noise((16, 16), 60).convert("RGB").save(image)
    how = ["--model", base, "--steps", 3]
    assert run("interpolate", "a cat", "a dog", *how, "--frames", 3, "--out", tmp_path / "i.png") == 0
    assert run("interpolate", "a cat", *how, "--seeds", 0, 1, "--frames", 3, "--out", tmp_path / "s.png") == 0
    noise = tmp_path / "noise.safetensors"
    assert run("invert", image, *how, "--prompt", "a cat", "--out", noise) == 0
    assert run("sample", "--from", noise, "--trust", "--out", tmp_path / "back.png") == 0
    edit = ["--source", "a cat", "--target", "a dog"]
    assert run("edit", image, *edit, *how, "--out", tmp_path / "e.png") == 0
    assert run("info", base) == 0
    assert run("plot", "trajectory", "a cat", *how, "--out", tmp_path / "t.png") == 0


def test_a_job_draws_with_it(models: dict[str, Path], tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,prompt,seed\na,a red cat,5\nb,a dog,6\n")
    out = tmp_path / "out"
    assert run("generate", rows, "--model", models["base"], "--steps", 3, "--out", out) == 0
    expected = pipeline(models["base"])("a red cat", num_inference_steps=3, seed=5).images[0]
    (picture,) = out.rglob("a.png")
    assert np.abs(drawn(picture) - np.asarray(expected, dtype=int)).max() <= 1
    assert torch.is_grad_enabled()
