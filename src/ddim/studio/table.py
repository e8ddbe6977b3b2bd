"""What the Compare tab makes: a table of pictures, how far it is, and the one picture to keep."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from PIL import Image

from ddim._version import __version__
from ddim.images import png_text
from ddim.images.labelled import labelled_table
from ddim.serving.futures import Started, Step
from ddim.serving.pictures import encoded
from ddim.studio.axes import AXES, NOTHING, Cell, cells
from ddim.studio.recipes import written

__all__ = ["Course", "Made", "Table", "labelled"]

_WAITING = '<figure class="picture waiting"></figure>'


@dataclass(frozen=True)
class Made:
    """A picture that is there.

    Attributes:
        image: it.
        data: its file, with its recipe.
    """

    image: Image.Image
    data: bytes


@dataclass
class Course:
    """How far a table is.

    Attributes:
        works: of each cell that is drawn, how many steps it takes, about.
        made: of each, how many are made.
        ended: the cells that are done with, whether there is a picture or not.
        started: when, by the clock of `time.monotonic`.
    """

    works: dict[int, int]
    made: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)

    def hear(self, number: int, event: Any) -> None:
        """Take in what happened to a cell."""
        if isinstance(event, Started):
            self.works[number] = event.steps
        elif isinstance(event, Step):
            self.made[number] = event.number
        else:
            self.ended.add(number)

    @property
    def share(self) -> float:
        """Of the steps that are made, from 0 to 1."""
        every = sum(self.works.values())
        done = sum(work if n in self.ended else min(work, self.made.get(n, 0)) for n, work in self.works.items())
        return done / every if every else 1.0

    def said(self, now: float) -> str:
        """How far it is at a time, in words.

        >>> course = Course({0: 4, 1: 4}, started=0.0)
        >>> course.hear(0, "done")
        >>> course.said(6.0)
        '1 of 2 pictures · 6 s left'
        """
        share, spent = self.share, now - self.started
        text = f"{len(self.ended)} of {len(self.works)} pictures"
        return text + (f" · {spent / share * (1 - share):.0f} s left" if share > 0.05 and spent > 0.5 else "")


class Table:
    """What is compared, and what there is of it.

    Args:
        across, down: the axes, of which one may be `NOTHING`.
        over, beside: their values.

    Attributes:
        cells: all of them, row by row.
        found: of each, its picture, or a sentence that says why there is none; None before.

    Raises:
        ConfigError: see `axes.cells`.
    """

    def __init__(self, across: str, over: Sequence[Any], down: str, beside: Sequence[Any]) -> None:
        self.across, self.over, self.down, self.beside = across, list(over), down, list(beside)
        self.cells: list[Cell] = cells(across, over, down, beside)
        self.found: list[Made | str | None] = [None] * len(self.cells)

    def labels(self) -> tuple[list[str], list[str]]:
        """Those of the columns, and those of the rows; empty where the axis is nothing."""
        return tuple(  # type: ignore[return-value]
            ["" if axis == NOTHING else AXES[axis].said(value) for value in values]
            for axis, values in ((self.across, self.over), (self.down, self.beside))
        )

    def html(self, tiles: Sequence[str]) -> str:
        """The table for a page.

        Args:
            tiles: of each cell, HTML; an empty text is a place that waits.
        """
        heads, sides = self.labels()
        head = "".join(f'<th scope="col">{escape(label)}</th>' for label in heads)
        lines = []
        for row, label in enumerate(sides):
            part = tiles[row * len(heads) : (row + 1) * len(heads)]
            places = "".join(f"<td>{tile or _WAITING}</td>" for tile in part)
            lines.append(f'<tr><th scope="row">{escape(label)}</th>{places}</tr>')
        least = 54 if len(heads) <= 4 else 62  # pixels of a cell on a phone, where one is to be cut if there are more
        return (
            '<div class="wide" tabindex="0" role="region" aria-label="Pictures that are compared">'
            f'<table class="compare" style="--columns: {len(heads)}; --least: {least}px">'
            f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        )


def labelled(table: Table) -> bytes:
    """A table as one PNG with labels, whose text "ddim" says how each picture was made.

    It is JSON: `settings` are those of all pictures, and each of `cells` has its own beside them, its place in the
    table, and its box in the picture as [left, top, right, bottom]; or, as `refused`, why it is not there.
    """
    heads, sides = table.labels()
    made = [_settings(each) if isinstance(each, Made) else None for each in table.found]
    there = [each for each in made if each is not None]
    common = {name: value for name, value in there[0].items() if all(each.get(name) == value for each in there)}
    shown = [each.image if isinstance(each, Made) else each or "Not drawn." for each in table.found]
    columns = len(heads)
    picture, boxes = labelled_table(
        [shown[first : first + columns] for first in range(0, len(shown), columns)], heads, sides, _title(common)
    )
    about = []
    for cell, found, settings in zip(table.cells, shown, made, strict=True):
        about.append({"row": cell.row, "column": cell.column, "box": boxes[cell.row][cell.column]})
        if settings is None:
            about[-1] |= {"settings": cell.changes, "refused": found}
        else:
            about[-1]["settings"] = {name: value for name, value in settings.items() if name not in common}
    note = {
        "version": __version__,
        "command": "compare",
        "settings": common,
        "columns": {"setting": table.across, "values": table.over},
        "rows": {"setting": table.down, "values": table.beside},
        "cells": about,
    }
    return encoded(picture, "png", None, note)


def _settings(made: Made) -> dict[str, Any]:
    """The settings in a picture's own recipe."""
    said = png_text(made.data, "ddim", len(made.data))
    assert said is not None
    settings: dict[str, Any] = json.loads(said)["settings"]
    return settings


def _title(common: Mapping[str, Any]) -> list[str]:
    """What stands over a table: the text, and what else all of its pictures share."""
    left = ("prompt", "batch", "scale", "class_labels", "width", "height")
    plain = {name: value for name, value in common.items() if name not in left and value != ""}
    rest = ", ".join(f"{name} {value}" for name, value in written(plain))
    return [text for text in (str(common.get("prompt") or ""), rest) if text]
