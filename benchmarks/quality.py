"""How good each sampler's pictures are by its number of steps; nothing is timed here, so other work may run.

    python benchmarks/quality.py digits emoji              # and emoji-fast and digits-fast, where these are there
    python benchmarks/quality.py emoji --student FOLDER    # a student beside the goal, diffusers' DDIM with 50 steps
    python benchmarks/quality.py emoji --student FOLDER --samples 8     # whether it works; says nothing of quality

The samplers run on the same network, guidance and noises, so that they differ by their steps alone: for each number of
steps the Fréchet distance to the data of 3 seeds of samples, and the error to 1,000 steps of DDIM from the same x_T:
the root mean square over all pixels, in [-1, 1], and the median of that of single pictures. A few pictures that turn
into something else dominate the first, and have no say in the second. What was measured is kept in runs/quality, and
gone on from; a model with other weights is refused there.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim import DiffusionPipeline
from ddim.checkpoint import bundled_models
from ddim.checkpoint.files import read_json, read_tensors, save_tensors, write_json
from ddim.data import Source
from ddim.evaluation import load_features
from ddim.evaluation.drawing import Conditions, DenoiserFor, Loop, conditions, draw_numbered, open_data, run_plan
from ddim.evaluation.grid import Grid
from ddim.evaluation.state import Cell, Folder, digest
from ddim.noise import Generators
from ddim.plan import SamplingPlan
from ddim.scheduler import DDIMScheduler
from ddim.scheduler.recommended import KEYS, choose_steps

HERE = Path(__file__).parent.parent
RUNS = HERE / "runs" / "quality"
SEEDS = (0, 1, 2)
ERRORS = ("error", "median")
NO_ERRORS = (math.nan, math.nan)
GOAL, SOLVER, OURS = "diffusers DDIM", "diffusers DPM-Solver++", "ddim, order 2, optimized"
FIRST = "ddim, order 1"
STEPS = 50  # of the goal


@dataclass(frozen=True)
class Model:
    """What is drawn, and compared with what."""

    name: str
    against: str
    samples: int  # of a seed
    batch: int
    guidance: tuple[float, float]
    features: str
    compared: int  # samples behind the error; with 0 none is measured
    peers: Mapping[str, tuple[int, ...]]  # samplers of THEIRS and OWN, and with how many steps
    nearer: Mapping[str, tuple[int, ...]]  # and with how many more for the error alone
    backend: str

    @property
    def runs(self) -> Path:
        """Where what was measured is kept; what was tried with fewer samples lies elsewhere."""
        usual = MODELS[self.name].samples
        return RUNS / (self.name if self.samples == usual else f"{self.name}-of-{self.samples}")

    def pipe(self, student: str | None = None) -> Any:
        pipe = DiffusionPipeline.from_pretrained(student or self.name).accelerate(self.backend)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def source(self) -> Source:
        return open_data(
            self.against, captioned=self.name == "emoji", labelled=False,
            image_column="image", label_column="label", caption_column="captions",
        )  # fmt: skip

    def conditions(self, pipe: Any, source: Source, guidance: tuple[float, float] | None = None) -> Conditions:
        return conditions(pipe, source, "turn", guidance or self.guidance)

    def tried(self, samples: int | None) -> Model:
        """The same with fewer samples, if these are given."""
        return self if samples is None else replace(self, samples=samples, compared=min(samples, self.compared))

    def goal_alone(self) -> Model:
        """The same with the goal as its only sampler."""
        return replace(self, peers={GOAL: (STEPS,)}, nearer={})


MODELS = {
    "digits": Model(
        "digits", "digits", 5000, 250, (1.0, 0.0), "digits", 256,
        {
            GOAL: (10, 20, STEPS),
            OURS: (4, 5, 6, 8, 10, 12),
            SOLVER: (5, 8, 10, 11, 12, 15),
            f"{SOLVER}, trailing": (5, 8, 10, 15),
            f"{SOLVER}, linspace": (5, 8),
            "ddim, order 2": (8, 9, 10, 15),
        },
        {GOAL: (40,), OURS: (16,), SOLVER: (20, 25, 30, 40), "ddim, order 2": (20, 25, 30)},
        backend="eager",  # in float32
    ),
    "emoji": Model(
        "emoji", str(HERE / "data" / "emoji.parquet"), 1000, 25, (3.0, 0.7), "emoji", 64,
        {
            GOAL: (5, STEPS),
            OURS: (4, 5, 6, 8),
            SOLVER: (2, 3, 4, 5, 6, 8),
            FIRST: (2, 3, 4, 5),
            "ddim, order 2": (2, 3, 4, 5),
        },
        {
            GOAL: (40,),
            OURS: (9, 10, 12),
            SOLVER: (10, 12, 15, 20, 25, 30, 40),
            "ddim, order 2": (8, 10, 12, 15, 20, 25),
        },
        backend="openvino",  # in bfloat16
    ),
}  # fmt: skip


# --- the samplers ----------------------------------------------------------------------------------------------------


# diffusers' schedulers by the name of the peer: class, and what is changed of the model's config.
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    GOAL: ("DDIMScheduler", {}),
    SOLVER: ("DPMSolverMultistepScheduler", {}),
    f"{SOLVER}, linspace": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
    f"{SOLVER}, trailing": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
}


def their_scheduler(peer: str, config: Mapping[str, Any]) -> Any:
    """A peer's scheduler of diffusers for a model's config."""
    import diffusers

    kind, changed = THEIRS[peer]
    own = {name: value for name, value in config.items() if name[0] != "_" and name not in DDIMScheduler.own_keys}
    return getattr(diffusers, kind).from_config({**own, **changed})


# Ours: the order of the steps, and the spacing if it is not the model's own.
OWN: dict[str, tuple[int, str | None]] = {FIRST: (1, None), "ddim, order 2": (2, None), OURS: (2, "optimized")}


def their_loop(peer: str, model: DDIMScheduler) -> Loop:
    """A peer's way from noise to samples, with the settings of a model's scheduler and as many steps as the plan."""

    def run(denoiser_for: DenoiserFor, x: Tensor, plan: SamplingPlan, generators: Generators) -> Tensor:
        scheduler = their_scheduler(peer, model.config)
        scheduler.set_timesteps(len(plan))
        denoiser = denoiser_for(model.plan(model.config.num_train_timesteps))  # ready for any timestep
        for timestep in scheduler.timesteps:
            x = scheduler.step(denoiser(x, timestep), timestep, x).prev_sample
        return x

    return run


def our_loop(peer: str, model: DDIMScheduler) -> Loop:
    """Ours, in the same way."""
    order, spacing = OWN[peer]
    spaced = model if spacing is None else model.from_config(model.config, timestep_spacing=spacing)

    def run(denoiser_for: DenoiserFor, x: Tensor, plan: SamplingPlan, generators: Generators) -> Tensor:
        chosen = model if len(plan) == 1 else spaced  # no list of one timestep was searched for
        return run_plan(denoiser_for, x, chosen.plan(len(plan), order=order), generators)

    return run


def steps_of_student(own: DDIMScheduler) -> tuple[int, ...]:
    """With how many steps a student is measured: what it was made for, and fewer."""
    usual = choose_steps(own.config).number
    return (*(number for number in (1, 2) if number < usual), usual)


def student_loop(own: DDIMScheduler) -> Loop:
    """A student's way from noise to samples: steps of first order, spaced as its scheduler recommends it."""

    def run(denoiser_for: DenoiserFor, x: Tensor, plan: SamplingPlan, generators: Generators) -> Tensor:
        spacing = choose_steps(own.config, len(plan)).spacing
        spaced = own.from_config(own.config, timestep_spacing=spacing)
        return run_plan(denoiser_for, x, spaced.plan(len(plan)), generators)

    return run


