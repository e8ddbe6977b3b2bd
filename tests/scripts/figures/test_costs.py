"""scripts/figures/costs.py: what Stable Diffusion costs, and the page that says so."""

from __future__ import annotations

import json
import re
from types import ModuleType

import pytest
import torch
from program import script
from torch import nn


@pytest.fixture(scope="module")
def costs() -> ModuleType:
    return script("figures/costs")


def test_the_page_has_the_tables_of_the_file(costs: ModuleType) -> None:
    page = costs.PAGE.read_text(encoding="utf-8")
    found = json.loads(costs.FIGURES.read_text(encoding="utf-8"))
    assert costs.with_tables(page, found) == page
    assert costs.with_tables(page.replace("4.3 GB", "4.4 GB"), found) == page


def test_the_sums_of_the_page_are_its_formula(costs: ModuleType) -> None:
    """The page's prose names 30, 249 and 5 TFLOP, and 68 for 50 guided steps without decoding."""
    found = json.loads(costs.FIGURES.read_text(encoding="utf-8"))
    small, large = found["Stable Diffusion 1.5"], found["Stable Diffusion XL"]
    sums = costs.tflop(small, "512", 20), costs.tflop(large, "1024", 20), costs.tflop(small, "512", 4, 1)
    assert [round(number) for number in sums] == [30, 249, 5]
    assert round(100 * small["sides"]["512"]["unet"]["flop"] / 1e12) == 68


def test_the_times_of_the_page_are_its_work_by_its_speed(costs: ModuleType) -> None:
    """The table by speeds: 0.1 TFLOP/s makes 30 TFLOP in 300 s, which are 5 minutes."""
    page = costs.PAGE.read_text(encoding="utf-8")
    header, *rows = re.findall(r"^\| (?:speed that|[\d.]+ TFLOP/s).*$", page, flags=re.MULTILINE)
    works = [float(work) for work in re.findall(r"\((\d+) TFLOP\)", header)]
    assert len(works) == 3
    assert len(rows) == 4
    for row in rows:
        speed, *times = re.findall(r"([\d.]+) (?:TFLOP/s|seconds|minutes)", row)
        units = [60 if unit == "minutes" else 1 for unit in re.findall(r"[\d.]+ (seconds|minutes)", row)]
        for work, time, unit in zip(works, times, units, strict=True):
            assert float(time) * unit == pytest.approx(work / float(speed), rel=0.1), row


def test_a_count_is_that_of_paper_and_pencil(costs: ModuleType) -> None:
    """Two matrices of 8x8, and 32 samples: while the second result is made, the first one is alive."""
    network = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    found = costs.count(network, network, torch.zeros(32, 8))
    assert found == {"parameters": 128, "flop": 2 * 2 * 32 * 8 * 8, "bytes": 2 * 32 * 8 * 4}


@pytest.mark.slow
def test_the_file_is_what_is_counted(costs: ModuleType) -> None:
    found = costs.costs(["Stable Diffusion 1.5"])
    assert found.items() <= json.loads(costs.FIGURES.read_text(encoding="utf-8")).items()
