"""What exists is never overwritten without a word, by any command that writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ddim.cli import COMMANDS, load, main
from ddim.cli.places import place, places

KEPT = b"somebody's own"


def results(folder: Path) -> str:
    row = {"eta": 0.0, "steps": 10, "frechet": 1.0, "frechet_error": 0.1, "cpu_seconds": 1.0, "seconds": 1.0}
    (folder / "results.json").write_text(json.dumps({"distance": "Fréchet", "summary": [row], "settings": {}}))
    return str(folder / "results.json")


def noise(folder: Path, classes: str, picture: str) -> str:
    path = str(folder / "given.safetensors")
    assert main(["invert", picture, "--model", classes, "--steps", "2", "--no-check", "--out", path]) == 0
    return path


# (name of the file, the command without --out), of the folder for what it reads, a model of classes, one of texts.
WRITING: dict[str, Callable[[Path, str, str, str], tuple[str, list[str]]]] = {
    "sample": lambda folder, classes, texts, picture: ("x.png", ["sample", "--model", classes, "--steps", "2"]),
    "sample --from": lambda folder, classes, texts, picture: (
        "x.png",
        ["sample", "--trust", "--from", noise(folder, classes, picture)],
    ),
    "interpolate": lambda folder, classes, texts, picture: (
        "x.png",
        ["interpolate", "--model", classes, "--frames", "2", "--steps", "2"],
    ),
    "an animation": lambda folder, classes, texts, picture: (
        "x.gif",
        ["interpolate", "--model", classes, "--frames", "2", "--steps", "2"],
    ),
    "invert": lambda folder, classes, texts, picture: (
        "x.safetensors",
        ["invert", picture, "--model", classes, "--steps", "2"],
    ),
    "edit": lambda folder, classes, texts, picture: (
        "x.png",
        ["edit", picture, "--model", texts, "--source", "a", "--target", "b", "--steps", "2"],
    ),
    "plot schedule": lambda folder, classes, texts, picture: ("x.png", ["plot", "schedule"]),
    "plot trajectory": lambda folder, classes, texts, picture: (
        "x.png",
        ["plot", "trajectory", "--model", classes, "--steps", "2", "--moments", "2"],
    ),
    "plot tradeoff": lambda folder, classes, texts, picture: ("x.png", ["plot", "tradeoff", results(folder)]),
}


@pytest.mark.parametrize("what", WRITING)
@pytest.mark.thin(fast=["sample", "interpolate", "invert", "plot tradeoff"])
def test_a_file_is_kept_and_the_new_one_numbered(
    what: str, classes: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    picture = str(given / "picture.png")
    Image.new("RGB", (16, 16), (200, 90, 30)).save(picture)
    name, command = WRITING[what](given, classes, texts, picture)
    out = tmp_path / "out" / name
    out.parent.mkdir()
    out.write_bytes(KEPT)
    stem, suffix = out.stem, out.suffix
    capsys.readouterr()
    for number in (1, 2):
        beside = out.with_name(f"{stem}-{number}{suffix}")
        assert main([*command, "--out", str(out)]) == 0
        printed = capsys.readouterr()
        assert printed.out.strip() == str(beside)
        assert f"{out} is there already and is kept: writing {beside.name}" in printed.err
        assert "--overwrite" in printed.err
        assert beside.stat().st_size > len(KEPT)
    assert out.read_bytes() == KEPT
    assert main([*command, "--out", str(out), "--overwrite"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "is there already" not in printed.err
    assert out.read_bytes() != KEPT
    assert len(list(out.parent.iterdir())) == 3


def test_it_is_said_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").write_bytes(KEPT)
    monkeypatch.setattr("ddim.cli.sample.open_pipeline", lambda *_: pytest.fail("a model is loaded"))
    with pytest.raises(pytest.fail.Exception):
        main(["sample", "--out", str(tmp_path / "x.png")])
    assert "writing x-1.png" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sample", "interpolate", "edit"])
def test_all_files_of_a_folder_get_the_same_number(command: str, classes: str, texts: str, tmp_path: Path) -> None:
    """One of them is taken, so none of the new ones stands among the old ones."""
    out = tmp_path / "many"
    out.mkdir()
    (out / "00001.png").write_bytes(KEPT)
    Image.new("RGB", (16, 16), (200, 90, 30)).save(tmp_path / "picture.png")
    options = {
        "sample": ["--model", classes, "--batch", "3"],
        "interpolate": ["--model", classes, "--frames", "3"],
        "edit": [str(tmp_path / "picture.png"), "--model", texts, "--source", "a", "--target", "b", "--batch", "3"],
    }
    assert main([command, *options[command], "--steps", "2", "--out", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["00000-1.png", "00001-1.png", "00001.png", "00002-1.png"]
    assert (out / "00001.png").read_bytes() == KEPT
    assert main([command, *options[command], "--steps", "2", "--out", str(out), "--overwrite"]) == 0
    assert len(list(out.iterdir())) == 6
    assert (out / "00001.png").read_bytes() != KEPT


def test_a_config_of_optimize_is_kept(classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its file has one name, so that the folder gets the number; the model's own config is changed as it was asked."""
    command = ["optimize", classes, "--steps", "2", "--reference", "4", "--samples", "2"]
    for name in ("found", "found-1", "found-2"):
        assert main([*command, "--out", str(tmp_path / "found")]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / name / "scheduler_config.json")
    assert main([*command, "--out", str(tmp_path / "found"), "--overwrite"]) == 0
    assert len(list(tmp_path.iterdir())) == 3


