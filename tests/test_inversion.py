"""Inversion against closed forms, and there and back by each method."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from ddim.data import digits
from ddim.errors import ConfigError, NonFiniteError
from ddim.inversion import METHODS, invert, invert_fixed_point, keeping, sample_bidirectional
from ddim.pipelines import DiffusionPipeline
from ddim.plan import SamplingPlan
from ddim.process import PREDICTIONS
from ddim.sampling import Denoiser, sample
from ddim.scheduler import DDIMInverseScheduler, DDIMScheduler

MEAN, DEVIATION = 0.4, 0.7


def make_plan(steps: int, prediction_type: str = "epsilon", **options: object) -> SamplingPlan:
    options = {"clip_sample": False, "timestep_spacing": "trailing", **options}
    return DDIMScheduler(prediction_type=prediction_type, **options).plan(steps)  # type: ignore[arg-type]


def gaussian(plan: SamplingPlan) -> Denoiser:
    """The best there is for x0 ~ N(MEAN, DEVIATION²), each number by itself."""
    kind = PREDICTIONS[plan.prediction_type]

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        ab = plan.alphas_cumprod[int(timestep)]
        variance = ab * DEVIATION**2 + 1 - ab
        x0 = MEAN + math.sqrt(ab) * DEVIATION**2 / variance * (x - math.sqrt(ab) * MEAN)
        eps = math.sqrt(1 - ab) / variance * (x - math.sqrt(ab) * MEAN)
        u, w = kind.target(ab)
        return u * x0 + w * eps

    return denoise


def curved(x: Tensor, timestep: Tensor) -> Tensor:
    """No line, and no two numbers alone."""
    return torch.tanh(0.8 * x + 0.3 * x.roll(1, -1)) + 0.1 * torch.sin(3 * x)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 4, 4, dtype=torch.float64).clamp(-2, 2)


def last(steps: object) -> Tensor:
    return list(steps)[-1].sample  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_plain_inversion_nears_the_exact_encoding_at_first_order(prediction_type: str) -> None:
    """Of a Gaussian, the ODE's solution is x_T = √ᾱ m + (x0 - m)·√(ᾱ s² + 1 - ᾱ)/s."""
    x0 = images()
    errors = []
    for steps in (50, 100, 200):
        plan = make_plan(steps, prediction_type, set_alpha_to_one=False)
        here, end = plan.alphas_cumprod[0], plan.alphas_cumprod[-1]
        spread = [math.sqrt(ab * DEVIATION**2 + 1 - ab) for ab in (here, end)]
        exact = math.sqrt(end) * MEAN + (x0 - math.sqrt(here) * MEAN) * spread[1] / spread[0]
        errors.append(float((last(invert(gaussian(plan), x0, plan)) - exact).abs().max()))
    assert errors[-1] < 0.1
    assert math.log2(errors[0] / errors[2]) / 2 > 0.8


def test_the_encoding_of_a_mixture_keeps_every_quantile() -> None:
    """On a line the ODE moves all of the distribution without crossing: x_T has the rank in p_T that x0 has in p_0."""
    means, share, spread = torch.tensor([-1.0, 1.5], dtype=torch.float64), torch.tensor([0.3, 0.7]), 0.25

    def rank(x: Tensor, ab: float) -> Tensor:
        normal = torch.distributions.Normal(math.sqrt(ab) * means, math.sqrt(ab * spread**2 + 1 - ab))
        return (share * normal.cdf(x[..., None])).sum(-1)

    plan = make_plan(1000)

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        ab = plan.alphas_cumprod[int(timestep)]
        variance = ab * spread**2 + 1 - ab
        away = x[..., None] - math.sqrt(ab) * means
        weight = (share.log() - away**2 / (2 * variance)).softmax(-1)
        return math.sqrt(1 - ab) * (weight * away).sum(-1) / variance

    x0 = torch.linspace(-1.5, 2.2, 38, dtype=torch.float64)[:, None]
    x_end = last(invert(denoise, x0, plan))
    assert (x_end.diff(dim=0) > 0).all()
    assert (rank(x_end, plan.alphas_cumprod[-1]) - rank(x0, 1.0)).abs().max() < 0.01
    again = last(sample(denoise, x_end, plan))
    likely = (x0 - means).abs().amin(-1) < 2.5 * spread  # between the two, where nothing is, a hair decides
    assert likely.sum() > 20
    assert (again - x0)[likely].abs().max() < 0.05


def test_plain_inversion_is_what_the_inverse_scheduler_does() -> None:
    plan = make_plan(10)
    scheduler = DDIMInverseScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x = x0 = images().float()
    for timestep in scheduler.timesteps:
        x = scheduler.step(curved(x, timestep), timestep, x).prev_sample  # type: ignore[union-attr]
    assert torch.equal(x, last(invert(curved, x0, plan)))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("denoiser", [curved, None], ids=["curved", "gaussian"])
def test_there_and_back(denoiser: Denoiser | None, prediction_type: str) -> None:
    plan, x0 = make_plan(50, prediction_type), images()
    denoise = denoiser or gaussian(plan)
    errors = {}
    for name, method in METHODS.items():
        encoded = method.encode(denoise, x0, plan)
        assert len(encoded) == method.states
        errors[name] = float((method.decode(denoise, encoded, plan) - x0).abs().max())
    assert errors["ddim"] > 1e-3
    assert errors["fixed-point"] < 1e-4
    assert errors["bidirectional"] < 1e-9


