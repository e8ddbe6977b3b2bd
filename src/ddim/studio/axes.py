"""What the Compare tab varies: the axes of its table, and the values that a visitor types for each."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ddim.errors import ConfigError
from ddim.serving.parameters import SEEDS, STEPS

__all__ = ["AXES", "MOST", "NOTHING", "Axis", "Cell", "cells", "values_of"]

MOST = 100  # pictures of a table
NOTHING = "nothing"

_SPACINGS = ("leading", "trailing", "linspace", "quadratic", "optimized")
_SIGMA_HAT = ("sigma_hat", "sigma-hat", "σ̂")


@dataclass(frozen=True)
class Axis:
    """A setting that may differ from cell to cell.

    Attributes:
        field: its name among the settings of the page.
        label: what a visitor calls it.
        usual: values that suit most models, as they are typed.
        takes: what is typed, in words.
        read: from a word to a value; a ValueError is any other word. None is for models, whose names are the studio's.
        spans: whether "1-4" stands for several whole numbers.
    """

    field: str
    label: str
    usual: str
    takes: str
    read: Callable[[str], Any] | None = None
    spans: bool = False

    def said(self, value: Any) -> str:
        """A value as a label, in letters that every font has.

        >>> AXES["eta"].said(0.5), AXES["steps"].said(1), AXES["model"].said("emoji")
        ('eta 0.5', '1 step', 'emoji')
        """
        if self.field in ("spacing", "model"):
            return str(value)
        if self.field == "steps":
            return f"{value} step{'s' * (value != 1)}"
        name = "eta" if self.field == "eta" else self.label.lower()
        return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(word: str) -> int:
        if not re.fullmatch(r"\d{1,19}", word) or not least <= int(word) <= most:
            raise ValueError
        return int(word)

    return read


def _number(least: float, most: float) -> Callable[[str], float]:
    def read(word: str) -> float:
        value = float(word)
        if "_" in word or not (math.isfinite(value) and least <= value <= most):
            raise ValueError
        return value

    return read


def _eta(word: str) -> float | str:
    return "sigma_hat" if word.lower() in _SIGMA_HAT else _number(0, 100)(word)


def _spacing(word: str) -> str:
    if word.lower() not in _SPACINGS:
        raise ValueError
    return word.lower()


AXES: dict[str, Axis] = {
    axis.field: axis
    for axis in (
        Axis("steps", "Steps", "1, 2, 4, 8", f"whole numbers from 1 to {STEPS}", _whole(1, STEPS), spans=True),
        Axis("eta", "η", "0, 0.5, 1", "numbers from 0 on, or sigma_hat", _eta),
        Axis("guidance_scale", "Guidance", "1, 2, 4", "numbers from -1000 to 1000", _number(-1000, 1000)),
        Axis("guidance_rescale", "Rescale", "0, 0.35, 0.7", "numbers from 0 to 1", _number(0, 1)),
        Axis("order", "Order", "1, 2", "1 and 2", _whole(1, 2)),
        Axis("spacing", "Spacing", "leading, trailing, linspace", ", ".join(_SPACINGS), _spacing),
        Axis("seed", "Seed", "1-4", "whole numbers from 0 on", _whole(0, SEEDS), spans=True),
        Axis("model", "Model", "", "names of models"),
    )
}


@dataclass(frozen=True)
class Cell:
    """A picture of a table.

    Attributes:
        row, column: where it is, from 0.
        changes: the settings in which it differs from others, by their names.
    """

    row: int
    column: int
    changes: dict[str, Any]

    @property
    def said(self) -> str:
        """In what it differs, in words."""
        return ", ".join(AXES[field].said(value) for field, value in self.changes.items()) or "the picture"


def values_of(field: str, typed: str, models: Sequence[str] = ()) -> list[Any]:
    """The values of an axis that somebody has typed, each once and in order.

    >>> values_of("steps", "2, 4, 8"), values_of("seed", "1-4"), values_of("eta", "0; 0.5")
    ([2, 4, 8], [1, 2, 3, 4], [0.0, 0.5])

    Args:
        field: the axis; for `NOTHING` there is one value, None.
        models: the names that there are.

    Raises:
        ConfigError: a sentence that says what cannot be read.
    """
    if field == NOTHING:
        return [None]
    axis, found = AXES[field], list[Any]()
    example = axis.usual or ", ".join(models)
    between = r"[,;\n]+" if axis.read is None else r"[,;\s]+"
    spaced = re.sub(r"(?<=\d)\s*[-–]\s*(?=\d)", "-", typed) if axis.spans else typed
    words = [word.strip() for word in re.split(between, spaced) if word.strip()]
    if not words:
        raise ConfigError(f"{axis.label} has no values: type some, such as {example}")
    for word in words:
        span = re.fullmatch(r"(\d{1,19})-(\d{1,19})", word)
        values: list[Any]
        try:
            if axis.read is None:
                values = [_model(word, models)]
            elif span and axis.spans:
                first, last = map(axis.read, span.groups())
                if last - first >= MOST:
                    raise ConfigError(
                        f"{word} of {axis.label} are {last - first + 1} values, and a table has {MOST} pictures at most"
                    )
                values = [*range(first, last + 1)] or [*range(first, last - 1, -1)]
            else:
                values = [axis.read(word)]
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            near = difflib.get_close_matches(word.lower(), models if axis.read is None else _SPACINGS, n=1)
            meant = f"; did you mean {near[0]}?" if near and field in ("model", "spacing") else ""
            takes = f"one of {', '.join(models)}" if axis.read is None else axis.takes
            raise ConfigError(
                f"{axis.label} takes {takes}, such as {example}, and {word[:40]!r} is none of them{meant}"
            ) from None
        found += [value for value in values if value not in found]
        if len(found) > MOST:
            raise ConfigError(f"{axis.label} has more than {MOST} values, and a table has {MOST} pictures at most")
    return found


def _model(word: str, models: Sequence[str]) -> str:
    if word not in models:
        raise ValueError
    return word


def cells(across: str, over: Sequence[Any], down: str, beside: Sequence[Any]) -> list[Cell]:
    """All cells of a table, row by row.

    Args:
        across, down: the axes, of which either may be `NOTHING`.
        over, beside: their values.

    Raises:
        ConfigError: both axes are the same, or there are too many cells; a sentence.
    """
    if across == down:
        what = "vary nothing" if across == NOTHING else f"vary {AXES[across].label}"
        raise ConfigError(f"both directions {what}: choose something else for one of them")
    if len(over) * len(beside) > MOST:
        raise ConfigError(
            f"{len(over)} times {len(beside)} are {len(over) * len(beside)} pictures, and {MOST} are the most: "
            "take some values away"
        )
    made = []
    for (row, low), (column, high) in itertools.product(enumerate(beside), enumerate(over)):
        changes = {field: value for field, value in ((across, high), (down, low)) if field != NOTHING}
        made.append(Cell(row, column, changes))
    return made
