"""A job's folder: what is asked, which rows are done, and how thousands of them become final.

    OUT/job.json                what was asked
    OUT/00012/ID.png            pictures of rows 12,000 to 12,999; or OUT/00012.parquet, OUT/00012.tar
    OUT/manifest.jsonl          a line for each picture, in the order of rows, when all is done
    OUT/errors.jsonl            a line for each row that failed
    OUT/.job/rows.jsonl         the rows
    OUT/.job/open/00012/        of a thousand that is not done: pictures that are still to be packed, and errors
    OUT/.job/done/00012.jsonl   of a thousand that is done: its lines of the manifest
    OUT/.job/errors/00012.jsonl and its errors

A row is done when its picture has its name, which it gets when it is written as a whole. A thousand is done when its
lines of the manifest have their name, after all else of it is on the disk. Everything else follows from these two, so
any process may end at any moment; and since a row's bytes are always the same, two that do the same row do no harm.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddim._version import __version__
from ddim.checkpoint.files import atomic_write, read_json, write_json, write_text
from ddim.errors import CheckpointError, ConfigError, DataError
from ddim.jobs.output import ENDINGS, Format, is_whole, packing, record_of, unpacked
from ddim.jobs.prompts import file_digest
from ddim.jobs.spool import Spool, SpooledRow, write_spool

__all__ = ["GROUP", "Job", "Left", "open_job"]

GROUP = 1000  # rows of a sub-folder, or of a file


@dataclass(frozen=True)
class Left:
    """What a folder still lacks.

    Attributes:
        rows: that are neither drawn nor failed.
        failed: that failed.
    """

    rows: int
    failed: int


@dataclass(frozen=True)
class Job:
    """A job in its folder. It can be sent to other processes, which share the folder.

    Attributes:
        out: the folder.
        format: of the pictures.
        count: of the rows.
        asked: what job.json says.
        are_texts: whether all values of rows are texts.
        beside: the folder of the table, from which the paths in it are meant.
        has_pictures: whether rows may start from pictures, or show some to ControlNets, which are in files.
    """

    out: Path
    format: Format
    count: int
    asked: Mapping[str, Any]
    are_texts: bool
    beside: Path
    has_pictures: bool

    @property
    def spool(self) -> Spool:
        """Its rows."""
        return Spool(self.out / ".job" / "rows.jsonl")

    @property
    def stop_mark(self) -> Path:
        """A file that is there when workers are to finish what is in hand, and end."""
        return self.out / ".job" / "stop"

    # --- where things are --------------------------------------------------------------------------------------------

    def numbers(self, group: int) -> range:
        """The rows of a thousand."""
        return range(group * GROUP, min((group + 1) * GROUP, self.count))

    @property
    def groups(self) -> range:
        """All thousands."""
        return range(-(-self.count // GROUP))

    def final(self, group: int) -> Path:
        """The sub-folder or the file that a thousand becomes."""
        return self.out / f"{group:05d}{ENDINGS[self.format]}"

    def _open(self, group: int) -> Path:
        return self.out / ".job" / "open" / f"{group:05d}"

    def _done(self, group: int) -> Path:
        return self.out / ".job" / "done" / f"{group:05d}.jsonl"

    def _errors(self, group: int) -> Path:
        return self.out / ".job" / "errors" / f"{group:05d}.jsonl"

    def _pictures(self, group: int) -> Path:
        """Where the pictures of a thousand are that is not done."""
        return self.final(group) if self.format == "folder" else self._open(group)

    def _file(self, group: int, name: str) -> str:
        """Where the manifest says that a picture is."""
        return f"{self.final(group).name}/{name}.png" if self.format == "folder" else self.final(group).name

    def _opened(self) -> set[int]:
        """The thousands of which something lies in their open folder; one that is final may have left it there."""
        return {int(name) for name in _names(self.out / ".job" / "open") if name.isdigit()}

    def _with_errors(self) -> set[int]:
        """The thousands that have a file of errors, which counts where they are final."""
        return _numbered(self.out / ".job" / "errors")

    # --- rows --------------------------------------------------------------------------------------------------------

    def write_picture(self, row: SpooledRow, data: bytes) -> None:
        """Write a row's picture, which makes the row done.

        Raises:
            CheckpointError: the file system does not allow it.
        """
        group = row.number // GROUP
        self._put(self._pictures(group) / f"{row.name}.png", data, group)

    def write_error(self, row: SpooledRow, reason: str) -> None:
        """Write why a row cannot be drawn, which settles it for now.

        Raises:
            CheckpointError: the file system does not allow it.
        """
        line = {"row": row.number, "id": row.id, "error": reason}
        group = row.number // GROUP
        self._put(self._open(group) / f"{row.name}.error", json.dumps(line).encode(), group)

    def _put(self, path: Path, data: bytes, group: int) -> None:
        """Write a file under a temporary name and rename it. Not flushed: what a power cut leaves of it is seen."""
        temporary = self._open(group) / f".{secrets.token_hex(8)}.tmp"
        for is_last in (False, True):
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                os.replace(temporary, path)
                return
            except FileNotFoundError as error:
                if self.is_done(group):  # another process has done the row, and all others
                    return
                if is_last:
                    raise CheckpointError(f"{path} was not written: {error.strerror}") from error
                self._make_folders(path, temporary)
            except OSError as error:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise CheckpointError(f"{path} was not written: {error.strerror or error}") from error

    def _make_folders(self, *paths: Path) -> None:
        for path in paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(f"{path} was not written: {error.strerror or error}") from error

    def settled(self, group: int) -> set[str]:
        """The names of rows of a thousand that are drawn or have failed. Pictures that were cut off are removed."""
        if self.is_done(group):
            return {row.name for row in self.spool.read(self.numbers(group))}
        pictures, errors = self._listed(group)
        for name in list(pictures):
            path = self._pictures(group) / f"{name}.png"
            with contextlib.suppress(FileNotFoundError):
                with path.open("rb") as file:
                    if is_whole(file):
                        continue
                path.unlink()
                pictures.discard(name)
        return pictures | errors

    def _listed(self, group: int) -> tuple[set[str], set[str]]:
        """The names of rows of a thousand that have a picture, and of those that have an error alone."""
        pictures = {name.removesuffix(".png") for name in _names(self._pictures(group)) if name.endswith(".png")}
        errors = {name.removesuffix(".error") for name in _names(self._open(group)) if name.endswith(".error")}
        return pictures, errors - pictures

    # --- thousands ---------------------------------------------------------------------------------------------------

    def is_done(self, group: int) -> bool:
        """Whether a thousand is final."""
        return self._done(group).exists()

    def done(self) -> set[int]:
        """The thousands that are final."""
        return _numbered(self.out / ".job" / "done")

    def settle(self, group: int) -> bool:
        """Make a thousand final if all of its rows are drawn or have failed; returns whether it is.

        Raises:
            CheckpointError: the file system does not allow it.
        """
        if self.is_done(group):
            return True
        numbers = self.numbers(group)
        pictures, errors = self._listed(group)
        if len(pictures) + len(errors) < len(numbers):
            return False
        rows = list(self.spool.read(numbers))
        if not all(row.name in pictures or row.name in errors for row in rows):
            return False
        try:
            self._finish([row for row in rows if row.name in pictures], group, [r for r in rows if r.name in errors])
        except _Gone:
            return self.is_done(group)
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.final(group)} was not written: {error.strerror or error}") from error
        return self.is_done(group)

    def _finish(self, drawn: list[SpooledRow], group: int, failed: list[SpooledRow]) -> None:
        reasons = [_read(self._open(group) / f"{row.name}.error").decode() + "\n" for row in failed]
        lines = []
        with contextlib.ExitStack() as stack:
            target = Path(os.devnull)
            if self.format != "folder":
                target = stack.enter_context(atomic_write(self.final(group)))
            add = stack.enter_context(packing(self.format, target))
            for row in drawn:
                path = self._pictures(group) / f"{row.name}.png"
                data = _read(path)
                if not is_whole(io.BytesIO(data)):
                    path.unlink()
                    raise _Gone
                record = record_of(row.id, self._file(group, row.name), data)
                add(record, row.name, data)
                lines.append(json.dumps(record, sort_keys=True) + "\n")
        if self.format == "folder":
            os.sync()  # all of its pictures at once, which takes far less than one after the other
        if reasons:
            write_text(self._errors(group), "".join(reasons))
        else:
            self._errors(group).unlink(missing_ok=True)
        write_text(self._done(group), "".join(lines))
        shutil.rmtree(self._open(group), ignore_errors=True)

    def reopen(self) -> int:
        """Have all rows drawn anew that failed; returns how many there are.

        Raises:
            CheckpointError: the file system does not allow it.
        """
        count = 0
        try:
            for group in self._with_errors():
                count += _lines_of(self._errors(group)) if self.is_done(group) else 0
                (self.out / "manifest.jsonl").unlink(missing_ok=True)
                self._open(group).mkdir(parents=True, exist_ok=True)
                if self.format != "folder" and self.is_done(group):
                    for picture, data in unpacked(self.format, self.final(group)):
                        with atomic_write(self._open(group) / f"{picture}.png") as temporary:
                            temporary.write_bytes(data)
                self._done(group).unlink(missing_ok=True)
                self._errors(group).unlink()
            for group in self._opened():
                for error in self._open(group).glob("*.error"):
                    error.unlink()
                    count += 1
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"{self.out} cannot be changed: {error.strerror or error}") from error
        return count

    # --- the whole ---------------------------------------------------------------------------------------------------

    def left(self) -> Left:
        """How much there is to do, by looking at the thousands that are not final alone."""
        done = self.done()
        settled = sum(len(self.numbers(group)) for group in done)
        failed = sum(_lines_of(self._errors(group)) for group in self._with_errors() & done)
        for group in self._opened() - done:
            pictures, errors = self._listed(group)
            settled += len(pictures) + len(errors)
            failed += len(errors)
        return Left(self.count - settled, failed)

    def finish(self) -> Left:
        """Write errors.jsonl, and when all is done manifest.jsonl; returns what is left.

        Raises:
            CheckpointError: the file system does not allow it.
        """
        for group in self._opened():
            if self.settle(group):
                shutil.rmtree(self._open(group), ignore_errors=True)
        self._write_errors()
        done, manifest = self.done(), self.out / "manifest.jsonl"
        if len(done) == len(self.groups) and not manifest.exists():
            with atomic_write(manifest) as temporary, temporary.open("wb") as file:
                for group in self.groups:
                    with self._done(group).open("rb") as part:
                        shutil.copyfileobj(part, file)
        return self.left()

    def _write_errors(self) -> None:
        groups = self._with_errors() | self._opened()
        path = self.out / "errors.jsonl"
        if not any(True for group in groups for _ in self._reasons(group)):
            path.unlink(missing_ok=True)
            return
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for group in sorted(groups):
                file.writelines(self._reasons(group))

    def _reasons(self, group: int) -> Iterator[str]:
        """The lines of a thousand's errors."""
        if self._errors(group).exists() and self.is_done(group):
            yield from self._errors(group).read_text("utf-8").splitlines(keepends=True)
            return
        _, errors = self._listed(group)
        for row in self.spool.read(self.numbers(group)) if errors else ():
            with contextlib.suppress(_Gone):
                if row.name in errors:
                    yield _read(self._open(group) / f"{row.name}.error").decode() + "\n"

    def agree(self, about: Mapping[str, Any], *, any_hardware: bool = False) -> None:
        """Have all workers of a job compute alike: the first one writes by what it computes, the others compare.

        Args:
            about: `weights` and `slots`, and `bits`, a hash of what the network gave for known numbers.
            any_hardware: whether other bits will do.

        Raises:
            ConfigError: it is another model, or another kind of hardware or software.
        """
        path = self.out / ".job" / "worker.json"
        if not path.exists():
            temporary = path.with_name(f".{secrets.token_hex(8)}.tmp.json")
            write_json(temporary, about)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
        first = read_json(path)
        if first.get("weights") != about["weights"]:
            raise ConfigError(
                f"the model {self.asked['model']} has other weights than those that {self.out} was begun with: give "
                "another --out"
            )
        differs = [name for name in about if first.get(name) != about[name]]
        if differs and not any_hardware:
            raise ConfigError(
                f"this processor or this PyTorch computes other bits than those that {self.out} was begun with "
                f"({', '.join(differs)}): go on where it was begun, or give --any-hardware, and the pictures will "
                "differ in their last bits"
            )


