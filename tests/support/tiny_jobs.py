"""Small jobs: their tables, pictures that cost nothing to draw, and all bytes that a job has written in the end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from ddim.jobs.job import Job, open_job
from ddim.jobs.spool import SpooledRow
from ddim.serving.pictures import encoded


def table(folder: Path, count: int) -> str:
    """A table of prompts, all of them different."""
    path = folder / f"{count}.txt"
    path.write_text("".join(f"prompt {number}\n" for number in range(count)))
    return str(path)


def begun(folder: Path, count: int, kind: str = "folder", name: str = "out", **asked: Any) -> Job:
    """A job of so many prompts, begun or gone on with."""
    job = open_job(folder / name, table(folder, count), {"model": "none", "format": kind, **asked})
    job.agree({"weights": "none"})
    return job


def drawing(row: SpooledRow) -> bytes:
    """A picture of a row, of one pixel, with its recipe."""
    image = Image.new("L", (1, 1), row.number % 256)
    return encoded(
        image, "png", recipe={"settings": {"seed": row.number, "prompt": row.values.get("prompt"), "scale": 1}}
    )


def draw(job: Job, numbers: Iterable[int], failing: Iterable[int] = ()) -> None:
    """Draw rows in the order of their numbers; those of `failing` fail."""
    fails = set(failing)
    for number in numbers:
        (row,) = job.spool.read(range(number, number + 1))
        if number in fails:
            job.write_error(row, f"row {number} is not wanted")
        else:
            job.write_picture(row, drawing(row))


def finished(job: Job) -> bool:
    """Make final what is whole; whether that is all."""
    for group in job.groups:
        job.settle(group)
    return job.finish().rows == 0


def written(out: Path) -> dict[str, bytes]:
    """All that a job has written for others: {path: bytes}."""
    files = [path for path in out.rglob("*") if path.is_file() and ".job" not in path.relative_to(out).parts]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(files)}
