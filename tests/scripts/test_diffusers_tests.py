"""scripts/diffusers_tests.py, on a checkout of three tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent.parent.parent
TESTS = """
import pytest
from diffusers import DDIMScheduler, DDPMScheduler

def is_ours(scheduler):
    return type(scheduler).__module__.startswith("ddim.")

def test_either():
    assert DDIMScheduler().config.beta_end == DDPMScheduler().config.beta_end

def test_theirs_alone():
    assert not is_ours(DDIMScheduler())

def test_theirs_alone_with_a_reason():
    assert not is_ours(DDIMScheduler())

def test_ours_alone():
    assert is_ours(DDIMScheduler())

def test_others_stay_theirs():
    import diffusers
    assert not is_ours(DDPMScheduler()) and not is_ours(diffusers.DDIMScheduler())

@pytest.mark.skip
def test_skipped():
    pass
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("diffusers_tests", HERE / "scripts" / "diffusers_tests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "KINDS", {"kind": module.Kind("a kind", ("DDIMScheduler",), ("test_file.py",))})
    monkeypatch.setattr(module, "NOT_MEANT", {"kind/.*with_a_reason": "it is so"})
    return module


@pytest.mark.slow
def test_each_test_is_counted_once(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_file.py").write_text(TESTS)
    out = tmp_path / "out"
    script.main([str(tmp_path), "--out", str(out)])
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    # test_either and test_others_stay_theirs; test_ours_alone; the two that fail with ours.
    assert "| `test_file` | 2 | 1 | 1 | 1 |" in table
    assert "- it is so: `test_theirs_alone_with_a_reason`" in table
    assert "`test_theirs_alone`" in table.partition("Wrong:")[2]
    monkeypatch.setattr(script.subprocess, "run", None)  # what was found is not looked for again
    script.main([str(tmp_path), "kind", "--out", str(out)])
    assert (out / "table.md").read_text() == table


def test_many_tests_of_a_class_are_one_entry(script: ModuleType) -> None:
    assert script.shortened(["A::x", "B::x", "A::y"]) == ["`A.x`", "`A.y`", "`B.x`"]
    assert script.shortened([f"A::{letter}" for letter in "wxyz"]) == ["`A` (4 tests)"]


@pytest.mark.slow
def test_what_cannot_be_run_is_said(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        script.main([str(tmp_path)])
    (tmp_path / "tests").mkdir()
    with pytest.raises(SystemExit, match=r"no test of test_file\.py was run"):
        script.main([str(tmp_path), "--out", str(tmp_path / "out")])
