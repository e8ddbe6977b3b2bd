"""A worker by itself: what it takes up, and what it leaves when it is to stop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ddim.jobs.job import Job, open_job
from ddim.jobs.worker import Drawn, Worker
from ddim.pipelines import DiffusionPipeline
from ddim.serving import Finished, Future, Picture, Request, Started


class ByHand:
    """In the place of an engine: it draws what it is told to, when it is told to."""

    max_batch, decoded = 4, 1

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe
        self.asked: list[Future] = []
        self.heard: Callable[[], object] = lambda: None  # told of each request

    def submit(self, request: Request) -> Future:
        self.asked.append(Future(request))
        self.heard()
        return self.asked[-1]

    def gathering(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def begin(self, *places: int) -> None:
        for place in places:
            self.asked[place].tell(Started(1))

    def end(self, *places: int) -> None:
        for place in places:
            self.begin(place)
            seed = self.asked[place].request.seed or 0
            picture = Picture(Image.new("L", (8, 8)), seed, {"seed": seed, "width": 8, "height": 8})
            self.asked[place].tell(Finished(picture))


@pytest.fixture
def engine(classes: str) -> ByHand:
    return ByHand(DiffusionPipeline.from_pretrained(classes))


def begun(tmp_path: Path, classes: str, count: int) -> Job:
    """A job of so many rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n" * count)
    return open_job(tmp_path / "out", str(path), {"model": classes, "format": "folder"})


def drawn(job: Job) -> list[int]:
    """The rows that have a picture."""
    return sorted(int(path.stem) for path in job.out.rglob("*.png"))


def test_a_worker_that_is_to_stop_takes_up_nothing_and_leaves_what_waits(
    tmp_path: Path, classes: str, engine: ByHand
) -> None:
    """Of eight rows in hand one is done when the word comes, three are begun, and four wait."""
    job, is_to_stop = begun(tmp_path, classes, 100), False

    def asked() -> None:
        if len(engine.asked) == 2 * engine.max_batch:  # as many as it takes up at a time: it waits for one of them now
            engine.begin(0, 1, 2, 3)
            engine.end(0)

    def heard() -> None:
        nonlocal is_to_stop
        is_to_stop = True
        threading.Thread(target=finish).start()

    def finish() -> None:
        waiting = engine.asked[4:]
        while not all(future.cancelled() for future in waiting):
            assert patience.wait(0.01) is False
        engine.end(3, 1, 2)

    engine.heard = asked
    patience = threading.Event()
    worker = Worker(job, engine.pipe, engine, lambda: is_to_stop)  # type: ignore[arg-type]
    assert worker.draw([range(100)], heard) == Drawn(4, 0, True)
    assert len(engine.asked) == 8
    assert drawn(job) == [0, 1, 2, 3]


def test_a_worker_that_is_not_stopped_draws_all(tmp_path: Path, classes: str, engine: ByHand) -> None:
    job = begun(tmp_path, classes, 20)
    engine.heard = lambda: engine.end(-1)
    worker = Worker(job, engine.pipe, engine, lambda: False)  # type: ignore[arg-type]
    assert worker.draw([range(10), range(10, 20)]) == Drawn(20, 0, False)
    assert worker.draw([range(20)]) == Drawn(0, 0, False)
    assert drawn(job) == list(range(20))
