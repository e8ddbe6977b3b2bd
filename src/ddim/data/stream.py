"""The endless stream of prepared images, and of their captions, that training reads.

Each item is a function of the source, the seed and the item's position, and of nothing that came before it. So the
stream is the same in every run, and a run that is resumed goes on exactly where it was.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ddim.data.preparation import BACKGROUND_NAMES, Choice, Preparation, say_background
from ddim.data.source import Source
from ddim.images.flat import shows_background
from ddim.errors import DataError

if TYPE_CHECKING:
    from ddim.data.buckets import Buckets

_SAY_WHITE = 0.25  # the share of captions that mention a white background; every other background is always mentioned


@functools.lru_cache(maxsize=8)
def shuffled(count: int, *key: int) -> np.ndarray[Any, Any]:
    """The numbers below `count` in an order that depends on the key alone, such as a seed and an epoch: (count,)."""
    return np.random.default_rng(key).permutation(count)


class Draw(NamedTuple):
    """An item of a stream, and which image it shows, where that is not the next one of the shuffled order."""

    position: int
    image: int  # its number in the source
    weight: float  # of its loss


class Stream(Dataset[dict[str, Any]]):
    """A source repeated without end, in a new order each time, with the changes that `prepare` makes at random.

    An item is {"image": (c h w) in [-1, 1], "label": the class, -1 without classes}.

    Args:
        source: the images.
        prepare: how images become tensors.
        seed: decides the order and all that is random in the preparation.
        buckets: the size of each image; None gives all of them the preparation's.
    """

    def __init__(self, source: Source, prepare: Preparation, seed: int, buckets: Buckets | None = None) -> None:
        self.source = source.at_least(prepare.resolution if buckets is None else max(map(max, buckets.sizes)))
        self.prepare = prepare
        self.seed = seed
        self.buckets = buckets

    def at(self, place: int | Draw) -> tuple[int, np.random.Generator]:
        """The number of the image at a position, and a generator for all that is random about the item."""
        if isinstance(place, Draw):
            return place.image, np.random.default_rng([self.seed, 1, place.position])
        epoch, offset = divmod(place, self.source.count)
        index = int(shuffled(self.source.count, self.seed, 0, epoch)[offset])
        return index, np.random.default_rng([self.seed, 1, place])

    def image(self, index: int, choice: Choice) -> Tensor:
        """An image as a tensor (c h w) in [-1, 1], prepared as a choice says.

        Raises:
            DataError: the source gives it as a tensor, which cannot be resized, and in another resolution.
        """
        return self.prepared(index, self.source.load(index), choice)

    def prepared(
        self, index: int, loaded: Image.Image | Tensor, choice: Choice, own: tuple[int, int] | None = None
    ) -> Tensor:
        """What was loaded for an image, the image itself or one that lies over it, as `image` prepares it.

        Args:
            own: the (width, height) that decide what is cropped; None are the image's, as far as they are known.
        """
        size = None if self.buckets is None else self.buckets.size(index)
        own = own or (None if self.buckets is None else self.buckets.owns[index])
        image = self.prepare(loaded, choice, size, own)
        wide = self.prepare.resolution if size is None else size[0]
        if image.shape[-1] != wide:
            raise DataError(
                f"image {index} is {image.shape[-1]} wide and cannot be resized: leave out resolution, which is "
                f"{wide}"
            )
        return image

    def __getitem__(self, place: int | Draw) -> dict[str, Any]:
        index, rng = self.at(place)
        image = self.image(index, self.prepare.choose(rng))
        return {"image": image, "label": -1 if self.source.labels is None else self.source.labels[index]}


class CaptionedStream(Stream):
    """A stream of captions with images or, for images that are encoded already, with their numbers.

    An item is {"image": (c h w) in [-1, 1], "caption": text}. With `encoded` it is {"index": the image's number,
    "variant": the number of its choice in `prepare.variants()`, "caption": text}. With `buckets` it also has "sizes" (6,):
    the image's own height and width, where it is cropped at the top and at the left (of the image as it is seen, mirrored
    or not), and the height and width that it is cropped to.

    Args:
        source: images with captions.
        prepare, seed: as for `Stream`.
        dropout: the share of captions that are replaced by the empty text, 0 to 1.
        encoded: leave the images out, and do not read them.
        transparent: for each image, whether it is transparent, so that its caption may mention the background. With
            None, this is found out as an image is read; images that are not read are taken for transparent.
        buckets: as for `Stream`.

    Raises:
        DataError: the images have no captions.
    """

    def __init__(
        self,
        source: Source,
        prepare: Preparation,
        seed: int,
        dropout: float = 0.0,
        encoded: bool = False,
        transparent: np.ndarray[Any, Any] | None = None,
        buckets: Buckets | None = None,
    ) -> None:
        super().__init__(source, prepare, seed, buckets)
        if source.captions is None:
            raise DataError("these images have no captions, which this training needs: see `captioned_source`")
        self.captions = source.captions
        self.dropout = dropout
        self.encoded = encoded
        self.transparent = transparent

    def __getitem__(self, place: int | Draw) -> dict[str, Any]:
        index, rng = self.at(place)
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
        item: dict[str, Any] = {"caption": caption}
        if self.buckets is not None:
            item["sizes"] = torch.tensor(self._sizes(self.buckets, index, choice), dtype=torch.float32)
        if loaded is None:
            backgrounds = len(BACKGROUND_NAMES) if self.prepare.background == "named" else 1
            return {"index": index, "variant": choice.flip * backgrounds + choice.named, **item}
        return {"image": self.prepared(index, loaded, choice), **item}

    def _sizes(self, buckets: Buckets, index: int, choice: Choice) -> tuple[int, ...]:
        """An image's own height and width, the top and the left of its crop as it is seen, and its height and width."""
        own, (width, height) = buckets.owns[index], buckets.size(index)
        frame = self.prepare.frame(own, choice, (width, height))
        left = frame.width - width - frame.left if choice.flip else frame.left
        return own[1], own[0], frame.top, left, height, width

    def _is_transparent(self, index: int, loaded: Image.Image | Tensor | None) -> bool:
        """Whether a background can be seen behind an image."""
        if self.transparent is not None:
            return bool(self.transparent[index])
        return loaded is None or shows_background(loaded)
