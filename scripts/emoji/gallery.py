"""The pictures of judge.py: a gallery of prompts and seeds, and a sheet of what was judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SEEDS = (0, 1, 2, 3)
INK, FAINT, PAPER = (30, 30, 35), (125, 125, 135), (255, 255, 255)


class Prompt(NamedTuple):
    """A line of the gallery. `new`: why no training picture shows this, or nothing."""

    text: str
    new: str = ""


GALLERY = (
    Prompt("a red heart, noto style"),
    Prompt("a red heart, twemoji style"),
    Prompt("a blue heart on a yellow background, fluent style"),
    Prompt("a fox, noto style"),
    Prompt("an owl, fluent style"),
    Prompt("a penguin on a light blue background, twemoji style"),
    Prompt("an octopus on a dark blue background, noto style"),
    Prompt("a dragon face on a black background, twemoji style"),
    Prompt("a sunflower on a purple background, noto style"),
    Prompt("a cactus on an orange background, fluent style"),
    Prompt("a strawberry"),
    Prompt("a pizza, twemoji style"),
    Prompt("a hamburger on a turquoise background, noto style"),
    Prompt("a green apple on a pink background"),
    Prompt("a grinning face with big eyes, twemoji style"),
    Prompt("a ghost on a dark blue background, fluent style"),
    Prompt("a robot on a gray background, noto style"),
    Prompt("a rocket on a black background, fluent style"),
    Prompt("a castle on a light green background, twemoji style"),
    Prompt("a guitar on a red background, noto style"),
    Prompt("a flag of japan on a light blue background, noto style", "a style without this flag"),
    Prompt(
        "a waving hand with medium light skin tone on a pink background, twemoji style", "a style without skin tones"
    ),
    Prompt("a winking face on a purple background, noto style", "a held-out emoji"),
    Prompt("a top hat on a turquoise background, fluent style", "a held-out emoji"),
    Prompt("a black circle on an orange background, twemoji style", "a held-out emoji"),
)


def to_picture(image: Tensor, size: int) -> Image.Image:
    """(3 h w) in [-1, 1] as a square of so many pixels."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines no wider than so many pixels; a word that is wider has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def draw_gallery(generate: Callable[[Sequence[str], Sequence[int]], Tensor], columns: int = 2) -> Image.Image:
    """Every prompt of `GALLERY` with every seed: prompts down the left, seeds on top, in so many columns.

    Args:
        generate: prompts and seeds -> pictures (n 3 64 64) in [-1, 1].
    """
    images = generate([prompt.text for prompt in GALLERY for _ in SEEDS], [*SEEDS] * len(GALLERY))
    size, gap, margin, label, top = 128, 6, 36, 250, 44
    lines = -(-len(GALLERY) // columns)
    width = label + len(SEEDS) * (size + gap)
    canvas = Image.new("RGB", (columns * (width + margin) + margin, top + lines * (size + gap) + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(20), ImageFont.load_default(16)
    for column in range(columns):
        for k, seed in enumerate(SEEDS):
            x = margin + column * (width + margin) + label + k * (size + gap) + size // 2
            draw.text((x, top - 8), f"seed {seed}", FAINT, small, anchor="ms")
    for number, prompt in enumerate(GALLERY):
        column, line = divmod(number, lines)
        left, y = margin + column * (width + margin), top + line * (size + gap)
        said = [(text, large, INK) for text in wrap(prompt.text, large, label - 20)]
        if prompt.new:
            said += [(text, small, FAINT) for text in wrap(f"new: {prompt.new}", small, label - 20)]
        at = y + (size - 25 * len(said)) / 2
        for k, (text, font, ink) in enumerate(said):
            draw.text((left, at + 25 * k), text, ink, font)
        for k in range(len(SEEDS)):
            x = left + label + k * (size + gap)
            canvas.paste(to_picture(images[number * len(SEEDS) + k], size), (x, y))
            draw.rectangle((x - 1, y - 1, x + size, y + size), outline=(225, 225, 230))
    return canvas


def draw_sheet(pictures: Sequence[tuple[str, Tensor]], columns: int = 12) -> Image.Image:
    """Pictures (3 64 64) in [-1, 1] with their captions below."""
    size, gap, text = 128, 12, 62
    lines = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (gap + columns * (size + gap), gap + lines * (size + text + gap)), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for number, (caption, image) in enumerate(pictures):
        line, column = divmod(number, columns)
        x, y = gap + column * (size + gap), gap + line * (size + text + gap)
        canvas.paste(to_picture(image, size), (x, y))
        for k, part in enumerate(wrap(caption, font, size)[:4]):
            draw.text((x, y + size + 2 + 15 * k), part, INK, font)
    return canvas
