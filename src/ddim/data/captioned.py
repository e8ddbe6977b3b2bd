"""Sources of images with texts, for text-to-image models."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

from ddim.errors import ConfigError, DataError
from ddim.data.source import USUAL_CAPTIONS, USUAL_CONDITIONS, Omissions, Source, listed
from ddim.data.captions import texts_of
from ddim.data.folder import NO_CAPTION, Listing, read_folder
from ddim.data.usable import (
    IMAGE_SUFFIXES,
    Picture,
    PictureError,
    PictureFiles,
    check_condition,
    usable,
)
from ddim.data.tables import Table, open_table


def captioned_source(
    *,
    train_data_dir: str | os.PathLike[str] | None = None,
    dataset_name: str | os.PathLike[str] | None = None,
    dataset_config_name: str | None = None,
    image_column: str = "image",
    caption_column: str = "text",
    conditioning_image_column: str | None = None,
    conditioning_data_dir: str | os.PathLike[str] | None = None,
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
        conditioning_image_column: the column of the pictures that the images are conditioned on, if they are; of a folder,
            the column of their file names. A picture without a condition is left out.
        conditioning_data_dir: instead, and for `train_data_dir` only: a folder that has these pictures at the same
            paths as `train_data_dir` the images, of whatever format.
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
    if conditioning_data_dir is not None and train_data_dir is None:
        raise ConfigError("conditioning_data_dir is for train_data_dir; of a dataset, give conditioning_image_column")
    if conditioning_data_dir is not None and conditioning_image_column is not None:
        raise ConfigError("give conditioning_data_dir or conditioning_image_column, but not both")
    for option, value in (("max_train_samples", max_train_samples), ("minimum", minimum)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} must be 1 or more, not {value}")
    if train_data_dir is not None:
        if split != "train" or dataset_config_name is not None:
            raise ConfigError("split and dataset_config_name are for dataset_name; train_data_dir is used whole")
        columns = (image_column, caption_column, conditioning_image_column)
        beside = None if conditioning_data_dir is None else Path(conditioning_data_dir)
        source, message = _from_folder(Path(train_data_dir), columns, beside, minimum, max_train_samples)
    else:
        table = open_table(os.fspath(dataset_name or ""), dataset_config_name, split, cache_dir=cache_dir, token=token)
        columns = (image_column, caption_column, conditioning_image_column)
        source, message = _from_table(table, columns, minimum, max_train_samples)
    if message:
        warnings.warn(message, stacklevel=2)
    return source


Columns = tuple[str, str, str | None]  # of the images, of the captions and, if there are any, of the conditions


def _of_same_names(folder: Path, names: list[str]) -> dict[str, Path]:
    """For each image's name that a folder has a picture of: that picture, whatever its format.

    Raises:
        DataError: there is no such folder, or it has two pictures of one name.
    """
    listing = Listing(folder)
    found: dict[str, str] = {}
    for name in listing.visible:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and found.setdefault(stem, name) != name:
            raise DataError(f"{folder} has both {found[stem]} and {name}: keep one of them for each picture")
    stems = {name: os.path.splitext(name)[0] for name in names}
    return {name: listing.inside(found[stem]) for name, stem in stems.items() if stem in found}


def _from_folder(
    folder: Path, columns: Columns, beside: Path | None, minimum: int, most: int | None
) -> tuple[Source, str]:
    """The source of a folder, and what to warn of; `beside` is the folder of conditions, if they are in one."""
    contents = read_folder(folder, *columns)
    home = Path(os.path.abspath(folder))  # absolute, as the process may change its working directory before it reads
    entries = list(contents.entries.values())
    conditions: dict[str, Path] = {}  # an image's name -> its condition
    if beside is not None:
        conditions = _of_same_names(Path(os.path.abspath(beside)), [entry.name for entry in entries])
    elif columns[2] is not None:
        conditions = {entry.name: home / entry.condition for entry in entries if entry.condition is not None}
    has_conditions = beside is not None or columns[2] is not None

    def find(index: int) -> Picture:
        entry = entries[index]
        if entry.problem or not entry.captions:
            raise PictureError(entry.problem or NO_CAPTION)
        if has_conditions:
            if entry.name not in conditions:
                raise PictureError("without a condition")
            check_condition(conditions[entry.name])
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
            conditions=PictureFiles([conditions[entry.name] for entry in chosen]) if has_conditions else None,
        ),
        _message(
            str(folder), omissions, len(kept), [entry.name for entry in chosen if entry.name in contents.repeated]
        ),
    )


def _from_table(
    table: Table, columns: Columns, minimum: int, most: int | None
) -> tuple[Source, str]:
    """The source of a dataset, and what to warn of."""
    image_column, caption_column, conditioning_image_column = columns
    pictures = table.pictures(image_column)
    table.check_column(caption_column, USUAL_CAPTIONS)
    captions = [texts_of(value) for value in table.values(caption_column)]
    conditions = None
    if conditioning_image_column is not None:
        table.check_column(conditioning_image_column, USUAL_CONDITIONS)
        conditions = table.pictures(conditioning_image_column)

    def find(index: int) -> Picture:
        if not captions[index]:
            raise PictureError(NO_CAPTION)
        if conditions is not None:
            try:
                condition = conditions.find(index)
            except PictureError as reason:
                raise PictureError(f"with a condition {reason}") from reason
            check_condition(condition)
        return pictures.find(index)

    omissions = Omissions()
    kept = usable(len(captions), find, "row {}".format, omissions, minimum=minimum, most=most)
    if not kept:
        raise DataError(f"{table.name} has no image that can be used: {omissions}")
    return (
        Source(
            len(kept),
            replace(pictures, rows=kept),
            captions=[captions[index] for index in kept],
            conditions=None if conditions is None else replace(conditions, rows=kept),
        ),
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
