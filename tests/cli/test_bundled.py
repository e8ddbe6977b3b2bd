"""Which bundled model draws where no --model is given: the student, or the teacher where something is said of how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ddim.cli import COMMANDS, load, main
from ddim.cli.bundled import OTHERS, TEXTS, with_model
from ddim.cli.parsing import parse
from ddim.cli.sample import SampleSettings
from ddim.cli.typed import NOW, given


@pytest.fixture(autouse=True)
def _nothing_typed() -> Iterator[None]:
    before = NOW.set(None)
    yield
    NOW.reset(before)


def chosen(words: str, *typed: str, for_texts: bool = True) -> str:
    """The model for a command as it is typed."""
    kind = load(COMMANDS[words].settings)
    NOW.set(given(kind, typed))
    model = with_model(parse(words, kind, list(typed)), for_texts=for_texts).model
    assert isinstance(model, str)
    return model


PLAIN: tuple[list[str], ...] = (
    [],
    ["--seed", "3", "--batch", "4"],
    ["--out", "x.png", "--overwrite", "--dtype", "bfloat16", "--backend", "openvino"],
    ["--height", "64", "--width", "64", "--labels", "--scale", "2"],
)
SAYING: tuple[list[str], ...] = (
    ["--steps", "50"],
    ["--steps", "4"],
    ["--eta", "1"],
    ["--eta", "0"],  # typed, though it is the value that it has anyway
    ["--eta=0"],
    ["--order", "1"],
    ["--spacing", "trailing"],
    ["--zero-snr", "True"],
    ["--guidance-scale", "3"],
    ["--guidance-rescale", "0.5"],
    ["--guidance-interval", "1", "2"],
    ["--negative-prompt", "blue"],
    ["--image", "x.png"],
    ["--image", "x.png", "--strength", "0.5"],
    ["--lora", "ink.safetensors"],
)


@pytest.mark.parametrize("typed", PLAIN, ids=" ".join)
def test_the_student_draws_where_nothing_is_said_of_how(typed: list[str]) -> None:
    assert chosen("sample", "a red heart", *typed) == TEXTS.usual == "emoji-fast"


@pytest.mark.parametrize("typed", SAYING, ids=" ".join)
def test_the_teacher_draws_where_something_is(typed: list[str]) -> None:
    assert chosen("sample", "a red heart", *typed) == TEXTS.teacher == "emoji"


@pytest.mark.parametrize("typed", [*PLAIN, *SAYING], ids=" ".join)
@pytest.mark.thin(every=3)
def test_a_model_that_is_given_is_taken(typed: list[str]) -> None:
    for model in ("emoji-fast", "emoji", "a-folder"):
        assert chosen("sample", "a red heart", *typed, "--model", model) == model


def test_without_a_text() -> None:
    assert chosen("sample", for_texts=False) == OTHERS.usual
    assert chosen("sample", "--steps", "50", for_texts=False) == OTHERS.teacher == "digits"


def test_the_other_commands() -> None:
    assert chosen("interpolate", "a red heart", "a blue heart") == "emoji-fast"
    assert chosen("interpolate", "a red heart", "a blue heart", "--steps", "50") == "emoji"
    assert chosen("interpolate", "a heart", "--images", "x.png", "y.png") == "emoji"
    assert chosen("plot trajectory", "a red heart") == "emoji-fast"
    assert chosen("plot trajectory", "a red heart", "--steps", "25") == "emoji"
    for words in ("invert", "edit"):  # which go up to the noise and back, by many steps
        assert load(COMMANDS[words].settings).__dataclass_fields__["model"].default == "emoji"


def test_from_python_what_differs_from_the_defaults_is_said() -> None:
    assert with_model(SampleSettings(prompt="a heart"), for_texts=True).model == "emoji-fast"
    assert with_model(SampleSettings(prompt="a heart", eta=1.0), for_texts=True).model == "emoji"
    assert with_model(SampleSettings(prompt="a heart", steps=4), for_texts=True).model == "emoji"


def test_a_picture_is_made_again_by_the_model_that_drew_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "a red heart", "--out", "a.png"]) == 0
    assert "by emoji-fast: 4 steps of first order at trailing timesteps, guidance 1, " in capsys.readouterr().err
    assert main(["sample", "--from", "a.png", "--out", "b.png"]) == 0
    assert "by emoji-fast: 4 steps of first order" in capsys.readouterr().err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert main(["sample", "a red heart", "--steps", "2", "--out", "c.png"]) == 0
    assert "by emoji: 2 steps of first order at trailing timesteps, guidance 3, " in capsys.readouterr().err
