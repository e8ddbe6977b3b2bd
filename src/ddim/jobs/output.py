"""What a thousand rows become in the end: the pictures of a folder, a Parquet file or a WebDataset tar file.

The bytes depend on the rows and their pictures alone: no times, users or paths are in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from ddim.checkpoint.said import LONGEST
from ddim.errors import require
from ddim.images import png_text

__all__ = ["ENDINGS", "Add", "Format", "is_whole", "packing", "record_of", "unpacked"]

Format = Literal["folder", "parquet", "webdataset"]
ENDINGS: Mapping[str, str] = {"folder": "", "parquet": ".parquet", "webdataset": ".tar"}  # of a thousand rows' file

Add: TypeAlias = Callable[[Mapping[str, Any], str, bytes], None]  # of a record, the picture's name and its bytes

_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last bytes of every PNG
_OF_COMMAND = ("seed", "batch", "scale")  # settings that the manifest says elsewhere, or that are the same for all
_ROW_GROUP = 50  # pictures of a Parquet file that are in memory at a time


def is_whole(file: BinaryIO) -> bool:
    """Whether a PNG's file was not cut off, as one may be that was not on the disk yet when the power went."""
    try:
        file.seek(-len(_END), os.SEEK_END)
    except OSError:
        return False
    return file.read() == _END


def record_of(row: str, file: str, data: bytes) -> dict[str, Any]:
    """What the manifest says of a picture.

    Args:
        row: its id.
        file: where it is, seen from the job's folder.
        data: the bytes of its PNG, which says its settings.
    """
    recipe = json.loads(png_text(data, "ddim", LONGEST) or "{}")
    told = recipe["settings"]
    seed = told["seed"]
    settings = {name: value for name, value in told.items() if name not in _OF_COMMAND and value != []}
    settings |= {"files": recipe["files"]} if "files" in recipe else {}  # hashes of what it was started from
    return {"id": row, "file": file, "seed": seed, "sha256": hashlib.sha256(data).hexdigest(), "settings": settings}


def packing(kind: Format, path: Path) -> contextlib.AbstractContextManager[Add]:
    """A context that gives what adds the pictures of a file, in their order."""
    return {"folder": _nothing, "parquet": _parquet, "webdataset": _tar}[kind](path)


@contextlib.contextmanager
def _nothing(path: Path) -> Iterator[Add]:
    """Pictures in a folder are where they belong already."""
    yield lambda record, name, data: None


@contextlib.contextmanager
def _tar(path: Path) -> Iterator[Add]:
    """A tar file as the webdataset library reads it: of a row NAME.png, NAME.json and, if it has a prompt, NAME.txt."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:

        def put(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)  # of the year 1970, and of nobody
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))

        def add(record: Mapping[str, Any], name: str, data: bytes) -> None:
            put(f"{name}.png", data)
            put(f"{name}.json", json.dumps(record, sort_keys=True).encode())
            prompt = record["settings"].get("prompt")
            if prompt is not None:
                put(f"{name}.txt", prompt.encode())

        yield add


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Add]:
    """A Parquet file with a column `image` as the datasets library writes it, and what the manifest says."""
    pyarrow = require("pyarrow", "data")
    parquet: Any = require("pyarrow.parquet", "data")
    schema = pyarrow.schema(
        {
            "id": pyarrow.string(),
            "prompt": pyarrow.string(),
            "seed": pyarrow.int64(),
            "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
            "sha256": pyarrow.string(),
            "settings": pyarrow.string(),
        }
    )
    waiting: list[dict[str, Any]] = []
    with parquet.ParquetWriter(path, schema, compression="none") as writer:  # PNGs are compressed

        def write() -> None:
            if waiting:
                writer.write_table(pyarrow.Table.from_pylist(waiting, schema))
                waiting.clear()

        def add(record: Mapping[str, Any], name: str, data: bytes) -> None:
            told = {each: record[each] for each in ("id", "seed", "sha256")}
            settings = record["settings"]
            about = {"prompt": settings.get("prompt"), "settings": json.dumps(settings, sort_keys=True)}
            waiting.append({**told, **about, "image": {"bytes": data, "path": f"{name}.png"}})
            if len(waiting) == _ROW_GROUP:
                write()

        yield add
        write()


def unpacked(kind: Format, path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the pictures in a file that `packing` made, to make it anew with further ones."""
    if kind == "webdataset":
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".png") and file is not None:
                    yield member.name.removesuffix(".png"), file.read()
    elif kind == "parquet":
        parquet: Any = require("pyarrow.parquet", "data")
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_ROW_GROUP, columns=["image"]):
                for row in batch.to_pylist():
                    yield row["image"]["path"].removesuffix(".png"), row["image"]["bytes"]
