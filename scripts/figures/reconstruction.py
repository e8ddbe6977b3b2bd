"""How near real pictures come back from their noise: Table 2 of the DDIM paper, and the exact ways beside it.

    python scripts/figures/reconstruction.py            # docs/reconstruction.md and .json
    python scripts/figures/reconstruction.py --quick    # few pictures and steps, printed alone

Held-out real pictures of both bundled models go up to their noise and down again, clipping off; the networks compute
in float32, the samples between are float64. "MSE" is the mean square of the difference per dimension, of pictures in
[0, 1]; for the emoji model against what its autoencoder makes of the picture, as latents are what is inverted.
"Largest" is the largest absolute difference in model space.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import ddim
from ddim import DiffusionPipeline
from ddim.checkpoint.files import read_json, write_json, write_text
from ddim.data import digits
from ddim.images.flat import flatten
from ddim.inversion import METHODS, keeping

HERE = Path(__file__).parent.parent.parent
PAPER = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}  # CIFAR-10


def digit_pictures(count: int) -> tuple[Any, Tensor, dict[str, Any]]:
    """The digits pipeline, held-out digits in model space and their classes."""
    pipe = DiffusionPipeline.from_pretrained("digits")
    source = digits("held-out")
    chosen = range(min(count, source.count))
    assert source.labels is not None
    return pipe, torch.stack([source.load(i) for i in chosen]), {"class_labels": [source.labels[i] for i in chosen]}


def emoji_pictures(count: int) -> tuple[Any, Tensor, dict[str, Any]]:
    """The emoji pipeline, held-out drawings on white as latents, and their captions."""
    pipe = DiffusionPipeline.from_pretrained("emoji")
    rows = [row for row in pq.read_table(HERE / "data" / "emoji.parquet").to_pylist() if row["split"] != "train"]
    rows = rows[:: max(1, len(rows) // count)][:count]
    drawings = [flatten(Image.open(io.BytesIO(row["image"]["bytes"])), "RGB") for row in rows]
    said = [f"{row['captions'][0]}, {row['style']} style" for row in rows]
    with torch.inference_mode():
        return pipe, pipe.encode(drawings), {"prompt": said}


def there_and_back(
    pipe: Any, x0: Tensor, conditions: dict[str, Any], steps: int, method: str, guidance: float
) -> dict[str, Any]:
    """The figures of one way there and back, in batches of up to 120."""
    plan = pipe.scheduler.plan(steps).unclipped()
    way, parts, calls = METHODS[method], [], 0
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(x0), 120):
            part = slice(first, first + 120)
            own = {name: each[part] for name, each in conditions.items()}
            network = pipe.denoiser(plan, len(x0[part]), guidance_scale=guidance, **own)

            def counted(x: Tensor, timestep: Tensor, network: Any = network) -> Tensor:
                nonlocal calls
                calls += 1
                return network(x, timestep)

            denoiser = keeping(counted, torch.float32)
            parts.append(way.decode(denoiser, way.encode(denoiser, x0[part].double(), plan), plan))
        back = torch.cat(parts)
        seconds = time.perf_counter() - started
        pictures = [
            torch.cat([pipe.decode(part.float(), "pt") for part in x.split(60)]).double() for x in (x0.double(), back)
        ]
    return {
        "steps": steps,
        "method": method,
        "guidance": guidance,
        "mse": float((pictures[0] - pictures[1]).square().mean()),
        "largest": float((back - x0).abs().max()),
        "evaluations": calls / -(-len(x0) // 120),
        "seconds": round(seconds, 1),
    }


def cases(model: str, quick: bool) -> list[tuple[int, str, float]]:
    """(steps, method, guidance) of all that is measured of a model."""
    numbers = (10, 20, 50) if quick else tuple(PAPER)
    if model == "digits":
        exact = 50
        found = [(steps, "ddim", 1.0) for steps in numbers]
    else:
        exact = 10 if quick else 50
        found = [(steps, "ddim", guidance) for guidance in (1.0, 3.0) for steps in numbers if steps <= 200]
    found += [(exact, method, 1.0) for method in ("fixed-point", "bidirectional")]
    return found + ([(50, "bidirectional", 3.0)] if model == "emoji" and not quick else [])


def measure(quick: bool, kept: dict[str, Any], only: str | None) -> dict[str, Any]:
    """All cases; those of other methods than `only` are taken from what is kept, if that is given."""
    figures: dict[str, Any] = {}
    for model, pictures, count in (("digits", digit_pictures, 360), ("emoji", emoji_pictures, 60)):
        pipe, x0, conditions = pictures((20 if model == "digits" else 4) if quick else count)
        figures[f"{model}_count"], figures[model] = len(x0), []
        for case in tqdm(cases(model, quick), desc=model):
            old = [row for row in kept.get(model, []) if (row["steps"], row["method"], row["guidance"]) == case]
            fresh = not old or only in (None, case[1])
            figures[model].append(there_and_back(pipe, x0, conditions, *case) if fresh else old[0])
    return figures


def as_page(figures: dict[str, Any]) -> str:
    def cell(rows: list[dict[str, Any]], steps: int, guidance: float) -> str:
        found = [r["mse"] for r in rows if (r["steps"], r["method"], r["guidance"]) == (steps, "ddim", guidance)]
        return f"{found[0]:.2g}" if found else ""

    lines = [
        "| S | " + " | ".join(str(steps) for steps in PAPER) + " |",
        "|---" * (len(PAPER) + 1) + "|",
        "| CIFAR-10, published | " + " | ".join(f"{value:g}" for value in PAPER.values()) + " |",
    ]
    for name, key, guidance in (
        ("digits", "digits", 1.0),
        ("emoji, guidance 1", "emoji", 1.0),
        ("emoji, guidance 3", "emoji", 3.0),
    ):
        lines.append(f"| {name} | " + " | ".join(cell(figures[key], steps, guidance) for steps in PAPER) + " |")
    exact = ["| model | method | guidance | evaluations | MSE | largest |", "|---|---|---|---|---|---|"]
    for key in ("digits", "emoji"):
        for row in figures[key]:
            if row["steps"] == 50:
                exact.append(
                    f"| {key} | {row['method']} | {row['guidance']:g} | {row['evaluations']:.0f} | {row['mse']:.2g} | "
                    f"{row['largest']:.2g} |"
                )
    explained = (__doc__ or "").split("\n\n", 2)[2].strip()
    return f"""# Reconstruction

{explained}

`python scripts/figures/reconstruction.py`: {figures["digits_count"]} held-out digits, {figures["emoji_count"]} held-out
emoji under their captions; deterministic, no seed; {figures["versions"]}.

## Plain DDIM inversion, S steps up and S down: MSE

{chr(10).join(lines)}

## The same and the exact ways at 50 steps

{chr(10).join(exact)}

"Evaluations" are those of the network for a batch, there and back; the fixed point's go by the hardest picture of the
batch. What the methods are: [`inversion.py`](../src/ddim/inversion.py).
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=METHODS, help="measure this method anew and keep the figures of the others")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    file = HERE / "docs" / "reconstruction.json"
    figures = measure(options.quick, read_json(file) if options.only else {}, options.only)
    figures["versions"] = f"ddim {ddim.__version__}, torch {torch.__version__}"
    print(json.dumps(figures, indent=1))
    if not options.quick:
        write_json(file, figures)
        write_text(HERE / "docs" / "reconstruction.md", as_page(figures))


if __name__ == "__main__":
    main()
