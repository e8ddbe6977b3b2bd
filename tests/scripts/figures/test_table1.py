"""The script of Table 1: what it concludes from figures, and a small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from program import script

table1 = script("figures/table1")


def published(error: float = 0.01) -> dict[tuple[Any, int], dict[str, Any]]:
    """The paper's own table, as if it had been measured here, at a tenth of a second a step and one to begin with."""
    return {
        (eta, steps): {
            "frechet": distance,
            "frechet_error": error,
            "timesteps": steps,
            "seconds": 1 + 0.1 * steps,
            "cpu_seconds": 2 + 0.2 * steps,
        }
        for eta, row in table1.PAPER.items()
        for steps, distance in zip(table1.STEPS, row, strict=True)
    }


def test_the_paper_s_claims_hold_in_the_paper_s_table() -> None:
    said = table1.claims(published(), table1.STEPS)
    assert len(said) == 4
    assert all("**holds**" in line for line in said)


def test_claims_that_do_not_hold_are_told_with_figures() -> None:
    table = published()
    table[0.5, 20]["frechet"] = 6.0  # better than η = 0
    table["sigma_hat", 1000]["frechet"] = 5.0
    first, second, third, fourth = table1.claims(table, table1.STEPS)
    assert "does not hold" in first
    assert "at S = 20, η = 0.5 is better, 6 to 6.84" in first
    assert "**holds**" in second
    assert "**holds**" in third
    assert "η = 0 (DDIM) has 4.04, σ̂ 5" in fourth
    assert all("**holds**" in line for line in table1.claims(published(error=1000.0), table1.STEPS))  # who knows then?


def test_time_is_fitted_and_steps_for_a_distance_are_found() -> None:
    table = published()
    start, slope, off = table1.linear_fit([table[0.0, steps] for steps in table1.STEPS], "cpu_seconds")
    assert (start, slope, off) == pytest.approx((2, 0.2, 0), abs=1e-9)
    assert table1.steps_for(table, table1.STEPS, 6.84) == pytest.approx(20)
    assert table1.steps_for(table, table1.STEPS, 100) == 10
    assert table1.steps_for(table, table1.STEPS, 1) is None
    assert 20 < table1.steps_for(table, table1.STEPS, 5.0) < 50
    ddpm, larger = table1.speed_up(table, table1.STEPS, "seconds")
    assert "S = 1000 has 4.73 ± 0.01 in 101 s. DDIM is as near at S ≈ 48 in 5.8 s, **17x faster**" in ddpm
    assert "at no S measured" in larger


@pytest.mark.slow
def test_a_small_run_of_table_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = table1.settings_for(True, tmp_path / "run", (0,), 20)
    monkeypatch.setattr(
        table1, "settings_for", lambda *_: type(small)(**{**vars(small), "samples": 20, "steps": (2, 3)})
    )
    monkeypatch.setattr(table1, "STEPS", (2, 3, 50, 100, 1000))
    page = tmp_path / "page.md"
    table1.main(["--quick", "--out", str(tmp_path / "run"), "--write", str(page)])
    text = page.read_text(encoding="utf-8")
    assert "| η = 0 (DDIM) |" in text
    assert "13.36" in text
    assert "**The two cannot be compared in size**" in text
    assert "FID of CIFAR-10" in text
    assert page.with_suffix(".png").stat().st_size > 5000
    assert page.with_suffix(".svg").exists()
