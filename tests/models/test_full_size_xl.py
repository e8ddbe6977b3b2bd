"""Stable Diffusion XL at its full size: one real forward of the U-Net, on weights that both networks share."""

from __future__ import annotations

import math
import sys
import zlib
from typing import Any

import pytest
import torch
from fresh import run_file
from tiny_xl import SDXL

from ddim.checkpoint.loading import skeleton
from ddim.models import UNet2DConditionModel


@pytest.mark.slow
def test_a_full_forward_is_diffusers() -> None:
    """Batch 1, 32x32 latents, bfloat16, in a process of its own: 5.1 GB of weights, which are there once."""
    error, spread = map(float, run_file(__file__, "forward", timeout=1800).split())
    print(f"relative error {error:.1e}")
    assert spread > 0.05
    assert error < 0.02  # of the type's rounding, in a different order


@torch.no_grad()
def forward() -> None:
    import diffusers

    config: dict[str, Any] = {name: value for name, value in SDXL.items() if value is not None}
    with skeleton():
        ours = UNet2DConditionModel.from_config(config).to(torch.bfloat16)
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(config).to(torch.bfloat16)
    ours.to_empty(device="cpu")
    for name, parameter in ours.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if parameter.ndim == 1:
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1, generator=generator)
        else:
            parameter.normal_(0.0, math.prod(parameter.shape[1:]) ** -0.5, generator=generator)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    generator = torch.Generator().manual_seed(0)
    x, text, vector = (
        torch.randn(shape, generator=generator).to(torch.bfloat16)
        for shape in ((1, 4, 32, 32), (1, 77, 2048), (1, 1280))
    )
    told = {"text_embeds": vector, "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])}
    outs = []
    for network in (ours.eval(), theirs.eval()):
        outs.append(network(x, 501, text, added_cond_kwargs=told).sample.double())
    error = (outs[0] - outs[1]).norm() / outs[1].norm()
    print(float(error), float(outs[1].std()))


if __name__ == "__main__" and sys.argv[1:] == ["forward"]:
    forward()
