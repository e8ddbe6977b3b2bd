"""Captions in files: metadata.jsonl, .csv and .parquet, and a text beside each image.

A file that is not what it should be is one `DataError` with the file and the line: what could be guessed from a broken
line might belong to another image.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddim.errors import DataError, require
from ddim.data.source import USUAL_CAPTIONS, missing_column

Rows = list[tuple[str, dict[str, Any]]]  # where each is, "line 3", and its columns


@dataclass(frozen=True)
class Caption:
    """One row of a metadata file.

    Attributes:
        where: "metadata.csv, line 3".
        file_name: of the image, relative to the metadata file's folder; whatever is in the file, perhaps no text.
        texts: one or more captions; none if there is no usable one.
    """

    where: str
    file_name: object
    texts: tuple[str, ...]


def texts_of(value: object) -> tuple[str, ...]:
    """The captions in a cell: a string, or a list of alternatives.

    They are normalised to NFC and stripped. What is no text, has nothing visible in it or cannot be encoded in UTF-8
    is left out; what is there twice is there once.
    """
    values = value if isinstance(value, list | tuple) else [value]
    texts = (unicodedata.normalize("NFC", text).strip() for text in values if isinstance(text, str))
    return tuple(dict.fromkeys(text for text in texts if _says_something(text)))


def read_metadata(path: Path, name: str, image_column: str, caption_column: str) -> list[Caption]:
    """The rows of a metadata file, in order.

    Args:
        path: the file; its suffix says what it is.
        name: what to call it.
        image_column: as in the `datasets` library, the file's name is in `file_name` or in `<image_column>_file_name`.
        caption_column: where the captions are.

    Raises:
        DataError: it is not UTF-8, has a broken line, or lacks a column.
        MissingExtraError: it is parquet, and pyarrow is not installed.
    """
    prefixed = f"{image_column}_file_name"
    if path.suffix == ".parquet":
        columns, rows = _parquet(path, name, {"file_name", prefixed, caption_column})
    else:
        columns, rows = (_jsonl if path.suffix == ".jsonl" else _csv)(path, name)
    if not rows:
        return []
    file_column = prefixed if prefixed in columns and "file_name" not in columns else "file_name"
    if file_column not in columns:
        raise missing_column(name, file_column, columns, ("file", "filename", "path", "image"))
    if caption_column not in columns:
        others = [column for column in columns if column != file_column]
        raise missing_column(name, caption_column, columns, (*USUAL_CAPTIONS, *(others if len(others) == 1 else ())))
    return [Caption(f"{name}, {where}", row.get(file_column), texts_of(row.get(caption_column))) for where, row in rows]


def read_lines(path: Path, name: str) -> tuple[str, ...]:
    """The captions of a text beside an image: each line is one.

    Raises:
        DataError: it is not UTF-8.
    """
    return texts_of(_text(path, name).split("\n"))


def _says_something(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        return False
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)


def _text(path: Path, name: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{name}, line {line}: this is not UTF-8; save the file in that encoding") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error


def _jsonl(path: Path, name: str) -> tuple[Iterable[str], Rows]:
    rows: Rows = []
    for number, line in enumerate(_text(path, name).split("\n"), 1):  # not splitlines: U+2028 may be in a caption
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number}: this is not valid JSON: {str(error)[:200]}") from error
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number}: a JSON {type(row).__name__} where an object is needed")
        rows.append((f"line {number}", row))
    return dict.fromkeys(column for _, row in rows for column in row), rows


def _csv(path: Path, name: str) -> tuple[Iterable[str], Rows]:
    reader = csv.reader(io.StringIO(_text(path, name), newline=""), strict=True)
    rows: Rows = []
    columns: list[str] = []
    first = 1  # the line where a row starts: quoted texts may go over several
    try:
        for fields in reader:
            where, first = f"line {first}", reader.line_num + 1
            if not fields:
                continue
            if not columns:
                columns = fields
                if len(set(columns)) < len(columns):
                    raise DataError(f"{name}, {where}: two columns have the same name")
                continue
            if len(fields) > len(columns):
                raise DataError(
                    f"{name}, {where}: {len(fields)} fields where there are {len(columns)} columns; "
                    "a text with a comma in it needs quotes around it"
                )
            rows.append((where, dict(zip(columns, fields, strict=False))))
    except csv.Error as error:
        raise DataError(f"{name}, line {first}: this is not valid CSV: {error}") from error
    return columns, rows


def _parquet(path: Path, name: str, wanted: set[str]) -> tuple[Iterable[str], Rows]:
    parquet = require("pyarrow.parquet", "train")
    try:
        columns = parquet.read_schema(str(path)).names
        table = parquet.read_table(str(path), columns=[column for column in columns if column in wanted])
        return columns, [(f"row {number}", row) for number, row in enumerate(table.to_pylist())]
    except Exception as error:  # pyarrow's own, OSError, UnicodeDecodeError
        raise DataError(f"{name} cannot be read as parquet: {str(error)[:300]}") from error
