"""Training data: sources of images by number, with classes or texts, and the endless stream that training reads.

    source                what a source is
    labelled, captioned   where sources come from: digits, folders, tables
    folder, captions, tables, usable   how those are read, and what of them is left out
    preparation           a picture to a tensor
    stream                the shuffled, augmented repetition of a source
"""

from ddim.data.captioned import captioned_source
from ddim.data.labelled import digits, hf_dataset, image_folder, open_source
from ddim.data.preparation import BACKGROUNDS, Choice, Preparation, flatten, say_background, shows_background
from ddim.data.source import Source
from ddim.data.stream import CaptionedStream, Stream
from ddim.data.usable import IMAGE_SUFFIXES

__all__ = [
    "BACKGROUNDS",
    "IMAGE_SUFFIXES",
    "CaptionedStream",
    "Choice",
    "Preparation",
    "Source",
    "Stream",
    "captioned_source",
    "digits",
    "flatten",
    "hf_dataset",
    "image_folder",
    "open_source",
    "say_background",
    "shows_background",
]
