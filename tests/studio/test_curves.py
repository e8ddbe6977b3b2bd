"""The curves of a plan: they go through the plan's numbers, and fit their frame."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from ddim import DDIMScheduler
from ddim.studio.curves import Line, chart, curves, spacings
from ddim.studio.plans import spaced


def drawn(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{html.replace('&nbsp;', ' ')}</div>")


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


@pytest.mark.parametrize("steps", [1, 2, 9, 100])
@pytest.mark.parametrize("order", [1, 2])
def test_all_curves_are_well_formed_and_stay_in_their_frames(steps: int, order: int) -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    plan = scheduler.plan(steps, order=order)  # type: ignore[arg-type]
    tree = drawn(curves(plan, spaced(scheduler, steps), "trailing"))
    figures = tree.findall(".//figure")
    assert len(figures) == 7
    assert all(svg.get("aria-label") for svg in tree.findall(".//svg[@role]"))
    for figure in figures[1:]:
        (svg,) = figure.findall("svg")
        width, height = map(float, str(svg.get("viewBox")).split()[2:])
        for path in svg.findall("path"):
            for x, y in places(str(path.get("d"))):
                assert 0 <= x <= width
                assert 0 <= y <= height
    assert (">carried<" in curves(plan, {}, "trailing")) == (order == 2)


def test_a_curve_goes_through_its_numbers() -> None:
    """Up and to the right, in proportion to the frame's ends, which are round numbers."""
    svg = drawn(chart("A title", [Line("y", [0, 500, 1000], [0.0, 0.25, 1.0])], 1000, low=0.0, high=1.0))
    path = next(each for each in svg.iter("path") if each.get("class") == "line of-0")
    (x0, y0), (x1, y1), (x2, y2) = places(str(path.get("d")))
    assert (x1 - x0) == pytest.approx((x2 - x0) / 2, abs=0.06)
    assert (y0 - y1) == pytest.approx((y0 - y2) / 4, abs=0.06)
    assert y2 < y1 < y0
    ticks = [each.text for each in svg.iter("text")]
    assert ticks[:5] == ["0.00", "0.25", "0.50", "0.75", "1.00"]


def test_the_dots_of_a_spacing_are_its_timesteps() -> None:
    scheduler = DDIMScheduler()
    plan = scheduler.plan(5, spacing="trailing")
    ways = spaced(scheduler, 5)
    tree = drawn(spacings(plan, ways, "trailing"))
    dots = [str(path.get("d")) for path in tree.iter("path") if str(path.get("class")).startswith("dots")]
    assert [[x for x, _ in places(path)] for path in dots] == [
        [pytest.approx(t / 999 * 1000, abs=0.5) for t in way] for way in ways.values()
    ]
    own = [path for path in tree.iter("path") if "own" in str(path.get("class")).split()]
    assert [len(places(str(path.get("d")))) for path in own] == [5]


def test_a_ratio_that_falls_for_ever_ends_in_an_arrow() -> None:
    settings = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    zero = DDIMScheduler(rescale_betas_zero_snr=True, **settings).plan(4)
    assert "−∞" in curves(zero, {}, "trailing")
    assert "−∞" not in curves(DDIMScheduler(**settings).plan(4), {}, "trailing")


def test_equal_values_have_an_axis_too() -> None:
    assert "path" in chart("σ", [Line("σ", [1, 2], [0.0, 0.0])], 10, low=0.0)
    assert "path" in chart("x", [Line("x", [3], [5.0])], 10)
