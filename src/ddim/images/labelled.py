"""A table of pictures with the labels of its columns and rows: one picture to keep of many that were compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ddim.images.drawn import LINE, broken, font

__all__ = ["TINY", "labelled_table"]

TINY = 128  # pixels of the longer side, up to which a picture is enlarged by whole pixels, at least twice
_GAP = 6
_MARGIN = 12
_LABEL = 120  # pixels of the labels of rows, at most
_PALE = "#e8e8e8"


def labelled_table(
    cells: Sequence[Sequence[Image.Image | str]],
    across: Sequence[str],
    down: Sequence[str],
    title: Sequence[str] = (),
) -> tuple[Image.Image, list[list[tuple[int, int, int, int]]]]:
    """One picture that shows a table of pictures on white, with a label over each column and beside each row.

    Pictures of up to 128 pixels a side are enlarged by whole pixels, at least twice, so that each of their pixels can
    be seen and found again; others are as they are.

    Args:
        cells: a row of pictures, or of sentences that stand in their place, for each label in `down`; a cell for each
            in `across`. Pictures may differ in size.
        across: over the columns, as ASCII.
        down: beside the rows; empty texts take no room.
        title: lines over all of it. Three dots stand for what does not fit.

    Returns:
        An RGB picture; and of each cell where its picture is, as (left, top, right, bottom) in pixels.

    Raises:
        ValueError: the cells do not fit the labels.
    """
    if len(cells) != len(down) or any(len(row) != len(across) for row in cells) or not (across and down):
        raise ValueError(f"a table of {len(down)} rows and {len(across)} columns needs as many cells")
    shown = [[each if isinstance(each, str) else _enlarged(each) for each in row] for row in cells]
    sizes = [each.size for row in shown for each in row if not isinstance(each, str)] or [(TINY, TINY)]
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    width = max(width, 96)  # room for words
    letters = font()
    beside = min(_LABEL, math.ceil(max(letters.getlength(label) for label in down)))
    beside += _GAP if beside else 0
    left, inner = _MARGIN + beside, len(across) * (width + _GAP) - _GAP
    total = left + inner + _MARGIN
    heads = [line for text in title for line in broken(text, total - 2 * _MARGIN, most=2) if line]
    labels = [broken(text, width) for text in across]
    above = _MARGIN + LINE * len(heads) + (_GAP if heads else 0)
    top = above + LINE * max(map(len, labels)) + _GAP // 2
    table = Image.new("RGB", (total, top + len(down) * (height + _GAP) - _GAP + _MARGIN), "white")
    draw = ImageDraw.Draw(table)

    def write(lines: Sequence[str], x: int, y: int, room: int = 0) -> None:
        for number, line in enumerate(lines):
            shift = max(0, (room - letters.getlength(line)) / 2)
            draw.text((x + shift, y + number * LINE), line, fill="black", font=letters)

    write(heads, _MARGIN, _MARGIN)
    for column, lines in enumerate(labels):
        write(lines, left + column * (width + _GAP), above, width)
    boxes: list[list[tuple[int, int, int, int]]] = []
    for row, label in enumerate(down):
        y = top + row * (height + _GAP)
        lines = broken(label, _LABEL) if label else []
        write(lines, _MARGIN, y + max(0, (height - LINE * len(lines)) // 2))
        boxes.append([])
        for column, cell in enumerate(shown[row]):
            x = left + column * (width + _GAP)
            if isinstance(cell, str):
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_PALE)
                write(broken(cell, width - 8, most=max(1, (height - 8) // LINE)), x + 4, y + 4)
                boxes[-1].append((x, y, x + width, y + height))
                continue
            place = (x + (width - cell.width) // 2, y + (height - cell.height) // 2)
            table.paste(cell, place)
            boxes[-1].append((*place, place[0] + cell.width, place[1] + cell.height))
    return table, boxes


def _enlarged(image: Image.Image) -> Image.Image:
    """A picture in RGB, each pixel of a small one as several."""
    side = max(image.size)
    scale = max(2, TINY // side) if side <= TINY else 1
    return image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
