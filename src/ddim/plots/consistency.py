"""How alike pictures of one noise are, whatever the number of steps: the paper's Figure 5 in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim.errors import require
from ddim.plots.style import COLOURS, MARKERS, check_name, plain, save_figure


def plot_consistency(figures: Sequence[Mapping[str, float]], out: str) -> Path:
    """Plot how alike pictures of S steps are to those of the most steps, from the same x_T and from another.

    Args:
        figures: the `figures` of a `ddim.evaluation.consistency.Consistency`.
        out: the file to write, whose name ends in .png, .svg or .pdf.

    Raises:
        ConfigError: the name has another ending.
        MissingExtraError: matplotlib is not installed.
    """
    check_name(out)
    figure = require("matplotlib.figure", "plot").Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    most = max(int(row["steps"]) for row in figures)
    shown = [row for row in figures if row["steps"] < most]
    steps = [int(row["steps"]) for row in shown]
    for axes, name, what in (
        (left, "cosine", "cosine of features about their mean"),
        (right, "rms", "root mean square difference of pixels"),
    ):
        for number, (key, label) in enumerate({name: "the same x_T", f"other_{name}": "another x_T"}.items()):
            style: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "label": label}
            axes.plot(steps, [row[key] for row in shown], linewidth=1.8, **style)
        axes.set(xscale="log", xlabel="sampling steps S", ylabel=what, title=f"likeness to the pictures of S = {most}")
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.tick_params(axis="x", which="minor", bottom=False)
        plain(axes)
        axes.legend(frameon=False)
    left.set_ylim(min(-0.03, left.get_ylim()[0]), 1.03)
    right.set_ylim(bottom=0)
    return save_figure(figure, out)
