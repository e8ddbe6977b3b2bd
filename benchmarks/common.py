"""What every benchmark does the same way: times in turn, medians, and what it ran on."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddim import __version__

Key = TypeVar("Key")

# The U-Net of Stable Diffusion XL's base model, by its published config; what is not named is the class's default.
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def measure(functions: Mapping[Key, Callable[[], object]], rounds: int, budget: float = 0.05) -> dict[Key, float]:
    """Median microseconds a call: every round runs each function for about `budget` seconds."""
    counts = {}
    for name, function in functions.items():
        function()
        started = time.perf_counter()
        function()
        counts[name] = max(1, int(budget / (time.perf_counter() - started)))
    times: dict[Key, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            for _ in range(counts[name]):
                function()
            times[name].append((time.perf_counter() - started) / counts[name] * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def flops(function: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that a function has PyTorch do."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def peak(dtype: torch.dtype) -> float:
    """Floating-point operations a second that the best of some large matrix products reaches here."""
    reached = []
    for size in (1024, 2048, 3072):
        x = torch.randn(size, size, dtype=dtype)
        spent = measure({size: lambda x=x: x @ x}, 5, budget=0.3)[size]
        reached.append(2 * size**3 / spent * 1e6)
    return max(reached)


def machine() -> str:
    """The processor and the versions, for the head of a page."""
    import diffusers

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return (
        f"{cpu}, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}, ddim {__version__}"
    )
