"""Locks of the file system, by which two processes do not write into one folder. They end with the process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["alone_in", "lock"]

PATIENCE = 10.0  # seconds; a DataLoader's processes look every five whether their parent is there


def lock(file: int | IO[str], alone: bool = True) -> bool:
    """Whether the lock of an open file or folder was free, or there are none here: the lock is held until it is closed.

    Args:
        alone: whether nobody else may hold it; else others may that are not alone either.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """A context in which no other process that asks for this has the folder; False if another one has it.

    One that was killed may have left children, which end some seconds after it and hold what it held until then. So
    this waits a while before it says no.
    """
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:  # where folders cannot be opened, as on Windows
        yield True
        return
    try:
        ends = time.monotonic() + PATIENCE
        while not (is_free := lock(opened)) and time.monotonic() < ends:
            time.sleep(0.1)
        yield is_free
    finally:
        os.close(opened)
