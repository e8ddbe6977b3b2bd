"""Models come when they are asked for, and the least used leave."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import openai
import pytest
from serving import eventually, serving
from tiny import tiny_pipeline

from ddim.serving.pool import Pool
from ddim.serving.refusal import Refusal


def pool_of(names: str, most: int | None = None, **errors: Exception) -> tuple[Pool, list[str]]:
    """A pool, and the names of what it has loaded, in order."""
    opened: list[str] = []

    def open_model(name: str) -> Any:
        opened.append(name)
        if name in errors:
            raise errors.pop(name)
        return tiny_pipeline()

    return Pool(names, open_model, most, max_batch=2), opened


def names(pool: Pool) -> list[str]:
    return [model.name for model in pool.loaded]


async def used(pool: Pool, name: str) -> None:
    await pool.take(name)
    pool.leave(name)


def test_the_one_not_asked_for_the_longest_leaves() -> None:
    async def run() -> None:
        pool, opened = pool_of("abc", 2)
        assert names(pool) == []
        for name in "abac":
            await used(pool, name)
        assert (opened, names(pool)) == (["a", "b", "c"], ["a", "c"])
        await used(pool, "b")
        assert names(pool) == ["c", "b"]
        await pool.close()
        assert threading.active_count() < 20

    asyncio.run(run())


def test_many_who_want_one_wait_for_one_loading() -> None:
    async def run() -> None:
        pool, opened = pool_of("ab")
        models = await asyncio.gather(*(pool.take("a") for _ in range(20)))
        assert opened == ["a"]
        assert len(set(map(id, models))) == 1
        assert pool.users("a") == 20
        await pool.close()

    asyncio.run(run())


def test_what_is_used_stays_and_who_comes_later_waits() -> None:
    async def run() -> None:
        pool, opened = pool_of("abc", 1)
        await pool.take("a")
        later = [asyncio.create_task(pool.take(name)) for name in "bbcb"]
        await asyncio.sleep(0.05)
        assert opened == ["a"]
        later[2].cancel()  # who goes away leaves others waiting
        pool.leave("a")
        first = await later[0]
        assert first.name == "b"
        assert not first.engine.stats().running
        assert names(pool) == ["b"]
        await later[1]
        await later[3]
        for _ in range(3):
            pool.leave("b")
        await pool.close()

    asyncio.run(run())


def test_a_freshly_loaded_model_is_not_taken_from_who_waited_for_it() -> None:
    async def run() -> None:
        pool, opened = pool_of("ab", 1)

        async def ask(name: str) -> None:
            model = await pool.take(name)
            assert names(pool) == [name] == [model.name]
            await asyncio.sleep(0)
            pool.leave(name)

        await asyncio.wait_for(asyncio.gather(*(ask(name) for name in "ab" * 10)), 20)
        assert len(opened) <= 20
        await pool.close()

    asyncio.run(run())


def test_what_cannot_be_loaded_is_tried_again_when_asked_for_again() -> None:
    async def run() -> None:
        pool, opened = pool_of("ab", b=OSError("no disk"))
        with pytest.raises(Refusal) as raised:
            await pool.take("b")
        assert raised.value.status == 503
        assert "no disk" not in raised.value.message
        assert not pool.users("b")
        await pool.take("b")
        assert opened == ["b", "b"]
        await pool.close()

    asyncio.run(run())


def test_when_memory_is_short_the_least_used_leaves() -> None:
    async def run() -> None:
        pool, opened = pool_of("abc", c=MemoryError("not enough memory"))
        await used(pool, "a")
        await used(pool, "b")
        await used(pool, "c")
        assert opened == ["a", "b", "c", "c"]
        assert names(pool) == ["b", "c"]
        await pool.close()

    asyncio.run(run())


def test_a_loading_that_never_ends_keeps_nothing_from_ending() -> None:
    opened = threading.Event()

    def slow() -> Any:
        assert opened.wait(30)
        return tiny_pipeline()

    with serving({"slow": slow}, grace=1) as served:
        with pytest.raises(openai.APITimeoutError):
            served.client(timeout=0.3).images.generate(prompt="")
        assert served.pool.opening == 1
    opened.set()
    eventually(lambda: served.pool.opening == 0)


def test_names() -> None:
    pool, _ = pool_of("ab")
    assert pool.name_of(None) == "a"
    assert pool.name_of("b") == "b"
    with pytest.raises(Refusal, match="there are a, b") as raised:
        pool.name_of("c")
    assert (raised.value.status, raised.value.param) == (404, "model")
