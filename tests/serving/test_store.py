"""Pictures that wait at an address: bounded in size and in time, under names that cannot be guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddim.serving.store import Store


def test_files_leave_when_their_time_is_over() -> None:
    now = 0.0
    store = Store(100, 10, clock=lambda: now)
    name = store.add(b"x" * 40, "image/png", "png")
    now = 9.0
    kept = store.get(name)
    assert kept is not None
    assert (kept.data, kept.media_type) == (b"x" * 40, "image/png")
    now = 10.0
    assert store.get(name) is None
    assert (len(store), store.bytes) == (0, 0)


@given(st.lists(st.integers(0, 60), max_size=30))
def test_the_oldest_leave_for_want_of_room(sizes: list[int]) -> None:
    store = Store(100, 10, clock=lambda: 0.0)
    names = [store.add(bytes(size), "image/png", "png") for size in sizes]
    there = [store.get(name) is not None for name in names]
    assert there == sorted(there)  # the newest stay
    assert store.bytes == sum(size for size, is_there in zip(sizes, there, strict=True) if is_there) <= 100
    if not all(there):
        oldest = sizes[there.count(False) - 1]
        assert store.bytes + oldest > 100  # and no one left for nothing


def test_a_file_that_is_too_large_alone() -> None:
    store = Store(100, 10)
    name = store.add(bytes(50), "image/png", "png")
    with pytest.raises(ValueError, match="larger than the store"):
        store.add(bytes(101), "image/png", "png")
    assert store.get(name) is not None


def test_names_are_long_and_never_the_same() -> None:
    store = Store(10**6, 10)
    names = {store.add(b"", "image/png", "png") for _ in range(1000)}
    assert len(names) == 1000
    assert all(len(name) == 47 for name in names)  # 256 bits and the ending
    assert store.get("../" + names.pop()) is None
