"""What all plots share. Colours are those of Okabe and Ito, which the colour-blind can tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddim.checkpoint.files import atomic_write
from ddim.errors import ConfigError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"  # they tell lines apart where colours do not, as in grey print
SUFFIXES = (".png", ".svg", ".pdf")


def check_name(out: str) -> Path:
    """The path of a plot.

    Raises:
        ConfigError: the name does not end in .png, .svg or .pdf.
    """
    path = Path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{out} must end in one of {', '.join(SUFFIXES)}")
    return path


def save_figure(figure: Any, out: str) -> Path:
    """Write a matplotlib figure atomically.

    Raises:
        ConfigError: the name does not end in .png, .svg or .pdf.
    """
    path = check_name(out)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return path


def plain(axes: Any) -> None:
    """Leave out the frame above and to the right, and draw a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
