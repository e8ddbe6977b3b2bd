"""Finds the figures that a page claims, numbers with a unit and decimals, and looks them up in files."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent

START = r"(?<![\w.,^/-])"
NUMBER = rf"{START}(?:\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d*\.\d+|\d+)"
WORD = "(?:two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty|forty|fifty|hundred|thousand)"
TIME = r"(?:ms|µs|s|seconds?|minutes?|hours?)(?!\w)"
UNIT = (
    rf"(?:{TIME}|times(?!\w)|x(?!\w|\s\d)|%|[kKMGT]i?B(?!\w)|MiB(?!\w)|dB(?!\w)|[GTP]?FLOPs?(?:/s)?(?!\w)"
    r"|(?:M|million)\sparameters|(?:rows|pictures|images|samples|requests)\sa\ssecond|tests(?!\w)|lines(?!\w))"
)
BETWEEN = r"(?:\s*(?:to|and|or|/|–)\s+)"
FIGURE = re.compile(
    # 3.6 times; 2.3 to 3.3 times; 1.1x / 1.2x; 22 MB
    rf"{NUMBER}(?:(?:\s*{UNIT})?{BETWEEN}{NUMBER})*\s*{UNIT}"
    # three times faster; ten minutes
    rf"|\b{WORD}\s(?:times\s(?=as|faster|less|more|longer|fewer|larger|smaller)|{TIME})"
    # .148; 0.85 ± 0.02
    rf"|{START}\d*\.\d\d+(?!\w|\.\d)(?:\s±\s\d*\.\d+)?|{START}\.\d(?!\w|\.\d)"
    # and in tables, where the unit is in the head: 4.7
    rf"|(?P<bare>{START}\d+\.\d(?!\w|\.\d))",
    flags=re.IGNORECASE,
)
OF_MEASURES = re.compile(r"faster|distance|error|ratio|\bms\b|seconds|hours")
# What a number may stand behind without being a figure: versions, papers, their sections and equations.
NAMED = re.compile(
    r"\b(?:Python|PyTorch|torch|diffusers|ddim|OpenVINO|arXiv|doi|section|equation|CC BY|Pillow's|Pillow|matplotlib's|"
    r"CUDA|CycloneDX|Stable Diffusion|SD|DeepFloyd|Playground)"
    r"[\s:(]+(?:to\s)?\d[\w.+]*(?:(?:,|\sto|\sor|\sand)+\s\d+(?:\.\d+)+)*"
)


class Figure(NamedTuple):
    """What is quoted, on which line, and the header of the table that it stands in, if it does."""

    text: str
    line: int
    table: str | None


def figures_in(text: str) -> Iterator[Figure]:
    """The figures of a page of Markdown. Code, links' addresses and what a program wrote between marks have none."""
    for pattern in (r"^```.*?^```", r"<!-- (?!end)[^\n]*? -->.*?<!-- end[^\n]*? -->", r"<!--.*?-->"):
        text = re.sub(pattern, lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`]+`|(?<=\])\([^)]+\)", lambda found: "·" + "\n" * found[0].count("\n"), text)
    text = NAMED.sub(lambda found: "·" + "\n" * found[0].count("\n"), text.replace("**", ""))
    lines = text.split("\n")
    header: dict[int, str] = {}
    for number, line in enumerate(lines):
        if line.lstrip().startswith("|"):
            header[number] = header.get(number - 1, line.strip())
    # A table's row ends what is quoted; a line of prose does not.
    text = "\n".join(f"{line}\0" if number in header else line for number, line in enumerate(lines))
    for found in FIGURE.finditer(text):
        number = text.count("\n", 0, found.start())
        if re.fullmatch(r"3\.1\d", found[0]):  # a version of Python
            continue
        if found["bare"] and not OF_MEASURES.search(header.get(number, "")):
            continue
        yield Figure(" ".join(found[0].split()), number + 1, header.get(number))


