"""Train the bundled emoji model and put it, in float16, into src/ddim/weights/emoji.

    python scripts/train_emoji.py data       # the pictures to train on, with the captions to train by
    python scripts/train_emoji.py vae        # the autoencoder
    python scripts/train_emoji.py model      # U-Net and text encoder
    python scripts/train_emoji.py ship       # the newest average into src/ddim/weights/emoji
    python scripts/judge_emoji.py            # what it is worth

Each can be killed and run again: it goes on from its last checkpoint, under runs/emoji. The recipe is that of "Common
Diffusion Noise Schedules and Sample Steps are Flawed": v-prediction, zero terminal SNR, trailing timesteps, and guidance
rescale at sampling.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ddim.checkpoint import atomic_write
from ddim.settings import VAESettings
from ddim.training import train

HERE = Path(__file__).parent.parent
DATA = HERE / "data" / "emoji.parquet"
RUNS = HERE / "runs" / "emoji"
WEIGHTS = HERE / "src" / "ddim" / "weights" / "emoji"
TRAIN = RUNS / "train.parquet"

VAE = VAESettings(
    output_dir=str(RUNS / "vae"),
    dataset_name=str(TRAIN),
    resolution=64,
    random_flip=True,
    random_background=True,
    permute_colors=True,
    block_out_channels=(32, 64, 64),
    kl_weight=3e-5,
    mse_weight=1.0,
    gradient_weight=1.0,
    train_batch_size=8,
    max_train_steps=13_000,
    learning_rate=1.5e-3,
    lr_warmup_steps=100,
    ema_decay=0.998,
    mixed_precision="bf16",
    checkpointing_steps=1_000,
    logging_steps=100,
)


def articled(name: str) -> str:
    """The name with an article, if it can have one.

    >>> articled("owl"), articled("flag of japan"), articled("scissors")
    ('an owl', 'a flag of japan', 'scissors')
    """
    last = name.split(" with ")[0].split(" of ")[0].split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    if plural or name[0].isdigit() or name.split()[0] in ("the", "two", "three", "no"):
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name


def captions(names: list[str], style: str) -> list[str]:
    """What may be said of a picture: its best name most often, with and without article and style."""
    best = names[0]
    said = [f"{articled(best)}, {style} style", f"{best}, {style} style", articled(best)]
    return said + [f"{articled(name)}, {style} style" for name in names[1:3]]


def is_kept(icon: str, concept: str, names: list[str]) -> bool:
    """Of the five skin tones of a drawing, all but one are left out, so that people are not most of the pictures.

    Which one stays is a matter of the concept's hash, so that the words for all tones are learnt.
    """
    tones = ("light", "medium light", "medium", "medium dark", "dark")
    ending = names[0].rpartition(" with ")[2]
    if not ending.endswith(" skin tone") or " and " in ending:
        return not ending.endswith(" skin tone")
    chosen = tones[int(hashlib.sha256(f"tone {concept}".encode()).hexdigest(), 16) % len(tones)]
    return ending == f"{chosen} skin tone"


def write_data() -> None:
    table = pq.read_table(DATA)
    rows = [
        row
        for row in table.to_pylist()
        if row["split"] == "train" and is_kept(row["icon"], row["concept"], row["captions"])
    ]
    said = [captions(row["captions"], row["style"]) for row in rows]
    chosen = pa.table(
        {
            "image": pa.array([row["image"] for row in rows], type=table.schema.field("image").type),
            "text": pa.array(said, type=pa.list_(pa.string())),
            **{name: [row[name] for row in rows] for name in ("style", "concept", "icon", "category")},
        }
    )
    RUNS.mkdir(parents=True, exist_ok=True)
    with atomic_write(TRAIN) as path:
        pq.write_table(chosen, path, compression="zstd")
    print(f"{TRAIN}: {len(rows)} of {table.num_rows} pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "vae", "model", "ship"))
    what = parser.parse_args().what
    os.chdir(HERE)
    if what == "data" or not TRAIN.exists():
        write_data()
    if what == "vae":
        print(train(VAE))


if __name__ == "__main__":
    main()
