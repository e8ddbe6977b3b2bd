"""The search for timesteps: against all that there are, and better than even ones where a model is uneven."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddim.cli import main
from ddim.errors import ConfigError
from ddim.pipelines import DiffusionPipeline
from ddim.plan import SamplingPlan
from ddim.sampling import Denoiser, sample
from ddim.scheduler import DDIMInverseScheduler, DDIMScheduler
from ddim.search import evaluations, find_timesteps


def fine(steps: int, **config: object) -> SamplingPlan:
    return DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **config).plan(steps)  # type: ignore[arg-type]


def mixture(plan: SamplingPlan) -> Denoiser:
    """The best ε for numbers that are -1 or 1.5, give or take 0.2: almost all is decided at a few noise levels."""
    means, spread = torch.tensor([-1.0, 1.5], dtype=torch.float64), 0.2

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        ab = plan.alphas_cumprod[int(timestep)]
        variance = ab * spread**2 + 1 - ab
        away = x[..., None] - math.sqrt(ab) * means
        weight = (-(away**2) / (2 * variance)).softmax(-1)
        return math.sqrt(1 - ab) * (weight * away).sum(-1) / variance

    return denoise


def end_of(timesteps: tuple[int, ...], plan: SamplingPlan, noise: Tensor, order: int = 1) -> Tensor:
    short = DDIMScheduler(clip_sample=False).plan(timesteps=timesteps, order=order)
    return list(sample(mixture(plan), noise, short))[-1].sample


@pytest.mark.parametrize(("order", "share"), [(1, 10), (2, 4)])
def test_what_is_found_is_near_the_best_of_all_choices(order: int, share: int) -> None:
    plan, noise = fine(10), torch.randn(64, 1, dtype=torch.float64)
    goal = list(sample(mixture(plan), noise, plan))[-1].sample
    found = find_timesteps(mixture(plan), noise, plan, [4], order=order)[4]
    errors = {}
    for chosen in itertools.combinations(plan.timesteps, 4):
        errors[chosen] = float((end_of(chosen, plan, noise, order) - goal).square().mean())
    assert found in errors
    ranks = sorted(errors, key=lambda chosen: errors[chosen])
    assert ranks.index(found) < len(ranks) / share


@pytest.mark.parametrize("order", [1, 2])
def test_it_beats_even_timesteps_on_other_noise(order: int) -> None:
    plan, noise = fine(40), torch.randn(512, 1, dtype=torch.float64)
    found = find_timesteps(mixture(plan), noise, plan, [5, 8], order=order)
    other = torch.randn(256, 1, dtype=torch.float64)
    goal = list(sample(mixture(plan), other, plan))[-1].sample
    for number, timesteps in found.items():
        assert len(timesteps) == number
        errors = [
            float((end_of(each, plan, other, order) - goal).square().mean())
            for each in (timesteps, fine(number).timesteps)
        ]
        assert errors[0] < 0.7 * errors[1]


def test_all_of_them_are_the_fine_run_itself() -> None:
    plan, noise = fine(6), torch.randn(3, 1, dtype=torch.float64)
    assert find_timesteps(mixture(plan), noise, plan, [6])[6] == plan.timesteps


def test_v_prediction_at_zero_terminal_snr() -> None:
    plan = fine(8, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    found = find_timesteps(lambda x, t: torch.tanh(x), torch.randn(4, 1), plan, [1, 3])
    assert [len(found[number]) for number in (1, 3)] == [1, 3]


def test_the_number_of_evaluations_is_known_beforehand() -> None:
    calls = 0
    plan = fine(9)

    def counted(x: Tensor, timestep: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return mixture(plan)(x, timestep)

    noticed: list[int] = []
    find_timesteps(counted, torch.randn(2, 1), plan, [2, 4], notice=noticed.append)
    assert calls <= sum(noticed) == evaluations([2, 4], 9)
    assert min(noticed) >= 0


def test_what_it_is_not_for_is_refused() -> None:
    plan, noise = fine(5), torch.randn(2, 1)
    for broken, numbers in ((plan.with_eta(1.0), [2]), (plan, [0]), (plan, [6]), (plan, [])):
        with pytest.raises(ConfigError):
            find_timesteps(mixture(plan), noise, broken, numbers)
    with pytest.raises(ConfigError, match="clipping"):
        find_timesteps(mixture(plan), noise, DDIMScheduler().plan(5), [2])


# --- kept with the model, and used -----------------------------------------------------------------------------------


def test_the_spacing_optimized_takes_what_the_config_has() -> None:
    scheduler = DDIMScheduler(timestep_spacing="optimized", optimized_timesteps={"3": [999, 500, 20]})
    assert scheduler.plan(3).timesteps == (999, 500, 20)
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [999, 500, 20]
    assert DDIMInverseScheduler.from_config(scheduler.config).plan(3).timesteps == (20, 500, 999)
    with pytest.raises(ConfigError, match=r"there are some for 3.*ddim optimize"):
        scheduler.plan(4)
    with pytest.raises(ConfigError, match="none yet"):
        DDIMScheduler(timestep_spacing="optimized").plan(4)


@pytest.mark.parametrize("broken", [[999, 999], [1000, 3], [3, 999], ["a"], 5, None])
def test_timesteps_in_a_config_that_cannot_work_are_refused(broken: object) -> None:
    scheduler = DDIMScheduler(timestep_spacing="optimized", optimized_timesteps={"2": broken})  # type: ignore[dict-item]
    with pytest.raises(ConfigError):
        scheduler.plan(2)


def test_the_config_keeps_them_and_is_as_before_without(tmp_path: Path) -> None:
    DDIMScheduler(timestep_spacing="optimized", optimized_timesteps={"2": [999, 20]}).save_pretrained(tmp_path)
    assert DDIMScheduler.from_pretrained(tmp_path).plan(2).timesteps == (999, 20)
    assert "optimized_timesteps" not in json.loads(DDIMScheduler().to_json_string())


# The fast test beside it is test_the_command_says_what_it_needs.
@pytest.mark.slow
def test_the_command_puts_them_into_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    bundled = DiffusionPipeline.from_pretrained("digits")
    bundled.save_pretrained(folder)
    command = ["optimize", str(folder), "--reference", "12", "--samples", "4", "--device", "cpu"]
    assert main([*command, "--steps", "3"]) == 0
    assert main([*command, "--steps", "2", "4"]) == 0
    assert "optimized" in capsys.readouterr().out
    pipe = DiffusionPipeline.from_pretrained(folder)
    known, before = (each.scheduler.config.optimized_timesteps for each in (pipe, bundled))
    assert set(known) == {"2", "3", "4", *before}
    assert known["4"] != before["4"]
    assert known["8"] == before["8"]
    pipe.set_progress_bar_config(disable=True)
    assert main(["sample", "--model", str(folder), "--steps", "4", "--spacing", "optimized", "--class-labels", "3",
                 "--out", str(tmp_path / "3.png"), "--device", "cpu"]) == 0  # fmt: skip


@pytest.mark.parametrize("model", ["digits", "emoji"])
def test_the_bundled_models_have_some_that_their_scheduler_takes(model: str) -> None:
    scheduler = DiffusionPipeline.from_pretrained(model).scheduler
    spaced = scheduler.from_config(scheduler.config, timestep_spacing="optimized")
    for number, timesteps in scheduler.config.optimized_timesteps.items():
        assert spaced.plan(int(number), order=2).timesteps == tuple(timesteps)


def test_the_numbers_that_there_are_for_are_told_in_order() -> None:
    lists = {"10": list(range(10, 0, -1)), "2": [9, 1], "4": [9, 5, 3, 1]}
    with pytest.raises(ConfigError, match="for 2, 4, 10;"):
        DDIMScheduler(timestep_spacing="optimized", optimized_timesteps=lists).plan(3)


def test_the_command_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", "digits"]) == 1
    assert "--out" in capsys.readouterr().err
    assert main(["optimize", "emoji", "--out", "x"]) == 1
    assert "--prompts" in capsys.readouterr().err
    assert main(["optimize", "digits", "--out", "x", "--steps", "80"]) == 1
    assert "--reference" in capsys.readouterr().err
