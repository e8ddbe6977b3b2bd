"""Pictures of what a sampler does, by matplotlib."""

from ddim.plots.style import COLOURS, MARKERS, save_figure

__all__ = ["COLOURS", "MARKERS", "save_figure"]
