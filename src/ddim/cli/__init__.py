"""The `ddim` command. What takes time to import is imported by the command that needs it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from ddim._version import __version__
from ddim.errors import DDIMError
from ddim.settings import COMMANDS, Command

# What runs each command's settings; what it returns, such as the file that it wrote, is printed.
RUNNERS = {
    "sample": "ddim.cli.sample:run_sample",
    "train pixels": "ddim.training:train",
    "train vae": "ddim.training:train",
    "train text-to-image": "ddim.training:train",
    "train lora": "ddim.training:train",
    "interpolate": "ddim.cli.interpolate:run_interpolate",
    "invert": "ddim.cli.invert:run_invert",
    "edit": "ddim.cli.edit:run_edit",
    "evaluate": "ddim.cli.evaluate:run_evaluate",
    "optimize": "ddim.cli.optimize:run_optimize",
    "info": "ddim.cli.info:run_info",
    "plot schedule": "ddim.plots.schedule:plot_schedule",
    "plot trajectory": "ddim.cli.plot:run_trajectory",
    "plot tradeoff": "ddim.cli.plot:run_tradeoff",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 for an error that is explained, 130 for an interruption."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"ddim {__version__}")
        return 0
    try:
        settings = _parse(arguments)
        words = next(words for words, kind in COMMANDS.items() if kind is type(settings))
        module, _, name = RUNNERS[words].partition(":")
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


def _parse(arguments: list[str]) -> Any:
    """A command's settings; exits after --help, and with what is wrong."""
    for words, kind in COMMANDS.items():
        command = words.split()
        if arguments[: len(command)] == command:  # one command's parser is made in a tenth of the time of all
            return tyro.cli(kind, prog=f"ddim {words}", args=arguments[len(command) :])
    return tyro.cli(
        Command,
        prog="ddim",
        description="Denoising diffusion implicit models: sample, train, look inside.",
        args=arguments,
    )
