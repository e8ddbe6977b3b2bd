"""The options of the commands that draw and look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

Spacing = Literal["leading", "trailing", "linspace", "quadratic", "optimized"]


@dataclass(frozen=True)
class SampleSettings:
    """Draw images from a model: of a text, of a class, or of nothing in particular.

    One picture with all of them in a grid is written, or, if --out is a folder, one file for each. A PNG says how it
    was made; --from makes it again.
    """

    prompt: tyro.conf.Positional[str | None] = None
    """What to draw, for a text-to-image model."""
    model: str | None = None
    """A folder in diffusers' layout, the name of a bundled model (see `ddim info`), or an id on the hub. If not given,
    emoji for a text, else digits."""
    negative_prompt: str | None = None
    """What to keep away from, for a text-to-image model."""
    class_labels: tuple[int, ...] = ()
    """Classes to draw, for a class-conditional model; repeated to fill the batch. All of them in turn if not given."""
    guidance_scale: float | None = None
    """How much to prefer the text or class over none; 1 is no guidance. If not given, 1 for classes, 3 for a
    text-to-image model with zero terminal SNR, 7.5 for others."""
    guidance_rescale: float | None = None
    """In [0, 1]: how much of the contrast that guidance adds to take back. If not given, 0.7 for a text-to-image model
    with zero terminal SNR, else 0."""
    guidance_interval: tuple[int, int] | None = None
    """Guide only at timesteps from LOW to HIGH, both included: the others take half the work. All if not given."""
    steps: int = 50
    """Sampling steps, 1 to the model's training timesteps."""
    eta: float | Literal["sigma_hat"] = 0.0
    """Noise added on the way: 0 is DDIM, 1 is DDPM, sigma_hat is DDPM with the larger variance."""
    order: Literal[1, 2] = 1
    """Of the steps: 2 comes nearer to what many steps give, with as many evaluations; for --eta 0."""
    spacing: Spacing | None = None
    """Which of the training timesteps to use. The model's own choice if not given."""
    zero_snr: bool | None = None
    """Rescale the schedule to zero terminal SNR (needs a v-prediction model). The model's own choice if not given."""
    seed: int = 0
    """Image k of a seed is the same whatever the batch size."""
    batch: int | None = None
    """How many images. If not given, the number of class labels, or all classes, or 1 for a text, or 16."""
    height: int | None = None
    """In pixels, for a text-to-image model. What it was trained on if not given."""
    width: int | None = None
    """In pixels, for a text-to-image model."""
    image: str | None = None
    """A picture to start from, for a text-to-image model."""
    strength: float = 0.8
    """In [0, 1]: how much of --image is lost."""
    mask_image: str | None = None
    """White where --image is to be painted anew."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type to run in. If not given float32, or with OpenVINO what suits the processor."""
    backend: Literal["eager", "compile", "openvino", "auto"] = "eager"
    """What runs the networks: PyTorch (eager), PyTorch after a minute of compiling, OpenVINO (for CPUs; converts a
    model once, and keeps that), or what suits the device."""
    device: str | None = None
    """For example cuda, cuda:1, mps or cpu. The best there is if not given."""
    from_image: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """A PNG that this command wrote: make it again with its settings, except for --out and --device. Or the noise that
    `ddim invert` saved: sample the picture of it."""
    out: str = "samples.png"
    """A file for a grid of all images, or a folder (existing, or ending in /) for one file each."""


@dataclass(frozen=True)
class InfoSettings:
    """Say what a model is: its parts and sizes, and the plan that its scheduler makes."""

    model: tyro.conf.Positional[str] = "digits"
    """A folder, the name of a bundled model, or an id on the hub."""
    steps: int = 10
    """Of the plan to show."""
    eta: float | Literal["sigma_hat"] = 0.0
    """Of the plan to show."""
