"""Pictures one after the other: GIF and WebP, which browsers repeat, and MP4, which video players know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddim.errors import ConfigError, require
from ddim.files import atomic_write

SUFFIXES = (".gif", ".webp", ".mp4")

_IMAGE_DESCRIPTION = 0x010E  # of EXIF


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
