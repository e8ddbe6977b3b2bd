"""`ddim sample --controlnet`: what is shown to which network, what the picture says of it, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_control import tiny_control
from tiny_sd import tiny_reference

from ddim.cli import main
from ddim.images import condition_image
from ddim.models import ControlNetModel
from ddim.pipelines import StableDiffusionPipeline

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two ControlNets a and b for it, and two pictures."""
    folder = tmp_path_factory.mktemp("here")
    theirs = tiny_reference(folder / "model", 1)
    for seed, name in enumerate("ab"):
        tiny_control(folder / name, theirs.unet, seed)
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def sample(here: Path, out: Path, *words: str) -> int:
    options = ["--model", str(here / "model"), "--steps", "2", "--spacing", "leading", "--scale", "1", "--overwrite"]
    return main(["sample", "a cat", *options, *words, "--out", str(out)])


def drawn(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_command_draws_what_the_pipeline_draws(here: Path, tmp_path: Path) -> None:
    words = ["--controlnet", f"{here / 'a'}=0.7", "--control-image", str(here / "0.png")]
    assert sample(here, tmp_path / "one.png", *words) == 0
    assert (
        sample(
            here, tmp_path / "two.png", *words, "--controlnet", str(here / "b"), "--control-image", str(here / "1.png")
        )
        == 0
    )
    pipe = StableDiffusionPipeline.from_pretrained(here / "model")
    pipe.set_progress_bar_config(disable=True)
    networks = [ControlNetModel.from_pretrained(here / name) for name in "ab"]
    shown = [Image.open(here / f"{k}.png") for k in range(2)]
    given = {"num_inference_steps": 2, "seed": 0, "guidance_scale": 7.5}
    pipe.controlnet = networks[0]
    one = pipe("a cat", control_image=shown[0], controlnet_conditioning_scale=0.7, **given).images[0]
    assert np.abs(np.asarray(one).astype(int) - drawn(tmp_path / "one.png")).max() <= 1
    pipe.controlnet = networks
    two = pipe("a cat", control_image=shown, controlnet_conditioning_scale=[0.7, 1.0], **given).images[0]
    assert np.abs(np.asarray(two).astype(int) - drawn(tmp_path / "two.png")).max() <= 1
    assert not np.array_equal(drawn(tmp_path / "one.png"), drawn(tmp_path / "two.png"))


def test_a_file_draws_what_its_folder_draws(here: Path, tmp_path: Path) -> None:
    shown = ["--control-image", str(here / "0.png")]
    file = (here / "a/diffusion_pytorch_model.safetensors").rename(tmp_path / "canny.safetensors")
    assert sample(here, tmp_path / "file.png", "--controlnet", f"{file}=0.7", *shown) == 0
    file.rename(here / "a/diffusion_pytorch_model.safetensors")
    assert sample(here, tmp_path / "folder.png", "--controlnet", f"{here / 'a'}=0.7", *shown) == 0
    assert np.array_equal(drawn(tmp_path / "file.png"), drawn(tmp_path / "folder.png"))


@pytest.mark.parametrize("condition", ["edges", "layout"])
def test_a_condition_is_made_as_in_training(condition: str, here: Path, tmp_path: Path) -> None:
    condition_image(Image.open(here / "0.png"), condition, 4).save(tmp_path / "made.png")
    words = ["--controlnet", str(here / "a")]
    made = ["--control-from", str(here / "0.png"), "--condition", condition, "--condition-cells", "4"]
    assert sample(here, tmp_path / "from.png", *words, *made) == 0
    assert sample(here, tmp_path / "given.png", *words, "--control-image", str(tmp_path / "made.png")) == 0
    assert np.array_equal(drawn(tmp_path / "from.png"), drawn(tmp_path / "given.png"))


def test_a_picture_is_made_again_of_its_recipe_and_the_files(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--controlnet", str(here / "a"), "--control-from", str(here / "0.png")]
    assert sample(here, tmp_path / "first.png", *files, "--condition", "layout", "--condition-cells", "4") == 0
    again = ["sample", "--from", str(tmp_path / "first.png"), "--trust", "--out", str(tmp_path / "again.png")]
    assert main(again) == 1
    assert "--controlnet" in capsys.readouterr().err
    assert main([*again, *files]) == 0
    assert np.array_equal(drawn(tmp_path / "first.png"), drawn(tmp_path / "again.png"))


def test_what_is_shown_decides_the_size_unless_something_else_does(here: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
    words = ["--controlnet", str(here / "a"), "--control-image", str(tmp_path / "wide.png")]
    assert sample(here, tmp_path / "wide-one.png", *words) == 0
    assert drawn(tmp_path / "wide-one.png").shape == (8, 24, 3)
    assert sample(here, tmp_path / "square.png", *words, "--image", str(here / "0.png")) == 0
    assert drawn(tmp_path / "square.png").shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--controlnet", "{here}/a"], "there is no picture for it"),
        (["--control-image", "{here}/0.png"], "are for --controlnet"),
        (["--controlnet", "{here}/nowhere", "--control-image", "{here}/0.png"], "there is no folder"),
        (["--controlnet", "{here}/0.png", "--control-image", "{here}/0.png"], "is no .safetensors file: give one"),
        (["--controlnet", "{here}/x.safetensors", "--control-image", "{here}/0.png"], "there is no file"),
        (["--controlnet", "{here}/model/" + UNET + "=0.5", "--control-image", "{here}/0.png"], "is a U-Net, and no"),
        (["--controlnet", "{here}/a=strong", "--control-image", "{here}/0.png"], "'strong' where its scale should be"),
        (["--controlnet", "{here}/a", "--control-image", "{here}/2.png"], "2.png"),
        (["--controlnet", "{here}/a", "--control-from", "{here}/0.png"], "--control-from needs --condition"),
        (["--condition", "edges"], "--condition says what is made of --control-from"),
        (["--controlnet", "{here}/model/unet", "--control-image", "{here}/0.png"], "not a ControlNetModel"),
        (
            ["--controlnet", "{here}/a", "{here}/b", "--control-image", "{here}/0.png"],
            "2 ControlNets and 1 picture for them",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence(
    words: list[str], error: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(here, tmp_path / "a.png", *[word.format(here=here) for word in words]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert any(part in said[0] for part in error.split("|"))
    assert not (tmp_path / "a.png").exists()


def test_how_it_acts_is_said_and_is_in_the_recipe(here: Path, tmp_path: Path) -> None:
    words = [
        "--controlnet",
        f"{here / 'a'}=2",
        str(here / "b"),
        "--control-image",
        str(here / "0.png"),
        str(here / "1.png"),
    ]
    how = ["--guess-mode", "--control-guidance-start", "0.5", "--control-guidance-end", "0.75", "1"]
    assert sample(here, tmp_path / "one.png", *words, *how, "--steps", "4") == 0
    pipe = StableDiffusionPipeline.from_pretrained(here / "model")
    pipe.set_progress_bar_config(disable=True)
    pipe.controlnet = [ControlNetModel.from_pretrained(here / name) for name in "ab"]
    shown = [Image.open(here / f"{k}.png") for k in range(2)]
    expected = pipe(
        "a cat", num_inference_steps=4, seed=0, control_image=shown, controlnet_conditioning_scale=[2.0, 1.0],
        guess_mode=True, control_guidance_start=[0.5, 0.5], control_guidance_end=[0.75, 1.0],
    ).images[0]  # fmt: skip
    difference = drawn(tmp_path / "one.png").astype(int) - np.asarray(expected, dtype=int)
    assert np.abs(difference).max() <= 1
    again = ["sample", "--from", str(tmp_path / "one.png"), "--trust", *words, "--out", str(tmp_path / "two.png")]
    assert main(again) == 0
    assert np.array_equal(drawn(tmp_path / "one.png"), drawn(tmp_path / "two.png"))


def test_a_table_says_what_is_shown_and_how_strongly(here: Path, tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes((here / name).read_bytes())
    table = tmp_path / "rows.csv"
    table.write_text(
        "id,prompt,seed,control_image,control_scale,guess_mode,control_guidance_end\n"
        "a,a cat,0,0.png,,,\n"
        "b,a cat,0,0.png,0.7,,\n"
        "c,a cat,0,,,,\n"
        "d,a cat,0,1.png,2,true,0.5\n"
        "e,a cat,0,gone.png,,,\n"
    )
    same = ["--model", str(here / "model"), "--steps", "2", "--spacing", "leading"]
    first = ["--controlnet", f"{here / 'a'}=0.4"]
    assert main(["generate", str(table), "--out", str(tmp_path / "out"), *same, *first]) == 1
    options = {
        "a": [*first, "--control-image", str(here / "0.png")],
        "b": ["--controlnet", f"{here / 'a'}=0.7", "--control-image", str(here / "0.png")],
        "c": [],
        "d": [
            "--controlnet", f"{here / 'a'}=2", "--control-image", str(here / "1.png"), "--guess-mode",
            "--control-guidance-end", "0.5",
        ],
    }  # fmt: skip
    for name, words in options.items():
        assert sample(here, tmp_path / f"{name}.png", *words) == 0
        picture = tmp_path / "out" / "00000" / f"{name}.png"
        difference = drawn(picture).astype(int) - drawn(tmp_path / f"{name}.png").astype(int)
        assert np.abs(difference).max() <= 1, name
        again = ["sample", "--from", str(picture), "--trust", *words, "--out", str(tmp_path / f"{name}-again.png")]
        assert main(again) == 0
        assert np.abs(drawn(tmp_path / f"{name}-again.png").astype(int) - drawn(picture).astype(int)).max() <= 1
    (error,) = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert "gone.png" in error


def test_a_row_may_show_several_and_bytes_do_not_depend_on_companions(here: Path, tmp_path: Path) -> None:
    pictures = [str(here / "0.png"), str(here / "1.png")]
    rows = [{"id": str(n), "prompt": "a cat", "control_image": pictures[:: (-1) ** n]} for n in range(3)]
    rows.append({"id": "3", "prompt": "a dog"})
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    networks = ["--controlnet", str(here / "a"), str(here / "b"), "--control-guidance-start", "0", "0.5"]
    same = ["--model", str(here / "model"), "--steps", "2", *networks]
    for out, more in (("one", ["--batch-size", "1"]), ("four", ["--batch-size", "4"])):
        assert main(["generate", str(table), "--out", str(tmp_path / out), *same, *more]) == 0
    for n in range(4):
        one, four = ((tmp_path / out / "00000" / f"{n}.png").read_bytes() for out in ("one", "four"))
        assert one == four
    assert "files" in (tmp_path / "one" / "manifest.jsonl").read_text()


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ("control_image", [], "and MODEL has no ControlNet: give --controlnet"),
        ("image", ["--guess-mode"], "--guess-mode is for --controlnet"),
        ("control_from", [], "make the pictures that ControlNets are shown beforehand"),
        ("control_image", ["--controlnet", "A", "--control-guidance-end", "1", "1"], "has 2 numbers for 1 ControlNets"),
    ],
)
def test_a_job_that_cannot_work(
    columns: str, options: list[str], message: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(f"prompt,{columns}\na cat,{here / '0.png'}\n")
    words = [str(here / "a") if word == "A" else word for word in options]
    model = str(here / "model")
    assert main(["generate", str(table), "--out", str(tmp_path / "out"), "--model", model, *words]) == 1
    assert message.replace("MODEL", model) in capsys.readouterr().err


def test_a_model_without_texts_takes_none(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--controlnet", str(here / "a"), "--control-image", str(here / "0.png")]
    assert main(["sample", "--model", "digits", *words, "--out", str(tmp_path / "a.png")]) == 1
    assert "--controlnet" in capsys.readouterr().err
