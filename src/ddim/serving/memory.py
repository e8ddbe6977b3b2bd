"""Memory that was freed goes back to the system.

Every forward pass takes and frees buffers, of other sizes for each shape and number of samples. What stays, such as the
kernels that oneDNN keeps for each of them, comes to lie between the freed buffers, so that glibc does not give those
back by itself: with many shapes the process soon holds three times what it uses, and more with every hour. To map each
buffer of its own instead (M_MMAP_THRESHOLD) makes large batches take up to 1.7 times as long, as the system clears all
pages anew; fewer arenas (MALLOC_ARENA_MAX) change nothing of it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

__all__ = ["give_back"]


def _trimming() -> Callable[[int], object] | None:
    """glibc's `malloc_trim`; None where the C library is another one."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


_trim = _trimming()


def give_back() -> None:
    """Give freed memory back, which takes some milliseconds. It does nothing where the C library is not glibc."""
    if _trim is not None:
        _trim(0)
