"""The endless stream of prepared images that training reads.

It is a pure function of a source and a seed: image number `position` of it is the same in every run, so a run that is
resumed reads on exactly where it was.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ddim.errors import DataError
from ddim.sources import Source


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a tensor (c h w) in [-1, 1] of the resolution asked for."""

    resolution: int
    channels: int = 3
    center_crop: bool = True
    random_flip: bool = False

    def __call__(self, image: Image.Image | Tensor, rng: np.random.Generator) -> Tensor:
        if isinstance(image, Tensor):
            return image.flip(-1) if self.random_flip and rng.random() < 0.5 else image
        image = flatten(ImageOps.exif_transpose(image), "L" if self.channels == 1 else "RGB")
        scale = self.resolution / min(image.size)
        width, height = (max(self.resolution, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        spare = width - self.resolution, height - self.resolution
        left, top = (s // 2 if self.center_crop else int(rng.integers(s + 1)) for s in spare)
        image = image.crop((left, top, left + self.resolution, top + self.resolution))
        if self.random_flip and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        pixels = np.asarray(image, dtype=np.float32).reshape(self.resolution, self.resolution, self.channels)
        return torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1)


def flatten(image: Image.Image, mode: str) -> Image.Image:
    """A picture without transparency, on white, in "L" or "RGB"; palettes and 16-bit grey included."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        array = np.asarray(image, dtype=np.float32)
        high = 65535.0 if array.max(initial=0) > 255 else 255.0
        image = Image.fromarray((array.clip(0, high) * (255 / high)).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert(mode)


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

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, offset = divmod(position, self.source.count)
        index = int(_order(self.seed, epoch, self.source.count)[offset])
        image = self.prepare(self.source.load(index), np.random.default_rng([self.seed, 1, position]))
        if image.shape[-1] != self.prepare.resolution:
            raise DataError(f"image {index} is {image.shape[-1]} wide where {self.prepare.resolution} is needed")
        label = -1 if self.source.labels is None else self.source.labels[index]
        return {"image": image, "label": label}
