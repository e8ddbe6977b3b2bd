"""Whole pipelines, from a checkpoint's folder to pictures."""

from ddim.pipelines.base import DiffusionPipeline
from ddim.pipelines.images import image_grid, to_images
from ddim.pipelines.unconditional import DDIMPipeline, ImagePipelineOutput

__all__ = ["DDIMPipeline", "DiffusionPipeline", "ImagePipelineOutput", "image_grid", "to_images"]
