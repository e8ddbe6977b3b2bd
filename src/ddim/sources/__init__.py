"""Where training images come from: lists of images that can be loaded by number, with classes or with texts."""

from ddim.sources.base import Source
from ddim.sources.captioned import captioned_source
from ddim.sources.labelled import digits, hf_dataset, image_folder, open_source
from ddim.sources.pictures import IMAGE_SUFFIXES

__all__ = [
    "IMAGE_SUFFIXES",
    "Source",
    "captioned_source",
    "digits",
    "hf_dataset",
    "image_folder",
    "open_source",
]
