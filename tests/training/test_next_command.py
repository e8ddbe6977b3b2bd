"""What a run says in the end, "now try: ddim …", is a command that works as it is printed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny_sd import tiny_reference
from tiny_training import Place, lora_settings, place, text_settings, vae_settings

from ddim.cli import main
from ddim.training import train
from ddim.training.settings import ControlNetSettings, PixelSettings, TrainSettings

__all__ = ["place"]


def pixels(folder: Path, place: Place, classes: bool = False) -> TrainSettings:
    network = {"block_out_channels": (8,), "layers_per_block": 1, "attention_head_dim": 8}
    brief = {"max_train_steps": 1, "report_to": "none", "validation_steps": 0}
    return PixelSettings(str(folder), class_conditional=classes, **network, **brief)  # type: ignore[arg-type]


def lora(folder: Path, place: Place) -> TrainSettings:
    tiny_reference(folder.parent / "a model", 1)
    return lora_settings(folder, place, folder.parent / "a model", max_train_steps=1)


def control(folder: Path, place: Place) -> TrainSettings:
    tiny_reference(folder.parent / "a model", 1)
    network = {"pretrained_model_name_or_path": str(folder.parent / "a model"), "condition": "edges"}
    brief = {"max_train_steps": 1, "report_to": "none", "validation_steps": 0}
    return ControlNetSettings(str(folder), train_data_dir=str(place.data), **network, **brief)  # type: ignore[arg-type]


MADE: dict[str, Callable[[Path, Place], TrainSettings]] = {
    "pixels": pixels,
    "classes": lambda folder, place: pixels(folder, place, classes=True),
    "text-to-image": lambda folder, place: text_settings(folder, place, max_train_steps=1),
    "prompts": lambda folder, place: text_settings(
        folder, place, max_train_steps=1, validation_prompts=("it's a $5 `cat`", "b")
    ),
    "lora": lora,
    "controlnet": control,
    "vae": lambda folder, place: vae_settings(folder, place, max_train_steps=1),
}


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The words of the command after "now try", without its first, ddim."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim: now try: ")]
    first, *words = shlex.split(line.removeprefix("ddim: now try: "))
    assert first == "ddim"
    return words


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.thin(fast=["classes", "prompts"])
def test_the_command_that_is_printed_works(
    kind: str, tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    train(MADE[kind](tmp_path / "my run", place))
    words = printed(capsys)
    if kind == "vae":  # which trains on; to be brief about it, and then to try what comes of that
        brief = (
            "--max-train-steps 1 --report-to none --block-out-channels 8 16 --validation-steps 0 --train-batch-size 2"
        )
        assert main([*words, *brief.split()]) == 0
        words = printed(capsys)
    assert words[0] == "sample"
    assert main(words) == 0
    with Image.open(words[words.index("--out") + 1]) as picture:
        assert min(picture.size) > 0
    if kind == "prompts":
        assert words[1] == "it's a $5 `cat`"
    if kind == "lora":
        assert str(tmp_path / "my run") in words[words.index("--lora") + 1]
