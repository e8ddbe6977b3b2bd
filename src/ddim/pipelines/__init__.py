"""Whole pipelines, from a checkpoint's folder to pictures."""

from ddim.images import image_grid, to_images
from ddim.pipelines.base import DiffusionPipeline
from ddim.pipelines.controlled import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
)
from ddim.pipelines.image_to_image import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from ddim.pipelines.outputs import ImagePipelineOutput, StableDiffusionPipelineOutput
from ddim.pipelines.pixels import DDIMPipeline
from ddim.pipelines.text_to_image import StableDiffusionPipeline

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
    "image_grid",
    "to_images",
]
