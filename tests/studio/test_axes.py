"""The axes of a comparison: what may be typed for their values, and the sentences for what may not."""

from __future__ import annotations

from typing import Any

import pytest

from ddim.errors import ConfigError
from ddim.serving.parameters import Generation
from ddim.studio.axes import AXES, MOST, NOTHING, cells, values_of

MODELS = ("emoji-fast", "emoji", "my model")


@pytest.mark.parametrize(
    ("field", "typed", "values"),
    [
        ("steps", "2, 4, 8", [2, 4, 8]),
        ("steps", "2 4\n8", [2, 4, 8]),
        ("steps", "1-4, 8", [1, 2, 3, 4, 8]),
        ("seed", "3 - 1; 7", [3, 2, 1, 7]),
        ("seed", "0–2", [0, 1, 2]),
        ("seed", "5,5, 5", [5]),
        ("seed", str(2**63 - 1), [2**63 - 1]),
        ("eta", "0, .5, 1, sigma_hat", [0.0, 0.5, 1.0, "sigma_hat"]),
        ("eta", "σ̂", ["sigma_hat"]),
        ("guidance_scale", "-1, 1, 7.5", [-1.0, 1.0, 7.5]),
        ("guidance_rescale", "0; 0.7", [0.0, 0.7]),
        ("order", "1 2", [1, 2]),
        ("spacing", "Trailing, leading", ["trailing", "leading"]),
        ("model", "emoji, my model", ["emoji", "my model"]),
        (NOTHING, "whatever", [None]),
    ],
)
def test_what_can_be_typed(field: str, typed: str, values: list[Any]) -> None:
    assert values_of(field, typed, MODELS) == values


@pytest.mark.parametrize(
    ("field", "typed", "said"),
    [
        ("steps", "", "Steps has no values: type some, such as 1, 2, 4, 8"),
        ("steps", " , ;", "has no values"),
        (
            "steps",
            "4, four",
            "takes whole numbers from 1 to 1000, such as 1, 2, 4, 8, and 'four' is none of them",
        ),
        ("steps", "0", "'0' is none"),
        ("steps", "1001", "'1001' is none"),
        ("steps", "2.5", "'2.5' is none"),
        ("steps", "1-1000", "1-1000 of Steps are 1000 values"),
        ("seed", "0-9999999999", "are 10000000000 values, and a table has 100"),
        ("seed", "-1", "Seed takes whole numbers from 0 on"),
        ("seed", str(2**63), "is none"),
        ("seed", "9" * 5000, "is none"),
        ("seed", ",".join(map(str, range(101))), "more than 100"),
        ("eta", "-0.5", "'-0.5' is none"),
        ("eta", "nan", "'nan' is none"),
        ("eta", "1-4", "'1-4' is none"),
        ("guidance_scale", "1e9", "'1e9' is none"),
        ("guidance_scale", "inf", "'inf' is none"),
        ("guidance_scale", "1_0", "'1_0' is none"),
        ("guidance_rescale", "1.1", "numbers from 0 to 1"),
        ("order", "3", "Order takes 1 and 2"),
        ("spacing", "trailling", "did you mean trailing?"),
        ("model", "emojis", "one of emoji-fast, emoji, my model, such as .* did you mean emoji?"),
    ],
)
def test_what_cannot_be_typed_is_said(field: str, typed: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        values_of(field, typed, MODELS)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("field", AXES)
def test_what_stands_there_at_first_can_be_read(field: str) -> None:
    axis = AXES[field]
    values = values_of(field, axis.usual or ", ".join(MODELS), MODELS)
    assert len(values) >= 2
    assert field in Generation.model_fields
    assert all(axis.said(value).isascii() for value in values)
    assert len({axis.said(value) for value in values}) == len(values)


def test_cells_are_row_by_row() -> None:
    made = cells("steps", [2, 4], "seed", [1, 2, 3])
    assert [(cell.row, cell.column) for cell in made] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert made[3].changes == {"steps": 4, "seed": 2}
    assert made[3].said == "4 steps, seed 2"
    assert [cell.changes for cell in cells("eta", [0.0, 1.0], NOTHING, [None])] == [{"eta": 0.0}, {"eta": 1.0}]


def test_tables_that_are_none() -> None:
    with pytest.raises(ConfigError, match="both directions vary Steps"):
        cells("steps", [1], "steps", [2])
    with pytest.raises(ConfigError, match="both directions vary nothing"):
        cells(NOTHING, [None], NOTHING, [None])
    many = list(range(51))
    with pytest.raises(ConfigError, match=f"51 times 2 are 102 pictures, and {MOST} are the most: take some"):
        cells("steps", many, "seed", [1, 2])
    assert len(cells("seed", many[:50], "steps", [1, 2])) == MOST
