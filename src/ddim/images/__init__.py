"""Pictures: read from files that may be anyone's, made from tensors, and shown together.

reading      the one door through which pictures come in
containers   what a picture's file holds, of each format
tiff         the same of TIFF, and EXIF
spans        a file made of parts of another
drawn        pictures from tensors, grids, animations
conditions   what a ControlNet is shown, made of a picture
"""

from typing import TYPE_CHECKING, Any

from ddim.images.drawn import (
    OUTPUT_TYPES,
    SUFFIXES,
    OutputType,
    enlarge,
    image_grid,
    there_and_back,
    to_images,
    to_pil,
    write_animation,
)
from ddim.images.reading import MAX_PIXELS, MAX_SIDE, check_picture, loaded, png_text, read_picture, upright

if TYPE_CHECKING:
    from ddim.images.conditions import condition_image

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "OUTPUT_TYPES",
    "SUFFIXES",
    "OutputType",
    "check_picture",
    "condition_image",
    "enlarge",
    "image_grid",
    "loaded",
    "png_text",
    "read_picture",
    "there_and_back",
    "to_images",
    "to_pil",
    "upright",
    "write_animation",
]


def __getattr__(name: str) -> Any:
    """`condition_image`, which needs PyTorch: whoever only reads pictures does not wait for it."""
    if name == "condition_image":
        from ddim.images.conditions import condition_image

        return condition_image
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
