"""A file that is made of parts of another file, and how such parts are read."""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Sequence
from typing import IO, NamedTuple, TypeAlias

Part: TypeAlias = bytes | tuple[int, int]  # bytes as they are, or from where to where in the other file


class BrokenError(Exception):
    """Why a file is no picture that is read, in words that go on after "cannot be read: "."""


class Found(NamedTuple):
    """The first picture of a file.

    Attributes:
        format: what Pillow calls the format.
        size: (width, height), as the file claims.
        parts: what to give to Pillow.
        weight: how many times as much memory as a PNG's pixel Pillow's decoder takes for a pixel.
        orientation: EXIF's number for how the picture is turned; 1 is upright.
    """

    format: str
    size: tuple[int, int]
    parts: Sequence[Part]
    weight: float = 1.0
    orientation: int = 1


def at(file: IO[bytes], place: int, length: int) -> bytes:
    """So many bytes of a file.

    Raises:
        BrokenError: it has fewer.
    """
    file.seek(place)
    read = file.read(length)
    if len(read) < length:
        raise BrokenError("it is cut off")
    return read


def length_of(parts: Sequence[Part]) -> int:
    """How many bytes parts have together."""
    return sum(len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts)


class Spans:
    """Parts of a file, one after another, as a file that can be read.

    To read on at its end is an error and not an empty answer. So a picture whose data ends too early is refused
    whatever Pillow's LOAD_TRUNCATED_IMAGES says, which belongs to the user's program.
    """

    def __init__(self, file: IO[bytes], parts: Sequence[Part]) -> None:
        self._file, self._parts = file, list(parts)
        self._starts = [0, *itertools.accumulate(length_of([part]) for part in parts)]
        self._place = 0

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        self._place = place + (0, self._place, self._starts[-1])[whence]
        return self._place

    def read(self, length: int = -1) -> bytes:
        stop = self._starts[-1] if length < 0 else min(self._place + length, self._starts[-1])
        if length > 0 and self._place >= self._starts[-1]:
            raise BrokenError("it is cut off")
        blocks = []
        while self._place < stop:
            index = bisect.bisect_right(self._starts, self._place) - 1
            part, first = self._parts[index], self._place - self._starts[index]
            wanted = min(stop, self._starts[index + 1]) - self._place
            block = part[first : first + wanted] if isinstance(part, bytes) else at(self._file, part[0] + first, wanted)
            blocks.append(block)
            self._place += len(block)
        return b"".join(blocks)

    def close(self) -> None:
        """The other file stays open."""
