"""Noise schedules and timestep spacings."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler as Reference
from oracle import Settings, alpha_bars, timesteps

from ddim import DDIMScheduler
from ddim.errors import ConfigError
from ddim.schedule import (
    BETA_SCHEDULES,
    SPACINGS,
    make_alphas_cumprod,
    make_betas,
    snr,
    space_timesteps,
    zero_terminal_snr,
)

LATENT = {"beta_start": 0.00085, "beta_end": 0.012}


# --- betas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 10, 1000, 4000])
@pytest.mark.parametrize("ends", [{}, LATENT], ids=["pixels", "latents"])
def test_alphas_cumprod_are_those_of_extended_precision(schedule: str, steps: int, ends: dict[str, float]) -> None:
    betas = make_betas(steps, beta_schedule=schedule, **ends)
    exact = np.array(alpha_bars(Settings(num_train_timesteps=steps, beta_schedule=schedule, **ends)))
    assert betas.shape == (steps,)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(make_alphas_cumprod(betas), exact.astype(np.float64), rtol=2e-12)


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_betas_are_diffusers(schedule: str) -> None:
    theirs = Reference(beta_schedule=schedule, **LATENT)
    np.testing.assert_allclose(make_betas(1000, beta_schedule=schedule, **LATENT), theirs.betas.numpy(), rtol=2e-4)


def test_linear_betas_run_from_start_to_end() -> None:
    betas = make_betas(5, 0.1, 0.5)
    np.testing.assert_allclose(betas, [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-15)


def test_scaled_linear_betas_are_linear_in_their_root() -> None:
    betas = make_betas(4, 0.01, 0.16, "scaled_linear")
    np.testing.assert_allclose(betas, [0.01, 0.04, 0.09, 0.16], rtol=1e-14)


def test_cosine_alphas_follow_the_cosine_until_the_cap() -> None:
    betas = make_betas(1000, beta_schedule="squaredcos_cap_v2")
    level = np.cos((np.arange(1, 1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    first = np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(make_alphas_cumprod(betas)[:-1], level[:-1] / first, rtol=1e-9)
    assert betas[-1] == 0.999
    assert betas[-2] < 0.999


def test_trained_betas_are_taken_as_they_are() -> None:
    given = [0.5, 0.25, 0.125]
    assert make_betas(3, trained_betas=given).tolist() == given
    assert make_betas(3, trained_betas=np.array(given, np.float32)).tolist() == given
    assert make_betas(2, trained_betas=[0, 1]).tolist() == [0.0, 1.0]  # both ends of the range are in it
    assert make_betas(3, 0, 1).tolist() == [0.0, 0.5, 1.0]
    assert make_betas(2, 1, 0).tolist() == [1.0, 0.0]
    np.testing.assert_allclose(make_alphas_cumprod(make_betas(3, trained_betas=given)), [0.5, 0.375, 0.328125])


# --- zero terminal SNR -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("steps", [2, 10, 1000, 4000])
def test_zero_terminal_snr(schedule: str, steps: int) -> None:
    before = make_alphas_cumprod(make_betas(steps, beta_schedule=schedule))
    after = zero_terminal_snr(before)
    assert after[-1] == 0.0  # exactly: no signal is left
    np.testing.assert_allclose(after[0], before[0], rtol=1e-14)
    assert (np.diff(after) < 0).all()
    # √ᾱ is an affine function of what it was
    old, new = np.sqrt(before), np.sqrt(after)
    np.testing.assert_allclose(np.diff(new) * old[0], np.diff(old) * old[0] ** 2 / (old[0] - old[-1]), rtol=1e-6)
    np.testing.assert_array_equal(make_alphas_cumprod(make_betas(steps, beta_schedule=schedule), True), after)
    exact = np.array(
        alpha_bars(Settings(num_train_timesteps=steps, beta_schedule=schedule, rescale_betas_zero_snr=True))
    )
    np.testing.assert_allclose(after, exact.astype(np.float64), rtol=1e-9)


def test_zero_terminal_snr_is_diffusers() -> None:
    theirs = Reference(rescale_betas_zero_snr=True).alphas_cumprod.double().numpy()
    ours = make_alphas_cumprod(make_betas(1000), rescale_betas_zero_snr=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-9)


def test_snr() -> None:
    np.testing.assert_allclose(snr(np.array([0.9, 0.5, 0.2])), [9.0, 1.0, 0.25])
    assert snr(np.array([0.0]))[0] == 0.0
    assert snr(np.array([1.0]))[0] == np.inf
    # x_t = √ᾱ x0 + √(1-ᾱ) ε has this ratio of variances
    ab = make_alphas_cumprod(make_betas(1000))[300]
    signal, noise = np.sqrt(ab) * np.ones(2), np.sqrt(1 - ab) * np.array([1.0, -1.0])
    assert snr(np.array([ab]))[0] == pytest.approx((signal**2).mean() / noise.var())


# --- spacings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [10, 1000, 4000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.thin(together=1)
def test_every_count_gives_that_many_falling_timesteps_in_range(spacing: str, steps: int) -> None:
    settings = Settings(num_train_timesteps=steps, timestep_spacing=spacing)
    for count in range(1, steps + 1):
        chosen = space_timesteps(count, steps, spacing)
        assert len(chosen) == count
        assert chosen[-1] >= 0
        assert chosen[0] < steps
        assert (np.diff(chosen) < 0).all()
        assert list(chosen) == timesteps(settings, count)
    assert set(map(type, chosen)) == {int}


@pytest.mark.parametrize("steps", [10, 1000, 4000])
def test_quadratic_spacing_drops_repeats_and_says_so(steps: int) -> None:
    warned = 0
    for count in range(1, steps + 1):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chosen = space_timesteps(count, steps, "quadratic")
        exact = (np.linspace(0, np.sqrt(0.8 * steps), count) ** 2).astype(int)  # as the paper's authors do
        assert list(chosen) == sorted(set(exact.tolist()), reverse=True)
        assert chosen[-1] == 0
        assert chosen[0] <= 0.8 * steps
        assert (len(caught) == 1) == (len(chosen) < count)
        assert all("repeated" in str(w.message) for w in caught)
        warned += len(caught)
    assert 0 < warned < steps


def test_the_warning_points_at_whoever_asked_for_a_plan() -> None:
    with pytest.warns(UserWarning, match="only 7 different timesteps") as caught:
        DDIMScheduler(10, timestep_spacing="quadratic").plan(10)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
def test_spacings_are_diffusers_where_diffusers_is_right(spacing: str, offset: int) -> None:
    theirs = Reference(timestep_spacing=spacing, steps_offset=offset)
    wrong = []
    for count in range(1, 1001):
        theirs.set_timesteps(count)
        ours = space_timesteps(count, 1000, spacing, offset)
        if theirs.timesteps.tolist() != list(ours):
            wrong.append(count)
            # the only excuses: one timestep too many, or one past the end of the schedule
            assert len(theirs.timesteps) == count + 1 or theirs.timesteps.max() > 999
    if spacing == "leading":
        assert wrong == ([1000] if offset else [])
    elif spacing == "linspace":
        assert wrong == []
    else:
        assert len(wrong) == 62
        assert {61, 103, 121, 122, 201} <= set(wrong)


@pytest.mark.parametrize(
    ("count", "steps", "offset", "first"),
    [(10, 1000, 1, 901), (1000, 1000, 1, 999), (10, 1000, 99, 999), (10, 1000, 100, 999), (1, 10, 10**6, 9)],
)
def test_an_offset_is_reduced_where_it_would_leave_the_range(count: int, steps: int, offset: int, first: int) -> None:
    chosen = space_timesteps(count, steps, "leading", offset)
    assert chosen[0] == first
    assert len(chosen) == count
    assert chosen[-1] == first - (count - 1) * (steps // count)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_an_offset_is_for_leading_alone(spacing: str) -> None:
    assert space_timesteps(7, 1000, spacing, 5) == space_timesteps(7, 1000, spacing, 0)


def test_the_ends_of_each_spacing() -> None:
    assert set(SPACINGS) == {"leading", "trailing", "linspace", "quadratic"}
    assert space_timesteps(10, 1000, "trailing")[0] == 999
    assert space_timesteps(10, 1000, "linspace")[::9] == (999, 0)
    assert space_timesteps(10, 1000, "leading")[::9] == (900, 0)
    assert space_timesteps(10, 1000, "quadratic")[::9] == (800, 0)
    assert space_timesteps(np.int64(3), 1000) == space_timesteps(3, 1000)  # type: ignore[arg-type]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": -1}, "num_train_timesteps"),
        ({"num_train_timesteps": 10.0}, "num_train_timesteps"),
        ({"num_train_timesteps": True}, "num_train_timesteps"),
        ({"num_train_timesteps": None}, "num_train_timesteps"),
        ({"beta_schedule": "cosine"}, "linear, scaled_linear, squaredcos_cap_v2"),
        ({"beta_schedule": ["linear"]}, "beta_schedule"),
        ({"beta_schedule": {}}, "beta_schedule"),
        ({"beta_start": float("nan")}, "beta_start"),
        ({"beta_start": -0.1}, "beta_start"),
        ({"beta_end": 1.5}, "beta_end"),
        ({"beta_end": "0.02"}, "beta_end"),
        ({"beta_end": None}, "beta_end"),
        ({"trained_betas": [0.1, 0.2]}, "num_train_timesteps=2"),
        ({"trained_betas": [0.1] * 11}, "num_train_timesteps=11"),
        ({"trained_betas": [[0.1] * 10]}, "trained_betas"),
        ({"trained_betas": 0.1}, "trained_betas"),
        ({"trained_betas": ["x"] * 10}, "trained_betas"),
        ({"trained_betas": [[1], [1, 2]]}, "trained_betas"),
        ({"trained_betas": [0.1] * 9 + [float("nan")]}, r"beta\[9\]"),
        ({"trained_betas": [0.1] * 4 + [1.1] + [0.1] * 5}, r"beta\[4\]"),
        ({"trained_betas": [-0.1] + [0.1] * 9}, r"beta\[0\]"),
    ],
)
def test_bad_betas_are_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_betas(**{"num_train_timesteps": 10, **changed})


def test_zero_terminal_snr_needs_two_levels() -> None:
    with pytest.raises(ConfigError, match="rescale_betas_zero_snr"):
        zero_terminal_snr(np.array([0.5]))
    with pytest.raises(ConfigError, match="rescale_betas_zero_snr"):
        zero_terminal_snr(np.array([0.5, 0.5]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 10), "num_inference_steps=0"),
        ((11, 10), "num_train_timesteps=10"),
        ((-1, 10), "num_inference_steps"),
        ((5.0, 10), "must be an int"),
        (("5", 10), "must be an int"),
        ((True, 10), "must be an int"),
        ((np.bool_(True), 10), "must be an int"),
        ((None, 10), "must be an int"),
        ((torch.tensor(5), 10), "must be an int"),
        ((5, 10, "karras"), "leading, trailing, linspace, quadratic"),
        ((5, 10, None), "timestep_spacing"),
        ((5, 10, {}), "timestep_spacing"),
        ((5, 10, "leading", -1), "steps_offset"),
        ((5, 10, "leading", 1.0), "steps_offset"),
        ((5, 10, "leading", True), "steps_offset"),
        ((5, 10, "leading", None), "steps_offset"),
    ],
)
def test_bad_spacings_are_refused(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        space_timesteps(*arguments)
