"""The rows of a job in the form that its workers read: a line of JSON each, found by the row's number.

A table is read once, at the start, and checked as far as that can be done without the model. Memory is 8 bytes a row
meanwhile, for finding ids that are there twice, and none afterwards.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ddim.checkpoint.files import atomic_write
from ddim.errors import DataError
from ddim.jobs.prompts import Found, read_prompts
from ddim.jobs.rows import LONGEST_ID, file_name

__all__ = ["Spool", "SpooledRow", "write_spool"]

_PLACE = 8  # bytes of a row's place in the index


class SpooledRow(NamedTuple):
    """A row: its number, its id, its settings, and why it cannot be drawn if that is known already."""

    number: int
    id: str
    values: dict[str, Any]
    fault: str | None

    @property
    def name(self) -> str:
        """Of its file, but for the ending."""
        return file_name(self.id)


class Spool:
    """Rows that were written by `write_spool`.

    Args:
        path: the file; its index lies beside it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._index = self.path.with_suffix(".index")

    def __len__(self) -> int:
        return self._index.stat().st_size // _PLACE

    def read(self, numbers: range) -> Iterator[SpooledRow]:
        """The rows with these consecutive numbers.

        Raises:
            DataError: the file cannot be read.
        """
        if not numbers:
            return
        try:
            with self._index.open("rb") as index, self.path.open("rb") as file:
                index.seek(numbers.start * _PLACE)
                file.seek(int.from_bytes(index.read(_PLACE), "little"))
                for number in numbers:
                    line = json.loads(file.readline())
                    yield SpooledRow(number, line["id"], line.get("values", {}), line.get("fault"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error


def write_spool(prompts: str | Path, path: str | Path) -> tuple[int, set[str]]:
    """Write the rows of a table.

    Args:
        prompts: the table, see `read_prompts`.
        path: the file to write, and beside it the index.

    Returns:
        How many rows there are, and the names of their columns.

    Raises:
        DataError: the table cannot be read, has no rows, or two rows of one id.
        CheckpointError: there is no room.
    """
    path = Path(path)
    hashes = array("Q")
    columns: set[str] = set()
    with atomic_write(path) as lines, atomic_write(path.with_suffix(".index")) as places:
        with lines.open("wb") as file, places.open("wb") as index:
            place = 0
            for number, found in enumerate(read_prompts(prompts)):
                columns.update(found.values)
                row, line = _line(number, found)
                raw = json.dumps(line, separators=(",", ":")).encode() + b"\n"
                file.write(raw)
                index.write(place.to_bytes(_PLACE, "little"))
                place += len(raw)
                hashes.append(int.from_bytes(hashlib.blake2b(file_name(row).encode(), digest_size=8).digest(), "big"))
        if not hashes:
            raise DataError(f"{prompts} has no rows")
        _check_unique(hashes, lines, str(prompts))
    return len(hashes), columns


def _line(number: int, found: Found) -> tuple[str, dict[str, Any]]:
    """A row's id and its line."""
    usual = f"{number:08d}"
    given = found.values.get("id", usual)
    fault = found.fault
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        fault, given = fault or f"id must be a text or a whole number, not {given!r:.60}", usual
    row = str(given) or usual
    if len(row) > LONGEST_ID:
        fault, row = fault or f"id has {len(row)} letters, and {LONGEST_ID} are the most", usual
    if any("\ud800" <= letter <= "\udfff" for letter in row):
        fault, row = fault or "id has half a character: a surrogate without its other half", usual
    line: dict[str, Any] = {"id": row}
    if fault is not None:
        return row, {**line, "fault": fault}
    values = {name: value for name, value in found.values.items() if name != "id"}
    return row, {**line, "values": values}


def _check_unique(hashes: array[int], lines: Path, prompts: str) -> None:
    """Raise a DataError if two rows have one id. Rows are looked up only where their hashes are the same."""
    import numpy as np

    found = np.frombuffer(hashes, dtype=np.uint64)
    ordered = np.sort(found)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return
    positions = set(np.flatnonzero(np.isin(found, twice[:1000])).tolist())
    seen: dict[str, int] = {}
    with lines.open("rb") as file:
        for number, raw in enumerate(file):
            if number not in positions:
                continue
            row = json.loads(raw)["id"]
            if row in seen:
                raise DataError(
                    f"{prompts}: the id {row!r:.100} is that of row {seen[row]} and of row {number}, counted from 0: "
                    "each needs its own"
                )
            seen[row] = number
