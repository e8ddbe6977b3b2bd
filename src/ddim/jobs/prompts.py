"""Tables of prompts, read a row at a time: text files, CSV, JSON lines and Parquet, which may be anyone's.

Whatever is wrong with one row is said of that row, and the next one is read. What is wrong with the whole, such as a
column that is no setting or a quote that is never closed, is an error.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ddim.errors import DataError, require
from ddim.serving.parameters import OTHER_NAMES

__all__ = ["COLUMNS", "ENDINGS", "NOT_OF_ROWS", "Found", "file_digest", "read_prompts"]

ENDINGS = (".txt", ".csv", ".jsonl", ".parquet")

COLUMNS = (
    "id", "prompt", "negative_prompt", "class_label", "seed", "steps", "eta", "order", "spacing", "guidance_scale",
    "guidance_rescale", "guidance_interval", "width", "height", "image", "mask_image", "strength", "prompt_2",
    "negative_prompt_2", "original_size", "crop", "target_size", "negative_original_size", "negative_crop",
    "negative_target_size", "aesthetic_score", "negative_aesthetic_score", "denoising_start", "denoising_end",
    "control_image", "control_scale", "guess_mode", "control_guidance_start", "control_guidance_end",
)  # fmt: skip

_SAID = COLUMNS.index("strength") + 1  # how many of them an error lists
LONGEST = 2**20  # bytes of a line, many times what the longest prompt needs; a longer one is not kept in memory
AT_A_TIME = 100  # rows of a Parquet file

# What others call the columns.
_MEANT = {
    "text": "prompt", "caption": "prompt", "captions": "prompt", "name": "id", "key": "id", "class": "class_label",
    "label": "class_label", "num_inference_steps": "steps", "cfg": "guidance_scale", "cfg_scale": "guidance_scale",
    "timestep_spacing": "spacing", "negative": "negative_prompt", "class_labels": "class_label",
    "conditioning_image": "control_image",
    "init_image": "image", "image_path": "image", "file_name": "image", "mask": "mask_image", "denoise": "strength",
}  # fmt: skip

_OF_ALL = "is the same for all rows: give it as --{option}, and rows that need another one in a table of their own"
# Settings of `ddim sample` that are not a row's, and why.
NOT_OF_ROWS = {
    **{
        name: _OF_ALL.format(option=name.replace("_", "-"))
        for name in (
            "model", "lora", "textual_inversion", "vae", "variant", "tokenizer", "prediction_type", "zero_snr", "dtype",
            "backend", "device", "controlnet",
        )
    },
    **dict.fromkeys(
        ("refiner", "refiner_start"),
        "is not for jobs yet: draw such pictures by ddim sample",
    ),
    "weights": "is not for jobs, which draw many prompts together, and those with weights may be of other lengths: "
    "draw them by ddim sample",
    **dict.fromkeys(
        ("control_from", "condition", "condition_cells"),
        "is not for jobs: make the pictures that ControlNets are shown beforehand, and name them in control_image",
    ),
    "batch": "is not needed: a row is one picture, so give a row for each, whose seeds are others if they say none",
    "scale": "is for looking at pictures, and those of a job are data: they stay as the model draws them",
    "labels": "is for looking at pictures, and those of a job are data: what each shows is in the manifest",
    "from_image": "is for one picture: give what its recipe says as columns",
    "trust": "is for recipes of others, which a table does not have",
    "out": "is decided by --out and the rows' ids",
    "overwrite": "is not needed: what is done stays, and other settings are another job, into another --out",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A row as it stands in its file.

    Attributes:
        values: by the names of columns; texts alone in a CSV. What is left out is not there.
        fault: why it cannot be read; None if it can.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


def read_prompts(path: str | Path) -> Iterator[Found]:
    """The rows of a table, in order. Empty lines are none.

    Args:
        path: a file that ends in .txt (a prompt a line), .csv (with a line of column names), .jsonl (an object a line)
            or .parquet. Texts are in UTF-8.

    Raises:
        DataError: it cannot be read, is of another kind, or has a column that is no setting.
        MissingExtraError: it is a Parquet file, and pyarrow is not installed.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(f"{path} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    try:
        if ending == ".parquet":
            yield from _parquet(path)
            return
        with path.open("rb") as file:
            lines = _lines(file, path)
            kinds = {".txt": _texts, ".csv": _cells, ".jsonl": _objects}
            yield from kinds[ending](lines, path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


# --- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A line of a file: its number, from 1 on, and its text; or why it has none."""

    number: int
    text: str = ""
    fault: str | None = None


def _lines(file: BinaryIO, path: Path) -> Iterator[_Line]:
    number = 0
    while raw := file.readline(LONGEST + 1):
        number += 1
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DataError(f"{path} is in UTF-16: save it in UTF-8")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) > LONGEST:
            while not raw.endswith(b"\n") and (raw := file.readline(LONGEST)):
                pass
            yield _Line(number, fault=f"line {number} is longer than {LONGEST >> 20} MiB")
            continue
        try:
            yield _Line(number, raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            fault = f"line {number} is not in UTF-8: its byte {error.start + 1} is {raw[error.start]:#04x}"
            yield _Line(number, fault=fault)


def _texts(lines: Iterator[_Line], path: Path) -> Iterator[Found]:
    for line in lines:
        text = line.text.rstrip("\r\n")
        if line.fault is not None:
            yield Found(fault=line.fault)
        elif text.strip():
            yield Found({"prompt": text})


def _objects(lines: Iterator[_Line], path: Path) -> Iterator[Found]:
    known = set(COLUMNS)
    for line in lines:
        if line.fault is not None:
            yield Found(fault=line.fault)
            continue
        if not line.text.strip():
            continue
        try:
            value = json.loads(line.text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            why = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON: {str(error)[:100]}"
            yield Found(fault=f"line {line.number} {why}")
            continue
        if not isinstance(value, dict):
            yield Found(fault=f"line {line.number} is no JSON object, but of the type {type(value).__name__}")
            continue
        if not known.issuperset(value):
            check_columns(value, f"{path}, line {line.number},")
        yield Found({name: each for name, each in value.items() if each is not None})


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _cells(lines: Iterator[_Line], path: Path) -> Iterator[Found]:
    """The rows of a CSV. One of several lines, in quotes, has no more bytes than a line may have."""
    taken: list[_Line] = []  # the lines of the row that is being read

    def texts() -> Iterator[str]:
        size = 0
        for line in lines:
            if not taken and line.fault is None and not line.text.strip("\r\n"):
                continue
            taken.append(line)
            size = len(line.text) + (size if len(taken) > 1 else 0)
            if size > LONGEST:
                raise DataError(f"{path}: the row that begins in line {taken[0].number} has a quote that never ends")
            if line.fault is not None:
                if len(taken) > 1:
                    raise DataError(f"{path}: {line.fault}, in the middle of a row")
                yield "\n"
            else:
                yield line.text

    header: list[str] | None = None
    while True:
        rows = csv.reader(texts(), strict=True)  # a new one after an error, which may have left it in a quote
        try:
            for cells in rows:
                first, *more = taken
                taken.clear()
                if header is None:
                    header = _header(first, cells, path)
                elif first.fault is not None:
                    yield Found(fault=first.fault)
                elif len(cells) != len(header):
                    where = f"line {first.number}" if not more else f"lines {first.number} to {more[-1].number}"
                    yield Found(fault=f"{where}: it has {len(cells)} cells, and the first line {len(header)}")
                else:
                    yield Found({name: cell for name, cell in zip(header, cells, strict=True) if cell})
            if header is None:
                raise DataError(f"{path} is empty: its first line is to name the columns, such as id,prompt")
            return
        except csv.Error as error:
            first, *more = taken
            taken.clear()
            if more or header is None or "unexpected end" in str(error):
                raise DataError(
                    f"{path}: the row that begins in line {first.number} cannot be read: {error}"
                ) from error
            yield Found(fault=f"line {first.number} cannot be read: {error}")


def _header(line: _Line, cells: Sequence[str], path: Path) -> list[str]:
    if line.fault is not None:
        raise DataError(f"{path}: {line.fault}")
    names = [cell.strip() for cell in cells]
    if len(names) == 1 and names[0] not in COLUMNS and any(mark in names[0] for mark in ";\t|"):
        raise DataError(f"{path}: its first line has no commas, which are to separate the columns: {names[0]!r:.100}")
    check_columns(names, str(path))
    return names


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> Iterator[Found]:
    pyarrow = require("pyarrow", "data")
    parquet: Any = require("pyarrow.parquet", "data")
    try:
        with parquet.ParquetFile(path) as file:
            check_columns(file.schema_arrow.names, str(path))
            for column in file.schema_arrow:
                is_listed = column.name == "control_image" and pyarrow.types.is_list(column.type)
                whole = column.type.value_type if is_listed else column.type
                if column.name in ("image", "mask_image", "control_image") and pyarrow.types.is_nested(whole):
                    raise DataError(
                        f"{path} has pictures themselves in the column {column.name}: write them into files, and give "
                        "their paths, from the table's folder"
                    )
            for batch in file.iter_batches(batch_size=AT_A_TIME):
                for row in batch.to_pylist():
                    yield Found({name: each for name, cell in row.items() if (each := _tidy(cell)) is not None})
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error)[:200]}") from error


def _tidy(cell: Any) -> Any:
    """A cell as JSON has it. Whole numbers in a column with gaps are often written as floats, and gaps as NaN.

    >>> _tidy(25.0), _tidy(float("nan")), _tidy(0.5)
    (25, None, 0.5)
    """
    if isinstance(cell, float):
        return None if cell != cell else int(cell) if cell.is_integer() else cell
    if isinstance(cell, (str, int, list)) or cell is None:
        return cell
    return f"<{type(cell).__name__}>"


# --- columns ---------------------------------------------------------------------------------------------------------


def check_columns(names: Sequence[str] | Mapping[str, Any], whose: str) -> None:
    """Refuse columns that are no settings of a row, or there twice.

    Raises:
        DataError: names the column, and the nearest that there is.
    """
    seen = set()
    for name in names:
        if name in seen:
            raise DataError(f"{whose} has the column {name!r:.60} twice")
        seen.add(name)
        if name in COLUMNS or name in OTHER_NAMES:
            continue
        plain = name.strip().lower().replace("-", "_").replace(" ", "_")
        if (reason := NOT_OF_ROWS.get("from_image" if plain == "from" else plain)) is not None:
            raise DataError(f"{whose} has the column {name!r:.60}, which {reason}")
        near = _MEANT.get(plain) or (difflib.get_close_matches(plain, COLUMNS, n=1, cutoff=0.0) or ["prompt"])[0]
        raise DataError(
            f"{whose} has the column {name!r:.60}, which is no setting: did you mean {near}? There are "
            f"{', '.join(COLUMNS[:_SAID])} and others, which docs/scale.md lists"
        )
