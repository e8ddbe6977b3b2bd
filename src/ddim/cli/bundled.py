"""Which bundled model draws where no --model is given.

A student draws in few steps what its teacher draws in many, and has learnt one way to sample. So the rule is: the
student draws, unless an option says how to sample or to guide, or gives a picture or adapters; then the teacher does,
which follows all of these.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from ddim.cli.typed import typed_fields


class Bundled(NamedTuple):
    """Two bundled models of the same pictures.

    Attributes:
        usual: draws where nothing is said of how.
        teacher: draws where something is.
    """

    usual: str
    teacher: str


TEXTS = Bundled(usual="emoji-fast", teacher="emoji")
OTHERS = Bundled(usual="digits-fast", teacher="digits")

# The options that a student does not follow, or not well.
_FOR_TEACHERS = {
    *("steps", "eta", "order", "spacing", "zero_snr"),
    *("guidance_scale", "guidance_rescale", "guidance_interval", "negative_prompt"),
    *("image", "images", "mask_image", "strength", "lora", "textual_inversion", "weights", "controlnet"),
}


def with_model(settings: Any, *, for_texts: bool) -> Any:
    """A command's settings with a bundled model, where they have none.

    Args:
        settings: a command's dataclass, whose field `model` is None if no model was given.
        for_texts: whether there is a text to draw.
    """
    if settings.model is not None:
        return settings
    said = {field.name for field in dataclasses.fields(settings) if getattr(settings, field.name) != field.default}
    which = TEXTS if for_texts else OTHERS
    model = which.teacher if (said | typed_fields(settings)) & _FOR_TEACHERS else which.usual
    return dataclasses.replace(settings, model=model)
