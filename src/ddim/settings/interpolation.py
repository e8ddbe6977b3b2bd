"""The options of `ddim interpolate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from ddim.settings.sampling import Spacing


@dataclass(frozen=True)
class InterpolateSettings:
    """Draw what lies between seeds, texts, classes or real pictures.

    Give two or more of one kind, and of the others one or as many: they go along together. A path is a strip, an
    animation or a folder of frames, as --out says; four corners are a square with --grid.

        ddim interpolate --seeds 0 1 2 --out strip.png
        ddim interpolate "a red heart" "a blue heart" --frames 24 --loop --out hearts.gif
        ddim interpolate --images a.png b.png --model emoji --out between.png
        ddim interpolate --seeds 0 1 2 3 --grid --out grid.png
    """

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to go between, or one for all frames, for a text-to-image model. Before all options."""
    model: str | None = None
    """A folder in diffusers' layout, the name of a bundled model (see `ddim info`), or an id on the hub. If not given,
    emoji for texts, else digits."""
    seeds: tuple[int, ...] = ()
    """Noises to go between, each what `ddim sample --seed` draws its first picture from; or one for all frames. If not
    given, 0, and 1 (with --grid also 2 and 3) where nothing else differs."""
    images: tuple[str, ...] = ()
    """Picture files to go between, instead of seeds: each is led up to its noise by DDIM's inversion, under its text
    or class and without guidance."""
    method: Literal["ddim", "fixed-point"] = "ddim"
    """How --images are led up to their noise. ddim: one evaluation a step; the ends of the path are near the pictures.
    fixed-point: several; they are the pictures, as far as the model's autoencoder can show them."""
    class_labels: tuple[int, ...] = ()
    """Classes to go between, or one for all frames, for a class-conditional model: the predictions for the two are
    mixed. If not given, no class in particular."""
    negative_prompt: str | None = None
    """What to keep away from, for a text-to-image model."""
    frames: int = 8
    """Pictures from each point to the next, both included; with --grid, on each side."""
    grid: bool = False
    """A square between four corners: top left, top right, bottom left, bottom right."""
    rows: bool = False
    """A strip with a row from each point to the next, rather than one row for all."""
    between_texts: Literal["linear", "spherical"] = "linear"
    """How to go between two texts' embeddings. Noises always go along a sphere."""
    steps: int = 50
    """Sampling steps, 1 to the model's training timesteps; with --images, as many up as down."""
    guidance_scale: float | None = None
    """How much to prefer the text or class over none; 1 is no guidance. If not given, 1 for classes and --images, 3 for
    a text-to-image model with zero terminal SNR, 7.5 for others."""
    guidance_rescale: float | None = None
    """In [0, 1]: how much of the contrast that guidance adds to take back. If not given, 0.7 for a text-to-image model
    with zero terminal SNR under guidance, else 0."""
    spacing: Spacing | None = None
    """Which of the training timesteps to use. The model's own choice if not given."""
    batch_size: int = 16
    """How many frames are drawn at a time. Makes no difference to what they show."""
    loop: bool = False
    """An animation that goes there and back."""
    fps: float = 12.0
    """Frames a second of an animation, 1 to 60."""
    scale: int | None = None
    """Enlarge each picture so many times. If not given, small ones: to about 64 pixels in a strip or grid, to about 256
    in an animation, not at all in a folder."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type to run in. If not given float32, or with OpenVINO what suits the processor."""
    backend: Literal["eager", "compile", "openvino", "auto"] = "eager"
    """What runs the networks: see `ddim sample --help`."""
    device: str | None = None
    """For example cuda, cuda:1, mps or cpu. The best there is if not given."""
    out: str = "interpolation.png"
    """A picture for a strip or a square; a .gif, .webp or .mp4 for an animation; a folder (existing, or
    ending in /) for one file each."""
