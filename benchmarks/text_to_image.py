"""Text to image end to end on the bundled emoji model, beside diffusers' pipeline on the same weights.

    python benchmarks/run.py text_to_image

The same latents, text, 25 steps, guidance 3 and rescale 0.7 everywhere, from the text to the decoded pictures.
diffusers' default is float32 as it is; its best on a CPU, by its documentation, are bfloat16 weights and a compiled
U-Net. PSNR is to our float32 pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import flops, measure, peak

from ddim import DiffusionPipeline
from ddim.checkpoint import Repository
from ddim.noise import gaussian_noise, seeded_generators
from ddim.sampling import sample

BATCHES = (1, 4, 16)
STEPS = 25
PROMPT = "a red heart, noto style"
DEFAULT = "diffusers, float32"
FASTEST = "diffusers, bfloat16, compiled"
OURS = {
    "ddim, eager": ("eager",),
    "ddim, OpenVINO, float32": ("openvino", torch.float32),
    "ddim, OpenVINO": ("openvino",),
}


def theirs(dtype: torch.dtype, is_compiled: bool) -> Any:
    """diffusers' pipeline with our weights."""
    import diffusers

    folder = Repository.open("emoji", {}).find("model_index.json").parent  # type: ignore[union-attr]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    if is_compiled:
        pipe.unet = torch.compile(pipe.unet)
    return pipe


def ours(backend: Any, dtype: Any = None) -> Any:
    return DiffusionPipeline.from_pretrained("emoji").accelerate(backend, dtype)


def psnr(pictures: Any, goal: Any) -> float:
    """Decibels between pictures in [0, 1]."""
    return float(-10 * np.log10(np.square(pictures - goal).mean().clip(1e-20)))


def outside(pipe: Any, repeats: int = 5) -> tuple[float, float]:
    """Of the loop at batch 1: milliseconds a step, and the share of them that is not spent in the U-Net's core."""
    run = pipe.unet.runner or pipe.unet.core
    inside = 0.0

    def timed(*inputs: torch.Tensor) -> torch.Tensor:
        nonlocal inside
        started = time.perf_counter()
        result: torch.Tensor = run(*inputs)
        inside += time.perf_counter() - started
        return result

    plan = pipe.scheduler.plan(STEPS)
    x = gaussian_noise(pipe.sample_shape(1), seeded_generators(0, 1), pipe.device, pipe.dtype)
    denoiser = pipe.denoiser(plan, 1, prompt=PROMPT, guidance_scale=3.0, guidance_rescale=0.7)
    kept, pipe.unet.runner = pipe.unet.runner, timed
    try:
        for _ in sample(denoiser, x, plan, return_x0=False):
            pass
        inside, started = 0.0, time.perf_counter()
        for _ in range(repeats):
            for _ in sample(denoiser, x, plan, return_x0=False):
                pass
        total = time.perf_counter() - started
    finally:
        pipe.unet.runner = kept
    return total / repeats / STEPS * 1e3, 1 - inside / total


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    pipes = {
        DEFAULT: theirs(torch.float32, False),
        "diffusers, bfloat16": theirs(torch.bfloat16, False),
        FASTEST: theirs(torch.bfloat16, True),
        **{name: ours(*way) for name, way in OURS.items()},
    }
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    lines = [
        "## Text to image, end to end",
        "",
        f"`python benchmarks/run.py text_to_image --rounds {rounds}`: the emoji model, {STEPS} steps, guidance 3, "
        "rescale 0.7, from the text to decoded pictures; the same latents everywhere (seed 0). What is compiled or "
        "converted was so before. **Bold** is how many times faster than diffusers' default, then than its compiled "
        "bfloat16. PSNR is to our float32 pictures. The floor is the networks' work at the speed of the best large "
        "bfloat16 matrix product.",
        "",
        "| batch | pipeline | ms | times faster | PSNR, dB |",
        "|---|---|---|---|---|",
    ]
    speed = peak(torch.bfloat16)
    for batch in BATCHES:
        latents = gaussian_noise((batch, 4, 16, 16), seeded_generators(0, batch), torch.device("cpu"), torch.float32)

        def run(pipe: Any, latents: torch.Tensor = latents, batch: int = batch) -> Any:
            with torch.inference_mode():
                return pipe(
                    PROMPT, num_inference_steps=STEPS, guidance_scale=3.0, guidance_rescale=0.7,
                    latents=latents.to(pipe.unet.dtype), num_images_per_prompt=batch, output_type="np",
                ).images  # fmt: skip

        goal = run(pipes["ddim, eager"])
        functions: dict[str, Callable[[], object]] = {name: lambda p=pipe: run(p) for name, pipe in pipes.items()}
        found = {name: psnr(run(pipe), goal) for name, pipe in pipes.items()}
        times = measure(functions, rounds, budget=0.1)
        for name, spent in times.items():
            ratios = f"**{times[DEFAULT] / spent:.2f}x**, {times[FASTEST] / spent:.2f}x"
            near = "" if name == "ddim, eager" else f"{found[name]:.0f}"
            lines.append(f"| {batch} | {name} | {spent / 1e3:.0f} | {ratios} | {near} |")
            print(lines[-1], flush=True)
        work = flops(lambda: run(pipes["ddim, eager"]))
        floor = work / speed * 1e6
        ratios = f"{times[DEFAULT] / floor:.2f}x, {times[FASTEST] / floor:.2f}x"
        lines.append(f"| {batch} | floor: {work / 1e9:.0f} GFLOP | {floor / 1e3:.0f} | {ratios} | |")
        print(lines[-1], flush=True)
    lines += ["", "What a step of the loop takes at batch 1, and how much of it outside the network (aim: under 2 %):"]
    lines += ["", "| pipeline | ms a step | outside the network |", "|---|---|---|"]
    for name in OURS:
        with torch.inference_mode():
            spent, share = outside(pipes[name])
        lines.append(f"| {name} | {spent:.1f} | {share:.1%} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)
