"""The digits network under our sampler and under a loop around diffusers' DDIMScheduler: the same distance to the data?

    python scripts/figures/agreement_distance.py [--samples 5000] [--steps 10 50] [--seeds 0 1 2]

Both start from the same noises, so what differs is the sampler alone. Each seed gives one Fréchet distance (of the
digits features, to all 1,797 digits) for each sampler; how much seeds differ is the error of resampling. Resumable,
under runs/agreement; the table goes to docs/agreement.md. Needs diffusers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim import DiffusionPipeline
from ddim.checkpoint import write_text
from ddim.data import digits
from ddim.evaluation import load_features
from ddim.evaluation.drawing import Conditions, conditions
from ddim.evaluation.grid import Grid
from ddim.evaluation.report import versions
from ddim.evaluation.state import Cell, Folder, digest
from ddim.noise import gaussian_noise, seeded_generators
from ddim.plan import SamplingPlan

HERE = Path(__file__).parent.parent.parent
Distances = dict[str, dict[int, list[float]]]  # sampler -> steps -> one for each seed


@torch.inference_mode()
def by_diffusers(
    pipe: Any,
    plan: SamplingPlan,
    seed: int,
    numbers: range,
    conditions: Conditions,
    progress: Callable[[int], Any] = lambda count: None,
) -> Tensor:
    """What `ddim.evaluation.drawing.draw` does, by a hand-written loop; of the plan, only its length is used."""
    import diffusers

    scheduler = diffusers.DDIMScheduler.from_config(
        {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    )
    scheduler.set_timesteps(len(plan))
    generators = seeded_generators(seed, len(numbers), first=numbers.start)
    x = gaussian_noise(pipe.sample_shape(len(numbers)), generators, pipe.device, pipe.dtype)
    labels = torch.tensor(conditions(seed, numbers)["class_labels"])
    for timestep in scheduler.timesteps:
        x = scheduler.step(pipe.unet(x, timestep, labels).sample, timestep, x, eta=0.0).prev_sample
        progress(len(numbers))
    return x.clamp(-1, 1)


def compare(out: Path, samples: int, steps: Sequence[int], seeds: Sequence[int], batch: int = 500) -> Distances:
    """The Fréchet distances by both samplers."""
    pipe = DiffusionPipeline.from_pretrained("digits")
    pipe.set_progress_bar_config(disable=True)
    source, extractor = digits("all"), load_features("digits")
    found: Distances = {}
    for name, sampler in {"ddim": None, "diffusers": by_diffusers}.items():
        folder = Folder(out / name, {"samples": samples, "batch": batch, "digest": digest(pipe)})
        condition = conditions(pipe, source, "turn", (1.0, 0.0))
        grid = Grid(pipe, source, extractor, folder, condition, samples=samples, batch=batch, sampler=sampler)
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
