"""Each equation once: what spells equation 4 or 12 again, to be faster or more exact, gives what `process` gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracle import distance
from torch import Tensor

from ddim import DDIMScheduler, SamplingPlan
from ddim.errors import ConfigError
from ddim.process import PREDICTIONS, SIGMA_HAT, Eta, add_noise, ddim_step, prediction, sigma, sigma_hat
from ddim.training.diffusion import DiffusionLoss

KINDS = list(PREDICTIONS)
# For ε, zero SNR is of use only where no listed step is at pure noise, as with "leading" timesteps.
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "not to one": {"set_alpha_to_one": False, "timestep_spacing": "linspace"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "steps_offset": 1},
    "zero SNR": {"rescale_betas_zero_snr": True, "set_alpha_to_one": False},
}


def doubles(count: int, *shape: int) -> list[Tensor]:
    return list(torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def make_scheduler(kind: str, schedule: str, **changed: Any) -> DDIMScheduler:
    settings = dict(SCHEDULES[schedule])
    if "zero" in schedule and kind != "epsilon":
        settings["timestep_spacing"] = "trailing"
    return DDIMScheduler(prediction_type=kind, **settings, **changed)


def levels_of(scheduler: DDIMScheduler) -> tuple[float, ...]:
    return scheduler.plan(timesteps=[0]).alphas_cumprod


# --- equation 4 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedulers_forward_process_is_equation_4(schedule: str) -> None:
    """At every timestep; of one for each sample, as tables on the device give it."""
    scheduler = make_scheduler("v_prediction", schedule)
    levels = torch.tensor(levels_of(scheduler), dtype=torch.float64)[:, None]
    x0, eps = doubles(2, 1000, 3)
    every = torch.arange(1000)
    torch.testing.assert_close(scheduler.add_noise(x0, eps, every), add_noise(x0, eps, levels), rtol=1e-14, atol=1e-15)
    u, w = prediction("v_prediction").target(levels)
    torch.testing.assert_close(scheduler.get_velocity(x0, eps, every), u * x0 + w * eps, rtol=1e-14, atol=1e-15)
    for t in (0, 1, 500, 998, 999):
        exact = add_noise(x0, eps, float(levels[t]))
        assert distance(scheduler.add_noise(x0, eps, t), exact) < 1e-15
        assert distance(scheduler.add_noise(x0.float(), eps.float(), t), exact) < 1e-7


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [(kind, schedule) for kind in KINDS for schedule in SCHEDULES if (kind, schedule) != ("epsilon", "zero SNR")],
)
def test_the_training_losss_input_and_target_are_equation_4_and_the_predictions(kind: str, schedule: str) -> None:
    scheduler = make_scheduler(kind, schedule)
    levels = torch.tensor(levels_of(scheduler), dtype=torch.float64)[:, None]
    x0, eps = doubles(2, 1000, 3)
    u, w = prediction(kind).target(levels)
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    loss = DiffusionLoss(scheduler)(network, x0, eps, torch.arange(1000))
    torch.testing.assert_close(seen[0], add_noise(x0, eps, levels), rtol=2e-7, atol=2e-7)
    torch.testing.assert_close(loss, (u * x0 + w * eps).square().mean(1), rtol=1e-6, atol=1e-7, check_dtype=False)


def test_equation_4_of_a_float32_level_would_be_less_exact() -> None:
    """The reason for the tables of roots: 1-ᾱ of a rounded ᾱ has lost half of its digits at the first timesteps."""
    scheduler = DDIMScheduler()
    exact = (1 - levels_of(scheduler)[0]) ** 0.5
    rounded = float(add_noise(0.0, 1.0, torch.tensor(levels_of(scheduler)[0], dtype=torch.float32)))
    table = float(scheduler.add_noise(torch.zeros(1), torch.ones(1), 0))
    column = float(DiffusionLoss(scheduler).noise[0])
    assert abs(rounded / exact - 1) > 1e-5
    assert abs(table / exact - 1) < 1e-7
    assert abs(column / exact - 1) < 1e-7


# --- equation 12 -----------------------------------------------------------------------------------------------------


def literal(plan: SamplingPlan, t: int, x: Tensor, out: Tensor, z: Tensor, rederive: bool) -> tuple[Tensor, Tensor]:
    """x_prev and x0 of a step that is made of `process` alone, on tensors and in the paper's order."""
    row = plan.row(t)
    here, there = row.alpha_bar, row.alpha_bar_prev
    (p, q), (r, s) = prediction(plan.prediction_type).x0(here), prediction(plan.prediction_type).eps(here)
    x0, eps = p * x + q * out, r * x + s * out
    if plan.clip_range is not None:
        x0 = x0.clamp(-plan.clip_range, plan.clip_range)
    if rederive:  # equation 4, solved for eps
        eps = (x - add_noise(x0, 0.0, here)) / add_noise(0.0, 1.0, here)
    if plan.eta == 0 or here == there:
        return ddim_step(x0, eps, there), x0
    # the radicand can be negative by rounding alone, where it is 0: η = 1 from pure noise
    one = sigma(here, there, 1.0 if plan.eta == SIGMA_HAT else plan.eta)
    noise = sigma_hat(here, there) if plan.eta == SIGMA_HAT else one
    if plan.eta == SIGMA_HAT or 1 - there - one**2 < 0:
        return ddim_step(x0, eps, there, noise, z, direction=max(1 - there - one**2, 0.0) ** 0.5), x0
    return ddim_step(x0, eps, there, noise, z), x0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("eta", "inverse"), [(0.0, False), (0.3, False), (1.0, False), (SIGMA_HAT, False), (0.0, True)]
)
def test_a_step_is_equation_12(kind: str, schedule: str, clip: bool, eta: Eta, inverse: bool) -> None:
    plan = make_scheduler(kind, schedule, clip_sample=clip, clip_sample_range=0.8).plan(10, eta=eta)
    if inverse and kind == "sample" and plan.final_alpha_cumprod == 1:
        with pytest.raises(ConfigError, match="no noise to predict"):
            plan.inverted()
        return
    plan = plan.inverted() if inverse else plan
    x, out, z = doubles(3, 2, 3, 4, 4)
    compared = 0
    for row in plan:
        for rederive in (False, True) if clip and row.noise_rate > 0 else (False,):
            prev, x0 = literal(plan, row.timestep, x, out, z, rederive)
            found = plan.step(out, row.timestep, x, variance_noise=z, use_clipped_model_output=rederive)
            # a root of a difference of nearly equal numbers has half of their digits; the plan's has all of them
            close = 1e-7 if eta in (1.0, SIGMA_HAT) else 1e-11
            assert distance(found.prev_sample, prev) < close, row
            assert distance(found.pred_original_sample, x0) < 1e-11, row
            compared += 1
    assert compared >= 10


