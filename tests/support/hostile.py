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
