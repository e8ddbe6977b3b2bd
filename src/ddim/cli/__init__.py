"""The `ddim` command. What takes time to import is imported by the command that needs it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import tyro

from ddim._version import __version__
from ddim.errors import DDIMError
from ddim.settings import (
    Command,
    EditSettings,
    EvaluateSettings,
    InfoSettings,
    InterpolateSettings,
    InvertSettings,
    LoraSettings,
    OptimizeSettings,
    PixelSettings,
    PlotScheduleSettings,
    PlotTradeoffSettings,
    PlotTrajectorySettings,
    SampleSettings,
    TextToImageSettings,
    VAESettings,
)

# What runs a command's settings; what it returns, such as the file that it wrote, is printed.
COMMANDS = {
    SampleSettings: "ddim.cli.sample:run_sample",
    PixelSettings: "ddim.training:train",
    VAESettings: "ddim.training:train",
    TextToImageSettings: "ddim.training:train",
    LoraSettings: "ddim.training:train",
    InterpolateSettings: "ddim.cli.interpolate:run_interpolate",
    InvertSettings: "ddim.cli.invert:run_invert",
    EditSettings: "ddim.cli.edit:run_edit",
    EvaluateSettings: "ddim.cli.evaluate:run_evaluate",
    OptimizeSettings: "ddim.cli.optimize:run_optimize",
    InfoSettings: "ddim.cli.info:run_info",
    PlotScheduleSettings: "ddim.plots.schedule:plot_schedule",
    PlotTrajectorySettings: "ddim.cli.plot:run_trajectory",
    PlotTradeoffSettings: "ddim.cli.plot:run_tradeoff",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 for an error that is explained, 130 for an interruption."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"ddim {__version__}")
        return 0
    try:
        settings = tyro.cli(
            Command,
            prog="ddim",
            description="Denoising diffusion implicit models: sample, train, look inside.",
            args=arguments,
        )
        module, _, name = COMMANDS[type(settings)].partition(":")
        result = getattr(importlib.import_module(module), name)(settings)
        if result is not None:
            print(result)
    except KeyboardInterrupt:
        print("ddim: interrupted", file=sys.stderr)
        return 130
    except (DDIMError, ValueError, OSError) as error:
        print(f"ddim: {error}", file=sys.stderr)
        return 1
    return 0
