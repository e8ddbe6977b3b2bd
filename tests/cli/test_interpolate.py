"""`ddim interpolate`, used as a person would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from tiny import save_tiny
from tiny_sd import tiny_reference

from ddim.cli import main
from ddim.pipelines import DDIMPipeline, StableDiffusionPipeline


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny class-conditional pipeline of three classes and a null class; grey, 8x8."""
    torch.manual_seed(0)
    return save_tiny(tmp_path_factory.mktemp("digits"), num_class_embeds=4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny text-to-image pipeline for 16x16 pictures."""
    folder = tmp_path_factory.mktemp("texts")
    recipe = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    tiny_reference(folder, 1, prediction_type="v_prediction", **recipe)
    return str(folder)


def interpolate(*arguments: Any) -> int:
    return main(["interpolate", *map(str, arguments), "--steps", "2", "--overwrite"])


def cells(path: Path, columns: int, rows: int = 1) -> list[np.ndarray[Any, Any]]:
    """The pictures of a strip or square, row by row, without the gaps."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), int)
    height, width = (pixels.shape[0] + 2) // rows, (pixels.shape[1] + 2) // columns
    assert pixels.shape[:2] == (rows * height - 2, columns * width - 2)
    return [
        pixels[row * height : (row + 1) * height - 2, column * width : (column + 1) * width - 2]
        for row in range(rows)
        for column in range(columns)
    ]


def drawn(model: str, seed: int, prompt: str | None = None, **more: Any) -> np.ndarray[Any, Any]:
    """What the pipeline itself draws, enlarged to 64 pixels."""
    kind = DDIMPipeline if prompt is None else StableDiffusionPipeline
    pipe: Any = kind.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    given = () if prompt is None else (prompt,)
    image = pipe(*given, num_inference_steps=2, seed=seed, **more).images[0].convert("RGB")
    return np.asarray(image.resize((64, 64), Image.Resampling.NEAREST), int)


def close(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    """Equal, but for the rounding of networks on batches of other sizes."""
    return found.shape == expected.shape and int(np.abs(found - expected).max()) <= 2


def test_between_seeds(digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "strip.png"
    assert interpolate("--seeds", 4, 0, 9, "--frames", 3, "--model", digits, "--out", out) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "5 frames" in printed.err
    frames = cells(out, 5)
    for place, seed in ((0, 4), (2, 0), (4, 9)):
        assert close(frames[place], drawn(digits, seed))
    with Image.open(out) as image:
        note = json.loads(image.info["ddim"])
    assert note["command"] == "interpolate"
    assert note["settings"]["seeds"] == [4, 0, 9]
    assert note["settings"]["guidance_scale"] == 1


def test_a_row_for_each_leg(digits: str, tmp_path: Path) -> None:
    out = tmp_path / "strip.png"
    assert interpolate("--seeds", 4, 0, 9, "--frames", 3, "--rows", "--model", digits, "--out", out) == 0
    frames = cells(out, 3, 2)
    for place, seed in ((0, 4), (2, 0), (3, 0), (5, 9)):
        assert close(frames[place], drawn(digits, seed))


def test_without_options_it_goes_from_seed_0_to_1(digits: str, tmp_path: Path) -> None:
    assert interpolate("--model", digits, "--out", tmp_path / "x.png") == 0
    frames = cells(tmp_path / "x.png", 8)
    assert close(frames[0], drawn(digits, 0))
    assert close(frames[7], drawn(digits, 1))


@pytest.mark.parametrize("size", [1, 3])
def test_the_batch_size_changes_nothing(digits: str, tmp_path: Path, size: int) -> None:
    for name, batch in (("a", 16), ("b", size)):
        assert interpolate("--model", digits, "--batch-size", batch, "--out", tmp_path / f"{name}.png") == 0
    for one, other in zip(cells(tmp_path / "a.png", 8), cells(tmp_path / "b.png", 8), strict=True):
        assert close(one, other)


def test_between_classes(digits: str, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    options = ["--class-labels", 0, 2, "--guidance-scale", 2, "--frames", 3, "--model", digits]
    assert interpolate(*options, "--out", out) == 0
    frames = cells(out, 3)
    for place, label in ((0, 0), (2, 2)):
        assert close(frames[place], drawn(digits, 0, class_labels=label, guidance_scale=2.0))
    assert interpolate("--class-labels", 1, "--seeds", 0, 1, "--frames", 2, "--model", digits, "--out", out) == 0
    assert close(cells(out, 2)[1], drawn(digits, 1, class_labels=1))


def test_a_square_between_four_seeds_and_four_classes(digits: str, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    options = ["--grid", "--frames", 3, "--model", digits, "--out", out]
    assert interpolate("--seeds", 0, 1, 2, 3, "--class-labels", 0, 1, 2, 0, *options) == 0
    frames = cells(out, 3, 3)
    for place, seed, label in ((0, 0, 0), (2, 1, 1), (6, 2, 2), (8, 3, 0)):
        assert close(frames[place], drawn(digits, seed, class_labels=label))
    assert interpolate(*options) == 0  # the seeds 0 to 3
    assert close(cells(out, 3, 3)[6], drawn(digits, 2))


def test_between_texts(texts: str, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    for extra in ([], ["--between-texts", "spherical"]):
        assert interpolate("a red cat", "a blue dog", *extra, "--frames", 3, "--model", texts, "--out", out) == 0
        frames = cells(out, 3)
        for place, text in ((0, "a red cat"), (2, "a blue dog")):
            assert close(frames[place], drawn(texts, 0, text, guidance_scale=3.0, guidance_rescale=0.7))
    negative = ["--negative-prompt", "blue", "--guidance-scale", 5, "--guidance-rescale", 0]
    assert interpolate("a cat", "--seeds", 1, 2, *negative, "--frames", 2, "--model", texts, "--out", out) == 0
    expected = drawn(texts, 2, "a cat", guidance_scale=5.0, negative_prompt="blue")
    assert close(cells(out, 2)[1], expected)


def _pictures(folder: Path, count: int = 2) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [folder / f"given{i}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(60, 200, (16, 16, 3), np.uint8)).save(path)
    return [str(path) for path in paths]


def _found(folder: Path, frames: int) -> list[np.ndarray[Any, Any]]:
    files = sorted(folder.glob("0*.png"))
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(frames)]
    return [np.asarray(Image.open(file), int) for file in files]


@pytest.mark.parametrize(("method", "steps", "error"), [("ddim", 50, 0.01), ("fixed-point", 10, 1e-4)])
@pytest.mark.thin(fast=["fixed-point-10-0.0001"])
def test_between_real_pictures_through_their_noise(tmp_path: Path, method: str, steps: int, error: float) -> None:
    """With the bundled model: the ends are the pictures, and the middle is neither nor their mixture."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    given = load_digits().images[[0, 1]] * (255 / 16)
    names = [str(tmp_path / f"{number}.png") for number in range(2)]
    for name, pixels in zip(names, given, strict=True):
        Image.fromarray(pixels.astype(np.uint8)).save(name)
    out = tmp_path / "frames"
    options = ["--method", method, "--steps", str(steps), "--frames", "3", "--model", "digits"]
    assert main(["interpolate", "--images", *names, *options, "--out", f"{out}/"]) == 0
    first, middle, last = _found(out, 3)
    for frame, pixels in ((first, given[0]), (last, given[1])):
        assert np.mean(((frame - pixels) / 255) ** 2) < error  # the paper's table 2 has 0.0023 for 50 steps
    assert np.mean(((middle - given.mean(0)) / 255) ** 2) > 0.01


# The fast test beside it is test_between_texts.
@pytest.mark.slow
def test_between_pictures_by_a_text_to_image_model(texts: str, tmp_path: Path) -> None:
    """Under one text, one for each, or none; the guidance is off."""
    names = _pictures(tmp_path)
    made = []
    for number, prompts in enumerate((["a cat"], ["a cat", "a dog"], [])):
        out = tmp_path / f"{number}.png"
        assert interpolate(*prompts, "--images", *names, "--frames", 3, "--model", texts, "--out", out) == 0
        made.append(np.stack(cells(out, 3)))
        with Image.open(out) as image:
            assert json.loads(image.info["ddim"])["settings"]["guidance_scale"] == 1
    assert not np.array_equal(made[0], made[1])
    assert interpolate("a cat", "a dog", "--images", names[0], "--model", texts, "--out", tmp_path / "x.png") == 0


@pytest.mark.parametrize(
    ("suffix", "options", "count"), [("gif", [], 4), ("webp", ["--loop"], 6), ("mp4", ["--loop", "--scale", "5"], 6)]
)
def test_animations(digits: str, tmp_path: Path, suffix: str, options: Sequence[str], count: int) -> None:
    out = tmp_path / f"x.{suffix}"
    assert interpolate("--model", digits, "--frames", 4, "--fps", 10, *options, "--out", out) == 0
    if suffix == "mp4":
        av = pytest.importorskip("av")
        with av.open(str(out)) as file:
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert frames[0].shape == (40, 40, 3)
    else:
        with Image.open(out) as image:
            shown = [
                (np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)
            ]
        frames = [pixels for pixels, _ in shown]
        assert frames[0].shape == (256, 256, 3)
        assert [duration for _, duration in shown] == [100] * count
    assert len(frames) == count


def test_a_folder_of_frames(digits: str, tmp_path: Path) -> None:
    out = tmp_path / "frames"
    assert interpolate("--model", digits, "--frames", 3, "--out", f"{out}/") == 0
    assert [frame.shape for frame in _found(out, 3)] == [(8, 8)] * 3
    with Image.open(out / "00002.png") as image:
        assert json.loads(image.info["ddim"])["image"] == 2
    assert interpolate("--model", digits, "--frames", 3, "--scale", 2, "--out", out) == 0
    assert [frame.shape for frame in _found(out, 3)] == [(16, 16)] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "two or more"),
        (["--seeds", "0", "1", "--frames", "1"], "--frames"),
        (["--seeds", "0", "1", "2", "--grid"], "four corners"),
        (["--seeds", "0", "1", "2", "--class-labels", "0", "1"], "2 --class-labels do not fit 3 points"),
        (["--seeds", "0", "-1"], "seed"),
        (["--class-labels", "0", "7"], "--class-labels 7"),
        (["a cat", "a dog"], "draws no texts"),
        (["--negative-prompt", "a cat"], "draws no texts"),
        (["--images", "/no/a.png", "/no/b.png"], "/no/a.png"),
        (["--loop"], "--loop"),
        (["--out", "x.nope"], "x.nope"),
        (["--grid", "--out", "x.gif"], "no animation"),
        (["--rows", "--out", "x.gif"], "no animation"),
        (["--rows", "--out", "/tmp"], "--rows"),
        (["--fps", "0", "--out", "x.gif"], "--fps"),
        (["--scale", "0"], "--scale"),
        (["--batch-size", "0"], "--batch-size"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--device", "quantum"], "quantum"),
    ],
)
def test_what_cannot_work_is_one_line(
    digits: str, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = {"--model": digits, "--out": str(tmp_path / "x.png")}
    more = [word for name, value in defaults.items() if name not in options for word in (name, value)]
    assert interpolate(*options, *more) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.iterdir())


def test_the_noise_comes_from_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert interpolate("--seeds", 0, 1, "--images", *_pictures(tmp_path), "--out", tmp_path / "x.png") == 1
    assert "not from both" in capsys.readouterr().err


def test_options_of_another_kind_of_model(
    texts: str, plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.png"
    for options, message in (
        (["--model", texts], "what a text says"),
        (["a cat", "--class-labels", "0", "1", "--model", texts], "knows no classes"),
        (["--class-labels", "0", "1", "--model", plain], "knows no classes"),
        (["a cat", "a dog", "--seeds", "0", "1", "2", "--model", texts], "2 prompts do not fit 3 points"),
    ):
        assert interpolate(*options, "--out", out) == 1
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_what_it_wrote_is_not_for_sample_to_make_again(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert interpolate("--model", digits, "--frames", 2, "--out", tmp_path / "x.png") == 0
    assert main(["sample", "--from", str(tmp_path / "x.png")]) == 1
    assert "of `ddim sample`" in capsys.readouterr().err


def test_the_help_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["interpolate", "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("between seeds, texts, classes or real pictures", "--grid", ".gif, .webp or .mp4", "--loop"):
        assert words in shown
