"""Pictures that commands read, and those that they write, which say how they were made."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim._version import __version__
from ddim.cli.places import is_folder, place, places
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image


def size_of(path: str) -> tuple[int, int]:
    """The (width, height) of a file's picture when it is upright.

    Raises:
        DataError: it is none, or too large.
    """
    from ddim.images import check_picture

    return check_picture(path, path)


def check_images(paths: Sequence[str]) -> None:
    """Refuse files that are no pictures, before a model is loaded and without decoding them.

    Raises:
        ConfigError: there are none.
        DataError: one is no picture, or too large.
    """
    from ddim.images import check_picture

    if not paths:
        raise ConfigError("give one picture file or more")
    for path in paths:
        check_picture(path, path)


_OF_THE_FILE = ("from_image", "trust", "out", "overwrite")


def made_by(command: str, settings: Any, **more: Any) -> dict[str, Any]:
    """What a picture says of how it was made: the settings, but for those about the file itself."""
    told = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _OF_THE_FILE}
    return {"version": __version__, "command": command, "settings": told, **more}


def save_picture(image: Image.Image, path: Path, made: dict[str, Any]) -> None:
    """Write a picture atomically; a PNG has `made` as JSON in its text chunk "ddim".

    Raises:
        ValueError: no picture's name ends so.
    """
    from PIL.PngImagePlugin import PngInfo

    from ddim.checkpoint.files import atomic_write

    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".png":
            note = PngInfo()
            note.add_text("ddim", json.dumps(made))
            image.save(temporary, pnginfo=note)
        else:
            image.save(temporary)


# --- several pictures ------------------------------------------------------------------------------------------------

# Pixels of the longer side: to what a picture is enlarged for looking at; a grid, and at the least each picture in it.
_PICTURE, _GRID, _IN_A_GRID = 256, 1280, 64
# The most pixels of a grid. Pillow takes a picture with more for a bomb when it is opened again.
_LARGEST = 89_000_000
# The most pictures of a grid.
_MOST = 100_000
# The most pixels of a side, by what a file's name ends in.
_LONGEST = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500, ".gif": 65_535}


_FOLDER = "let --out be a folder, as in --out pictures/, which gets one file each"


def grid_columns(count: int) -> int:
    """A row of up to ten; of more, rows of ten where that comes out even; of more than a hundred, about a square."""
    if count <= 10:
        return count
    return 10 if count <= 100 and count % 10 == 0 else math.ceil(math.sqrt(count))


def choose_scale(
    scale: int | None, size: tuple[int, int], count: int, out: str, *, columns: int | None = None, labels: bool = False
) -> int:
    """How many times pictures are enlarged: as was given, or by what suits where they go.

    A picture becomes about 256 pixels wide or high, one in a grid at least 64; those in a folder stay as they are.

    Args:
        size: of each picture, (width, height).
        count: how many there are.
        columns: of the grid.
        labels: whether words are to stand under each.

    Raises:
        ConfigError: what would be written is too large for a file of one picture.
    """
    if is_folder(out):
        return scale or 1
    columns = columns or grid_columns(count)
    rows = math.ceil(count / columns)
    least = 2 * _IN_A_GRID if labels else _IN_A_GRID
    wanted = min(_PICTURE, max(least, _GRID // max(columns, rows)))
    chosen = scale or max(1, wanted // max(size))
    width, height = ((side * chosen + 2) * number for side, number in zip(size, (columns, rows), strict=True))
    if width * height > _LARGEST or max(width, height) > _LONGEST.get(Path(out).suffix.lower(), _LARGEST):
        pictures = f"a grid of {count} pictures" if count > 1 else "a picture"
        smaller = "; or a smaller --scale" if chosen > 1 else ""
        raise ConfigError(
            f"{pictures} of {size[0] * chosen}x{size[1] * chosen} pixels is too large for {out}: {_FOLDER}{smaller}"
        )
    return chosen


def check_look(labels: bool, out: str, count: int | None = None) -> None:
    """Raise a ConfigError for labels or a number of pictures that cannot be, whatever the model."""
    if labels and is_folder(out):
        raise ConfigError("--labels is for a grid in one file: leave it out, or let --out be a file")
    if (count or 0) > _MOST and not is_folder(out):
        raise ConfigError(f"{count} pictures are too many for {out}, which would show them all: {_FOLDER}")


def save_pictures(
    images: Sequence[Image.Image],
    out: str,
    made: dict[str, Any],
    *,
    overwrite: bool,
    scale: int = 1,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    first: int | None = None,
) -> list[Path]:
    """One file with a grid of all, or, where `out` is a folder or ends in /, one file for each; see `save_picture`.

    Args:
        overwrite: whether to replace what is there; see `places.place`.
        scale: how many times to enlarge each.
        columns: of the grid; see `grid_columns`.
        labels: what to write under each in a file that shows all.
        first: the number of the first image, if these are not all that were asked for.
    """
    from ddim.images import enlarge, image_grid

    path = Path(out)
    if is_folder(out):
        numbers = range(first or 0, (first or 0) + len(images))
        chosen = places(path, numbers, overwrite)
        files = {chosen.path(number): (image, number) for number, image in zip(numbers, images, strict=True)}
        for name, (image, number) in files.items():
            save_picture(enlarge(image, scale), name, {**made, "image": number})
        return list(files)
    path = place(path, overwrite)
    if len(images) == 1 and labels is None:
        sheet = enlarge(images[0], scale)
    else:
        sheet = image_grid(images, columns or grid_columns(len(images)), scale, captions=labels)
    save_picture(sheet, path, {**made, "image": first})
    return [path]