@pytest.mark.parametrize("count", [2, 50])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_plans_second_root_is_that_of_the_posterior(schedule: str, count: int) -> None:
    """At η = 1, in extended precision and as a product, which subtracts nothing that is nearly equal."""
    compared = [
        (row, np.sqrt((1 - there) ** 2 * here / ((1 - here) * there)))
        for row in make_scheduler("v_prediction", schedule).plan(count, eta=1.0)
        for here, there in [(np.longdouble(row.alpha_bar), np.longdouble(row.alpha_bar_prev))]
        if 0 < here < there < 1
    ]
    assert compared
    for row, exact in compared:
        assert row.direction == pytest.approx(float(exact), rel=1e-14)


def test_the_literal_second_root_would_be_less_exact_from_almost_pure_noise() -> None:
    """The reason for the product: here 1-ᾱ_prev and σ² are equal in their first eight digits."""
    row = DDIMScheduler(beta_schedule="squaredcos_cap_v2").plan(timesteps=[999, 500], eta=1.0)[0]
    here, there = np.longdouble(row.alpha_bar), np.longdouble(row.alpha_bar_prev)
    exact = float(np.sqrt((1 - there) ** 2 * here / ((1 - here) * there)))
    assert abs(ddim_step(0.0, 1.0, row.alpha_bar_prev, row.sigma) / exact - 1) > 1e-10
    assert abs(row.direction / exact - 1) < 1e-14
