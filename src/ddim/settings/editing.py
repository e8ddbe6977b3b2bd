"""The options of `ddim invert` and `ddim edit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from ddim.settings.sampling import Spacing

Inversion = Literal["ddim", "fixed-point", "bidirectional"]


@dataclass(frozen=True)
class InvertSettings:
    """Find the noise that a real picture is sampled from, and say how near the way back comes.

    The noise is saved with all that is needed to sample it again; `ddim sample --from noise.safetensors` does.

        ddim invert heart.png --model emoji --prompt "a red heart" --out heart.safetensors
        ddim invert seven.png --model digits --class-label 7 --method fixed-point
    """

    images: tyro.conf.Positional[tuple[str, ...]]
    """Picture files; resized to what the model draws."""
    model: str = "emoji"
    """A folder in diffusers' layout, the name of a bundled model (see `ddim info`), or an id on the hub."""
    prompt: str | None = None
    """What the pictures show, for a text-to-image model. The empty text if not given."""
    negative_prompt: str | None = None
    """What to keep away from, under guidance."""
    class_label: int | None = None
    """What the pictures show, for a class-conditional model. No class if not given."""
    method: Inversion = "ddim"
    """ddim: as in the paper, near. fixed-point: each step solved for where it came from, some ten times the work.
    bidirectional: a sampler that is exactly reversible."""
    steps: int = 50
    """Up, and down again."""
    guidance_scale: float = 1.0
    """1, no guidance, is what comes back best."""
    guidance_rescale: float = 0.0
    """In [0, 1]: how much of the contrast that guidance adds to take back."""
    spacing: Spacing | None = None
    """Which of the training timesteps to use. The model's own choice if not given."""
    check: bool = True
    """Sample back and say how near that comes, which takes as long again."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type that the network computes in; what it starts from stays wider. If not given float32, or with OpenVINO
    what suits the processor."""
    backend: Literal["eager", "compile", "openvino", "auto"] = "eager"
    """What runs the networks: see `ddim sample --help`."""
    device: str | None = None
    """For example cuda, cuda:1, mps or cpu. The best there is if not given."""
    out: str = "noise.safetensors"
    """A .safetensors."""


@dataclass(frozen=True)
class EditSettings:
    """Change what a picture shows: its noise under one text, sampled under another.

    ddim edit face.png --source "a grinning face" --target "an angry face" --out angry.png
    """

    images: tyro.conf.Positional[tuple[str, ...]]
    """Picture files; resized to what the model draws."""
    source: str
    """What the pictures show."""
    target: str
    """What they shall show."""
    model: str = "emoji"
    """A text-to-image model: a folder in diffusers' layout, a bundled one, or an id on the hub."""
    method: Literal["cycle", "ddim", "fixed-point", "bidirectional"] = "cycle"
    """cycle: CycleDiffusion, the noise of every step of a random sampler. The others: DDIM inversion, see `ddim
    invert`."""
    strength: float = 0.7
    """In (0, 1]: the share of the steps that are made anew; less keeps more of the picture."""
    steps: int = 100
    """Of the whole way, of which the strength's share is made, there and back."""
    eta: float = 1.0
    """In (0, 1], for cycle: the noise of its sampler."""
    source_guidance_scale: float = 1.0
    """On the way to the noise."""
    guidance_scale: float | None = None
    """On the way back: how much to prefer the target. If not given, 3 for a model with zero
    terminal SNR, 7.5 for others."""
    guidance_rescale: float | None = None
    """In [0, 1]. If not given, 0.7 for a model with zero terminal SNR, else 0."""
    spacing: Spacing | None = None
    """Which of the training timesteps to use. The model's own choice if not given."""
    seed: int = 0
    """Of the path that cycle draws."""
    batch: int = 1
    """How many different results of each picture; cycle alone has them."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type to run in. If not given float32, or with OpenVINO what suits the processor."""
    backend: Literal["eager", "compile", "openvino", "auto"] = "eager"
    """What runs the networks: see `ddim sample --help`."""
    device: str | None = None
    """For example cuda, cuda:1, mps or cpu. The best there is if not given."""
    before: bool = False
    """Show each picture beside its results."""
    out: str = "edited.png"
    """A file for one picture or a grid of all, or a folder (existing, or ending in /) for one file each."""
