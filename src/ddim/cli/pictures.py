"""Pictures that commands read, and those that they write, which say how they were made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim._version import __version__
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image


def read_image(path: str) -> Image.Image:
    """A picture from a file.

    Raises:
        ConfigError: it is none.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except UnidentifiedImageError as error:
        raise ConfigError(f"{path} is no readable image") from error


def made_by(command: str, settings: Any, **more: Any) -> dict[str, Any]:
    """What a picture says of how it was made."""
    return {"version": __version__, "command": command, "settings": dataclasses.asdict(settings), **more}


def save_picture(image: Image.Image, path: Path, made: dict[str, Any]) -> None:
    """Write a picture atomically; a PNG has `made` as JSON in its text chunk "ddim".

    Raises:
        ValueError: no picture's name ends so.
    """
    from PIL.PngImagePlugin import PngInfo

    from ddim.files import atomic_write

    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".png":
            note = PngInfo()
            note.add_text("ddim", json.dumps(made))
            image.save(temporary, pnginfo=note)
        else:
            image.save(temporary)
