"""Text to image end to end on the bundled emoji model, beside diffusers' pipeline on the same weights.

    python benchmarks/run.py text_to_image

The same latents, text, 25 steps, guidance 3 and rescale 0.7 everywhere, from the text to the decoded pictures.
diffusers' default is float32 as it is; its best on a CPU, by its documentation, are bfloat16 weights and a compiled
U-Net. PSNR is to our float32 pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import measure

from ddim import DiffusionPipeline
from ddim.checkpoint import Repository
from ddim.process import gaussian_noise, seeded_generators

BATCHES = (1, 4, 16)
STEPS = 25
DEFAULT = "diffusers"
FASTEST = "diffusers, bfloat16, compiled"


def theirs(dtype: torch.dtype, is_compiled: bool) -> Any:
    """diffusers' pipeline with our weights."""
    import diffusers

    folder = Repository.open("emoji", {}).find("model_index.json").parent  # type: ignore[union-attr]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.to(dtype)
    if is_compiled:
        pipe.unet = torch.compile(pipe.unet)
    return pipe


def ours(backend: str, dtype: torch.dtype | None = None) -> Any:
    return DiffusionPipeline.from_pretrained("emoji").accelerate(backend, dtype)


def psnr(pictures: Any, goal: Any) -> float:
    """Decibels between pictures in [0, 1]."""
    return float(-10 * np.log10(np.square(pictures - goal).mean().clip(1e-20)))


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    pipes = {
        DEFAULT: theirs(torch.float32, False),
        "diffusers, bfloat16": theirs(torch.bfloat16, False),
        FASTEST: theirs(torch.bfloat16, True),
        "eager": ours("eager"),
        "openvino, float32": ours("openvino", torch.float32),
        "openvino": ours("openvino"),
    }
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    lines = [
        "## Text to image, end to end",
        "",
        f"`python benchmarks/run.py text_to_image --rounds {rounds}`: the emoji model, {STEPS} steps, guidance 3, "
        "rescale 0.7, from the text to decoded pictures; the same latents everywhere (seed 0). What is compiled or "
        "converted was so before. **Bold** is how many times faster than diffusers' default, then than its compiled "
        "bfloat16. PSNR is to our float32 pictures.",
        "",
        "| batch | pipeline | ms | times faster | PSNR, dB |",
        "|---|---|---|---|---|",
    ]
    for batch in BATCHES:
        latents = gaussian_noise((batch, 4, 16, 16), seeded_generators(0, batch), torch.device("cpu"), torch.float32)

        def run(pipe: Any, latents: torch.Tensor = latents, batch: int = batch) -> Any:
            with torch.inference_mode():
                return pipe(
                    "a red heart, noto style", num_inference_steps=STEPS, guidance_scale=3.0, guidance_rescale=0.7,
                    latents=latents.to(pipe.unet.dtype), num_images_per_prompt=batch, output_type="np",
                ).images  # fmt: skip

        goal = run(pipes["eager"])
        functions: dict[str, Callable[[], object]] = {name: lambda p=pipe: run(p) for name, pipe in pipes.items()}
        found = {name: psnr(run(pipe), goal) for name, pipe in pipes.items()}
        times = measure(functions, rounds, budget=0.1)
        for name, time in times.items():
            ratios = f"**{times[DEFAULT] / time:.2f}x**, {times[FASTEST] / time:.2f}x"
            near = "" if name == "eager" else f"{found[name]:.0f}"
            lines.append(f"| {batch} | {name} | {time / 1e3:.0f} | {ratios} | {near} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)
