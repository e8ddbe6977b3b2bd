"""Progress of what takes time: a bar in a terminal or a notebook, and in a log a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

import tqdm.auto
import tqdm.std

T = TypeVar("T")

RAREST = 300.0  # seconds: the longest time between two lines


def progress(iterable: Iterable[T] | None = None, **options: Any) -> tqdm.std.tqdm[T]:
    """A bar that goes through an iterable, or that `update()` moves on; nothing shows in its first second.

    Args:
        iterable: what to go through, or None.
        options: tqdm's: `total`, `desc`, `unit`, `leave`, `initial`, `disable`.
    """
    kind = tqdm.auto.tqdm if sys.stderr.isatty() or "ipykernel" in sys.modules else Lines
    bar: tqdm.std.tqdm[T] = kind(iterable, **{"delay": 1, **options})
    return bar


def say(what: str) -> None:
    """Write a line to stderr, without damage to a bar that stands there."""
    tqdm.auto.tqdm.write(f"ddim: {what}", file=sys.stderr)


def duration(seconds: float) -> str:
    """A time in words, to two digits.

    >>> [duration(t) for t in (0.2, 8, 100, 5400, 86_400, 400_000)]
    ['1 second', '8 seconds', '100 seconds', '90 minutes', '24 hours', '4.6 days']
    """
    for unit, size, most in (("second", 1, 120), ("minute", 60, 120), ("hour", 3600, 48), ("day", 86400, float("inf"))):
        number = max(1.0, seconds / size)
        if number < most:
            break
    text = f"{number:.0f}" if number >= 10 or unit == "second" else f"{number:.1f}".removesuffix(".0")
    return f"{text} {unit}{'s' * (text != '1')}"


class Lines(tqdm.std.tqdm):  # type: ignore[misc]
    """A bar that is written as whole lines, first often and then seldom, each half as much later as the one before."""

    leave: bool

    def __init__(self, iterable: Iterable[Any] | None = None, **options: Any) -> None:
        self.due = 0.0  # seconds from the start: when to write the next line
        self.told: float = -1  # what the last line said was done
        super().__init__(iterable, **{**options, "miniters": 1, "mininterval": 1, "file": sys.stderr})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        elapsed = self.format_dict["elapsed"]
        if msg is None and elapsed >= self.due and self.n != self.told:
            self.due = elapsed + min(max(1.0, elapsed / 2), RAREST)
            self.told = self.n
            self.fp.write(f"{self._line(elapsed)}\n")
            self.fp.flush()

    def _line(self, elapsed: float) -> str:
        unit = "" if self.unit == "it" else " batches" if self.unit == "batch" else f" {self.unit}s"
        done = f"{int(self.n):,}"  # a part of the next one may be done
        parts = [f"{done}{unit}" if self.total is None else f"{done}/{self.total:,}{unit}"]
        parts += [self.postfix] if self.postfix else []
        made = self.n - self.initial
        if self.total is not None and made and self.n < self.total:
            parts.append(f"{duration(elapsed / made * (self.total - self.n))} left")
        else:
            parts.append(duration(elapsed))
        return f"{(self.desc or 'progress').removesuffix(': ')}: " + ", ".join(parts)

    def close(self) -> None:
        if not self.disable and self.leave and self.format_dict["elapsed"] >= self.delay:
            self.due = 0.0
            self.display()
        self.leave = False
        super().close()

    def clear(self, nolock: bool = False) -> None:
        """Nothing stands in the way of other lines."""

    def set_postfix(self, ordered_dict: Any = None, refresh: bool | None = False, **values: Any) -> None:
        super().set_postfix(ordered_dict, refresh=False, **values)

    def set_description(self, desc: str | None = None, refresh: bool | None = False) -> None:
        self.desc = desc or ""
