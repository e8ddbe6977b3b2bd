"""What pipelines return. A type checker knows the kind of the images by the `output_type` that a call gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddim.step import Output

# What images are: a list of PIL images, an array or a tensor.
Images = TypeVar("Images")

Drawn: TypeAlias = list[Image.Image]
Array: TypeAlias = NDArray[np.float32]
# The output types of pipelines on latents; `images.OutputType` has those of the others.
LatentOutputType: TypeAlias = Literal["pil", "np", "pt", "latent"]


@dataclass(eq=False)
class ImagePipelineOutput(Output, Generic[Images]):
    """What a pipeline returns.

    Attributes:
        images: a list of PIL images, an array (b h w c) or a tensor (b c h w), as `output_type` asked.
    """

    images: Images


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