def figures_in_docstrings(code: str) -> Iterator[Figure]:
    """The figures of a module's docstrings, without those of their examples."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            told = ast.get_docstring(node, clean=False) or ""
            told = re.sub(r"^ *>>>.*?(?=^ *$|\Z)", "", told, flags=re.DOTALL | re.MULTILINE)
            told = re.sub(r"\([^()]*\|[^()]*\)|\((?:\w+ )+\w+\)", "", told)  # shapes
            for found in figures_in(told):
                yield found._replace(line=node.body[0].lineno, table=None)


def numbers(text: str) -> list[str]:
    """The numbers in a text, as they are written.

    >>> numbers("2.3 to 3.3 times, 1,356 GFLOP, .148")
    ['2.3', '3.3', '1,356', '.148']
    """
    return re.findall(r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+(?:e-?\d+)?|\d+(?:e-?\d+)?)", text)


def is_rounded(quoted: str, exact: float) -> bool:
    """Whether a number as it is quoted is another one, rounded: to its digits, or, over 100, to two that count.

    >>> is_rounded("2.3", 2.32), is_rounded("2.3", 2.36), is_rounded("1,800", 1823), is_rounded("90", 94)
    (True, False, True, False)
    """
    plain = quoted.replace(",", "")
    value = float(plain)
    step = 10.0 ** -len(plain.partition(".")[2])
    if value >= 100 and "." not in plain:
        zeros = len(plain) - len(plain.rstrip("0"))
        step = 10.0 ** min(zeros, len(plain) - 2)
    return abs(exact - value) <= step / 2 * (1 + 1e-6)


FACTORS = (1, 1e-3, 1e3, 1e-6, 1e-9, 1e-12, 100)  # ms for s, GB for bytes, % for shares


def is_held(figure: str, exact: list[float]) -> bool:
    """Whether each number of a figure is one of those, rounded, in some unit that is the same for all of it."""
    return any(
        all(any(is_rounded(number, abs(value) * factor) for value in exact) for number in numbers(figure))
        for factor in FACTORS
    )


def found_in(files: str, where: str) -> list[float]:
    """The numbers that files have at a place.

    Args:
        files: paths in the repository, with a space between them.
        where: of JSON, the keys that lead there, with a dot between them; "bytes", "parameters" (of safetensors) or
            "lines": what the files have of them in all; otherwise, what the lines have in them that are meant, with
            " … " between what stands apart, and " || " between several such lines.
    """
    paths = [ROOT / name for name in files.split()]
    if where in ("bytes", "parameters", "lines"):
        inside = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
        return [float(sum(MEASURES[where](file) for file in inside if file.is_file()))]
    found: list[float] = []
    for path in paths:
        if path.suffix == ".json":
            found += _below(json.loads(path.read_text(encoding="utf-8")), where)
        else:
            found += _on_lines(path.read_text(encoding="utf-8"), where)
    return found


def _on_lines(text: str, where: str) -> list[float]:
    meant = [
        line
        for line in text.splitlines()
        if any(all(word in line for word in piece.split(" … ")) for piece in where.split(" || "))
    ]
    return [float(number.replace(",", "")) for line in meant for number in numbers(line)]


def _below(value: Any, where: str) -> list[float]:
    while where and not isinstance(value, int | float):
        if isinstance(value, list):
            key, _, where = where.partition(".")
            value = value[int(key)]
            continue
        key = next((key for key in value if where == key or where.startswith(f"{key}.")), None)
        if key is None:
            return []
        value, where = value[key], where[len(key) + 1 :]
    if isinstance(value, dict | list):
        return [
            number for inner in (value.values() if isinstance(value, dict) else value) for number in _below(inner, "")
        ]
    return [float(value)] if isinstance(value, int | float) else []


def _parameters(file: Path) -> int:
    if file.suffix != ".safetensors":
        return 0
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


MEASURES = {
    "bytes": lambda file: file.stat().st_size,
    "parameters": _parameters,
    "lines": lambda file: file.read_text(encoding="utf-8").count("\n"),
}
