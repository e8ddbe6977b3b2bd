"""Teach the bundled emoji model a new style from 20 pictures by LoRA, and draw before and after.

    python scripts/emoji/lora_style.py             # a few minutes on two cores -> docs/lora.png

The style is "poster": three inks on dark blue, made from 20 Noto drawings (Apache-2.0) of the training split. The
pictures go, with a metadata.jsonl, into runs/lora/pictures; the run is that of the command

    ddim train lora --train-data-dir runs/lora/pictures --output-dir runs/lora/run --max-train-steps 600 --rank 8

and is drawn with things that are not among the 20.
"""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont, ImageOps
from train import articled

from ddim import DiffusionPipeline
from ddim.checkpoint import atomic_write, write_text
from ddim.images.flat import flatten
from ddim.training import train
from ddim.training.settings import LoraSettings

HERE = Path(__file__).parent.parent.parent
PICTURES = HERE / "runs" / "lora" / "pictures"
STYLE = "poster style"
NAMES = (
    "red apple,automobile,guitar,house,elephant,pizza,trophy,umbrella,rocket,mushroom,"
    "clown face,crown,fish,bicycle,hamburger,owl,snowman,teddy bear,locomotive,hot beverage"
).split(",")
PROMPTS = (
    "a red heart",
    "a cat face",
    "a delivery truck",
    "a birthday cake",
    "a ghost",
    "an octopus",
    "a key",
    "a tree",
)
SETTINGS = LoraSettings(
    output_dir=str(HERE / "runs" / "lora" / "run"),
    train_data_dir=str(PICTURES),
    rank=8,
    max_train_steps=600,
    validation_steps=0,
    report_to="none",
    save_dtype="float16",
)


def poster(drawing: Image.Image) -> Image.Image:
    """The lightness of a drawing in three inks, on dark blue."""
    clear = drawing.convert("RGBA")
    grey = ImageOps.autocontrast(flatten(clear, "L"), cutoff=1)
    inks = np.array([(150, 40, 90), (240, 110, 80), (255, 235, 190)], np.float32)  # dark to light
    levels = np.digitize(np.asarray(grey), (90, 170))
    covered = np.asarray(clear.getchannel("A"), dtype=np.float32)[..., None] / 255
    ground = np.array((25, 35, 80), np.float32)
    return Image.fromarray((ground + covered * (inks[levels] - ground)).round().astype(np.uint8))


def write_pictures() -> None:
    """The 20 pictures and their captions, as a folder that any user could have."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    found = {
        row["captions"][0]: row["image"]["bytes"]
        for row in pq.read_table(HERE / "data" / "emoji.parquet").to_pylist()
        if row["style"] == "noto" and row["split"] == "train"
    }
    lines = []
    for name in NAMES:
        file = f"{name.replace(' ', '-')}.png"
        with atomic_write(PICTURES / file) as path:
            poster(Image.open(io.BytesIO(found[name]))).save(path, format="png")
        lines.append(json.dumps({"file_name": file, "text": f"{articled(name)}, {STYLE}"}))
    write_text(PICTURES / "metadata.jsonl", "\n".join(lines) + "\n")


def main() -> None:
    os.chdir(HERE)
    write_pictures()
    started = time.perf_counter()
    folder = train(SETTINGS)
    seconds = time.perf_counter() - started
    pipe = DiffusionPipeline.from_pretrained("emoji")
    asked = [f"{prompt}, {STYLE}" for prompt in PROMPTS]

    def draw() -> list[Image.Image]:
        images: list[Image.Image] = pipe(
            asked, seed=0, guidance_scale=3.0, guidance_rescale=0.7, num_inference_steps=25
        ).images
        return images

    before = draw()
    pipe.load_lora_weights(folder)
    rows = (
        ("taught (8 of 20)", [Image.open(path) for path in sorted(PICTURES.glob("*.png"))[:8]]),
        ("before", before),
        ("after", draw()),
    )
    side, left = 96, 130
    sheet = Image.new("RGB", (left + len(PROMPTS) * (side + 4), len(rows) * (side + 4) + 22), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for line, (label, images) in enumerate(rows):
        pen.text((6, line * (side + 4) + side // 2), label, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(
                image.resize((side, side), Image.Resampling.LANCZOS), (left + column * (side + 4), line * (side + 4))
            )
    small = ImageFont.load_default(size=11)
    for column, prompt in enumerate(PROMPTS):
        place = (left + column * (side + 4) + side // 2, len(rows) * (side + 4) + 8)
        pen.text(place, prompt, fill="black", font=small, anchor="mm")
    with atomic_write(HERE / "docs" / "lora.png") as path:
        sheet.save(path, format="png", optimize=True)
    print(f"{SETTINGS.max_train_steps} steps in {seconds:.0f} s; docs/lora.png")


if __name__ == "__main__":
    main()
