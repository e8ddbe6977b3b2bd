"""Editing: a picture's noise gives it back under its own condition, and its like under another."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import Tensor

from ddim.editing import decode_cycle, edit, encode_cycle
from ddim.errors import ConfigError
from ddim.inversion import METHODS
from ddim.noise import seeded_generators
from ddim.plan import SamplingPlan
from ddim.sampling import Denoiser
from ddim.scheduler import DDIMScheduler


def make_plan(steps: int = 20, eta: float | str = 1.0, **options: object) -> SamplingPlan:
    options = {"clip_sample": False, "timestep_spacing": "trailing", **options}
    return DDIMScheduler(**options).plan(steps, eta=eta)  # type: ignore[arg-type]


def towards(mean: float, plan: SamplingPlan) -> Denoiser:
    """The best there is for pictures of numbers around `mean`, with deviation 0.5."""

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        ab = plan.alphas_cumprod[int(timestep)]
        return (1 - ab) ** 0.5 / (ab * 0.25 + 1 - ab) * (x - ab**0.5 * mean)

    return denoise


def pictures() -> Tensor:
    return 0.5 * torch.randn(3, 1, 4, 4, dtype=torch.float64) - 1


@pytest.mark.parametrize("eta", [0.3, 1.0, "sigma_hat"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("to_one", [True, False])
def test_the_same_condition_gives_the_picture_back(eta: float | str, strength: float, to_one: bool) -> None:
    plan, x0 = make_plan(eta=eta, set_alpha_to_one=to_one).shortened(strength), pictures()
    cycle = encode_cycle(towards(-1, plan), x0, plan)
    *_, end = decode_cycle(towards(-1, plan), cycle, plan)
    assert (end.sample - x0).abs().max() < 1e-10


def test_clipping_is_no_obstacle() -> None:
    plan, x0 = dataclasses.replace(make_plan(), clip_range=0.5), pictures()
    *_, end = decode_cycle(towards(-1, plan), encode_cycle(towards(-1, plan), x0, plan), plan)
    assert (end.sample - x0).abs().max() < 1e-10


def test_noise_of_the_right_condition_has_the_spread_that_theory_says() -> None:
    """1 for the noise itself, and what the picture is still uncertain by at x_t, as the step passes it on."""
    plan = make_plan(50)
    x0 = 0.5 * torch.randn(4000, 1, 1, 2, dtype=torch.float64) - 1
    cycle = encode_cycle(towards(-1, plan), x0, plan)
    assert abs(float(cycle.x.std()) - 1) < 0.03
    assert plan.rows[-1].sigma == 0
    assert cycle.noises[-1] is None
    for row, noise in zip(plan.rows[:-1], cycle.noises[:-1], strict=True):
        assert noise is not None
        uncertain = 0.25 * row.noise_rate**2 / (0.25 * row.signal_rate**2 + row.noise_rate**2)
        passed_on = (row.signal_rate_prev - row.direction * row.signal_rate / row.noise_rate) ** 2 * uncertain
        assert float(noise.mean().abs()) < 0.06
        assert float(noise.var()) == pytest.approx(1 + passed_on / row.sigma**2, rel=0.08)


def test_another_condition_moves_the_picture_and_keeps_what_it_can() -> None:
    """Of two Gaussians that differ in their means, the edit of a picture is the picture, moved by the difference."""
    plan, x0 = make_plan(200), pictures()
    cycle = encode_cycle(towards(-1, plan), x0, plan)
    *_, end = decode_cycle(towards(+1, plan), cycle, plan)
    assert (end.sample - (x0 + 2)).abs().max() < 0.05
    few = plan.shortened(0.2)
    *_, little = decode_cycle(towards(+1, few), encode_cycle(towards(-1, few), x0, few), few)
    assert 0.5 < (little.sample - x0).mean() < 1.7


def test_one_seed_one_path() -> None:
    plan, x0 = make_plan(5), pictures()
    whole = encode_cycle(towards(-1, plan), x0, plan, seeded_generators(3, 3))
    alone = encode_cycle(towards(-1, plan), x0[:1], plan, seeded_generators(3, 1))
    assert torch.equal(whole.x[:1], alone.x)
    assert torch.allclose(whole.noises[0][:1], alone.noises[0])  # type: ignore[index,arg-type]


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 49, 50, 100])
def test_a_strength_leaves_the_steps_that_it_leaves_in_diffusers(steps: int) -> None:
    """For 100 steps 0.29 leaves 28, as their product is just below 29; for 10 steps 0.75 leaves 7."""
    plan = make_plan(steps)
    reference = SimpleNamespace(scheduler=diffusers.DDIMScheduler(timestep_spacing="trailing"))
    reference.scheduler.set_timesteps(steps)
    for strength in (0.02, 0.1, 0.29, 0.3, 0.5, 0.57, 0.7, 0.75, 0.99, 1.0, 1):
        theirs, count = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps(reference, steps, strength, "cpu")
        if count:
            assert plan.shortened(strength).timesteps == tuple(theirs.tolist())
        else:
            with pytest.raises(ConfigError, match=f"leaves none of {steps} steps"):
                plan.shortened(strength)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 49, 98, 100, 103, 999, 1000])
def test_the_smallest_strength_that_an_error_names_leaves_a_step(steps: int) -> None:
    """For 49 steps that is not 1/49, of which 49 are just below 1."""
    plan = make_plan(steps)
    with pytest.raises(ConfigError, match=r"give \S+ or more") as caught:
        plan.shortened(0)
    smallest = float(re.findall(r"give (\S+) or more", str(caught.value))[0])
    assert len(plan.shortened(smallest)) == 1
    with pytest.raises(ConfigError, match="leaves none"):
        plan.shortened(smallest - 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_inversion_edits_too(method: str) -> None:
    plan, x0, seen = make_plan(200, eta=0.0), pictures(), []
    moved = edit(towards(-1, plan), towards(+1, plan), x0, plan, method, seen.append)
    assert (moved - (x0 + 2)).abs().max() < 0.1
    assert len(seen) == 400


def test_what_cannot_work_is_refused() -> None:
    plan, x0 = make_plan(), pictures()
    with pytest.raises(ConfigError, match=r"eta in \(0, 1\]"):
        encode_cycle(towards(0, plan), x0, plan.with_eta(0))
    with pytest.raises(ConfigError, match="none of ddim, fixed-point"):
        edit(towards(0, plan), towards(0, plan), x0, plan.with_eta(0), "magic")
    for strength in (0, -1, 1.1, float("nan"), "half", True):
        with pytest.raises(ConfigError, match="strength"):
            plan.shortened(strength)
    cycle = encode_cycle(towards(0, plan), x0, plan)
    with pytest.raises(ValueError, match="20 steps, the plan has 10"):
        next(decode_cycle(towards(0, plan), cycle, make_plan(10)))
