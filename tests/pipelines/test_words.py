"""Which words of a text a model has never seen, and where it is written which it has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tiny_sd import tiny_reference

from ddim.checkpoint import Repository
from ddim.errors import CheckpointError
from ddim.pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from ddim.pipelines.words import FILE, MOST, WordList, read_words, split

LIST = WordList(
    frozenset(
        {"heart", "red", "hot", "beverage", "dagger", "swords", "leaf", "berry", "glass", "man", "box", "o'clock"}
    ),
    {"coffee": ("hot beverage",), "sword": ("dagger",)},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    tiny_reference(folder, 1)
    return folder


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red heart",
        "A RED HEART!",
        "hearts on the heart",
        "leaves, berries, glasses, men and boxes",
        "the heart's box",
        "the heart’s box at 3 o'clock",
        "a red-hot heart in 3D of 1999",
        "a héart",
        "???",
    ],
)
def test_nothing_is_said_of_what_is_known(text: str) -> None:
    assert LIST.unknown(text) == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("coffee and a sword", {"coffee": ("hot beverage",), "sword": ("dagger",)}),
        ("Coffee, COFFEE, coffees", {"coffee": ("hot beverage",), "coffees": ("hot beverage",)}),
        ("a haert", {"haert": ("heart",)}),
        ("zebra", {"zebra": ()}),
        ("ox", {"ox": ()}),  # too short for its spelling to say anything
        ("кот 猫", {"кот": (), "猫": ()}),
        ("blue-green", {"blue": (), "green": ()}),
    ],
)
def test_what_is_unknown_and_what_is_near(text: str, found: dict[str, tuple[str, ...]]) -> None:
    assert LIST.unknown(text) == found


def test_a_plural_that_was_seen_is_no_singular() -> None:
    """A model that has seen two swords crossed has not seen one."""
    assert "swords" not in LIST.unknown("swords")
    assert "sword" in LIST.unknown("sword")


def test_a_long_text_costs_little() -> None:
    text = " ".join(f"w{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}xyz" for i in range(10**6))
    began = time.process_time()
    assert len(LIST.unknown(text)) == 100
    assert time.process_time() - began < 1


def test_the_words_of_texts() -> None:
    words = WordList.of(["A red heart", "the Heart's box"])
    assert words is not None
    assert words.words == {"a", "red", "heart", "the", "box"}
    assert WordList.of(f"word{i}" for i in range(MOST + 1)) is None


def test_what_two_have_seen() -> None:
    both = LIST.joined(WordList(frozenset({"coffee"}), {"mug": ("coffee",)}))
    assert both.unknown("coffee, sword, mug") == {"sword": ("dagger",), "mug": ("coffee",)}


def test_accents_and_scripts() -> None:
    assert split("ÉCLAIR İstanbul ﬁne") == ["eclair", "istanbul", "fine"]


# --- the file --------------------------------------------------------------------------------------------------------


def test_it_is_read_when_it_is_needed_saved_and_shared(model: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    assert pipe.words is None
    assert pipe.unknown_words("coffee") == {}
    pipe.words = LIST
    assert pipe.unknown_words(["coffee", "a red sword"]) == {"coffee": ("hot beverage",), "sword": ("dagger",)}
    pipe.save_pretrained(tmp_path / "saved")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert StableDiffusionImg2ImgPipeline.from_pipe(again).unknown_words("coffee") == {"coffee": ("hot beverage",)}
    assert again.words == LIST
    again.words = None
    assert StableDiffusionImg2ImgPipeline.from_pipe(again).words is None
    again.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / FILE).exists()


def test_a_pipeline_of_parts_says_nothing(model: Path) -> None:
    parts = StableDiffusionPipeline.from_pretrained(model).components
    assert StableDiffusionPipeline(**parts).unknown_words("coffee") == {}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "no json",
        '{"words": "coffee"}',
        '{"words": [1]}',
        '{"words": [], "near": []}',
        '{"words": [], "near": {"a": "b"}}',
        '{"words": [], "near": {"a": ["\\u001b[31m"]}}',
    ],
)
def test_a_file_that_is_no_list(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"words\.json"):
        read_words(Repository(str(tmp_path)))


def test_a_hub_that_does_not_answer_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    assert read_words(Repository("owner/name")) is None
