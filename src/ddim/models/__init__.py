"""Networks that load weights in the layout of diffusers and transformers unchanged."""

from ddim.models.backbone import ChosenTimes, ClassTimeCache, TimeCache, UNet2DOutput
from ddim.models.clip import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTextOutput,
    CLIPTextProjectionOutput,
)
from ddim.models.controlnet import ControlNetModel, ControlNetOutput, MultiControlNetModel
from ddim.models.text_backbone import TextCache
from ddim.models.tiny_vae import AutoencoderTiny, AutoencoderTinyOutput
from ddim.models.tokenizer import CLIPTokenizer
from ddim.models.unet import UNet2DModel
from ddim.models.unet_condition import UNet2DConditionModel
from ddim.models.vae import AutoencoderKL, AutoencoderKLOutput, DecoderOutput, DiagonalGaussianDistribution

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLOutput",
    "AutoencoderTiny",
    "AutoencoderTinyOutput",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTextOutput",
    "CLIPTextProjectionOutput",
    "CLIPTokenizer",
    "ChosenTimes",
    "ClassTimeCache",
    "ControlNetModel",
    "ControlNetOutput",
    "DecoderOutput",
    "DiagonalGaussianDistribution",
    "MultiControlNetModel",
    "TextCache",
    "TimeCache",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNet2DOutput",
]
