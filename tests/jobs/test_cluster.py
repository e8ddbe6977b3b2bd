"""A job on Ray: the bytes of one process, whoever draws and whoever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import raylet, two_nodes
from tiny_jobs import begun, written

from ddim.cli import main
from ddim.errors import CheckpointError, ConfigError
from ddim.jobs.cluster import Crew, Hands, _by_worker, _checked_nodes, _lacks, _needed, _resources, _said_aside
from ddim.jobs.hardware import Hardware
from ddim.jobs.worker import pieces_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """Rows of several settings, one of which cannot be drawn."""
    path = tmp_path / "prompts.jsonl"
    lines = [{"steps": 1 + number % 3, "eta": number % 2 * 0.5} for number in range(60)]
    lines[31]["class_label"] = 50
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def rows(path: Path, count: int, steps: int = 20) -> str:
    """A table of rows of this many steps, or a few more."""
    path.write_text("".join(f'{{"steps": {steps + number % 10}}}\n' for number in range(count)))
    return str(path)


@pytest.fixture
def many(tmp_path: Path) -> str:
    """Rows that take some seconds."""
    return rows(tmp_path / "many.jsonl", 300)


def generate(prompts: str, out: Path, model: str, *options: str) -> int:
    return main(["generate", prompts, "--out", str(out), "--model", model, *options])


def children(name: str, of: int) -> list[int]:
    """The processes, below one, whose command has a name in it."""
    lines = subprocess.run(
        ["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    parts = [line.split(None, 2) for line in lines[1:]]
    below, found = {of}, []
    for _ in range(6):
        below |= {int(pid) for pid, parent, _ in parts if int(parent) in below}
    for pid, _, command in parts:
        if int(pid) in below and name in command:
            found.append(int(pid))
    return found


def when(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def drawn(out: Path) -> int:
    return sum(1 for _ in out.rglob("*.png"))


def test_actors_write_the_bytes_of_one_process(
    prompts: str, classes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them by turns, called as Ray would; that Ray itself takes half a minute to start is for the slow tests."""

    def by_turns(job: Any, opens: Any, hardware: Hardware, *_: Any) -> None:
        actors = [Hands(job, opens, hardware) for _ in range(2)]
        for number, piece in enumerate(reversed([*pieces_of(job, 10)])):
            told = actors[number % 2]({"start": [piece.start], "stop": [piece.stop]})
            assert told["drawn"][0] + told["failed"][0] == len(piece)
        for actor in actors:
            actor._open.close()

    monkeypatch.setattr("ddim.jobs.cluster.draw_on_ray", by_turns)
    assert generate(prompts, tmp_path / "plain", classes, "--format", "webdataset") == 1
    assert generate(prompts, tmp_path / "out", classes, "--format", "webdataset", "--workers", "2") == 1
    assert written(tmp_path / "out") == written(tmp_path / "plain")


