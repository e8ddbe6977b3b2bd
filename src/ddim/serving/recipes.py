"""What a picture says of how it was made, in the words of `ddim sample`, which makes it again with --from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddim._version import __version__
from ddim.serving.parameters import HOW_CONTROLLED, OF_XL, OTHER_NAMES

__all__ = ["recipe"]

# The settings of `ddim sample`, by the names that the engine uses.
_SAME = (
    "prompt", "negative_prompt", "guidance_scale", "guidance_rescale", "guidance_interval", "steps", "eta", "order",
    "spacing", "seed",
)  # fmt: skip
_NAMES = {**{name: name for name in (*_SAME, *OF_XL, *HOW_CONTROLLED)}, **OTHER_NAMES}


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
        start: what it was started from and steered by: `strength`, and `image`, `mask_image`, `controlnet` and
            `control_image`, which name no files.
    """
    said = {ours: settings[name] for name, ours in _NAMES.items() if settings.get(name) is not None}
    for name in ("control_guidance_start", "control_guidance_end"):
        if name in said and not isinstance(said[name], (list, tuple)):
            said[name] = [said[name]]
    said |= {"model": model, "batch": count, "class_labels": list(classes), "scale": 1}
    said |= {name: value for name, value in (start or {}).items() if value is not None}
    if size is not None:
        said |= {"width": size[0], "height": size[1]}
    return {"version": __version__, "command": command, "settings": said, "image": number}
