"""Denoising diffusion implicit models: sample, train, invert, measure.

The names below are loaded when they are first used, so that `import ddim` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddim._version import __version__ as __version__

_HOMES = {
    "AutoencoderKL": "ddim.models",
    "CLIPTextModel": "ddim.models",
    "CLIPTokenizer": "ddim.models.tokenizer",
    "DDIMInverseScheduler": "ddim.scheduler",
    "DDIMPipeline": "ddim.pipelines.pixels",
    "DDIMScheduler": "ddim.scheduler",
    "DDIMSchedulerOutput": "ddim.step",
    "DiffusionPipeline": "ddim.pipelines",
    "SampleStep": "ddim.sampling",
    "SamplingPlan": "ddim.plan",
    "StableDiffusionImg2ImgPipeline": "ddim.pipelines",
    "StableDiffusionInpaintPipeline": "ddim.pipelines",
    "StableDiffusionPipeline": "ddim.pipelines",
    "UNet2DConditionModel": "ddim.models",
    "UNet2DModel": "ddim.models",
    "sample": "ddim.sampling",
}

__all__ = sorted([*_HOMES, "__version__"])

if TYPE_CHECKING:
    from ddim.models import AutoencoderKL as AutoencoderKL
    from ddim.models import CLIPTextModel as CLIPTextModel
    from ddim.models import UNet2DConditionModel as UNet2DConditionModel
    from ddim.models import UNet2DModel as UNet2DModel
    from ddim.models.tokenizer import CLIPTokenizer as CLIPTokenizer
    from ddim.pipelines import DDIMPipeline as DDIMPipeline
    from ddim.pipelines import DiffusionPipeline as DiffusionPipeline
    from ddim.pipelines import StableDiffusionImg2ImgPipeline as StableDiffusionImg2ImgPipeline
    from ddim.pipelines import StableDiffusionInpaintPipeline as StableDiffusionInpaintPipeline
    from ddim.pipelines import StableDiffusionPipeline as StableDiffusionPipeline
    from ddim.plan import SamplingPlan as SamplingPlan
    from ddim.sampling import SampleStep as SampleStep
    from ddim.sampling import sample as sample
    from ddim.scheduler import DDIMInverseScheduler as DDIMInverseScheduler
    from ddim.scheduler import DDIMScheduler as DDIMScheduler
    from ddim.step import DDIMSchedulerOutput as DDIMSchedulerOutput


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ddim' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
