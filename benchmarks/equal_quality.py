"""Equal quality: how long whole pipelines take to what diffusers' DDIM reaches in 50 steps.

    python benchmarks/run.py equal_quality

Each takes the fewest steps that are as good: whose distance to the data, by `quality`, is not over that of diffusers'
DDIM with 50 by more than one standard error of the difference, seed by seed. Where the distances are not there yet it
takes hours: `python benchmarks/quality.py digits emoji` makes them beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import text_to_image
import torch
from common import measure
from quality import GOAL, MODELS, OURS, SOLVER, STEPS, Model, Point, fewest, measure_model

from ddim import DiffusionPipeline

Draw = Callable[[int, Point], object]
"""(pictures, a sampler with its steps) -> them, by a whole pipeline"""


def their_texts(dtype: torch.dtype, is_compiled: bool) -> Draw:
    """Text to image by diffusers."""
    pipe = text_to_image.theirs(dtype, is_compiled)
    pipe.set_progress_bar_config(disable=True)
    config = dict(pipe.scheduler.config)

    def draw(count: int, point: Point) -> object:
        pipe.scheduler = point.scheduler(config)
        return pipe(
            text_to_image.PROMPT, num_inference_steps=point.steps, guidance_scale=3.0, guidance_rescale=0.7,
            num_images_per_prompt=count, output_type="np",
        ).images  # fmt: skip

    return draw


def their_digits(is_compiled: bool) -> Draw:
    """diffusers has no pipeline for classes: the loop of its documentation."""
    import diffusers

    pipe = DiffusionPipeline.from_pretrained("digits")
    config = {name: value for name, value in pipe.unet.config.items() if name[0] != "_"}
    unet = diffusers.UNet2DModel(**config).eval()
    unet.load_state_dict(pipe.unet.state_dict())
    network: Any = torch.compile(unet) if is_compiled else unet

    @torch.inference_mode()
    def draw(count: int, point: Point) -> object:
        scheduler = point.scheduler(pipe.scheduler.config)
        scheduler.set_timesteps(point.steps)
        x, labels = torch.randn(pipe.sample_shape(count)), torch.full((count,), 3)
        for timestep in scheduler.timesteps:
            x = scheduler.step(network(x, timestep, labels).sample, timestep, x).prev_sample
        return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()

    return draw


def our_pictures(name: str, dtype: torch.dtype | None) -> Draw:
    pipe = DiffusionPipeline.from_pretrained(name).accelerate("openvino", dtype)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, timestep_spacing="optimized")

    def draw(count: int, point: Point) -> object:
        options: dict[str, Any] = {"num_inference_steps": point.steps, "order": 2, "output_type": "np"}
        if name == "digits":
            return pipe(batch_size=count, class_labels=[3] * count, **options).images
        return pipe(
            text_to_image.PROMPT, num_images_per_prompt=count, guidance_scale=3.0, guidance_rescale=0.7, **options
        ).images

    return draw


def pipelines(model: Model) -> tuple[dict[str, Draw], tuple[int, ...]]:
    """diffusers' default, its best settings and ours; and the numbers of pictures at once."""
    if model.name == "digits":
        own = our_pictures("digits", torch.float32)
        return {"default": their_digits(False), "compiled": their_digits(True), "ours": own}, (1, 64)
    best = their_texts(torch.bfloat16, True)
    drawn = {
        "default": their_texts(torch.float32, False),
        "bfloat16, compiled": best,
        "ours": our_pictures("emoji", None),
    }
    return drawn, (1, 16)


def timed(model: Model, points: list[Point], rounds: int) -> list[str]:
    """Rows of the second table."""
    goal = next(point for point in points if (point.peer, point.steps) == (GOAL, STEPS))
    ours = {errors: fewest(points, OURS, goal, errors) for errors in (1.0, -1.0)}
    solver = fewest(points, SOLVER, goal)
    draws, batches = pipelines(model)
    default, best, own = draws
    chosen = {f"diffusers, {default}": (draws[default], goal), f"diffusers, {best}": (draws[best], goal)}
    if solver is not None:
        chosen |= {f"diffusers, {default} ": (draws[default], solver), f"diffusers, {best} ": (draws[best], solver)}
    for errors, point in ours.items():
        if point is not None:
            chosen["ours" if errors > 0 else "ours, better by an error"] = (draws[own], point)
    rows = []
    for batch in batches:
        times = measure({k: partial(draw, batch, point) for k, (draw, point) in chosen.items()}, rounds, budget=0.1)
        bases = [name for name, (_, point) in chosen.items() if point in (goal, solver)]
        for name, (_, point) in chosen.items():
            ratios = f"**{times[bases[0]] / times[name]:.1f}x**, {times[bases[-1]] / times[name]:.1f}x"
            rows.append(
                f"| {model.name} | {batch} | {name.strip()} | {point.peer.split(' ', 1)[1]} | {point.steps} "
                f"| {times[name] / 1e3:.1f} | {ratios} |"
            )
            print(rows[-1], flush=True)
    return rows


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    about = ", ".join(f"3 x {model.samples:,} {model.name}" for model in MODELS.values())
    lines = [
        "## Equal quality",
        "",
        f"`python benchmarks/run.py equal_quality --rounds {rounds}`. The same network and noises under each sampler "
        f"({about}; seeds 0, 1, 2): Fréchet distance of the bundled features to the data, with its standard deviation "
        "over the seeds, and the error, root mean square over pixels in [-1, 1], to 1,000 steps of DDIM from the same "
        "x_T. **Bold**: not over diffusers' DDIM with 50 steps by more than one standard error of the difference, seed "
        "by seed.",
        "",
        "| model | sampler | steps | distance | error |",
        "|---|---|---|---|---|",
    ]
    rows = []
    for model in MODELS.values():
        points = measure_model(model)
        goal = next(point for point in points if (point.peer, point.steps) == (GOAL, STEPS))
        for point in points:
            distance = f"{point.distance:.3f}"
            distance = f"**{distance}**" if point.is_as_good_as(goal) else distance
            distance += f" ± {point.deviation:.3f}"
            lines.append(f"| {model.name} | {point.peer} | {point.steps} | {distance} | {point.error:.4f} |")
        rows += timed(model, points, rounds)
    lines += [
        "",
        'The times of whole pipelines, each with the fewest steps that are as good in that sense ("better by an '
        'error": nearer to the data by one standard error). **Bold** is how many times faster than the first row, '
        "diffusers' DDIM with 50 steps at its defaults; after it, than diffusers' few-step solver at its best "
        "settings. "
        "diffusers' best settings on a CPU are a compiled U-Net and, for the emoji, bfloat16.",
        "",
        "| model | batch | pipeline | sampler | steps | ms | times faster |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)
