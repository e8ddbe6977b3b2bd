"""What the commands check before they draw: whether the options are for this kind of model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ddim.cli import main
from ddim.cli.opening import check_kind
from ddim.errors import ConfigError

TEXTS: Any = SimpleNamespace(draws_texts=True, class_count=None)
CLASSES: Any = SimpleNamespace(draws_texts=False, class_count=3)
NEITHER: Any = SimpleNamespace(draws_texts=False, class_count=None)


def refusal(pipe: Any, prompt: str | None = None, height: int | None = None, labels: tuple[int, ...] = ()) -> str:
    """What is said of these options; empty if they are taken."""
    try:
        check_kind(
            pipe,
            "mine",
            for_texts={"the prompt": prompt, "--height": height},
            for_classes={"--class-labels": labels},
            example='ddim sample "a cat" --model mine',
        )
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("pipe", "given"),
    [
        (TEXTS, {"prompt": ""}),
        (TEXTS, {"prompt": "a cat", "height": 0}),
        (CLASSES, {"labels": (0,)}),
        (CLASSES, {}),
        (NEITHER, {}),
    ],
)
def test_options_that_suit_the_model_are_taken(pipe: Any, given: dict[str, Any]) -> None:
    assert refusal(pipe, **given) == ""


@pytest.mark.parametrize(
    ("pipe", "given", "said"),
    [
        (TEXTS, {}, 'mine draws what a text says: give one, for example ddim sample "a cat" --model mine'),
        (TEXTS, {"height": 8}, 'mine draws what a text says: give one, for example ddim sample "a cat" --model mine'),
        (TEXTS, {"prompt": "a cat", "labels": (0,)}, "mine knows no classes: leave out --class-labels"),
        (NEITHER, {"labels": (0,)}, "mine knows no classes: leave out --class-labels"),
        (CLASSES, {"prompt": ""}, "mine draws no texts: leave out the prompt, or use a text-to-image model"),
        (NEITHER, {"height": 0}, "mine draws no texts: leave out --height, or use a text-to-image model"),
        (CLASSES, {"prompt": "a", "height": 8}, "mine draws no texts: leave out the prompt and --height, or use"),
    ],
)
def test_others_are_refused_and_named_as_they_are_typed(pipe: Any, given: dict[str, Any], said: str) -> None:
    assert refusal(pipe, **given).startswith(said)


def test_a_text_is_needed_only_where_there_is_an_example() -> None:
    check_kind(TEXTS, "mine", for_texts={"--prompt": None})


def test_a_command_for_texts_alone() -> None:
    check_kind(TEXTS, "mine", only_texts=True)
    for pipe in (CLASSES, NEITHER):
        with pytest.raises(ConfigError, match="use a text-to-image model"):
            check_kind(pipe, "mine", only_texts=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "a cat", "--model", "digits"],
        ["plot", "trajectory", "a cat", "--model", "digits", "--out", "x.png"],
        ["interpolate", "a cat", "a dog", "--model", "digits", "--out", "x.png"],
        ["invert", "PICTURE", "--prompt", "a cat", "--model", "digits"],
        ["edit", "PICTURE", "--source", "a cat", "--target", "a dog", "--model", "digits"],
        ["optimize", "digits", "--prompts", "a cat", "--out", "FOLDER"],
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_every_command_that_draws_refuses_texts_for_classes(
    arguments: list[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("picture.png")
    replaced = {"PICTURE": "picture.png", "FOLDER": str(tmp_path / "out")}
    assert main([replaced.get(word, word) for word in arguments]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim: ")]
    assert "digits draws no texts" in line
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
