"""The `ddim` command: one table of all commands, and what reads their options and runs them.

What takes time to import is imported by the command that needs it, and only the command that is asked for is imported.
"""

from __future__ import annotations

import functools
import importlib
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import tyro

from ddim._version import __version__
from ddim.errors import DDIMError


class Command(NamedTuple):
    """Where a command is: "module:name" each.

    Attributes:
        settings: a dataclass: the options.
        run: a function of them; what it returns, such as the file that it wrote, is printed.
    """

    settings: str
    run: str


COMMANDS: dict[str, Command] = {
    "sample": Command("ddim.cli.sample:SampleSettings", "ddim.cli.sample:run_sample"),
    "train pixels": Command("ddim.training.settings:PixelSettings", "ddim.training:train"),
    "train vae": Command("ddim.training.settings:VAESettings", "ddim.training:train"),
    "train text-to-image": Command("ddim.training.settings:TextToImageSettings", "ddim.training:train"),
    "train lora": Command("ddim.training.settings:LoraSettings", "ddim.training:train"),
    "interpolate": Command("ddim.cli.interpolate:InterpolateSettings", "ddim.cli.interpolate:run_interpolate"),
    "invert": Command("ddim.cli.invert:InvertSettings", "ddim.cli.invert:run_invert"),
    "edit": Command("ddim.cli.edit:EditSettings", "ddim.cli.edit:run_edit"),
    "evaluate": Command("ddim.cli.evaluate:EvaluateSettings", "ddim.cli.evaluate:run_evaluate"),
    "optimize": Command("ddim.cli.optimize:OptimizeSettings", "ddim.cli.optimize:run_optimize"),
    "info": Command("ddim.cli.info:InfoSettings", "ddim.cli.info:run_info"),
    "plot schedule": Command("ddim.cli.plot:PlotScheduleSettings", "ddim.cli.plot:run_schedule"),
    "plot trajectory": Command("ddim.cli.plot:PlotTrajectorySettings", "ddim.cli.plot:run_trajectory"),
    "plot tradeoff": Command("ddim.cli.plot:PlotTradeoffSettings", "ddim.cli.plot:run_tradeoff"),
}

# What the first words of two stand for.
GROUPS = {
    "train": "Train a model: `ddim train WHAT --help` lists each one's options.",
    "plot": "Draw what a sampler does: `ddim plot WHAT --help` lists the options.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 for an error that is explained, 130 for an interruption."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"ddim {__version__}")
        return 0
    try:
        command, settings = _parse(arguments)
        result = load(command.run)(settings)
        if result is not None:
            print(result)
    except KeyboardInterrupt:
        print("ddim: interrupted", file=sys.stderr)
        return 130
    except (DDIMError, ValueError, OSError) as error:
        print(f"ddim: {error}", file=sys.stderr)
        return 1
    return 0


def load(where: str) -> Any:
    """What is at "module:name"."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def _parse(arguments: list[str]) -> tuple[Command, Any]:
    """The command that is asked for and its settings; exits after --help, and with what is wrong."""
    for words, command in COMMANDS.items():
        first = words.split()
        if arguments[: len(first)] == first:  # one command's parser is made in a tenth of the time of all
            return command, tyro.cli(load(command.settings), prog=f"ddim {words}", args=arguments[len(first) :])
    settings = tyro.cli(
        every_command(),
        prog="ddim",
        description="Denoising diffusion implicit models: sample, train, look inside.",
        args=arguments,
    )
    return next(command for command in COMMANDS.values() if load(command.settings) is type(settings)), settings


def every_command() -> Any:
    """The settings of all commands as tyro takes them: a union, in which each group is one more."""
    groups: dict[str, list[Any]] = {}
    for words, command in COMMANDS.items():
        first, _, second = words.partition(" ")
        groups.setdefault(first, []).append(Annotated[load(command.settings), tyro.conf.subcommand(second or first)])
    return _any_of(
        Annotated[_any_of(kinds), tyro.conf.subcommand(first, description=GROUPS[first])]
        if first in GROUPS
        else kinds[0]
        for first, kinds in groups.items()
    )


def _any_of(kinds: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, kinds)
