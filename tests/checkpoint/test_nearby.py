"""What may have been meant by a name that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddim.checkpoint.nearby import alike, did_you_mean, nearby


def models(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "model_index.json").write_text("{}")


def is_model(path: Path) -> bool:
    return (path / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("word", "meant"),
    [("emojo", "emoji"), ("Emoji", "emoji"), ("emojis", "emoji"), ("digit", "digits"), ("gpt2", None), ("", None)],
)
def test_words_that_are_alike(word: str, meant: str | None) -> None:
    assert alike(word, ["digits", "emoji"]) == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("emojo2", "./models/emoji2"),  # its folder was left out
        ("./models/emojo2", "./models/emoji2"),
        ("models/Emoji2", "./models/emoji2"),
        ("./model/emoji2", "./models/emoji2"),  # its folder is misspelt
        ("./heats", "./hearts"),
        ("models/nothing-like-it", None),
        ("models", None),  # it is there, and no model
        ("no/such/place", None),
        ("other.txt", None),  # only its ending is like that of a file
        (".", None),
        ("a\0b", None),
    ],
)
def test_a_path_nearby(typed: str, meant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models(tmp_path, "models/emoji2", "models/digits2", "hearts", ".hidden/emojo2")
    (tmp_path / "emojo2.txt").write_text("a file is no model")
    monkeypatch.chdir(tmp_path)
    assert nearby(typed, is_model) == meant


def test_a_path_from_the_root_and_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models(tmp_path, "hearts", "here/deep")
    assert nearby(str(tmp_path / "heart"), is_model) == str(tmp_path / "hearts")
    monkeypatch.chdir(tmp_path / "here")
    assert nearby("../heart", is_model) == "../hearts"


def test_what_is_said() -> None:
    assert did_you_mean("emoji") == ": did you mean emoji?"
    assert did_you_mean(None) == ""
