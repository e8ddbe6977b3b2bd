"""How far something is, and how long it takes, in words."""

from __future__ import annotations

import time
from dataclasses import dataclass

__all__ = ["Clock", "Share", "spelt"]


@dataclass(frozen=True)
class Share:
    """How much of the work is done, from 0 to 1, and what is being done."""

    share: float
    doing: str


class Clock:
    """The time that a piece of work takes, from when this is made."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def left(self, share: float) -> str:
        """How long the rest will take, as " · 3 s left"; empty where it is too early to tell.

        Args:
            share: of the work that is done, from 0 to 1.
        """
        spent = self.seconds
        return f" · {spelt(spent / share * (1 - share))} left" if share > 0.05 and spent > 0.5 else ""


def spelt(seconds: float) -> str:
    """
    >>> spelt(0.34), spelt(12.2), spelt(125)
    ('0.3 s', '12 s', '2 min 5 s')
    """
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
