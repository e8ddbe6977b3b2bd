"""A command's options from what was typed; and, where that cannot be, a line that says why."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import tyro


def parse(command: str, kind: type, arguments: Sequence[str]) -> Any:
    """The settings that the arguments of a command say, before the dataclass has checked them.

    Args:
        command: its words, such as "train lora".
        kind: the dataclass of its settings.
        arguments: what was typed after it.

    Returns:
        An instance of a class made of `kind`, without its checks, so that their errors can be told as all others are.

    Raises:
        SystemExit: 2, after saying on stderr that an option is unknown or missing, or that a value is of another type.
    """
    unchecked: Any = type(kind.__name__, (kind,), {"__post_init__": lambda self: None, "__doc__": kind.__doc__})
    found, unknown = tyro.cli(unchecked, prog=f"ddim {command}", args=arguments, return_unknown_args=True)
    if unknown:
        print(f"ddim: {_unknown(command, kind, unknown)}", file=sys.stderr)
        raise SystemExit(2)
    return found


def _unknown(command: str, kind: type, words: Sequence[str]) -> str:
    """What to say of words that are no arguments of a command."""
    from ddim.cli.help import options

    every = options(command, kind)
    where = f"`ddim {command} --help` lists the options"
    flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
    if flag is not None:
        names = [name for option in every for name in option.names]
        near = difflib.get_close_matches(flag.replace("_", "-"), names, n=1)
        meant = f": did you mean {near[0]}?" if near else "."
        return f"`ddim {command}` has no option {flag}{meant} {where}"
    text = next((option.usage for option in every if option.usage == "PROMPT"), None)
    quoted = f': put a text of several words in quotes, as in `ddim {command} "a red heart"`' if text else ""
    return f"`ddim {command}` has no place for {shlex.join(words)}{quoted}. {where}"
