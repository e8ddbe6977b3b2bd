"""Datasets that the `datasets` library reads: parquet files, saved datasets, datasets on the hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ddim.errors import ConfigError, DataError, require
from ddim.data.source import USUAL_IMAGES, listed, missing_column
from ddim.data.usable import Picture, PictureError
from ddim.images.reading import read_picture, upright_size

SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")


@dataclass(frozen=True)
class Table:
    """A dataset, and the folders in which files that it names may lie.

    Attributes:
        name: what errors call it.
        data: a `datasets.Dataset`.
        roots: the folders, without links. A file elsewhere that the dataset names is not read.
    """

    name: str
    data: Any
    roots: tuple[Path, ...]

    def check_column(self, column: str, usual: Sequence[str] = ()) -> None:
        """Check that there is a column.

        Args:
            column: its name.
            usual: other names that such a column often has, by which the error guesses what was meant.

        Raises:
            DataError: there is no such column.
        """
        columns = list(self.data.column_names)
        if column not in columns:
            raise missing_column(self.name, column, columns, usual)

    def values(self, column: str) -> list[Any]:
        """A column's values, one a row.

        Raises:
            DataError: the values cannot be read, for example because texts are not UTF-8.
        """
        try:
            return list(self.data.select_columns([column]).with_format(None)[:][column])
        except Exception as error:
            raise DataError(f"column {column!r} of {self.name} cannot be read: {_why(error)}") from error

    def pictures(self, column: str) -> TablePictures:
        """A column's images, which are decoded only when they are loaded.

        Raises:
            DataError: there is no such column, or it holds no images.
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
    """Loads the images in some rows of a table by their numbers; the `load` of a source.

    Attributes:
        name: what errors call the table.
        cells: a `datasets.Dataset` with the column alone, not decoded.
        column: the column of images.
        roots: as in `Table`.
        rows: the rows; image i is in row rows[i].
        least: the fewest pixels that both sides need to keep; see `read_picture`.
    """

    name: str
    cells: Any
    column: str
    roots: tuple[Path, ...]
    rows: Sequence[int]
    least: int | None = None

    def at_least(self, least: int) -> TablePictures:
        return replace(self, least=least)

    def find(self, index: int) -> Picture:
        """Where an image is: its bytes, if they are in the table, or the file that the table names.

        Relative paths begin at the first of the roots. Raises `PictureError` if there is no image, or none that may be
        read.
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
        return read_picture(*self._found(index), self.least)

    def size(self, index: int) -> tuple[int, int]:
        """An image's (width, height), upright, from what its file says of itself."""
        return upright_size(*self._found(index))

    def _found(self, index: int) -> tuple[Picture, str]:
        """An image, and what errors call it."""
        name = f"image {self.rows[index]} of {self.name}"
        try:
            return self.find(index), name
        except PictureError as reason:
            raise DataError(f"{name} cannot be used: it is {reason}") from reason
        except Exception as error:
            raise DataError(f"{name} cannot be read: {error}") from error


def open_table(
    name: str,
    config: str | None = None,
    split: str = "train",
    *,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> Table:
    """Open a dataset.

    Args:
        name: a .parquet file, a pattern for several (`data/*.parquet`), a folder of them, a folder that
            `Dataset.save_to_disk` wrote, or an id on the hub.
        config: the configuration of a dataset on the hub.
        split: the split. All files of a pattern are one split, whatever its name. In a folder of parquet files, a word
            in a file's path says its split, as in `test-00000.parquet`; without such a word it is "train".
        cache_dir, token: for a dataset on the hub: where what is downloaded is kept, and what gives access to it.

    Raises:
        ConfigError: there is a `config` although the data is not on the hub.
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

            hub = {key: value for key, value in (("cache_dir", cache_dir), ("token", token)) if value is not None}
            data = datasets.load_dataset(name, config, split=split, **hub)
            roots = (Path(cache_dir or datasets.config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE))
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds: of files, of the network, of formats
        raise DataError(f"{name} cannot be read as a dataset: {_why(error)}") from error
    if len(data) == 0:
        raise DataError(f"{name} is empty")
    return Table(name, data, tuple(Path(os.path.realpath(root)) for root in roots))


def _why(error: Exception) -> str:
    """What an error of the library says, and its cause, which the library itself shows in the traceback only."""
    causes = [str(cause) for cause in (error, error.__cause__) if cause is not None]
    return ": ".join(cause[:300] for cause in dict.fromkeys(causes))


def _folder(datasets: Any, folder: Path, split: str) -> Any:
    """The dataset in a folder of `Dataset.save_to_disk` or of parquet files."""
    if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.Dataset):  # a single dataset was saved, which may be one split of several
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
    """The split of a file, by a word in its path: the one asked for, else one of `SPLITS`, else "train"."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((split for split in (asked.lower(), *SPLITS) if split in words), "train")


def _parquet(datasets: Any, files: Sequence[str | Path], split: str) -> Any:
    """The dataset in parquet files, all of one split."""
    paths = [glob.escape(str(file)) for file in files]
    return datasets.load_dataset("parquet", data_files={split.partition("[")[0]: paths}, split=split)
