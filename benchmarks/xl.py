"""One forward of Stable Diffusion XL's U-Net, at 1x4x64x64, beside diffusers' on the same weights.

    python benchmarks/run.py xl --rounds 3

The weights are random, in bfloat16, 5.1 GB that both networks share. They are written to files and mapped from these,
so that the system can let go of them while OpenVINO makes its own copy, of a float32 one of 10 GB. What does not change
in a run is not in the times of ours that are given it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import SDXL, measure

from ddim.backends import accelerate
from ddim.checkpoint.loading import skeleton
from ddim.models import UNet2DConditionModel

TIMESTEP = 500
DEFAULT = "diffusers, bfloat16"


def _network(folder: Path) -> UNet2DConditionModel:
    """With random weights that keep signals about as large as they are, mapped from files in a folder."""
    with skeleton():
        network = UNet2DConditionModel(**SDXL).to(torch.bfloat16)
    network.to_empty(device="cpu")
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    network.save_pretrained(folder)
    del network
    return UNet2DConditionModel.from_pretrained(folder, dtype="auto")


def _like(kind: Any, network: UNet2DConditionModel) -> Any:
    """A network of a class with the same weights, not a copy of them."""
    with torch.device("meta"):
        other = kind(**SDXL).to(torch.bfloat16)
    other.load_state_dict(network.state_dict(), assign=True)
    return other.eval()


@torch.inference_mode()
def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    import diffusers

    with tempfile.TemporaryDirectory() as folder:
        ours = _network(Path(folder))  # what is mapped stays there without its name
    theirs, converted = _like(diffusers.UNet2DConditionModel, ours), _like(UNet2DConditionModel, ours)
    accelerate([converted], "openvino", torch.bfloat16)
    x, text = torch.randn(1, 4, 64, 64).bfloat16(), torch.randn(1, 77, 2048).bfloat16()
    told = {
        "text_embeds": torch.randn(1, 1280).bfloat16(),
        "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]]),
    }
    timestep = torch.tensor(TIMESTEP)
    given = {
        "text_cache": ours.project_text(text),
        "time_cache": ours.project_time(timestep[None], added_cond_kwargs=told),
    }
    ways: dict[str, Callable[[], torch.Tensor]] = {
        DEFAULT: lambda: theirs(x, timestep, text, added_cond_kwargs=told).sample,
        "ddim, bfloat16, nothing hoisted": lambda: ours(x, timestep, text, added_cond_kwargs=told).sample,
        "ddim, bfloat16": lambda: ours(x, timestep, **given).sample,
        "ddim, OpenVINO, bfloat16": lambda: converted(x, timestep, **given).sample,
    }
    reference = ways[DEFAULT]().float()
    errors = {}
    for way, run in ways.items():
        started = time.perf_counter()
        errors[way] = float((run().float() - reference).norm() / reference.norm())
        print(f"  {way}: first run {time.perf_counter() - started:.1f} s", flush=True)
    times = measure(ways, min(rounds, 5), budget=0.3)
    lines = [
        "## Stable Diffusion XL's U-Net, one forward",
        "",
        f"`python benchmarks/run.py xl --rounds {rounds}` (seed 0, random weights in bfloat16 that both share, "
        "1x4x64x64, 77 tokens). **Bold** is how many times faster than diffusers. The difference is relative, and of "
        "bfloat16's rounding.",
        "",
        "| run by | ms | times faster | difference |",
        "|---|---|---|---|",
    ]
    for way, spent in times.items():
        lines.append(f"| {way} | {spent / 1e3:.0f} | **{times[DEFAULT] / spent:.2f}x** | {errors[way]:.1e} |")
    return "\n".join(lines)
