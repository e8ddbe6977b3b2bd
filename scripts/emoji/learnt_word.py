"""Teach the bundled emoji model a word by three drawings, and draw before and after: docs/textual-inversion.png.

    python scripts/emoji/learnt_word.py          # some minutes; what is in runs/learnt-word already is not done again

The word is "<raccoon>". The drawings are held out: the model has never seen a raccoon. They go into
runs/learnt-word/pictures; the run is that of the command in docs/prompts.md. docs/learnt-word.json has the loss on the
drawings, on eight backgrounds each, with the word as it begins and as it was learnt, for the same noises.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw, ImageFont
from scorer import BACKGROUNDS, compose

from ddim import DiffusionPipeline
from ddim.checkpoint import atomic_write
from ddim.checkpoint.files import write_json, write_text
from ddim.training import train
from ddim.training.diffusion import DiffusionLoss
from ddim.training.settings import TextualInversionSettings

HERE = Path(__file__).parent.parent.parent
RUN, OUT, FIGURES = (
    HERE / "runs" / "learnt-word",
    HERE / "docs" / "textual-inversion.png",
    HERE / "docs" / "learnt-word.json",
)
NAME, WORD, BEGINNING, VECTORS = "raccoon", "<raccoon>", "fox", 4
SETTINGS = TextualInversionSettings(
    output_dir=str(RUN / "run"),
    train_data_dir=str(RUN / "pictures"),
    placeholder_token=WORD,
    initializer_token=BEGINNING,
    num_vectors=VECTORS,
    templates_file=str(RUN / "templates.txt"),
    random_background=True,
    train_batch_size=8,
    max_train_steps=500,
    learning_rate=0.01,
    validation_steps=0,
    checkpointing_steps=100,
    report_to="none",
)


def write_pictures() -> list[Image.Image]:
    """The drawings of a raccoon, as a folder that any user could have."""
    (RUN / "pictures").mkdir(parents=True, exist_ok=True)
    drawings = []
    for row in pq.read_table(HERE / "data" / "emoji.parquet").to_pylist():
        if row["captions"][0] == NAME:
            assert row["split"] == "held-out"
            with atomic_write(RUN / "pictures" / f"{row['style']}.png") as path:
                path.write_bytes(row["image"]["bytes"])
            drawings.append(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA"))
    write_text(RUN / "templates.txt", "{}\na {}\n{} emoji\n")
    return drawings


@torch.inference_mode()
def loss(pipe: DiffusionPipeline, drawings: list[Image.Image], text: str) -> float:
    """Over eight backgrounds for each drawing, each with a noise and a timestep of its own; the same at each call."""
    images = torch.stack([compose(drawing, color) for drawing in drawings for color in list(BACKGROUNDS)[:8]])
    x0 = pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor
    dice = torch.Generator().manual_seed(0)
    eps = torch.randn(x0.shape, generator=dice)
    timesteps = torch.randint(pipe.scheduler.config.num_train_timesteps, (len(x0),), generator=dice)
    embeds = pipe.encode_prompt(text, None, 1, False)[0].expand(len(x0), -1, -1)
    of = DiffusionLoss(pipe.scheduler)
    return float(of(lambda x, t: pipe.unet(x, t, embeds).sample, x0, eps, timesteps).mean())


def sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    side, gap, line = 128, 2, 18
    page = Image.new("RGB", (4 * (side + gap), len(rows) * (side + line)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=11)
    for number, (label, images) in enumerate(rows):
        for column, image in enumerate(images):
            place = column * (side + gap), number * (side + line)
            page.paste(image.resize((side, side), Image.Resampling.LANCZOS), place)
            pen.text((place[0], place[1] + side + 2), label, fill="black", font=font)
    return page


def main() -> None:
    os.chdir(HERE)
    drawings = write_pictures()
    if not (RUN / "run" / "learned_embeds.safetensors").is_file():
        train(SETTINGS)
    pipe = DiffusionPipeline.from_pretrained("emoji")
    before = loss(pipe, drawings, " ".join([BEGINNING] * VECTORS))
    pipe.load_textual_inversion(str(RUN / "run"))
    figures = {"before": before, "after": loss(pipe, drawings, WORD)}
    print(figures)
    write_json(FIGURES, figures)
    on_white = [Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing) for drawing in drawings]
    rows = [(text, pipe([text] * 4, seed=list(range(4))).images) for text in (BEGINNING, NAME, WORD)]
    with atomic_write(OUT) as path:
        sheet([*rows, ("learnt from", on_white)]).save(path, format="png", optimize=True)


if __name__ == "__main__":
    main()
