"""Pictures that wait for whoever has their address: for a while, and as many as fit into a bounded memory."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Kept", "Store"]


class Kept(NamedTuple):
    """A file that is kept: its bytes, what kind of file it is, and until when it is kept."""

    data: bytes
    media_type: str
    until: float


class Store:
    """Files under names that nobody can guess. The oldest leave when there is no more room, or when their time is over.

    Args:
        most_bytes: of all files together.
        seconds: how long each is kept.
        clock: tells the time in seconds.
    """

    def __init__(self, most_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._clock = most_bytes, seconds, clock
        self._files: OrderedDict[str, Kept] = OrderedDict()  # the oldest first
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._files)

    def add(self, data: bytes, media_type: str, ending: str) -> str:
        """Keep a file; returns its name, of 256 random bits and the ending.

        Raises:
            ValueError: it alone has more bytes than all may have.
        """
        if len(data) > self._most:
            raise ValueError(f"a file of {len(data)} bytes is larger than the store, which has {self._most}")
        self._leave(len(data))
        name = f"{secrets.token_urlsafe(32)}.{ending}"
        self._files[name] = Kept(data, media_type, self._clock() + self._seconds)
        self.bytes += len(data)
        return name

    def get(self, name: str) -> Kept | None:
        """The file of a name; None if there is none, or none any more."""
        self._leave(0)
        return self._files.get(name)

    def _leave(self, needed: int) -> None:
        """Forget files whose time is over, and the oldest until there is room for so many bytes."""
        now = self._clock()
        while self._files:
            name, oldest = next(iter(self._files.items()))
            if oldest.until > now and self.bytes + needed <= self._most:
                return
            del self._files[name]
            self.bytes -= len(oldest.data)
