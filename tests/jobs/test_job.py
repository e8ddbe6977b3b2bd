"""The folder of a job: what counts as done, whatever ended in between, and what it becomes."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import begun, draw, drawing, finished, table, written

from ddim.errors import CheckpointError, ConfigError, DataError
from ddim.jobs import job as module
from ddim.jobs.job import Job, Left, open_job

KINDS = ("folder", "parquet", "webdataset")


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand has ten rows here."""
    monkeypatch.setattr(module, "GROUP", 10)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_written_depends_on_the_rows_alone(tmp_path: Path, kind: str) -> None:
    plain = begun(tmp_path, 25, kind, "plain")
    draw(plain, range(25), failing=[3, 21])
    assert finished(plain)
    expected = written(plain.out)
    order = list(range(25))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        job = begun(tmp_path, 25, kind, f"shuffled {seed}")
        for number in order:
            draw(job, [number], failing=[3, 21])
            if number % 4 == seed:
                job.settle(number // 10)
            if number % 5 == seed:
                job = begun(tmp_path, 25, kind, f"shuffled {seed}")
                job.finish()
        assert finished(job)
        assert written(job.out) == expected
    assert sum(name.endswith((".png", ".parquet", ".tar")) for name in expected) == (23 if kind == "folder" else 3)
    assert not os.listdir(plain.out / ".job" / "open")


def test_the_manifest_and_the_errors_are_in_the_order_of_rows(tmp_path: Path) -> None:
    job = begun(tmp_path, 12)
    draw(job, reversed(range(12)), failing=[11, 2])
    assert finished(job)
    lines = [json.loads(line) for line in (job.out / "manifest.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]
    assert lines[2] == {
        "id": "00000003",
        "file": "00000/00000003.png",
        "seed": 3,
        "sha256": lines[2]["sha256"],
        "settings": {"prompt": "prompt 3"},
    }
    assert lines[9]["file"] == "00001/00000010.png"
    errors = [json.loads(line) for line in (job.out / "errors.jsonl").read_text().splitlines()]
    assert errors == [
        {"row": 2, "id": "00000002", "error": "row 2 is not wanted"},
        {"row": 11, "id": "00000011", "error": "row 11 is not wanted"},
    ]
    assert job.left() == Left(0, 2)


def test_what_is_done_is_known_from_the_folder_alone(tmp_path: Path) -> None:
    job = begun(tmp_path, 25)
    assert job.left() == Left(25, 0)
    draw(job, [0, 1, 12], failing=[1])
    assert job.settled(0) == {"00000000", "00000001"}
    assert job.settled(2) == set()
    assert job.left() == Left(22, 1)
    draw(job, range(10, 20))
    assert job.settle(1)
    assert not job.settle(0)
    assert begun(tmp_path, 25).left() == Left(13, 1)
    assert len(job.settled(1)) == 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 40])
def test_a_picture_that_was_cut_off_is_drawn_again(tmp_path: Path, kind: str, size: int) -> None:
    """As a power cut may leave it, since single pictures are not flushed."""
    job = begun(tmp_path, 3, kind)
    draw(job, range(3))
    path = next(path for path in job.out.rglob("00000001.png"))
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert not job.settle(0)
    assert not path.exists()
    path.write_bytes(whole[:size])
    assert job.settled(0) == {"00000000", "00000002"}
    draw(job, [1])
    assert finished(job)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_tried_again(tmp_path: Path, kind: str) -> None:
    job = begun(tmp_path, 25, kind)
    draw(job, range(25), failing=[3, 4, 22])
    assert finished(job)
    assert (job.out / "errors.jsonl").exists()
    assert job.reopen() == 3
    assert job.left() == Left(3, 0)
    assert len(job.done()) == 1
    draw(job, [3, 4, 22], failing=[4])
    assert finished(job)
    assert job.left() == Left(0, 1)
    assert job.reopen() == 1
    draw(job, [4])
    assert finished(job)
    plain = begun(tmp_path, 25, kind, "plain")
    draw(plain, range(25))
    assert finished(plain)
    assert written(job.out) == written(plain.out)
    assert job.reopen() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", range(12))
def test_a_process_may_end_at_any_moment(
    tmp_path: Path, kind: str, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each change of the file system it is as if the process were killed; another one goes on."""
    job = begun(tmp_path, 12, kind)
    draw(job, range(12), failing=[3])
    count = 0

    class Killed(BaseException):
        """No handler of errors sees it."""

    def counted(name: str, once: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment + 1:
                raise Killed(name)
            return once(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "mkdir", "rmdir", "link"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        try:
            finished(job)
            job.reopen()
            draw(job, [3])
            finished(job)
        except Killed:
            pass
    job = begun(tmp_path, 12, kind)
    job.reopen()
    job.finish()
    for group in job.groups:
        done = job.settled(group)
        draw(job, [row.number for row in job.spool.read(job.numbers(group)) if row.name not in done])
    assert finished(job)
    plain = begun(tmp_path, 12, kind, "plain")
    draw(plain, range(12))
    assert finished(plain)
    assert written(job.out) == written(plain.out)


def test_two_who_finish_the_same_rows_do_no_harm(tmp_path: Path) -> None:
    expected = begun(tmp_path, 40, "webdataset", "plain")
    draw(expected, range(40))
    assert finished(expected)
    job = begun(tmp_path, 40, "webdataset")
    errors = []

    def work() -> None:
        try:
            for group in job.groups:
                draw(job, job.numbers(group))
                job.settle(group)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert finished(job)
    assert written(job.out) == written(expected.out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = begun(tmp_path, 10, kind)
    draw(job, range(5))

    def full(self: Path, *arguments: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(CheckpointError, match=r"00000005\.png was not written: No space left on device"):
            draw(job, [5])
    draw(job, range(5, 10))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(CheckpointError, match="was not written: No space left on device"):
            job.settle(0)
    assert len(job.settled(0)) == 10
    assert finished(job)


def test_a_job_travels(tmp_path: Path) -> None:
    job = begun(tmp_path, 3)
    again: Job = pickle.loads(pickle.dumps(job))
    assert again == job
    assert job.out.is_absolute()


# --- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "--model was none and is other"),
        ({"format": "parquet"}, "--format was folder and is parquet"),
        ({"settings": {"steps": 3}}, "--steps was 5 and is 3"),
        ({"settings": {}}, "--steps was 5 and is not given"),
        ({"settings": {"steps": 5, "guidance_interval": [1, 2]}}, "--guidance-interval was not given and is 1 2"),
    ],
)
def test_a_folder_has_one_job(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    asked = {"model": "none", "format": "folder", "settings": {"steps": 5}}
    job = open_job(tmp_path / "out", table(tmp_path, 3), asked)
    open_job(tmp_path / "out", table(tmp_path, 3), {**asked, **changes})  # nothing was drawn yet
    job = open_job(tmp_path / "out", table(tmp_path, 3), asked)
    job.agree({"weights": "none"})
    assert open_job(tmp_path / "out", table(tmp_path, 3), asked) == job
    with pytest.raises(ConfigError, match=message):
        open_job(tmp_path / "out", table(tmp_path, 3), {**asked, **changes})
    with pytest.raises(ConfigError, match="PROMPTS had other contents"):
        open_job(tmp_path / "out", table(tmp_path, 4), asked)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"has files that are of no job, such as thesis\.tex"):
        begun(tmp_path, 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / "job.json").unlink(),
        lambda out: (out / "job.json").write_text("{"),
        lambda out: (out / "job.json").write_text("{}"),
        lambda out: (out / ".job" / "rows.index").unlink(),
        lambda out: (out / ".job" / "rows.index").write_bytes(b""),
    ],
)
def test_a_folder_that_was_damaged_is_an_error(tmp_path: Path, damage: Any) -> None:
    damage(begun(tmp_path, 3).out)
    with pytest.raises((CheckpointError, ConfigError, DataError)):
        begun(tmp_path, 3)


def test_workers_compute_alike_or_not_at_all(tmp_path: Path) -> None:
    job = begun(tmp_path, 3, name="a")
    job.agree({"weights": "none"})
    with pytest.raises(ConfigError, match="has other weights than those"):
        job.agree({"weights": "others"}, any_hardware=True)
    job = open_job(tmp_path / "b", table(tmp_path, 3), {"model": "none", "format": "folder"})
    job.agree({"weights": "w", "slots": 16, "bits": "x"})
    with pytest.raises(ConfigError, match=r"computes other bits .*\(bits\).*--any-hardware"):
        job.agree({"weights": "w", "slots": 16, "bits": "y"})
    job.agree({"weights": "w", "slots": 16, "bits": "y"}, any_hardware=True)
    job.agree({"weights": "w", "slots": 16, "bits": "x"})


def test_the_first_of_many_workers_decides(tmp_path: Path) -> None:
    job = open_job(tmp_path / "out", table(tmp_path, 3), {"model": "none", "format": "folder"})
    refused = []

    def agree(number: int) -> None:
        try:
            job.agree({"weights": "w", "bits": number})
        except ConfigError:
            refused.append(number)

    threads = [threading.Thread(target=agree, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert json.loads((job.out / ".job" / "worker.json").read_text())["bits"] not in refused


def test_drawings_are_the_same_each_time(tmp_path: Path) -> None:
    (row,) = begun(tmp_path, 1).spool.read(range(1))
    assert drawing(row) == drawing(row)