def loop_of(peer: str, model: DDIMScheduler) -> Loop:
    """What a sampler does between noise and samples, for the model whose scheduler is given."""
    return (their_loop if peer in THEIRS else our_loop)(peer, model)


# --- what is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A sampler with a number of steps."""

    peer: str
    steps: int
    distances: tuple[float, ...]  # of each seed
    error: float
    median: float
    precision: float = math.nan
    recall: float = math.nan

    @property
    def distance(self) -> float:
        return float(np.mean(self.distances))

    @property
    def deviation(self) -> float:
        """Of the seeds."""
        return float(np.std(self.distances, ddof=1))

    def is_as_good_as(self, goal: Point) -> bool:
        """No farther from the data than by one standard error of the difference.

        The noises of a seed are the same for all samplers, so their differences vary less than they do.
        """
        differences = np.subtract(self.distances, goal.distances)
        return bool(differences.mean() <= differences.std(ddof=1) / np.sqrt(len(SEEDS)))


def weights(pipe: Any) -> str:
    """A hash of a pipeline's networks and noise schedule, without the steps that were searched or are recommended."""
    config = {**pipe.scheduler.config, "optimized_timesteps": None, **dict.fromkeys(KEYS)}
    components = {**pipe.components, "scheduler": DDIMScheduler.from_config(config)}
    return digest(SimpleNamespace(components=components))  # type: ignore[arg-type]


