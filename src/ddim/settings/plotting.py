"""The options of `ddim plot`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from ddim.settings.sampling import Spacing


@dataclass(frozen=True)
class PlotScheduleSettings:
    """The noise level and SNR of every timestep, and which timesteps each spacing picks."""

    model: str | None = None
    """Draw this model's schedule instead of the three usual ones."""
    steps: int = 10
    """How many timesteps each spacing picks."""
    zero_snr: bool = False
    """Rescale to zero terminal SNR."""
    out: str = "schedule.png"
    """A .png, .svg or .pdf."""


@dataclass(frozen=True)
class PlotTrajectorySettings:
    """One run, step by step: the sample x_t, and the image x0 that the network sees in it.

    The run is that of `ddim sample` with the same options.
    """

    prompt: tyro.conf.Positional[str | None] = None
    """What to draw, for a text-to-image model."""
    model: str | None = None
    """A folder in diffusers' layout, the name of a bundled model, or an id on the hub. If not given, emoji for a text,
    else digits."""
    negative_prompt: str | None = None
    """What to keep away from, for a text-to-image model."""
    class_label: int | None = None
    """The class to draw, for a class-conditional model. No class in particular if not given."""
    guidance_scale: float | None = None
    """How much to prefer the text or class over none; 1 is no guidance. If not given, 1 for classes, 3 for a
    text-to-image model with zero terminal SNR, 7.5 for others."""
    guidance_rescale: float | None = None
    """In [0, 1]: how much of the contrast that guidance adds to take back. If not given, 0.7 for a text-to-image model
    with zero terminal SNR, else 0."""
    steps: int = 50
    """Sampling steps, 1 to the model's training timesteps."""
    eta: float | Literal["sigma_hat"] = 0.0
    """Noise added on the way: 0 is DDIM, 1 is DDPM, sigma_hat is DDPM with the larger variance."""
    spacing: Spacing | None = None
    """Which of the training timesteps to use. The model's own choice if not given."""
    zero_snr: bool | None = None
    """Rescale the schedule to zero terminal SNR (needs a v-prediction model). The model's own choice if not given."""
    seed: int = 0
    """Of the noise."""
    moments: int = 9
    """How many steps to show, evenly apart, the first and the last among them."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The type to run in."""
    device: str | None = None
    """For example cuda, cuda:1, mps or cpu. The best there is if not given."""
    out: str = "trajectory.png"
    """A .png, .svg or .pdf."""


@dataclass(frozen=True)
class PlotTradeoffSettings:
    """The distance to the data against steps, and against seconds, of what `ddim evaluate` found."""

    results: tyro.conf.Positional[tuple[str, ...]]
    """The results.json of one or more runs; each gets a row of its own."""
    out: str = "tradeoff.png"
    """A .png, .svg or .pdf."""
