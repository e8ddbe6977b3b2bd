"""Training data: sources of images, with classes or texts, and the endless stream that training reads.

    progress      tells how far something is: by a bar, or in a log by lines
    source        what a source is: images by number
    labelled      makes sources of images with or without classes
    captioned     makes sources of images with texts
    folder        reads a folder of images with captions
    captions      reads files of captions
    tables        reads datasets of the `datasets` library
    usable        finds out which pictures can be used, and reads them
    preparation   turns a picture into a tensor
    buckets       puts pictures of about one shape together
    stream        repeats a source without end, shuffled and augmented
"""

from ddim.data.captioned import captioned_source
from ddim.data.labelled import digits, hf_dataset, image_folder, open_source
from ddim.data.preparation import BACKGROUNDS, Choice, Preparation, say_background
from ddim.data.source import Source
from ddim.data.stream import CaptionedStream, Stream
from ddim.data.usable import IMAGE_SUFFIXES
from ddim.images.flat import flatten, shows_background

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
