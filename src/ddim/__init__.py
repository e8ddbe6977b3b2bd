"""Denoising diffusion implicit models: sample, train, invert, measure.

The names below are loaded when they are first used, so that `import ddim` costs nothing. Each stands here three times,
and a test keeps the three alike: `__all__` says that it is public, the imports under `TYPE_CHECKING` tell editors and
type checkers what it is, and `_HOMES` says where it is found at run time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddim._version import __version__

__all__ = [
    "AutoencoderKL",
    "AutoencoderTiny",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "ControlNetModel",
    "DDIMError",
    "DDIMInverseScheduler",
    "DDIMPipeline",
    "DDIMScheduler",
    "DDIMSchedulerOutput",
    "DiffusionPipeline",
    "MultiControlNetModel",
    "Row",
    "SampleStep",
    "SamplingPlan",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline",
    "UNet2DConditionModel",
    "UNet2DModel",
    "__version__",
    "sample",
]

_HOMES = {
    "AutoencoderKL": "ddim.models",
    "AutoencoderTiny": "ddim.models",
    "CLIPTextModel": "ddim.models",
    "CLIPTextModelWithProjection": "ddim.models",
    "CLIPTokenizer": "ddim.models",
    "ControlNetModel": "ddim.models",
    "DDIMError": "ddim.errors",
    "DDIMInverseScheduler": "ddim.scheduler",
    "DDIMPipeline": "ddim.pipelines",
    "DDIMScheduler": "ddim.scheduler",
    "DDIMSchedulerOutput": "ddim.step",
    "DiffusionPipeline": "ddim.pipelines",
    "MultiControlNetModel": "ddim.models",
    "Row": "ddim.step",
    "SampleStep": "ddim.sampling",
    "SamplingPlan": "ddim.plan",
    "StableDiffusionControlNetImg2ImgPipeline": "ddim.pipelines",
    "StableDiffusionControlNetInpaintPipeline": "ddim.pipelines",
    "StableDiffusionControlNetPipeline": "ddim.pipelines",
    "StableDiffusionImg2ImgPipeline": "ddim.pipelines",
    "StableDiffusionInpaintPipeline": "ddim.pipelines",
    "StableDiffusionPipeline": "ddim.pipelines",
    "StableDiffusionXLControlNetImg2ImgPipeline": "ddim.pipelines",
    "StableDiffusionXLControlNetInpaintPipeline": "ddim.pipelines",
    "StableDiffusionXLControlNetPipeline": "ddim.pipelines",
    "StableDiffusionXLImg2ImgPipeline": "ddim.pipelines",
    "StableDiffusionXLInpaintPipeline": "ddim.pipelines",
    "StableDiffusionXLPipeline": "ddim.pipelines",
    "UNet2DConditionModel": "ddim.models",
    "UNet2DModel": "ddim.models",
    "sample": "ddim.sampling",
}

if TYPE_CHECKING:
    from ddim.errors import DDIMError
    from ddim.models import (
        AutoencoderKL,
        AutoencoderTiny,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        ControlNetModel,
        MultiControlNetModel,
        UNet2DConditionModel,
        UNet2DModel,
    )
    from ddim.pipelines import (
        DDIMPipeline,
        DiffusionPipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionControlNetInpaintPipeline,
        StableDiffusionControlNetPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
        StableDiffusionXLControlNetImg2ImgPipeline,
        StableDiffusionXLControlNetInpaintPipeline,
        StableDiffusionXLControlNetPipeline,
        StableDiffusionXLImg2ImgPipeline,
        StableDiffusionXLInpaintPipeline,
        StableDiffusionXLPipeline,
    )
    from ddim.plan import SamplingPlan
    from ddim.sampling import SampleStep, sample
    from ddim.scheduler import DDIMInverseScheduler, DDIMScheduler
    from ddim.step import DDIMSchedulerOutput, Row
else:  # a type checker that saw this function would take every name for one of ours, misspelt ones too

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'ddim' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
