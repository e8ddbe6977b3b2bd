"""One run, step by step: the sample as it loses its noise, and the image that the network sees in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim.errors import ConfigError, require
from ddim.noise import Generators
from ddim.plan import SamplingPlan
from ddim.plots.style import save_figure
from ddim.sampling import Denoiser, sample


@dataclass(frozen=True)
class Trajectory:
    """Some moments of a run, evenly apart, from the first step to the last.

    Attributes:
        timesteps: t of each, (k,).
        alpha_bars: ᾱ of each, (k,).
        x_t: the sample before the step, (k c h w).
        x0: what the step took for the image, (k c h w), clipped where the plan says so.
        image: the sample after the last step, (1 c h w).
    """

    timesteps: tuple[int, ...]
    alpha_bars: tuple[float, ...]
    x_t: Tensor
    x0: Tensor
    image: Tensor


def evenly(steps: int, most: int) -> frozenset[int]:
    """Which of so many steps, counted from 0, to keep of a run: as many as may be, evenly apart, the first and the last
    among them.

    >>> sorted(evenly(9, 5)), sorted(evenly(2, 5))
    ([0, 2, 4, 6, 8], [0, 1])
    """
    return frozenset(np.linspace(0, steps - 1, min(most, steps)).round().astype(int).tolist())


def record(
    denoiser: Denoiser,
    x: Tensor,
    plan: SamplingPlan,
    moments: int,
    *,
    generator: Generators = None,
    progress: Callable[[], object] = lambda: None,
) -> Trajectory:
    """Run a plan and keep some of its moments.

    Args:
        denoiser, plan, generator: as for `sample`.
        x: one sample, (1 c h w).
        moments: how many of the steps to keep; all of them, if there are fewer.
        progress: called after each step.

    Raises:
        ConfigError: fewer than one moment.
    """
    if moments < 1:
        raise ConfigError(f"needed is one moment or more, not {moments}")
    kept = evenly(len(plan), moments)
    before, original = [], []
    with torch.no_grad():
        for step in sample(denoiser, x, plan, generator=generator):
            if step.index in kept:
                assert step.pred_original_sample is not None
                before.append(x)
                original.append(step.pred_original_sample)
            x = step.sample
            progress()
    rows = [row for index, row in enumerate(plan) if index in kept]
    return Trajectory(
        timesteps=tuple(row.timestep for row in rows),
        alpha_bars=tuple(row.alpha_bar for row in rows),
        x_t=torch.cat(before),
        x0=torch.cat(original),
        image=x,
    )


def plot_trajectory(trajectory: Trajectory, decode: Callable[[Tensor], list[Any]], title: str, out: str) -> Path:
    """Plot two rows of pictures, x_t above and the predicted x0 below, a column for each moment, the image at the end.

    Args:
        decode: samples (b c h w) to PIL images: `pipe.decode`.
        title: what stands above it all.
        out: the file to write, whose name ends in .png, .svg or .pdf.

    Raises:
        ConfigError: the name has another ending.
        MissingExtraError: matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "plot")
    rows = [decode(torch.cat([part, trajectory.image])) for part in (trajectory.x_t, trajectory.x0)]
    columns = len(rows[0])
    figure = figures.Figure(figsize=(1.05 * columns + 0.7, 2.9), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    axes = figure.subplots(2, columns, squeeze=False)
    for pictures, places, label in zip(rows, axes, ("sample\n$x_t$", "predicted\n$x_0$"), strict=True):
        for picture, place in zip(pictures, places, strict=True):
            place.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_color("0.8")
        places[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    for place, t, level in zip(axes[0], trajectory.timesteps, trajectory.alpha_bars, strict=False):
        place.set_title(f"t = {t}\nᾱ = {level:.3f}", fontsize=9)
    axes[0][-1].set_title("image\n", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return save_figure(figure, out)
