"""The script of the paper's Table 2: a small run of both models, and the page that is made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from program import script

CASES = {
    "digits": [(3, "ddim", 1.0), (50, "ddim", 1.0), (50, "bidirectional", 1.0)],
    "emoji": [(3, "ddim", 1.0), (3, "ddim", 3.0), (3, "bidirectional", 1.0)],
}


@pytest.mark.slow
def test_a_small_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reconstruction = script("figures/reconstruction")
    monkeypatch.setattr(reconstruction, "cases", lambda model, quick: CASES[model])
    for name in ("digit_pictures", "emoji_pictures"):
        whole = getattr(reconstruction, name)
        monkeypatch.setattr(reconstruction, name, lambda count, whole=whole: whole(2))
    reconstruction.main(["--quick"])
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert figures["digits_count"] == figures["emoji_count"] == 2
    for model, cases in CASES.items():
        rows = figures[model]
        assert [(row["steps"], row["method"], row["guidance"]) for row in rows] == cases
        assert all(row["mse"] < 1e-20 for row in rows if row["method"] == "bidirectional")
        assert all(row["mse"] > 1e-6 for row in rows if row["method"] == "ddim")
    few, many, exact = figures["digits"]
    assert many["mse"] < few["mse"]
    page = reconstruction.as_page(figures)
    assert f"| digits |  |  | {many['mse']:.2g} |" in page
    assert f"| digits | bidirectional | 1 | 99 | {exact['mse']:.2g} |" in page