def test_the_fixed_point_is_where_the_sampler_comes_from() -> None:
    """Noise that is sampled and then inverted is found again, which the plain way only nears."""
    plan, noise = make_plan(20, "v_prediction"), images()
    x0 = last(sample(curved, noise, plan))
    assert (last(invert_fixed_point(curved, x0, plan, tolerance=1e-12)) - noise).abs().max() < 1e-6
    assert (last(invert(curved, x0, plan)) - noise).abs().max() > 1e-3


def test_zero_terminal_snr_is_no_obstacle() -> None:
    plan, x0 = make_plan(20, "v_prediction", rescale_betas_zero_snr=True), images()
    for name in ("fixed-point", "bidirectional"):
        encoded = METHODS[name].encode(curved, x0, plan)
        assert (METHODS[name].decode(curved, encoded, plan) - x0).abs().max() < 1e-4


def test_the_reversible_sampler_is_one_of_the_same_ode() -> None:
    """From noise it ends where DDIM does, the nearer the more steps, and nearer than DDIM itself."""
    noise = images()
    exact = last(sample(gaussian(make_plan(1000)), noise, make_plan(1000)))
    errors = [
        float((last(sample_bidirectional(gaussian(make_plan(n)), noise, make_plan(n), gamma=0.5)) - exact).abs().max())
        for n in (25, 100)
    ]
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.05


def test_each_sees_a_step_and_can_show_it() -> None:
    plan, seen = make_plan(5), []
    for method in METHODS.values():
        encoded = method.encode(curved, images(), plan, lambda step: seen.append((step.index, step.timestep)))
        method.decode(curved, encoded, plan, lambda step: seen.append((step.index, step.timestep)))
    up = list(enumerate(plan.timesteps[::-1]))
    assert seen == [*up, *enumerate(plan.timesteps)] * 3


def test_samples_of_one_type_through_a_network_of_another() -> None:
    def picky(x: Tensor, timestep: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return curved(x, timestep)

    plan, x0 = make_plan(10), images()
    encoded = METHODS["bidirectional"].encode(keeping(picky, torch.float32), x0, plan)
    assert encoded[0].dtype == torch.float64
    assert (METHODS["bidirectional"].decode(keeping(picky, torch.float32), encoded, plan) - x0).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["fixed-point", "bidirectional"])
def test_what_cannot_be_undone_is_refused(name: str) -> None:
    plan, x0 = make_plan(5), images()
    for broken, message in (
        (dataclasses.replace(plan, clip_range=1.0), "clip_sample=False"),
        (dataclasses.replace(plan, thresholding=(0.9, 1.0)), "thresholding=False"),
        (plan.with_eta(1.0), "eta must be 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            METHODS[name].encode(curved, x0, broken)


def test_settings_out_of_range_are_refused() -> None:
    plan, x0 = make_plan(5), images()
    for gamma in (0, -1, 1.5, math.nan):
        with pytest.raises(ConfigError, match="gamma"):
            last(sample_bidirectional(curved, x0, plan, gamma=gamma))
    with pytest.raises(ConfigError, match="two steps"):
        last(sample_bidirectional(curved, x0, make_plan(1)))
    with pytest.raises(ConfigError, match="set_alpha_to_one=False"):
        last(invert_fixed_point(curved, x0, make_plan(5, "sample", set_alpha_to_one=True)))


def test_an_iteration_that_runs_away_says_so() -> None:
    with pytest.raises(NonFiniteError, match="more steps"):
        last(invert_fixed_point(lambda x, t: 50 * x**3, images(), make_plan(3)))


def test_an_iteration_that_is_not_near_enough_says_so() -> None:
    with pytest.warns(UserWarning, match="3 of 3 steps .*bidirectional"):
        last(invert_fixed_point(curved, images(), make_plan(3), iterations=1))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["digits", "emoji"])
def test_shipped_models_get_real_pictures_back(model: str) -> None:
    """Within 1e-4 in model space at 50 steps, guidance 1, where the plain way is far off."""
    pipe = DiffusionPipeline.from_pretrained(model)
    if model == "digits":
        source = digits("held-out")
        x0 = torch.stack([source.load(i) for i in range(8)])
        conditions = {"class_labels": list(source.labels[:8])}  # type: ignore[index]
    else:
        x0 = pipe.encode(pipe("a red heart", num_inference_steps=5, seed=0).images)
        conditions = {"prompt": "a red heart"}  # type: ignore[dict-item]
    plan = dataclasses.replace(pipe.scheduler.plan(50), clip_range=None, thresholding=None)
    with torch.inference_mode():
        denoise = keeping(pipe.denoiser(plan, len(x0), **conditions), torch.float32)
        errors = {
            name: float((method.decode(denoise, method.encode(denoise, x0.double(), plan), plan) - x0).abs().max())
            for name, method in METHODS.items()
        }
    assert errors["ddim"] > 1e-2
    assert errors["fixed-point"] < 1e-4
    assert errors["bidirectional"] < 1e-4
