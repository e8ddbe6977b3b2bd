"""Sources of images with texts, for text-to-image models."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

from ddim.errors import ConfigError, DataError
from ddim.data.source import USUAL_CAPTIONS, Omissions, Source, listed
from ddim.data.captions import texts_of
from ddim.data.folder import NO_CAPTION, read_folder
from ddim.data.usable import Picture, PictureError, PictureFiles, usable
from ddim.data.tables import Table, open_table


def captioned_source(
    *,
    train_data_dir: str | os.PathLike[str] | None = None,
    dataset_name: str | os.PathLike[str] | None = None,
    dataset_config_name: str | None = None,
    image_column: str = "image",
    caption_column: str = "text",
    max_train_samples: int | None = None,
    split: str = "train",
    minimum: int = 2,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> Source:
    """Images and the texts that describe them, from a folder or from the `datasets` library.

    Everything is checked here, before training begins. A picture that cannot be used is left out together with its
    captions, and one warning counts those left out by the reason.

    Args:
        train_data_dir: a folder of images with captions. These are either in the columns `file_name` and
            `caption_column` of a `metadata.jsonl`, `.csv` or `.parquet`, in the folder or in several folders below it;
            or those of `a.png` are the lines of `a.txt`. All images in the folder and below are used as one split.
        dataset_name: a .parquet file, a pattern for several (`data/*.parquet`), a folder of them, a folder that
            `Dataset.save_to_disk` wrote, or an id on the hub.
        dataset_config_name: which configuration of the dataset on the hub.
        image_column: the dataset's column of images.
        caption_column: the column of captions: a text for each image, or a list of texts, any of which fits it.
        max_train_samples: use only so many images, the first that can be used; None uses all.
        split: the dataset's split.
        minimum: images whose shorter side has fewer pixels are left out; so are images of more than 89 megapixels.
        cache_dir, token: for a dataset on the hub; see `tables.open_table`.

    Returns:
        A source whose `load(i)` gives the picture that `captions[i]` describes, as it is in the file.

    Raises:
        ConfigError: neither or both of `train_data_dir` and `dataset_name` are given, an option does not apply to the
            one that is given, or a number is below 1.
        DataError: there is no such data or column, a metadata file is broken, or no image can be used.
        MissingExtraError: the library that reads the data is not installed.

    Warns:
        UserWarning: some images are left out, or listed more than once.
    """
    if (train_data_dir is None) == (dataset_name is None):
        raise ConfigError("give one of train_data_dir and dataset_name")
    for option, value in (("max_train_samples", max_train_samples), ("minimum", minimum)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} must be 1 or more, not {value}")
    if train_data_dir is not None:
        if split != "train" or dataset_config_name is not None:
            raise ConfigError("split and dataset_config_name are for dataset_name; train_data_dir is used whole")
        source, message = _from_folder(Path(train_data_dir), image_column, caption_column, minimum, max_train_samples)
    else:
        table = open_table(os.fspath(dataset_name or ""), dataset_config_name, split, cache_dir=cache_dir, token=token)
        source, message = _from_table(table, image_column, caption_column, minimum, max_train_samples)
    if message:
        warnings.warn(message, stacklevel=2)
    return source


def _from_folder(
    folder: Path, image_column: str, caption_column: str, minimum: int, most: int | None
) -> tuple[Source, str]:
    """The source of a folder, and what to warn of."""
    contents = read_folder(folder, image_column, caption_column)
    home = Path(os.path.abspath(folder))  # absolute, as the process may change its working directory before it reads
    entries = list(contents.entries.values())

    def find(index: int) -> Picture:
        entry = entries[index]
        if entry.problem or not entry.captions:
            raise PictureError(entry.problem or NO_CAPTION)
        return home / entry.name

    omissions = Omissions()
    kept = usable(len(entries), find, lambda index: entries[index].name, omissions, minimum=minimum, most=most)
    if not kept:
        raise DataError(
            f"{folder} has no image that can be used: {str(omissions) or 'it has no images'}. Captions are read from "
            "metadata.jsonl, metadata.csv or metadata.parquet, or from a.txt beside a.png"
        )
    chosen = [entries[index] for index in kept]
    return (
        Source(
            len(chosen),
            PictureFiles([home / entry.name for entry in chosen]),
            captions=[entry.captions for entry in chosen],
        ),
        _message(
            str(folder), omissions, len(kept), [entry.name for entry in chosen if entry.name in contents.repeated]
        ),
    )


def _from_table(
    table: Table, image_column: str, caption_column: str, minimum: int, most: int | None
) -> tuple[Source, str]:
    """The source of a dataset, and what to warn of."""
    pictures = table.pictures(image_column)
    table.check_column(caption_column, USUAL_CAPTIONS)
    captions = [texts_of(value) for value in table.values(caption_column)]

    def find(index: int) -> Picture:
        if not captions[index]:
            raise PictureError(NO_CAPTION)
        return pictures.find(index)

    omissions = Omissions()
    kept = usable(len(captions), find, "row {}".format, omissions, minimum=minimum, most=most)
    if not kept:
        raise DataError(f"{table.name} has no image that can be used: {omissions}")
    return (
        Source(len(kept), replace(pictures, rows=kept), captions=[captions[index] for index in kept]),
        _message(table.name, omissions, len(kept), []),
    )


def _message(where: str, omissions: Omissions, kept: int, repeated: list[str]) -> str:
    """What to warn of: how many images are left out and why, and which are listed more than once; "" for nothing."""
    parts = []
    if omissions.count:
        parts.append(f"left out {omissions.count} of {omissions.count + kept} images: {omissions}")
    if repeated:
        parts.append(
            f"{len(repeated)} listed more than once, used as one image each with all its captions ({listed(repeated)})"
        )
    return f"{where}: {'; '.join(parts)}" if parts else ""
