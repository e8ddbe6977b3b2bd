"""The marker `thin`: of the many cases of one test, a few stay fast, and the others are slow tests.

    @pytest.mark.thin(together=2)        as many as are needed for any two values of different parameters to meet
    @pytest.mark.thin(every=4)           one of four, from the first on, as they are listed
    @pytest.mark.thin(fast=["4-noise"])  those with these ids

A fault that shows whenever two settings meet is found by the first kind. The second is for tables whose cases have
little to do with one another, each of which is a case of the same code. The third is for cases that differ in what they
guard: one of each kind is named.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def thin(items: Iterable[pytest.Item]) -> None:
    """Mark as slow what the markers of some tests leave out. Of a test that was asked for alone, nothing is."""
    cases: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for item in items:
        marker = item.get_closest_marker("thin")
        if marker is not None and hasattr(item, "callspec"):
            cases[item.parent, item.originalname, *marker.kwargs].append(item)  # type: ignore[attr-defined]
    for (*_, kind), those in cases.items():
        given = those[0].get_closest_marker("thin").kwargs[kind]
        if kind == "together":
            fast = covering([tuple(map(id, item.callspec.params.values())) for item in those], given)
        elif kind == "every":
            fast = set(range(0, len(those), given))
        else:
            fast = {place for place, item in enumerate(those) if item.callspec.id in given}
            if len(those) > len(given) and len(fast) != len(given):
                raise pytest.UsageError(f"{those[0].nodeid}: not all of {given} are ids of its cases")
        for place, item in enumerate(those):
            if place not in fast and len(those) > 1:
                item.add_marker(pytest.mark.slow)


def covering(cases: Sequence[tuple[int, ...]], together: int) -> set[int]:
    """The places of cases among which any values of so many parameters meet that meet in one of all.

    Args:
        cases: what stands for each parameter's value, of each case.
        together: of how many parameters; 1 is enough for each value to occur.

    >>> grid = [(a, b, c) for a in range(3) for b in range(2) for c in range(2)]
    >>> sorted(covering(grid, 2))
    [0, 3, 5, 6, 8, 11]
    >>> len(covering(grid, 1)), len(covering(grid, 3))
    (3, 12)
    """
    groups = list(itertools.combinations(range(len(cases[0])), min(together, len(cases[0]))))
    meets = [{(group, *(case[place] for place in group)) for group in groups} for case in cases]
    missing, chosen = set().union(*meets), set()
    while missing:
        best = max(range(len(cases)), key=lambda place: len(meets[place] & missing))
        missing -= meets[best]
        chosen.add(best)
    return chosen
