"""The pages of docs/ that are notebooks as well: their code is run, and what it prints and draws is put beside it.

    python scripts/notebooks.py           # all of them: the pictures, what is printed, and docs/notebooks/
    python scripts/notebooks.py evening   # one

A page is Markdown. Its Python blocks are run in their order, in one namespace. A block of text below one is what it
prints, and a picture below one is what it draws. The notebook has the same texts and code, and nothing that came out.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ("evening", "few-steps", "inversion")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n", flags=re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"\A\n*!\[[^\]]*\]\(([^)]+\.png)\)\n")
PRINTED = re.compile(r"\A\n*```text\n(.*?)^```\n", flags=re.DOTALL | re.MULTILINE)


class Cell(NamedTuple):
    """A piece of a page.

    Attributes:
        text: Markdown, or Python.
        is_code: which of the two.
        printed: what the code prints, as the page has it; None where the page does not say.
        picture: where the page has what the code draws, or None.
    """

    text: str
    is_code: bool
    printed: str | None = None
    picture: str | None = None


def cells(page: str) -> Iterator[Cell]:
    """The pieces of a page, in their order.

    >>> page = "Text.\\n\\n```python\\nprint(1)\\n```\\n\\n```text\\n1\\n```\\n\\n![One](a/one.png)\\n\\nEnd.\\n"
    >>> list(cells(page))[1]
    Cell(text='print(1)\\n', is_code=True, printed='1\\n', picture='a/one.png')
    """
    place = 0
    for found in BLOCK.finditer(page):
        if found.start() < place or found[1] != "python":
            continue
        yield from _texts(page[place : found.start()])
        place = found.end()
        printed = PRINTED.match(page[place:])
        place += printed.end() if printed else 0
        picture = PICTURE.match(page[place:])
        place += picture.end() if picture else 0
        yield Cell(found[2], True, printed[1] if printed else None, picture[1] if picture else None)
    yield from _texts(page[place:])


def _texts(text: str) -> Iterator[Cell]:
    if text.strip():
        yield Cell(text.strip("\n") + "\n", False)


def notebook(name: str) -> str:
    """A page as a notebook, without what comes out of its code."""
    made = []
    for number, cell in enumerate(cells((DOCS / f"{name}.md").read_text(encoding="utf-8"))):
        text = cell.text if cell.is_code else for_notebook(cell.text)
        if not text.strip():
            continue
        about = {"cell_type": "markdown", "id": f"{name}-{number}", "metadata": {}}
        if cell.is_code:
            about |= {"cell_type": "code", "execution_count": None, "outputs": []}
        made.append({**about, "source": text.strip("\n").splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def for_notebook(text: str) -> str:
    """Markdown without what only the page can fold away, and with links that lead out of docs/notebooks/."""
    text = re.sub(r"^</?details>\n+", "", text, flags=re.MULTILINE)
    text = re.sub(r"^<summary>(.*)</summary>$", r"**\1**", text, flags=re.MULTILINE)
    text = re.sub(r"^The page is also \[a notebook\].*?\n\n", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\]\((?!\w+:|#)([^)]+)\)", r"](../\1)", text)


def alike(one: str, other: str) -> bool:
    """Whether two texts are the same, but for fractions that differ by 3 %: machines add up in different orders."""
    parts = [re.split(r"(\d+\.\d+)", text) for text in (one, other)]
    return len(parts[0]) == len(parts[1]) and all(
        a == b if index % 2 == 0 else math.isclose(float(a), float(b), rel_tol=0.03)
        for index, (a, b) in enumerate(zip(*parts, strict=True))
    )


def run(name: str, *, write: bool) -> list[str]:
    """Run the code of a page, and say where the page prints anything else; or write what came out into it."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    path = DOCS / f"{name}.md"
    page, names, wrong = path.read_text(encoding="utf-8"), {"__name__": "__main__"}, []
    for cell in cells(page):
        if not cell.is_code:
            continue
        plt.close("all")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(cell.text, f"{name}.md", "exec"), names)
        said = out.getvalue()
        if not alike(said, cell.printed or ""):
            wrong.append(f"{name}.md says {cell.printed!r}, but this prints {said!r}:\n{cell.text}")
            block = f"```python\n{cell.text}```\n"
            old = block if cell.printed is None else f"{block}\n```text\n{cell.printed}```\n"
            page = page.replace(old, f"{block}\n```text\n{said}```\n" if said else block)
        if bool(plt.get_fignums()) != (cell.picture is not None):
            wrong.append(f"{name}.md needs a picture where its code draws one, and none where not:\n{cell.text}")
        elif cell.picture and write:
            (DOCS / cell.picture).parent.mkdir(exist_ok=True)
            plt.gcf().savefig(DOCS / cell.picture, dpi=120, metadata={"Software": None})
    plt.close("all")
    if write:
        path.write_text(page, encoding="utf-8")
        (DOCS / "notebooks" / f"{name}.ipynb").write_text(notebook(name), encoding="utf-8")
    return wrong


if __name__ == "__main__":
    for chosen in sys.argv[1:] or PAGES:
        print("\n".join(run(chosen, write=True)))
