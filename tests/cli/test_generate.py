"""`ddim generate`: rows of a table in one process, stopped and gone on with."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_jobs import written

from ddim.cli import main
from ddim.jobs import job as jobs
from ddim.jobs.lock import locked


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """Thirty rows of many settings, with holes."""
    rows = random.Random(0)
    lines = ["id,steps,eta,class_label,seed,order"]
    for number in range(30):
        eta = rows.choice(["", "0", "1", "0.5"])
        order = "2" if eta in ("", "0") and number % 3 == 0 else ""
        lines.append(f"row {number},{rows.randint(1, 6)},{eta},{rows.choice(['', '0', '2'])},{number or ''},{order}")
    path = tmp_path / "prompts.csv"
    path.write_text("\n".join(lines))
    return str(path)


def generate(prompts: str, out: Path, model: str, *options: str) -> int:
    return main(["generate", prompts, "--out", str(out), "--model", model, *options])


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def pictures(out: Path) -> dict[str, bytes]:
    """What a job has drawn."""
    return {name: data for name, data in written(out).items() if name not in ("job.json", "errors.jsonl")}


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_every_row_becomes_a_picture(
    prompts: str, classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert generate(prompts, out, classes) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(out / "manifest.jsonl")
    assert "all of 30 rows are done" in told.err
    lines = manifest(out)
    assert [line["id"] for line in lines] == [f"row {number}" for number in range(30)]
    assert lines[4]["file"] == "00000/row%204.png"
    assert lines[4]["seed"] == 4
    assert lines[0]["seed"] > 2**40
    assert lines[1]["settings"]["class_labels"] in ([0], [1], [2])
    with Image.open(out / lines[3]["file"]) as image:
        assert image.size == (8, 8)
    capsys.readouterr()
    assert generate(prompts, out, classes) == 0
    assert "30 of 30 rows are done already" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
@pytest.mark.thin(fast=["webdataset"])
def test_the_bytes_are_the_same_however_many_are_drawn_at_a_time(
    prompts: str, classes: str, tmp_path: Path, kind: str
) -> None:
    expected = None
    for batch in ("1", "3", "16"):
        out = tmp_path / batch
        assert generate(prompts, out, classes, "--format", kind, "--batch-size", batch) == 0
        expected = expected or written(out)
        assert written(out) == expected


def test_a_picture_is_that_of_sample(texts: str, tmp_path: Path) -> None:
    """By its recipe, with any seed."""
    (tmp_path / "a.txt").write_text("a red heart\na cat\n")
    out = tmp_path / "out"
    assert generate(str(tmp_path / "a.txt"), out, texts, "--steps", "2", "--guidance-scale", "3", "--width", "32") == 0
    for line in manifest(out):
        again = tmp_path / "again.png"
        assert main(["sample", "--from", str(out / line["file"]), "--trust", "--out", str(again), "--overwrite"]) == 0
        with Image.open(out / line["file"]) as first, Image.open(again) as second:
            assert first.size == second.size == (32, 16)
            near = [abs(a - b) for a, b in zip(first.tobytes(), second.tobytes(), strict=True)]
            assert max(near) <= 1


def test_rows_that_cannot_be_drawn_are_listed(classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_text('{"steps": 1}\n{"steps": "five"}\nnonsense\n{"class_label": 77}\n{"steps": 2}\n')
    assert generate(str(path), out, classes) == 1
    assert f"3 rows could not be drawn: {out / 'errors.jsonl'} says why" in capsys.readouterr().err
    assert len(manifest(out)) == 2
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [error["row"] for error in errors] == [1, 2, 3]
    assert errors[0]["error"].startswith("steps: input should be a valid integer")
    assert errors[1]["error"].startswith("line 3 is not JSON")
    assert "class_label 77 is none" in errors[2]["error"]
    assert generate(str(path), out, classes) == 1
    capsys.readouterr()
    assert generate(str(path), out, classes, "--retry-errors") == 1
    assert "3 rows that failed before are drawn anew" in capsys.readouterr().err


def test_what_fails_while_it_is_drawn_is_tried_again_on_request(
    classes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddim.serving.models import PixelModel

    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_text('{"steps": 1}\n' * 5)
    usual = PixelModel.begin

    def begin(self: Any, samples: Any) -> None:
        if any(sample.request.class_label == 2 for sample in samples):
            raise RuntimeError("the weather is bad")
        usual(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(PixelModel, "begin", begin)
        assert generate(str(path), out, classes) == 1
    assert json.loads((out / "errors.jsonl").read_text())["error"] == "RuntimeError: the weather is bad"
    assert generate(str(path), out, classes, "--retry-errors") == 0
    assert not (out / "errors.jsonl").exists()
    assert generate(str(path), tmp_path / "plain", classes) == 0
    assert written(out) == written(tmp_path / "plain")


def test_shards_share_a_folder(classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"steps": 1}\n' * 160)
    assert generate(str(path), tmp_path / "plain", classes) == 0
    for shard in ("2/3", "0/3"):
        assert generate(str(path), tmp_path / "out", classes, "--shard", shard) == 0
        assert f"shard {shard} is done, and " in capsys.readouterr().err
        assert not (tmp_path / "out" / "manifest.jsonl").exists()
    assert generate(str(path), tmp_path / "out", classes, "--shard", "1/3") == 0
    assert "all of 160 rows are done" in capsys.readouterr().err
    assert written(tmp_path / "out") == written(tmp_path / "plain")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("prompt\na\n", [], "has prompts, and {model} draws no texts"),
        ("id,setps\na,5\n", [], "has the column 'setps', which is no setting: did you mean steps?"),
        ("id\na\na\n", [], "the id 'a' is that of row 0 and of row 1"),
        ("id\n", [], "has no rows"),
        ("id\na\n", ["--shard", "3/3"], "--shard must be the part and how many there are"),
        ("id\na\n", ["--shard", "0/2", "--workers", "2"], "--shard is for machines without Ray"),
        ("id\na\n", ["--shard", "0/2", "--retry-errors"], "leave --shard out"),
        ("id\na\n", ["--order", "2", "--eta", "1"], "--order 2 needs an --eta of 0"),
        ("id\na\n", ["--workers", "0"], "--workers must be 1 or more"),
        ("id\na\n", ["--batch-size", "0"], "--batch-size must be 1 or more"),
        ("id\na\n", ["--class-label", "9"], "--class-label 9 is no class of"),
        ("id\na\n", ["--width", "64"], "draws no texts: leave out --width"),
    ],
)
def test_a_job_that_cannot_work_is_refused_before_anything_is_drawn(
    classes: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert generate(str(tmp_path / "a.csv"), tmp_path / "out", classes, *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(model=classes) in line


def test_a_model_of_texts_needs_prompts(texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("id\na\n")
    assert generate(str(tmp_path / "a.csv"), tmp_path / "out", texts) == 1
    assert "has no column prompt" in capsys.readouterr().err


def test_other_settings_are_another_job(
    prompts: str, classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(prompts, tmp_path / "out", classes) == 0
    capsys.readouterr()
    assert generate(prompts, tmp_path / "out", classes, "--steps", "3") == 1
    assert "--steps was not given and is 3" in capsys.readouterr().err


def test_two_at_once_are_refused(
    prompts: str, classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with locked(out, None):
        assert generate(prompts, out, classes) == 1
        assert "is being drawn into by another `ddim generate`" in capsys.readouterr().err
        assert generate(prompts, out, classes, "--shard", "0/2") == 1
    with locked(out, (0, 2)):
        assert generate(prompts, out, classes) == 1
        assert generate(prompts, out, classes, "--shard", "0/2") == 1
        assert generate(prompts, out, classes, "--shard", "1/2") == 0
    assert generate(prompts, out, classes) == 0


# --- what is interrupted ---------------------------------------------------------------------------------------------


@pytest.fixture
def long(tmp_path: Path) -> str:
    """A table that takes a second or two."""
    path = tmp_path / "long.jsonl"
    path.write_text("".join(f'{{"steps": {1 + number % 3}}}\n' for number in range(400)))
    return str(path)


def test_a_full_disk_loses_nothing(
    long: str, classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, usual, left = tmp_path / "out", os.replace, [100]

    def replace(source: Any, target: Any) -> None:
        left[0] -= str(target).endswith(".png")
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        usual(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert generate(long, out, classes) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith(".png was not written: No space left on device")
    assert len(list((out / "00000").iterdir())) == 100
    assert generate(long, out, classes) == 0
    assert "100 of 400 rows are done already" in capsys.readouterr().err
    assert generate(long, tmp_path / "plain", classes) == 0
    assert written(out) == written(tmp_path / "plain")


def test_an_interruption_finishes_what_is_in_hand(
    long: str, classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is at most twice as many rows as are drawn at a time: those, and those that wait to be next."""
    out = tmp_path / "out"
    usual = jobs.Job.write_picture
    count = 0

    def write(self: Any, *given: Any) -> None:
        nonlocal count
        count += 1
        usual(self, *given)
        if count == 50:
            signal.raise_signal(signal.SIGINT)  # in the main thread, whose handler is called at once

    with monkeypatch.context() as patch:
        patch.setattr(jobs.Job, "write_picture", write)
        assert generate(long, out, classes, "--batch-size", "8") == 130
    said = capsys.readouterr().err
    assert "what is in hand is being finished; Ctrl-C once more stops at once" in said
    done = len(list((out / "00000").iterdir()))
    assert 50 <= done < 50 + 2 * 8
    assert f"ddim: interrupted: {done} of 400 rows are done; to go on, run it again: ddim generate {long}" in said
    assert generate(long, out, classes) == 0
    assert generate(long, tmp_path / "plain", classes) == 0
    assert written(out) == written(tmp_path / "plain")


