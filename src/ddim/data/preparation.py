"""How a picture becomes a tensor: size, crop, mirroring, and what is behind its transparency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

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
BACKGROUND_NAMES = tuple(BACKGROUNDS)


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
        named = 0 if share < 0.5 else 1 if share < 0.625 else int(rng.integers(2, len(BACKGROUND_NAMES)))
        if self.background == "any" and named > 1:
            red, green, blue = (int(value) for value in rng.integers(256, size=3))
            return Choice(crop, flip, (red, green, blue), -1)
        return Choice(crop, flip, BACKGROUNDS[BACKGROUND_NAMES[named]], named)

    def variants(self) -> list[Choice]:
        """All that can become of a picture, if that is not too much to count: each mirroring with each background.

        Raises:
            ValueError: crops or colours are random.
        """
        if not self.center_crop or self.background == "any":
            raise ValueError("random crops and colours have no end")
        names = BACKGROUND_NAMES if self.background == "named" else BACKGROUND_NAMES[:1]
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
