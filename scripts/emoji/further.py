"""Training the emoji model further, in goes: the first begins from what is shipped, the others from the last average.

    python scripts/emoji/train.py further                         # on, until Ctrl-C; and again, from where it was
    python scripts/emoji/train.py further --seconds 600           # on, for ten minutes
    python scripts/emoji/train.py further --seconds 600 --anneal  # the same, the rate falling to zero in the last third
    python scripts/emoji/train.py further --steps 5000 --anneal 1 # 5,000 steps in which it falls all the way
    python scripts/emoji/train.py further --seconds 600 --out FOLDER     # and the average, in float16, there too
    python scripts/emoji/train.py further --seconds 600 --from FOLDER    # from there, whatever goes there were before
    python scripts/emoji/train.py ship                            # the newest average into the package

A go is a folder, runs/emoji/further, further-2 and so on, with checkpoints and, at its end or when it is interrupted
(Ctrl-C, SIGTERM), the averaged model. The same command again goes on with it, bit for bit; one with another batch size,
learning rate, precision or the like begins the next go. So does whatever comes after a go that was annealed to its end.
Where there is a CUDA device it is used, and the settings are those of `by_device`.

What a go takes from the one before is its average alone. Moments of gradients of another batch size or precision are no
good to the optimizer, which has its own after some hundred steps of warm-up; the average has a lower loss than the
weights that it was made of; and it is a model folder, which anything can load and is as small as the shipped one. Its
decay rises with the steps, so that a short go's average is not mostly what it began from.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
import train as stages
from torch import nn

from ddim import DiffusionPipeline
from ddim.checkpoint import read_json, write_json
from ddim.training import train
from ddim.training.checkpoints import checkpoints, load_trained, read_state
from ddim.training.interruption import Interrupted
from ddim.training.settings import TextToImageSettings, is_installed
from ddim.training.trainer import changed_settings

SHIPPED = "emoji"
RATE, OF_BATCH = 3e-4, 64  # the learning rate, and the batch that it is for; others have it by the root of their size
MOST = 1.6e-3  # and no more than this: what was compared (docs/emoji.md), and what the shipped weights were trained by
MANY = 1_000_000  # steps of a go that is ended by hand


def by_device() -> dict[str, Any]:
    """What suits the processor or the CUDA device that is there: batch, precision, and what feeds it."""
    if not torch.cuda.is_available():
        return {"train_batch_size": 64, "mixed_precision": "bf16", "checkpointing_steps": 250}
    return {
        "train_batch_size": 2048,  # a step of 512 takes as long as one of 1,024: such a card waits for the processor
        "mixed_precision": "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no",
        "allow_tf32": True,
        "dataloader_num_workers": max(1, min(8, (os.cpu_count() or 2) - 2)),
        "checkpointing_steps": 2_000,
    }


def go_settings(folder: Path, options: argparse.Namespace) -> TextToImageSettings:
    """The settings of a go in a folder, which begins from the model in start/ there.

    Paths are as they are from the project's folder, so that a go can go on in another copy of the project.
    """
    chosen = by_device()
    chosen["train_batch_size"] = options.batch or chosen["train_batch_size"]
    chosen["mixed_precision"] = options.precision or chosen["mixed_precision"]
    return dataclasses.replace(
        stages.REFINE,
        output_dir=from_here(folder),
        dataset_name=from_here(stages.TRAIN),
        pretrained_model_name_or_path=from_here(folder / "start"),
        learning_rate=options.rate or min(MOST, RATE * (chosen["train_batch_size"] / OF_BATCH) ** 0.5),
        lr_scheduler="warmup_stable_decay" if options.anneal else "constant_with_warmup",
        **({"lr_decay_share": options.anneal} if options.anneal else {}),
        lr_warmup_steps=300,
        max_train_steps=options.steps or MANY,
        max_train_seconds=options.seconds,
        ema_decay=options.ema,
        ema_power=1.0,
        ema_inv_gamma=10.0,  # the average is over the last tenth of the steps, until the decay is reached
        validation_steps=0,
        report_to="tensorboard" if is_installed("tensorboard") else "none",
        seed=2 + number_of(folder),  # another order and other noises than in the goes before
        **chosen,
    )


def from_here(path: Path) -> str:
    return str(path.relative_to(stages.HERE)) if path.is_relative_to(stages.HERE) else str(path)


def number_of(folder: Path) -> int:
    """Which go a folder is of, from 1 on."""
    return int(folder.name.partition("-")[2] or 1)


def goes() -> list[Path]:
    """The folders of all goes that have learnt something, oldest first."""
    named = (path for path in stages.RUNS.glob("further*") if re.fullmatch(r"further(-[0-9]+)?", path.name))
    return [path for path in sorted(named, key=number_of) if checkpoints(path) or is_model(path)]


def is_model(folder: Path) -> bool:
    return (folder / "model_index.json").exists()


def averaged(folder: Path) -> Any:
    """The pipeline of the newest average of a run of U-Net and text encoder, in float32; the rest is as shipped."""
    found = checkpoints(folder)
    if not found:
        return DiffusionPipeline.from_pretrained(folder)
    pipe = DiffusionPipeline.from_pretrained(SHIPPED)
    networks = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder}).requires_grad_(True)
    load_trained(networks, found[-1], "average")
    networks.requires_grad_(False)
    return pipe


def beginning(told: str | None) -> tuple[Any, str]:
    """What is trained further, and what it is called: the model that was told, or the newest average."""
    before = goes()
    if told is not None or not before:
        return DiffusionPipeline.from_pretrained(told or SHIPPED), told or SHIPPED
    return averaged(before[-1]), str(before[-1])


def is_open(folder: Path, options: argparse.Namespace) -> bool:
    """Whether these options go on with a go, and do not begin another one."""
    found = checkpoints(folder)
    if not found or (options.start is not None and origin(folder) != options.start):
        return False
    state = read_state(found[-1])
    is_annealed = state["settings"].get("lr_scheduler") == "warmup_stable_decay"
    if is_annealed and (folder / "training.json").exists():
        return False  # it came to its end
    return not changed_settings(go_settings(folder, options), state)


def origin(folder: Path) -> str | None:
    """What a go was told to begin from, or None."""
    told = folder / "start" / "origin.json"
    return str(read_json(told)["from"]) if told.exists() else None


def next_go(options: argparse.Namespace) -> Path:
    """The folder of the go to train, made ready."""
    before = goes()
    if before and is_open(before[-1], options):
        return before[-1]
    number = number_of(before[-1]) + 1 if before else 1
    folder = stages.RUNS / ("further" if number == 1 else f"further-{number}")
    pipe, begins = beginning(options.start)
    pipe.save_pretrained(folder / "start")
    write_json(folder / "start" / "origin.json", {"from": begins})
    for other in (*reversed(before), *(stages.RUNS / name for name in ("refine", "anneal", "model"))):
        stages.share_cache(other, folder)
    print(f"{folder} begins from {begins}", flush=True)
    return folder


def further(options: argparse.Namespace) -> None:
    """Train the newest go on, or the next one; however it ends, the average is in its folder then."""
    folder = next_go(options)
    (folder / "training.json").unlink(missing_ok=True)  # which says that a go came to its end
    try:
        train(go_settings(folder, options))
    except Interrupted as error:
        if checkpoints(folder):
            averaged(folder).save_pretrained(folder)
        print(f"interrupted: {error}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        if options.out is not None and is_model(folder):
            averaged(folder).to(torch.float16).save_pretrained(options.out)


def record(folder: Path) -> dict[str, Any]:
    """What is known of the model that the goes have come to: the newest one's record, and how far each went."""
    state = read_state(checkpoints(folder)[-1])
    each = [(path, read_state(checkpoints(path)[-1])) for path in goes() if checkpoints(path)]
    state["goes"] = [
        {
            "folder": path.name,
            "step": of["step"],
            **{name: of["settings"][name] for name in ("train_batch_size", "learning_rate", "lr_scheduler", "seed")},
        }
        for path, of in each
    ]
    state["samples"] = sum(of["step"] * of["settings"]["train_batch_size"] for _, of in each)
    return state
