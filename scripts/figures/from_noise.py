"""From noise to pictures in the four steps of emoji-fast: docs/from-noise.webp, which the README begins with.

    python scripts/figures/from_noise.py

A column for each text, all of seed 0; from the top: the noise, what the network makes of it at each of its four
evaluations (the predicted x0, of which the last is the picture). None is picked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim import DiffusionPipeline
from ddim.checkpoint import atomic_write
from ddim.images import image_grid
from ddim.noise import gaussian_noise, seeded_generators

TEXTS = (
    "a fox, noto style",
    "a penguin on a light blue background, twemoji style",
    "a rocket on a black background, fluent style",
    "a strawberry",
    "an owl, fluent style",
    "a guitar on a red background, noto style",
    "a hamburger on a turquoise background, noto style",
    "a sunflower on a purple background, noto style",
    "a grinning face with big eyes, twemoji style",
    "a castle on a light green background, twemoji style",
)


def main() -> None:
    pipe = DiffusionPipeline.from_pretrained("emoji-fast")
    noise = torch.cat([gaussian_noise((1, 4, 16, 16), seeded_generators(0, 1), pipe.device, pipe.dtype) for _ in TEXTS])
    pictures = pipe.decode(noise)

    def keep(_: Any, index: int, timestep: Tensor, values: dict[str, Tensor]) -> None:
        pictures.extend(pipe.decode(values["pred_original_sample"]))

    pipe(
        list(TEXTS),
        seed=[0] * len(TEXTS),
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["pred_original_sample"],
    )
    out = Path(__file__).parent.parent.parent / "docs" / "from-noise.webp"
    with atomic_write(out) as temporary:
        grid = image_grid(pictures, columns=len(TEXTS), scale=2, gap=4)
        grid.save(temporary, format="WEBP", quality=90, method=6)
    print(out, grid.size)


if __name__ == "__main__":
    main()
