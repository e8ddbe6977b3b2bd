"""Every figure that is quoted is in a file that a command wrote, or docs/figures.toml says what else it is."""

from __future__ import annotations

import datetime
import functools
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from figures import ROOT, Figure, figures_in, figures_in_docstrings, found_in, is_held

RECORD: dict[str, Any] = tomllib.loads((ROOT / "docs" / "figures.toml").read_text(encoding="utf-8"))
MEASURED: dict[str, dict[str, Any]] = RECORD.pop("measured")
MACHINES: dict[str, str] = RECORD.pop("machines")
WRITTEN: dict[str, str] = RECORD.pop("written")
IMAGES: dict[str, str] = RECORD.pop("images")
Record = Mapping[str, str | list[str]]
PROGRAMS = ("make ", "ddim ", "pip ", "uv ", "python ", "scripts/")


def pages() -> list[str]:
    """What is searched: all that is there to be read, but for what changed in the past."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("data/*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md")]
    code = (ROOT / "src").rglob("*.py")
    names = [path.relative_to(ROOT).as_posix() for path in [*files, *code]]
    return sorted(name for name in names if name != "CHANGELOG.md" and name not in WRITTEN)


@functools.cache
def quoted(page: str) -> list[Figure]:
    text = (ROOT / page).read_text(encoding="utf-8")
    if page == "docs/benchmarks.md":  # all of it is between marks but for a beginning without figures
        text = text.replace("<!-- end -->", "<!-- end of it -->")
    return list(figures_in_docstrings(text) if page.endswith(".py") else figures_in(text))


def known(figure: Figure, record: Record) -> str | None:
    """How a page's record calls a figure: by itself, or by the table that it stands in."""
    if figure.text in record:
        return figure.text
    if figure.table:
        return next((key for key in record if key.startswith("|") and figure.table.startswith(key)), None)
    return None


def unknown(page: str, figures: list[Figure], record: Record) -> list[str]:
    return [
        f"{page}:{figure.line} quotes {figure.text!r}, of which nothing is known. In docs/figures.toml, below "
        f'["{page}"], say which file has it (a command wrote it), what measured it, or why it is no measurement; '
        "or leave it out."
        for figure in figures
        if known(figure, record) is None
    ]


def not_so(page: str, figures: list[Figure], record: Record) -> list[str]:
    """What the files do not have that are said to have it."""
    wrong = []
    for figure in figures:
        key = known(figure, record)
        if key is None:
            continue
        places = [record[key]] if isinstance(record[key], str) else record[key]
        if places[0].startswith(("measured: ", "given: ")):
            continue
        exact = [number for place in places for number in found_in(*place.split(": ", 1))]
        if not is_held(figure.text, exact):
            there = ", ".join(f"{number:g}" for number in exact[:9]) + (", …" if len(exact) > 9 else "")
            wrong.append(
                f"{page}:{figure.line} quotes {figure.text!r}, but {' and '.join(places)} has {there or 'no number'}. "
                "Quote what is there, or mend the place in docs/figures.toml."
            )
    return wrong


def test_every_figure_that_is_quoted_is_known_and_so() -> None:
    wrong = []
    for page in pages():
        record = RECORD.get(page, {})
        wrong += unknown(page, quoted(page), record) + not_so(page, quoted(page), record)
    assert not wrong, "\n".join(["", *wrong])


def test_nothing_is_recorded_that_is_not_quoted() -> None:
    stale = []
    for page, record in RECORD.items():
        used = {known(figure, record) for figure in quoted(page)}
        stale += [f'docs/figures.toml, ["{page}"]: {key!r} is not quoted there any more' for key in set(record) - used]
    assert not stale, "\n".join(["", *sorted(stale)])


def test_what_was_measured_says_by_what_and_when() -> None:
    named = {
        value.removeprefix("measured: ")
        for record in RECORD.values()
        for value in record.values()
        if isinstance(value, str) and value.startswith("measured: ")
    }
    assert named == set(MEASURED)
    for name, how in MEASURED.items():
        assert set(how) == {"of", "command", "machine", "date"}, name
        assert how["machine"] in MACHINES, name
        assert isinstance(how["date"], datetime.date), name
        command = re.sub(r"^([A-Z_]+=\S+ )+", "", how["command"])
        assert command.startswith(PROGRAMS), name
        if command.startswith("python "):
            assert (ROOT / command.split()[1]).is_file(), name


