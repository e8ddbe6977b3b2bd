"""A ControlNet for the bundled emoji model: shown colours in 8x8 coarse cells, it draws emoji that have them there.

    python scripts/emoji/control.py train       # as long as you like: Ctrl-C ends it, and the same command goes on
    python scripts/emoji/control.py measure     # how far pictures are from the colours asked for, with and without it
    python scripts/emoji/control.py ship        # src/ddim/weights/emoji-layout, its difference to the emoji U-Net
    python scripts/emoji/control.py picture     # docs/controlnet.png, of what is shipped

It is under runs/emoji/control. Of the copy of the U-Net low-rank matrices are trained, so that its difference to the
U-Net stays small. The emoji model knows its training pictures by heart: a picture's own caption has already decided
its colours, and a ControlNet that always sees the two together learns nothing where there is a text. So
half of the texts are captions of other pictures, and of all texts four in ten are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import train as stages
from PIL import Image

from ddim import ControlNetModel, DiffusionPipeline
from ddim.checkpoint import Repository, write_json
from ddim.checkpoint.difference import DIFFERENCE, save_difference
from ddim.checkpoint.hub import BASE, BUNDLED
from ddim.images import condition_image, image_grid
from ddim.training import train
from ddim.training.run import make_trainer
from ddim.training.settings import ControlNetSettings, is_installed

CELLS = 8
RUN = stages.RUNS / "control"
MIXED = stages.RUNS / "mixed.parquet"  # the training pictures with captions of their own and of others
SHIPPED = BUNDLED / "emoji-layout"
CONTROL = ControlNetSettings(
    output_dir=str(RUN.relative_to(stages.HERE)),
    dataset_name=str(MIXED.relative_to(stages.HERE)),
    pretrained_model_name_or_path="emoji",
    random_background=True,
    condition="layout",
    condition_cells=CELLS,
    rank=16,
    caption_dropout=0.4,
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


def write_mixed() -> None:
    """Write the training pictures with as many captions of other pictures, drawn at random, as they have themselves."""
    if not stages.TRAIN.exists():
        stages.write_data()
    table = pq.read_table(stages.TRAIN)
    own = table["text"].to_pylist()
    generator = np.random.default_rng(0)
    texts = [
        [*each, *(own[k][generator.integers(len(own[k]))] for k in generator.integers(0, len(own), len(each)))]
        for each in own
    ]
    column = pa.array(texts, pa.list_(pa.string()))
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", column), MIXED)


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


def trained() -> tuple[ControlNetModel, int]:
    """The ControlNet as the newest checkpoint has it, averaged; and its step."""
    trainer = make_trainer(dataclasses.replace(CONTROL, report_to="none"))
    trainer.resume()
    network: ControlNetModel = trainer.finished().controlnet  # type: ignore[attr-defined]
    return network, trainer.step


def steered(network: ControlNetModel | None) -> Any:
    """The emoji model with a ControlNet, or without."""
    pipe = DiffusionPipeline.from_pretrained("emoji", controlnet=network)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ship() -> None:
    """Put what was trained into the package, in place of what is there."""
    network, step = trained()
    SHIPPED.mkdir(parents=True, exist_ok=True)
    network.save_config(SHIPPED)
    write_json(SHIPPED / BASE, {"base": "emoji"})
    base = ControlNetModel.from_config(network.config)
    base.load_base(Repository(SHIPPED.name), None)
    save_difference(SHIPPED / DIFFERENCE, base.state_dict(), network.state_dict())
    write_json(SHIPPED / "training.json", {"step": step, "settings": dataclasses.asdict(CONTROL)})
    size = sum(path.stat().st_size for path in SHIPPED.iterdir())
    drawings = held_out(16)
    shown = [condition_image(image, "layout", CELLS) for image, _ in drawings]
    drawn = [
        steered(each)([text for _, text in drawings], control_image=shown, seed=[*range(16)], output_type="pt").images
        for each in (network, ControlNetModel.from_pretrained(SHIPPED.name))
    ]
    apart = 255 * float((drawn[0] - drawn[1]).square().mean().sqrt())
    print(f"{SHIPPED}: step {step}, {size / 1e6:.2f} MB; pictures are {apart:.2f} of 255 from those of the run")


def distance(drawn: list[Image.Image], asked: list[Image.Image]) -> np.ndarray[Any, Any]:
    """The root mean square, in [0, 1], between the colours that pictures have in coarse cells and those asked for."""
    own = [condition_image(image, "layout", CELLS) for image in drawn]
    pairs = zip(own, asked, strict=True)
    apart = [np.asarray(a, dtype=np.float64) / 255 - np.asarray(b, dtype=np.float64) / 255 for a, b in pairs]
    return np.sqrt([(each**2).mean() for each in apart])


def measure(count: int) -> None:
    network, step = trained()
    pipe = steered(None)
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
    pipe = steered(ControlNetModel.from_pretrained(SHIPPED.name))
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
    parser.add_argument("what", choices=("train", "measure", "ship", "picture"))
    parser.add_argument("--count", type=int, default=64, help="of drawings that are measured: %(default)s")
    options = parser.parse_args()
    os.chdir(stages.HERE)
    if not MIXED.exists():
        write_mixed()
    with torch.inference_mode(options.what != "train"):
        if options.what == "train":
            for earlier in ("further", "refine", "anneal", "model"):
                stages.share_cache(stages.RUNS / earlier, RUN)
            report = "tensorboard" if is_installed("tensorboard") else "none"
            print(train(dataclasses.replace(CONTROL, report_to=report)))
        elif options.what == "measure":
            measure(options.count)
        elif options.what == "ship":
            ship()
        else:
            picture()


if __name__ == "__main__":
    main()
