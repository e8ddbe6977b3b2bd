"""What `--help` prints: a command's options under headings, and examples.

All of it is read from the command's dataclass: its docstring, in which the lines that begin with "ddim" are examples;
the types of its fields; and the text below each field or in its `tyro.conf.arg`. tyro, which parses the options, would
show them in one list, with None as the default of all that may be left out.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

from ddim.cli.groups import OTHER, heading, headings, text_for

_POSITIONAL = get_args(tyro.conf.Positional[int])[1]
_LONG = 24  # columns: a longer name has its text below it
_WIDEST = 100  # columns: longer lines are hard to read, however wide the terminal is


class Option(NamedTuple):
    """One option of a command, as its help shows it.

    Attributes:
        heading: what it stands under.
        names: as they are typed, such as ("--steps",); none where it goes by its place.
        takes: what follows a name, such as "INT" or "{1,2}"; "" for what is only switched on or off.
        usage: its names and what follows them, such as "--steps INT".
        text: what it does.
        default: what is taken where it is not given, in words; None where the text says so, or where it is required.
        is_required: whether it must be given.
        is_positional: whether it has no name, and stands before the others.
    """

    heading: str
    names: tuple[str, ...]
    takes: str
    usage: str
    text: str
    default: str | None
    is_required: bool
    is_positional: bool


def options(command: str, settings: type) -> list[Option]:
    """The options of a command, from the words it is called by and its dataclass."""
    types = get_type_hints(settings, include_extras=True)
    texts = _texts(settings)
    fields = [field for field in dataclasses.fields(settings) if field.init]
    return [_option(command, field, types[field.name], texts.get(field.name)) for field in fields]


def command_help(command: str, settings: type) -> str:
    """What `ddim COMMAND --help` prints."""
    shown = options(command, settings)
    words = [each.usage if each.is_required else f"[{each.usage}]" for each in shown if each.is_positional]
    words += [each.usage for each in shown if each.is_required and not each.is_positional]
    tables = {
        title: [(each.usage, _with_default(each)) for each in shown if each.heading == title]
        for title in (*headings(command), OTHER)
    }
    return _page([_usage(command, [*words, "[options]"]), *_paragraphs(settings)], tables, examples(settings))


def overview(commands: Mapping[str, type], titles: Mapping[str, Sequence[str]], shown: Sequence[str]) -> str:
    """What `ddim --help` prints.

    Args:
        commands: all of them, by their words, with their dataclasses.
        titles: headings, each with the words of the commands under it.
        shown: examples.
    """
    about = "Denoising diffusion implicit models: draw with them, train them, look inside."
    tables = {title: [(name, summary(commands[name])) for name in names] for title, names in titles.items()}
    tables["And for all"] = [
        ("COMMAND --help", "What a command does, its options, and examples."),
        ("--version", "Print the version."),
        ("completion bash", "Print what completes commands and options by the Tab key; also for zsh and fish."),
    ]
    return _page([_usage("", ["COMMAND", "[options]"]), about], tables, shown)


def group_help(group: str, about: str, commands: Mapping[str, type]) -> str:
    """What `ddim GROUP --help` prints: the commands that begin with this word."""
    rows = [(f"{group} {name}", summary(settings)) for name, settings in commands.items()]
    return _page([_usage(group, ["{" + ",".join(commands) + "}", "[options]"]), _wrapped(about)], {"Commands": rows})


def summary(settings: type) -> str:
    """The first paragraph of a dataclass's docstring, as one line."""
    return " ".join(inspect.cleandoc(settings.__doc__ or "").split("\n\n")[0].split())


def examples(settings: type) -> list[str]:
    """The commands in a dataclass's docstring. One may be continued behind a backslash at the end of its line."""
    lines = [" ".join(line.split()) for line in (settings.__doc__ or "").replace("\\\n", "").splitlines()]
    return [line for line in lines if line.startswith("ddim ")]


# --- reading ----------------------------------------------------------------------------------------------------------


