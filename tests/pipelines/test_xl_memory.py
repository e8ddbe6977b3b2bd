"""Loading Stable Diffusion XL holds its weights once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from fresh import run_file
from tiny_xl import tiny_xl

from ddim.models import UNet2DConditionModel
from ddim.pipelines import StableDiffusionXLPipeline

BOUND = 1.05


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize(("stored", "wanted"), [("float32", "float32"), ("float16", "float16"), ("float16", "float32")])
def test_memory_is_the_weights_once(stored: str, wanted: str, tmp_path: Path) -> None:
    """In a process of its own, with all that a first call costs; of a U-Net with SDXL's blocks and fewer channels."""
    tiny_xl(tmp_path)
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    config |= {"block_out_channels": (160, 320), "transformer_layers_per_block": (2, 20), "norm_num_groups": 32}
    pipe.unet = UNet2DConditionModel.from_config({**config, "attention_head_dim": (4, 8)})
    pipe.to(getattr(torch, stored)).save_pretrained(tmp_path)
    rose, weights = json.loads(run_file(__file__, str(tmp_path), wanted))
    print(f"{stored} as {wanted}: {rose / weights:.3f} of {weights / 1e6:.0f} MB")
    assert weights > 100e6
    assert 0.9 * weights < rose < BOUND * weights + 8e6  # and what any first call costs


def measured(folder: str, wanted: str) -> tuple[int, int]:
    def status(field: str) -> int:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[field].split()[0]) * 1024

    torch.empty(1).sum()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present level
    before = status("VmRSS")
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, dtype=getattr(torch, wanted))
    parameters = [parameter for network in pipe._networks for parameter in network.parameters()]
    for parameter in parameters:
        parameter.detach().sum()
    return status("VmHWM") - before, sum(parameter.nbytes for parameter in parameters)


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:])))
