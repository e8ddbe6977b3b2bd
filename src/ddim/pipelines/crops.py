"""Inpainting a small part of a large picture at the model's full resolution: cut out, paint, put back."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ddim.images.flat import flatten, is_deep
from ddim.images.reading import loaded

Box = tuple[int, int, int, int]  # left, top, right, bottom


class Crop:
    """The region of a picture around what a mask covers.

    Args:
        picture: the whole picture.
        mask: of the same size; black is what stays.
        size: (height, width) of what the model paints; the region has its proportions, as far as the picture allows.
        padding: pixels of the picture around what the mask covers.

    Raises:
        DataError: they were opened and not decoded yet, and cannot be.
        TypeError: picture or mask is no PIL image, or the padding no int.
        ValueError: they differ in size, the mask is black, or the padding is negative.
    """

    def __init__(self, picture: Any, mask: Any, size: tuple[int, int], padding: int) -> None:
        if not (isinstance(picture, Image.Image) and isinstance(mask, Image.Image)):
            raise TypeError("padding_mask_crop is for one PIL image and one PIL mask")
        picture, mask = loaded(picture, "image"), loaded(mask, "mask_image")
        if isinstance(padding, bool) or not isinstance(padding, int):
            raise TypeError(f"padding_mask_crop must be an int, not {padding!r:.50}")
        if padding < 0 or picture.size != mask.size:
            raise ValueError(
                f"padding_mask_crop={padding} must be 0 or more, and image {picture.size} as large as mask_image "
                f"{mask.size}"
            )
        picture, mask = (flatten(each, "L") if is_deep(each) else each for each in (picture, mask))
        self._whole = picture.convert("RGB")
        self._kept = ImageOps.invert(mask.convert("L"))
        self.box = region(np.asarray(mask.convert("L")), size, padding)
        self.picture = fit(self._whole.crop(self.box), size)
        self.mask = fit(mask.convert("RGB").crop(self.box), size)

    def of(self, other: Any, name: str) -> Image.Image:
        """The same region of another picture, in the same size.

        Raises:
            TypeError: it is no PIL image.
            ValueError: it has another size than the picture; `name` says which one.
        """
        if not isinstance(other, Image.Image):
            raise TypeError(f"with padding_mask_crop, {name} must be one PIL image, not {type(other).__name__}")
        if other.size != self._whole.size:
            raise ValueError(f"{name} {other.size} must be as large as image {self._whole.size} for padding_mask_crop")
        return fit(flatten(loaded(other, name), "RGB").crop(self.box), (self.picture.height, self.picture.width))

    def put_back(self, painted: Image.Image) -> Image.Image:
        """The whole picture with what was painted where the mask lets it through."""
        left, top, right, bottom = self.box
        width, height = right - left, bottom - top
        covering = (width, painted.height * width // painted.width)  # the region; what is too much is cut off
        if covering[1] < height:
            covering = (painted.width * height // painted.height, height)
        resized = painted.convert("RGB").resize(covering, Image.Resampling.LANCZOS)
        canvas = Image.new("RGB", (width, height))
        canvas.paste(resized, (width // 2 - covering[0] // 2, height // 2 - covering[1] // 2))
        whole = Image.new("RGB", self._whole.size)
        whole.paste(canvas, (left, top))
        return Image.composite(self._whole, whole, self._kept)


def region(mask: np.ndarray[Any, Any], size: tuple[int, int], padding: int) -> Box:
    """What is not black in a mask (h w), padded, and widened to the proportions of `size`."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError("mask_image is black: there is nothing to paint")
    height, width = mask.shape
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, height)
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, width)
    wanted = size[1] / size[0]
    if (right - left) / (bottom - top) > wanted:
        top, bottom = _widen(top, bottom, int((right - left) / wanted), height)
    else:
        left, right = _widen(left, right, int((bottom - top) * wanted), width)
    return left, top, right, bottom


def _widen(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """An interval of this length around another, moved into 0…limit and cut to it."""
    extra = length - (high - low)
    low, high = low - extra // 2, high + extra - extra // 2
    if high > limit:
        low, high = low - (high - limit), limit
    if low < 0:
        low, high = 0, min(high - low, limit)
    return low, high


def fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole of an RGB picture in (height, width), its edges drawn out where the proportions differ."""
    height, width = size
    is_wider = picture.width / picture.height > width / height
    inner_width = width if is_wider else picture.width * height // picture.height
    inner_height = picture.height * width // picture.width if is_wider else height
    resized = picture.resize((inner_width, inner_height), Image.Resampling.LANCZOS)
    left, top = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    right, bottom = left + inner_width, top + inner_height
    canvas = Image.new("RGB", (width, height))
    canvas.paste(resized, (left, top))
    for place, edge in (
        ((0, 0, width, top), (0, 0, inner_width, 0)),
        ((0, bottom, width, height), (0, inner_height, inner_width, inner_height)),
        ((0, 0, left, height), (0, 0, 0, inner_height)),
        ((right, 0, width, height), (inner_width, 0, inner_width, inner_height)),
    ):
        margin = (place[2] - place[0], place[3] - place[1])
        if all(margin):
            canvas.paste(resized.resize(margin, box=edge), place)
    return canvas
