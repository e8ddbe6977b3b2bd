"""Pages of the documentation, of which a part is written by a program and the rest by hand."""

from __future__ import annotations

from pathlib import Path

from ddim.checkpoint import atomic_write


def put_between(marks: tuple[str, str], text: str, page: Path) -> None:
    """Put a text between two marks of a page, instead of what is there; what is written around them stays.

    Raises:
        SystemExit: the page has no such marks.
    """
    before, found, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, ends, after = rest.partition(marks[1])
    if not (found and ends):
        raise SystemExit(f"{page} has no place for the tables, between {marks[0]} and {marks[1]}")
    with atomic_write(page) as path:
        path.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}", encoding="utf-8")
