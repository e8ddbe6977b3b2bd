"""The engine's life: who is drawn when, what fails for whom, and that nothing is left in flight."""

from __future__ import annotations

import functools
import gc
import itertools
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from alone import alone, assert_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_pipeline
from torch import Tensor

from ddim import DiffusionPipeline
from ddim.errors import ConfigError, DeadlineExceededError, EngineClosedError, NonFiniteError, QueueFullError
from ddim.serving import Cancelled, Engine, Failed, Finished, Future, Queued, Request, Started, Step, batches
from ddim.serving.engine import usual_batch
from ddim.serving.network import Network

RAISES, ALL_NAN, ITS_NAN = 2, 3, 4  # classes for which the network fails, and how, once it is made to

PIPE = tiny_pipeline(num_class_embeds=6)


def request(**given: Any) -> Request:
    return Request(**{"class_label": 1, "steps": 4, "seed": 0, "output_type": "pt", **given})


def long(seed: int = 0, steps: int = 200) -> Request:
    return request(steps=steps, seed=seed)


def end(future: Future, timeout: float = 60) -> Any:
    """The last event of a request."""
    return list(future.events(timeout))[-1]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that the network is given from now on; it fails for the classes of which it is said above."""
    return fail(monkeypatch)


def fail(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    own, seen = Network.__call__, []

    def failing(self: Network, x: Tensor, moments: Sequence[Any], *rest: Any) -> Tensor:
        seen.append(len(x))
        asked = [condition for _, condition in moments]
        if RAISES in asked:
            raise RuntimeError("the network does not like class 2")
        out = own(self, x, moments, *rest)
        if ALL_NAN in asked:
            out = out * torch.nan
        if ITS_NAN in asked:
            out = torch.stack([row * (torch.nan if c == ITS_NAN else 1) for row, c in zip(out, asked, strict=True)])
        return out

    monkeypatch.setattr(Network, "__call__", failing)
    return seen


def at_step(future: Future, number: int, act: Callable[[], Any]) -> list[Any]:
    """Do something within the engine's thread, just after a step; what it returned is in the list then."""
    done: list[Any] = []
    future.listen(lambda event: done.append(act()) if isinstance(event, Step) and event.number == number else None)
    return done


# --- who is drawn when -----------------------------------------------------------------------------------------------


def test_a_short_request_that_arrives_among_long_ones_leaves_after_its_own_steps() -> None:
    with Engine(PIPE, max_batch=16) as engine:
        others = engine.submit_all([long(seed, steps=50) for seed in range(15)])

        def arrive() -> Any:
            ticks = engine.stats().ticks
            future = engine.submit(request(seed=99))
            taken: list[int] = []
            future.listen(lambda event: taken.append(engine.stats().ticks) if isinstance(event, Finished) else None)
            return future, ticks, taken

        arrived = at_step(others[0], 10, arrive)
        for future in others:
            future.result(60)
        ((future, ticks, taken),) = arrived
        assert_alone(PIPE, future.request, future.result(60))
        assert taken[0] - ticks == 4
        assert engine.stats().ticks == 50  # it has cost the others no tick
        assert max(engine.stats().batches) == 16