# A process that runs the command, and is killed, or told to end, when it has written so many pictures.
PROGRAM = """
import os, sys
from ddim.cli import main
from ddim.jobs.job import Job
usual, left, number = Job.write_picture, int(sys.argv[1]), int(sys.argv[2])
def write(self, *given):
    global left
    usual(self, *given)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), number)
Job.write_picture = write
sys.exit(main(sys.argv[3:]))
"""


def run_until(pictures: int, number: int, *command: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which gets a signal when it has written so many pictures."""
    typed = [sys.executable, "-c", PROGRAM, str(pictures), str(number), *command]
    return subprocess.run(typed, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("kind", ["folder", pytest.param("webdataset", marks=pytest.mark.slow)])
def test_a_process_that_is_killed_has_lost_nothing(kind: str, classes: str, tmp_path: Path) -> None:
    """Wherever its engine is just then."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"steps": 1}\n' * 300)
    out, moments = tmp_path / "out", random.Random(1)
    done = 0
    for _ in range(2):
        count = moments.randint(20, 100)
        command = ["generate", str(path), "--out", str(out), "--model", classes, "--format", kind]
        assert run_until(count, signal.SIGKILL, *command).returncode == -signal.SIGKILL
        done += count
        assert sum(1 for _ in out.rglob("*.png")) == done
    assert main(["generate", str(path), "--out", str(out), "--model", classes, "--format", kind]) == 0
    assert generate(str(path), tmp_path / "plain", classes, "--format", kind) == 0
    assert written(out) == written(tmp_path / "plain")


# The fast test beside it is test_an_interruption_finishes_what_is_in_hand.
@pytest.mark.slow
def test_a_termination_is_an_interruption(long: str, classes: str, tmp_path: Path) -> None:
    command = ["generate", long, "--out", str(tmp_path / "out"), "--model", classes, "--batch-size", "1"]
    ended = run_until(5, signal.SIGTERM, *command)
    assert ended.returncode == 130
    assert "to go on, run it again" in ended.stderr
    assert 5 <= sum(1 for _ in (tmp_path / "out").rglob("*.png")) < 5 + 2


def test_threads_of_a_worker_are_the_programs_own_again(prompts: str, classes: str, tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    assert generate(prompts, tmp_path / "out", classes, "--threads", "2") == 0
    assert torch.get_num_threads() == before
    assert threading.active_count() < 20
