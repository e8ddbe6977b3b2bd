"""The `ddim` command: one table of all commands, and what reads their options and runs them.

What takes time to import is imported by the command that needs it, and only the command that is asked for is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ddim._version import __version__
from ddim.cli.parsing import parse
from ddim.cli.typed import NOW, given, in_typed_words
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
    "generate": Command("ddim.cli.generate:GenerateSettings", "ddim.cli.generate:run_generate"),
    "train pixels": Command("ddim.training.settings:PixelSettings", "ddim.training:train"),
    "train vae": Command("ddim.training.settings:VAESettings", "ddim.training:train"),
    "train text-to-image": Command("ddim.training.settings:TextToImageSettings", "ddim.training:train"),
    "train lora": Command("ddim.training.settings:LoraSettings", "ddim.training:train"),
    "train textual-inversion": Command("ddim.training.settings:TextualInversionSettings", "ddim.training:train"),
    "train controlnet": Command("ddim.training.settings:ControlNetSettings", "ddim.training:train"),
    "distill": Command("ddim.training.settings:DistillSettings", "ddim.training:distill"),
    "interpolate": Command("ddim.cli.interpolate:InterpolateSettings", "ddim.cli.interpolate:run_interpolate"),
    "invert": Command("ddim.cli.invert:InvertSettings", "ddim.cli.invert:run_invert"),
    "edit": Command("ddim.cli.edit:EditSettings", "ddim.cli.edit:run_edit"),
    "evaluate": Command("ddim.cli.evaluate:EvaluateSettings", "ddim.cli.evaluate:run_evaluate"),
    "optimize": Command("ddim.cli.optimize:OptimizeSettings", "ddim.cli.optimize:run_optimize"),
    "serve": Command("ddim.cli.serve:ServeSettings", "ddim.cli.serve:run_serve"),
    "studio": Command("ddim.cli.studio:StudioSettings", "ddim.cli.studio:run_studio"),
    "info": Command("ddim.cli.info:InfoSettings", "ddim.cli.info:run_info"),
    "completion": Command("ddim.cli.completion:CompletionSettings", "ddim.cli.completion:run_completion"),
    "plot schedule": Command("ddim.cli.plot:PlotScheduleSettings", "ddim.cli.plot:run_schedule"),
    "plot trajectory": Command("ddim.cli.plot:PlotTrajectorySettings", "ddim.cli.plot:run_trajectory"),
    "plot tradeoff": Command("ddim.cli.plot:PlotTradeoffSettings", "ddim.cli.plot:run_tradeoff"),
}

# What the first words of two stand for.
GROUPS = {
    "train": "Train a model. `ddim train WHAT --help` lists each one's options.",
    "plot": "Draw what a sampler does. `ddim plot WHAT --help` lists each one's options.",
}

# How `ddim --help` arranges the commands.
_TITLES = {
    "Draw": ("sample", "generate", "interpolate", "invert", "edit"),
    "Serve": ("studio", "serve"),
    "Train": (
        "train pixels",
        "train vae",
        "train text-to-image",
        "train lora",
        "train textual-inversion",
        "train controlnet",
        "distill",
    ),
    "Look inside": ("info", "plot schedule", "plot trajectory", "plot tradeoff"),
    "Measure and improve": ("evaluate", "optimize"),
}
_EXAMPLES = (
    'ddim sample "a red heart on a black background" --out heart.png',
    "ddim sample --class-labels 7 --batch 16 --out sevens.png",
    "ddim info emoji",
)


# What PyTorch says where memory ran out, and the options by which less of it is needed.
_OUT_OF_MEMORY = re.compile("out of memory|allocate memory|not enough memory", re.IGNORECASE)
_SMALLER = ("batch", "batch-size", "train-batch-size", "height", "width", "dtype", "gradient-checkpointing")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 for an error that is explained, 130 for an interruption.

    Raises:
        SystemExit: 0 after --help, 2 where there is no such command or option.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"ddim {__version__}")
        return 0
    settings = None
    try:
        shown = _help(arguments)
        if shown is not None:
            print(shown)
            raise SystemExit(0)
        words, settings, typed = _parse(arguments)
        settings = _made(words, settings)
        NOW.set(typed)
        load("ddim.cli.checks:check")(words, settings, typed)
        with _warnings_told(settings):
            result = load(COMMANDS[words].run)(settings)
        if result is not None:
            print(result)
    except BrokenPipeError:  # whoever reads this, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stop:
        kept = f": {stop}" if str(stop) else ""
        if arguments[:1] in (["train"], ["distill"]):
            how = load("ddim.training.interruption:go_on_command")(arguments)
            print(f"ddim: interrupted{kept}\nddim: to go on: {how}", file=sys.stderr)
        else:
            kept += f"; to go on, run it again: {shlex.join(['ddim', *arguments])}" if kept else ""
            print(f"ddim: interrupted{kept}", file=sys.stderr)
        return 130
    except (DDIMError, ValueError, OSError) as error:
        print(f"ddim: {in_typed_words(str(error), settings)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        told = ", ".join(f"--{name}" for name in _SMALLER if hasattr(settings, name.replace("-", "_")))
        print(
            f"ddim: there is not enough memory: give less to do at a time by {told or 'other options'}", file=sys.stderr
        )
        return 1
    return 0


@contextlib.contextmanager
def _warnings_told(settings: Any) -> Iterator[None]:
    """Show warnings as a sentence, as errors are shown, and not with the line of code that they come from."""

    def show(message: Warning | str, *_: Any) -> None:
        print(f"ddim: {in_typed_words(str(message), settings)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def load(where: str) -> Any:
    """What is at "module:name"."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def _help(arguments: list[str]) -> str | None:
    """The help that is asked for, by --help or by a command that is left out; None if a command is to run."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    asked = [word for word in arguments if word in ("-h", "--help")]
    words = _words(arguments)
    if words in COMMANDS and not asked:
        return None
    from ddim.cli import help as pages

    if words in COMMANDS:
        return pages.command_help(words, load(COMMANDS[words].settings))
    first = arguments[0] if arguments else ""
    if first in GROUPS and arguments[1:] == asked:
        kinds = {
            each.partition(" ")[2]: load(to.settings) for each, to in COMMANDS.items() if each.startswith(f"{first} ")
        }
        return pages.group_help(first, GROUPS[first], kinds)
    if not arguments or first in asked:
        return pages.overview({each: load(to.settings) for each, to in COMMANDS.items()}, _TITLES, _EXAMPLES)
    return None


def _words(arguments: list[str]) -> str:
    """The words of the command that is called, such as "train lora"; "" if there is no such command."""
    return next((words for words in (" ".join(arguments[:2]), *arguments[:1]) if words in COMMANDS), "")


def _parse(arguments: list[str]) -> tuple[str, Any, frozenset[str]]:
    """The command that is asked for, by its words; its settings, unchecked; and the fields that were typed.

    Exits with what is wrong. What the settings themselves refuse is no matter of the parser, and told as other errors.
    """
    words = _words(arguments)
    if not words:
        print(f"ddim: {_unknown(arguments)}", file=sys.stderr)
        raise SystemExit(2)
    kind, typed = load(COMMANDS[words].settings), arguments[len(words.split()) :]
    if words.startswith("train "):
        typed = load("ddim.training.pasted:translate")(kind, typed)
    return words, parse(words, kind, typed), given(kind, typed)


def _made(words: str, parsed: Any) -> Any:
    """The settings of a command, which may refuse what was typed."""
    kind = load(COMMANDS[words].settings)
    settings = kind(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(kind) if field.init})
    return load("ddim.cli.adapters:joined")(settings)


def _unknown(arguments: list[str]) -> str:
    """What to say of arguments that begin with no command.

    >>> _unknown(["smaple", "a cat"])
    'there is no command smaple: did you mean `ddim sample`? `ddim --help` lists all'
    >>> _unknown(["a cat"])
    'there is no command "a cat": did you mean `ddim sample "a cat"`? `ddim --help` lists all'
    """
    first = arguments[0]
    if " " in first:
        return f'there is no command "{first}": did you mean `ddim sample "{first}"`? `ddim --help` lists all'
    given = " ".join(arguments[: 1 + (first in GROUPS)])
    known = {words: words for words in (*COMMANDS, *GROUPS)} | {words.split()[-1]: words for words in COMMANDS}
    near = difflib.get_close_matches(given.replace("_", "-"), known, n=1)
    meant = f": did you mean `ddim {known[near[0]]}`?" if near else "."
    return f"there is no command {given}{meant} `ddim --help` lists all"
