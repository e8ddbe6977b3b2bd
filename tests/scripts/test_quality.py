"""benchmarks/quality.py: students beside the goal, on the digits, with few samples."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from program import SCRIPTS

from ddim import DDIMScheduler, DiffusionPipeline
from ddim.checkpoint.hub import BUNDLED
from ddim.plan import SamplingPlan

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")


@pytest.fixture
def quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS.parent / "benchmarks"))
    program = importlib.import_module("quality")
    monkeypatch.setattr(program, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(program, "STEPS", 5)  # of the goal
    reference = program.loop_of

    def loop_of(peer: str, model: DDIMScheduler) -> Any:
        """The 1,000 steps of the reference are 20 here."""
        loop = reference(peer, model)
        return lambda denoiser, x, plan, dice: loop(denoiser, x, plan if len(plan) < 1000 else model.plan(20), dice)

    monkeypatch.setattr(program, "loop_of", loop_of)
    return program


def run(quality: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["quality.py", *arguments])
    quality.main()


def made_for(folder: Path, steps: int) -> None:
    """Let a folder's scheduler say that its model was made for so many steps of first order."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    config |= {"recommended_steps": steps, "recommended_order": 1, "timestep_spacing": "trailing"}
    file.write_text(json.dumps(config))


def test_a_student_stands_beside_the_goal(
    quality: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student = tmp_path / "pupil"
    shutil.copytree(BUNDLED / "digits", student)
    made_for(student, 3)
    given = ("digits", "--student", str(student), "--samples", "8")
    run(quality, monkeypatch, *given)
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line.startswith("digits ")]
    assert [row[1:4] for row in rows] == [["diffusers", "DDIM", "5"], *(["student", "pupil", n] for n in "123")]
    for row in rows:
        distance, _, deviation, error, median, precision, recall = map(str, row[4:11])
        assert float(distance) > 0
        assert float(deviation) > 0
        assert 0 < float(median) <= float(error) * 1.2
        assert 0 <= float(precision) <= 1
        assert 0 <= float(recall) <= 1
    errors = [float(row[7]) for row in rows]
    assert errors[1] > errors[2] > errors[3] > errors[0]  # by the number of steps, as it has learnt nothing
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits-of-8"]
    # All of it is kept, and a student of the same name with other weights is another one.
    monkeypatch.setattr(quality, "draw_numbered", None)
    run(quality, monkeypatch, *given)
    assert capsys.readouterr().out == said.removeprefix("digits: the reference of 1,000 steps, some minutes\n")


def test_a_student_takes_steps_of_first_order_where_its_scheduler_says(quality: ModuleType) -> None:
    seen: list[SamplingPlan] = []

    def denoiser_for(plan: SamplingPlan) -> Any:
        seen.append(plan)
        return lambda x, timestep: torch.zeros_like(x)

    own = DDIMScheduler(
        timestep_spacing="leading", recommended_steps=4, recommended_order=2, recommended_spacing="trailing"
    )
    loop = quality.student_loop(own)
    for steps in (1, 2, 4):
        loop(denoiser_for, torch.randn(1, 3, 4, 4), own.plan(steps), None)
    assert [list(plan.timesteps) for plan in seen] == [[0], [500, 0], [999, 749, 499, 249]]
    assert {plan.order for plan in seen} == {1}


# The fast test beside it is test_a_student_stands_beside_the_goal.
@pytest.mark.slow
def test_a_student_is_not_guided(quality: ModuleType) -> None:
    model = quality.MODELS["emoji"]
    pipe = DiffusionPipeline.from_pretrained("emoji")
    condition = model.conditions(pipe, model.source(), (1.0, 0.0))
    asked = condition(0, range(2))
    assert (asked["guidance_scale"], asked["guidance_rescale"]) == (1.0, 0.0)
    assert asked["prompt"] == model.conditions(pipe, model.source())(0, range(2))["prompt"]


def test_a_bundled_student_that_is_not_there_is_left_out(
    quality: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "bundled_models", lambda: ["digits", "emoji"])
    assert quality.students_of("emoji", []) == []
    assert "emoji-fast is not bundled: its rows are left out" in capsys.readouterr().err
    monkeypatch.setattr(quality, "bundled_models", lambda: ["digits", "emoji", "emoji-fast"])
    assert quality.students_of("emoji", []) == ["emoji-fast"]
    assert quality.students_of("emoji", ["folder"]) == ["folder"]


def test_what_is_only_tried_is_kept_apart(quality: ModuleType, tmp_path: Path) -> None:
    model = quality.MODELS["emoji"]
    assert model.runs == model.goal_alone().runs == tmp_path / "runs" / "emoji"
    few = model.tried(8)
    assert (few.samples, few.compared, few.runs) == (8, 8, tmp_path / "runs" / "emoji-of-8")
    assert model.tried(500).compared == model.compared


def test_a_student_is_measured_with_what_it_was_made_for_and_fewer(quality: ModuleType) -> None:
    measured = {
        steps: quality.steps_of_student(DDIMScheduler(recommended_steps=steps, timestep_spacing="trailing"))
        for steps in (1, 2, 3, 4, 8)
    }
    assert measured == {1: (1,), 2: (1, 2), 3: (1, 2, 3), 4: (1, 2, 4), 8: (1, 2, 8)}


def test_figures_of_other_weights_are_not_gone_on_from(quality: ModuleType) -> None:
    model, pipe = quality.MODELS["digits"].tried(8), DiffusionPipeline.from_pretrained("digits")
    quality.check_weights(model, pipe)
    quality.check_weights(model, pipe)
    # Other searched timesteps and another recommendation are no other model …
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, optimized_timesteps=None, recommended_steps=7)
    quality.check_weights(model, pipe)
    # … but another noise schedule is, and so are other weights.
    same = pipe.scheduler
    pipe.scheduler = same.from_config(same.config, beta_end=0.03)
    with pytest.raises(SystemExit, match="digits-of-8 has what was measured of digits with other weights"):
        quality.check_weights(model, pipe)
    pipe.scheduler = same
    with torch.no_grad():
        pipe.unet.conv_in.bias += 1
    with pytest.raises(SystemExit, match="remove it, and start again"):
        quality.check_weights(model, pipe)
