"""Figures of what `ddim evaluate` found: the trade-off of distance against steps and time, and consistency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim.errors import require
from ddim.plots import COLOURS, save_figure, tradeoff

TRADE_OFF = ("tradeoff.png", "tradeoff.svg")
CONSISTENCY = ("consistency.png", "consistency.svg")


def plot_tradeoff(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Distance against steps, and against seconds for the samples, one line for each eta: tradeoff.png and .svg.

    Args:
        results: what `report.write_results` returned, or results.json holds; see `plots.tradeoff`.
        folder: where the files go.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return [tradeoff.plot_tradeoff([results], str(folder / name)) for name in TRADE_OFF]


def plot_consistency(figures: Sequence[Mapping[str, float]], folder: Path) -> list[Path]:
    """How alike pictures of S steps are to those of the most steps, from one x_T and from another.

    Args:
        figures: of `evaluation.consistency.Consistency`.
        folder: where consistency.png and .svg go.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "plot").Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    most = max(int(row["steps"]) for row in figures)
    shown = [row for row in figures if row["steps"] < most]
    steps = [int(row["steps"]) for row in shown]
    for axes, name, title in (
        (left, "cosine", "cosine of features (about their mean)"),
        (right, "rms", "root mean square difference of pixels in [-1, 1]"),
    ):
        for key, label, colour, marker in (
            (name, "the same x_T", COLOURS[0], "o"),
            (f"other_{name}", "another x_T", COLOURS[1], "s"),
        ):
            axes.plot(steps, [row[key] for row in shown], color=colour, marker=marker, label=label, linewidth=1.8)
        axes.set(xscale="log", xlabel="sampling steps S", title=f"to the picture of S = {most}: {title}")
        axes.title.set_fontsize(10)
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    left.set_ylim(min(0.0, *left.get_ylim()), 1.03)
    right.set_ylim(bottom=0)
    return [save_figure(figure, str(folder / name)) for name in CONSISTENCY]
