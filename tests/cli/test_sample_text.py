"""The command line with a text-to-image model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_sd import tiny_reference

from ddim.cli import main

FAST = ["--steps", "2", "--height", "32", "--width", "32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sd")
    tiny_reference(folder, 1, prediction_type="v_prediction")
    return str(folder)


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_text_is_drawn_and_made_again(model: str, tmp_path: Path) -> None:
    out = tmp_path / "cat.png"
    options = ["--negative-prompt", "blue", "--guidance-scale", "3", "--guidance-rescale", "0.7", "--seed", "4"]
    options += ["--spacing", "trailing", "--zero-snr", "True", "--eta", "0.5"]
    assert main(["sample", "a red cat", "--model", model, *FAST, *options, "--out", str(out)]) == 0
    with Image.open(out) as image:
        note = json.loads(image.info["ddim"])
    assert note["settings"]["prompt"] == "a red cat"
    assert note["version"]
    assert main(["sample", "--trust", "--from", str(out), "--out", str(tmp_path / "again.png")]) == 0
    assert pixels(tmp_path / "again.png") == pixels(out)


# The fast test beside it is test_a_text_is_drawn_and_made_again.
@pytest.mark.slow
def test_guidance_in_an_interval(model: str, tmp_path: Path) -> None:
    command = ["sample", "a red cat", "--model", model, *FAST, "--guidance-scale", "3"]
    drawn = {}
    for name, interval in (("all", []), ("some", ["400", "999"]), ("none", ["0", "0"])):
        drawn[name] = tmp_path / f"{name}.png"
        given = ["--guidance-interval", *interval] if interval else []
        assert main([*command, *given, "--out", str(drawn[name])]) == 0
    assert len({pixels(path) for path in drawn.values()}) == 3
    assert main(["sample", "--trust", "--from", str(drawn["some"]), "--out", str(tmp_path / "again.png")]) == 0
    assert pixels(tmp_path / "again.png") == pixels(drawn["some"])


def test_several_images_of_one_text(model: str, tmp_path: Path) -> None:
    arguments = ["sample", "a red cat", "--model", model, *FAST, "--batch", "3", "--out", str(tmp_path / "many") + "/"]
    assert main(arguments) == 0
    files = sorted((tmp_path / "many").iterdir())
    assert len({pixels(file) for file in files}) == 3
    assert main(["sample", "--trust", "--from", str(files[2]), "--out", str(tmp_path / "third.png")]) == 0
    with Image.open(tmp_path / "third.png") as again, Image.open(files[2]) as first:
        difference = max(abs(a - b) for a, b in zip(again.tobytes(), first.tobytes(), strict=True))
    assert difference <= 2  # another batch size: the noise is the same, the network's rounding is not


def test_a_picture_is_started_from_and_painted_under_a_mask(model: str, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    Image.new("L", (32, 32), 0).save(tmp_path / "mask.png")
    start = ["sample", "a red cat", "--model", model, "--steps", "4", "--image", str(tmp_path / "red.png")]
    assert main([*start, "--strength", "0.5", "--out", str(tmp_path / "a.png")]) == 0
    mask = ["--mask-image", str(tmp_path / "mask.png"), "--strength", "1.0"]
    assert main([*start, *mask, "--out", str(tmp_path / "b.png")]) == 0
    assert pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "what a text says"),
        (["a cat", "--class-labels", "1"], "knows no classes"),
        (["a cat", "--height", "33"], "33"),
        (["a cat", "--image", "/no/such.png"], "no/such.png"),
        (["a cat", "--mask-image", "MASK"], "image"),
        (["a cat", "--strength", "7", "--image", "MASK"], "strength"),
    ],
)
def test_what_cannot_work_is_one_line(
    model: str, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (32, 32), 0).save(tmp_path / "mask.png")
    options = [str(tmp_path / "mask.png") if option == "MASK" else option for option in options]
    assert main(["sample", *options, "--model", model, "--steps", "2", "--out", str(tmp_path / "x.png")]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_info_describes_every_part(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", model]) == 0
    out = capsys.readouterr().out
    for expected in (
        "StableDiffusionPipeline",
        "AutoencoderKL",
        "CLIPTextModel",
        "UNet2DConditionModel",
        "CLIPTokenizer",
    ):
        assert expected in out
