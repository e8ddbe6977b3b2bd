"""scripts/emoji/steps.py: what error and grain are, and the page's table."""

from __future__ import annotations

import importlib
import json
from types import ModuleType

import pytest
import torch
from program import SCRIPTS

pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS / "emoji"))
    return importlib.import_module("steps")


def test_the_page_has_the_table_of_the_file(program: ModuleType) -> None:
    found = json.loads(program.FIGURES.read_text(encoding="utf-8"))
    page = program.PAGE.read_text(encoding="utf-8")
    assert program.with_table(page, found) == page
    assert [row["label"] for row in found["rows"]] == [way.label for way in program.WAYS]


def test_the_error_is_over_all_and_of_the_median_picture(program: ModuleType) -> None:
    many = torch.full((3, 3, 4, 4), 0.5)
    off = torch.tensor([0.0, 0.1, 0.4]).view(3, 1, 1, 1)
    whole, median = program.errors(many + off, many)
    assert whole == pytest.approx(2 * ((0.01 + 0.16) / 3) ** 0.5, rel=1e-5)
    assert median == pytest.approx(0.2, rel=1e-5)


def test_grain_is_what_differs_from_its_neighbours_where_these_are_alike(program: ModuleType) -> None:
    images = torch.zeros(1, 3, 7, 7)
    images[..., 3, 3] = 0.02  # one grain in 25 places that have eight neighbours, which sees itself at eight more
    assert program.grain(images) == pytest.approx((0.02 + 8 * 0.02 / 8) / 25, rel=1e-5)
    images[..., :3] = 1.0  # an edge is no grain
    assert program.grain(images) < 0.02