def test_no_shape_starves(texts: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(texts)
    pipe.set_progress_bar_config(disable=True)
    with Engine(pipe) as engine:
        wide = [Request(prompt="a", seed=n, steps=30, width=24, guidance_scale=1) for n in range(5)]
        own = Request(prompt="a", seed=9, steps=10, guidance_scale=1, output_type="pt")
        *others, future = engine.submit_all([*wide, own])
        ticks: list[int] = []
        future.listen(lambda event: ticks.append(engine.stats().ticks) if isinstance(event, Finished) else None)
        assert_alone(pipe, own, future.result(60))
        assert ticks[0] <= 20  # the two shapes take turns
        for other in others:
            other.result(60)
        assert engine.stats().ticks == 40


def test_requests_wait_for_a_place_in_the_order_of_their_arrival() -> None:
    with Engine(PIPE, max_batch=2) as engine:
        futures = engine.submit_all([request(seed=seed, steps=3) for seed in range(6)])
        ends: list[int] = []
        for place, future in enumerate(futures):
            future.listen(lambda event, p=place: ends.append(p) if isinstance(event, Finished) else None)
        for future in futures:
            assert_alone(PIPE, future.request, future.result(60))
    assert ends == [0, 1, 2, 3, 4, 5]
    assert engine.stats().batches == {2: 9}
    assert [next(iter(future.events())) for future in futures] == [Queued(n) for n in range(6)]


def test_a_cancelled_sample_frees_its_place_at_the_next_tick() -> None:
    with Engine(PIPE, max_batch=1) as engine:
        first = engine.submit(long())
        ticks = at_step(first, 5, lambda: (first.cancel(), engine.stats().ticks))
        second = engine.submit(request(seed=1))
        assert_alone(PIPE, second.request, second.result(60))
        assert ticks == [(True, 5)]
        assert engine.stats().ticks == 5 + 4
        assert isinstance(end(first), Cancelled)
        assert [type(event) for event in first.events()] == [Queued, Started, *[Step] * 5, Cancelled]
        with pytest.raises(CancelledError):
            first.result()
        assert first.cancelled()
        assert not second.cancel()


def test_a_cancelled_request_frees_its_place_in_the_queue() -> None:
    with Engine(PIPE, max_batch=1, max_queue=1) as engine:
        first = engine.submit(long())
        next(event for event in first.events(60) if isinstance(event, Started))
        second = engine.submit(request())
        with pytest.raises(QueueFullError, match="1 requests wait, and 1 may"):
            engine.submit(request())
        assert second.cancel()
        third = engine.submit(request(seed=3))
        first.cancel()
        third.result(60)
    stats = engine.stats()
    assert (stats.submitted, stats.finished, stats.cancelled, stats.refused) == (3, 1, 2, 1)
    assert (stats.queued, stats.running) == (0, 0)


def test_several_are_taken_together_or_not_at_all() -> None:
    with Engine(PIPE, max_batch=1, max_queue=3) as engine:
        first = engine.submit(long())
        next(event for event in first.events(60) if isinstance(event, Started))
        with pytest.raises(QueueFullError):
            engine.submit_all([request(seed=n) for n in range(4)])
        with pytest.raises(ConfigError, match="steps"):
            engine.submit_all([request(), request(steps=0)])
        assert engine.stats().queued == 0
        first.cancel()


# --- what fails, for whom --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [RAISES, ALL_NAN, ITS_NAN])
def test_a_step_that_fails_hurts_only_whom_it_concerns(label: int, calls: list[int]) -> None:
    asked = [request(seed=n, class_label=label if n == 5 else n % 2, eta=1.0, steps=5) for n in range(8)]
    with Engine(PIPE) as engine:
        futures = engine.submit_all(asked)
        for one, future in zip(asked, futures, strict=True):
            if one.class_label == label:
                failed = end(future)
                assert isinstance(failed, Failed)
                with pytest.raises(RuntimeError if label == RAISES else NonFiniteError):
                    future.result()
            else:
                assert_alone(PIPE, one, future.result(60))  # also after steps that were tried twice
        assert engine.stats().failed == 1
        assert_alone(PIPE, asked[0], engine.submit(asked[0]).result(60))  # the engine goes on
    assert calls[0] == 8


def test_noise_is_drawn_once_however_often_a_step_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    own, sizes = batches.take_step, []

    def failing(row: Any, out: Tensor, *rest: Any, **options: Any) -> Any:
        sizes.append(len(out))
        if len(out) > 1:
            raise RuntimeError("the noise is drawn by now")
        return own(row, out, *rest, **options)

    monkeypatch.setattr(batches, "take_step", failing)
    asked = [request(seed=n, eta=1.0, steps=3 + n) for n in range(3)]
    with Engine(PIPE) as engine:
        futures = engine.submit_all(asked)
        pictures = [future.result(60) for future in futures]
    assert sizes[:3] == [3, 1, 2]
    monkeypatch.undo()
    for one, picture in zip(asked, pictures, strict=True):
        assert_alone(PIPE, one, picture)


def test_a_lack_of_memory_makes_batches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    own, sizes = Network.__call__, []

    def short(self: Network, x: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("no room for more than 3")
        return own(self, x, *rest)

    monkeypatch.setattr(Network, "__call__", short)
    asked = [request(seed=n) for n in range(8)]
    with Engine(PIPE) as engine:
        for one, future in zip(asked, engine.submit_all(asked), strict=True):
            assert_alone(PIPE, one, future.result(60))
    assert sizes == [8, 4, 2, 2, 4, 2, 2, *[2] * 12]  # it is tried once, and not at every step


@pytest.mark.parametrize("what", ["begin", "pictures"])
def test_a_start_or_a_decoding_that_fails_hurts_only_whom_it_concerns(what: str) -> None:
    asked = [request(seed=n, eta=1.0) for n in range(5)]
    with Engine(PIPE) as engine:
        model = engine._driver.model
        own = getattr(model, what)

        def failing(samples: Any, *rest: Any) -> Any:
            if what == "begin":
                own(samples)  # which has drawn from the generators
                if any(sample.seed == 3 for sample in samples):
                    for sample in samples:
                        sample.x = None
                    raise ValueError("not seed 3")
                return None
            if any(float((x - own_picture).abs().max()) < 1e-4 for x in samples):
                raise ValueError("not seed 3")
            return own(samples, *rest)

        own_picture = 2 * alone(PIPE, asked[3]) - 1
        setattr(model, what, failing)
        for one, future in zip(asked, engine.submit_all(asked), strict=True):
            if one.seed == 3:
                with pytest.raises(ValueError, match="not seed 3"):
                    future.result(60)
            else:
                assert_alone(PIPE, one, future.result(60))


def test_a_preview_that_cannot_be_decoded_is_left_out() -> None:
    with Engine(PIPE) as engine:
        model: Any = engine._driver.model
        own, count = model.pictures, itertools.count()

        def failing(x: Tensor, output_type: str) -> Any:
            if next(count) == 0:
                raise ValueError("no preview")
            return own(x, output_type)

        model.pictures = failing
        one = request(steps=5, previews=2)
        future = engine.submit(one)
        assert_alone(PIPE, one, future.result(60))
        steps = [event for event in future.events() if isinstance(event, Step)]
        assert [step.preview is not None for step in steps] == [False, False, True, False, False]


def test_deadlines(calls: list[int]) -> None:
    with Engine(PIPE, max_batch=1) as engine:
        running = engine.submit(request(steps=1000, deadline=0.3))
        waiting = engine.submit(request(deadline=0.2))
        with pytest.raises(DeadlineExceededError, match=r"within its deadline of 0.3 seconds"):
            running.result(60)
        with pytest.raises(DeadlineExceededError):
            waiting.result(60)
        in_time = engine.submit(request(deadline=60))
        assert_alone(PIPE, in_time.request, in_time.result(60))
    assert engine.stats().failed == 2


def test_an_engine_whose_own_code_fails_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(PIPE, max_batch=1)
    engine._driver._late = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    futures = [engine.submit(request())]
    with pytest.raises(ZeroDivisionError):
        futures[0].result(60)
    engine._thread.join(60)
    with pytest.raises(EngineClosedError):
        engine.submit(request())
    assert engine.close()
    assert "the engine has ended" in caplog.text


# --- threads, and the end --------------------------------------------------------------------------------------------


def test_many_threads_at_once() -> None:
    wrong: list[Any] = []

    def ask(thread: int) -> None:
        try:
            for n in range(3):
                one = request(seed=thread * 10 + n, steps=2 + n, class_label=thread % 2)
                future = engine.submit(one)
                if n == 1:
                    future.cancel()
                    assert future.done()
                else:
                    assert_alone(PIPE, one, future.result(60))
                engine.stats()
        except BaseException as error:
            wrong.append(error)

    with Engine(PIPE, max_batch=4) as engine:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not wrong
    stats = engine.stats()
    assert (stats.submitted, stats.finished + stats.cancelled, stats.failed) == (24, 24, 0)


def test_close_finishes_what_is_there_and_takes_no_more() -> None:
    engine = Engine(PIPE, max_batch=2)
    futures = engine.submit_all([request(seed=n) for n in range(5)])
    assert engine.close()
    assert all(isinstance(end(future), Finished) for future in futures)
    with pytest.raises(EngineClosedError):
        engine.submit(request())
    assert engine.close()
    assert not engine._thread.is_alive()


def test_close_without_draining_cancels() -> None:
    engine = Engine(PIPE, max_batch=2)
    futures = engine.submit_all([long(n) for n in range(5)])
    assert engine.close(drain=False)
    assert all(isinstance(end(future), Cancelled) for future in futures)
    stats = engine.stats()
    assert (stats.queued, stats.running, stats.cancelled) == (0, 0, 5)


def test_close_within_a_time() -> None:
    engine = Engine(PIPE, max_batch=1)
    futures = engine.submit_all([request(steps=2), request(steps=1000)])
    futures[0].result(60)
    assert not engine.close(timeout=0.1)
    assert isinstance(end(futures[1]), Cancelled)


def test_an_error_in_its_context_cancels() -> None:
    def forget() -> None:
        with Engine(PIPE) as engine:
            futures.append(engine.submit(long(steps=1000)))
            raise KeyError

    futures: list[Future] = []
    with pytest.raises(KeyError):
        forget()
    (future,) = futures
    assert isinstance(end(future), Cancelled)


def test_an_engine_that_nobody_has_any_more_ends() -> None:
    engine = Engine(PIPE)
    future, thread, gone = engine.submit(long(steps=1000)), engine._thread, weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    thread.join(60)
    assert not thread.is_alive()
    assert isinstance(end(future), Cancelled)


def test_close_within_a_listener() -> None:
    engine = Engine(PIPE)
    first, second = engine.submit(request(steps=6)), engine.submit(long(1, steps=1000))
    closed = at_step(first, 3, lambda: engine.close(drain=False))
    assert isinstance(end(second), Cancelled)
    engine._thread.join(60)
    assert closed == [True]


@pytest.mark.slow  # starts Python once more
def test_a_program_that_forgets_to_close_ends() -> None:
    program = (
        "from tiny import *; from ddim.serving import *; e = Engine(tiny_pipeline()); e.submit(Request(steps=1000))"
    )
    support = str(next(path for path in sys.path if path.endswith("support")))
    done = subprocess.run([sys.executable, "-c", program], cwd=support, timeout=100, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_how_many_at_once(texts: str, caplog: pytest.LogCaptureFixture) -> None:
    pipe = DiffusionPipeline.from_pretrained(texts)
    assert usual_batch(pipe) == 16
    pipe.unet.register_to_config(sample_size=64)
    assert usual_batch(pipe) == 4
    pipe.unet.register_to_config(sample_size=128)
    assert usual_batch(pipe) == 2
    with caplog.at_level(logging.INFO, "ddim.serving"), Engine(pipe) as engine:
        assert engine.max_batch == 2
    assert "max_batch is 2" in caplog.text
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ConfigError, match="max_batch must be a positive int"):
            Engine(pipe, max_batch=wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="max_queue must be a positive int"):
            Engine(pipe, max_queue=wrong)  # type: ignore[arg-type]


# --- anything at all -------------------------------------------------------------------------------------------------

REQUESTS = st.builds(
    request,
    class_label=st.sampled_from([None, None, 0, 0, 1, 1, RAISES, ALL_NAN, ITS_NAN]),
    seed=st.integers(0, 3),
    steps=st.integers(1, 7),
    eta=st.sampled_from([0.0, 1.0]),
    guidance_scale=st.sampled_from([None, 2.0, 5.0]),
    guidance_rescale=st.sampled_from([None, 0.7]),
    guidance_interval=st.sampled_from([None, (100, 600)]),
    spacing=st.sampled_from([None, "trailing"]),
    previews=st.integers(0, 2),
)
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), REQUESTS),
    st.tuples(st.just("submit"), REQUESTS),
    st.tuples(st.just("submit"), REQUESTS),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("wait"), st.integers(1, 4)),
)

