"""`ddim sample --batch N`: into a folder, and on from where it stopped; into one grid, enlarged and labelled."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tqdm.std
from PIL import Image
from tiny import save_tiny

from ddim.cli import drawing, main
from ddim.pipelines import DDIMPipeline


@pytest.fixture
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "chunk_size", lambda pipe, size: 3)


def sample(*arguments: Any) -> int:
    return main(["sample", *map(str, arguments), "--steps", "2"])


def note(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.info["ddim"])  # type: ignore[no-any-return]


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def stop_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody presses Ctrl-C when so many pictures are saved."""
    saved = []
    save = drawing.save_picture

    def counting(*arguments: Any) -> None:
        if len(saved) == number:
            raise KeyboardInterrupt
        saved.append(save(*arguments))

    monkeypatch.setattr(drawing, "save_picture", counting)


# --- into a folder ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_at_a_time")
@pytest.mark.parametrize("kind", ["classes", "texts"])
@pytest.mark.thin(fast=["classes"])
def test_what_is_stopped_goes_on_to_the_same_pictures(
    kind: str,
    classes: str,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C keeps what is done and says how to go on; the same command then draws only what is left."""
    model = ["--model", classes] if kind == "classes" else ["a red cat", "--model", texts]
    command = [*model, "--eta", 0.5, "--batch", 8, "--out"]
    whole, out = tmp_path / "whole", tmp_path / "my pictures"
    assert sample(*command, f"{whole}/") == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        assert sample(*command, f"{out}/") == 130
    printed = capsys.readouterr()
    assert len(contents(out)) == len(printed.out.splitlines()) == 4
    (line,) = [line for line in printed.err.splitlines() if line.startswith("ddim: interrupted")]
    assert f"4 of 8 pictures are in {out}/" in line
    again = shlex.split(line.partition("run it again: ")[2])
    assert again[0] == "ddim"
    kept = contents(out)
    drawn: list[int] = []
    draw = drawing.Drawing.draw

    def counted(self: drawing.Drawing, numbers: range, *more: Any) -> list[Image.Image]:
        drawn.extend(numbers)
        return draw(self, numbers, *more)

    monkeypatch.setattr(drawing.Drawing, "draw", counted)
    assert main(again[1:]) == 0
    printed = capsys.readouterr()
    assert "4 of the 8 pictures are in" in printed.err
    assert "4 are left to draw" in printed.err
    assert [Path(line).name for line in printed.out.splitlines()] == [f"{k:05d}.png" for k in range(4, 8)]
    assert drawn == [3, 4, 5, 6, 7]  # beside the same others as in the run that was not stopped
    assert contents(out) == contents(whole)
    assert kept.items() <= contents(out).items()
    assert main(again[1:]) == 0
    assert "nothing to draw" in capsys.readouterr().err
    assert sample(*command[:-2], 10, "--out", out) == 0  # more of the same
    assert len(contents(out)) == 10
    assert contents(whole).items() <= contents(out).items()


@pytest.mark.usefixtures("few_at_a_time")
def test_pictures_of_other_settings_are_kept(classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "many"
    command = ["--model", classes, "--batch", 4, "--out", f"{out}/"]
    assert sample(*command) == 0
    first = contents(out)
    assert sample(*command, "--seed", 1) == 0
    assert "pictures of other settings, which are kept: the new ones are 00000-1.png" in capsys.readouterr().err
    assert len(contents(out)) == 8
    assert first.items() <= contents(out).items()
    assert sample(*command, "--seed", 1) == 0  # its own are found again
    assert "4 of the 4 pictures are in" in capsys.readouterr().err
    assert len(contents(out)) == 8
    (out / "00002-1.png").unlink()
    assert sample(*command, "--seed", 1) == 0
    assert len(contents(out)) == 8
    assert sample(*command, "--seed", 1, "--overwrite") == 0
    replaced = contents(out)
    assert len(replaced) == 8
    assert all(note(out / f"0000{k}.png")["settings"]["seed"] == 1 for k in range(4))


def test_a_model_that_was_trained_since_draws_anew(classes: str, tmp_path: Path) -> None:
    """The command is the same and the weights are not, so its pictures are other ones."""
    torch.manual_seed(1)
    model, out = tmp_path / "model", tmp_path / "many"
    save_tiny(model, num_class_embeds=4)
    command = ["--model", model, "--batch", 2, "--out", f"{out}/"]
    assert sample(*command) == 0
    pipe: Any = DDIMPipeline.from_pretrained(model)
    with torch.no_grad():
        pipe.unet.conv_out.bias += 0.1
    pipe.save_pretrained(model)
    assert sample(*command) == 0
    assert sorted(contents(out)) == ["00000-1.png", "00000.png", "00001-1.png", "00001.png"]


def test_another_picture_to_start_from_is_another_recipe(texts: str, tmp_path: Path) -> None:
    out = tmp_path / "many"
    for number, colour in enumerate(("red", "red", "blue"), start=1):
        Image.new("RGB", (16, 16), colour).save(tmp_path / "start.png")
        command = ["a cat", "--model", texts, "--image", tmp_path / "start.png", "--batch", 2, "--out", f"{out}/"]
        assert sample(*command) == 0
        assert len(contents(out)) == (2 if number < 3 else 4)


def test_a_batch_needs_no_more_memory_than_a_few(classes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more pictures are asked for at a time than a chunk, and each chunk is on the disk before the next begins."""
    asked: list[int] = []
    draw = drawing.Drawing.draw

    def counted(self: drawing.Drawing, numbers: range, *more: Any) -> list[Image.Image]:
        assert len(list((tmp_path / "many").glob("*"))) == sum(asked)
        asked.append(len(numbers))
        return draw(self, numbers, *more)

    monkeypatch.setattr(drawing.Drawing, "draw", counted)
    assert sample("--model", classes, "--batch", 150, "--out", f"{tmp_path}/many/") == 0
    assert asked == [64, 64, 22]


@pytest.mark.usefixtures("few_at_a_time")
def test_the_same_image_whatever_the_chunk(texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["a red cat", "--model", texts, "--batch", 7, "--eta", 1, "--out"]
    assert sample(*command, f"{tmp_path}/three/") == 0
    monkeypatch.setattr(drawing, "chunk_size", lambda pipe, size: 64)
    assert sample(*command, f"{tmp_path}/all/") == 0
    for k in range(7):
        one, other = (np.asarray(Image.open(tmp_path / name / f"0000{k}.png"), int) for name in ("three", "all"))
        assert np.abs(one - other).max() <= 2  # but for the rounding of networks on batches of other sizes


def test_one_of_many_is_made_again_byte_for_byte(classes: str, tmp_path: Path) -> None:
    out = tmp_path / "many"
    assert sample("--model", classes, "--batch", 5, "--out", f"{out}/") == 0
    again = ["sample", "--trust", "--from", str(out / "00003.png"), "--out"]
    assert main([*again, str(tmp_path / "third.png")]) == 0
    assert (tmp_path / "third.png").read_bytes() == (out / "00003.png").read_bytes()
    before = contents(out)
    assert main([*again, f"{out}/"]) == 0  # it is there already
    assert contents(out) == before


def test_a_terminal_is_not_flooded(classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert sample("--model", classes, "--batch", 21, "--out", f"{tmp_path}/a/") == 0
    assert len(capsys.readouterr().out.splitlines()) == 21  # a script is told all
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert sample("--model", classes, "--batch", 21, "--out", f"{tmp_path}/b/") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in shown] == ["00000.png", "…", "00020.png"]


@pytest.mark.slow  # half a minute; that no more than a chunk is drawn at a time has a test above
def test_memory_is_flat(tmp_path: Path) -> None:
    """The peak of a process that draws 600 digits is that of one that draws 100; all at once took 120 MB more."""
    code = "import resource, sys; from ddim.cli import main; assert main(sys.argv[1:]) == 0; "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peaks = []
    for count in (100, 600):
        out = tmp_path / str(count)
        command = ["sample", "--model", "digits", "--steps", "2", "--batch", str(count), "--out", f"{out}/"]
        done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.splitlines()[-1]) / 1024)
        assert len(contents(out)) == count
    assert peaks[1] < peaks[0] + 40


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_by_picture(classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Where stderr is no terminal, by a line now and then, and never by a bar for each chunk."""
    seconds = itertools.count(0, 2)
    monkeypatch.setattr(tqdm.std, "time", lambda: next(seconds))
    monkeypatch.setattr(drawing, "chunk_size", lambda pipe, size: 4)
    assert sample("--model", classes, "--batch", 8, "--out", f"{tmp_path}/many/") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("drawing: ")]
    assert {"drawing: 2/8 pictures", "drawing: 8/8 pictures"} <= {line.partition(",")[0] for line in lines}
    assert len(lines) <= 5
    monkeypatch.setattr(tqdm.std, "time", lambda: 0.0)
    assert sample("--model", classes, "--batch", 8, "--out", tmp_path / "grid.png") == 0
    said = capsys.readouterr().err
    assert "drawing" not in said
    assert "it/s" not in said


def test_a_bar_of_pictures_on_a_terminal(classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    seconds = itertools.count(0, 2)
    monkeypatch.setattr(tqdm.std, "time", lambda: next(seconds))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(drawing, "chunk_size", lambda pipe, size: 4)
    assert sample("--model", classes, "--batch", 8, "--out", f"{tmp_path}/many/") == 0
    said = capsys.readouterr().err
    assert "8 of 8 pictures" in said
    assert "it/s" not in said


# --- one file ---------------------------------------------------------------------------------------------------------


def test_a_grid_of_too_many_is_refused_at_once(
    classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, batch, name in (
        ("nobody/nothing", 1_000_000, "x.png"),
        (classes, 90_000, "x.png"),
        (classes, 65_000, "x.webp"),
    ):
        assert sample("--model", model, "--batch", batch, "--out", tmp_path / name) == 1
        assert "--out pictures/" in capsys.readouterr().err
    assert sample("--model", classes, "--scale", 4000, "--out", tmp_path / "x.png") == 1
    assert "a smaller --scale" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("count", "grid"),
    [
        (1, (256, 256)),
        (4, (4 * 258 - 2, 256)),
        (10, (10 * 130 - 2, 128)),
        (25, (5 * 258 - 2,) * 2),
        (20, (10 * 130 - 2, 2 * 130 - 2)),
        (400, (20 * 66 - 2,) * 2),
    ],
)
def test_small_pictures_are_enlarged(classes: str, tmp_path: Path, count: int, grid: tuple[int, int]) -> None:
    out = tmp_path / "x.png"
    assert sample("--model", classes, "--batch", count, "--out", out) == 0
    assert size(out) == grid
    assert note(out)["settings"]["scale"] * 8 in (64, 128, 256)


@pytest.mark.parametrize("options", [[], ["--scale", 3], ["--scale", 1], ["--labels"]], ids=str)
@pytest.mark.parametrize("kind", ["classes", "texts"])
@pytest.mark.thin(together=1)
def test_an_enlarged_picture_is_made_again_byte_for_byte(
    kind: str, classes: str, texts: str, tmp_path: Path, options: list[Any]
) -> None:
    model = ["--model", classes] if kind == "classes" else ["a red cat", "--model", texts]
    for count in (1, 3):
        out, again = tmp_path / f"{count}.png", tmp_path / f"{count}-again.png"
        assert sample(*model, "--batch", count, *options, "--out", out) == 0
        assert main(["sample", "--trust", "--from", str(out), "--out", str(again)]) == 0
        assert again.read_bytes() == out.read_bytes()
    if options[:1] == ["--scale"]:
        own = 8 if kind == "classes" else 16
        assert size(tmp_path / "1.png") == (own * options[1],) * 2


def test_pictures_in_a_folder_are_data(classes: str, tmp_path: Path) -> None:
    assert sample("--model", classes, "--batch", 2, "--out", f"{tmp_path}/plain/") == 0
    assert size(tmp_path / "plain" / "00000.png") == (8, 8)
    assert sample("--model", classes, "--batch", 2, "--scale", 5, "--out", f"{tmp_path}/large/") == 0
    assert size(tmp_path / "large" / "00000.png") == (40, 40)
    with Image.open(tmp_path / "plain" / "00000.png") as one, Image.open(tmp_path / "large" / "00000.png") as large:
        assert one.tobytes() == large.reduce(5).tobytes()


def test_labels_stand_under_the_pictures(
    classes: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a red cat " * 7
    for model in (["--model", classes], ["a red cat", "--model", texts], [long, "--model", texts]):
        plain, labelled = tmp_path / "plain.png", tmp_path / "labelled.png"
        assert sample(*model, "--batch", 3, "--scale", 16, "--overwrite", "--out", plain) == 0
        assert sample(*model, "--batch", 3, "--scale", 16, "--overwrite", "--labels", "--out", labelled) == 0
        with Image.open(plain) as one, Image.open(labelled) as other:
            assert other.width == one.width
            assert 10 < other.height - one.height < 50
            assert other.crop((0, 0, *one.size)).tobytes() == one.tobytes()
            below = other.crop((0, one.height, *other.size)).convert("L")
            assert sum(below.histogram()[:100]) > 50
    assert sample("--model", classes, "--labels", "--out", f"{tmp_path}/many/") == 1
    assert "--labels" in capsys.readouterr().err
    assert sample("--model", classes, "--batch", 1, "--labels", "--out", tmp_path / "one.png") == 0
    assert size(tmp_path / "one.png")[1] > 256
