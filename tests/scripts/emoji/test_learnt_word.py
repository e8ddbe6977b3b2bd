"""scripts/emoji/learnt_word.py: it is the command of the page, and the loss before and after is of the same noises."""

from __future__ import annotations

import importlib
import re
import shlex
from types import ModuleType

import pytest
import tyro
from PIL import Image
from program import SCRIPTS

from ddim import DiffusionPipeline
from ddim.training.settings import TextualInversionSettings

pytest.importorskip("pyarrow.parquet")
pytest.importorskip("accelerate")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS / "emoji"))
    return importlib.import_module("learnt_word")


def test_it_is_the_command_of_the_page(program: ModuleType) -> None:
    page = (SCRIPTS.parent / "docs" / "prompts.md").read_text(encoding="utf-8")
    line = re.search(
        r"^ddim train textual-inversion (--output-dir run .*?500 .*?)$", page, flags=re.DOTALL | re.MULTILINE
    )
    assert line
    asked = tyro.cli(TextualInversionSettings, args=shlex.split(line[1].replace("\\\n", " "), comments=True))
    for name in (
        "placeholder_token", "initializer_token", "num_vectors", "random_background", "train_batch_size",
        "max_train_steps", "learning_rate",
    ):  # fmt: skip
        assert getattr(asked, name) == getattr(program.SETTINGS, name), name


def test_the_loss_is_the_same_at_each_call_and_tells_texts_apart(program: ModuleType) -> None:
    pipe = DiffusionPipeline.from_pretrained("emoji")
    drawing = Image.new("RGBA", (64, 64), "red")
    losses = [program.loss(pipe, [drawing], text) for text in ("fox", "fox", "a red square")]
    assert losses[0] == losses[1] != losses[2]


def test_a_row_for_each_text(program: ModuleType) -> None:
    red = Image.new("RGB", (64, 64), "red")
    page = program.sheet([("one", [red] * 4), ("two", [red])])
    assert page.getpixel((64, 64)) == page.getpixel((64, 146 + 64)) == (255, 0, 0)
    assert page.getpixel((3 * 130 + 64, 146 + 64)) == (255, 255, 255)
