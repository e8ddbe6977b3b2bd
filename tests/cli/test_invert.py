"""`ddim invert`, `ddim sample --from` its noise, and `ddim edit`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ddim.cli import edit, main
from ddim.pipelines.fitting import read_plain


@pytest.fixture
def picture(tmp_path: Path) -> str:
    ramp = torch.arange(64).reshape(8, 8).mul(4).byte().numpy()
    Image.fromarray(ramp).resize((16, 16)).save(tmp_path / "ramp.png")
    return str(tmp_path / "ramp.png")


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim: ")]


def test_a_picture_comes_back_from_its_noise(
    classes: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise, again = str(tmp_path / "noise.safetensors"), tmp_path / "again.png"
    options = ["--class-label", "2", "--method", "bidirectional", "--steps", "10"]
    assert main(["invert", picture, "--model", classes, *options, "--out", noise]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == noise
    assert "there and back: off by" in said.err
    assert set(load_file(noise)) == {"state.0", "state.1"}
    assert main(["sample", "--trust", "--from", noise, "--out", str(again)]) == 0
    with Image.open(again) as image, Image.open(picture) as original:
        made = json.loads(image.info["ddim"])
        assert made["command"] == "invert"
        assert made["settings"]["class_label"] == 2
        small = original.convert("L").resize((8, 8), Image.Resampling.LANCZOS)
        found = image.convert("L").resize((8, 8), Image.Resampling.NEAREST)
        assert max(abs(a - b) for a, b in zip(found.tobytes(), small.tobytes(), strict=True)) <= 1


def test_the_way_back_is_compared_with_the_file_too(
    texts: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said is the error of the picture that `sample --from` draws, which the autoencoder has its part in."""
    noise, again = str(tmp_path / "noise.safetensors"), tmp_path / "again.png"
    options = ["--prompt", "a red cat", "--method", "bidirectional", "--steps", "4"]
    assert main(["invert", picture, "--model", texts, *options, "--out", noise]) == 0
    told = re.search(r"mean square (\S+) of pixels in \[0, 1\], and (\S+) against the file at", capsys.readouterr().err)
    assert told is not None
    assert main(["sample", "--trust", "--from", noise, "--scale", "1", "--out", str(again)]) == 0
    with Image.open(again) as image, Image.open(picture) as original:
        given = original.convert("RGB").resize(image.size, Image.Resampling.LANCZOS)
        error = float(np.square((np.asarray(image, float) - np.asarray(given, float)) / 255).mean())
    assert float(told[2]) == pytest.approx(error, rel=0.05)
    assert float(told[1]) < float(told[2]) / 10


def test_several_pictures_under_a_text(texts: str, picture: str, tmp_path: Path) -> None:
    noise = str(tmp_path / "noise.safetensors")
    arguments = ["invert", picture, picture, "--model", texts, "--prompt", "a red cat", "--steps", "2", "--no-check"]
    assert main([*arguments, "--out", noise]) == 0
    assert main(["sample", "--trust", "--from", noise, "--out", str(tmp_path / "both") + "/"]) == 0
    assert len(list((tmp_path / "both").iterdir())) == 2


@pytest.mark.parametrize("method", ["cycle", "bidirectional"])
def test_the_same_text_changes_nothing(texts: str, picture: str, tmp_path: Path, method: str) -> None:
    out = tmp_path / "same.png"
    options = ["--source", "a red cat", "--target", "a red cat", "--guidance-scale", "1", "--steps", "8", "--before"]
    options += ["--scale", "4"]
    assert main(["edit", picture, "--model", texts, *options, "--method", method, "--out", str(out)]) == 0
    with Image.open(out) as image:
        before, after = (image.crop((x, 0, x + 64, 64)) for x in (0, 66))
        difference = max(abs(a - b) for a, b in zip(before.tobytes(), after.tobytes(), strict=True))
    assert difference <= 2


def test_what_shows_through_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "glass.png")
    assert read_plain(str(tmp_path / "glass.png"), "it").getpixel((0, 0)) == (255, 255, 255)
    Image.new("L", (4, 4), 7).save(tmp_path / "gray.png")
    assert read_plain(str(tmp_path / "gray.png"), "it").mode == "L"


