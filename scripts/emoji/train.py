"""Train the bundled emoji model and put it, in float16, into src/ddim/weights/emoji.

    python scripts/emoji/train.py data       # the pictures to train on, with the captions to train by
    python scripts/emoji/train.py vae        # the autoencoder
    python scripts/emoji/train.py model      # U-Net and text encoder; stop it (Ctrl-C) when there was time enough
    python scripts/emoji/train.py anneal     # the learning rate falls to zero
    python scripts/emoji/train.py refine     # once more, from where it fell to: larger batches, a lower rate
    python scripts/emoji/train.py further    # on from the shipped weights, as long as you like: see further.py
    python scripts/emoji/train.py ship       # the newest average into src/ddim/weights/emoji
    python scripts/emoji/judge.py            # what it is worth

Each can be killed and run again: it goes on from its last checkpoint, under runs/emoji. The recipe is that of
"Common Diffusion Noise Schedules and Sample Steps are Flawed": v-prediction, zero terminal SNR, trailing timesteps, and
guidance rescale at sampling.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ddim import DiffusionPipeline
from ddim.checkpoint import atomic_write, write_json
from ddim.training import train
from ddim.training.checkpoints import checkpoints
from ddim.training.run import make_trainer
from ddim.training.settings import TextToImageSettings, VAESettings
from ddim.training.trainer import Trainer

HERE = Path(__file__).parent.parent.parent
DATA = HERE / "data" / "emoji.parquet"
RUNS = HERE / "runs" / "emoji"
WEIGHTS = HERE / "src" / "ddim" / "weights" / "emoji"
TRAIN = RUNS / "train.parquet"

PROMPTS = (
    "a red heart, noto style",
    "a blue heart on a black background, twemoji style",
    "a grinning face, fluent style",
    "an angry face on a yellow background, noto style",
    "a trophy, noto style",
    "a mushroom on a light blue background, fluent style",
    "a delivery truck, twemoji style",
    "a green apple on a pink background, noto style",
    "a cat face, twemoji style",
    "a purple heart on a white background, fluent style",
    "a house on a dark blue background, twemoji style",
    "a slice of pizza, noto style",
    "a crown on a red background, fluent style",
    "a fish, fluent style",
    "an orange book on a green background, noto style",
    "a ghost on a purple background, twemoji style",
)

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

# The learning rate stays where it is, so that training can go on as long as one likes; "anneal" ends it.
MODEL = TextToImageSettings(
    output_dir=str(RUNS / "model"),
    dataset_name=str(TRAIN),
    pretrained_vae_model_name_or_path=str(RUNS / "vae"),
    random_background=True,
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    block_out_channels=(64, 128, 192),
    attention_heads=4,
    text_dim=192,
    text_layers=2,
    text_heads=6,
    train_batch_size=32,
    max_train_steps=200_000,
    learning_rate=4e-4,
    lr_scheduler="constant_with_warmup",
    lr_warmup_steps=300,
    ema_decay=0.9995,
    mixed_precision="bf16",
    checkpointing_steps=1_000,
    validation_steps=2_000,
    logging_steps=100,
    validation_prompts=PROMPTS,
)
ANNEAL = dataclasses.replace(
    MODEL,
    output_dir=str(RUNS / "anneal"),
    pretrained_model_name_or_path=str(RUNS / "averaged"),
    pretrained_vae_model_name_or_path=None,
    train_text_encoder=True,
    lr_scheduler="linear",
    lr_warmup_steps=0,
    max_train_steps=5_000,
    ema_decay=0.998,
    seed=1,
)
# The loss of the long run was held up by its learning rate: the annealing alone took it from 0.193 to 0.167.
REFINE = dataclasses.replace(
    ANNEAL,
    output_dir=str(RUNS / "refine"),
    pretrained_model_name_or_path=str(RUNS / "anneal"),
    learning_rate=3e-4,
    lr_scheduler="cosine",
    lr_warmup_steps=200,
    train_batch_size=64,
    max_train_steps=7_000,
    ema_decay=0.999,
    seed=2,
)
STAGES = {"vae": VAE, "model": MODEL, "anneal": ANNEAL, "refine": REFINE}


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


def write_data(split: str = "train", path: Path = TRAIN) -> None:
    """Write the pictures of a split of the data ("train" or "held-out") with what may be said of them."""
    table = pq.read_table(DATA)
    rows = [
        row
        for row in table.to_pylist()
        if row["split"] == split and is_kept(row["icon"], row["concept"], row["captions"])
    ]
    said = [captions(row["captions"], row["style"]) for row in rows]
    chosen = pa.table(
        {
            "image": pa.array([row["image"] for row in rows], type=table.schema.field("image").type),
            "text": pa.array(said, type=pa.list_(pa.string())),
            **{name: [row[name] for row in rows] for name in ("style", "concept", "icon", "category")},
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        pq.write_table(chosen, unfinished, compression="zstd")
    print(f"{path}: {len(rows)} of {table.num_rows} pictures")


def newest(*runs: TextToImageSettings) -> Trainer:
    """The first of the runs that has a checkpoint, as that checkpoint left it."""
    settings = next(run for run in runs if run is runs[-1] or checkpoints(run.output_dir))
    trainer = make_trainer(dataclasses.replace(settings, report_to="none"))
    trainer.resume()
    return trainer


def begin(run: TextToImageSettings) -> None:
    """What a run after the first needs: the long run's average, and its encoded pictures."""
    if not (RUNS / "averaged").exists():
        newest(MODEL).finished().save_pretrained(RUNS / "averaged")
    share_cache(RUNS / "model", Path(run.output_dir))