def test_a_page_that_is_written_is_written_by_a_program() -> None:
    for page, program in WRITTEN.items():
        assert Path(page).name in (ROOT / program).read_text(encoding="utf-8")
    for page in pages():
        if page.endswith(".md"):
            for name, program in re.findall(r"<!-- (\w+): by (\S+) -->", (ROOT / page).read_text(encoding="utf-8")):
                assert name in (ROOT / program).read_text(encoding="utf-8"), f"{page}: {program} writes no {name}"


def test_every_image_is_made_by_a_program() -> None:
    """Those of the pages that are notebooks are made with these, as tests/scripts/test_notebooks.py holds."""
    notebooks = {path.stem for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    there = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").rglob("*")
        if path.suffix in (".png", ".svg", ".webp", ".gif", ".jpg") and path.parent.name not in {*notebooks, "_static"}
    }
    shown = set()
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+\.(?:png|svg|webp|gif|jpg))\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                shown.add((page.parent / link).resolve().relative_to(ROOT).as_posix())
    assert {image for image in shown if Path(image).parent.name not in notebooks} <= there
    assert there == set(IMAGES), "docs/figures.toml says below [images] which program makes each picture"
    for image, program in IMAGES.items():
        text, name, stem = (ROOT / program).read_text(encoding="utf-8"), Path(image).name, Path(image).stem
        first, _, rest = stem.rpartition("-")
        assert (
            name in text or f"{stem}." in text or f'"{stem}"' in text or (f'"{first}"' in text and f'-{rest}"' in text)
        ), f"{program} makes no {image}"


MADE_UP = """# 3 times

It is 3.6 times faster, 2.3 to
3.3 times with guidance 0.7, and takes 12 ms or ten minutes (22 MB, 45 %), **1.8x / 2x**; .148 ± .01, 0.85.
Python 3.12, `0.25 s`, [50 %](a/99%), arXiv 2010.02502, 10 steps, section 4.25.

| model | time |
|---|---|
| one | 1,356 GFLOP |

<!-- made: by scripts/x.py -->
77 %
<!-- end of made -->

```
88 %
```
"""


def test_figures_are_found_in_prose_and_tables() -> None:
    assert [figure[:2] for figure in figures_in(MADE_UP)] == [
        ("3 times", 1),
        ("3.6 times", 3),
        ("2.3 to 3.3 times", 3),
        ("12 ms", 4),
        ("ten minutes", 4),
        ("22 MB", 4),
        ("45 %", 4),
        ("1.8x / 2x", 4),
        (".148 ± .01", 4),
        ("0.85", 4),
        ("50 %", 5),
        ("1,356 GFLOP", 9),
    ]
    assert [
        figure.text
        for figure in figures_in_docstrings('def f():\n    """Takes 5 ms.\n\n    >>> 7\n    "8 ms"\n    """')
    ] == ["5 ms"]


def test_a_figure_that_nothing_holds_is_told_with_its_line_and_what_to_do() -> None:
    (told,) = unknown("a.md", list(figures_in("one\n\nIt is 3.6 times faster.")), {})
    assert told.startswith("a.md:3 quotes '3.6 times'")
    assert "docs/figures.toml" in told
    row = "docs/benchmarks.md: | 1 | ddim, OpenVINO |"
    assert not not_so("a.md", [Figure("3.3 times", 1, None)], {"3.3 times": row})
    assert not_so("a.md", [Figure("3.4 times", 1, None)], {"3.4 times": row})
    assert not not_so(
        "a.md", [Figure("0.68 TFLOP", 1, None)], {"0.68 TFLOP": "docs/costs.json: Stable Diffusion 1.5.sides.512.unet"}
    )


@pytest.mark.parametrize(
    ("figure", "exact", "held"),
    [
        ("3.3 times", [3.29], True),
        ("3.3 times", [3.36], False),
        ("2.3 to 3.3 times", [2.32, 3.29], True),
        ("2.3 to 3.3 times", [3.29], False),
        ("4.0 s", [3977.1], True),
        ("1.1 GB", [1055801344], True),
        ("97.0 %", [0.97], True),
        ("1,800 lines", [1823], True),
        ("1,800 lines", [1881], False),
    ],
)
def test_rounding(figure: str, exact: list[float], held: bool) -> None:
    assert is_held(figure, exact) == held
