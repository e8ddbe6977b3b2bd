"""Figures of what `ddim evaluate` found: the trade-off of distance against steps and time, and consistency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim.errors import require
from ddim.plots import COLOURS, save_figure

MARKERS = "osD^vP"
TRADE_OFF = ("tradeoff.png", "tradeoff.svg")
CONSISTENCY = ("consistency.png", "consistency.svg")


def plot_tradeoff(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Distance against steps, and against seconds for the samples, one line for each eta: tradeoff.png and .svg.

    Args:
        results: what `report.write_results` returned, or results.json holds.
        folder: where the files go.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "plot").Figure(figsize=(11, 4.8), layout="constrained")
    ticker = require("matplotlib.ticker", "plot")
    left, right = figure.subplots(1, 2, sharey=True)
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in results["summary"]:
        groups.setdefault(row["eta"], []).append(row)
    for number, (eta, rows) in enumerate(groups.items()):
        ordered = sorted(rows, key=lambda row: int(row["timesteps"]))
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "label": _eta_label(eta),
            "linewidth": 1.8,
            "markersize": 6,
            "capsize": 3,
            "linestyle": "-" if number < len(COLOURS) else "--",
        }
        values = [row["frechet"] for row in ordered]
        errors = [row["frechet_error"] for row in ordered]
        left.errorbar([row["timesteps"] for row in ordered], values, yerr=errors, **style)
        right.errorbar([row["seconds"] for row in ordered], values, yerr=errors, **style)
    steps = sorted({int(row["timesteps"]) for row in results["summary"]})
    samples = results["settings"]["samples"]
    left.set(xlabel="sampling steps S", ylabel=results["distance"], title="distance to the data against steps")
    right.set(xlabel=f"seconds for {samples:,} samples", title="and against time")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.axhline(results["ideal"], color="0.5", linewidth=1, linestyle=":", zorder=0)
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(1, 0.5)))
    left.set_xticks(steps, [str(step) for step in steps])
    left.xaxis.minorticks_off()
    left.annotate(
        "a perfect model's", (0.01, results["ideal"]), (0, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", color="0.4", fontsize=8,
    )  # fmt: skip
    left.legend(frameon=False)
    figure.supxlabel(
        f"bars: {results['summary'][0]['error_is']}" if results["summary"] else "",
        fontsize=8,
        color="0.4",
        x=0.99,
        ha="right",
    )
    return [save_figure(figure, str(folder / name)) for name in TRADE_OFF]


def _eta_label(eta: float | str) -> str:
    names = {0.0: "η = 0 (DDIM)", 1.0: "η = 1 (DDPM)", "sigma_hat": "σ̂ (DDPM, larger variance)"}
    return names.get(eta, f"η = {eta}")


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
