"""Captions in files: metadata.jsonl, metadata.csv and metadata.parquet, or a text file beside each image.

A broken file is a `DataError` that names the file and the line. Nothing is guessed from a broken line, because the guess
might give an image another one's caption.
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
from ddim.data.source import USUAL_CAPTIONS, USUAL_CONDITIONS, missing_column

Rows = list[tuple[str, dict[str, Any]]]  # for each row: where it is, such as "line 3", and {column: value}


@dataclass(frozen=True)
class Caption:
    """One row of a metadata file.

    Attributes:
        where: the file and the line, such as "metadata.csv, line 3".
        file_name: the value in the file-name column. It should be the image's path, relative to the metadata file's
            folder, but is whatever the file holds and may be no text.
        texts: the captions that can be used; empty if there are none.
        condition: the value in the column of conditions, such as a file's name; None without such a column.
    """

    where: str
    file_name: object
    texts: tuple[str, ...]
    condition: object = None


def texts_of(value: object) -> tuple[str, ...]:
    """The captions in one cell of a table, which is a text or a list of texts, any of which fits the image.

    They are normalised to Unicode's composed form (NFC) and stripped of white space at both ends. Values that are no
    text, show nothing or cannot be encoded in UTF-8 are left out, and repeated texts are kept once.
    """
    values = value if isinstance(value, list | tuple) else [value]
    texts = (unicodedata.normalize("NFC", text).strip() for text in values if isinstance(text, str))
    return tuple(dict.fromkeys(text for text in texts if _says_something(text)))


def read_metadata(
    path: Path, name: str, image_column: str, caption_column: str, conditioning_image_column: str | None = None
) -> list[Caption]:
    """The rows of a metadata file, in order.

    Args:
        path: the file, which ends in .jsonl, .csv or .parquet.
        name: what errors call the file.
        image_column: says the column of the images' file names: as in the `datasets` library, that is `file_name` or
            else `<image_column>_file_name`.
        caption_column: the column of the captions.
        conditioning_image_column: the column of the file names of what the images are conditioned on, which may be
            called `<conditioning_image_column>_file_name` as well; None if there is none.

    Raises:
        DataError: the file is not UTF-8, has a broken line, or lacks a column.
        MissingExtraError: it is a parquet file, and pyarrow is not installed.
    """
    prefixed = f"{image_column}_file_name"
    if path.suffix == ".parquet":
        wanted = {"file_name", prefixed, caption_column, *_names_of(conditioning_image_column)}
        columns, rows = _parquet(path, name, wanted)
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
    condition_column = next((column for column in _names_of(conditioning_image_column) if column in columns), "")
    if conditioning_image_column is not None and not condition_column:
        raise missing_column(name, conditioning_image_column, columns, USUAL_CONDITIONS)
    return [
        Caption(
            f"{name}, {where}",
            row.get(file_column),
            texts_of(row.get(caption_column)),
            row.get(condition_column) if condition_column else None,
        )
        for where, row in rows
    ]


def _names_of(conditioning_image_column: str | None) -> tuple[str, ...]:
    """What a column of the file names of conditions may be called."""
    return () if conditioning_image_column is None else (
        conditioning_image_column,
        f"{conditioning_image_column}_file_name",
    )


def read_lines(path: Path, name: str) -> tuple[str, ...]:
    """The captions in a text file beside an image: one on each line.

    Raises:
        DataError: the file is not UTF-8, or cannot be read.
    """
    return texts_of(_text(path, name).split("\n"))


def _says_something(text: str) -> bool:
    """Whether a text can be encoded and has a character that is neither white space nor a control character."""
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair, which is no character
        return False
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)


def _text(path: Path, name: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{name}, line {line}: this is not UTF-8; save the file in that encoding") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error


def _jsonl(path: Path, name: str) -> tuple[Iterable[str], Rows]:
    """The columns and the rows of a file with a JSON object on each line."""
    rows: Rows = []
    # Not by splitlines, which also splits at characters such as U+2028 that may be in a caption.
    for number, line in enumerate(_text(path, name).split("\n"), 1):
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
    """The columns and the rows of a CSV file, whose first row names the columns."""
    reader = csv.reader(io.StringIO(_text(path, name), newline=""), strict=True)
    rows: Rows = []
    columns: list[str] = []
    first = 1  # the line on which the present row begins: a quoted text may go over several lines
    try:
        for fields in reader:
            where, first = f"line {first}", reader.line_num + 1
            if not fields:
                continue
            if not columns:
                columns = fields
                if len(set(columns)) < len(columns):
                    raise DataError(f"{name}, {where}: two columns have the same name; rename one of them")
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
    """All columns' names, and the rows of those columns that are wanted."""
    parquet = require("pyarrow.parquet", "train")
    try:
        columns = parquet.read_schema(str(path)).names
        table = parquet.read_table(str(path), columns=[column for column in columns if column in wanted])
        return columns, [(f"row {number}", row) for number, row in enumerate(table.to_pylist())]
    except Exception as error:  # pyarrow has errors of its own, and raises OSError and UnicodeDecodeError too
        raise DataError(f"{name} cannot be read as parquet: {str(error)[:300]}") from error
