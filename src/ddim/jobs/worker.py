"""What draws the rows of a job in one process: a pipeline, its engine, and as many rows in flight as it takes."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from ddim.errors import ConfigError, DataError, DDIMError, EngineClosedError
from ddim.jobs.job import GROUP, Job
from ddim.jobs.rows import Asked, asked_of
from ddim.jobs.spool import SpooledRow
from ddim.pipelines import DiffusionPipeline
from ddim.serving import Cancelled, Engine, Event, Failed, Finished, Future, Picture, Started
from ddim.serving.pictures import encoded
from ddim.serving.recipes import recipe
from ddim.serving.refusal import Refusal

__all__ = ["Drawn", "Worker"]


@dataclass(frozen=True)
class Drawn:
    """What became of some rows.

    Attributes:
        drawn, failed: how many were drawn, and failed, now; others were settled before.
        is_stopped: whether rows are left, since workers are to end.
    """

    drawn: int
    failed: int
    is_stopped: bool


class Worker:
    """Draws rows of a job, as many as are asked for. Its methods may be called by several threads.

    Args:
        job: whose rows.
        pipe: what draws them.
        engine: of `pipe`, with slots, so that no picture depends on the others.
        is_to_stop: whether to take up no more rows, to finish those that are being drawn, and to leave the rest;
            asked before each row.
    """

    def __init__(self, job: Job, pipe: DiffusionPipeline, engine: Engine, is_to_stop: Callable[[], bool]) -> None:
        self.job, self.pipe, self.engine, self.is_to_stop = job, pipe, engine, is_to_stop
        self.spool = job.spool

    def draw(self, pieces: Iterable[range], heard: Callable[[], object] = lambda: None) -> Drawn:
        """Draw rows, but for those that are settled, and make thousands final of which they were the last.

        Args:
            pieces: rows that follow each other, within one thousand each.
            heard: told after each row.

        Raises:
            CheckpointError: the file system does not allow it, for example because it is full.
            Exception: the engine ended.
        """
        hand = _Hand(self, heard)
        is_stopped = False
        with self.engine.gathering():
            for piece in pieces:
                is_stopped = not hand.take(piece)
                if is_stopped:
                    break
        hand.empty(is_stopped)
        return Drawn(hand.counts["drawn"], hand.counts["failed"], is_stopped)

    def file_of(self, row: SpooledRow, asked: Asked, picture: Picture) -> bytes:
        """A picture's PNG, with its recipe."""
        settings = picture.settings
        label = settings.get("class_label")
        size = (settings["width"], settings["height"]) if self.pipe.draws_texts else None
        told = recipe(
            str(self.job.asked["model"]),
            settings,
            count=1,
            number=0,
            classes=() if label is None else (label,),
            size=size,
            start={**asked.start, "strength": settings.get("strength")},
        )
        told |= {"files": list(asked.files)} if asked.files else {}
        loading = {name: value for name, value in self.job.asked.get("loading", {}).items() if value is not None}
        if "control_image" not in asked.start:
            loading.pop("controlnet", None)  # nothing steered it
        told["settings"] = {**told["settings"], **loading}
        return encoded(picture.image, "png", recipe={**told, "id": row.id})


class _Hand:
    """The rows that one call of `Worker.draw` has in hand."""

    def __init__(self, worker: Worker, heard: Callable[[], object]) -> None:
        self.job, self.worker, self.heard = worker.job, worker, heard
        self.counts: Counter[str] = Counter()
        # So many wait or are drawn, that the engine never has too few; some wait to be decoded.
        self._most = 2 * worker.engine.max_batch + worker.engine.decoded - 1
        self._ended: queue.SimpleQueue[tuple[SpooledRow, Asked, Event]] = queue.SimpleQueue()
        self._left: Counter[int] = Counter()  # rows in hand, by their thousand
        self._settled: tuple[int, set[str]] = (-1, set())
        self._waiting: dict[int, Future] = {}  # those of the rows in hand that are not being drawn yet

    def take(self, piece: range) -> bool:
        """Take up rows that follow each other; False if those of them that are left are to be left."""
        group = piece.start // GROUP
        if self._settled[0] != group:
            self._settled = group, self.job.settled(group)
        names = self._settled[1]
        self._left[group] += 1  # for the piece itself: what is in hand of it is not all
        try:
            for row in self.worker.spool.read(piece):
                if row.name in names:
                    continue
                while sum(self._left.values()) - 1 >= self._most and not self.worker.is_to_stop():
                    self._end_one()
                if self.worker.is_to_stop():
                    return False
                self._begin(row)
        finally:
            self._settle(group)
        return True

    def empty(self, is_stopped: bool) -> None:
        """Wait for what is in hand, or if all are to stop, for that of it which is being drawn already."""
        while self._left:
            if is_stopped or self.worker.is_to_stop():
                for future in list(self._waiting.values()):
                    future.cancel()
            self._end_one()

    def _begin(self, row: SpooledRow) -> None:
        worker, job = self.worker, self.job
        if row.fault is not None:
            self._fail(row, row.fault)
            return
        try:
            asked = asked_of(
                row.number, row.values | {"id": row.id}, job.asked.get("settings", {}), str(job.asked["model"]),
                worker.pipe, folder=job.beside, are_texts=job.are_texts,
            )  # fmt: skip
            future = worker.engine.submit(asked.request)
        except (Refusal, ConfigError, DataError) as error:
            self._fail(row, str(error))
            return
        self._left[row.number // GROUP] += 1
        self._waiting[row.number] = future
        future.listen(partial(self._hear, row, asked))

    def _hear(self, row: SpooledRow, asked: Asked, event: Event) -> None:
        """Called by the engine's thread."""
        if isinstance(event, Started):
            self._waiting.pop(row.number, None)
        elif isinstance(event, (Finished, Failed, Cancelled)):
            self._ended.put((row, asked, event))

    def _end_one(self) -> None:
        """Wait for one of the rows in hand, and write what became of it."""
        row, asked, event = self._ended.get()
        self._waiting.pop(row.number, None)
        if isinstance(event, Finished):
            self.job.write_picture(row, self.worker.file_of(row, asked, event.picture))
            self.counts["drawn"] += 1
            self.heard()
        elif isinstance(event, Failed):
            error = event.error
            if isinstance(error, EngineClosedError):
                raise error
            self._fail(row, str(error) if isinstance(error, DDIMError) else f"{type(error).__name__}: {error}")
        self._settle(row.number // GROUP)

    def _fail(self, row: SpooledRow, reason: str) -> None:
        self.job.write_error(row, reason[:2000])
        self.counts["failed"] += 1
        self.heard()

    def _settle(self, group: int) -> None:
        """One thing less is in hand of a thousand; if it was the last, it may be final."""
        self._left[group] -= 1
        if self._left[group] == 0:
            del self._left[group]
            self.job.settle(group)


def pieces_of(job: Job, size: int, shard: tuple[int, int] | None = None) -> Iterator[range]:
    """The rows of all thousands that are not final, in pieces of at most so many.

    Args:
        size: a divisor of 1,000.
        shard: (i, n): every n-th piece from the i-th on.
    """
    done = job.done()
    for group in job.groups:
        if group in done:
            continue
        numbers = job.numbers(group)
        for start in range(numbers.start, numbers.stop, size):
            if shard is None or start // size % shard[1] == shard[0]:
                yield range(start, min(start + size, numbers.stop))
