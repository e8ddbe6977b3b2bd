"""The digits network under our sampler and under a loop around diffusers' DDIMScheduler: the same distance to the data?

    python scripts/figures/agreement_distance.py [--samples 5000] [--steps 10 50] [--seeds 0 1 2]

Both start from the same noises and ask the same network, so what differs is the sampler alone. Each seed gives one
Fréchet distance (of the digits features, to all 1,797 digits) for each sampler; how much seeds differ is the error of
resampling. Batches are kept under runs/agreement, so an interrupted run goes on; the table goes to docs/agreement.md.
Needs diffusers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ddim import DiffusionPipeline
from ddim.checkpoint import write_text
from ddim.data import digits
from ddim.evaluation import load_features
from ddim.evaluation.drawing import DenoiserFor, Loop, conditions, run_plan
from ddim.evaluation.grid import Grid
from ddim.evaluation.report import versions
from ddim.evaluation.state import Cell, Folder, digest
from ddim.noise import Generators
from ddim.plan import SamplingPlan
from ddim.scheduler import DDIMScheduler

HERE = Path(__file__).parent.parent.parent
Distances = dict[str, dict[int, list[float]]]  # sampler -> steps -> one for each seed


def diffusers_loop(ours: DDIMScheduler) -> Loop:
    """A hand-written loop around diffusers' scheduler with our settings; of the plan, only its length is used."""
    import diffusers

    config = {name: value for name, value in ours.config.items() if not name.startswith("_")}

    def run(denoiser_for: DenoiserFor, x: Tensor, plan: SamplingPlan, generators: Generators) -> Tensor:
        scheduler = diffusers.DDIMScheduler.from_config(config)
        scheduler.set_timesteps(len(plan))
        denoiser = denoiser_for(ours.plan(timesteps=scheduler.timesteps.tolist()))
        for timestep in scheduler.timesteps:
            x = scheduler.step(denoiser(x, timestep), timestep, x, eta=0.0).prev_sample
        return x

    return run


def compare(out: Path, samples: int, steps: Sequence[int], seeds: Sequence[int], batch: int = 500) -> Distances:
    """The Fréchet distances by both samplers."""
    pipe = DiffusionPipeline.from_pretrained("digits")
    pipe.set_progress_bar_config(disable=True)
    source, extractor = digits("all"), load_features("digits")
    found: Distances = {}
    for name, loop in {"ddim": run_plan, "diffusers": diffusers_loop(pipe.scheduler)}.items():
        folder = Folder(out / name, {"samples": samples, "batch": batch, "digest": digest(pipe)})
        condition = conditions(pipe, source, "turn", (1.0, 0.0))
        grid = Grid(pipe, source, extractor, folder, condition, samples=samples, batch=batch, loop=loop)
        cells = [Cell(0.0, number, seed) for number in steps for seed in seeds]
        for _ in grid.run(cells):
            pass
        figures = {cell: folder.figures(cell) or {} for cell in cells}
        found[name] = {number: [figures[Cell(0.0, number, seed)]["frechet"] for seed in seeds] for number in steps}
    return found


def as_markdown(found: Distances, samples: int, seeds: Sequence[int]) -> str:
    import diffusers

    lines = [
        "# The same distance as by diffusers",
        "",
        f"Written by `python scripts/figures/agreement_distance.py`: the digits network, η = 0, {samples:,} samples of "
        f"each of the seeds {', '.join(map(str, seeds))}, Fréchet distance of digits features to all 1,797 digits. "
        f"diffusers {diffusers.__version__}, torch {versions()['torch']}.",
        "",
        "| S | ours | diffusers' scheduler | largest difference of one seed | deviation over seeds |",
        "|---|---|---|---|---|",
    ]
    for number, ours in found["ddim"].items():
        theirs = found["diffusers"][number]
        gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        lines.append(
            f"| {number} | {', '.join(f'{d:.4f}' for d in ours)} | {', '.join(f'{d:.4f}' for d in theirs)} | {gap:.1g} "
            f"| {np.std(ours, ddof=1):.2g} |"
        )
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "agreement")
    parser.add_argument("--write", type=Path, default=HERE / "docs" / "agreement.md")
    return parser


def main() -> None:
    options = parser().parse_args()
    page = as_markdown(
        compare(options.out, options.samples, options.steps, options.seeds), options.samples, options.seeds
    )
    write_text(options.write, page)
    print(page)


if __name__ == "__main__":
    main()
