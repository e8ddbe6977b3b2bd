"""Whole pipelines, from a checkpoint's folder to pictures."""

from ddim.images import image_grid, to_images
from ddim.pipelines.base import DiffusionPipeline
from ddim.pipelines.controlled import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
)
from ddim.pipelines.image_to_image import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from ddim.pipelines.outputs import (
    ImagePipelineOutput,
    StableDiffusionPipelineOutput,
    StableDiffusionXLPipelineOutput,
)
from ddim.pipelines.pixels import DDIMPipeline
from ddim.pipelines.text_to_image import StableDiffusionPipeline
from ddim.pipelines.xl import StableDiffusionXLPipeline
from ddim.pipelines.xl_controlled import (
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
)
from ddim.pipelines.xl_image_to_image import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline

__all__ = [
    "DDIMPipeline",
    "DiffusionPipeline",
    "ImagePipelineOutput",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLPipelineOutput",
    "image_grid",
    "to_images",
]
