"""The options of `ddim optimize`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ddim.errors import ConfigError


@dataclass(frozen=True)
class OptimizeSettings:
    """Find the timesteps from which few steps come nearest to many: `--spacing optimized` then uses them.

    They are found for a model, its guidance and an order, on some samples, by a search over the timesteps of a fine
    run; see `ddim.search`. The time it takes grows with --reference and the largest of --steps. They are written into
    the scheduler's config, beside those that are there for other numbers of steps.
    """

    model: tyro.conf.Positional[str]
    """A folder in diffusers' layout, the name of a bundled model, or an id on the hub."""
    steps: tuple[int, ...] = (5, 6, 8, 10, 12, 15, 20)
    """The numbers of sampling steps to find timesteps for."""
    order: Literal[1, 2] = 1
    """Of the steps that will be made with them."""
    reference: int = 60
    """Steps of the fine run."""
    samples: int = 16
    """To search on."""
    prompts: tuple[str, ...] = ()
    """What the samples are of, in turn, for a text-to-image model."""
    guidance_scale: float | None = None
    """As it will be used. If not given, 1 for classes, 3 for a text-to-image model with zero terminal SNR, 7.5 for
    others."""
    guidance_rescale: float | None = None
    """As it will be used. If not given, 0.7 for a text-to-image model with zero terminal SNR, else 0."""
    seed: int = 0
    """Of the samples' noise."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type to run in. If not given float32, or with OpenVINO what suits the processor."""
    backend: Literal["eager", "compile", "openvino", "auto"] = "eager"
    """What runs the networks: see `ddim sample --help`."""
    device: str | None = None
    """For example cuda, cuda:1, mps or cpu. The best there is if not given."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where scheduler_config.json goes. If not given, into the model, if that is a folder."""

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1 or max(self.steps) > self.reference:
            raise ConfigError(f"steps must be from 1 to the {self.reference} of --reference, not {self.steps}")
        if self.samples < 1:
            raise ConfigError(f"samples must be 1 or more, not {self.samples}")
