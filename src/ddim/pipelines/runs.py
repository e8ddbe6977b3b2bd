"""What is known of a call while it runs, and how it is changed and stopped, in a pipeline that threads share."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from ddim.models.core import holding
from ddim.pipelines.memory import SavesMemory

P = ParamSpec("P")
R = TypeVar("R")
Own = TypeVar("Own", bound=SavesMemory)


def one_backend(call: Callable[Concatenate[Own, P], R]) -> Callable[Concatenate[Own, P], R]:
    """Decorate a pipeline's call, so that it goes on with the backends of its beginning if `accelerate` is called."""

    def called(self: Own, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with holding(self._networks):
            return call(self, *args, **kwargs)

    functools.update_wrapper(called, call)
    return called


@dataclass
class Run:
    """One call, of the thread that makes this.

    Attributes:
        num_timesteps: how many steps it makes.
        guidance_scale: as it was given; set this to change it from the next step on.
        do_classifier_free_guidance: whether it is guided.
        guidance_rescale, clip_skip, cross_attention_kwargs: as they were given.
        denoising_start, denoising_end: as they were given to a pipeline that takes them.
        interrupted: set this to end the call after the step that is being made.
    """

    num_timesteps: int
    guidance_scale: float
    do_classifier_free_guidance: bool
    guidance_rescale: float = 0.0
    clip_skip: int | None = None
    cross_attention_kwargs: Mapping[str, Any] | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    interrupted: bool = False
    thread: int = field(default_factory=threading.get_ident)


class Runs:
    """Gives a pipeline the properties that diffusers' callbacks read and set. Each thread sees those of its own call.

    Outside of calls they are those of the last one that ended, and None before the first. `pipe._interrupt = True` in a
    callback ends that call; from a thread that makes no call, it ends all that run.
    """

    _running: list[Run]
    _ended: Run | None = None

    @contextmanager
    def _run(self, run: Run) -> Iterator[Run]:
        self._running.append(run)
        try:
            yield run
        finally:
            self._running.remove(run)
            self._ended = run

    def _own(self) -> Run | None:
        """The call that this thread makes, and of several within one another the innermost; None if it makes none."""
        thread = threading.get_ident()
        return next((run for run in reversed(self._running) if run.thread == thread), None)

    def _of_a_call(self, name: str) -> Any:
        """What is known of this thread's call or, outside of one, of the last call."""
        run = self._own() or self._ended
        return None if run is None else getattr(run, name)

    @property
    def num_timesteps(self) -> int | None:
        """How many steps the call makes."""
        steps: int | None = self._of_a_call("num_timesteps")
        return steps

    @property
    def guidance_scale(self) -> float | None:
        """The guidance scale of the call."""
        scale: float | None = self._of_a_call("guidance_scale")
        return scale

    @property
    def guidance_rescale(self) -> float | None:
        """How much of the standard deviation guidance brings back in the call."""
        rescale: float | None = self._of_a_call("guidance_rescale")
        return rescale

    @property
    def do_classifier_free_guidance(self) -> bool | None:
        """Whether the call is guided."""
        is_guided: bool | None = self._of_a_call("do_classifier_free_guidance")
        return is_guided

    @property
    def clip_skip(self) -> int | None:
        """How many of the text encoder's last layers the call leaves out."""
        skip: int | None = self._of_a_call("clip_skip")
        return skip

    @property
    def cross_attention_kwargs(self) -> Mapping[str, Any] | None:
        """What the call hands on to the U-Net's attention processors."""
        given: Mapping[str, Any] | None = self._of_a_call("cross_attention_kwargs")
        return given

    @property
    def _guidance_scale(self) -> float | None:
        return self.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, value: float) -> None:
        run = self._own()
        if run is None:
            raise AttributeError("no call is running in this thread: give guidance_scale to a call")
        run.guidance_scale = value

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