# The fast test beside it is test_actors_write_the_bytes_of_one_process.
@pytest.mark.slow
def test_two_workers_write_the_bytes_of_one_process(
    prompts: str, classes: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert generate(prompts, tmp_path / "plain", classes, "--format", "webdataset") == 1
    capfd.readouterr()
    assert generate(prompts, tmp_path / "out", classes, "--format", "webdataset", "--workers", "2") == 1
    told = capfd.readouterr()
    assert written(tmp_path / "out") == written(tmp_path / "plain")
    assert told.out.strip() == str(tmp_path / "out" / "manifest.jsonl")
    assert "1 row could not be drawn" in told.err
    assert all(line.startswith(("ddim: ", "drawing: ")) for line in told.err.splitlines())  # none of Ray's own


def test_what_is_missing_is_one_sentence(
    prompts: str, classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert generate(prompts, tmp_path / "out", classes, "--workers", "2") == 1
    assert capsys.readouterr().err.endswith("ddim: this needs ray, which is not installed: pip install 'ddim[scale]'\n")


# --- the actor -------------------------------------------------------------------------------------------------------


def missing() -> Any:
    raise CheckpointError("there is no folder /models/x")


def not_installed() -> Any:
    import nothing_of_this_name  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize(
    ("opens", "fault"),
    [
        (missing, "there is no folder /models/x"),
        (not_installed, "nothing_of_this_name is not installed there: install ddim on each node"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_an_actor_that_cannot_begin_says_why(tmp_path: Path, opens: Any, fault: str) -> None:
    """It does not raise, which Ray would try again without end."""
    told = Hands(begun(tmp_path, 3), opens, Hardware())({"start": [0], "stop": [3]})
    assert told["fault"][0].startswith(fault)
    assert told["drawn"] == [0]


def test_an_actor_that_cannot_write_says_why(tmp_path: Path, classes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddim.jobs.job import Job, open_job
    from ddim.pipelines import DiffusionPipeline

    (tmp_path / "a.jsonl").write_text('{"steps": 1}\n' * 3)
    job = open_job(tmp_path / "out", str(tmp_path / "a.jsonl"), {"model": classes, "format": "folder"})
    hands = Hands(job, lambda: DiffusionPipeline.from_pretrained(classes), Hardware(threads=1))
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise CheckpointError("x.png was not written: No space left on device")

        patch.setattr(Job, "write_picture", full)
        told = hands({"start": [0], "stop": [3]})
    assert told["fault"] == ["x.png was not written: No space left on device"]
    assert hands({"start": [0], "stop": [3]})["fault"] == told["fault"]
    hands._open.close()


def test_an_actor_ends_where_a_mark_says_so(tmp_path: Path, classes: str) -> None:
    from ddim.jobs.job import open_job
    from ddim.pipelines import DiffusionPipeline

    (tmp_path / "a.jsonl").write_text('{"steps": 1}\n' * 3)
    job = open_job(tmp_path / "out", str(tmp_path / "a.jsonl"), {"model": classes, "format": "folder"})
    hands = Hands(job, lambda: DiffusionPipeline.from_pretrained(classes), Hardware(threads=1))
    job.stop_mark.touch()
    assert hands({"start": [0], "stop": [3]})["drawn"] == [0]
    job.stop_mark.unlink()
    hands._looked = 0.0
    assert hands({"start": [0], "stop": [3]})["drawn"] == [3]
    hands._open.close()


def test_rows_that_no_worker_survives_end_the_job(
    tmp_path: Path, classes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Ray would start another worker for them for ever."""
    from ddim.jobs.job import open_job
    from ddim.pipelines import DiffusionPipeline

    class Killed(BaseException):
        """As if the process had ended."""

    def die(*_: Any) -> None:
        raise Killed

    (tmp_path / "a.jsonl").write_text('{"steps": 1}\n' * 6)
    job = open_job(tmp_path / "out", str(tmp_path / "a.jsonl"), {"model": classes, "format": "folder"})
    hands = Hands(job, lambda: DiffusionPipeline.from_pretrained(classes), Hardware(threads=1))
    with monkeypatch.context() as patch:
        patch.setattr(type(hands._worker), "draw", die)
        for _ in range(5):
            with pytest.raises(Killed):
                hands({"start": [0], "stop": [3]})
    assert hands({"start": [3], "stop": [6]})["fault"] == [""]
    assert hands({"start": [0], "stop": [3]})["fault"][0].startswith(
        "5 workers have died while they drew the rows 0 to 2"
    )
    hands._open.close()


def test_progress_says_each_worker_of_few() -> None:
    assert _by_worker({"a": 1200, "b": 3}, 0.5) == "0.5 a second; by worker 1,200 + 3"
    assert _by_worker({str(number): number for number in range(20)}, None) == "by 20 workers 0 to 19"


def test_what_others_say_goes_aside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with _said_aside(tmp_path / "log"):
        os.write(2, b"from below\n")
        print("on stdout")
        print("ours", file=sys.stderr)
    os.write(2, b"afterwards\n")
    told = capfd.readouterr()
    assert (told.out, told.err) in (("", "ours\nafterwards\n"), ("", "afterwards\nours\n"))
    assert (tmp_path / "log").read_text() in ("from below\non stdout\n", "on stdout\nfrom below\n")


def test_a_cluster_that_is_not_there_is_an_error(
    prompts: str, classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(prompts, tmp_path / "out", classes, "--ray-address", "127.0.0.1:9") == 1
    assert "--ray-address 127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_what_a_node_does_not_see_is_said(tmp_path: Path) -> None:
    needed = _needed(begun(tmp_path, 3))
    assert needed.pictures is None
    for changes, said in (
        ({}, ""),
        ({"model": str(tmp_path), "pictures": str(tmp_path)}, ""),
        ({"folder": "/nowhere"}, "does not see the folder /nowhere: give an --out that all nodes share"),
        ({"size": needed.size + 1}, "does not see the folder"),
        ({"model": "/models/x"}, "has no /models/x: give a --model that all nodes have"),
        (
            {"pictures": "/mine"},
            "has no /mine, where the rows' pictures are: let PROMPTS lie in a folder that all nodes",
        ),
    ):
        found = _lacks(*needed._replace(**changes))  # type: ignore[arg-type]
        assert found.startswith(said) if said else not found


class Resources:
    """A cluster that has nothing but resources."""

    def __init__(self, **counts: float) -> None:
        self.cluster_resources = lambda: counts


def test_workers_get_a_card_each_or_are_refused() -> None:
    assert _resources(Resources(CPU=8), Crew(), 4, 2) == {"num_cpus": 2}
    assert _resources(Resources(CPU=8, GPU=4), Crew(), 4, 2) == {"num_cpus": 2, "num_gpus": 1}
    assert _resources(Resources(CPU=8, GPU=2), Crew(device="cpu"), 4, 2) == {"num_cpus": 2}
    with pytest.raises(ConfigError, match="--workers 4 need a GPU each, and there are 2: give 2"):
        _resources(Resources(CPU=8, GPU=2), Crew(), 4, 2)
    with pytest.raises(ConfigError, match="--workers 5 of 2 threads need as many processors, and the cluster has 8"):
        _resources(Resources(CPU=8), Crew(), 5, 2)


# --- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_whoever_is_killed_nothing_is_lost(classes: str, tmp_path: Path) -> None:
    """A worker, the raylet and the driver by turns, at random moments. Workers outlive their driver by some seconds."""
    many = rows(tmp_path / "many.jsonl", 800, steps=300)
    out, moments = tmp_path / "out", random.Random(0)
    command = [sys.executable, "-m", "ddim", "generate", many, "--out", str(out), "--model", classes, "--workers", "2"]
    for victim in ("worker", "raylet", "driver"):
        before = drawn(out)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        more = moments.randint(10, 60)
        when(lambda: drawn(out) > before + more)  # noqa: B023
        workers = children("ray::MapWorker", process.pid)
        if victim == "worker":
            os.kill(workers[0], signal.SIGKILL)
            when(lambda: drawn(out) > before + more + 40)  # noqa: B023 - it goes on
        elif victim == "raylet":
            assert process.poll() is None, process.communicate()[1]
            os.kill(children("raylet/raylet", process.pid)[0], signal.SIGKILL)
            _, said = process.communicate(timeout=60)
            assert process.returncode == 1
            assert "a process of Ray's has died on this machine; to go on, run the same command again" in said
        workers += children("ray::MapWorker", process.pid)
        process.kill()
        process.communicate()
        when(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))  # noqa: B023
    assert drawn(out) < 800
    assert generate(many, out, classes, "--workers", "2") == 0
    assert generate(many, tmp_path / "plain", classes) == 0
    assert written(out) == written(tmp_path / "plain")


@pytest.fixture
def cluster() -> Iterator[Any]:
    with two_nodes() as made:
        yield made


@pytest.mark.slow
def test_a_node_is_lost(many: str, classes: str, tmp_path: Path, cluster: Any) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ddim", "generate", many, "--out", str(out), "--model", classes]
    process = subprocess.Popen([*command, "--ray-address", cluster.address], stderr=subprocess.PIPE, text=True)
    when(lambda: drawn(out) > 20)
    os.kill(raylet(cluster.second), signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert generate(many, tmp_path / "plain", classes) == 0
    assert written(out) == written(tmp_path / "plain")


@pytest.mark.slow
def test_an_interruption_of_workers_finishes_what_they_have(classes: str, tmp_path: Path) -> None:
    """Two pieces each, of which they draw no more than they have begun when they hear of it."""
    many, out = rows(tmp_path / "many.jsonl", 800, steps=300), tmp_path / "out"
    command = [sys.executable, "-m", "ddim", "generate", many, "--out", str(out), "--model", classes, "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    when(lambda: drawn(out) > 20)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "to go on, run it again: ddim generate" in said
    assert 20 < drawn(out) < 800
    assert not (out / ".job" / "stop").exists()


@pytest.mark.slow
def test_a_node_that_lacks_something_is_named(tmp_path: Path, cluster: Any) -> None:
    import ray

    job = begun(tmp_path, 3)
    needed = _needed(job)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        assert len(_checked_nodes(ray, needed)) == 2
        for changes, message in (
            ({"folder": "/nowhere"}, "does not see the folder /nowhere: give an --out that all nodes share"),
            ({"size": 7}, "does not see the folder"),
            ({"model": "/models/x"}, "has no /models/x: give a --model that all nodes have"),
            ({"pictures": "/mine"}, "has no /mine, where the rows' pictures are"),
        ):
            with pytest.raises(ConfigError, match=f"the node .* {message}"):
                _checked_nodes(ray, needed._replace(**changes))  # type: ignore[arg-type]
    finally:
        ray.shutdown()
