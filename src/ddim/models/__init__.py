"""Networks that load weights in diffusers' layout unchanged."""

from ddim.models.backbone import TimeCache, UNet2DOutput
from ddim.models.unet import UNet2DModel
from ddim.models.unet_condition import TextCache, UNet2DConditionModel

__all__ = ["TextCache", "TimeCache", "UNet2DConditionModel", "UNet2DModel", "UNet2DOutput"]
