"""What is heard of a request, by whoever listens."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from ddim.serving import Cancelled, Failed, Finished, Future, Picture, Queued, Request, Started, Step

PICTURE = Picture("an image", 7)


def test_events_come_to_all_who_listen_whenever_they_begin() -> None:
    future, heard, seen = Future(Request()), [], []
    future.tell(Queued(3))
    future.listen(heard.append)
    thread = threading.Thread(target=lambda: seen.extend(future.events(10)))
    thread.start()
    events = [Started(2), Step(1, 2, "a preview"), Step(2, 2), Finished(PICTURE)]
    assert repr(future) == "Future(queued)"
    for event in events:
        assert future.tell(event)
    thread.join(10)
    assert heard == seen == list(future.events()) == [Queued(3), *events]
    assert future.result(0) is PICTURE
    assert repr(future) == "Future(finished)"


@pytest.mark.parametrize("last", [Finished(PICTURE), Failed(ValueError("why")), Cancelled()])
def test_after_the_last_event_there_is_none(last: Finished | Failed | Cancelled) -> None:
    future = Future(Request())
    future.tell(Step(1, 4))
    assert repr(future) == "Future(step 1 of 4)"
    assert not future.done()
    assert future.tell(last)
    assert future.done()
    assert not future.tell(Finished(PICTURE))
    assert future.cancel() == future.cancelled() == isinstance(last, Cancelled)
    assert list(future.events()) == [Step(1, 4), last]
    if isinstance(last, Failed):
        with pytest.raises(ValueError, match="why"):
            future.result()
    if isinstance(last, Cancelled):
        with pytest.raises(CancelledError):
            future.result()


def test_waiting_has_an_end() -> None:
    future = Future(Request())
    with pytest.raises(TimeoutError, match=r"not there after 0\.01 seconds"):
        future.result(0.01)
    with pytest.raises(TimeoutError, match=r"nothing happened for 0\.01 seconds"):
        next(future.events(0.01))


def test_a_listener_that_fails_hurts_nobody() -> None:
    future, heard = Future(Request()), []

    def failing(event: object) -> None:
        raise KeyError("mine")

    future.listen(failing)
    future.listen(heard.append)
    with pytest.warns(UserWarning, match="a listener of a request raised KeyError"):
        future.tell(Queued(0))
    assert heard == [Queued(0)]


def test_a_listener_may_cancel() -> None:
    future = Future(Request())
    future.listen(lambda event: future.cancel())
    future.tell(Queued(0))
    assert future.cancelled()


def test_deadlines_count_from_the_submission() -> None:
    assert Future(Request()).deadline is None
    future = Future(Request(deadline=3.0))
    assert future.deadline == future.submitted + 3.0
