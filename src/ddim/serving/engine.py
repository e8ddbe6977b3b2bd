"""The engine: the queue, the one thread that drives the network, and its life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ddim.pipelines import DiffusionPipeline
from ddim.serving.futures import Future
from ddim.serving.requests import Request

__all__ = ["Engine", "Stats"]


@dataclass(frozen=True)
class Stats:
    """What an engine has done, and does now.

    Attributes:
        max_batch, max_queue: as the engine has them.
        queued: how many requests wait.
        running: how many are being drawn.
        submitted, finished, failed, cancelled, refused: how many requests so far. `refused` found the queue full and
            are not among those submitted.
        ticks: how many forward passes so far.
        steps: how many steps of samples they made.
        batches: how many ticks there were of each number of samples.
        seconds: how long the network and the decoder have worked.
    """

    max_batch: int
    max_queue: int
    queued: int = 0
    running: int = 0
    submitted: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    ticks: int = 0
    steps: int = 0
    batches: Mapping[int, int] = field(default_factory=dict)
    seconds: float = 0.0


class Engine:
    """Draws for many at once: at each tick, one forward pass makes a step of all samples of one shape.

    Args:
        pipe: a `StableDiffusionPipeline`, or one of its kinds, or a `DDIMPipeline`. While the engine runs, whoever
            else uses it may draw with it too.
        max_batch: how many samples are drawn at the same time; see `usual_batch` for what it is unless told.
        max_queue: how many requests may wait; a further one is refused.

    Raises:
        ConfigError: a number that is none, or a pipeline of another kind.
    """

    def __init__(self, pipe: DiffusionPipeline, *, max_batch: int | None = None, max_queue: int = 256) -> None:
        raise NotImplementedError

    def submit(self, request: Request) -> Future:
        """Have a picture drawn.

        Raises:
            ConfigError: the request cannot be drawn; the message names the setting.
            QueueFullError: `max_queue` requests wait already.
            EngineClosedError: the engine was closed.
        """
        raise NotImplementedError

    def stats(self) -> Stats:
        """What the engine has done so far, and does now."""
        raise NotImplementedError

    def close(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Take no more requests, and end.

        Args:
            drain: finish what runs and what waits; False cancels all of it.
            timeout: for how many seconds to wait, at most; what is not finished then is cancelled.

        Returns:
            Whether nothing had to be cancelled on account of the timeout.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.close(drain=kind is None)
