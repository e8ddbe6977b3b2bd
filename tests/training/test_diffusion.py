"""Targets and weights of the training loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ddim import DDIMScheduler
from ddim.errors import ConfigError
from ddim.process import PREDICTIONS
from ddim.training.diffusion import DiffusionLoss, min_snr_weights, timestep_weights
from ddim.training.settings import PredictionType, TextToImageSettings

T = 1000


def levels(**config: object) -> np.ndarray:
    return np.array(DDIMScheduler(**config).plan(1, timesteps=None).alphas_cumprod)  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_weights_are_those_of_the_paper(gamma: float) -> None:
    alpha_bar = levels()
    snr = alpha_bar / (1 - alpha_bar)
    least = np.minimum(snr, gamma)
    np.testing.assert_allclose(min_snr_weights(alpha_bar, "epsilon", gamma), least / snr, rtol=1e-9)
    np.testing.assert_allclose(min_snr_weights(alpha_bar, "v_prediction", gamma), least / (snr + 1), rtol=1e-9)
    np.testing.assert_allclose(min_snr_weights(alpha_bar, "sample", gamma), least, rtol=1e-9)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_zero_snr_neither_divides_by_zero_nor_leaves_the_last_timestep_untrained(kind: str) -> None:
    weights = min_snr_weights(levels(rescale_betas_zero_snr=True, prediction_type="v_prediction"), kind, 5.0)
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    assert weights[-1] == 1


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_a_gamma_that_cannot_work_is_refused(gamma: float) -> None:
    with pytest.raises(ConfigError, match="snr_gamma"):
        min_snr_weights(levels(), "epsilon", gamma)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_a_perfect_model_has_no_loss_and_the_loss_is_what_the_scheduler_says(
    kind: str, snr_gamma: float | None
) -> None:
    scheduler = DDIMScheduler(prediction_type=kind, rescale_betas_zero_snr=kind != "epsilon")
    loss = DiffusionLoss(scheduler, snr_gamma)
    torch.manual_seed(0)
    x0, eps = torch.randn(2, 6, 3, 4, 4)
    timesteps = torch.tensor([0, 10, 400, 700, 990, 999])
    target = {"epsilon": eps, "sample": x0, "v_prediction": scheduler.get_velocity(x0, eps, timesteps)}[kind]
    seen: list[torch.Tensor] = []

    def perfect(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return target

    assert loss(perfect, x0, eps, timesteps).max() < 1e-10
    torch.testing.assert_close(seen[0], scheduler.add_noise(x0, eps, timesteps), rtol=1e-6, atol=1e-6)
    off = loss(lambda x, t: target + 0.5, x0, eps, timesteps)
    weights = 1.0 if snr_gamma is None else loss.weight[timesteps]
    torch.testing.assert_close(off, 0.25 * weights * torch.ones(6), rtol=1e-4, atol=1e-6)


def test_epsilon_with_zero_terminal_snr_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="v_prediction"):
        DiffusionLoss(DDIMScheduler(rescale_betas_zero_snr=True))


def test_a_model_that_predicts_its_variance_is_judged_by_its_mean() -> None:
    loss = DiffusionLoss(DDIMScheduler())
    x0, eps = torch.randn(2, 2, 3, 4, 4)
    noisy = loss(lambda x, t: torch.cat([eps, torch.full_like(eps, 7.0)], dim=1), x0, eps, torch.tensor([5, 6]))
    assert noisy.max() == 0


def test_input_perturbation_reaches_the_input_and_not_the_target() -> None:
    loss = DiffusionLoss(DDIMScheduler())
    x0, eps, more = torch.randn(3, 2, 3, 4, 4)
    t = torch.tensor([500, 600])
    inputs: list[torch.Tensor] = []

    def model(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        inputs.append(x)
        return eps

    assert loss(model, x0, eps, t, perturbation=more).max() == 0
    torch.testing.assert_close(inputs[0], DDIMScheduler().add_noise(x0, eps + more, t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_dream_trains_on_what_diffusers_trains_on(power: float) -> None:
    training_utils = pytest.importorskip("diffusers.training_utils")
    scheduler = DDIMScheduler()
    alpha_bar = torch.from_numpy(levels()).float()
    x0, eps = torch.randn(2, 8, 3, 4, 4).unbind()
    timesteps = torch.tensor([0, 1, 5, 50, 300, 700, 998, 999])
    inputs: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor, *_: Any) -> Any:
        inputs.append(x)
        return SimpleNamespace(sample=torch.tanh(x + t[:, None, None, None] / 1000))

    loss = DiffusionLoss(scheduler, dream=power)(lambda x, t: network(x, t).sample, x0, eps, timesteps)
    ours = inputs[-1]
    theirs = SimpleNamespace(alphas_cumprod=alpha_bar, config=SimpleNamespace(prediction_type="epsilon"))
    share = alpha_bar[timesteps, None, None, None]
    x_t = share.sqrt() * x0 + (1 - share).sqrt() * eps
    given, target = training_utils.compute_dream_and_update_latents(
        network, theirs, timesteps, eps, x_t, eps.clone(), None, power
    )
    torch.testing.assert_close(ours, given, rtol=1e-4, atol=1e-5)
    expected = (network(given, timesteps).sample - target).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_dream_leaves_a_perfect_network_as_it_is_and_moves_others_along_the_noise(kind: PredictionType) -> None:
    scheduler = DDIMScheduler(prediction_type=kind)
    x0, eps = torch.randn(2, 4, 3, 4, 4).unbind()
    timesteps = torch.tensor([3, 200, 600, 999])
    loss = DiffusionLoss(scheduler, dream=1.0)
    at = (-1, 1, 1, 1)
    target = loss.from_x0[timesteps].view(at) * x0 + loss.from_eps[timesteps].view(at) * eps
    assert loss(lambda x, t: target, x0, eps, timesteps).max() < 1e-6
    inputs: list[torch.Tensor] = []

    def wrong(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        inputs.append(x)
        return target + 0.1

    loss(wrong, x0, eps, timesteps)
    noises = [(x - loss.signal[timesteps].view(at) * x0) / loss.noise[timesteps].view(at) for x in inputs]
    error = eps - (loss.eps_of_x[timesteps].view(at) * inputs[0] + loss.eps_of_out[timesteps].view(at) * (target + 0.1))
    expected = eps + loss.noise[timesteps].view(at) * error
    torch.testing.assert_close(noises[1], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "often"),
    [
        ({"timestep_bias_strategy": "earlier", "timestep_bias_portion": 0.3}, range(3)),
        ({"timestep_bias_strategy": "later"}, range(8, 10)),
        ({"timestep_bias_strategy": "range", "timestep_bias_begin": 2, "timestep_bias_end": 5}, range(2, 5)),
    ],
)
def test_some_timesteps_are_drawn_more_often(given: dict[str, Any], often: range) -> None:
    settings = TextToImageSettings("x", train_data_dir="x", timestep_bias_multiplier=3.0, **given)
    weights = timestep_weights(settings, 10)
    assert weights is not None
    assert weights.tolist() == [3.0 if timestep in often else 1.0 for timestep in range(10)]
    assert timestep_weights(TextToImageSettings("x", train_data_dir="x"), 10) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"timestep_bias_multiplier": 2.0}, "timestep_bias_multiplier needs a timestep_bias_strategy"),
        (
            {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 0.0},
            "timestep_bias_multiplier must be positive",
        ),
        ({"timestep_bias_begin": 7, "timestep_bias_end": 7}, "timestep_bias_begin=7 must be"),
        ({"timestep_bias_portion": 1.5}, "timestep_bias_portion must be in"),
    ],
)
def test_a_bias_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextToImageSettings("x", train_data_dir="x", **given)


def test_a_range_beyond_the_timesteps_is_refused() -> None:
    given: dict[str, Any] = {"timestep_bias_strategy": "range", "timestep_bias_multiplier": 2.0}
    with pytest.raises(ConfigError, match="timestep_bias_end=1000 is more than the 10 timesteps"):
        timestep_weights(TextToImageSettings("x", train_data_dir="x", **given), 10)
