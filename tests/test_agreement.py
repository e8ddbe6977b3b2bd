"""One step, over the whole grid of settings, against the float64 oracle and against diffusers.

Three claims: our result is the oracle's; it is never further from it than diffusers' is; and it is diffusers' wherever
diffusers is right, or, with `legacy_previous_timestep`, wrong about nothing but where the step leads.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracle import Long, Settings, distance, level_at, step, timesteps
from torch import Tensor

from ddim import DDIMScheduler
from ddim.errors import ConfigError
from ddim.plan import SamplingPlan

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-4, torch.bfloat16: 3e-3}
CLIPS: dict[str, dict[str, Any]] = {
    "clip": {"clip_sample": True},
    "wide clip": {"clip_sample": True, "clip_sample_range": 3.0},
    "threshold": {"clip_sample": False, "thresholding": True, "sample_max_value": 1.5},
    "both": {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 100.0},
    "neither": {"clip_sample": False},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


@lru_cache(maxsize=512)
def our_plan(chosen: Settings, count: int, eta: float, legacy: bool) -> SamplingPlan:
    return DDIMScheduler(**chosen.as_config(), legacy_previous_timestep=legacy).plan(count, eta=eta)


@lru_cache(maxsize=512)
def reference(chosen: Settings) -> Any:
    return diffusers.DDIMScheduler(**chosen.as_config())


def inputs(chosen: Settings, level: Long, dtype: torch.dtype, wrong: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(sample, model output, noise): a noisy image, and a network that is wrong by a share of pure noise."""
    generator = torch.Generator().manual_seed(seed)
    image, eps, error, noise = torch.randn(4, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    signal, deviation = float(level) ** 0.5, float(1 - level) ** 0.5
    kinds = {"epsilon": eps, "sample": image, "v_prediction": signal * eps - deviation * image}
    out = (1 - wrong) * kinds[chosen.prediction_type] + wrong * error
    return (signal * image + deviation * eps).to(dtype), out.to(dtype), noise.to(dtype)


def check(
    chosen: Settings,
    count: int,
    place: float,
    eta: float,
    dtype: torch.dtype,
    rederive: bool,
    wrong: float = 1.0,
    seed: int = 0,
) -> None:
    total = chosen.num_train_timesteps
    count = max(1, min(count, total))
    listed = timesteps(chosen, count)
    index = round(place * (count - 1))
    t, following = listed[index], [*listed[1:], -1][index]
    here = level_at(chosen, t)
    if chosen.prediction_type == "epsilon" and level_at(chosen, listed[0]) == 0:
        with pytest.raises(ConfigError, match="prediction_type"):
            our_plan(chosen, count, eta, False)
        return
    x, out, noise = inputs(chosen, here, dtype, wrong, seed)
    options = {"use_clipped_model_output": rederive}
    other = reference(chosen)
    other.num_inference_steps = count
    theirs = other.step(out, t, x, eta=eta, variance_noise=noise if eta else None, return_dict=False, **options)

    # what the terms of x0 and x_prev can be larger than their sum: rounding is relative to them
    signal, deviation = float(here) ** 0.5, float(1 - here) ** 0.5
    amplified = {"epsilon": 1 / max(signal, 1e-9), "sample": 1 / deviation, "v_prediction": 1.0}[chosen.prediction_type]

    for legacy in (False, True):
        previous = max(t - total // count, -1) if legacy else following
        plan = our_plan(chosen, count, eta, legacy)
        assert plan.timesteps == tuple(listed)
        assert plan.previous_timesteps[index] == previous
        exact = step(chosen, here, level_at(chosen, previous), x, out, eta=eta, noise=noise, **options)
        ours = plan.step(out, t, x, variance_noise=noise, **options)
        same_step = previous == max(t - total // count, -1)
        for mine, right, other_one in zip(ours, exact, theirs, strict=True):
            assert mine.dtype is dtype
            error = distance(mine, right)
            if right.abs().max() < torch.finfo(dtype).max:
                assert mine.isfinite().all()
                assert error < CLOSE[dtype]
            if not same_step or not other_one.isfinite().all():
                continue
            their_error = distance(other_one, right)
            terms = max(amplified * float(x.double().norm() / right.norm().clamp_min(1e-12)), 1.0)
            assert error <= 1.05 * their_error + 2e-7 * terms
            if their_error < 1e-5:
                assert distance(mine, other_one) < 1e-4


grid = {
    "schedule": st.sampled_from(list(SCHEDULES)),
    "total": st.sampled_from([1000, 1000, 1000, 4000, 50, 7]),
    "kind": st.sampled_from(["epsilon", "sample", "v_prediction"]),
    "spacing": st.sampled_from(["leading", "trailing", "linspace"]),
    "clip": st.sampled_from(list(CLIPS)),
    "eta": st.sampled_from([0.0, 0.5, 1.0]),
    "zero_snr": st.booleans(),
    "to_one": st.booleans(),
    "offset": st.sampled_from([0, 0, 1, 9]),
    "count": st.one_of(st.sampled_from([1, 2, 3, 10, 50, 61, 1000, 4000]), st.integers(1, 1000)),
    "place": st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    "dtype": st.sampled_from(list(CLOSE)),
    "rederive": st.booleans(),
    "wrong": st.sampled_from([1.0, 0.3]),
    "seed": st.integers(0, 999),
}


def run(
    *,
    schedule: str,
    total: int,
    kind: str,
    spacing: str,
    clip: str,
    zero_snr: bool,
    to_one: bool,
    offset: int,
    **rest: Any,
) -> None:
    chosen = Settings(
        num_train_timesteps=total,
        prediction_type=kind,
        timestep_spacing=spacing,
        rescale_betas_zero_snr=zero_snr,
        set_alpha_to_one=to_one,
        steps_offset=offset,
        **SCHEDULES[schedule],
        **CLIPS[clip],
    )
    check(chosen, **rest)


@settings(max_examples=80)
@given(**grid)
def test_any_step(**drawn: Any) -> None:
    run(**drawn)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(**grid)
def test_any_step_at_length(**drawn: Any) -> None:
    run(**drawn)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.thin(every=3)
def test_the_settings_in_which_float32_numbers_fail(clip: str, eta: float, dtype: torch.dtype) -> None:
    for kind in ("epsilon", "sample", "v_prediction"):
        fine = Settings(
            num_train_timesteps=4000, prediction_type=kind, beta_schedule="squaredcos_cap_v2", **CLIPS[clip]
        )
        for place in (0.0, 0.0005, 0.5, 0.999, 1.0):
            check(fine, 4000, place, eta, dtype, rederive=False)
        single = replace(fine, timestep_spacing="trailing", set_alpha_to_one=False)
        for total in (1000, 4000):
            check(replace(single, num_train_timesteps=total), 1, 0.0, eta, dtype, rederive=False)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("clip", ["clip", "neither"])
@pytest.mark.thin(every=3)
def test_every_single_timestep(kind: str, spacing: str, clip: str) -> None:
    for to_one in (False, True):
        chosen = Settings(prediction_type=kind, timestep_spacing=spacing, set_alpha_to_one=to_one, **CLIPS[clip])
        for index in range(50):
            check(chosen, 50, index / 49, 1.0 if index % 2 else 0.0, torch.float32, rederive=index % 3 == 0)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["epsilon", "sample", "v_prediction"]),
    spacing=st.sampled_from(["leading", "trailing"]),
    clip=st.sampled_from(list(CLIPS)),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
    count=st.sampled_from([1, 2, 4, 5, 10, 20, 25, 50]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(kind="epsilon", spacing="trailing", clip="clip", eta=1.0, count=50, dtype=torch.float32)
def test_whole_runs_are_diffusers_where_it_is_right(
    kind: str, spacing: str, clip: str, eta: float, count: int, dtype: torch.dtype
) -> None:
    """N divides T, so that its previous timestep is the next in the list."""
    chosen = Settings(prediction_type=kind, timestep_spacing=spacing, **CLIPS[clip])
    assume(1000 % count == 0)
    results = []
    for scheduler in (DDIMScheduler(**chosen.as_config()), reference(chosen)):
        scheduler.set_timesteps(count)
        generator = torch.Generator().manual_seed(count)
        x = torch.randn(2, 3, 8, 8, generator=generator, dtype=dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(0.9 * torch.tanh(x), t, x, eta=eta, generator=generator).prev_sample
        results.append(x)
    assert distance(results[0], results[1]) < 2e-4
