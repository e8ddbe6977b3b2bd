"""Edits of real emoji drawings, by CycleDiffusion and by DDIM inversion: docs/editing.png.

    python scripts/figures/edit_pictures.py

Each row: the drawing, the autoencoder's picture of it, CycleDiffusion with two seeds, an edit through the fixed-point
inversion. 100 steps, guidance 3 on the target, rescale 0.7.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ddim import DiffusionPipeline
from ddim.checkpoint.files import atomic_write
from ddim.data.preparation import BACKGROUNDS
from ddim.editing import decode_cycle, edit, encode_cycle
from ddim.images.flat import flatten
from ddim.noise import seeded_generators

HERE = Path(__file__).parent.parent.parent
# icon, source, target, background, strength
EDITS = (
    ("grinning-face", "a grinning face, noto style", "an angry face, noto style", "white", 0.8),
    ("grinning-face", "a grinning face, noto style", "a crying face, noto style", "white", 0.8),
    ("red-heart", "a red heart, noto style", "a blue heart, noto style", "white", 0.8),
    ("red-heart", "a red heart, noto style", "a red heart on a black background, noto style", "white", 0.9),
    ("cat-face", "a cat face, noto style", "a dog face, noto style", "white", 0.8),
    ("cat-face", "a cat face on a light blue background, noto style",
     "a tiger face on a light blue background, noto style", "light blue", 0.8),
    ("house", "a house, noto style", "a church, noto style", "white", 0.8),
    ("green-apple", "a green apple, noto style", "a red apple, noto style", "white", 0.8),
)  # fmt: skip
HEADS = ("drawing", "encoded", "cycle, seed 0", "cycle, seed 1", "fixed point")
STEPS, SIDE, GAP, TEXT = 100, 96, 6, 330


def edited(pipe: Any, picture: Image.Image, source: str, target: str, strength: float, steps: int) -> list[Image.Image]:
    """What the last four columns show."""
    x0 = pipe.encode(picture)
    plan = pipe.scheduler.plan(steps, eta=1.0).unclipped().shortened(strength)
    two = x0.repeat(2, 1, 1, 1)
    how = {"guidance_scale": 3.0, "guidance_rescale": 0.7}
    generators = [seeded_generators(seed, 1)[0] for seed in (0, 1)]
    cycle = encode_cycle(pipe.denoiser(plan, 2, prompt=source), two, plan, generators)
    *_, last = decode_cycle(pipe.denoiser(plan, 2, prompt=target, **how), cycle, plan)
    still = plan.with_eta(0.0)
    inverted = edit(
        pipe.denoiser(still, 1, prompt=source),
        pipe.denoiser(still, 1, prompt=target, **how),
        x0,
        still,
        "fixed-point",
    )
    return list(pipe.decode(torch.cat([x0, last.sample, inverted])))


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rows, ten steps")
    parser.add_argument("--out", type=Path, default=HERE / "docs" / "editing.png")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    edits, steps = (EDITS[:2], 10) if options.quick else (EDITS, STEPS)
    pipe = DiffusionPipeline.from_pretrained("emoji")
    rows = pq.read_table(HERE / "data" / "emoji.parquet").to_pylist()
    drawings = {row["icon"]: row["image"]["bytes"] for row in rows if row["style"] == "noto"}
    font = ImageFont.load_default(size=15)
    sheet = Image.new("RGB", (TEXT + len(HEADS) * (SIDE + GAP), 28 + len(edits) * (SIDE + GAP)), "#dddddd")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(HEADS):
        draw.text((TEXT + column * (SIDE + GAP), 6), head, fill="black", font=font)
    for line, (icon, source, target, color, strength) in enumerate(tqdm(edits, desc="editing")):
        picture = flatten(Image.open(io.BytesIO(drawings[icon])), "RGB", BACKGROUNDS[color])
        with torch.no_grad():
            shown = [picture, *edited(pipe, picture, source, target, strength, steps)]
        top = 28 + line * (SIDE + GAP)
        said = "\n".join(text.replace(", noto style", "").replace(" on ", "\non ") for text in (source, f"to {target}"))
        draw.text((8, top + 8), f"{said}\n(strength {strength})", fill="black", font=font)
        for column, image in enumerate(shown):
            sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (TEXT + column * (SIDE + GAP), top))
    with atomic_write(options.out) as path:
        sheet.save(path, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
