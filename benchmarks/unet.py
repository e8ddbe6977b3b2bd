"""One forward of a text-to-image U-Net beside diffusers', on the same weights, and what computing once spares.

    python benchmarks/run.py unet

Two sizes: one for 16x16 latents, and Stable Diffusion 2.1's. A text's keys and values and every timestep's embedding
are the same at all steps of a run: `project_text` and `project_time` make them once, and a run is given them. Making
them is not in the times of ours; what it spares is a column of its own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from common import measure

from ddim.backends import accelerate
from ddim.models import UNet2DConditionModel

SMALL = {
    "sample_size": 16,
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 32,
}
FULL = {
    "sample_size": 64,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
# Size, configuration, batches; the largest only for a few rounds, as one forward takes seconds.
SIZES = (("16x16 latents", SMALL, (2, 32)), ("Stable Diffusion 2.1", FULL, (2,)))
TIMESTEP = 500
DEFAULT, BEST = "diffusers, float32", "diffusers, bfloat16, compiled"


def rows(name: str, config: dict[str, Any], batches: tuple[int, ...], rounds: int) -> list[str]:
    """Of the table: each way to run a U-Net, in turn."""
    import diffusers

    torch.manual_seed(0)
    ours = UNet2DConditionModel(**config).eval()
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**config).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    half_theirs = copy.deepcopy(theirs).to(torch.bfloat16)
    compiled = torch.compile(half_theirs)
    half_ours = copy.deepcopy(ours).to(torch.bfloat16)
    types = (torch.float32, torch.bfloat16) if config is SMALL else (torch.bfloat16,)  # as much as memory holds
    converted = {dtype: _share(ours, config) for dtype in types}
    for dtype, network in converted.items():
        accelerate([network], "openvino", dtype)
    size, found = ours.config.sample_size, []
    for batch in batches:
        x, text = torch.randn(batch, 4, size, size), torch.randn(batch, 77, config["cross_attention_dim"])

        def plain(network: Any, x: torch.Tensor = x, text: torch.Tensor = text) -> torch.Tensor:
            dtype = next(network.parameters()).dtype
            out: torch.Tensor = network(x.to(dtype), torch.tensor(TIMESTEP), text.to(dtype)).sample
            return out

        def hoisted(network: Any, x: torch.Tensor = x, text: torch.Tensor = text) -> Callable[[], torch.Tensor]:
            dtype = next(network.parameters()).dtype
            texts, times = network.project_text(text.to(dtype)), network.project_time(torch.tensor([TIMESTEP]))
            given = {"text_cache": texts, "time_cache": times}
            return lambda: network(x.to(dtype), torch.tensor(TIMESTEP), **given).sample

        ways: dict[str, Callable[[], torch.Tensor]] = {
            DEFAULT: lambda: plain(theirs),
            "diffusers, bfloat16": lambda: plain(half_theirs),
            BEST: lambda: plain(compiled),
            "ddim, float32, nothing hoisted": lambda: plain(ours),
            "ddim, float32": hoisted(ours),
            "ddim, bfloat16": hoisted(half_ours),
            **{f"ddim, OpenVINO, {dtype}".replace("torch.", ""): hoisted(each) for dtype, each in converted.items()},
        }
        reference = plain(theirs)
        errors = {}
        for way, run in ways.items():
            started = time.perf_counter()
            errors[way] = float((run().float() - reference).norm() / reference.norm())
            print(f"  {way}: first run {time.perf_counter() - started:.1f} s", flush=True)
        times = measure(ways, rounds, budget=0.3)
        for way, spent in times.items():
            ratios = f"**{times[DEFAULT] / spent:.2f}x**, {times[BEST] / spent:.2f}x"
            found.append(f"| {name} | {batch} | {way} | {spent / 1e3:.1f} | {ratios} | {errors[way]:.1e} |")
            print(found[-1], flush=True)
    return found


def _share(network: UNet2DConditionModel, config: dict[str, Any]) -> UNet2DConditionModel:
    """Another network with the same weights, not a copy of them."""
    with torch.device("meta"):
        other = UNet2DConditionModel(**config).eval()
    other.load_state_dict(network.state_dict(), assign=True)
    return other


@torch.inference_mode()
def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    lines = [
        "## The text-to-image U-Net, one forward",
        "",
        f"`python benchmarks/run.py unet --rounds {rounds}` (seed 0, random weights, 77 tokens; at the size of Stable "
        "Diffusion 2.1 at most 3 rounds). But for the row that says so, ours are given what does not change between "
        "steps: the text's keys and values and the timestep's embeddings. **Bold** is how many times faster than "
        "diffusers' default, then than its compiled bfloat16. The difference is relative, to diffusers in float32.",
        "",
        "| U-Net | batch | run by | ms | times faster | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, config, batches in SIZES:
        lines += rows(name, config, batches, rounds if config is SMALL else min(rounds, 3))
    return "\n".join(lines)
