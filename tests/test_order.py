"""Steps of second order: the formula by quadrature, the order by convergence, and where they do not apply."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ddim import DDIMScheduler, DiffusionPipeline, SamplingPlan, sample
from ddim.errors import ConfigError
from ddim.process import DAMPING, PREDICTIONS, second_order

STEPS = 1280  # angles from the image to the noise


def make_plan(count: int, order: int, prediction_type: str = "v_prediction", end: float = 0.02) -> SamplingPlan:
    """Timesteps at even angles, from pure noise to the angle `end`."""
    angles = np.linspace(end, math.pi / 2, STEPS + 1)
    levels = np.cos(angles) ** 2
    levels[-1] = 0.0 if prediction_type != "epsilon" else 1e-6
    chosen = tuple(range(STEPS - 1, -1, -(STEPS // count)))
    return SamplingPlan(
        chosen, tuple(levels[1:].tolist()), float(levels[0]), prediction_type=prediction_type, order=order
    )


def mixture(plan: SamplingPlan) -> object:
    """The best there is for three Gaussians in the plane."""
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.8], [0.2, -1.2]], dtype=torch.float64)
    kind = PREDICTIONS[plan.prediction_type]

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        ab = plan.alphas_cumprod[int(timestep)]
        variance = 0.09 * ab + 1 - ab
        away = x[:, None] - math.sqrt(ab) * means  # (b 3 2)
        weight = (-away.square().sum(-1) / (2 * variance)).softmax(-1)[..., None]
        x0 = (weight * (means + math.sqrt(ab) * 0.09 / variance * away)).sum(1)
        eps = (x - math.sqrt(ab) * x0) / math.sqrt(1 - ab)
        u, w = kind.target(ab)
        return u * x0 + w * eps

    return denoise


def draw(plan: SamplingPlan) -> Tensor:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return list(sample(mixture(plan), x, plan))[-1].sample  # type: ignore[arg-type]


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_order_is_two(prediction_type: str) -> None:
    exact = draw(make_plan(STEPS, 2, prediction_type))
    slopes = {}
    for order in (1, 2):
        errors = [(draw(make_plan(n, order, prediction_type)) - exact).square().mean().sqrt() for n in (40, 80, 160)]
        slopes[order] = math.log2(errors[0] / errors[2]) / 2
    assert 0.8 < slopes[1] < 1.4
    assert 1.7 < slopes[2] < 2.5


def test_few_steps_come_nearer() -> None:
    exact = draw(make_plan(STEPS, 2, end=0.0))
    for count in (10, 16, 20):
        first, second = ((draw(make_plan(count, order, end=0.0)) - exact).square().mean().sqrt() for order in (1, 2))
        assert second < 0.6 * first


@pytest.mark.parametrize(
    ("before", "here", "there"), [(1.5, 1.3, 1.1), (math.pi / 2, 1.2, 1.0), (0.6, 0.4, 0.0), (0.2, 0.15, 0.01)]
)
def test_the_formula_is_the_integral(before: float, here: float, there: float) -> None:
    """σ' times the integral over cot φ of a line that is -1 at φ_before, 0 at φ, and goes on to φ'."""
    angles = np.linspace(here, max(there, 1e-6), 200_001)
    middle = (angles[1:] + angles[:-1]) / 2
    integral = ((middle - here) / (here - before) * np.diff(1 / np.tan(angles))).sum() * math.sin(angles[-1])
    found = second_order(*(math.cos(angle) ** 2 for angle in (before, here, there)))
    assert found * (1 + DAMPING * (here - there)) == pytest.approx(integral, rel=2e-3)
    assert found > 0


def test_equal_levels_add_nothing() -> None:
    assert second_order(0.5, 0.5, 0.7) == 0
    assert second_order(0.5, 1.0, 1.0) == 0


def test_a_plan_of_second_order() -> None:
    plan = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing").plan(
        10, order=2
    )
    assert "second order" in repr(plan)
    assert plan.carried[0] == 0
    assert all(0 < share < 5 for share in plan.carried[1:])
    assert SamplingPlan.from_dict(plan.to_dict()) == plan
    assert plan.inverted().order == 1
    assert dataclasses.replace(plan, order=1).carried == (0.0,) * 10
    x = torch.randn(2, 3)
    for dtype in (torch.float32, torch.bfloat16):
        *_, last = sample(lambda x, t: 0.5 * x, x.to(dtype), plan)
        assert last.sample.dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.5}, "eta=0"),
        ({"order": 3}, "order must be 1 or 2"),
        ({"order": True}, "order must be 1 or 2"),
    ],
)
def test_what_cannot_be_of_second_order(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DDIMScheduler().plan(10, **{"order": 2, **options})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="legacy_previous_timestep"):
        DDIMScheduler(legacy_previous_timestep=True).plan(10, order=2)


@pytest.mark.slow
def test_pictures_of_the_bundled_model_come_nearer() -> None:
    """To those of many steps, from the same noise, under guidance and its rescale."""
    pipe = DiffusionPipeline.from_pretrained("emoji")
    pipe.set_progress_bar_config(disable=True)

    def latents(steps: int, order: int) -> Tensor:
        how = {"guidance_scale": 3.0, "guidance_rescale": 0.7, "seed": 0, "output_type": "latent"}
        found: Tensor = pipe(["a fox", "a house"], num_inference_steps=steps, order=order, **how).images
        return found

    exact = latents(50, 1)
    first, second = ((latents(10, order) - exact).square().mean().sqrt() for order in (1, 2))
    assert second < 0.8 * first
    with pytest.raises(ConfigError, match="eta=0"):
        pipe("a fox", eta=1.0, order=2)
