"""The same noises drawn in few steps, as they come and as they are better: docs/few-steps.png.

    python scripts/figures/few_steps.py

A column for each text of the emoji model, all of seed 0; from the top: DDIM with 50 steps, 8 and 5; then steps of
second order at the timesteps that the model ships with, 8 and 5. Guidance 3, rescale 0.7.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ddim import DiffusionPipeline
from ddim.checkpoint import atomic_write
from ddim.images import image_grid

TEXTS = (
    "a grinning face with big eyes, twemoji style",
    "a fox, noto style",
    "a castle on a light green background, twemoji style",
    "a rocket on a black background, fluent style",
    "an owl, fluent style",
    "a sunflower on a purple background, noto style",
    "a blue heart on a yellow background, fluent style",
    "a robot on a gray background, noto style",
)
ROWS = ((50, 1, "trailing"), (8, 1, "trailing"), (5, 1, "trailing"), (8, 2, "optimized"), (5, 2, "optimized"))


def main() -> None:
    pipe = DiffusionPipeline.from_pretrained("emoji")
    spaced, pictures = pipe.scheduler, []
    for steps, order, spacing in ROWS:
        pipe.scheduler = spaced.from_config(spaced.config, timestep_spacing=spacing)
        with torch.inference_mode():
            pictures += pipe(
                list(TEXTS), seed=[0] * len(TEXTS), num_inference_steps=steps, order=order,
                guidance_scale=3.0, guidance_rescale=0.7,
            ).images  # fmt: skip
    out = Path(__file__).parent.parent.parent / "docs" / "few-steps.png"
    with atomic_write(out) as temporary:
        image_grid(pictures, columns=len(TEXTS), scale=2, gap=4).save(temporary)
    print(out)


if __name__ == "__main__":
    main()
