"""What a PNG says of how it was made, as settings of the page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddim import cli
from ddim.errors import ConfigError
from ddim.studio.recipes import settings_of

DRAWN = {"version": "0.1.0", "command": "sample", "image": 0}


def png(said: Any) -> bytes:
    note, file = PngInfo(), io.BytesIO()
    note.add_text("ddim", said if isinstance(said, str) else json.dumps(said))
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=note)
    return file.getvalue()


def test_a_picture_of_the_command(tmp_path: Path) -> None:
    out = tmp_path / "heart.png"
    assert (
        cli.main(["sample", "a red heart", "--seed", "3", "--steps", "5", "--guidance-scale", "2", "--out", str(out)])
        == 0
    )
    said = settings_of(out.read_bytes(), 16)
    wanted = {
        "prompt": "a red heart",
        "seed": 3,
        "steps": 5,
        "guidance_scale": 2.0,
        "model": "emoji",
        "n": 1,
        "image": 0,
    }
    assert {name: said[name] for name in wanted} == wanted


def test_a_picture_of_a_class(tmp_path: Path) -> None:
    out = tmp_path / "seven.png"
    assert cli.main(["sample", "--class-labels", "7", "--batch", "1", "--out", str(out)]) == 0
    said = settings_of(out.read_bytes(), 16)
    assert (said["class_label"], said["model"], said["n"]) == (7, "digits-fast", 1)


def test_numbers_and_lists_are_as_the_page_has_them() -> None:
    settings = {"guidance_scale": 3, "eta": 1, "guidance_interval": [0, 9], "batch": 900, "width": 64, "height": 32,
                "class_labels": [1, 2], "model": "mine", "backend": "eager", "lora": ["/etc/passwd"]}  # fmt: skip
    said = settings_of(png({**DRAWN, "settings": settings, "image": 4}), 16)
    assert said == {"guidance_scale": 3.0, "eta": 1.0, "guidance_interval": [0, 9], "n": 16, "size": "64x32",
                    "model": "mine", "image": 4}  # fmt: skip
    assert settings_of(png({**DRAWN, "settings": {"eta": "sigma_hat"}}), 16)["eta"] == "sigma_hat"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "PNG"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (png("no JSON"), "cannot be read"),
        (png("[1]"), "cannot be read"),
        (png('{"settings": 1}'), "cannot be read"),
        (png("[" * 100_000), "cannot be read"),
        (png('{"settings": {"steps": 1e999}}'), "cannot be read"),
        (png({**DRAWN, "command": "invert", "settings": {}}), "another command"),
        (png({**DRAWN, "settings": {"steps": "many"}}), "steps"),
        (png({**DRAWN, "settings": {"steps": 10**30}}), "steps"),
        (png({**DRAWN, "settings": {"eta": -1}}), "eta"),
        (png({**DRAWN, "settings": {"prompt": "x" * 40_000}}), "prompt"),
        (png({**DRAWN, "settings": {"class_labels": [-1]}}), "class_label"),
        (png({**DRAWN, "settings": {"guidance_interval": [9, 1]}}), "wrong way round"),
        (png({**DRAWN, "settings": {"spacing": "../../etc"}}), "spacing"),
    ],
)
def test_a_stranger_s_picture_is_refused_in_words(file: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings_of(file, 16)
