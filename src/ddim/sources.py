"""Where training images come from: lists of images that can be loaded by number, with classes or texts.

digits           scikit-learn's, which come with the library
image_folder     the images below a folder, and their classes
hf_dataset       whatever the `datasets` library reads
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddim.errors import DataError, require

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Source:
    """Images that can be loaded by number.

    Attributes:
        count: how many there are.
        load: number -> PIL image, or a tensor (c h w) in [-1, 1] that needs no more work.
        channels: 1 or 3.
        labels: the class of each image, or None.
        class_names: their names, if there are labels.
        captions: one or more texts for each image, any of which fits it, or None.
    """

    count: int
    load: Callable[[int], Image.Image | Tensor]
    channels: int = 3
    labels: Sequence[int] | None = None
    class_names: tuple[str, ...] = ()
    captions: Sequence[tuple[str, ...]] | None = None


def open_source(data: str, class_conditional: bool, image_column: str = "image", label_column: str = "label") -> Source:
    """`digits`, a folder of images, a .parquet file or the id of a dataset on the hub.

    Raises:
        DataError: there is no such data, no readable image in it, or no classes where some are asked for.
        MissingExtraError: the library that reads it is not installed.
    """
    if data == "digits":
        return digits("train")
    if Path(data).is_dir():
        return image_folder(data, class_conditional)
    return hf_dataset(data, image_column, label_column if class_conditional else None)


def digits(split: str = "train") -> Source:
    """Scikit-learn's 1,797 real handwritten digits, 8x8, 17 grey levels; every fifth, by a fixed shuffle, held out.

    Args:
        split: "train" (1,437), "held-out" (360) or "all".
    """
    bunch = require("sklearn.datasets", "train").load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    held_out = np.sort(order[: len(order) // 5 + 1])
    chosen = {
        "train": np.setdiff1d(order, held_out),
        "held-out": held_out,
        "all": np.sort(order),
    }[split]
    images = torch.from_numpy(bunch.images[chosen]).float()[:, None] / 8 - 1  # (n 1 8 8), 0…16 to -1…1
    return Source(
        count=len(chosen),
        load=images.__getitem__,
        channels=1,
        labels=bunch.target[chosen].tolist(),
        class_names=tuple("0123456789"),
    )


def image_folder(folder: str | os.PathLike[str], class_conditional: bool = False) -> Source:
    """The images below a folder. With classes, each is named by the sub-folder that it is in.

    Files that are no readable images are left out, with one warning that counts and names them.
    """
    root = Path(folder)
    paths, broken = [], []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()):
        try:
            with Image.open(path) as image:
                image.verify()
            paths.append(path)
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken.append(f"{path} ({error})")
    if broken:
        warnings.warn(f"left out {len(broken)} unreadable images: {'; '.join(broken[:5])}", stacklevel=2)
    if not paths:
        raise DataError(f"{root} has no readable images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    labels = names = None
    if class_conditional:
        classes = [path.relative_to(root).parts[0] for path in paths]
        if any(len(path.relative_to(root).parts) < 2 for path in paths):
            raise DataError(
                f"{root} has images outside of sub-folders: for classes, put each into a folder of its name"
            )
        names = tuple(sorted(set(classes)))
        labels = [names.index(name) for name in classes]

    def load(index: int) -> Image.Image:
        try:
            with Image.open(paths[index]) as image:
                image.load()
                return image
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{paths[index]} cannot be read: {error}") from error

    return Source(len(paths), load, labels=labels, class_names=names or ())


def hf_dataset(name: str, image_column: str, label_column: str | None) -> Source:
    """A dataset of the `datasets` library: a .parquet file, a saved dataset, or an id on the hub (its train split)."""
    datasets = require("datasets", "train")
    try:
        if name.endswith(".parquet"):
            data = datasets.load_dataset("parquet", data_files=name, split="train")
        else:
            data = datasets.load_dataset(name, split="train")
        if image_column not in data.column_names:
            raise DataError(f"{name} has no column {image_column!r}; it has {', '.join(data.column_names)}")
        data = data.cast_column(image_column, datasets.Image())
    except DataError:
        raise
    except Exception as error:  # the library has many: files, network, formats
        raise DataError(
            f"{name} is no folder of images, and cannot be read as a dataset: {str(error)[:300]}"
        ) from error
    if len(data) == 0:
        raise DataError(f"{name} is empty")
    labels, names = None, ()
    if label_column is not None:
        if label_column not in data.column_names:
            raise DataError(f"{name} has no column {label_column!r}; it has {', '.join(data.column_names)}")
        values = data[label_column]
        feature = data.features[label_column]
        names = tuple(getattr(feature, "names", None) or (str(value) for value in sorted(set(values))))
        known = {value: index for index, value in enumerate(sorted(set(values)))}
        labels = list(values) if hasattr(feature, "names") else [known[value] for value in values]

    def load(index: int) -> Image.Image:
        try:
            image = data[index][image_column]
        except Exception as error:
            raise DataError(f"image {index} of {name} cannot be read: {error}") from error
        if not isinstance(image, Image.Image):
            raise DataError(f"image {index} of {name} is missing")
        return image

    return Source(len(data), load, labels=labels, class_names=names)
