"""The options of `ddim evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ddim.errors import ConfigError
from ddim.settings.sampling import Spacing

Clipping = Literal["model", "always", "never", "sigma_hat"]


@dataclass(frozen=True)
class EvaluateSettings:
    """Measure how far a model's samples are from data, for each number of steps and each eta (the paper's Table 1).

    Every batch is kept in --out, so the same command goes on after an interruption, and gives the same figures as if
    there had been none. The folder gets results.json, results.csv, and the trade-off as PNG and SVG.
    """

    model: tyro.conf.Positional[str] = "digits"
    """A folder in diffusers' layout, the name of a bundled model, or an id on the hub."""
    against: str | None = None
    """The data: digits (all 1,797 real ones; digits:train or digits:held-out for a part), a folder of pictures, a
    .parquet file, or the id of a dataset on the hub. A text-to-image model draws its captions."""
    steps: tuple[int, ...] = (10, 20, 50, 100)
    """Numbers of sampling steps, S."""
    eta: tuple[float | Literal["sigma_hat"], ...] = (0.0,)
    """0 is DDIM, 1 is DDPM, sigma_hat is DDPM with the larger variance, which adds no noise at the last step, as in
    the paper's code."""
    samples: int = 5000
    """To draw for each of them, and each seed."""
    batch: int = 500
    """Samples at a time."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """Of the noise and of the captions' order. Several give a mean and a standard deviation over them."""
    spacing: Spacing | None = None
    """Which of the training timesteps to use. The model's own choice if not given."""
    clip_sample: Clipping = "model"
    """Whether the predicted image is clipped: as the model's scheduler says, always, never, or only under sigma_hat,
    as in the paper's code."""
    features: str | None = None
    """What sees the pictures: digits, emoji or inception. If not given, what is shipped for pictures of this size."""
    features_weights: str | None = None
    """The file of Inception's weights."""
    guidance_scale: float | None = None
    """How much to prefer the text or class over none; 1 is no guidance. If not given, 1 for classes, 3 for a
    text-to-image model with zero terminal SNR, 7.5 for others."""
    guidance_rescale: float | None = None
    """In [0, 1]: how much of the contrast that guidance adds to take back. If not given, 0.7 for a text-to-image model
    with zero terminal SNR, else 0."""
    labels: Literal["turn", "data"] = "turn"
    """Of a class-conditional model: all classes in turn, or those of the data in an order of the seed."""
    image_column: str = "image"
    """Of a dataset."""
    label_column: str = "label"
    """Of a dataset."""
    caption_column: str = "captions"
    """Of a dataset or of a folder's metadata."""
    consistency: bool = False
    """Instead of distances: draw from one noise with each number of steps, and say how alike the pictures are (the
    paper's Figure 5)."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type to run in. If not given float32, or with OpenVINO what suits the processor."""
    backend: Literal["eager", "compile", "openvino", "auto"] = "eager"
    """What runs the networks: see `ddim sample --help`."""
    device: str | None = None
    """For example cuda, cuda:1, mps or cpu. The best there is if not given."""
    out: str = "evaluation"
    """The folder for all that is written."""

    def __post_init__(self) -> None:
        for name in ("steps", "eta", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} must be one or more values, none of them twice, not {values}")
        for name, least in (("samples", 4), ("batch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if min(self.steps) < 1 or min(self.seeds) < 0:
            raise ConfigError("steps must be 1 or more, and seeds 0 or more")