def test_an_edit_follows_seed_and_text(texts: str, picture: str, tmp_path: Path) -> None:
    def edit(name: str, *options: str) -> bytes:
        out = tmp_path / name
        arguments = ["edit", picture, "--model", texts, "--source", "a red cat", "--target", "a blue dog"]
        assert main([*arguments, "--steps", "4", *options, "--out", str(out)]) == 0
        with Image.open(out) as image:
            return image.tobytes()

    first = edit("a.png", "--seed", "1")
    assert edit("b.png", "--seed", "1") == first
    assert edit("c.png", "--seed", "2") != first
    assert main(["edit", picture, "--model", texts, "--source", "a", "--target", "b", "--steps", "2", "--batch", "3",
                 "--out", str(tmp_path / "three") + "/"]) == 0  # fmt: skip
    assert len({path.read_bytes() for path in (tmp_path / "three").iterdir()}) == 3


@pytest.mark.parametrize("method", ["cycle", "ddim"])
def test_many_results_are_made_a_few_at_a_time(
    texts: str, picture: str, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [picture, picture, picture, "--batch", "2"] if method == "cycle" else [picture] * 5
    drawn = []
    for count in (64, 4):
        monkeypatch.setattr(edit, "chunk_size", lambda pipe, size, count=count: count)
        out = tmp_path / str(count)
        command = ["edit", *many, "--model", texts, "--source", "a red cat", "--target", "a blue dog", "--steps", "3"]
        assert main([*command, "--method", method, "--out", f"{out}/"]) == 0
        drawn.append(np.stack([np.asarray(Image.open(file), int) for file in sorted(out.iterdir())]))
    assert len(drawn[0]) == (6 if method == "cycle" else 5)
    assert np.abs(drawn[0] - drawn[1]).max() <= 2  # but for the rounding of networks on batches of other sizes


def test_what_cannot_work_is_one_line(
    texts: str, classes: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = str(tmp_path / "noise.safetensors")
    for arguments, message in (
        (["invert", picture, "--model", classes, "--out", "noise.png"], "must end in .safetensors"),
        (["invert", picture, "--model", classes, "--prompt", "a cat", "--out", noise], "draws no texts"),
        (["invert", picture, "--model", texts, "--class-label", "1", "--out", noise], "knows no classes"),
        (["invert", "/no/such.png", "--model", classes, "--out", noise], "no/such.png"),
        (["edit", picture, "--model", classes, "--source", "a", "--target", "b"], "text-to-image"),
        (["edit", picture, "--model", texts, "--source", "a", "--target", "b", "--strength", "2"], "strength"),
        (["edit", picture, "--model", texts, "--source", "a", "--target", "b", "--strength", "0.001"],
         "give 0.01 or more"),
        (["edit", picture, "--model", texts, "--source", "a", "--target", "b", "--eta", "0"], "eta"),
        (["edit", picture, "--model", texts, "--source", "a", "--target", "b", "--batch", "2", "--method", "ddim"],
         "several"),
        (["invert", "--model", classes, "--out", noise], "one picture file or more"),
        (["edit", "--model", texts, "--source", "a", "--target", "b"], "one picture file or more"),
        (["sample", "--trust", "--from", noise], "noise.safetensors"),
    ):  # fmt: skip
        assert main(arguments) == 1
        (line,) = errors(capsys)
        assert message in line
        assert not Path(noise).exists()


def test_noise_that_was_tampered_with_is_refused(
    classes: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = tmp_path / "noise.safetensors"
    assert main(["invert", picture, "--model", classes, "--steps", "2", "--no-check", "--out", str(noise)]) == 0
    whole, state = noise.read_bytes(), load_file(noise)["state.0"]
    capsys.readouterr()
    from ddim.checkpoint.files import read_metadata

    said = read_metadata(noise)
    for broken, message in (
        ({"ddim": "[1]", "plan": said["plan"]}, "is not noise"),
        ({"ddim": said["ddim"], "plan": "{}"}, "is not noise"),
        ({}, "is not noise"),
        (None, "shape"),
    ):
        save_file({"state.0": state[:, :, :4] if broken is None else state}, noise, said if broken is None else broken)
        assert main(["sample", "--trust", "--from", str(noise), "--out", str(tmp_path / "x.png")]) == 1
        (line,) = errors(capsys)
        assert message in line
    noise.write_bytes(whole[:-20])
    assert main(["sample", "--trust", "--from", str(noise), "--out", str(tmp_path / "x.png")]) == 1
    assert not (tmp_path / "x.png").exists()
