"""What benchmarks/cuda.py measured, as tables on a page.

    python benchmarks/cuda.py --json docs/cuda.json     # on the machine with the card
    python benchmarks/cuda_page.py                      # on any machine: the tables of docs/cuda.md

The tables are put between two marks; what is written around them stays.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from pages import put_between

from ddim.checkpoint import read_json

DOCS = Path(__file__).parent.parent / "docs"
MARKS = ("<!-- cuda: by benchmarks/cuda_page.py -->", "<!-- end of cuda -->")
TITLES = {
    "step": "The scheduler's step",
    "unet": "One evaluation of a U-Net",
    "text to image": "Text to image, from the text to decoded pictures",
    "latency": "The loop under guidance at Stable Diffusion 1.5's size, latents to latents",
    "training": "A step of training",
}


def duration(seconds: float) -> str:
    return (
        f"{seconds * 1e6:.0f} µs"
        if seconds < 1e-3
        else f"{seconds * 1e3:.3g} ms"
        if seconds < 1
        else f"{seconds:.3g} s"
    )


def cells(row: dict[str, Any]) -> list[str]:
    """Of one row: who, the time, how many times faster than diffusers, and how many samples a second."""
    rate = f"{row['per_second']:,.0f}" if row.get("per_second", 0) >= 10 else f"{row.get('per_second', 0):.2g}"
    return [row["peer"], duration(row["seconds"]), f"**{row['beside']:.2f}x**", rate if "per_second" in row else ""]


def tables(found: dict[str, Any]) -> str:
    """A table for each section, in the order of `TITLES`, and what they were measured on."""
    parts = []
    for section, title in TITLES.items():
        rows = [row for row in found["rows"] if row["section"] == section]
        if not rows:
            continue
        parts += [f"## {title}", ""]
        parts += ["| what | by | a call | beside | a second |", "|---|---|---|---|---|"]
        for what, group in itertools.groupby(rows, key=lambda row: str(row["what"])):
            for number, row in enumerate(group):
                parts.append(f"| {' | '.join(['' if number else what, *cells(row)])} |")
        parts.append("")
    versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "diffusers", "ddim"))
    return "\n".join([*parts, f"{found['device']}; Python {found['python']}, CUDA {found['cuda']}, {versions}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=DOCS / "cuda.json", help="what was measured: %(default)s")
    parser.add_argument("--page", type=Path, default=DOCS / "cuda.md", help="where the tables go: %(default)s")
    options = parser.parse_args()
    put_between(MARKS, tables(read_json(options.json)), options.page)


if __name__ == "__main__":
    main()
