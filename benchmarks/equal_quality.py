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
from quality import (
    ERRORS,
    FIRST,
    GOAL,
    MODELS,
    OURS,
    SOLVER,
    STEPS,
    Model,
    Point,
    as_near,
    fewest,
    measure_model,
    measured_errors,
    their_scheduler,
)

from ddim import DiffusionPipeline

Draw = Callable[[int, Point], object]
"""(pictures, a sampler with its steps) -> them, by a whole pipeline"""


def their_texts(dtype: torch.dtype, is_compiled: bool) -> Draw:
    """Text to image by diffusers."""
    pipe = text_to_image.theirs(dtype, is_compiled)
    pipe.set_progress_bar_config(disable=True)
    config = dict(pipe.scheduler.config)

    def draw(count: int, point: Point) -> object:
        pipe.scheduler = their_scheduler(point.peer, config)
        return pipe(
            text_to_image.PROMPT, num_inference_steps=point.steps, guidance_scale=3.0, guidance_rescale=0.7,
            num_images_per_prompt=count, output_type="np",
        ).images  # fmt: skip

    return draw


def their_digits(dtype: torch.dtype, is_compiled: bool) -> Draw:
    """diffusers has no pipeline for classes: the loop of its documentation."""
    import diffusers

    pipe = DiffusionPipeline.from_pretrained("digits")
    config = {name: value for name, value in pipe.unet.config.items() if name[0] != "_"}
    unet = diffusers.UNet2DModel(**config).eval()
    unet.load_state_dict(pipe.unet.state_dict())
    unet.to(dtype)
    network: Any = torch.compile(unet) if is_compiled else unet

    @torch.inference_mode()
    def draw(count: int, point: Point) -> object:
        scheduler = their_scheduler(point.peer, pipe.scheduler.config)
        scheduler.set_timesteps(point.steps)
        x, labels = torch.randn(pipe.sample_shape(count), dtype=dtype), torch.full((count,), 3)
        for timestep in scheduler.timesteps:
            x = scheduler.step(network(x, timestep, labels).sample, timestep, x).prev_sample
        return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().numpy()

    return draw


def our_pictures(name: str, dtype: torch.dtype | None) -> Draw:
    pipe = DiffusionPipeline.from_pretrained(name).accelerate("openvino", dtype)
    pipe.set_progress_bar_config(disable=True)
    own = pipe.scheduler
    optimized = own.from_config(own.config, timestep_spacing="optimized")

    def draw(count: int, point: Point) -> object:
        pipe.scheduler = optimized if point.peer == OURS else own
        order = 1 if point.peer == FIRST else 2
        options: dict[str, Any] = {"num_inference_steps": point.steps, "order": order, "output_type": "np"}
        if name == "digits":
            return pipe(batch_size=count, class_labels=[3] * count, **options).images
        return pipe(
            text_to_image.PROMPT, num_images_per_prompt=count, guidance_scale=3.0, guidance_rescale=0.7, **options
        ).images

    return draw


def pipelines(model: Model) -> tuple[dict[str, Draw], tuple[int, ...]]:
    """diffusers' default, its best settings and ours; and the numbers of pictures at once."""
    theirs, batches = (their_digits, (1, 64)) if model.name == "digits" else (their_texts, (1, 16))
    drawn = {
        "default": theirs(torch.float32, False),
        "compiled": theirs(torch.float32, True),
        "bfloat16, compiled": theirs(torch.bfloat16, True),
        "ours": our_pictures(model.name, torch.float32 if model.name == "digits" else None),  # as fast as it can
    }
    return drawn, batches


def table_row(model: Model, point: Point, goal: Point) -> str:
    """Of the first table; bold is what is as good as the goal."""
    distance = f"{point.distance:.3f} ± {point.deviation:.3f}" if point.distances else ""
    is_good = [bool(point.distances) and point.is_as_good_as(goal)]
    is_good += [getattr(point, kind) <= getattr(goal, kind) for kind in ERRORS]
    figures = (distance, f"{point.error:.4f}", f"{point.median:.4f}")
    told = (f"**{text}**" if good else text for text, good in zip(figures, is_good, strict=True))
    return f"| {model.name} | {point.peer} | {point.steps} | {' | '.join(told)} |"


def timed(model: Model, points: list[Point], rounds: int) -> list[str]:
    """Rows of the second table."""
    goal = next(point for point in points if (point.peer, point.steps) == (GOAL, STEPS))
    draws, batches = pipelines(model)
    default, *best, own = draws
    wanted = [(name, goal, "") for name in (default, *best)]
    as_good = {"distance": [fewest(points, peer, goal) for peer in (SOLVER, "ddim")]}
    as_good |= {kind: [as_near(model, peer, kind) for peer in (SOLVER, "ddim")] for kind in ERRORS}
    for criterion, (solver, ours) in as_good.items():
        wanted += [(name, solver, criterion) for name in (default, *best)] if solver else []
        wanted += [(own, ours, criterion)] if ours else []
    rows = []
    for batch in batches:
        runs = {way: partial(draws[way[0]], batch, way[1]) for way in wanted}
        times = measure(runs, rounds, budget=0.1)
        for (name, point, criterion), spent in times.items():
            peers = [times[each] for each in times if each[0] in best and each[2] == criterion != ""]
            ratios = f"**{times[default, goal, ''] / spent:.1f}x**"
            ratios += f", {min(peers) / spent:.1f}x" if peers else ""
            whose = name if name == own else f"diffusers, {name}"
            rows.append(
                f"| {model.name} | {batch} | {whose} | {point.peer.split(' ', 1)[1]} | {point.steps} | {criterion} "
                f"| {spent / 1e3:.1f} | {ratios} |"
            )
            print(rows[-1], flush=True)
    return rows


def section(rounds: int) -> str:
    """The section of docs/benchmarks.md."""
    about = ", ".join(f"3 x {model.samples:,} {model.name}" for model in MODELS.values())
    compared = ", ".join(f"{model.compared} {model.name}" for model in MODELS.values())
    lines = [
        "## Equal quality",
        "",
        f"`python benchmarks/run.py equal_quality --rounds {rounds}`. The same network and noises under each sampler "
        f"({about}; seeds 0, 1, 2; digits in float32, emoji in bfloat16): Fréchet "
        "distance of the bundled features to the data, with its standard deviation over the "
        f"seeds, and the error to 1,000 steps of DDIM from the same x_T ({compared}): root mean square over all "
        "pixels, in [-1, 1], and the median of that of single pictures. **Bold**: a distance that is not over "
        "diffusers' DDIM's with 50 steps by more than one standard error of "
        "the difference, seed by seed, or an error that is not over its.",
        "",
        "| model | sampler | steps | distance | error | median error |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for model in MODELS.values():
        points = measure_model(model)
        goal = next(point for point in points if (point.peer, point.steps) == (GOAL, STEPS))
        listed = {(point.peer, point.steps) for point in points}
        others = [point for point in measured_errors(model) if (point.peer, point.steps) not in listed]
        lines += [table_row(model, point, goal) for point in (*points, *others)]
        rows += timed(model, points, rounds)
    lines += [
        "",
        "Times of whole pipelines, each with the fewest steps of those measured that are as good as diffusers' DDIM "
        "with 50: by the distance in that sense, or by the error. **Bold**: how many times faster than the first row, "
        "diffusers' DDIM with 50 steps at its defaults; after it, than diffusers' few-step solver, as good in the same "
        "sense, at whichever of its best settings on a CPU is faster.",
        "",
        "| model | batch | pipeline | sampler | steps | as good by | ms | times faster |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)
