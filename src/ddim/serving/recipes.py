"""What a picture says of how it was made, in the words of `ddim sample`, which makes it again with --from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddim._version import __version__

__all__ = ["recipe"]

# The settings of `ddim sample` that have the names that the engine uses.
_SAME = (
    "prompt", "negative_prompt", "guidance_scale", "guidance_rescale", "guidance_interval", "steps", "eta", "order",
    "spacing", "seed",
)  # fmt: skip


def recipe(
    model: str,
    settings: Mapping[str, Any],
    *,
    count: int,
    number: int,
    command: str = "sample",
    classes: tuple[int, ...] = (),
    size: tuple[int, int] | None = None,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a picture says.

    Args:
        model: its name on the server.
        settings: that it was drawn by, as the engine says.
        count, number: how many pictures were asked for, and which of them it is.
        command: "sample" where `ddim sample` can make it again.
        classes: that were asked for.
        size: (width, height), if it was asked for.
        start: what it was started from: `strength`, and `image` and `mask_image`, which name no files.
    """
    said = {name: settings[name] for name in _SAME if settings.get(name) is not None}
    said |= {"model": model, "batch": count, "class_labels": list(classes), "scale": 1, **(start or {})}
    if size is not None:
        said |= {"width": size[0], "height": size[1]}
    return {"version": __version__, "command": command, "settings": said, "image": number}
