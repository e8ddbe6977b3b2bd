"""Train the bundled digits model and put it, in float16, into src/ddim/weights/digits.

    python scripts/digits/train.py             # about a quarter of an hour on two cores; run it again to go on
    python scripts/digits/judge.py digits      # what it is worth

The recipe is the DDIM paper's (linear schedule, T = 1000, epsilon-prediction) on scikit-learn's 8x8 digits, by class,
one image in ten without its class. Every fifth digit is held out (`ddim.sources.digits`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ddim import DDIMScheduler, DiffusionPipeline
from ddim.training import train
from ddim.training.settings import PixelSettings

HERE = Path(__file__).parent.parent.parent
WEIGHTS = HERE / "src" / "ddim" / "weights" / "digits"

SETTINGS = PixelSettings(
    output_dir=str(HERE / "runs" / "digits"),
    data="digits",
    class_conditional=True,
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention_head_dim=16,
    dropout=0.1,
    train_batch_size=64,
    max_train_steps=8_000,  # later, samples come nearer to training digits than real held-out digits do
    lr_decay_steps=16_000,
    learning_rate=1e-3,
    lr_warmup_steps=200,
    ema_decay=0.999,
    checkpointing_steps=2_000,
    logging_steps=100,
    save_dtype="float16",
    seed=0,
)


def main() -> None:
    folder = train(SETTINGS)
    for name in ("model_index.json", "unet", "scheduler", "training.json"):
        source, target = folder / name, WEIGHTS / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    scheduler = DDIMScheduler.from_pretrained(WEIGHTS / "scheduler")
    unclipped = DDIMScheduler.from_config(scheduler.config, clip_sample=False)  # half the Fréchet distance
    unclipped.save_pretrained(WEIGHTS / "scheduler")
    DiffusionPipeline.from_pretrained(WEIGHTS)
    print(WEIGHTS)


if __name__ == "__main__":
    main()
