"""Tensors in [-1, 1] to pictures, and pictures to one grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt")


def to_images(x: Tensor, output_type: str = "pil") -> Any:
    """Pictures from a model's output.

    Args:
        x: (batch, channels, height, width) in [-1, 1]; what lies outside is clamped.
        output_type: "pt" gives a tensor (b c h w) in [0, 1]; "np" an array (b h w c) in [0, 1]; "pil" a list of
            images, grey ones for one channel.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type={output_type!r} is none of {', '.join(OUTPUT_TYPES)}")
    wide = (x.detach().float() / 2 + 0.5).clamp(0, 1)  # half precision has too few digits for the shift
    if output_type == "pt":
        return wide.to(x.dtype)
    array = wide.permute(0, 2, 3, 1).cpu().numpy()
    return array if output_type == "np" else [to_pil(image) for image in array]


def to_pil(image: np.ndarray[Any, Any]) -> Image.Image:
    """A picture from an array (h w c) in [0, 1] with 1, 3 or 4 channels.

    Raises:
        ValueError: another number of channels.
    """
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"no picture has the shape {image.shape}, (h w c): use output_type='np' or 'pt'")
    pixels = (image * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def image_grid(
    images: Sequence[Image.Image], columns: int | None = None, scale: int | None = None, gap: int = 2
) -> Image.Image:
    """One picture of many, row by row, on white.

    Args:
        images: all of one size.
        columns: how many in a row; as square as can be unless told.
        scale: enlarge each this many times with hard pixel edges; small pictures to about 64 pixels unless told.
        gap: pixels between them.

    Raises:
        ValueError: no images, or of several sizes.
    """
    if len({image.size for image in images}) != 1:
        raise ValueError(f"a grid needs images of one size, not {sorted({image.size for image in images})}")
    images = [enlarge(image, scale) for image in images]
    width, height = images[0].size
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        grid.paste(image.convert("RGB"), (column * (width + gap), row * (height + gap)))
    return grid


def enlarge(image: Image.Image, scale: int | None = None, least: int = 64) -> Image.Image:
    """A picture `scale` times as large, with hard pixel edges; if not told, a small one to about `least` pixels."""
    scale = scale or max(1, least // max(image.size))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
