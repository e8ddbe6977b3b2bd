"""What a PNG says of how it was made, as settings of the page. The picture may be anyone's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddim.checkpoint.said import LONGEST, parse
from ddim.errors import ConfigError, DataError
from ddim.images import png_text
from ddim.serving.parameters import Generation, from_json
from ddim.serving.refusal import Refusal

__all__ = ["settings_of", "written"]

# The settings of `ddim sample` that the page has by the same names.
_SAME = (
    "prompt", "negative_prompt", "steps", "eta", "order", "spacing", "guidance_scale", "guidance_rescale",
    "guidance_interval", "seed",
)  # fmt: skip


def settings_of(png: bytes, most: int) -> dict[str, Any]:
    """The settings of a PNG that `ddim sample`, the server or the studio made, by the names of `Generation`.

    Also `model`, as the picture names it, and `image`: which of the pictures it is, counted from 0.

    Args:
        png: the file.
        most: pictures at a time.

    Raises:
        ConfigError: it says nothing, or what it says cannot be followed; a sentence.
    """
    try:
        said = png_text(png, "ddim", LONGEST, "the picture")
    except DataError as error:
        raise ConfigError(str(error)) from error
    if said is None:
        raise ConfigError("this PNG does not say how it was made: only those that ddim wrote do")
    try:
        made = parse(said)
        stored, number = made["settings"], made.get("image")
        if not isinstance(stored, dict):
            raise TypeError("no settings")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError("what this PNG says of how it was made cannot be read") from error
    if made.get("command", "sample") not in ("sample", "variation"):
        raise ConfigError("this PNG was made by another command than `ddim sample`, whose settings the page has not")
    told = {name: stored[name] for name in _SAME if stored.get(name) is not None}
    labels = stored.get("class_labels")
    if isinstance(labels, list) and len(labels) == 1:
        told["class_label"] = labels[0]
    if type(stored.get("width")) is int and type(stored.get("height")) is int:
        told["size"] = f"{stored['width']}x{stored['height']}"
    for name in ("guidance_scale", "guidance_rescale", "eta"):
        if type(told.get(name)) is int:
            told[name] = float(told[name])
    try:
        asked = from_json(Generation, told)
    except Refusal as refusal:
        raise ConfigError(f"this PNG's settings cannot be followed: {refusal.message}") from refusal
    about: dict[str, Any] = {name: getattr(asked, name) for name in told}
    batch, number = stored.get("batch"), number if type(number) is int else 0
    about["n"] = min(most, max(1, batch if type(batch) is int else 1, number + 1))
    if isinstance(stored.get("model"), str):
        about["model"] = stored["model"][:200]
    return {**about, "image": number}


def written(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings as a visitor reads them: (name, value).

    >>> written({"steps": 4, "eta": 0.0, "guidance_interval": (0, 500), "order": None})
    [('steps', '4'), ('eta', '0'), ('guidance interval', '0 to 500')]
    """
    rows = []
    for name, value in settings.items():
        if value is None or name in ("number", "previews", "preview_every", "deadline", "output_type"):
            continue
        said = f"{value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, (list, tuple)):
            said = " to ".join(map(str, value)) if name == "guidance_interval" else ", ".join(map(str, value))
        rows.append((name.replace("_", " "), said))
    return rows
