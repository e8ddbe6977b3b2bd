"""The server's memory stays as large as what it draws needs, however long it draws pictures of many shapes.

Every forward pass takes and frees large buffers, of other sizes for each shape and number of samples. oneDNN keeps what
it prepared for each of them, up to 1024 pieces: little in itself, but it comes to lie between the freed buffers, which
glibc can then neither use again as a whole nor give back. In time the process holds three times what it uses. With few
pieces kept, and what was freed given back now and then, it does not grow.

What does not help: fewer arenas (MALLOC_ARENA_MAX) change nothing of it, and to map each buffer of its own
(M_MMAP_THRESHOLD) makes large batches slower, as the system clears all pages anew.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

__all__ = ["give_back", "keep_little"]

_KERNELS = "64"  # about as many as a network needs for one shape


def keep_little() -> None:
    """Have oneDNN keep few of the kernels that it prepares, unless the environment says how many.

    It has to be called before the first network runs.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS)


def _trimming() -> Callable[[int], object] | None:
    """glibc's `malloc_trim`; None where the C library is another one."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


_trim = _trimming()


def give_back() -> None:
    """Give freed memory back, which takes some milliseconds. It does nothing where the C library is not glibc."""
    if _trim is not None:
        _trim(0)
