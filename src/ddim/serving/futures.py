"""What is heard of a request: its events on the way, and at the end its picture or why there is none."""

from __future__ import annotations

import itertools
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from ddim.serving.requests import Picture, Request

__all__ = ["Cancelled", "Event", "Failed", "Finished", "Future", "Queued", "Started", "Step"]


@dataclass(frozen=True)
class Queued:
    """The request was taken; `position` others were waiting before it."""

    position: int


@dataclass(frozen=True)
class Started:
    """It is being drawn, in `steps` steps."""

    steps: int


@dataclass(frozen=True)
class Step:
    """Step `number` of `steps`, from 1 on, was made; `preview` is the predicted x0 as a picture, where it is due."""

    number: int
    steps: int
    preview: Any = None


@dataclass(frozen=True)
class Finished:
    """The picture is there: the last event."""

    picture: Picture


@dataclass(frozen=True)
class Failed:
    """There will be no picture: the last event. `error` is what `Future.result` raises."""

    error: Exception


@dataclass(frozen=True)
class Cancelled:
    """It was cancelled: the last event."""


Event: TypeAlias = Queued | Started | Step | Finished | Failed | Cancelled


class Future:
    """A request on its way through the engine. All methods may be called from any thread.

    Attributes:
        request: what was asked for.
        submitted: when, by the clock of `time.monotonic`.
        deadline: until when it has to be finished, by the same clock; None is never too late.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.submitted = time.monotonic()
        self.deadline = None if request.deadline is None else self.submitted + request.deadline
        self._changed = threading.Condition(threading.RLock())
        self._events: list[Event] = []
        self._last: Event | None = None
        self._listeners: list[Callable[[Event], object]] = []

    def __repr__(self) -> str:
        last = self._last
        state = f"step {last.number} of {last.steps}" if isinstance(last, Step) else type(last).__name__.lower()
        return f"Future({state})"

    def done(self) -> bool:
        """Whether it is finished, failed or cancelled. This waits for nobody."""
        return self._is_done()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return isinstance(self._last, Cancelled)

    def cancel(self) -> bool:
        """Draw it no further. Its place is free at the engine's next tick.

        Returns:
            Whether it is cancelled; False if it was finished or had failed before.
        """
        return self.tell(Cancelled()) or self.cancelled()

    def result(self, timeout: float | None = None) -> Picture:
        """Wait for the picture.

        Args:
            timeout: for how many seconds, at most; None waits for as long as it takes.

        Raises:
            TimeoutError: it is not there by then. The request goes on.
            concurrent.futures.CancelledError: it was cancelled.
            DeadlineExceededError: it took longer than the request allowed.
            NonFiniteError: the network gave NaN or infinity for it.
            Exception: whatever else made its step fail.
        """
        with self._changed:
            if not self._changed.wait_for(self._is_done, timeout):
                raise TimeoutError(f"the picture is not there after {timeout} seconds")
            last = self._last
        if isinstance(last, Finished):
            return last.picture
        if isinstance(last, Failed):
            raise last.error
        raise CancelledError

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """All events from the first on, each as it happens; it ends after the last one.

        Args:
            timeout: for how many seconds, at most, to wait for each; None waits for as long as it takes.

        Raises:
            TimeoutError: none came by then.
        """
        for place in itertools.count():
            with self._changed:
                if not self._changed.wait_for(partial(self._has, place), timeout):
                    raise TimeoutError(f"nothing happened for {timeout} seconds")
                if place >= len(self._events):
                    return
                event = self._events[place]
            yield event

    def _has(self, place: int) -> bool:
        """Whether there is an event of this number, or will be none."""
        return len(self._events) > place or self._is_done()

    def listen(self, listener: Callable[[Event], object]) -> None:
        """Have a function called with each event, those that were before too, in order.

        It is called in the thread in which the event happens, mostly that of the engine, and so must return at once:
        `loop.call_soon_threadsafe` hands an event on to asyncio. An error in it is a warning.
        """
        with self._changed:
            self._listeners.append(listener)
            for event in list(self._events):
                _call(listener, event)

    def tell(self, event: Event) -> bool:
        """Add an event, for the engine. False if the last one was there already, after which there are no others."""
        with self._changed:
            if self._is_done():
                return False
            self._events.append(event)
            self._last = event
            self._changed.notify_all()
            for listener in list(self._listeners):
                _call(listener, event)
            return True

    def _is_done(self) -> bool:
        return isinstance(self._last, (Finished, Failed, Cancelled))


def _call(listener: Callable[[Event], object], event: Event) -> None:
    try:
        listener(event)
    except Exception as error:  # a listener's error is not the request's, and must not end the engine
        warnings.warn(f"a listener of a request raised {type(error).__name__}: {error}", stacklevel=3)
