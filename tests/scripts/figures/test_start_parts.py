"""scripts/figures/start_parts.py: the parts of `ddim sample`, and where the table goes."""

from __future__ import annotations

import pytest
from program import script

program = script("figures/start_parts")
FOUND = {
    model: {part: 10.0 * number + more for number, part in enumerate(program.PARTS)}
    for model, more in (("emoji-fast", 0), ("emoji", 5))
}


def test_the_table_goes_between_its_marks() -> None:
    text = program.table(FOUND, 3)
    assert "| importing PyTorch | 20 |" in text
    assert "| loading `emoji-fast` | 40 |\n| loading `emoji` instead | 45 |" in text
    page = program.PAGE.read_text(encoding="utf-8")
    written = program.with_table(page, text)
    assert written != page
    assert text in written
    assert program.with_table(written, text) == written


def test_the_page_has_a_row_for_each_part() -> None:
    page = program.PAGE.read_text(encoding="utf-8")
    for said in program.PARTS.values():
        assert f"| {said.format(model='emoji-fast')} |" in page


@pytest.mark.slow
def test_every_part_is_timed() -> None:
    found = program.measure("emoji-fast", 1)
    assert set(found) == set(program.PARTS)
    assert min(found.values()) >= 0
    assert found["torch"] > found["written"]
