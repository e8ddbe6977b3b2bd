"""How prompts say what weighs how much: what AUTOMATIC1111's web UI and compel read, and what is malformed."""

from __future__ import annotations

import itertools
import random
import re
import time

import pytest

from ddim.errors import ConfigError
from ddim.pipelines.emphasis import Part, Weights, parse


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain words", [("plain words", 1)]),
        ("", [("", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("((a))b", [("a", 1.1 * 1.1), ("b", 1)]),
        ("[a] [[b]]", [("a", 1 / 1.1), (" ", 1), ("b", 1 / 1.1 / 1.1)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("(a: +.5 )b", [("a", 0.5), ("b", 1)]),
        ("(a:-1)", [("a", -1)]),
        ("(a (b:2) [c]:0.5)", [("a ", 0.5), ("b", 1.0), (" ", 0.5), ("c", 0.5 / 1.1)]),
        ("(a)(b)", [("ab", 1.1)]),
        (r"\(a\) \[b\] \\c \d", [(r"(a) [b] \c d", 1)]),
        (r"(\(a\):1.2)", [("(a)", 1.2)]),
        ("a BREAK b", [("a", 1), (None, 1), ("b", 1)]),
        ("(a BREAK b:1.2)BREAKER", [("a", 1.2), (None, 1), ("b", 1.2), ("BREAKER", 1)]),
        ("a: b, c:1.2", [("a: b, c:1.2", 1)]),
        # malformed: what is not closed is closed at the end, what closes nothing stays, and what is no number is text
        ("(a", [("a", 1.1)]),
        ("([a", [("a", 1.1 / 1.1)]),
        ("a) b] c:2)", [("a) b] c:2)", 1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1e9)", [("a:1e9", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.1 / 1.1), (" c", 1 / 1.1)]),
        ("\\", [("", 1)]),
    ],
)
def test_the_web_ui(text: str, parts: list[tuple[str | None, float]]) -> None:
    found = parse(text, "a1111")
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain words, (in brackets)", [("plain words, in brackets", 1)]),
        ("a red+ cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("red++, blue---", [("red", 1.1**2), (", ", 1), ("blue", 0.9**3)]),
        ("(a cat)1.3 x", [("a cat", 1.3), (" x", 1)]),
        ("a- red-  cat- dog", [("a red  cat", 0.9), (" dog", 1)]),
        ("a-, red- (cat)0.9 b-- c", [("a", 0.9), (", ", 1), ("red cat", 0.9), (" ", 1), ("b", 0.81), (" c", 1)]),
        ("(a cat).5", [("a cat", 0.5)]),
        ("(a (red)++ cat)0.5", [("a ", 0.5), ("red", 0.5 * 1.1**2), (" cat", 0.5)]),
        ('"a cat"-- sat', [("a cat", 0.9**2), (" sat", 1)]),
        ('(a "b"2 c)2', [("a ", 2), ("b", 4), (" c", 2)]),
        ("red-heart a+b 3.5 -x +y", [("red-heart a+b 3.5 -x +y", 1)]),
        (r"c\+\+ \(a\) \"b\" x\y", [(r'c++ (a) "b" x\y', 1)]),
        ("(a) 1.3", [("a 1.3", 1)]),
        ("a (b, c) d) e", [("a b, c d) e", 1)]),
        ("(a", [("(a", 1)]),
        ('a "b', [('a "b', 1)]),
        ("a = b + c ++", [("a = b + c ++", 1)]),
        ("", [("", 1)]),
    ],
)
def test_compel(text: str, parts: list[tuple[str, float]]) -> None:
    found = parse(text, "compel")
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize("weights", ["a1111", "compel"])
@pytest.mark.parametrize(
    "text",
    [
        "(" * 1001,
        "[" * 1001,
        "x" * (2**16 + 1),
        "(a:101)(a)101",
        "(" * 200 + "a" + ")" * 200 + "+" * 5000 + "a" + "+" * 5000,
        "(a:1.2.3)(a b)" + "9" * 400 + ".",
        "(a:" + "9" * 400 + ")(a)" + "9" * 400,
    ],
)
def test_what_is_refused(text: str, weights: Weights) -> None:
    with pytest.raises(ConfigError, match=r"weight|letters|brackets"):
        parse(text, weights)


@pytest.mark.parametrize("what", ['("a", "b").blend(1, 2)', '("a", "b").and()', "(cat).swap(dog)", "withLora(x, 1)"])
def test_operators_of_compel_that_are_not_done(what: str) -> None:
    with pytest.raises(ConfigError, match="not done"):
        parse(what, "compel")


def test_there_are_two_notations() -> None:
    with pytest.raises(ConfigError, match="'a1111', 'compel' and None"):
        parse("a", "other")  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["a1111", "compel"])
def test_any_text_is_read_soon_and_loses_no_word(weights: Weights) -> None:
    rnd = random.Random(0)
    signs = ["(", ")", "[", "]", "\\", ":1.1)", ":", "+", "-", '"', "BREAK", " ", "a", "b1", ",", ".", "=", "é", "\n"]
    for _ in range(500):
        text = "".join(rnd.choice(signs) for _ in range(rnd.randint(0, 30)))
        try:
            parts = parse(text, weights)
        except ConfigError:  # an operator, or no number
            assert re.search(r":[+-.]|\)\.", text)
            continue
        said = "".join(part.text or "" for part in parts)
        assert [said.count(letter) for letter in "aé"] == [text.count(letter) for letter in "aé"]
        for before, after in itertools.pairwise(parts):
            assert None in (before.text, after.text) or before.weight != after.weight
    long = [
        "(" * 1000 + r"\(a" * 20_000 + ")" * 1000,
        "(" * 999 + "a b" * 20_000,
        *(sign * 2**16 for sign in ("+", "\\", ":")),
        *(sign * 2**15 for sign in ("a ", "1.", "a+")),
        "a+ " * 20_000,
        ' "' * 900,
    ]
    refused = 0
    for text in long:
        began = time.process_time()
        try:
            parse(text, weights)
        except ConfigError:
            refused += 1
        assert time.process_time() - began < 2, text[:20]
    assert refused < 4


def test_parts_are_pairs() -> None:
    assert parse("(a:2)", "a1111") == [Part("a", 2.0)] == [("a", 2.0)]
