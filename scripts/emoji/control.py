"""A ControlNet for the bundled emoji model: shown colours in 8x8 coarse cells, it draws emoji that have them there.

    python scripts/emoji/control.py train       # as long as you like: Ctrl-C ends it, and the same command goes on
    python scripts/emoji/control.py measure     # how far pictures are from the colours asked for, with and without it
    python scripts/emoji/control.py picture     # docs/controlnet.png

It is under runs/emoji/control; `python scripts/emoji/train.py data` writes the pictures that it learns from. Of
the copy of the U-Net low-rank matrices are trained, so that its difference to the U-Net stays small.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import train as stages
from PIL import Image

from ddim import DiffusionPipeline
from ddim.images import image_grid
from ddim.images.conditions import condition_image
from ddim.training import train
from ddim.training.run import make_trainer
from ddim.training.settings import ControlNetSettings, is_installed

CELLS = 8
RUN = stages.RUNS / "control"
CONTROL = ControlNetSettings(
    output_dir=str(RUN.relative_to(stages.HERE)),
    dataset_name=str(stages.TRAIN.relative_to(stages.HERE)),
    pretrained_model_name_or_path="emoji",
    random_background=True,
    condition="layout",
    condition_cells=CELLS,
    rank=16,
    caption_dropout=0.5,  # so that the colours have to say what the text does not
    train_batch_size=32,
    learning_rate=1e-3,
    lr_warmup_steps=100,
    ema_decay=0.998,
    ema_power=1.0,
    ema_inv_gamma=10.0,
    max_train_steps=20_000,
    mixed_precision="bf16",
    logging_steps=20,
    checkpointing_steps=250,
    validation_steps=0,
)
OUT = stages.HERE / "docs" / "controlnet.png"
SHOWN = ("a grinning face, noto style", "a red heart, fluent style", "a house, twemoji style", "a fish, fluent style")


def held_out(count: int) -> list[tuple[Image.Image, str]]:
    """So many drawings that neither the model nor the ControlNet was trained on, on white, with a caption each."""
    rows = [row for row in pq.read_table(stages.DATA).to_pylist() if row["split"] == "held-out"]
    chosen = [rows[k] for k in np.random.default_rng(0).permutation(len(rows))[:count]]
    pictures = []
    for row in chosen:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA").resize((64, 64), Image.Resampling.LANCZOS)
        white = Image.new("RGBA", image.size, "white")
        pictures.append(
            (Image.alpha_composite(white, image).convert("RGB"), stages.captions(row["captions"], row["style"])[0])
        )
    return pictures


def steered() -> tuple[Any, int]:
    """The emoji model with the ControlNet as the newest checkpoint has it, averaged; and its step."""
    settings = dataclasses.replace(CONTROL, report_to="none")
    trainer = make_trainer(settings)
    trainer.resume()
    pipe = DiffusionPipeline.from_pretrained("emoji")
    pipe.controlnet = trainer.finished().controlnet  # type: ignore[attr-defined]
    pipe.set_progress_bar_config(disable=True)
    return pipe, trainer.step


def distance(drawn: list[Image.Image], asked: list[Image.Image]) -> np.ndarray[Any, Any]:
    """The root mean square, in [0, 1], between the colours that pictures have in coarse cells and those asked for."""
    own = [condition_image(image, "layout", CELLS) for image in drawn]
    pairs = zip(own, asked, strict=True)
    apart = [np.asarray(a, dtype=np.float64) / 255 - np.asarray(b, dtype=np.float64) / 255 for a, b in pairs]
    return np.sqrt([(each**2).mean() for each in apart])


def measure(count: int) -> None:
    pipe, step = steered()
    network = pipe.controlnet
    drawings = held_out(count)
    asked = [condition_image(image, "layout", CELLS) for image, _ in drawings]
    others = asked[1:] + asked[:1]  # the colours of another drawing than the text is of
    captions = [caption for _, caption in drawings]
    rows = []
    for name, shown, texts in (
        ("its own caption", asked, captions),
        ("the caption of another drawing", others, captions),
        ("no text", asked, [""] * count),
    ):
        figures = []
        for with_control in (True, False):
            pipe.controlnet = network if with_control else None
            given = {"control_image": shown} if with_control else {}
            images = pipe(texts, seed=list(range(count)), **given).images
            figures.append(distance(images, shown))
        rows.append((name, *figures))
    print(
        f"{count} held-out drawings, step {step}; root mean square to the colours asked for, mean and standard error:"
    )
    for name, own, plain in rows:
        print(
            f"| {name} | {own.mean():.3f} ± {own.std() / count**0.5:.3f} | "
            f"{plain.mean():.3f} ± {plain.std() / count**0.5:.3f} |"
        )


def picture() -> None:
    """Rows of: a held-out drawing, its colours, and what is drawn of these with several texts."""
    pipe, _ = steered()
    images: list[Image.Image] = []
    for number, (drawing, caption) in enumerate(held_out(5)):
        shown = condition_image(drawing, "layout", CELLS)
        texts = [caption, "", *SHOWN]
        drawn = pipe(texts, control_image=shown, seed=[number] * len(texts)).images
        images += [drawing, shown, *drawn]
    grid = image_grid([image.resize((128, 128), Image.Resampling.NEAREST) for image in images], columns=8)
    grid.save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure", "picture"))
    parser.add_argument("--count", type=int, default=64, help="of drawings that are measured: %(default)s")
    options = parser.parse_args()
    os.chdir(stages.HERE)
    if not stages.TRAIN.exists():
        stages.write_data()
    with torch.inference_mode(options.what != "train"):
        if options.what == "train":
            for earlier in ("further", "refine", "anneal", "model"):
                stages.share_cache(stages.RUNS / earlier, RUN)
            report = "tensorboard" if is_installed("tensorboard") else "none"
            print(train(dataclasses.replace(CONTROL, report_to=report)))
        elif options.what == "measure":
            measure(options.count)
        else:
            picture()


if __name__ == "__main__":
    main()
