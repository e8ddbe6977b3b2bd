r"""What prompts say of how much their parts weigh, in the two notations that people write.

AUTOMATIC1111's web UI reads `(word)` as 1.1, `[word]` as 1/1.1 and `(word:1.3)` as 1.3; the library compel reads
`word++` as 1.1², `word-` as 0.9 and `(two words)1.3` as 1.3. Brackets may lie in brackets, and their weights are
multiplied. A backslash before a sign makes it a plain one. docs/prompts.md has all of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from ddim.errors import ConfigError

Weights: TypeAlias = Literal["a1111", "compel"]

LONGEST = 2**16  # letters of a text
MOST_BRACKETS = 1000  # of a text, of each kind
MOST = 100.0  # the largest weight


class Part(NamedTuple):
    """A part of a text, and how much it weighs: 1 is as much as without weights. None as text is a BREAK."""

    text: str | None
    weight: float


def parse(text: str, weights: Weights) -> list[Part]:
    """The parts of a text, of which no two that follow one another weigh the same.

    Raises:
        ConfigError: there is no such notation; a weight is not a number from -100 to 100; or the text has more than
            65,536 letters or 1,000 brackets, or asks for what is not done here.
    """
    if weights not in PARSERS:
        raise ConfigError(f"weights={weights!r:.50} is none of {', '.join(map(repr, PARSERS))} and None")
    if len(text) > LONGEST:
        raise ConfigError(f"a prompt with weights has at most {LONGEST} letters, not {len(text)}")
    if max(text.count(sign) for sign in '(["') > MOST_BRACKETS:
        raise ConfigError(f"a prompt with weights has at most {MOST_BRACKETS} brackets that open")
    found = PARSERS[weights](text)
    for part in found:
        if not -MOST <= part.weight <= MOST:
            raise ConfigError(
                f"the weight of {part.text!r:.100} is {part.weight:g}: give one from {-MOST:g} to {MOST:g}, or use "
                "fewer brackets"
            )
    joined = [found[0]] if found else [Part("", 1.0)]
    for part in found[1:]:
        before = joined[-1]
        if None not in (before.text, part.text) and before.weight == part.weight:
            joined[-1] = Part(f"{before.text}{part.text}", part.weight)
        else:
            joined.append(part)
    return joined


# A backslash and what it makes plain; a bracket; ":1.3)"; other text; a colon.
_A1111 = re.compile(r"\\[()\[\]\\]?|[(\[]|:\s*([+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_UP, _DOWN = 1.1, 1 / 1.1


def _parse_a1111(text: str) -> list[Part]:
    texts: list[str | None] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # for each bracket that is open, how many parts were before it
    closed: list[tuple[int, int, float]] = []

    def close(kind: str, factor: float) -> None:
        closed.append((opened[kind].pop(), len(texts), factor))

    for match in _A1111.finditer(text):
        piece, weight = match.group(), match.group(1)
        if piece in opened:
            opened[piece].append(len(texts))
        elif weight is not None and opened["("]:
            close("(", _number(weight, match.group()))
        elif piece == ")" and opened["("]:
            close("(", _UP)
        elif piece == "]" and opened["["]:
            close("[", _DOWN)
        elif piece.startswith("\\"):
            texts.append(piece[1:])
        else:
            for number, part in enumerate(_BREAK.split(piece)):
                texts += [None, part] if number else [part]
    for kind, factor in (("(", _UP), ("[", _DOWN)):
        while opened[kind]:  # what is never closed counts as closed at the end
            close(kind, factor)
    weights = _multiplied([1.0] * len(texts), closed)
    return [Part(part, 1.0 if part is None else weight) for part, weight in zip(texts, weights, strict=True)]


def _multiplied(weights: Sequence[float], ranges: Sequence[tuple[int, int, float]]) -> list[float]:
    """Weights of which those in each range, from its first to before its last, are multiplied by its factor."""
    every = np.array(weights, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused
        for first, last, factor in ranges:
            every[first:last] *= factor
    found: list[float] = every.tolist()
    return found


def _number(digits: str, where: str) -> float:
    try:
        return float(digits)
    except ValueError as error:
        raise ConfigError(f"{where.strip()!r:.100} in a prompt has no number as its weight") from error


# Of compel's notation: an escaped sign; a bracket that opens; one that closes, or a quotation mark, with the weight
# behind it; a word with the signs behind it; what compel does by other operators; anything else.
_SIGNS = r"(),.\"+\-="
_WEIGHT = r"(\++|-+|\d+\.\d*|\.\d+|\d+)?"
_COMPEL = re.compile(
    rf"""(?P<operator>\)\.(?:blend|and|add|swap|attend)\(|\b(?:use|with)Lora\()
    |(?P<open>\()
    |\){_WEIGHT}
    |"{_WEIGHT}
    |(?P<word>(?:\\[{_SIGNS}]|[+-](?![\s{_SIGNS}]|$)|[^\s{_SIGNS}\\]|\\(?![{_SIGNS}]))+)(\++|-+)?
    |(?P<other>\s+|.)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(rf"\\([{_SIGNS}])")


def _parse_compel(text: str) -> list[Part]:
    texts: list[str] = []
    weights: list[float] = []
    opened: list[tuple[str, int]] = []  # each bracket and quotation mark that is open, and which part it is
    closed: list[tuple[int, int, float]] = []

    def close(kind: str, weight: str | None) -> bool:
        """Close the innermost one, if it is of this kind; and whether it is."""
        if not opened or opened[-1][0] != kind:
            return False
        _, first = opened.pop()
        texts[first] = ""  # the sign itself, which is none of the text
        closed.append((first, len(texts), _steps(weight)))
        return True

    def add(part: str, weight: float = 1.0) -> None:
        texts.append(part)
        weights.append(weight)

    for match in _COMPEL.finditer(text):
        if match["operator"]:
            raise ConfigError(
                f"{match['operator'].strip('(')!r} in a prompt is not done by weights='compel', which knows +, - and "
                "numbers behind brackets; to have the sign itself, write a backslash before it"
            )
        if match["open"]:
            opened.append(("(", len(texts)))
            add("(")
        elif match["word"]:
            add(_ESCAPED.sub(r"\1", match["word"]), _steps(match[6]))
        elif match["other"]:
            add(match["other"])
        elif match.group().startswith(")"):
            if not close("(", match[3]):
                add(match.group())
        elif not close('"', match[4]):
            opened.append(('"', len(texts)))
            add('"')
            if match[4]:
                add(match[4])
    parts = [Part(part, weight) for part, weight in zip(texts, _multiplied(weights, closed), strict=True) if part]
    words = [number for number, part in enumerate(parts) if not str(part.text).isspace()]
    for before, after in itertools.pairwise(words):  # blanks do not part what weighs the same
        if parts[before].weight == parts[after].weight:
            parts[before + 1 : after] = [
                each._replace(weight=parts[before].weight) for each in parts[before + 1 : after]
            ]
    return parts


def _steps(signs: str | None) -> float:
    """The weight that signs say: 1.1 for each +, 0.9 for each -, or a number."""
    if not signs:
        return 1.0
    if signs[0] in "+-":
        return float((1.1 if signs[0] == "+" else 0.9) ** min(len(signs), 1000))
    return float(signs)


PARSERS = {"a1111": _parse_a1111, "compel": _parse_compel}
