"""Tiny random ControlNets for the tiny checkpoints of `tiny_sd`, written by diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ddim.models import ControlNetModel


def tiny_control(folder: Path, unet: Any, seed: int = 0, **config: Any) -> Any:
    """diffusers' ControlNet for a U-Net of theirs, with weights everywhere, saved into the folder."""
    import diffusers

    torch.manual_seed(seed)
    network = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    if config:
        network = diffusers.ControlNetModel.from_config({**network.config, **config})
    for name, parameter in network.named_parameters():
        parameter.data += (0.3 if name.startswith("controlnet") else 0.05) * torch.randn_like(parameter)
    network.eval().save_pretrained(folder)
    return network


def both(folder: Path, unet: Any, seed: int = 0, **config: Any) -> tuple[Any, ControlNetModel]:
    """diffusers' ControlNet, and ours with the same weights."""
    return tiny_control(folder, unet, seed, **config), ControlNetModel.from_pretrained(folder)
