"""Pictures from tensors in [-1, 1], grids of pictures, and animations.

An animation is a GIF or WebP, which browsers play again and again, or an MP4, which every video player knows.
"""

from __future__ import annotations

import functools
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddim.checkpoint.files import atomic_write
from ddim.errors import ConfigError, require
from ddim.images.reading import loaded

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "OUTPUT_TYPES",
    "SUFFIXES",
    "OutputType",
    "enlarge",
    "image_grid",
    "there_and_back",
    "to_images",
    "to_pil",
    "write_animation",
]

OutputType: TypeAlias = Literal["pil", "np", "pt"]
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)
SUFFIXES = (".gif", ".webp", ".mp4")

# A picture of so many pixels a side is enlarged smoothly; in a smaller one the pixels are what there is to see.
SMOOTH_FROM = 32

_IMAGE_DESCRIPTION = 0x010E  # the number of EXIF's field for a description


@overload
def to_images(x: Tensor, output_type: Literal["pil"] = "pil") -> list[Image.Image]: ...
@overload
def to_images(x: Tensor, output_type: Literal["np"]) -> np.ndarray[Any, Any]: ...
@overload
def to_images(x: Tensor, output_type: Literal["pt"]) -> Tensor: ...
@overload
def to_images(x: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray[Any, Any] | Tensor: ...
def to_images(x: Tensor, output_type: OutputType = "pil") -> list[Image.Image] | np.ndarray[Any, Any] | Tensor:
    """Pictures from a model's output.

    Args:
        x: (batch, channels, height, width) in [-1, 1]; what lies outside is clamped.
        output_type: "pt" gives a tensor (b c h w) in [0, 1]; "np" an array (b h w c) in [0, 1]; "pil" a list of b
            images, grey ones for one channel.

    Raises:
        ValueError: there is no such output type, or PIL has no pictures with so many channels.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type={output_type!r} is none of {', '.join(OUTPUT_TYPES)}")
    wide = (x.detach().float() / 2 + 0.5).clamp(0, 1)  # in float32, as adding 0.5 would round half precision visibly
    if output_type == "pt":
        return wide.to(x.dtype)
    array = wide.permute(0, 2, 3, 1).cpu().numpy()
    return array if output_type == "np" else [to_pil(image) for image in array]


def to_pil(image: np.ndarray[Any, Any]) -> Image.Image:
    """A picture from an array (h w c) in [0, 1] with 1, 3 or 4 channels.

    Raises:
        ValueError: the array has another number of channels or of dimensions.
    """
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"no picture has the shape {image.shape}: a picture is (h, w, c) with 1, 3 or 4 channels; for anything "
            "else use output_type='np' or 'pt'"
        )
    pixels = (image * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def image_grid(
    images: Sequence[Image.Image],
    columns: int | None = None,
    scale: int | None = None,
    gap: int = 2,
    captions: Sequence[str] | None = None,
    background: str | None = "white",
) -> Image.Image:
    """One picture that shows many, row by row.

    Args:
        images: one or more, all of one size.
        columns: how many are in a row; unless told, the grid is as near to a square as can be.
        scale: how many times each is enlarged, see `enlarge`; unless told, small ones to about 64 pixels, or with
            captions to about 128, so that there is room for words.
        gap: pixels between two of them.
        captions: a text for each image, which is written under it in up to three lines.
        background: the colour between the images, as Pillow names colours, or None for nothing at all.

    Returns:
        An RGB picture, or without a background one in RGBA.

    Raises:
        ValueError: there are no images, they have several sizes, or there are more or fewer captions.
    """
    if len({image.size for image in images}) != 1:
        raise ValueError(f"a grid needs images of one size, not {sorted({image.size for image in images})}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"a grid of {len(images)} images needs as many captions, not {len(captions)}")
    images = [enlarge(image, scale, 64 if captions is None else 128) for image in images]
    width, height = images[0].size
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    lines = [broken(caption, width) for caption in captions or ()]
    below = LINE * max(map(len, lines), default=0)  # the height of what is written under each image
    high = height + below + gap
    size = (columns * (width + gap) - gap, rows * high - gap)
    grid = Image.new("RGB", size, background) if background else Image.new("RGBA", size)
    draw = ImageDraw.Draw(grid)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = column * (width + gap), row * high
        grid.paste(image.convert("RGB"), (left, top))
        for number, line in enumerate(lines[index] if lines else ()):
            draw.text((left + 1, top + height + number * LINE), line, fill="black", font=font())
    return grid


LINE = 15  # pixels: the height of a line of a caption


@functools.cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which is there on every machine."""
    return ImageFont.load_default(12)


def broken(text: str, width: int, most: int = 3) -> list[str]:
    """A text in lines of at most `width` pixels. Three dots stand for what does not fit into `most` lines."""
    letters = font()  # it has no letters but those of ASCII
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text[:500]) if not unicodedata.combining(letter))
    words = plain.encode("ascii", "replace").decode().split()[::-1]
    lines = [""]
    while words and len(lines) <= most:
        word = words.pop()
        longer = f"{lines[-1]} {word}".strip()
        if letters.getlength(longer) <= width - 2:
            lines[-1] = longer
        elif lines[-1]:
            lines.append("")
            words.append(word)
        else:  # a word that is wider than the picture
            fits = next(n for n in range(1, len(word) + 1) if letters.getlength(word[: n + 1]) > width - 2)
            lines[-1] = word[:fits]
            words += [word[fits:]] if word[fits:] else []
            lines += [""] if words else []
    if len(lines) > most or words:
        lines = lines[:most]
        while lines[-1] and letters.getlength(f"{lines[-1]}...") > width - 2:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "..."
    return lines


