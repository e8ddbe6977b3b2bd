"""Quality against cost: what `ddim evaluate` found, as the paper's table 1 would look if it were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim.errors import ConfigError, require
from ddim.plots.style import COLOURS, MARKERS, check_name, plain, save_figure

# The name of a row's time, and what it is in words.
CLOCKS = {"seconds": "seconds", "cpu_seconds": "processor seconds"}


def plot_tradeoff(runs: Sequence[Mapping[str, Any]], out: str, *, clock: str = "seconds") -> Path:
    """Plot distance against steps, and against the seconds for all samples; a line for each eta, a row for each run.

    Args:
        runs: what the results.json of each holds: "summary", a list of rows with eta, steps, frechet, frechet_error
            and seconds (and timesteps, where they are fewer than the steps asked for); "distance", what is measured;
            and, where known, "ideal", what a perfect model would have, and "settings" with the model and the samples.
        out: the file to write, whose name ends in .png, .svg or .pdf.
        clock: a key of CLOCKS: the time that passed, or the processors', which other work hardly changes.

    Raises:
        ConfigError: the name has another ending, another clock, no runs, or one without these rows.
        MissingExtraError: matplotlib is not installed.
    """
    check_name(out)
    if clock not in CLOCKS:
        raise ConfigError(f"clock={clock!r} is none of {', '.join(CLOCKS)}")
    if not runs:
        raise ConfigError("give the folder of one run of `ddim evaluate`, or of several")
    figure = require("matplotlib.figure", "plot").Figure(figsize=(11, 0.6 + 4.2 * len(runs)), layout="constrained")
    for pair, run in zip(figure.subplots(len(runs), 2, sharey="row", squeeze=False), runs, strict=True):
        _draw(pair, run, clock)
    return save_figure(figure, out)


def _draw(pair: Sequence[Any], run: Mapping[str, Any], clock: str) -> None:
    left, right = pair
    lines: dict[Any, list[Mapping[str, Any]]] = {}
    for row in check_results(run, clock):
        lines.setdefault(row["eta"], []).append(row)
    for number, eta in enumerate(sorted(lines, key=_order)):
        rows = sorted(lines[eta], key=_steps)
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": "-" if number < len(COLOURS) else "--",
            "label": _label(eta),
            "linewidth": 1.8,
            "markersize": 6,
            "capsize": 3,
        }
        distances, errors = ([float(row[name]) for row in rows] for name in ("frechet", "frechet_error"))
        left.errorbar([_steps(row) for row in rows], distances, yerr=errors, **style)
        right.errorbar([float(row[clock]) for row in rows], distances, yerr=errors, **style)
    settings = run.get("settings", {})
    model, samples = settings.get("model", ""), settings.get("samples")
    left.set(xlabel="sampling steps S", ylabel=str(run["distance"]), title=f"{model}: distance to the data, by steps")
    right.set(xlabel=CLOCKS[clock] + (f" for {samples:,} samples" if samples else ""), title="and by time")
    steps = sorted({_steps(row) for row in check_results(run, clock)})
    for axes in pair:
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(_minor)
        plain(axes)
        axes.grid(alpha=0.12, which="minor", axis="y")
    if "ideal" in run:
        for axes in pair:
            axes.axhline(run["ideal"], color="0.45", linewidth=1, linestyle=":", zorder=0)
        left.annotate(
            "a perfect model",
            xy=(0.01, run["ideal"]),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color="0.4",
            fontsize=8,
        )
    left.set_xticks(steps, [str(step) for step in steps])
    left.xaxis.minorticks_off()
    left.legend(frameon=False)
    errors_are = {row["error_is"] for row in check_results(run, clock) if "error_is" in row}
    if errors_are:
        right.annotate(
            f"bars: {', '.join(sorted(errors_are))}",
            xy=(1, 1),
            xycoords="axes fraction",
            ha="right",
            va="top",
            color="0.4",
            fontsize=8,
        )


def _minor(value: float, _: int) -> str:
    """A plain number at 2, 3, 4 and 6 between powers of ten; at the others there is no room."""
    return f"{value:g}" if f"{value:.0e}"[0] in "2346" else ""


def check_results(run: Mapping[str, Any], clock: str = "seconds") -> list[Mapping[str, Any]]:
    """The rows of a run's summary.

    Raises:
        ConfigError: there are none, or one lacks what is plotted.
    """
    rows = run.get("summary")
    needed = {"eta", "steps", "frechet", "frechet_error", clock}
    if "distance" not in run or not isinstance(rows, list) or not rows:
        raise ConfigError("no results of `ddim evaluate`: needed are its distance and its summary")
    if not all(isinstance(row, Mapping) and needed <= set(row) for row in rows):
        raise ConfigError(f"each row of results must have {', '.join(sorted(needed))}")
    return rows


def _steps(row: Mapping[str, Any]) -> int:
    """How many were made: fewer than asked for, where a spacing drops repeats."""
    return int(row.get("timesteps", row["steps"]))


def _order(eta: float | str) -> tuple[bool, float]:
    return (True, 0.0) if isinstance(eta, str) else (False, float(eta))


def _label(eta: float | str) -> str:
    if isinstance(eta, str):
        return "σ̂: DDPM, larger variance"
    return f"η = {eta:g}" + {0.0: ": DDIM", 1.0: ": DDPM"}.get(float(eta), "")
