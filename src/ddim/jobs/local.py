"""A job in one process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ddim.data.progress import progress, say
from ddim.jobs.hardware import Hardware
from ddim.jobs.job import Job, Left
from ddim.jobs.worker import Worker, pieces_of
from ddim.pipelines import DiffusionPipeline

__all__ = ["Stop", "draw_here", "row_bar"]

_PIECE = 250  # rows that are looked up at a time
SHARD_PIECE = 50  # the same for all shards, which take them in turn


class Stop:
    """Whether somebody wants the job to end.

    Attributes:
        is_wanted: after the first Ctrl-C or SIGTERM. The second one interrupts at once.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        self.then: Callable[[], object] = lambda: None  # called when it is wanted

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A context in which signals are heard."""
        before = {each: signal.signal(each, self._heard) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.is_wanted:
            raise KeyboardInterrupt
        self.is_wanted = True
        say("what is in hand is being finished; Ctrl-C once more stops at once")
        self.then()


def row_bar(job: Job, left: Left) -> Any:
    """Progress by row."""
    return progress(total=job.count, initial=job.count - left.rows, desc="drawing", unit="row", smoothing=0.05)


def draw_here(
    job: Job,
    open_pipeline: Callable[[], DiffusionPipeline],
    hardware: Hardware,
    stop: Stop,
    shard: tuple[int, int] | None = None,
) -> None:
    """Draw what is left of a job, in this process.

    Args:
        open_pipeline: what draws.
        hardware: how.
        shard: (i, n): every n-th piece of the rows alone.

    Raises:
        CheckpointError: the file system does not allow it, for example because it is full.
    """
    with hardware.engine(job, open_pipeline()) as engine, row_bar(job, job.left()) as bar:
        worker = Worker(job, engine.pipe, engine, lambda: stop.is_wanted)

        def heard() -> None:
            bar.update()
            if not sys.stderr.isatty() and bar.format_dict["rate"]:
                bar.set_postfix_str(f"{bar.format_dict['rate']:.3g} a second", refresh=False)

        worker.draw(pieces_of(job, _PIECE if shard is None else SHARD_PIECE, shard), heard)
