"""Networks that load weights in diffusers' layout unchanged."""

from ddim.models.backbone import TimeCache, UNet2DOutput
from ddim.models.unet import UNet2DModel

__all__ = ["TimeCache", "UNet2DModel", "UNet2DOutput"]
