"""Equal quality: how long whole pipelines take to what diffusers' DDIM reaches in 50 steps.

    python benchmarks/run.py equal_quality    # samplers on the same network
    python benchmarks/run.py students         # the bundled students beside diffusers' samplers on their teachers

Each sampler takes the fewest steps that are as good: whose distance to the data, by `quality`, is not over that of
diffusers' DDIM with 50 by more than one standard error of the difference, seed by seed. Where the distances are not
there yet it takes hours: `python benchmarks/quality.py digits emoji` makes them beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
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
    measure_student,
    measured_errors,
    students_of,
    their_scheduler,
)

from ddim import DiffusionPipeline

Draw = Callable[[int, Point], object]
"""(pictures, a sampler with its steps) -> them, by a whole pipeline"""

Way = tuple[str, Point, str]
"""What is timed: the name of a pipeline, a sampler with its steps, and what it is as good by."""


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


def student_pictures(model: Model, student: str) -> Draw:
    """A student's, whose guidance is its own."""
    pipe = DiffusionPipeline.from_pretrained(student).accelerate("openvino", our_type(model))
    pipe.set_progress_bar_config(disable=True)

    def draw(count: int, point: Point) -> object:
        options: dict[str, Any] = {"num_inference_steps": point.steps, "output_type": "np"}
        if model.name == "digits":
            return pipe(batch_size=count, class_labels=[3] * count, **options).images
        return pipe(text_to_image.PROMPT, num_images_per_prompt=count, **options).images

    return draw


def our_type(model: Model) -> torch.dtype | None:
    """What our pipelines compute in; None is as fast as it can."""
    return torch.float32 if model.name == "digits" else None


