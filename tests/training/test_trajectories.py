"""A teacher's trajectories, and what a student has to predict to follow them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddim.errors import ConfigError, NonFiniteError
from ddim.plan import SamplingPlan
from ddim.sampling import Denoiser, sample
from ddim.scheduler import DDIMScheduler
from ddim.training.trajectories import Trajectories, landmarks, run, targets

MEAN, DEVIATION = 0.7, 0.4  # of the Gaussian that is drawn


def scheduler(prediction_type: str = "v_prediction", **changes: Any) -> DDIMScheduler:
    given: dict[str, Any] = {
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": prediction_type != "epsilon",
        "clip_sample": False,
    }
    return DDIMScheduler(**{**given, **changes})


def gaussian(plan: SamplingPlan) -> Denoiser:
    """The best prediction of v for N(MEAN, DEVIATION²): the mean of x0 given x_t, and what follows from it."""

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        row = plan.row(int(timestep))
        level = row.alpha_bar
        variance = level * DEVIATION**2 + 1 - level
        x0 = MEAN + math.sqrt(level) * DEVIATION**2 / variance * (x - math.sqrt(level) * MEAN)
        return (x0 - row.p * x) / row.q

    return denoise


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "epsilon"])
@pytest.mark.parametrize(("steps", "times"), [(1, 2), (4, 2), (8, 2), (4, 5), (3, 1)])
def test_a_step_of_a_perfect_student_is_as_many_of_the_teachers(kind: str, steps: int, times: int) -> None:
    made = scheduler(kind)
    student, teacher = made.plan(steps), made.plan(steps * times)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states = run(gaussian(teacher), x, student, teacher)
    wanted = targets(states, student)
    assert states.shape == (3, steps + 1, 2, 4, 4)
    assert wanted.shape == (3, steps, 2, 4, 4)
    for index, row in enumerate(student):
        prev = student.step(wanted[:, index].double(), row.timestep, states[:, index]).prev_sample
        scale = 1 + abs(row.b)
        assert (prev - states[:, index + 1]).abs().max() < 1e-6 * scale * wanted.abs().max()
    whole = list(sample(gaussian(teacher), x, teacher))
    assert torch.equal(states[:, -1], whole[-1].sample)
    assert torch.equal(states[:, 1], whole[times - 1].sample)


def test_a_student_of_one_step_learns_the_exact_map_of_a_gaussian(tmp_path: Path) -> None:
    """From pure noise the ODE's map to N(m, s²) is x0 = m + s·x: what a linear student of one step comes to."""
    made = scheduler()
    student, teacher = made.plan(1), made.plan(250, order=2)
    data = Trajectories(tmp_path, 256, 64, student, teacher, "a Gaussian", seed=0)
    data.fill(lambda numbers: gaussian(teacher), (1, 2, 2), torch.device("cpu"), torch.float32)
    network = nn.Linear(1, 1)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=50, line_search_fn="strong_wolfe")
    items = [data[position] for position in range(len(data))]
    x, wanted = (torch.stack([item[name] for item in items])[..., None] for name in ("sample", "target"))

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = (network(x) - wanted).square().mean()
        error.backward()
        return error

    optimizer.step(loss)  # type: ignore[arg-type]
    row = student[0]
    noise = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    drawn = row.a * noise + row.b * network(noise[:, None])[:, 0].detach()
    assert (drawn - (MEAN + DEVIATION * noise)).abs().max() < 0.01 * DEVIATION


def test_the_teacher_must_pass_through_the_students_timesteps() -> None:
    made = scheduler()
    assert landmarks(made.plan(4), made.plan(8)) == [2, 4, 6, 8]
    with pytest.raises(ConfigError, match="multiple"):
        landmarks(made.plan(4), made.plan(6))
    with pytest.raises(ConfigError, match="multiple"):
        landmarks(scheduler(timestep_spacing="leading").plan(4), made.plan(8))


def filled(folder: Path, asked: list[int], what: str = "a Gaussian", stop_after: int | None = None) -> Trajectories:
    made = scheduler()
    student, teacher = made.plan(2), made.plan(4)

    def teach(numbers: Any) -> Denoiser:
        if stop_after is not None and len(asked) == stop_after:
            raise KeyboardInterrupt
        asked.append(numbers[0])
        return gaussian(teacher)

    data = Trajectories(folder, 10, 4, student, teacher, what, seed=1)
    data.fill(teach, (1, 2, 2), torch.device("cpu"), torch.float32)
    return data


def test_what_was_run_is_kept_and_gone_on_from(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole", [])
    asked: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path / "parts", asked, stop_after=2)
    again = filled(tmp_path / "parts", asked)
    assert asked == [0, 4, 8]
    assert len(again) == 24
    for position in (0, 5, 23, 24, 100):
        mine, theirs = again[position], whole[position]
        assert (mine["step"], mine["number"]) == (theirs["step"], theirs["number"])
        assert torch.equal(mine["sample"], theirs["sample"])
        assert torch.equal(mine["target"], theirs["target"])
    filled(tmp_path / "parts", asked, what="another one")
    assert asked == [0, 4, 8, 0, 4, 8]


def test_each_step_of_each_trajectory_comes_once_an_epoch(tmp_path: Path) -> None:
    data = filled(tmp_path, [])
    first, second = ([(data[p]["number"], data[p]["step"]) for p in range(start, start + 24)] for start in (0, 24))
    assert sorted(first) == sorted(second) == [(number, step) for number in range(12) for step in range(2)]
    assert first != second


def test_what_is_no_number_is_not_kept(tmp_path: Path) -> None:
    made = scheduler()
    data = Trajectories(tmp_path, 4, 4, made.plan(2), made.plan(4), "", seed=0)
    with pytest.raises(NonFiniteError, match="float16"):
        data.fill(lambda _: lambda x, t: 1e30 * x, (1, 2, 2), torch.device("cpu"), torch.float32)
    assert data.missing() == [0]
