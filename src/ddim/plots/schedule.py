"""What a schedule is: noise levels, signal-to-noise ratios, and the timesteps that a sampler picks."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from ddim.errors import require
from ddim.plots.style import COLOURS, plain, save_figure
from ddim.schedule import BETA_SCHEDULES, SPACINGS, snr, space_timesteps
from ddim.scheduler import DDIMScheduler


def plot_schedule(out: str, model: str | None = None, steps: int = 10, zero_snr: bool = False) -> Path:
    """Plot ᾱ and the log SNR over the timesteps, and which timesteps each spacing picks.

    Args:
        out: the file to write, whose name ends in .png, .svg or .pdf.
        model: whose schedule to draw, a folder, a bundled model or a hub id; the three usual ones unless told.
        steps: how many timesteps each spacing picks.
        zero_snr: whether to rescale the schedules to zero terminal SNR.

    Raises:
        ConfigError: the name has another ending, or timesteps that cannot be picked.
        CheckpointError: no such model.
        MissingExtraError: matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "plot")
    if model is None:
        schedulers: dict[str, DDIMScheduler] = {
            kind: DDIMScheduler(beta_schedule=kind, rescale_betas_zero_snr=zero_snr) for kind in BETA_SCHEDULES
        }
    else:
        scheduler = DDIMScheduler.from_pretrained(model, subfolder="scheduler")
        if zero_snr:
            scheduler = DDIMScheduler.from_config(scheduler.config, rescale_betas_zero_snr=True)
        schedulers = {model: scheduler}
    figure = figures.Figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 2))
    level, ratio, spacing = (figure.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :]))
    for (name, scheduler), colour in zip(schedulers.items(), COLOURS, strict=False):
        levels = scheduler.alphas_cumprod.double().numpy()
        level.plot(levels, color=colour, label=name, linewidth=2)
        with np.errstate(divide="ignore"):
            decibels = 10 * np.log10(snr(levels))
        ratio.plot(decibels, color=colour, label=name, linewidth=2)
        if levels[-1] == 0:  # the line ends where the SNR does
            ratio.plot(len(levels) - 1, decibels[-2], marker="v", color=colour)
    level.set(title="signal left: ᾱ", xlabel="timestep", ylabel="ᾱ (alphas_cumprod)", ylim=(-0.02, 1.02))
    ratio.set(title="signal-to-noise ratio", xlabel="timestep", ylabel="SNR (dB)")
    level.legend(frameon=False)

    timesteps = next(iter(schedulers.values())).config.num_train_timesteps
    for row, way in enumerate(SPACINGS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # quadratic: repeats dropped, as the picture shows
            chosen = space_timesteps(steps, timesteps, way)
        colour = COLOURS[row]
        spacing.scatter(chosen, [row] * len(chosen), color=colour, s=36)
        spacing.annotate(f"{chosen[0]}", (chosen[0], row), (6, 6), textcoords="offset points", color=colour)
    spacing.axvline(timesteps - 1, color="0.7", linewidth=1, zorder=0)
    spacing.set(
        title=f"which {steps} of {timesteps} timesteps each spacing picks (the line is the noisiest)",
        xlabel="timestep",
        yticks=range(len(SPACINGS)),
        yticklabels=list(SPACINGS),
        ylim=(len(SPACINGS) - 0.5, -0.7),
    )
    for axes in (level, ratio, spacing):
        plain(axes)
    return save_figure(figure, out)
