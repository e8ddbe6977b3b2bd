"""Sources of images with or without classes: scikit-learn's digits, folders, datasets of the `datasets` library."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddim.errors import ConfigError, DataError, require
from ddim.data.source import Omissions, Source
from ddim.data.usable import IMAGE_SUFFIXES, PictureFiles, usable
from ddim.data.tables import open_table


def open_source(
    data: str,
    class_conditional: bool,
    image_column: str = "image",
    label_column: str = "label",
    config: str | None = None,
    **hub: Any,
) -> Source:
    """The source that a name stands for.

    Args:
        data: "digits", a folder of images, a .parquet file or the id of a dataset on the hub.
        class_conditional: whether the images need classes; see `image_folder` and `hf_dataset`.
        image_column, label_column: a dataset's columns of images and of classes.
        config, hub: for a dataset on the hub; see `tables.open_table`.

    Raises:
        ConfigError: there is a `config`, but the data is not on the hub.
        DataError: there is no such data, no readable image in it, or no classes where some are asked for.
        MissingExtraError: the library that reads the data is not installed.
    """
    local = data == "digits" or Path(data).is_dir()
    if local and config is not None:
        raise ConfigError(f"dataset_config_name is for datasets on the hub; {data} is on this machine")
    if local:
        return digits("train") if data == "digits" else image_folder(data, class_conditional)
    return hf_dataset(data, image_column, label_column if class_conditional else None, config, **hub)


def digits(split: str = "train") -> Source:
    """Scikit-learn's 1,797 real handwritten digits, of 8x8 pixels in 17 shades of grey, with their classes 0 to 9.

    A fifth of them, chosen by a fixed shuffle, is held out for evaluation.

    Args:
        split: "train" (1,437 digits), "held-out" (360) or "all".

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    bunch = require("sklearn.datasets", "train").load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    held_out = np.sort(order[: len(order) // 5 + 1])
    chosen = {
        "train": np.setdiff1d(order, held_out),
        "held-out": held_out,
        "all": np.sort(order),
    }[split]
    images = torch.from_numpy(bunch.images[chosen]).float()[:, None] / 8 - 1  # (n 1 8 8) in [-1, 1], from 0…16
    return Source(
        count=len(chosen),
        load=images.__getitem__,
        channels=1,
        labels=bunch.target[chosen].tolist(),
        class_names=tuple("0123456789"),
    )


def image_folder(folder: str | os.PathLike[str], class_conditional: bool = False) -> Source:
    """The images in a folder and below it.

    Args:
        folder: the folder.
        class_conditional: give images the class that their sub-folder of `folder` is called by.

    Raises:
        DataError: no image can be read, or an image lies in no sub-folder although classes are asked for.

    Warns:
        UserWarning: some files are left out, as they are no readable images; it counts and names them.
    """
    root = Path(folder)
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    omissions = Omissions()
    kept = usable(len(paths), paths.__getitem__, lambda i: str(paths[i].relative_to(root)), omissions, minimum=1)
    if omissions.count:
        warnings.warn(f"{root}: left out {omissions.count} of {len(paths)} images: {omissions}", stacklevel=2)
    if not kept:
        raise DataError(f"{root} has no readable images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    paths = [paths[index] for index in kept]
    labels = names = None
    if class_conditional:
        classes = [path.relative_to(root).parts[0] for path in paths]
        if any(len(path.relative_to(root).parts) < 2 for path in paths):
            raise DataError(
                f"{root} has images outside of sub-folders: for classes, put each into a folder of its name"
            )
        names = tuple(sorted(set(classes)))
        labels = [names.index(name) for name in classes]
    return Source(len(paths), PictureFiles(paths), labels=labels, class_names=names or ())


def hf_dataset(
    name: str, image_column: str, label_column: str | None, config: str | None = None, **hub: Any
) -> Source:
    """The images of a dataset that the `datasets` library reads.

    Args:
        name: a .parquet file, a folder that `Dataset.save_to_disk` wrote, or an id on the hub; of several splits,
            "train" is used.
        image_column: the column of images.
        label_column: the column of classes, by number or by name; None leaves the classes out.
        config, hub: for a dataset on the hub; see `tables.open_table`.

    Raises:
        DataError: there is no such data or column, or it cannot be read.
        MissingExtraError: the `datasets` library is not installed.
    """
    table = open_table(name, config, **hub)
    pictures = table.pictures(image_column)
    labels, names = None, ()
    if label_column is not None:
        table.check_column(label_column)
        values = table.values(label_column)
        feature = table.data.features[label_column]
        names = tuple(getattr(feature, "names", None) or (str(value) for value in sorted(set(values))))
        known = {value: index for index, value in enumerate(sorted(set(values)))}
        labels = values if hasattr(feature, "names") else [known[value] for value in values]
    return Source(len(pictures.rows), pictures, labels=labels, class_names=names)
