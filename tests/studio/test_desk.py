"""What all tabs share: drawing by the engine and beside it, cancelled and not, and what is said of errors."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ddim import DiffusionPipeline
from ddim.errors import CheckpointError, ConfigError
from ddim.serving.futures import Finished, Step
from ddim.serving.parameters import Generation
from ddim.serving.pool import Pool
from ddim.serving.refusal import Refusal
from ddim.studio.desk import Done, StoppedError, Studio, sentence, together


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    found = {name: DiffusionPipeline.from_pretrained(name) for name in ("emoji-fast", "digits")}
    for pipe in found.values():
        pipe.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def studio(pipes: dict[str, Any]) -> Iterator[Studio]:
    places = {"emoji-fast": "emoji-fast", "digits": "digits", "lost": "/no/such/model"}
    found = Studio(Pool(places, pipes.__getitem__), places)
    yield found
    found.sessions.close()


def run(studio: Studio, work: Callable[[], Any]) -> Any:
    async def whole() -> Any:
        try:
            return await work()
        finally:
            await studio.pool.close()

    return asyncio.run(whole())


def test_what_is_known_without_loading(studio: Studio) -> None:
    fast = studio.known("emoji-fast")
    assert fast is not None
    assert (fast.draws_texts, fast.side) == (True, 64)
    scheduler = studio.scheduler("digits")
    assert scheduler is not None
    assert scheduler.config.num_train_timesteps == 1000
    assert studio.known("lost") is studio.scheduler("lost") is studio.known("no name") is None
    assert studio.pool.loaded == ()


def test_of_a_model_of_the_hub_is_known_what_it_says_when_it_is_loaded(
    pipes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub is asked while somebody waits for the page")

    monkeypatch.setattr("ddim.checkpoint.hub.reachable", asked)
    places = {"far": "owner/model"}
    studio = Studio(Pool(places, lambda name: pipes["digits"]), places)

    async def work() -> None:
        assert studio.known("far") is studio.scheduler("far") is None
        async with studio.model("far"):
            known = studio.known("far")
            assert known == dataclasses.replace(Studio(studio.pool, {"here": "digits"}).known("here"), side=8)
            assert studio.scheduler("far") is pipes["digits"].scheduler

    run(studio, work)
    studio.sessions.close()


def test_a_drawing_is_the_library_s(studio: Studio, pipes: dict[str, Any]) -> None:
    session = studio.sessions.of("one")

    async def work() -> tuple[list[Any], list[Any]]:
        steps, done = list[Any](), list[Any]()
        asked = Generation(prompt="a red heart", seed=5, n=2)
        async with studio.draw(session, "draw", "emoji-fast", asked, preview_every=1) as drawing:
            async for number, event in drawing.happening():
                if isinstance(event, Step):
                    steps.append((number, event.number, event.preview is not None))
                elif isinstance(event, Finished):
                    done.append(event.picture.image)
        return steps, done

    steps, done = run(studio, work)
    own = pipes["emoji-fast"]("a red heart", seed=5, num_images_per_prompt=2).images
    for given, wanted in zip(done, own, strict=True):
        assert np.abs(np.asarray(given).astype(int) - np.asarray(wanted)).max() <= 1
    assert steps == [(n, k, k < 4) for k in (1, 2, 3, 4) for n in (0, 1)]
    assert not session.cancel("draw")


def test_a_drawing_is_cancelled_at_any_time(studio: Studio) -> None:
    session = studio.sessions.of("one")

    async def work() -> None:
        asked = Generation(seed=1, steps=400, class_label=3)

        async def cancelled_in_the_midst() -> None:
            async with studio.draw(session, "draw", "digits", asked, preview_every=1) as drawing:
                async for _, event in drawing.happening():
                    if isinstance(event, Step):
                        assert session.cancel("draw") or event.number > 1

        with pytest.raises(StoppedError):
            await cancelled_in_the_midst()
        loaded = studio.pool.loaded[0]
        for _ in range(500):
            if not loaded.engine.stats().running:
                break
            await asyncio.sleep(0.01)
        stats = loaded.engine.stats()
        assert (stats.running, stats.cancelled, studio.pool.users("digits")) == (0, 1, 0)

        task = asyncio.create_task(drawn_all(studio, session, asked))
        await asyncio.sleep(0)
        session.cancel("draw")  # before the model was there
        with pytest.raises(StoppedError):
            await task

    run(studio, work)


async def drawn_all(studio: Studio, session: Any, asked: Generation) -> None:
    async with studio.draw(session, "draw", "digits", asked) as drawing:
        async for _ in drawing.happening():
            pass


def test_what_cannot_be_drawn_is_refused_in_words(studio: Studio) -> None:
    session = studio.sessions.of("one")

    async def work() -> None:
        for name, asked, words in (
            ("digits", Generation(prompt="a text"), "draws no texts"),
            ("emoji-fast", Generation(), "give a prompt"),
            ("nobody", Generation(), "no model"),
            ("lost", Generation(), "cannot be loaded"),
        ):
            with pytest.raises(Refusal, match=words):
                async with studio.draw(session, "draw", name, asked):
                    pass
        assert not session.cancel("draw")

    run(studio, work)


def test_beside_the_engine_in_a_thread(studio: Studio) -> None:
    session = studio.sessions.of("one")

    def work(pipe: Any, tell: Callable[[Any], None]) -> str:
        assert threading.current_thread() is not threading.main_thread()
        for number in range(3):
            tell(number)
        return type(pipe).__name__

    async def whole() -> list[Any]:
        return [what async for what in studio.aside(session, "between", "digits", work)]

    assert run(studio, whole) == [0, 1, 2, Done("DDIMPipeline")]


def test_what_runs_beside_the_engine_is_cancelled_at_its_next_word(studio: Studio) -> None:
    session, ended = studio.sessions.of("one"), threading.Event()

    def work(pipe: Any, tell: Callable[[Any], None]) -> None:
        try:
            for number in range(10_000):
                tell(number)
                time.sleep(0.001)
        finally:
            ended.set()

    async def leaving() -> None:
        async for what in studio.aside(session, "between", "digits", work):
            if what == 3:
                studio.sessions.leave("one")

    async def whole() -> None:
        with pytest.raises(StoppedError):
            await leaving()
        assert ended.is_set()
        assert studio.pool.users("digits") == 0

        async def left_early() -> None:
            async for _ in studio.aside(studio.sessions.of("other"), "between", "digits", work):
                return

        ended.clear()
        await left_early()
        for _ in range(500):
            if ended.is_set():
                break
            await asyncio.sleep(0.01)
        assert ended.is_set()

    run(studio, whole)


def test_a_fault_beside_the_engine_is_told(studio: Studio) -> None:
    def work(pipe: Any, tell: Callable[[Any], None]) -> None:
        raise ConfigError("steps must be fewer")

    async def whole() -> None:
        with pytest.raises(ConfigError, match="fewer"):
            async for _ in studio.aside(studio.sessions.of("one"), "between", "digits", work):
                pass

    run(studio, whole)


def test_what_happens_at_once_comes_together() -> None:
    async def events() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        await asyncio.sleep(0.3)
        yield 3
        raise ConfigError("over")

    heard: list[list[int]] = []

    async def hear() -> None:
        async for some in together(events()):
            heard.append(some)

    async def whole() -> list[list[int]]:
        with pytest.raises(ConfigError, match="over"):
            await hear()
        return heard

    assert asyncio.run(whole()) == [[0, 1, 2], [3]]

    async def nothing() -> AsyncIterator[int]:
        for number in ():
            yield number

    async def none() -> list[list[int]]:
        return [some async for some in together(nothing())]

    assert asyncio.run(none()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refusal("steps must be fewer", "steps"), "Steps must be fewer."),
        (ConfigError("guidance_scale must be a number, not nan"), "Guidance scale must be a number, not nan."),
        (CheckpointError("Gone!"), "Gone!"),
        (RuntimeError("at 0x7f in line 3"), "It could not be drawn (RuntimeError); the log has more."),
        (ValueError(""), "It could not be drawn."),
    ],
)
def test_what_a_visitor_is_told(error: Exception, said: str) -> None:
    assert sentence(error) == said
