"""The paper's equations: predictions, variances, the step."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddim.errors import ConfigError
from ddim.process import PREDICTIONS, add_noise, ddim_step, prediction, sigma, sigma_hat

levels = st.floats(1e-6, 1 - 1e-6)


# --- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PREDICTIONS)
@given(ab=levels, x0=st.floats(-3, 3), eps=st.floats(-3, 3))
def test_prediction_round_trips_through_image_and_noise(kind: str, ab: float, x0: float, eps: float) -> None:
    entry = prediction(kind)
    (u, w), (p, q), (r, s) = entry.target(ab), entry.x0(ab), entry.eps(ab)
    x = add_noise(x0, eps, ab)
    out = u * x0 + w * eps
    assert p * x + q * out == pytest.approx(x0, abs=1e-8)
    assert r * x + s * out == pytest.approx(eps, abs=1e-8)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(PREDICTIONS, 2)))
def test_predictions_convert_into_each_other_and_back(first: str, second: str) -> None:
    ab = np.array([1e-4, 0.1, 0.5, 0.9, 0.9999])
    rng = np.random.default_rng(0)
    x, out = rng.standard_normal((2, 7, 5))

    def convert(value: Any, source: str, target: str) -> Any:
        (p, q), (r, s) = prediction(source).x0(ab), prediction(source).eps(ab)
        u, w = prediction(target).target(ab)
        return u * (p * x + q * value) + w * (r * x + s * value)

    there = convert(out, first, second)
    assert not np.allclose(there, out)
    np.testing.assert_allclose(convert(there, second, first), out, rtol=1e-6, atol=1e-9)


def test_each_prediction_is_what_its_name_says() -> None:
    ab, x0, eps = 0.3, 2.0, -1.0
    expected = {"epsilon": eps, "sample": x0, "v_prediction": math.sqrt(0.3) * eps - math.sqrt(0.7) * x0}
    assert set(expected) == set(PREDICTIONS)
    for kind, value in expected.items():
        u, w = prediction(kind).target(ab)
        assert u * x0 + w * eps == pytest.approx(value)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_coefficients_have_the_shape_of_alpha_bar(kind: str) -> None:
    for ab in (np.linspace(0.1, 0.9, 4), torch.linspace(0.1, 0.9, 4)):
        for pair in (prediction(kind).target(ab), prediction(kind).x0(ab), prediction(kind).eps(ab)):
            assert [value.shape for value in pair] == [ab.shape, ab.shape]


def test_each_prediction_has_a_target_even_where_there_is_no_signal_or_no_noise() -> None:
    """Training visits these timesteps, too."""
    expected = {"epsilon": ((0, 1), (0, 1)), "sample": ((1, 0), (1, 0)), "v_prediction": ((-1, 0), (0, 1))}
    for kind, at in expected.items():
        assert (prediction(kind).target(0.0), prediction(kind).target(1.0)) == at
    assert prediction("epsilon").eps(0.0) == prediction("epsilon").eps(1.0) == (0, 1)
    assert prediction("sample").x0(0.0) == prediction("sample").x0(1.0) == (0, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction("epsilon").x0 = prediction("sample").x0  # type: ignore[misc]


def test_a_v_prediction_says_all_even_where_there_is_no_signal() -> None:
    assert prediction("v_prediction").x0(0.0) == (0.0, -1.0)
    assert prediction("v_prediction").eps(0.0) == (1.0, 0.0)
    assert prediction("v_prediction").x0(1.0) == (1.0, 0.0)


@pytest.mark.parametrize("kind", ["noise", "", None, 3, ["epsilon"]])
def test_an_unknown_prediction_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="epsilon, sample, v_prediction"):
        prediction(kind)


def test_add_noise_keeps_unit_variance() -> None:
    x0, eps = torch.randn(2, 100_000, dtype=torch.float64)
    for ab in (0.0, 0.2, 0.7, 1.0):
        assert float(add_noise(x0, eps, ab).var()) == pytest.approx(1, abs=0.02)
    assert torch.equal(add_noise(x0, eps, 1.0), x0)
    assert torch.equal(add_noise(x0, eps, 0.0), eps)


# --- variances and the step ------------------------------------------------------------------------------------------

pairs = st.tuples(st.floats(1e-4, 0.999), st.floats(1e-4, 0.9999)).map(sorted).filter(lambda p: p[1] - p[0] > 1e-6)


@given(pair=pairs, x0=st.floats(-2, 2), eps=st.floats(-2, 2))
def test_eta_one_is_the_posterior_of_ddpm(pair: list[float], x0: float, eps: float) -> None:
    """q(x_{t-1} | x_t, x0) of Ho et al. 2020, equations 6 and 7, in its own variables α_t and β_t."""
    here, there = pair
    alpha = here / there
    beta = 1 - alpha
    x = math.sqrt(here) * x0 + math.sqrt(1 - here) * eps
    mean = (math.sqrt(there) * beta * x0 + math.sqrt(alpha) * (1 - there) * x) / (1 - here)
    variance = (1 - there) / (1 - here) * beta

    deviation = sigma(here, there)
    assert deviation**2 == pytest.approx(variance, rel=1e-9)
    direction = math.sqrt(max(1 - there - deviation**2, 0))
    assert ddim_step(x0, eps, there, direction=direction) == pytest.approx(mean, abs=1e-6)


@given(pair=pairs, eta=st.floats(0, 1))
def test_every_eta_keeps_the_marginal(pair: list[float], eta: float) -> None:
    """Lemma 1: if x_t has the forward marginal, so has x_{t-1}; mean √ᾱ_prev x0, variance 1-ᾱ_prev."""
    here, there = pair
    deviation = sigma(here, there, eta)
    direction = math.sqrt(max(1 - there - deviation**2, 0))
    assert ddim_step(1.0, 0.0, there, direction=direction) == pytest.approx(math.sqrt(there))
    assert ddim_step(0.0, 1.0, there, direction=direction) ** 2 + deviation**2 == pytest.approx(1 - there)


@given(pair=pairs, x0=st.floats(-2, 2), eps=st.floats(-2, 2), z=st.floats(-3, 3))
def test_the_literal_step_with_eta_one_draws_from_the_posterior_of_ddpm(
    pair: list[float], x0: float, eps: float, z: float
) -> None:
    """Equation 12 as it stands in the paper, its second root and its noise included."""
    here, there = pair
    alpha = here / there
    x = add_noise(x0, eps, here)
    mean = (math.sqrt(there) * (1 - alpha) * x0 + math.sqrt(alpha) * (1 - there) * x) / (1 - here)
    deviation = math.sqrt((1 - there) / (1 - here) * (1 - alpha))
    assert ddim_step(x0, eps, there, sigma(here, there, 1.0), z) == pytest.approx(mean + deviation * z, abs=1e-6)


@given(pair=pairs, eta=st.floats(0, 1))
def test_the_literal_step_keeps_the_marginal_with_every_eta(pair: list[float], eta: float) -> None:
    """Lemma 1 again: the shares of x0, eps and z are those of a sample at ᾱ_prev."""
    here, there = pair
    deviation = sigma(here, there, eta)
    of_x0, of_eps, of_z = (ddim_step(*unit, there, deviation, z) for *unit, z in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    assert of_x0 == pytest.approx(math.sqrt(there))
    assert of_z == deviation
    assert of_eps**2 + of_z**2 == pytest.approx(1 - there)


@given(here=levels, there=levels, x=st.floats(-3, 3), eps=st.floats(-2, 2))
def test_the_literal_step_without_noise_is_eulers_step_of_the_ode(
    here: float, there: float, x: float, eps: float
) -> None:
    """Equation 13, to any level, with less noise or with more; and back, if the noise is the same."""
    x0 = (x - math.sqrt(1 - here) * eps) / math.sqrt(here)
    found = ddim_step(x0, eps, there)
    spread = math.sqrt((1 - there) / there) - math.sqrt((1 - here) / here)
    assert found / math.sqrt(there) == pytest.approx(x / math.sqrt(here) + spread * eps, rel=1e-9, abs=1e-9)
    x0_there = (found - math.sqrt(1 - there) * eps) / math.sqrt(there)
    assert ddim_step(x0_there, eps, here) == pytest.approx(x, rel=1e-9, abs=1e-9)


def test_the_equations_take_numbers_arrays_and_tensors() -> None:
    x0, eps, z = np.random.default_rng(0).standard_normal((3, 5))
    here, there = np.linspace(0.1, 0.8, 5), np.linspace(0.2, 0.9, 5)
    noisy, stepped = add_noise(x0, eps, here), ddim_step(x0, eps, there, sigma(here, there, 0.7), z)
    tensors = [torch.from_numpy(each) for each in (x0, eps, z, here, there)]
    in_torch = ddim_step(tensors[0], tensors[1], tensors[4], sigma(tensors[3], tensors[4], 0.7), tensors[2])
    np.testing.assert_allclose(in_torch.numpy(), stepped, rtol=1e-14)
    np.testing.assert_allclose(add_noise(tensors[0], tensors[1], tensors[3]).numpy(), noisy, rtol=1e-14)
    for i in range(5):
        number = sigma(here[i], there[i], 0.7)
        assert ddim_step(x0[i], eps[i], there[i], number, z[i]) == pytest.approx(stepped[i], rel=1e-14)
        assert add_noise(x0[i], eps[i], here[i]) == pytest.approx(noisy[i], rel=1e-14)


@given(pair=pairs)
def test_sigma_is_linear_in_eta_and_below_sigma_hat(pair: list[float]) -> None:
    here, there = pair
    assert sigma(here, there, 0.0) == 0
    assert sigma(here, there, 0.5) == pytest.approx(sigma(here, there) / 2)
    assert sigma(here, there) <= sigma_hat(here, there)
    assert sigma_hat(here, there) ** 2 == pytest.approx(1 - here / there)


def test_sigma_hat_of_neighbours_is_the_root_of_beta() -> None:
    beta = 0.013
    assert sigma_hat(0.4 * (1 - beta), 0.4) == pytest.approx(math.sqrt(beta))
