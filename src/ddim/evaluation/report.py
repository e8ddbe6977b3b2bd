"""The figures of a run as files: results.json and results.csv."""

from __future__ import annotations

import csv
import datetime
import io
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddim._version import __version__
from ddim.checkpoint.files import write_json, write_text
from ddim.evaluation.grid import summarize


def versions() -> dict[str, str]:
    """The versions of what the figures were made with, and the machine."""
    return {
        "ddim": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def write_results(
    folder: Path, settings: Mapping[str, Any], features: str, ideal: float, figures: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write results.json (all there is to know) and results.csv (one row for each eta, steps and seed).

    Args:
        folder: the folder that both files go to.
        settings: the settings of the run.
        features: the name of the feature extractor.
        ideal: the distance that a perfect model would have; see `statistics.ideal_distance`.
        figures: what was measured of each cell.

    Returns:
        What is in results.json.
    """
    results = {
        "settings": dict(settings),
        "versions": versions(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "distance": "FID" if features == "inception" else f"Fréchet distance of {features} features",
        "ideal": ideal,
        "cells": list(figures),
        "summary": summarize([dict(each) for each in figures]),
    }
    write_json(folder / "results.json", results)
    if figures:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(figures[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(figures)
        write_text(folder / "results.csv", text.getvalue())
    return results


def as_text(results: Mapping[str, Any]) -> str:
    """The summary as a table for a terminal."""
    lines = [
        f"{results['distance']} (a perfect model's: {results['ideal']:.3g}); kernel distance; precision; recall; "
        "seconds",
        f"{'eta':>9} {'S':>5} {'Fréchet':>18} {'kernel':>20} {'prec.':>6} {'recall':>6} {'seconds':>8}",
    ]
    for row in results["summary"]:
        distance = f"{row['frechet']:.4g} ± {row['frechet_error']:.2g}"
        kernel = f"{row['kernel']:.4g} ± {row['kernel_error']:.2g}"
        lines.append(
            f"{row['eta']:>9} {row['steps']:>5} {distance:>18} {kernel:>20} {row['precision']:>6.3f} "
            f"{row['recall']:>6.3f} {row['seconds']:>8.1f}"
        )
    return "\n".join(lines)
