"""How near few steps of the emoji model are to many, and how much grain they leave: a table of docs/emoji.md.

    python scripts/emoji/steps.py            # draws, and prints the table; minutes, and goes on where it was
    python scripts/emoji/steps.py --write    # and writes docs/emoji-steps.json, and the table into docs/emoji.md

Every second text of the gallery, seed 0, in float32. The error is to 200 steps of first order, in [-1, 1]: the root
mean square over all pixels, and that of the median picture. Grain is how much pixels, in [0, 1], differ from the mean
of their eight neighbours where these differ from each other by less than .05, in the median picture. Last is how near
the autoencoder comes to the held-out drawings. Pictures that were drawn are kept in runs/emoji-steps.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from gallery import GALLERY
from scorer import compose
from torch import Tensor

from ddim import DiffusionPipeline
from ddim.checkpoint.files import read_json, read_tensors, save_tensors, write_json, write_text

HERE = Path(__file__).parent.parent.parent
KEPT, FIGURES, PAGE = HERE / "runs" / "emoji-steps", HERE / "docs" / "emoji-steps.json", HERE / "docs" / "emoji.md"
BEGIN, END = "<!-- steps: by scripts/emoji/steps.py -->\n", "<!-- end of steps -->"
FLAT = 0.05
TEXTS = [prompt.text for prompt in GALLERY[::2]]
BACKGROUNDS = ("white", "black", "purple")


class Way(NamedTuple):
    """How pictures are drawn."""

    label: str
    steps: int
    order: int = 2
    guidance: float = 3.0
    rescale: float = 0.7
    interval: tuple[float, float] | None = None
    model: str = "emoji"


WAYS = (
    Way("200 of first order", 200, 1),
    Way("50 of first order", 50, 1),
    Way("25 of first order", 25, 1),
    Way("6 of second order, searched", 6),
    Way("8", 8),
    Way("9", 9),
    Way("10", 10),
    Way("12", 12),
    Way("9", 9, guidance=2.0),
    Way("9", 9, rescale=0.0),
    Way("9, no guidance in the last two", 9, interval=(150, 1000)),
    Way("9", 9, guidance=1.0, rescale=0.0),
    Way("4, by emoji-fast", 4, 1, 1.0, 0.0, model="emoji-fast"),
)


def drawn(way: Way) -> Tensor:
    """(n 3 64 64) in [0, 1]."""
    kept = KEPT / f"{'-'.join(str(part) for part in way[1:])}.safetensors".replace(" ", "")
    if not kept.is_file():
        pipe = DiffusionPipeline.from_pretrained(way.model)
        spacing = "optimized" if way.order == 2 else "trailing"
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
        options: dict[str, Any] = {"guidance_interval": way.interval} if way.interval else {}
        images = pipe(
            TEXTS, seed=[0] * len(TEXTS), num_inference_steps=way.steps, order=way.order,
            guidance_scale=way.guidance, guidance_rescale=way.rescale, output_type="pt", **options,
        ).images  # fmt: skip
        KEPT.mkdir(parents=True, exist_ok=True)
        save_tensors(kept, {"images": images.float().contiguous()})
    return read_tensors(kept)["images"]


def errors(images: Tensor, many: Tensor) -> tuple[float, float]:
    """The root mean square over all pixels of pictures in [0, 1], and that of the median picture, both in [-1, 1]."""
    squares = (2 * (images - many)).square().flatten(1).mean(1)
    return float(squares.mean().sqrt()), float(squares.sqrt().median())


def grain(images: Tensor) -> float:
    """Of pictures in [0, 1], as the head of this file says.

    >>> grain(torch.full((2, 3, 8, 8), 0.5))
    0.0
    """
    around = F.unfold(images, 3).view(*images.shape[:2], 9, -1)
    middle, others = around[:, :, 4], around[:, :, [0, 1, 2, 3, 5, 6, 7, 8]]
    is_flat = (others.amax(2) - others.amin(2)).amax(1, keepdim=True) < FLAT
    apart = (middle - others.mean(2)).abs()
    each = [float(pixels[flat.expand_as(pixels)].mean()) for pixels, flat in zip(apart, is_flat, strict=True)]
    return float(torch.tensor(each).median())


@torch.inference_mode()
def decibels() -> dict[str, float]:
    """By background, the mean PSNR of the held-out drawings after the autoencoder."""
    vae = DiffusionPipeline.from_pretrained("emoji").vae
    rows = pq.read_table(HERE / "data" / "emoji.parquet").to_pylist()
    found = {}
    for color in BACKGROUNDS:
        images = torch.stack([compose(row["image"]["bytes"], color) for row in rows if row["split"] == "held-out"])
        back = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in images.split(64)])
        squares = ((back.clamp(-1, 1) - images) / 2).square().flatten(1).mean(1)
        found[color] = float((-10 * squares.log10()).mean())
    return found


def measure() -> dict[str, Any]:
    many = drawn(WAYS[0])
    rows = []
    for way in WAYS:
        images = drawn(way)
        row: dict[str, Any] = {**way._asdict(), "grain": grain(images)}
        if way.model == "emoji" and way[3:6] == WAYS[0][3:6] and way is not WAYS[0]:
            row["error"], row["median"] = errors(images, many)
        rows.append(row)
        print(row, flush=True)
    return {"texts": len(TEXTS), "rows": rows, "autoencoder": decibels()}


def short(number: float) -> str:
    """Such as ".0141"."""
    return f"{number:.4f}".removeprefix("0")


def table(found: dict[str, Any]) -> str:
    lines = [
        f"`python scripts/emoji/steps.py --write`: {found['texts']} texts, every second one of the gallery, seed 0, "
        "float32.",
        "",
        "| steps | guidance, rescale | error to 200 steps: root mean square in [-1, 1], median picture | grain |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        if row["guidance"] == 1:
            guided = "none"
        else:
            guided = (
                f"{row['guidance']:g}, {row['rescale']:g}" if row["rescale"] else f"{row['guidance']:g}, no rescale"
            )
        near = f"{short(row['error'])}, {short(row['median'])}" if "error" in row else ""
        lines.append(f"| {row['label']} | {guided} | {near} | {short(row['grain'])} |")
    psnr = ", ".join(f"{value:.1f} dB on {color}" for color, value in found["autoencoder"].items())
    lines += ["", f"The autoencoder's mean PSNR on the held-out drawings is {psnr}."]
    return "\n".join(lines)


def with_table(page: str, found: dict[str, Any]) -> str:
    return re.sub(
        re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: BEGIN + table(found) + "\n" + END, page, flags=re.DOTALL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/emoji-steps.json, and the table")
    options = parser.parse_args()
    found = measure()
    print(table(found))
    if options.write:
        write_json(FIGURES, found)
        write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), read_json(FIGURES)))


if __name__ == "__main__":
    main()
