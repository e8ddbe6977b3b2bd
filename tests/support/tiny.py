"""A pipeline small enough to be made in a moment, for tests of everything around the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ddim.models import UNet2DModel
from ddim.pipelines import DDIMPipeline
from ddim.scheduler import DDIMScheduler

torch.set_num_threads(1)  # networks this small only lose time with more

# One layer at each of two resolutions, attention at the lower one; 8x8 images.
CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}


def tiny_unet(seed: int = 0, **config: Any) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(**{**CONFIG, **config}).eval()


def tiny_pipeline(seed: int = 0, scheduler: Any = None, **config: Any) -> DDIMPipeline:
    pipe = DDIMPipeline(tiny_unet(seed, **config), scheduler or DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny(folder: Path, **config: object) -> str:
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        **config,  # type: ignore[arg-type]
    )
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder)
    return str(folder)