def enlarge(image: Image.Image, scale: int | None = None, least: int = 64) -> Image.Image:
    """A picture `scale` times as large: with hard pixel edges if it has fewer than 32 pixels a side, else smooth.

    Args:
        image: the picture.
        scale: a whole number; unless told, one that gives a small picture's longer side about `least` pixels.
        least: pixels.
    """
    image = loaded(image, "a picture")
    scale = scale or max(1, least // max(image.size))
    smooth = max(image.size) >= SMOOTH_FROM
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return image.resize((image.width * scale, image.height * scale), how)


# --- animations -------------------------------------------------------------------------------------------------------


def write_animation(
    path: Path, frames: Sequence[Image.Image], *, fps: float = 12, note: Mapping[str, Any] | None = None
) -> None:
    """Write an animation atomically.

    A GIF has one palette of 256 colours for all frames, so that colours do not flicker. A WebP is lossless. An MP4 is
    H.264, whose sides are even, so an odd side gets one pixel more. GIF and WebP repeat without end; in these, a frame
    that equals the one before it is stored by showing that one longer.

    Args:
        path: the file, which ends in .gif, .webp or .mp4.
        frames: two or more pictures of one size, grey or RGB.
        fps: frames a second, 1 to 60. As a GIF counts in hundredths of a second, its frames may differ by one such
            hundredth, so that all together take the time that they should.
        note: kept in the file as JSON: as the comment of a GIF or MP4, or as the EXIF image description of a WebP.

    Raises:
        ConfigError: the path ends otherwise, there are fewer than two frames or several sizes, or fps is out of range.
        MissingExtraError: for MP4, the library that writes it is not installed.
        CheckpointError: the file system does not allow it.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    frames = [loaded(frame, "a frame") for frame in frames]
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
    """The frames, and then those between the first and the last in reverse order: played again and again, this never
    jumps."""
    return [*frames, *frames[-2:0:-1]]


def _durations(count: int, fps: float, unit: int) -> list[int]:
    """How many milliseconds each frame is shown, in multiples of `unit`; together they take the animation's time."""
    ends = [round(1000 * frame / fps / unit) * unit for frame in range(count + 1)]
    return [stop - start for start, stop in pairwise(ends)]


def _with_one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames in 256 colours that suit all of them; if all frames are grey, these as they are."""
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
    """Write an MP4 atomically."""
    av = require("av", "video")
    width, height = frames[0].size
    size = (width + width % 2, height + height % 2)  # even, as the codec keeps colours at half the resolution
    with (
        atomic_write(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as file,
    ):
        file.metadata["comment"] = text
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "14"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"  # the pixel format that every player can show
        for frame in frames:
            pixels = np.pad(np.asarray(frame.convert("RGB")), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
