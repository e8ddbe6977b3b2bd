"""What spoils a checkpoint's folder, and what is looked at while it is loaded; for the tests of hostile files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ddim.pipelines import DiffusionPipeline

INDEX = "model_index.json"
DELETED = object()


class Canary:
    """Unpickled, it makes a file: proof that a checkpoint's code was run."""

    path = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


class Case(NamedTuple):
    spoil: Callable[[Path], None]
    error: type[Exception]
    names: str  # what the message says; the spoilt file unless there is something better
    load: Callable[[Path], Any] = DiffusionPipeline.from_pretrained


def prepare(case: Case, good: Path, place: Path) -> Path:
    folder = place / "pipeline"
    shutil.copytree(good, folder)
    Canary.path = str(place / "canary")
    case.spoil(folder)
    return folder


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


class Rise:
    """How far memory rises above the present level, by what Linux counts; elsewhere it is not measured."""

    def __init__(self) -> None:
        self.measured = os.access("/proc/self/clear_refs", os.W_OK)
        if self.measured:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present level
            self.before = self.peak()

    def mib(self) -> float:
        return self.peak() - self.before if self.measured else 0

    @staticmethod
    def peak() -> float:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024


SECONDS, MEBIBYTES = 10, 500  # what reading any file of a stranger may cost, above the level before


@contextlib.contextmanager
def limits(seconds: float = SECONDS, mebibytes: float = MEBIBYTES) -> Iterator[None]:
    """What is done inside takes no more processor time, and no more memory above the present level."""
    rise, start = Rise(), time.process_time()
    yield
    taken, risen = time.process_time() - start, rise.mib()
    assert taken < seconds
    assert risen < mebibytes


def refuses(case: Case, folder: Path, *, seconds: float = SECONDS, mebibytes: float = MEBIBYTES) -> str:
    """The message of the one error that loading a spoilt folder raises, having run, written and fetched nothing."""
    before = contents(folder.parent)
    with limits(seconds, mebibytes), pytest.raises(case.error) as caught:
        case.load(folder)
    message = str(caught.value)
    assert case.names in message
    assert len(message) < 100_000
    assert not Path(Canary.path).exists()
    assert contents(folder.parent) == before
    return message


# For any setting of a config: what nobody means.
VALUES: list[Any] = [
    *(0, -1, 3, 10**4, 10**6, 10**9, 10**30, 0.5, 1e308, 1e-308, float("inf"), -float("inf")),
    *("", "x" * 10**6, "9" * 10**6, None, True, False, {}, {"a": 1}),
    *([], [[]], [0], [-1, -1], [1] * 5, [1, 10**6], [10**9] * 2, [1000, 1000], [8, 65536], [0.5, 0.5], [1e308, 1]),
    *([[1, 2], [3]], [None], ["x"], [[[[[1]]]]], [1] * 100_000),
]


# --- ways to spoil a file ---------------------------------------------------------------------------------------------


def raw(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: write(folder / file, content)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def gone(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def edit(file: str, **values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        content.update(values)
        (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v is not DELETED}))

    return spoil


def link(file: str, target: Callable[[Path], Path | str]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        kept = folder.parent / "outside"
        if (folder / file).is_dir():
            shutil.move(folder / file, kept)
        else:
            (folder / file).rename(kept)
        (folder / file).symlink_to(target(kept))

    return spoil
