"""benchmarks/equal_quality.py: the rows of students, on the digits, with few samples and told times."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from program import SCRIPTS

from ddim import DiffusionPipeline
from ddim.checkpoint.hub import BUNDLED

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS.parent / "benchmarks"))
    return importlib.import_module("equal_quality")


@pytest.fixture
def student(tmp_path: Path) -> str:
    """The digits model as if it had been distilled: made for two steps."""
    folder = tmp_path / "pupil"
    shutil.copytree(BUNDLED / "digits", folder)
    file = folder / "scheduler" / "scheduler_config.json"
    made_for = {"recommended_steps": 2, "recommended_order": 1, "timestep_spacing": "trailing"}
    file.write_text(json.dumps(json.loads(file.read_text()) | made_for))
    return str(folder)


def test_a_row_says_how_much_faster_and_by_what(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    goal, solver = (program.Point(peer, steps, (1.0, 2.0), 0, 0) for peer, steps in ((program.GOAL, 50), ("d DPM", 4)))
    near, far = (
        program.Point("student emoji-fast", steps, at, 0, 0) for steps, at in ((4, (1.0, 1.9)), (2, (1.2, 2.4)))
    )
    ways = [("default", goal, ""), ("compiled", goal, ""), ("default", solver, "distance")]
    ways += [("compiled", solver, "distance"), ("emoji-fast", near, "distance"), ("emoji-fast", far, "distance")]
    told = dict(zip(ways, (1_000_000.0, 500_000.0, 80_000.0, 60_000.0, 20_000.0, 10_000.0), strict=True))
    drawn: list[tuple[int, int]] = []

    def measure(runs: Mapping[Any, Callable[[], object]], rounds: int, budget: float) -> Mapping[Any, float]:
        for run in runs.values():
            run()
        return told

    monkeypatch.setattr(program, "measure", measure)
    draw = lambda count, point: drawn.append((count, point.steps))  # noqa: E731
    draws = dict.fromkeys(("default", "compiled", "emoji-fast"), draw)
    rows = program.time_ways(program.MODELS["emoji"], ways, draws, (16,), 5)
    assert drawn == [(16, 50), (16, 50), (16, 4), (16, 4), (16, 4), (16, 2)]
    assert rows == [
        "| emoji | 16 | diffusers, default | DDIM | 50 |  | 1000.0 | **1.0x** |",
        "| emoji | 16 | diffusers, compiled | DDIM | 50 |  | 500.0 | **2.0x** |",
        "| emoji | 16 | diffusers, default | DPM | 4 | distance | 80.0 | **12.5x**, 0.8x |",
        "| emoji | 16 | diffusers, compiled | DPM | 4 | distance | 60.0 | **16.7x**, 1.0x |",
        "| emoji | 16 | emoji-fast | its own | 4 | distance | 20.0 | **50.0x**, 3.0x |",
        "| emoji | 16 | emoji-fast | its own | 2 | distance, +20% | 10.0 | **100.0x**, 6.0x |",
    ]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' solver
@pytest.mark.slow
def test_the_section_of_students(
    program: ModuleType, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quality = importlib.import_module("quality")
    digits = quality.MODELS["digits"].tried(8)
    few = {program.GOAL: (5,), program.SOLVER: (3,), program.OURS: (4,)}
    few_digits = program.replace(digits, peers=few, nearer={program.GOAL: (40,)})
    timed: list[Any] = []

    def measure(runs: Mapping[Any, Callable[[], Any]], rounds: int, budget: float) -> Mapping[Any, float]:
        timed.extend((way[0], way[1].steps, run().shape) for way, run in runs.items())
        return dict.fromkeys(runs, 1000.0)

    for module in (program, quality):
        monkeypatch.setattr(module, "STEPS", 5)
    monkeypatch.setattr(quality, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(quality, "reference", None)  # it takes no part in this
    monkeypatch.setattr(program, "MODELS", {"digits": few_digits})
    monkeypatch.setattr(program, "students_of", lambda name, told: [student])
    monkeypatch.setattr(program, "measure", measure)
    monkeypatch.setattr(DiffusionPipeline, "accelerate", lambda pipe, *_: pipe)
    theirs = program.their_digits
    monkeypatch.setattr(program, "their_digits", lambda dtype, is_compiled: theirs(dtype, False))
    text = program.students_section(7)

    assert "`python benchmarks/run.py students --rounds 7`" in text
    first, second = (table.splitlines() for table in text.split("|---|---|---|---|---|---|---")[1:])
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in first if row.startswith("| digits")]
    assert [cell[:4] for cell in cells] == [
        ["digits", program.GOAL, "5", "5"],
        ["digits", program.SOLVER, "3", "3"],
        ["digits", "student pupil", "1", "1"],
        ["digits", "student pupil", "2", "2"],
    ]
    assert all(float(cell[4].strip("*").split(" ± ")[0]) > 0 for cell in cells)
    assert all(0 <= float(share) <= 1 for cell in cells for share in cell[5:])
    rows = [row for row in second if row.startswith("| digits")]
    assert len(rows) == len(timed)
    own = [(steps, shape) for name, steps, shape in timed if name == student]
    assert own == [(1, (1, 8, 8, 1)), (2, (1, 8, 8, 1)), (1, (64, 8, 8, 1)), (2, (64, 8, 8, 1))]
    assert {steps for name, steps, _ in timed if name != student} <= {5, 3}


def test_a_students_evaluations_are_half_of_a_guided_models(program: ModuleType) -> None:
    emoji, goal = program.MODELS["emoji"], program.Point(program.GOAL, 50, (1.0, 1.1, 1.2), 0, 0, 0.5, 0.25)
    assert (
        program.student_row(emoji, goal, goal)
        == f"| emoji | {program.GOAL} | 50 | 100 | **1.100 ± 0.100** | 0.500 | 0.250 |"
    )
    student = program.Point("student emoji-fast", 4, (1.5, 1.6, 1.7), 0, 0, 0.5, 0.25)
    assert (
        program.student_row(emoji, student, goal)
        == "| emoji | student emoji-fast | 4 | 4 | 1.600 ± 0.100 | 0.500 | 0.250 |"
    )
    digits = program.MODELS["digits"]
    assert program.student_row(digits, goal, goal).split("|")[4].strip() == "50"