class _Gone(Exception):  # noqa: N818 - no fault
    """A file of a thousand is not there any more: it was cut off, or another process has made the thousand final."""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _Gone from None


def _names(folder: Path) -> list[str]:
    """What is in a folder, sorted, but for temporary files; nothing if it is not there."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return []


def _numbered(folder: Path) -> set[int]:
    """The thousands that have a file in a folder."""
    names = _names(folder)
    return {int(name[:-6]) for name in names if name.endswith(".jsonl") and name[:-6].isdigit()}


def _lines_of(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def open_job(
    out: str | Path,
    prompts: str,
    asked: Mapping[str, Any],
    check_columns: Callable[[Collection[str]], object] = lambda columns: None,
) -> Job:
    """A job in its folder: begun, or gone on with.

    Args:
        out: the folder, which need not be there.
        prompts: the table of rows.
        asked: `model`, `format`, `settings` (of the pictures, for rows that do not say them) and `loading` (of the
            model), each of which can be written as JSON.
        check_columns: raises an error unless a table with these columns will do.

    Raises:
        ConfigError: the folder has a job that was asked for otherwise, or is not empty and has none.
        DataError: the table cannot be used.
        CheckpointError: the folder cannot be written.
    """
    out = Path(out).absolute()
    path = out / "job.json"
    now: dict[str, Any] = json.loads(json.dumps({"version": __version__, **asked}))
    now["prompts"] = {"sha256": file_digest(prompts), "kind": Path(prompts).suffix.lower()}
    if not (out / ".job" / "worker.json").exists():  # nothing was drawn yet
        strangers = [name for name in _names(out) if name not in ("job.json", "errors.jsonl")]
        if strangers:
            raise ConfigError(f"--out {out} has files that are of no job, such as {strangers[0]}: give another folder")
        count, columns = write_spool(prompts, out / ".job" / "rows.jsonl")
        check_columns(columns)
        write_json(path, now | {"rows": count, "has_pictures": bool(columns & {"image", "control_image"})})
    first = read_json(path)
    differs = list(_differences(now, {name: first.get(name) for name in now}))
    if differs:
        raise ConfigError(
            f"--out {out} has a job that was asked for otherwise: {'; '.join(differs[:5])}. Give another --out"
        )
    try:
        kind, count = first["format"], int(first["rows"])
        are_texts, has_pictures = first["prompts"]["kind"] == ".csv", bool(first["has_pictures"])
        job = Job(out, kind, count, first, are_texts, Path(prompts).absolute().parent, has_pictures)
        if kind not in ENDINGS or len(job.spool) != count:
            raise ValueError("rows are missing")
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no job's, or {out / '.job'} was changed ({error}): give another --out") from error
    return job


def _differences(now: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[str]:
    """How two descriptions of a job differ, in words."""
    for name in {**now, **first}:
        value, before = now.get(name), first.get(name)
        if name == "prompts":
            if value != before:
                yield "PROMPTS had other contents"
        elif isinstance(value, dict):
            yield from _differences(value, before if isinstance(before, dict) else {})
        elif value != before:
            what = "ddim's version" if name == "version" else f"--{name.replace('_', '-')}"
            yield f"{what} was {_said(before)} and is {_said(value)}"


def _said(value: Any) -> str:
    return "not given" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
