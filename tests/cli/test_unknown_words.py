"""The commands that draw texts say which words of them the model has never seen, and what was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_sd import tiny_reference

from ddim.cli import main

WORDS = {
    "words": ["cat", "red", "hot", "beverage"],
    "near": {"coffee": ["hot beverage", "tea", "pot", "leaf"], "mug": ["cup"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sd")
    tiny_reference(folder, 1)
    (folder / "words.json").write_text(json.dumps(WORDS))
    return str(folder)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim: ")]


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("a red cat", None),
        ("Coffee", "ddim: the model has never seen: coffee; near: hot beverage, tea, pot"),
        ("a red zebra", "ddim: the model has never seen: zebra"),
        (
            "a mug of coffee, a zebra and some ink",
            "ddim: the model has never seen: mug, coffee, zebra, ink; near: cup, hot beverage",
        ),
        (
            "one two three four five six seven eight nine ten eleven",
            "ddim: the model has never seen: one, two, three, four, five, six, seven, eight, nine, ten, …",
        ),
    ],
)
def test_one_line(
    prompt: str, line: str | None, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", prompt, "--model", model, "--steps", "1", "--height", "16", "--width", "16"]
    assert main([*command, "--out", str(tmp_path / "x.png")]) == 0
    assert said(capsys) == ([line] if line else [])


@pytest.mark.parametrize("words", ["interpolate", "edit", "invert", "plot trajectory"])
@pytest.mark.thin(every=2)
def test_every_command_that_takes_texts(
    words: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    picture, out = str(tmp_path / "red.png"), str(tmp_path / "x.png")
    given = {
        "interpolate": ["a red zebra", "coffee", "--frames", "2", "--out", out],
        "edit": [picture, "--source", "a zebra", "--target", "coffee", "--strength", "1", "--out", out],
        "invert": [picture, "--prompt", "a zebra and coffee", "--no-check", "--out", str(tmp_path / "x.safetensors")],
        "plot trajectory": ["a zebra and coffee", "--out", out],
    }[words]
    assert main([*words.split(), *given, "--model", model, "--steps", "2"]) == 0
    assert said(capsys) == ["ddim: the model has never seen: zebra, coffee; near: hot beverage, tea, pot"]


@pytest.mark.filterwarnings("default")
def test_what_was_cut_off_a_long_prompt_is_shown(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "red cat " * 60 + "hot beverage"
    command = ["sample", prompt, "--model", model, "--steps", "1", "--height", "16", "--width", "16"]
    assert main([*command, "--out", str(tmp_path / "x.png")]) == 0
    (line,) = said(capsys)
    assert line.startswith("ddim: the text encoder reads 77 tokens; this was cut from the end of the prompt: ")
    assert line.endswith("hot beverage'")
    assert "UserWarning" not in line
