"""A student of the emoji model beside its teacher, the same prompts and seeds: docs/emoji-fast.webp.

    python scripts/emoji/side_by_side.py
    python scripts/emoji/side_by_side.py --student FOLDER --out FILE

Every prompt of `gallery.py` with its four seeds: by the teacher with 50 steps of first order under guidance 3, rescale
0.7, and by the student with 4, 2 and 1 steps. A student that starts from the same noise is to end at the same picture.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gallery import FAINT, GALLERY, INK, PAPER, SEEDS, Prompt, to_picture, wrap
from judge import generate
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddim import DiffusionPipeline
from ddim.checkpoint import atomic_write

OUT = Path(__file__).parent.parent.parent / "docs" / "emoji-fast.webp"
STEPS = (4, 2, 1)
SIZE, GAP, BETWEEN, LABEL, TOP = 64, 2, 14, 250, 30


class Block(NamedTuple):
    """What one model draws: `images` (prompts x seeds, 3, 64, 64) in [-1, 1], the seeds of a prompt together."""

    title: str
    images: Tensor


def draw_blocks(blocks: Sequence[Block], prompts: Sequence[Prompt] = GALLERY) -> Image.Image:
    """A line for each prompt, and the blocks beside each other."""
    block_width = len(SEEDS) * (SIZE + GAP) + BETWEEN
    canvas = Image.new("RGB", (LABEL + len(blocks) * block_width, TOP + len(prompts) * (SIZE + GAP)), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for number, prompt in enumerate(prompts):
        y = TOP + number * (SIZE + GAP)
        said = [(line, INK) for line in wrap(prompt.text, font, LABEL - 16)]
        said += [(line, FAINT) for line in wrap(f"new: {prompt.new}", font, LABEL - 16)] if prompt.new else []
        for k, (line, ink) in enumerate(said):
            draw.text((8, y + (SIZE - 17 * len(said)) / 2 + 17 * k), line, ink, font)
    for column, block in enumerate(blocks):
        left = LABEL + column * block_width
        draw.text((left, 8), block.title, INK, font)
        for number, image in enumerate(block.images):
            line, seed = divmod(number, len(SEEDS))
            canvas.paste(to_picture(image, SIZE), (left + seed * (SIZE + GAP), TOP + line * (SIZE + GAP)))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="emoji")
    parser.add_argument("--student", default="emoji-fast")
    parser.add_argument("--out", type=Path, default=OUT, help="a picture of any kind that Pillow writes")
    options = parser.parse_args()
    prompts, seeds = [prompt.text for prompt in GALLERY for _ in SEEDS], [*SEEDS] * len(GALLERY)
    teacher, student = (DiffusionPipeline.from_pretrained(name) for name in (options.teacher, options.student))
    for pipe in (teacher, student):
        pipe.set_progress_bar_config(disable=True)
    teacher.scheduler = teacher.scheduler.from_config(teacher.scheduler.config, timestep_spacing="trailing")
    guided = {"num_inference_steps": 50, "order": 1, "guidance_scale": 3.0, "guidance_rescale": 0.7}
    blocks = [Block("teacher, 50 steps: 100 evaluations", generate(teacher, prompts, seeds, **guided))]
    warnings.filterwarnings("ignore", "expect worse pictures")  # of a student that was made for other steps
    for steps in STEPS:
        images = generate(student, prompts, seeds, num_inference_steps=steps)
        blocks.append(Block(f"student, {steps} step{'s' * (steps > 1)}", images))
    with atomic_write(options.out) as path:
        draw_blocks(blocks).save(
            path, format=Image.registered_extensions()[options.out.suffix.lower()], quality=65, method=6
        )
    print(options.out)


if __name__ == "__main__":
    main()