def their_pipelines(model: Model) -> tuple[dict[str, Draw], tuple[int, ...]]:
    """diffusers' default and its best settings; and the numbers of pictures at once."""
    theirs, batches = (their_digits, (1, 64)) if model.name == "digits" else (their_texts, (1, 16))
    drawn = {
        "default": theirs(torch.float32, False),
        "compiled": theirs(torch.float32, True),
        "bfloat16, compiled": theirs(torch.bfloat16, True),
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


def goal_of(points: Iterable[Point]) -> Point:
    """diffusers' DDIM with 50 steps."""
    return next(point for point in points if (point.peer, point.steps) == (GOAL, STEPS))


def how_good(point: Point, goal: Point, criterion: str) -> str:
    """By what a row is as good as the goal; of one whose distance is not, how much larger that is."""
    if criterion != "distance" or point.is_as_good_as(goal):
        return criterion
    return f"distance, {point.distance / goal.distance - 1:+.0%}"


def timed(model: Model, points: list[Point], rounds: int) -> list[str]:
    """Rows of samplers: what is as good as the goal by any criterion."""
    goal = goal_of(points)
    draws, batches = their_pipelines(model)
    wanted: list[Way] = [(name, goal, "") for name in draws]
    as_good = {"distance": [fewest(points, peer, goal) for peer in (SOLVER, "ddim")]}
    as_good |= {kind: [as_near(model, peer, kind) for peer in (SOLVER, "ddim")] for kind in ERRORS}
    for criterion, (solver, ours) in as_good.items():
        wanted += [(name, solver, criterion) for name in draws] if solver else []
        wanted += [("ours", ours, criterion)] if ours else []
    return time_ways(model, wanted, {**draws, "ours": our_pictures(model.name, our_type(model))}, batches, rounds)


def timed_students(model: Model, students: Mapping[str, list[Point]], points: list[Point], rounds: int) -> list[str]:
    """Rows of students, with each number of steps, and of what they are compared with."""
    goal = goal_of(points)
    draws, batches = their_pipelines(model)
    wanted: list[Way] = [(name, goal, "") for name in draws]
    solver = fewest(points, SOLVER, goal)
    if solver is None:  # then the nearest of those measured, whose row says how far it is
        solver = min((point for point in points if point.peer == SOLVER), key=lambda point: point.distance)
    wanted += [(name, solver, "distance") for name in draws]
    own = {name: student_pictures(model, name) for name in students}
    wanted += [(name, point, "distance") for name, measured in students.items() for point in measured]
    return time_ways(model, wanted, {**draws, **own}, batches, rounds)


def time_ways(
    model: Model, wanted: list[Way], draws: Mapping[str, Draw], batches: tuple[int, ...], rounds: int
) -> list[str]:
    """A row of each way and number of pictures. The first way is the goal, at diffusers' defaults."""
    rows = []
    first, goal, _ = wanted[0]
    theirs = [name for name, point, criterion in wanted if (point, criterion) == (goal, "")]
    for batch in batches:
        runs = {way: partial(draws[way[0]], batch, way[1]) for way in wanted}
        times = measure(runs, rounds, budget=0.1)
        for (name, point, criterion), spent in times.items():
            peers = [times[each] for each in times if each[0] in theirs[1:] and each[2] == criterion != ""]
            ratios = f"**{times[first, goal, ''] / spent:.1f}x**"
            ratios += f", {min(peers) / spent:.1f}x" if peers else ""
            whose = f"diffusers, {name}" if name in theirs else name
            sampler = point.peer.split(" ", 1)[1] if name not in point.peer else "its own"
            rows.append(
                f"| {model.name} | {batch} | {whose} | {sampler} | {point.steps} | {how_good(point, goal, criterion)} "
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
        goal = goal_of(points)
        listed = {(point.peer, point.steps) for point in points}
        others = [point for point in measured_errors(model) if (point.peer, point.steps) not in listed]
        lines += [table_row(model, point, goal) for point in (*points, *others)]
        rows += timed(model, points, rounds)
    lines += [
        "",
        "These are times of whole pipelines, each with the fewest steps of those measured that are as good as "
        "diffusers' DDIM with 50: by the distance in that sense, or by the error. **Bold**: how many times faster"
        " than the first row, diffusers' DDIM with 50 steps at its defaults; after it, than diffusers' few-step "
        "solver, as good in the same sense, at whichever of its best settings on a CPU is faster.",
        "",
        "| model | batch | pipeline | sampler | steps | as good by | ms | times faster |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)


def students_section(rounds: int) -> str:
    """The section of docs/benchmarks.md about students."""
    lines = [
        "## Students",
        "",
        f"`python benchmarks/run.py students --rounds {rounds}`. The bundled [students](distillation.md) beside "
        "diffusers' samplers on their teachers. The distances are measured as above; precision is the share of "
        "samples that lie where the data lies, recall the share of the data that lies where the samples do. An "
        "evaluation is one prediction for one picture: guidance takes two a step, and a student none. **Bold** "
        "means what it means above.",
        "",
        "| model | sampler | steps | evaluations | distance | precision | recall |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = []
    for name in MODELS:
        peers = {GOAL: (STEPS,), SOLVER: MODELS[name].peers[SOLVER]}
        model = replace(MODELS[name], peers=peers, nearer={}, compared=0)
        points = measure_model(model)
        students = {student: measure_student(model, student) for student in students_of(name, [])}
        for measured in (points, *students.values()):
            lines += [student_row(model, point, goal_of(points)) for point in measured]
        rows += timed_students(model, students, points, rounds)
    lines += [
        "",
        "These are times of whole pipelines. **Bold**: how many times faster than the first row, diffusers' DDIM "
        "with 50 steps at its defaults; after it, than diffusers' few-step solver with the fewest steps that are "
        "as good as that, at whichever of its best settings on a CPU is faster. Where a student's distance is not"
        " as good, the column says by how much it is larger.",
        "",
        "| model | batch | pipeline | sampler | steps | as good by | ms | times faster |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)


def student_row(model: Model, point: Point, goal: Point) -> str:
    """Of the first table of students; bold is a distance as good as the goal's."""
    is_guided = model.guidance[0] != 1 and not point.peer.startswith("student")
    distance = f"{point.distance:.3f} ± {point.deviation:.3f}"
    distance = f"**{distance}**" if point.is_as_good_as(goal) else distance
    figures = f"{distance} | {point.precision:.3f} | {point.recall:.3f}"
    return f"| {model.name} | {point.peer} | {point.steps} | {point.steps * (1 + is_guided)} | {figures} |"
