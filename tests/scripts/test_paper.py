"""`make paper QUICK=1`: every command that docs/paper.md names, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent.parent.parent


def test_all_that_the_paper_claims_is_shown_quickly(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "scripts" / "paper.py"), "--quick", "--quick-out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "table1" / "results.json").read_text(encoding="utf-8"))
    assert {(row["eta"], row["steps"]) for row in results["summary"]} == {
        (eta, steps) for eta in (0.0, 0.2, 0.5, 1.0, "sigma_hat") for steps in (10, 20, 50)
    }
    assert "diffusers" in (tmp_path / "agreement.md").read_text(encoding="utf-8")
    figures = json.loads((tmp_path / "consistency.json").read_text(encoding="utf-8"))["figures"]
    assert all(row["cosine"] > row["other_cosine"] for row in figures)
    for name in ("interpolation-digits", "interpolation-emoji", "interpolation-emoji-seeds", "trajectory", "editing"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size > (64, 64)
    assert not list((HERE / "docs").glob("*.tmp"))


def test_a_part_that_is_not_there_is_named() -> None:
    command = [sys.executable, str(HERE / "scripts" / "paper.py"), "table9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "table9" in done.stderr
    assert "table1" in done.stderr
