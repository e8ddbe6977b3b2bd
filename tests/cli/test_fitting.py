"""Pictures of any size are brought to what a model draws, in their own proportions, and a line says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_pipeline
from tiny_sd import tiny_reference

from ddim.cli import main
from ddim.cli.fitting import fit_pictures
from ddim.pipelines.fitting import resized


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """It draws 16x16, by latents of two pixels and a U-Net of two resolutions."""
    folder = tmp_path_factory.mktemp("texts")
    tiny_reference(folder, 1, prediction_type="v_prediction")
    return str(folder)


def save(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).convert(mode).resize(size).save(path)
    return path


def sample(model: str, *arguments: Any) -> int:
    return main(["sample", "a cat", "--model", model, "--steps", "2", "--scale", "1", *map(str, arguments)])


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_a_picture_of_another_size_is_resized(texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.png"
    for own, options, drawn, said in (
        ((16, 16), [], (16, 16), None),
        ((64, 64), [], (16, 16), "--image is 64x64: resized to 16x16; --height and --width decide otherwise"),
        ((600, 300), [], (24, 8), "--image is 600x300: cropped to 600x200 in the middle and resized to 24x8"),
        ((600, 300), ["--height", 16], (32, 16), "--image is 600x300: resized to 32x16"),
        ((600, 300), ["--height", 16, "--width", 16], (16, 16), "cropped to 300x300 in the middle and resized"),
        ((3, 5), [], (16, 24), "--image is 3x5: cropped to 3x4 in the middle and resized to 16x24"),
    ):
        image = save(tmp_path / "photo.png", own)
        assert sample(texts, "--image", image, *options, "--overwrite", "--out", out) == 0
        printed = capsys.readouterr().err
        assert size(out) == drawn
        assert said in printed if said else "ddim: --image" not in printed


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1", "CMYK"])
def test_pictures_of_every_mode(texts: str, tmp_path: Path, mode: str) -> None:
    image = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    grey = Image.linear_gradient("L").resize((40, 20))
    picture = Image.fromarray(np.asarray(grey, np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    picture.save(image)
    assert sample(texts, "--image", image, "--out", tmp_path / "x.png") == 0
    small = resized(picture, (16, 16), 3)
    assert small.mode == "RGB"
    assert np.abs(np.asarray(small, int) - np.asarray(resized(grey, (16, 16), 3), int)).mean() < (
        60 if mode == "1" else 3
    )


# The fast test beside it is test_a_picture_of_another_size_is_resized.
@pytest.mark.slow
def test_a_mask_goes_the_same_way(texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is kept of the picture lies where the mask, in its own size, is black: the left half."""
    image, mask, out = save(tmp_path / "photo.png", (1200, 600)), tmp_path / "mask.png", tmp_path / "x.png"
    options = ["--image", image, "--mask-image", mask, "--height", 16, "--width", 32, "--overwrite", "--out", out]
    drawn = {}
    for own in ((1200, 600), (200, 100), (33, 16)):
        black = Image.new("L", own, 0)
        black.paste(255, (own[0] // 2, 0, *own))
        black.save(mask)
        assert sample(texts, *options) == 0
        with Image.open(out) as found:
            drawn[own] = np.asarray(found, int)
    assert np.array_equal(drawn[1200, 600], drawn[200, 100])
    assert np.array_equal(drawn[1200, 600], drawn[33, 16])
    capsys.readouterr()
    for own in ((100, 100), (600, 1200)):
        Image.new("L", own, 0).save(mask)
        assert sample(texts, *options) == 1
        assert f"--mask-image is {own[0]}x{own[1]} and --image 1200x600" in capsys.readouterr().err


def test_commands_that_read_pictures_crop_and_say_so(
    texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(save(tmp_path / "photo.png", (90, 60)))
    said = f"ddim: {photo} is 90x60: cropped to 60x60 in the middle and resized to 16x16"
    for command in (
        ["edit", photo, "--source", "a cat", "--target", "a dog", "--out", str(tmp_path / "edited.png")],
        ["invert", photo, "--no-check", "--out", str(tmp_path / "noise.safetensors")],
        ["interpolate", "--images", photo, photo, "--frames", "2", "--out", str(tmp_path / "between.png")],
    ):
        assert main([*command, "--model", texts, "--steps", "2"]) == 0
        assert said in capsys.readouterr().err


def test_proportions_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A circle stays one, for a model of pixels too."""
    pipe: Any = tiny_pipeline(in_channels=1, out_channels=1)
    wide = Image.new("L", (300, 100), 0)
    wide.paste(255, (130, 30, 170, 70))  # a square in the middle
    wide.save(tmp_path / "wide.png")
    (small,) = fit_pictures([str(tmp_path / "wide.png")], pipe)
    assert small.size == (8, 8)
    pixels = np.asarray(small, float)
    assert np.allclose(pixels, pixels.T, atol=8)  # the filter is clamped between its two passes
    assert "wide.png is 300x100: cropped to 100x100" in capsys.readouterr().err


# The fast test beside it is test_a_picture_of_another_size_is_resized.
@pytest.mark.slow
def test_a_size_far_from_the_trained_one_warns(texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = save(tmp_path / "photo.png", (16, 16))
    for options, far in (
        ([], None),
        (["--height", 24], None),
        (["--height", 64], "16x64 is far from 16x16"),
        (["--width", 48, "--height", 8], "48x8 is far from 16x16"),
        (["--height", 32, "--width", 32], "32x32 is far from 16x16"),
        (["--image", image], None),
        (["--image", image, "--height", 64], "64x64 is far from 16x16"),
    ):
        assert sample(texts, *options, "--overwrite", "--out", tmp_path / "x.png") == 0
        printed = capsys.readouterr().err
        assert far in printed if far else "is far from" not in printed
