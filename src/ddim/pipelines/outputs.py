"""What pipelines return. A type checker knows the kind of the images by the `output_type` that a call gives."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddim.images import enlarge, image_grid
from ddim.step import Output

# What images are: a list of PIL images, an array or a tensor.
Images = TypeVar("Images")

Drawn: TypeAlias = list[Image.Image]
Array: TypeAlias = NDArray[np.float32]
# The output types of pipelines on latents; `images.OutputType` has those of the others.
LatentOutputType: TypeAlias = Literal["pil", "np", "pt", "latent"]

SHOWN = 64  # pictures that a notebook shows of an output
WIDE = 1024  # pixels that several of them take beside each other


@dataclass(eq=False)
class ImagePipelineOutput(Output, Generic[Images]):
    """What a pipeline returns.

    Attributes:
        images: a list of PIL images, an array (b h w c) or a tensor (b c h w), as `output_type` asked.
    """

    images: Images

    def _repr_png_(self) -> bytes | None:
        """The pictures as a notebook shows them, where it is asked to show the output itself.

        Returns:
            A PNG with the first 64 of them row by row, small ones enlarged, and nothing between them, so that it suits
            dark pages too. None where they are no PIL images: a notebook then shows the text.
        """
        images = self.images[:SHOWN] if isinstance(self.images, list) else []
        sizes = {image.size if isinstance(image, Image.Image) else None for image in images}
        if len(sizes) != 1 or None in sizes:
            return None
        widest = WIDE // math.ceil(math.sqrt(len(images)))
        shown = [enlarge(image, least=min(256, widest)) for image in images]
        for image in shown:
            if len(shown) > 1:
                image.thumbnail((widest, widest))
        file = io.BytesIO()
        image_grid(shown, scale=1, gap=4, background=None).save(file, "PNG")
        return file.getvalue()


@dataclass(eq=False)
class StableDiffusionPipelineOutput(ImagePipelineOutput[Images]):
    """What a pipeline on latents returns.

    Attributes:
        images: a list of PIL images, an array (b h w c), a tensor (b c h w), or latents, as `output_type` asked.
        nsfw_content_detected: what the safety checker that was given says of each; None without one.
    """

    images: Images
    nsfw_content_detected: list[bool] | None = None


@dataclass(eq=False)
class StableDiffusionXLPipelineOutput(ImagePipelineOutput[Images]):
    """What a pipeline of Stable Diffusion XL returns.

    Attributes:
        images: a list of PIL images, an array (b h w c), a tensor (b c h w), or latents, as `output_type` asked.
    """

    images: Images


# What a call with return_dict=False returns: the fields of the output as a tuple.
PlainOutput: TypeAlias = tuple[Any, ...]
