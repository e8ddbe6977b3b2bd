"""How a picture becomes a tensor: its size, its crop, its mirroring, and the background behind what is transparent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddim.images.flat import Color, flatten
from ddim.images.reading import loaded, upright

Size = tuple[int, int]  # (width, height) in pixels

_LONG = 16  # a picture that is so many times as long as wide is cropped before it is resized

# Plain backgrounds for pictures with transparency, by the names that captions use for them.
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
BACKGROUND_NAMES = tuple(BACKGROUNDS)


# How a picture may be resized, by the names that torchvision has for it.
FILTERS = {"nearest_exact": Image.Resampling.NEAREST, **{way.name.lower(): way for way in Image.Resampling}}


class Choice(NamedTuple):
    """What chance decides when a picture is prepared.

    Attributes:
        crop: of the pixels that are too many in width and in height, the share that is cut off at the left and at the
            top, 0 to 1; the rest is cut off on the other side.
        flip: whether the picture is mirrored.
        background: the colour behind what is transparent.
        named: the background's number in BACKGROUNDS; -1 if it has no name.
    """

    crop: tuple[float, float] = (0.5, 0.5)
    flip: bool = False
    background: Color = BACKGROUNDS["white"]
    named: int = 0


class Frame(NamedTuple):
    """Which part of a picture is kept: the picture is resized to `width` and `height`, and then cropped.

    Attributes:
        width, height: of the whole picture, resized.
        left, top: where the part begins in it, before it is mirrored.
    """

    width: int
    height: int
    left: int
    top: int


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a tensor (c h w) in [-1, 1] of the resolution asked for.

    Attributes:
        resolution: height and width of the tensor, in pixels, unless a call gives others. The picture is resized so that
            it just covers the tensor, and what is too much is cropped.
        channels: 1 for grey, 3 for RGB.
        center_crop: keep the middle of the picture; otherwise a part at random.
        random_flip: mirror half of the pictures.
        background: what is put behind what is transparent: "white"; "named", one of BACKGROUNDS at random; or "any"
            colour at random. With the last two, half of the pictures get white and an eighth black.
        interpolation: how pictures are resized: a name of `FILTERS`.
    """

    resolution: int
    channels: int = 3
    center_crop: bool = True
    random_flip: bool = False
    background: Literal["white", "named", "any"] = "white"
    interpolation: str = "lanczos"

    def choose(self, rng: np.random.Generator) -> Choice:
        """Draw at random what chance decides for one picture."""
        crop = (0.5, 0.5) if self.center_crop else (float(rng.random()), float(rng.random()))
        flip = self.random_flip and bool(rng.random() < 0.5)
        if self.background == "white":
            return Choice(crop, flip)
        share = rng.random()
        named = 0 if share < 0.5 else 1 if share < 0.625 else int(rng.integers(2, len(BACKGROUND_NAMES)))
        if self.background == "any" and named > 1:
            red, green, blue = (int(value) for value in rng.integers(256, size=3))
            return Choice(crop, flip, (red, green, blue), -1)
        return Choice(crop, flip, BACKGROUNDS[BACKGROUND_NAMES[named]], named)

    def variants(self) -> list[Choice]:
        """All choices that there are for a picture: each background, first as the picture is and then mirrored.

        Raises:
            ValueError: crops or colours are random, so that there are too many.
        """
        if not self.center_crop or self.background == "any":
            raise ValueError(
                "random crops and colours have too many variants to list: use center_crop=True and a background that is "
                "'white' or 'named'"
            )
        names = BACKGROUND_NAMES if self.background == "named" else BACKGROUND_NAMES[:1]
        flips = (False, True) if self.random_flip else (False,)
        return [Choice((0.5, 0.5), flip, BACKGROUNDS[name], i) for flip in flips for i, name in enumerate(names)]

    def frame(self, own: Size, choice: Choice, size: Size | None = None) -> Frame:
        """Which part of a picture is kept.

        Args:
            own: the picture's (width, height), upright.
            choice: what chance has decided.
            size: (width, height) of the tensor; None is the resolution for both.
        """
        size = size or (self.resolution, self.resolution)
        scale = max(size[0] / own[0], size[1] / own[1])
        width, height = (max(least, round(side * scale)) for least, side in zip(size, own, strict=True))
        left, top = (
            min(int(share * (spare + 1)), spare) if share != 0.5 else spare // 2
            for share, spare in zip(choice.crop, (width - size[0], height - size[1]), strict=True)
        )
        return Frame(width, height, left, top)

    def __call__(
        self,
        image: Image.Image | Tensor,
        choice: Choice | np.random.Generator,
        size: Size | None = None,
        own: Size | None = None,
    ) -> Tensor:
        """The tensor that a picture becomes, (c h w) in [-1, 1].

        Args:
            image: a picture, or a tensor (c h w) in [-1, 1], which is at most mirrored.
            choice: what chance has decided, or a generator to decide it by.
            size: (width, height) of the tensor; None is the resolution for both.
            own: the picture's own (width, height), upright, if it was decoded smaller; it decides what is cropped.
        """
        if isinstance(choice, np.random.Generator):
            choice = self.choose(choice)
        if isinstance(image, Tensor):
            return image.flip(-1) if choice.flip else image
        image = flatten(upright(loaded(image, "a picture")), "L" if self.channels == 1 else "RGB", choice.background)
        size = size or (self.resolution, self.resolution)
        width, height, left, top = self.frame(own or image.size, choice, size)
        region = (left, top, left + size[0], top + size[1])
        if width > _LONG * size[0] or height > _LONG * size[1]:  # the whole of it could fill the memory
            across, down = image.width / width, image.height / height
            box = (region[0] * across, region[1] * down, region[2] * across, region[3] * down)
            image = image.resize(size, FILTERS[self.interpolation], box)
        else:
            if (width, height) != image.size:
                image = image.resize((width, height), FILTERS[self.interpolation])
            image = image.crop(region)
        if choice.flip:
            image = ImageOps.mirror(image)
        pixels = np.asarray(image, dtype=np.float32).reshape(size[1], size[0], self.channels)
        return torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1)


def say_background(caption: str, color: str) -> str:
    """A caption with the background's colour added, before the first comma, so that a style behind it stays last.

    >>> say_background("a red heart, noto style", "black")
    'a red heart on a black background, noto style'
    """
    what, comma, rest = caption.partition(",")
    article = "an" if color[0] in "aeiou" else "a"
    return f"{what} on {article} {color} background{comma}{rest}"
