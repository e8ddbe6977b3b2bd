"""The timesteps for few steps that the bundled models ship with, for steps of second order, into their schedulers.

Beside them, the scheduler of a model gets what is recommended for it: what is used where nobody says how to sample.

    python scripts/optimize_timesteps.py digits        # some five minutes on one core
    python scripts/optimize_timesteps.py emoji         # half an hour

What they are worth on other noise, and other captions, is measured by benchmarks/quality.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ddim import DDIMScheduler
from ddim.cli.optimize import OptimizeSettings, run_optimize
from ddim.evaluation.drawing import open_data

HERE = Path(__file__).parent.parent
WEIGHTS = HERE / "src" / "ddim" / "weights"

# Why these is said in docs/speed.md, by docs/benchmarks.md.
RECOMMENDED: dict[str, dict[str, Any]] = {
    "digits": {"recommended_steps": 9, "recommended_order": 2},
    "emoji": {
        "recommended_steps": 9,
        "recommended_order": 2,
        "recommended_spacing": "optimized",
        "recommended_guidance_scale": 3.0,
        "recommended_guidance_rescale": 0.7,
    },
}


def captions(count: int) -> tuple[str, ...]:
    """Of emoji, by chance."""
    source = open_data(
        str(HERE / "data" / "emoji.parquet"), captioned=True, labelled=False,
        image_column="image", label_column="label", caption_column="captions",
    )  # fmt: skip
    chosen = np.random.default_rng(5).choice(source.count, count, replace=False)
    return tuple(source.captions[int(index)][0] for index in chosen)  # type: ignore[index]


def settings_for(model: str, out: Path) -> OptimizeSettings:
    if model == "digits":
        return OptimizeSettings(
            model, steps=(4, 5, 6, 8, 10, 12, 16), order=2, reference=100, samples=128, seed=100, out=str(out),
            overwrite=True,
        )  # fmt: skip
    return OptimizeSettings(
        model, steps=(4, 5, 6, 8, 9, 10, 12), order=2, reference=50, samples=16, prompts=captions(16),
        backend="openvino", dtype="float32", out=str(out), overwrite=True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=("digits", "emoji"))
    parser.add_argument("--out", type=Path, help="for scheduler_config.json; the bundled model's if not given")
    options = parser.parse_args()
    for model in options.models:
        folder = options.out or WEIGHTS / model / "scheduler"
        print(run_optimize(settings_for(model, folder)))
        DDIMScheduler.from_pretrained(folder, **RECOMMENDED[model]).save_pretrained(folder)


if __name__ == "__main__":
    main()
