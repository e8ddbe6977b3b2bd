"""What is known of a call while it runs, and how it is stopped, in a pipeline that several threads share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Run:
    """One call, of the thread that makes this.

    Attributes:
        num_timesteps: how many steps it makes.
        guidance_scale: as it was given.
        do_classifier_free_guidance: whether it is guided.
        interrupted: set this to end the call after the step that is being made.
    """

    def __init__(self, num_timesteps: int, guidance_scale: float, do_classifier_free_guidance: bool) -> None:
        self.thread = threading.get_ident()
        self.num_timesteps = num_timesteps
        self.guidance_scale = guidance_scale
        self.do_classifier_free_guidance = do_classifier_free_guidance
        self.interrupted = False


class Runs:
    """Gives a pipeline the properties that diffusers' callbacks read and set. Each thread sees those of its own call.

    `pipe._interrupt = True` in a callback ends that call; from a thread that makes no call, it ends all that run.
    """

    _running: list[Run]

    @contextmanager
    def _run(self, num_timesteps: int, guidance_scale: float, do_classifier_free_guidance: bool) -> Iterator[Run]:
        run = Run(num_timesteps, guidance_scale, do_classifier_free_guidance)
        self._running.append(run)
        try:
            yield run
        finally:
            self._running.remove(run)

    def _own(self) -> Run | None:
        """The call that this thread makes, and of several within one another the innermost; None if it makes none."""
        thread = threading.get_ident()
        return next((run for run in reversed(self._running) if run.thread == thread), None)

    @property
    def num_timesteps(self) -> int | None:
        """How many steps this thread's call makes; None outside of one."""
        run = self._own()
        return None if run is None else run.num_timesteps

    @property
    def guidance_scale(self) -> float | None:
        """The guidance scale of this thread's call; None outside of one."""
        run = self._own()
        return None if run is None else run.guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool | None:
        """Whether this thread's call is guided; None outside of one."""
        run = self._own()
        return None if run is None else run.do_classifier_free_guidance

    @property
    def interrupt(self) -> bool:
        """Whether this thread's call was told to stop."""
        run = self._own()
        return run is not None and run.interrupted

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        own = self._own()
        for run in list(self._running) if own is None else [own]:
            run.interrupted = bool(value)
