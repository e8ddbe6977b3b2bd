"""What the `datasets` library reads: parquet files, saved datasets, datasets on the hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ddim.errors import ConfigError, DataError, require
from ddim.data.source import USUAL_IMAGES, listed, missing_column
from ddim.data.usable import Picture, PictureError, read_picture

SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")


@dataclass(frozen=True)
class Table:
    """A dataset, and the folders in which files that it names may lie."""

    name: str
    data: Any  # a `datasets.Dataset`
    roots: tuple[Path, ...]

    def check_column(self, column: str, usual: Sequence[str] = ()) -> None:
        """Raise a DataError if there is no such column; it guesses which one is meant, the usual names first."""
        columns = list(self.data.column_names)
        if column not in columns:
            raise missing_column(self.name, column, columns, usual)

    def values(self, column: str) -> list[Any]:
        """A column's values, one a row.

        Raises:
            DataError: they cannot be read, for example texts that are not UTF-8.
        """
        try:
            return list(self.data.select_columns([column]).with_format(None)[:][column])
        except Exception as error:
            raise DataError(f"column {column!r} of {self.name} cannot be read: {_why(error)}") from error

    def pictures(self, column: str) -> TablePictures:
        """A column's images, not yet decoded.

        Raises:
            DataError: there is no such column (guesses which is meant), or it holds no images.
        """
        datasets = require("datasets", "train")
        typed = [name for name, feature in self.data.features.items() if isinstance(feature, datasets.Image)]
        self.check_column(column, (*typed, *USUAL_IMAGES))
        try:
            cells = self.data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        except Exception as error:
            raise DataError(f"column {column!r} of {self.name} holds no images: {_why(error)}") from error
        return TablePictures(self.name, cells.with_format(None), column, self.roots, range(len(cells)))


@dataclass(frozen=True)
class TablePictures:
    """A source's `load` for some rows of a table."""

    name: str
    cells: Any
    column: str
    roots: tuple[Path, ...]
    rows: Sequence[int]

    def find(self, index: int) -> Picture:
        """Where the image of a row is: in the table, or in a file that the table names.

        A relative path starts at the first of the roots. Raises `PictureError` if there is none.
        """
        cell = self.cells[self.rows[index]][self.column] or {}
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        path = cell.get("path")
        if not path:
            raise PictureError("without an image")
        if "://" in path:
            raise PictureError("with only the address of an image")
        file = Path(os.path.realpath(self.roots[0] / path)) if "\0" not in path else self.roots[0]
        if not any(file.is_relative_to(root) for root in self.roots):
            raise PictureError("outside of the data's folder")
        if not file.is_file():
            raise PictureError("whose file is missing")
        return file

    def __call__(self, index: int) -> Image.Image:
        name = f"image {self.rows[index]} of {self.name}"
        try:
            picture = self.find(index)
        except PictureError as reason:
            raise DataError(f"{name} cannot be used: it is {reason}") from reason
        except Exception as error:
            raise DataError(f"{name} cannot be read: {error}") from error
        return read_picture(picture, name)


def open_table(name: str, config: str | None = None, split: str = "train") -> Table:
    """Parquet files (one, a pattern with `*`, or a folder of them), a folder of `Dataset.save_to_disk`, or a hub id.

    All files of a pattern are one split, whatever it is called. A folder's are told apart by a word in their paths, as
    in `test-00000.parquet`; a file without one is of the split "train".

    Raises:
        ConfigError: a `config` for what is not on the hub.
        DataError: there is no such data or split, or it has no rows.
        MissingExtraError: the `datasets` library is not installed.
    """
    datasets = require("datasets", "train")
    files = [name] if os.path.isfile(name) else sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
    folder = Path(name).is_dir()
    if config is not None and (files or folder):
        raise ConfigError(f"dataset_config_name is for datasets on the hub; {name} is on this machine")
    roots: tuple[Path, ...]
    try:
        if folder:
            data, roots = _folder(datasets, Path(name), split), (Path(name),)
        elif files:
            data = _parquet(datasets, files, split)
            roots = (Path(os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])),)
        elif name.endswith(".parquet") or glob.has_magic(name):
            raise DataError(f"there is no file {name}")
        else:
            from huggingface_hub import constants

            data = datasets.load_dataset(name, config, split=split)
            roots = (Path(datasets.config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE))
    except DataError:
        raise
    except Exception as error:  # the library has many: files, network, formats
        raise DataError(f"{name} cannot be read as a dataset: {_why(error)}") from error
    if len(data) == 0:
        raise DataError(f"{name} is empty")
    return Table(name, data, tuple(Path(os.path.realpath(root)) for root in roots))


def _why(error: Exception) -> str:
    """What the library says, and the reason behind it, which it leaves to the traceback."""
    causes = [str(cause) for cause in (error, error.__cause__) if cause is not None]
    return ": ".join(cause[:300] for cause in dict.fromkeys(causes))


def _folder(datasets: Any, folder: Path, split: str) -> Any:
    if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.Dataset):  # saved without a split or after its choice
            saved = {"train": saved, str(saved.split or "train"): saved}
        if split not in saved:
            raise DataError(f"{folder} has no split {split!r}; it has {', '.join(saved)}")
        return saved[split]
    files = [file for file in sorted(folder.rglob("*.parquet")) if file.is_file()]
    if not files:
        raise DataError(
            f"{folder} has no .parquet file, and Dataset.save_to_disk did not write it; "
            "a folder of image files is given as train_data_dir"
        )
    names = [file.relative_to(folder).as_posix() for file in files]
    base = split.partition("[")[0]
    chosen = [file for file, name in zip(files, names, strict=True) if _split_of(name, base) == base.lower()]
    if not chosen:
        raise DataError(f"{folder} has no file of a split {base!r}; it has {listed(names)}")
    return _parquet(datasets, chosen, split)


def _split_of(name: str, asked: str) -> str:
    """`asked`, if it is a word of a file's path, as in `data/test-00000.parquet`; else a usual one; else train."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((split for split in (asked.lower(), *SPLITS) if split in words), "train")


def _parquet(datasets: Any, files: Sequence[str | Path], split: str) -> Any:
    paths = [glob.escape(str(file)) for file in files]
    return datasets.load_dataset("parquet", data_files={split.partition("[")[0]: paths}, split=split)
