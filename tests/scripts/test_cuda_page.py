"""benchmarks/cuda_page.py: the tables of a page are those of the file."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
ROW: dict[str, Any] = {"section": "step", "what": "batch 1", "peer": "diffusers", "seconds": 2e-4, "beside": 1.0}
FOUND: dict[str, Any] = {
    "device": "a card", "python": "3.12", "cuda": "13.0", "torch": "2.11", "diffusers": "0.42", "ddim": "0.1",
    "rows": [
        ROW,
        {**ROW, "peer": "ddim", "seconds": 5e-5, "beside": 4.0},
        {**ROW, "section": "training", "what": "batch 8", "seconds": 0.25, "per_second": 32.0},
    ],
}  # fmt: skip


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("cuda_page")


def test_a_page_shows_what_was_measured(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, page = tmp_path / "cuda.json", tmp_path / "cuda.md"
    found.write_text(json.dumps(FOUND), encoding="utf-8")
    page.write_text(f"before\n{program.MARKS[0]}\nold\n{program.MARKS[1]}\nafter\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["cuda_page.py", "--json", str(found), "--page", str(page)])
    program.main()
    lines = page.read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert "| batch 1 | diffusers | 200 µs | **1.00x** |  |" in lines
    assert "|  | ddim | 50 µs | **4.00x** |  |" in lines
    assert "| batch 8 | diffusers | 250 ms | **1.00x** | 32 |" in lines
    assert "a card; Python 3.12, CUDA 13.0, torch 2.11, diffusers 0.42, ddim 0.1." in lines
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="no place for the tables"):
        program.main()


def test_the_page_of_the_documentation_is_of_its_file(program: ModuleType) -> None:
    text = program.tables(json.loads((ROOT / "docs" / "cuda.json").read_text(encoding="utf-8")))
    assert text in (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