def share_cache(run: Path, other: Path) -> None:
    """Let a run have the encoded pictures of another one, if it has none of its own."""
    if (run / "cache").exists() and not (other / "cache").exists():
        shutil.copytree(run / "cache", other / "cache", copy_function=os.link)


def ship() -> None:
    """Put the newest average into the package."""
    from further import averaged, goes, record  # which import this file, as words does
    from words import word_list

    trained = [folder for folder in goes() if checkpoints(folder)]
    if trained:
        pipe, told, what = averaged(trained[-1]).to(torch.float16), record(trained[-1]), str(trained[-1])
    else:
        trainer = newest(REFINE, ANNEAL, MODEL)
        pipe, told, what = trainer.finished(torch.float16), trainer.record(), trainer.settings.output_dir
    pipe.save_pretrained(WEIGHTS)
    # Paths are as they are from the project's folder.
    write_json(WEIGHTS / "training.json", json.loads(json.dumps(told).replace(f"{HERE}/", "")))
    word_list().write(WEIGHTS)
    DiffusionPipeline.from_pretrained(WEIGHTS)
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    print(f"{WEIGHTS}: {size / 1e6:.1f} MB, after {told['step']} steps of {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", *STAGES, "further", "ship"))
    of_further = parser.add_argument_group("of further")
    of_further.add_argument("--seconds", type=float, help="end by itself after so many seconds, encoding included")
    of_further.add_argument("--steps", type=int, help="end after so many steps in all")
    of_further.add_argument("--batch", type=int, help="pictures of a step: 64, and 2,048 on a CUDA device")
    of_further.add_argument(
        "--rate", type=float, help="the learning rate: 3e-4 for 64, by the root for others, to 1.6e-3"
    )
    of_further.add_argument("--ema", type=float, default=0.9995, help="what the average's decay rises to: %(default)s")
    of_further.add_argument("--precision", choices=("no", "bf16", "fp16"), help="bf16 where the device has it")
    of_further.add_argument(
        "--anneal", type=float, nargs="?", const=0.3, metavar="SHARE",
        help="the last share of the seconds or steps, in which the learning rate falls to zero: 0.3 if none is said",
    )  # fmt: skip
    of_further.add_argument("--from", dest="start", metavar="MODEL", help="begin from this model, not the last go's")
    of_further.add_argument("--out", type=Path, metavar="FOLDER", help="write the average in float16 there too")
    options = parser.parse_args()
    what = options.what
    if options.anneal and not (options.seconds or options.steps):
        parser.error("--anneal needs --seconds or --steps: else it is not known when to begin with it")
    if options.start is not None and os.path.exists(options.start):
        options.start = os.path.abspath(options.start)
    if options.out is not None:
        options.out = options.out.absolute()
    os.chdir(HERE)
    if what == "data" or not TRAIN.exists():
        write_data()
    if what in ("anneal", "refine"):
        begin(STAGES[what])
    if what in STAGES:
        print(train(STAGES[what]))
    if what == "further":
        from further import further

        further(options)
    if what == "ship":
        ship()


if __name__ == "__main__":
    main()
