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

from ddim.checkpoint import atomic_write, read_json

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


def write(text: str, page: Path) -> None:
    told = page.read_text(encoding="utf-8")
    before, found, rest = told.partition(MARKS[0])
    _, ends, after = rest.partition(MARKS[1])
    if not (found and ends):
        raise SystemExit(f"{page} has no place for the tables, between {MARKS[0]} and {MARKS[1]}")
    with atomic_write(page) as path:
        path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=DOCS / "cuda.json", help="what was measured: %(default)s")
    parser.add_argument("--page", type=Path, default=DOCS / "cuda.md", help="where the tables go: %(default)s")
    options = parser.parse_args()
    write(tables(read_json(options.json)), options.page)


if __name__ == "__main__":
    main()