def check_weights(model: Model, pipe: Any) -> None:
    """End the program if what was kept of a model was measured with other weights."""
    file, own = model.runs / "weights.json", {"weights": weights(pipe)}
    if not file.exists():
        write_json(file, own)
    elif read_json(file) != own:
        sys.exit(f"{model.runs} has what was measured of {model.name} with other weights: remove it, and start again")


def measure_model(model: Model) -> list[Point]:
    """All samplers of a model; what was measured before is taken from runs/quality."""
    pipe, source, points = model.pipe(), model.source(), []
    check_weights(model, pipe)
    condition = model.conditions(pipe, source)
    errors = measure_errors(model, pipe, condition)
    for peer, numbers in model.peers.items():
        place = model.runs / peer.replace(" ", "-").replace(",", "").lower()
        loop = loop_of(peer, pipe.scheduler)
        points += measure_points(model, peer, numbers, place, pipe, source, condition, loop, errors)
    return points


def measure_student(model: Model, student: str) -> list[Point]:
    """A model that was distilled from `model`: a folder or a bundled one."""
    teacher, pipe, source = model.pipe(), model.pipe(student), model.source()
    check_weights(model, teacher)
    condition = model.conditions(pipe, source, (1.0, 0.0))
    peer, loop = f"student {Path(student).name}", student_loop(pipe.scheduler)
    place = model.runs / f"{peer.replace(' ', '-')}-{digest(pipe)[:8]}"
    file = place / f"errors-{model.compared}.json"
    kept: dict[str, list[float]] = read_json(file) if file.exists() else {}
    goal = reference(model, teacher, model.conditions(teacher, source)) if model.compared else None
    numbers = steps_of_student(pipe.scheduler)
    for steps in numbers:
        if goal is not None and f"{peer} {steps}" not in kept:
            compared = range(model.compared)
            drawn = draw_numbered(pipe, pipe.scheduler.plan(steps), SEEDS[0], compared, condition, loop=loop)
            kept[f"{peer} {steps}"] = errors_of(drawn, goal)
            write_json(file, kept)
    return measure_points(model, peer, numbers, place, pipe, source, condition, loop, kept)


def measure_points(
    model: Model, peer: str, numbers: Iterable[int], place: Path, pipe: Any, source: Source, condition: Conditions,
    loop: Loop, errors: Mapping[str, list[float]],
) -> list[Point]:  # fmt: skip
    """A sampler with each of these numbers of steps."""
    known = weights(pipe) if peer != OURS else digest(pipe)  # the only one that draws at searched timesteps
    settings = {"samples": model.samples, "batch": model.batch, "digest": known, "backend": pipe.backend}
    grid = Grid(
        pipe, source, load_features(model.features), Folder(place, settings), condition,
        samples=model.samples, batch=model.batch, loop=loop,
    )  # fmt: skip
    for _ in grid.run([Cell(0.0, steps, seed) for steps in numbers for seed in SEEDS]):
        pass
    points = []
    for steps in numbers:
        found = [grid.folder.figures(Cell(0.0, steps, seed)) or {} for seed in SEEDS]
        shares = (float(np.mean([each[side] for each in found])) for side in ("precision", "recall"))
        distances = tuple(each["frechet"] for each in found)
        points.append(Point(peer, steps, distances, *errors.get(f"{peer} {steps}", NO_ERRORS), *shares))
    return points