in_full = functools.cache(alone)


ASKED = {
    "actions": st.lists(ACTIONS, min_size=8, max_size=24),
    "drains": st.sampled_from([True, True, False]),
    "max_batch": st.integers(1, 6),
}


@settings(max_examples=20)
@given(**ASKED)
def test_whatever_is_asked_arrives_is_cancelled_or_fails(**asked: Any) -> None:
    ask(**asked)


@pytest.mark.slow
@settings(max_examples=200)
@given(**ASKED)
def test_whatever_is_asked_at_length(**asked: Any) -> None:
    ask(**asked)


def ask(actions: list[Any], drains: bool, max_batch: int) -> None:
    """See what becomes of all requests when these are the actions of those who ask."""
    futures: list[Future] = []
    with pytest.MonkeyPatch.context() as patch:
        fail(patch)
        with Engine(PIPE, max_batch=max_batch, max_queue=8) as engine:
            for what, value in actions:
                if what == "submit":
                    try:
                        futures.append(engine.submit(value))
                    except QueueFullError:
                        assert engine.stats().refused
                elif what == "cancel" and value < len(futures):
                    futures[value].cancel()
                elif what == "wait":
                    until, start = engine.stats().ticks + value, time.monotonic()
                    while (
                        (now := engine.stats()).ticks < until
                        and now.queued + now.running
                        and time.monotonic() < start + 5
                    ):
                        time.sleep(0.0005)
            engine.close(drain=drains)
    stats = engine.stats()
    assert (stats.queued, stats.running) == (0, 0)
    assert stats.submitted == len(futures) == stats.finished + stats.failed + stats.cancelled
    for future in futures:
        check_events(list(future.events(0)))
        one = future.request
        last = end(future)
        if isinstance(last, Finished):
            assert one.class_label not in (RAISES, ALL_NAN, ITS_NAN)
            assert float((last.picture.image - in_full(PIPE, one)).abs().max()) < 1e-4
        elif isinstance(last, Failed):
            assert one.class_label in (RAISES, ALL_NAN, ITS_NAN)


def check_events(events: list[Any]) -> None:
    """Check that these are all events of one request, in their order."""
    assert isinstance(events[0], Queued)
    assert isinstance(events[-1], (Finished, Failed, Cancelled))
    between: Iterator[Any] = iter(events[1:-1])
    started = next(between, None)
    assert started is None or isinstance(started, Started)
    steps = list(between)
    assert all(isinstance(step, Step) for step in steps)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    if isinstance(events[-1], Finished):
        assert started is not None
        assert len(steps) == started.steps
    assert all(step.preview is None for step in steps[-1:] if started is not None and step.number == started.steps)
