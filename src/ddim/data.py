"""The endless stream of prepared images, and of their captions, that training reads.

It is a pure function of a source and a seed: item number `position` of it is the same in every run, so a run that is
resumed reads on exactly where it was.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ddim.errors import DataError
from ddim.sources import Source

Color = tuple[int, int, int]

# Plain backgrounds for pictures with transparency: half of the pictures are on white, an eighth on black.
BACKGROUNDS: dict[str, Color] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "red": (220, 40, 40),
    "orange": (250, 145, 30),
    "yellow": (250, 220, 60),
    "green": (40, 160, 70),
    "light green": (150, 220, 130),
    "turquoise": (60, 200, 190),
    "light blue": (135, 200, 250),
    "blue": (40, 90, 220),
    "dark blue": (20, 30, 100),
    "purple": (130, 60, 190),
    "pink": (250, 150, 190),
    "brown": (130, 85, 50),
}
_NAMES = tuple(BACKGROUNDS)
_SAY_WHITE = 0.25  # how often a caption says that the background is white; any other it always says


class Choice(NamedTuple):
    """What is left to chance when a picture is prepared."""

    crop: tuple[float, float] = (0.5, 0.5)  # of what is left over in width and height: how much goes on the near side
    flip: bool = False
    background: Color = BACKGROUNDS["white"]
    named: int = 0  # the background's number in BACKGROUNDS, or -1


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a tensor (c h w) in [-1, 1] of the resolution asked for.

    Attributes:
        resolution: of the shorter side, before the longer one is cropped.
        channels: 1 or 3.
        center_crop: crop the middle, not at random.
        random_flip: mirror half of the pictures.
        background: behind transparency: "white"; "named", one of BACKGROUNDS; or "any" colour at random. Half of the
            pictures get white, an eighth black.
    """

    resolution: int
    channels: int = 3
    center_crop: bool = True
    random_flip: bool = False
    background: Literal["white", "named", "any"] = "white"

    def choose(self, rng: np.random.Generator) -> Choice:
        """Throw the dice for one picture."""
        crop = (0.5, 0.5) if self.center_crop else (float(rng.random()), float(rng.random()))
        flip = self.random_flip and bool(rng.random() < 0.5)
        if self.background == "white":
            return Choice(crop, flip)
        share = rng.random()
        named = 0 if share < 0.5 else 1 if share < 0.625 else int(rng.integers(2, len(_NAMES)))
        if self.background == "any" and named > 1:
            red, green, blue = (int(value) for value in rng.integers(256, size=3))
            return Choice(crop, flip, (red, green, blue), -1)
        return Choice(crop, flip, BACKGROUNDS[_NAMES[named]], named)

    def variants(self) -> list[Choice]:
        """All that can become of a picture, if that is not too much to count: each mirroring with each background.

        Raises:
            ValueError: crops or colours are random.
        """
        if not self.center_crop or self.background == "any":
            raise ValueError("random crops and colours have no end")
        names = _NAMES if self.background == "named" else _NAMES[:1]
        flips = (False, True) if self.random_flip else (False,)
        return [Choice((0.5, 0.5), flip, BACKGROUNDS[name], i) for flip in flips for i, name in enumerate(names)]

    def __call__(self, image: Image.Image | Tensor, choice: Choice | np.random.Generator) -> Tensor:
        if isinstance(choice, np.random.Generator):
            choice = self.choose(choice)
        if isinstance(image, Tensor):
            return image.flip(-1) if choice.flip else image
        image = flatten(ImageOps.exif_transpose(image), "L" if self.channels == 1 else "RGB", choice.background)
        scale = self.resolution / min(image.size)
        width, height = (max(self.resolution, round(side * scale)) for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (
            min(int(share * (spare + 1)), spare) if share != 0.5 else spare // 2
            for share, spare in zip(choice.crop, (width - self.resolution, height - self.resolution), strict=True)
        )
        image = image.crop((left, top, left + self.resolution, top + self.resolution))
        if choice.flip:
            image = ImageOps.mirror(image)
        pixels = np.asarray(image, dtype=np.float32).reshape(self.resolution, self.resolution, self.channels)
        return torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1)


def flatten(image: Image.Image, mode: str, background: Color = BACKGROUNDS["white"]) -> Image.Image:
    """A picture without transparency, on a plain background, in "L" or "RGB"; palettes and 16-bit grey included."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        array = np.asarray(image, dtype=np.float32)
        high = 65535.0 if array.max(initial=0) > 255 else 255.0
        image = Image.fromarray((array.clip(0, high) * (255 / high)).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba)
    return image.convert(mode)


def shows_background(image: Image.Image | Tensor) -> bool:
    """Whether anything of a background shows through a picture."""
    if isinstance(image, Tensor) or not ("A" in image.mode or "transparency" in image.info):
        return False
    lowest: Any = image.convert("RGBA").getchannel("A").getextrema()[0]
    return bool(lowest < 255)


def say_background(caption: str, color: str) -> str:
    """A caption that says what the background is; a style, after a comma, stays last.

    >>> say_background("a red heart, noto style", "black")
    'a red heart on a black background, noto style'
    """
    what, comma, rest = caption.partition(",")
    article = "an" if color[0] in "aeiou" else "a"
    return f"{what} on {article} {color} background{comma}{rest}"


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
                caption = say_background(caption, _NAMES[choice.named])
        if rng.random() < self.dropout:
            caption = ""
        if loaded is None:
            backgrounds = len(_NAMES) if self.prepare.background == "named" else 1
            return {"index": index, "variant": choice.flip * backgrounds + choice.named, "caption": caption}
        return {"image": self._prepared(index, loaded, choice), "caption": caption}

    def _is_transparent(self, index: int, loaded: Image.Image | Tensor | None) -> bool:
        if self.transparent is not None:
            return bool(self.transparent[index])
        return loaded is None or shows_background(loaded)
