"""Memory that was freed goes back to the system while a server runs."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import eventually, serving

from ddim.serving.memory import give_back

MIB = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is glibc's memory")


def resident() -> int:
    """The bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def freed() -> Iterator[int]:
    """The bytes of 64 MiB that were freed between others that are in use, where glibc keeps them."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    size = 2**16  # smaller than what is mapped of its own
    blocks = [libc.malloc(size) for _ in range(2048)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[::2]:
        libc.free(block)
    yield 1024 * size
    for block in blocks[1::2]:
        libc.free(block)


def test_freed_memory_between_what_is_used_is_given_back(freed: int) -> None:
    before = resident()
    give_back()
    assert before - resident() > 0.8 * freed
    give_back()


def test_a_server_gives_memory_back_again_and_again(
    freed: int, models: dict[str, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddim.serving.api._GIVEN_BACK", 0.05)
    before = resident()
    with serving(models):
        eventually(lambda: before - resident() > 0.8 * freed)
