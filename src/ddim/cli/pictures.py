"""Pictures that commands read, and those that they write, which say how they were made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim._version import __version__
from ddim.cli.places import is_folder, place, places
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image


def read_image(path: str) -> Image.Image:
    """A picture from a file; one that anything shows through is put on white.

    Raises:
        ConfigError: it is none.
    """
    from PIL import Image, UnidentifiedImageError

    from ddim.data.preparation import flatten, shows_background

    try:
        with Image.open(path) as image:
            image.load()
            return flatten(image, "RGB") if shows_background(image) else image
    except UnidentifiedImageError as error:
        raise ConfigError(f"{path} is no readable image") from error


def read_images(paths: Sequence[str]) -> list[Image.Image]:
    """Pictures from files.

    Raises:
        ConfigError: there are none, or one is no picture.
    """
    if not paths:
        raise ConfigError("give one picture file or more")
    return [read_image(path) for path in paths]


def made_by(command: str, settings: Any, **more: Any) -> dict[str, Any]:
    """What a picture says of how it was made."""
    return {"version": __version__, "command": command, "settings": dataclasses.asdict(settings), **more}


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


def save_pictures(
    images: Sequence[Image.Image],
    out: str,
    made: dict[str, Any],
    *,
    overwrite: bool,
    columns: int | None = None,
    first: int | None = None,
) -> list[Path]:
    """One file with a grid of all, or, where `out` is a folder or ends in /, one file for each; see `save_picture`.

    Args:
        overwrite: whether to replace what is there; see `places.place`.
        columns: of the grid; a row of up to ten unless told.
        first: the number of the first image, if these are not all that were asked for.
    """
    from ddim.images import image_grid

    path = Path(out)
    if is_folder(out):
        numbers = range(first or 0, (first or 0) + len(images))
        names = places(path, numbers, overwrite)
        files = {names[number]: (image, number) for number, image in zip(numbers, images, strict=True)}
    elif first is not None:
        files = {place(path, overwrite): (images[0], first)}
    else:
        columns = columns or (len(images) if len(images) <= 10 else None if len(images) % 10 else 10)
        path = place(path, overwrite)
        is_picture = len(images) == 1 and max(images[0].size) >= 64
        save_picture(images[0] if is_picture else image_grid(images, columns), path, {**made, "image": None})
        return [path]
    for name, (image, number) in files.items():
        save_picture(image, name, {**made, "image": number})
    return list(files)
