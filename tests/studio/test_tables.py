"""The table of a plan: its numbers are the plan's, and stand below each other."""

from __future__ import annotations

import re

import pytest

from ddim import DDIMScheduler
from ddim.plan import SamplingPlan
from ddim.studio.tables import ALL, number, rows_table


def cells(table: str) -> list[list[str]]:
    lines = re.findall(r"<tr[^>]*>(.*?)</tr>", table)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in lines[1:]]


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_the_table_has_the_numbers_of_the_plan(steps: int) -> None:
    plan = DDIMScheduler(timestep_spacing="trailing").plan(steps, order=2)
    table = cells(rows_table(plan, caption="The plan"))
    assert len(table) == steps
    for place, (line, row) in enumerate(zip(table, plan, strict=True)):
        assert line[:2] == [str(place + 1), str(row.timestep)]
        assert line[2] == (str(row.previous_timestep) if row.previous_timestep >= 0 else "image")
        for name, text in zip(ALL, line[3:], strict=True):
            if name != "snr":
                value = float(text.replace("−", "-"))
                assert value == pytest.approx(getattr(row, name), rel=1e-4, abs=6e-5), (name, text)
    assert table[-1][2] == "image"
    for column in list(zip(*table, strict=True))[3:]:
        assert len({len(text.partition(".")[2]) for text in column}) == 1, "points stand below each other"
        assert not any(re.fullmatch(r"−0\.?0*", text) for text in column)


def test_pure_noise_and_no_noise_have_a_ratio_too() -> None:
    plan = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing").plan(
        4
    )
    assert cells(rows_table(plan, caption="x"))[0][5] == "−∞"


def test_first_order_has_no_column_for_the_second() -> None:
    plan = DDIMScheduler().plan(4)
    assert "carried" not in rows_table(plan, caption="x")
    assert len(cells(rows_table(plan, ("a", "b"), caption="x"))[0]) == 5


def test_rows_are_picked_by_keyboard_one_at_a_time() -> None:
    plan: SamplingPlan = DDIMScheduler().plan(4)
    table = rows_table(plan, ("a",), caption="x", chosen=2, picked=True)
    assert re.findall(r'data-step="(\d)" tabindex="(-?\d)" aria-selected="(\w+)"', table) == [
        ("1", "-1", "false"), ("2", "-1", "false"), ("3", "0", "true"), ("4", "-1", "false")
    ]  # fmt: skip
    assert "data-step" not in rows_table(plan, caption="x")


def test_numbers_have_no_exponent_and_five_digits() -> None:
    for value in (1e-9, 3.14159e-5, 0.5, 1.0, 157.4139, 123456.7, -2.5e-3):
        assert float(number(value)) == pytest.approx(value, rel=1e-4)
        assert "e" not in number(value)