def _option(command: str, field: dataclasses.Field[Any], kind: Any, text: str | None) -> Option:
    notes = getattr(kind, "__metadata__", ())

    def noted(name: str) -> Any:
        """What the field's `tyro.conf.arg`s say of this; where several do, the last."""
        found = [getattr(note, name) for note in notes if getattr(note, name, None) is not None]
        return found[-1] if found else None

    bare = kind.__origin__ if get_origin(kind) is Annotated else kind
    is_positional = _POSITIONAL in notes
    is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    flag = "--" + (noted("name") or field.name).replace("_", "-")
    takes = noted("metavar") or _takes(bare, text_for(field.name))
    names = (flag, *(noted("aliases") or ()))
    usage = f"{', '.join(names)} {takes}"
    if is_positional:
        several = " ..." if get_origin(bare) is tuple else ""
        names, usage = (), noted("metavar") or field.name.removesuffix("s" if several else "").upper() + several
    elif bare is bool and not is_required:
        names, takes = (flag, f"--no-{flag[2:]}"), ""
        usage = ", ".join(names) if field.default else flag
    default = None if is_required or field.default in (None, (), "") else _shown(field.default)
    if bare is bool and not is_required:
        default = f"--{flag[2:]}" if field.default else None
    return Option(
        heading=heading(command, field.name),
        names=names,
        takes=takes,
        usage=usage,
        text=" ".join((noted("help") or text or "").split()),
        default=default,
        is_required=is_required,
        is_positional=is_positional,
    )


def _takes(kind: Any, text: str) -> str:
    """What is to be typed for a value of a type: {a,b} for choices, INT or FLOAT for numbers, or `text` for a text."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _takes(inner[0], text)
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin in (Union, UnionType):
        return "|".join(_takes(each, text) for each in inner if each is not NoneType)
    if origin is tuple:
        several = inner[-1] is Ellipsis
        return f"{_takes(inner[0], text)} ..." if several else " ".join(_takes(each, text) for each in inner)
    return {bool: "{True,False}", int: "INT", float: "FLOAT"}.get(kind, text)


def _shown(value: Any) -> str:
    return " ".join(map(_shown, value)) if isinstance(value, tuple) else str(value)


def _texts(settings: type) -> dict[str, str]:
    """The texts below the fields of a dataclass and of those that it is made from, by the fields' names."""
    texts: dict[str, str] = {}
    for kind in reversed(settings.__mro__[:-1]):
        body = _classes(kind.__module__)[kind.__name__].body
        for node, after in pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                texts.pop(node.target.id, None)
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    texts[node.target.id] = str(after.value.value)
    return texts


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


# --- printing ---------------------------------------------------------------------------------------------------------


def _width() -> int:
    return max(40, min(shutil.get_terminal_size().columns, _WIDEST))


def _bold(text: str) -> str:
    """A heading, bold where somebody looks at it in a terminal."""
    wanted = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return f"\x1b[1m{text}\x1b[0m" if wanted else text


def _wrapped(text: str, indent: int = 0) -> str:
    """Lines of a text that fit the terminal. Neither words nor the names of options are broken at their hyphens."""
    space = " " * indent
    return textwrap.fill(
        text,
        _width(),
        initial_indent=space,
        subsequent_indent=space,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _usage(command: str, words: Iterable[str]) -> str:
    name = f"ddim {command}".strip()
    return _wrapped(f"usage: {name} {' '.join(words)}")


def _paragraphs(settings: type) -> Iterator[str]:
    for paragraph in inspect.cleandoc(settings.__doc__ or "").split("\n\n"):
        if not paragraph.lstrip().startswith("ddim "):
            yield _wrapped(" ".join(paragraph.split()))


def _with_default(option: Option) -> str:
    if option.is_required:
        return f"{option.text} (required)"
    return option.text if option.default is None else f"{option.text} (default: {option.default})"


def _page(begin: Sequence[str], tables: Mapping[str, Sequence[tuple[str, str]]], shown: Sequence[str] = ()) -> str:
    """A help: paragraphs, tables under their headings, and examples.

    In a table, names are on the left and texts on the right; or below the names, if most names are too long for that.
    """
    lengths = sorted(len(name) for rows in tables.values() for name, _ in rows)
    column = 8 if lengths[len(lengths) * 2 // 3] > _LONG else max(each for each in lengths if each <= _LONG) + 4
    blocks = [*begin]
    for title, rows in tables.items():
        if rows:
            blocks.append("\n".join([_bold(title), *(_row(name, text, column) for name, text in rows)]))
    if shown:
        blocks.append("\n".join([_bold("Examples" if len(shown) > 1 else "Example"), *map(_example, shown)]))
    return "\n\n".join(blocks)


def _example(command: str) -> str:
    """A command on lines that fit the terminal, each but the last with the shell's sign that it goes on."""
    lines = ["  "]
    for part in re.split(r" (?=--)", command):
        if len(lines[-1]) + len(part) + 2 > _width() and lines[-1].strip():
            lines[-1] += "\\"
            lines.append("      ")
        lines[-1] += f"{part} "
    return "\n".join(line.rstrip() for line in lines)


def _row(name: str, text: str, column: int) -> str:
    told = _wrapped(text, column)
    return f"  {name}".ljust(column) + told[column:] if len(name) + 4 <= column else f"  {name}\n{told}"
