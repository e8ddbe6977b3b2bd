"""The endless stream of prepared images, and of their captions, that training reads.

It is a pure function of a source and a seed: item number `position` of it is the same in every run, so a run that is
resumed reads on exactly where it was.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ddim.data.preparation import BACKGROUND_NAMES, Choice, Preparation, say_background, shows_background
from ddim.data.source import Source
from ddim.errors import DataError

_SAY_WHITE = 0.25  # how often a caption says that the background is white; any other it always says


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


class Stream(Dataset[dict[str, Any]]):
    """The endless, shuffled, augmented repetition of a source: item `position` is a function of it and the seed.

    Args:
        source: the images.
        prepare: how they become tensors.
        seed: of order and augmentation.
    """

    def __init__(self, source: Source, prepare: Preparation, seed: int) -> None:
        self.source = source
        self.prepare = prepare
        self.seed = seed

    def at(self, position: int) -> tuple[int, np.random.Generator]:
        """Which image a position has, and the dice for it."""
        epoch, offset = divmod(position, self.source.count)
        index = int(_order(self.seed, epoch, self.source.count)[offset])
        return index, np.random.default_rng([self.seed, 1, position])

    def image(self, index: int, choice: Choice) -> Tensor:
        """An image as the tensor that a choice makes of it.

        Raises:
            DataError: it is a tensor of another resolution.
        """
        return self._prepared(index, self.source.load(index), choice)

    def _prepared(self, index: int, loaded: Image.Image | Tensor, choice: Choice) -> Tensor:
        image = self.prepare(loaded, choice)
        if image.shape[-1] != self.prepare.resolution:
            raise DataError(
                f"image {index} is {image.shape[-1]} wide and cannot be resized: leave out resolution, which is "
                f"{self.prepare.resolution}"
            )
        return image

    def __getitem__(self, position: int) -> dict[str, Any]:
        index, rng = self.at(position)
        image = self.image(index, self.prepare.choose(rng))
        return {"image": image, "label": -1 if self.source.labels is None else self.source.labels[index]}


class CaptionedStream(Stream):
    """A stream of captions with pictures, or with the numbers of pictures that are encoded already.

    An item has "caption", "index" (the image's) and "variant" (its place in `prepare.variants()`), or "image" instead.

    Args:
        source: images with captions.
        prepare, seed: as for `Stream`.
        dropout: the share of captions that is replaced by the empty text.
        encoded: leave the images out, and read none.
        transparent: for each image, whether a background shows, so that its caption may tell of it. If None, each
            image is asked when it is read; those that are not read are taken for transparent.
    """

    def __init__(
        self,
        source: Source,
        prepare: Preparation,
        seed: int,
        dropout: float = 0.0,
        encoded: bool = False,
        transparent: np.ndarray[Any, Any] | None = None,
    ) -> None:
        super().__init__(source, prepare, seed)
        if source.captions is None:
            raise DataError("these images have no captions")
        self.captions = source.captions
        self.dropout = dropout
        self.encoded = encoded
        self.transparent = transparent

    def __getitem__(self, position: int) -> dict[str, Any]:
        index, rng = self.at(position)
        choice = self.prepare.choose(rng)
        loaded = None if self.encoded else self.source.load(index)
        options = self.captions[index]
        caption = options[int(rng.integers(len(options)))]
        if self.prepare.background == "named" and self._is_transparent(index, loaded):
            white = choice.named == 0
            if not white or rng.random() < _SAY_WHITE:
                caption = say_background(caption, BACKGROUND_NAMES[choice.named])
        if rng.random() < self.dropout:
            caption = ""
        if loaded is None:
            backgrounds = len(BACKGROUND_NAMES) if self.prepare.background == "named" else 1
            return {"index": index, "variant": choice.flip * backgrounds + choice.named, "caption": caption}
        return {"image": self._prepared(index, loaded, choice), "caption": caption}

    def _is_transparent(self, index: int, loaded: Image.Image | Tensor | None) -> bool:
        if self.transparent is not None:
            return bool(self.transparent[index])
        return loaded is None or shows_background(loaded)
