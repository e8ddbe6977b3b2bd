"""benchmarks/training_memory.py: the page has the table that its arithmetic makes."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("training_memory")


def test_the_table_goes_between_its_marks(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(program.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(program, "PAGE", page)
    monkeypatch.setattr(program, "arithmetic", lambda: "| a table |")
    monkeypatch.setattr("sys.argv", ["training_memory.py", "arithmetic", "--write"])
    program.main()
    assert capsys.readouterr().out == "| a table |\n"
    assert "\n".join([program.MARKS[0], "| a table |", program.MARKS[1]]) in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_has_what_is_computed(program: ModuleType) -> None:
    between = "\n".join([program.MARKS[0], program.arithmetic(), program.MARKS[1]])
    assert between in program.PAGE.read_text(encoding="utf-8")