@torch.inference_mode()
def measure_errors(model: Model, pipe: Any, condition: Conditions) -> dict[str, list[float]]:
    """The `ERRORS` of each sampler, by "peer steps"."""
    file = model.runs / f"errors-{model.compared}.json"
    kept: dict[str, list[float]] = read_json(file) if file.exists() else {}
    every = [(peer, steps) for table in (model.peers, model.nearer) for peer, some in table.items() for steps in some]
    wanted = [(peer, steps) for peer, steps in every if f"{peer} {steps}" not in kept]
    if not wanted or not model.compared:
        return kept
    goal, numbers = reference(model, pipe, condition), range(model.compared)
    for peer, steps in wanted:
        loop = loop_of(peer, pipe.scheduler)
        drawn = draw_numbered(pipe, pipe.scheduler.plan(steps), SEEDS[0], numbers, condition, loop=loop)
        kept[f"{peer} {steps}"] = errors_of(drawn, goal)
        write_json(file, kept)
    return kept


def reference(model: Model, pipe: Any, condition: Conditions) -> Tensor:
    """What 1,000 steps of DDIM draw, which errors are to: (n c h w), made once."""
    file = model.runs / f"reference-{model.compared}.safetensors"
    if not file.exists():
        print(f"{model.name}: the reference of 1,000 steps, some minutes", flush=True)
        loop, numbers = loop_of(FIRST, pipe.scheduler), range(model.compared)
        drawn = draw_numbered(pipe, pipe.scheduler.plan(1000), SEEDS[0], numbers, condition, loop=loop)
        save_tensors(file, {"pictures": drawn.contiguous()})
    return read_tensors(file)["pictures"]


def errors_of(drawn: Tensor, goal: Tensor) -> list[float]:
    """The `ERRORS` of pictures (n c h w)."""
    each = (drawn - goal).square().flatten(1).mean(dim=1)  # (n)
    return [float(each.mean().sqrt()), float(each.median().sqrt())]


def measured_errors(model: Model) -> list[Point]:
    """Every sampler and number of steps whose error was measured, without distances."""
    found: dict[str, list[float]] = read_json(model.runs / f"errors-{model.compared}.json")
    named = [(name.rpartition(" ")[::2], errors) for name, errors in found.items()]
    return sorted((Point(peer, int(steps), (), *errors) for (peer, steps), errors in named), key=lambda p: p.steps)


def as_near(model: Model, peer: str, kind: str) -> Point | None:
    """The fewest steps with which one of `ERRORS` is not over the goal's; None if there are none of those measured.

    Args:
        peer: how the names of the samplers begin.
    """
    points = measured_errors(model)
    limit = next(getattr(point, kind) for point in points if (point.peer, point.steps) == (GOAL, STEPS))
    return next((point for point in points if point.peer.startswith(peer) and getattr(point, kind) <= limit), None)


def fewest(points: Iterable[Point], peer: str, goal: Point) -> Point | None:
    """The fewest steps with which a sampler is as good as the goal, of those measured; None if none is."""
    good = [point for point in points if point.peer.startswith(peer) and point.is_as_good_as(goal)]
    return min(good, key=lambda point: point.steps, default=None)


def students_of(name: str, told: list[str]) -> list[str]:
    """Those that were told, or the bundled one of a model if there is one."""
    usual = f"{name}-fast"
    if told or usual in bundled_models():
        return told or [usual]
    print(f"{usual} is not bundled: its rows are left out", file=sys.stderr)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--student", nargs="+", default=[], metavar="MODEL", help="measure these and the goal alone")
    parser.add_argument("--samples", type=int, help="of each seed, to try something; kept apart")
    options = parser.parse_args()
    if options.student and len(options.models) > 1:
        parser.error("--student is for one model: the one that it was distilled from")
    for name in options.models:
        model = MODELS[name].tried(options.samples)
        points = measure_model(model.goal_alone() if options.student else model)
        goal = next(point for point in points if (point.peer, point.steps) == (GOAL, STEPS))
        for student in students_of(name, options.student):
            points += measure_student(model, student)
        print("model    sampler                            steps distance          error  median precision recall")
        for point in points:
            print(
                f"{name:8} {point.peer:34} {point.steps:5} {point.distance:.3f} ± {point.deviation:.3f} "
                f"{point.error:.4f} {point.median:.4f} {point.precision:9.3f} {point.recall:6.3f} "
                f"{'*' if point.is_as_good_as(goal) else ''}"
            )


if __name__ == "__main__":
    main()
