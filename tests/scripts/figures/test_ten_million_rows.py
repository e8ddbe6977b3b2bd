"""scripts/figures/ten_million_rows.py: the page has the table that it makes."""

from __future__ import annotations

from program import script


def test_the_page_has_the_table_that_is_simulated() -> None:
    program = script("figures/ten_million_rows")
    page = program.PAGE.read_text(encoding="utf-8")
    table = program.table(program.parser().parse_args([]))
    assert program.with_table(page, table) == page
    assert program.with_table(page.replace("| 250 |", "| 251 |"), table) == page


def test_small_pieces_wait_less_and_every_death_costs_what_was_in_hand() -> None:
    program = script("figures/ten_million_rows")
    options = program.parser().parse_args(
        ["--rows", "4000", "--restart", "1", "--workers", "10", "--days", "0.001", "--in-hand", "5"]
    )
    (small, idle, twice), (large, waits, _) = (program.simulate(options, piece) for piece in (10, 400))
    assert small < large
    assert idle < waits
    assert twice > 0
    assert twice % 5 == 0
