"""Tensors in [-1, 1] to pictures, pictures to one grid, and pictures one after the other.

Animations are GIF and WebP, which browsers repeat, and MP4, which video players know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ddim.checkpoint.files import atomic_write
from ddim.errors import ConfigError, require

__all__ = [
    "OUTPUT_TYPES",
    "SUFFIXES",
    "enlarge",
    "image_grid",
    "there_and_back",
    "to_images",
    "to_pil",
    "write_animation",
]

OUTPUT_TYPES = ("pil", "np", "pt")
SUFFIXES = (".gif", ".webp", ".mp4")

_IMAGE_DESCRIPTION = 0x010E  # of EXIF


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


# --- animations -------------------------------------------------------------------------------------------------------


def write_animation(
    path: Path, frames: Sequence[Image.Image], *, fps: float = 12, note: Mapping[str, Any] | None = None
) -> None:
    """Write an animation atomically.

    A GIF has one palette of 256 colours for all frames, so that none flickers; a WebP is lossless; an MP4 is H.264 and
    has a pixel more where a side is odd. GIF and WebP repeat without end; both keep a frame that equals the one before
    it by making that one longer.

    Args:
        path: ends in .gif, .webp or .mp4.
        frames: two or more of one size, grey or RGB.
        fps: frames a second, 1 to 60. A GIF counts in hundredths of a second: frames differ by one where need be,
            and the whole takes as long as it should.
        note: kept in the file as JSON: a GIF's or MP4's comment, a WebP's EXIF image description.

    Raises:
        ConfigError: another ending, fewer than two frames, several sizes, or an fps out of range.
        MissingExtraError: MP4 without the library for it.
        CheckpointError: the file system refuses.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if len(frames) < 2 or len({frame.size for frame in frames}) != 1:
        raise ConfigError(f"an animation needs two or more frames of one size, not {len(frames)}")
    if not 1 <= fps <= 60:
        raise ConfigError(f"fps must be in 1…60, not {fps:g}")
    text = json.dumps(note or {})
    if suffix == ".mp4":
        _write_video(path, frames, fps, text)
        return
    with atomic_write(path) as temporary:
        if suffix == ".gif":
            first, *rest = _with_one_palette(frames)
            durations = _durations(len(frames), fps, unit=10)
            first.save(temporary, save_all=True, append_images=rest, duration=durations, loop=0, comment=text.encode())
        else:
            exif = Image.Exif()
            exif[_IMAGE_DESCRIPTION] = text
            first, *rest = (frame.convert("RGB") for frame in frames)
            durations = _durations(len(frames), fps, unit=1)
            first.save(
                temporary, save_all=True, append_images=rest, duration=durations, loop=0, lossless=True, exif=exif
            )


def there_and_back(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames and then those between the ends in reverse: repeated, this has no jump."""
    return [*frames, *frames[-2:0:-1]]


def _durations(count: int, fps: float, unit: int) -> list[int]:
    """Milliseconds of each frame, in multiples of `unit`, which add up to the whole's, rounded."""
    ends = [round(1000 * frame / fps / unit) * unit for frame in range(count + 1)]
    return [stop - start for start, stop in pairwise(ends)]


def _with_one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames in 256 colours that suit all of them; grey ones as they are."""
    if all(frame.mode == "L" for frame in frames):
        return list(frames)
    colours = [frame.convert("RGB") for frame in frames]
    width, height = colours[0].size
    sheet = Image.new("RGB", (width, height * len(colours)))
    for row, frame in enumerate(colours):
        sheet.paste(frame, (0, row * height))
    palette = sheet.quantize(256)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in colours]


def _write_video(path: Path, frames: Sequence[Image.Image], fps: float, text: str) -> None:
    av = require("av", "video")
    width, height = frames[0].size
    size = (width + width % 2, height + height % 2)  # the codec halves the colours' resolution
    with (
        atomic_write(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as file,
    ):
        file.metadata["comment"] = text
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "14"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"  # what every player knows
        for frame in frames:
            pixels = np.pad(np.asarray(frame.convert("RGB")), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