def test_the_consistency_of_other_pictures_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "consistency.json"
    monkeypatch.setattr("ddim.cli.opening.open_pipeline", lambda *_: pytest.fail("a model is loaded"))
    file.write_text(json.dumps({"model": "emoji", "samples": 4, "seed": 1}))
    command = ["evaluate", "digits", "--consistency", "--samples", "4", "--seed", "1", "--out", str(tmp_path)]
    assert main(command) == 1
    assert "give another --out" in capsys.readouterr().err
    file.write_text(json.dumps({"model": "digits", "samples": 4, "seed": 1}))
    with pytest.raises(pytest.fail.Exception):
        main(command)


def test_every_command_that_writes_can_overwrite() -> None:
    """Those with a folder of their own, in which they go on where they stopped, have nothing to overwrite."""
    for words, command in COMMANDS.items():
        names = {field.name for field in dataclasses.fields(load(command.settings))}
        assert ("overwrite" in names) == ("out" in names and words not in ("evaluate", "generate")), words


def test_places(tmp_path: Path) -> None:
    assert place(tmp_path / "x.png", overwrite=False) == tmp_path / "x.png"
    (tmp_path / "x.png").symlink_to(tmp_path / "nowhere")  # a link that leads nowhere is there too
    assert place(tmp_path / "x.png", overwrite=False) == tmp_path / "x-1.png"
    assert place(tmp_path / "x.png", overwrite=True) == tmp_path / "x.png"
    (tmp_path / "00002.png").touch()
    assert places(tmp_path, range(1, 3), overwrite=False).path(1) == tmp_path / "00001-1.png"
    assert places(tmp_path, range(1, 2), overwrite=False).path(1) == tmp_path / "00001.png"
    found = places(tmp_path, range(1, 3), overwrite=False, ours=lambda path, number: True)
    assert (found.path(1), found.done) == (tmp_path / "00001.png", {2})
    assert places(tmp_path, range(123_456, 123_457), overwrite=False).path(123_456) == tmp_path / "123456.png"
    for name in ("0000a.png", "00002.txt", "000002.png", "00003.png.tmp"):  # somebody's files of other names
        (tmp_path / name).touch()
    assert places(tmp_path, range(3, 10), overwrite=False).suffix == 0
