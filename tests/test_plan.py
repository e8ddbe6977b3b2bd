"""The plan: its numbers against the oracle, and every way to run it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import pickle
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Gaussian, Long, Settings, alpha_bars, distance, level_at, sigma, step, x0_and_eps
from packaging.version import Version
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from ddim import DDIMScheduler
from ddim.errors import ConfigError
from ddim.plan import SamplingPlan
from ddim.process import PREDICTIONS, SIGMA_HAT
from ddim.step import LARGE, DDIMSchedulerOutput, Row

KINDS = list(PREDICTIONS)
CLIPS: dict[str, dict[str, Any]] = {
    "plain": {"clip_sample": False},
    "clipped": {"clip_sample": True, "clip_sample_range": 1.5},
    "thresholded": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.7},
}


def make_plan(settings: Settings, count: int = 10, eta: Any = 0.0, **changed: Any) -> SamplingPlan:
    return DDIMScheduler(**settings.as_config(), **changed).plan(count, eta=eta)


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A model output and a sample."""
    return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)


@pytest.fixture(params=["small", "large"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test twice: as for small tensors, and on the path that large ones take."""
    if request.param == "large":
        monkeypatch.setattr("ddim.step.LARGE", 1)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
        {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace", "set_alpha_to_one": False},
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"num_train_timesteps": 4000, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"},
    ],
    ids=lambda changed: "-".join(map(str, changed.values())) or "default",
)
def test_every_column_is_the_papers(changed: dict[str, Any], eta: float, kind: str) -> None:
    settings = Settings(prediction_type=kind, clip_sample=False, **changed)
    if kind == "epsilon" and settings.rescale_betas_zero_snr:
        settings = dataclasses.replace(settings, timestep_spacing="leading")
    unit_x, unit_out = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    for count in (1, 7, 50):
        plan = make_plan(settings, count, eta)
        assert len(plan) == len(plan.rows) == count
        for t, previous, row in zip(plan.timesteps, plan.previous_timesteps, plan.rows, strict=True):
            here, there = level_at(settings, t), level_at(settings, previous)
            prev, _ = step(settings, here, there, unit_x, unit_out, eta=eta, noise=torch.zeros(1, 2))
            x0, eps = x0_and_eps(kind, here, unit_x, unit_out)
            deviation = sigma(here, there, eta)
            exact = Row(
                t,
                previous,
                float(here),
                float(there),
                *prev[0].tolist(),
                float(deviation),
                *x0[0].tolist(),
                *eps[0].tolist(),
                float(np.sqrt(here)),
                float(np.sqrt(1 - here)),
                float(np.sqrt(there)),
                float(np.sqrt(max(1 - there - deviation**2, Long(0)))),
                0.0,
            )
            np.testing.assert_allclose(row, exact, rtol=1e-8, atol=1e-9, err_msg=f"{count} steps, timestep {t}")


def angle(level: Long) -> Long:
    """φ = arctan √((1-ᾱ)/ᾱ): from the image (0) to the noise (π/2)."""
    return np.arctan2(np.sqrt(1 - level), np.sqrt(level))


def exact_carried(before: Long, here: Long, there: Long) -> float:
    """Equation of `process.second_order`, in extended precision: the integral over the angle, damped."""
    last, now, then = angle(before), angle(here), angle(there)
    grown = np.sin(then) * np.log(np.sin(then) / np.sin(now)) if then > 0 else Long(0)
    return float((np.cos(then) * (then - now) - grown) / (now - last) / (1 + 4 * (now - then)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changed", [{"eta": 0.0}, {"eta": 0.6}, {"eta": 1.0}, {"order": 2}, {"inverse": True}], ids=str
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_row_is_everything_of_its_step(kind: str, changed: dict[str, Any], zero_snr: bool) -> None:
    """By `for row in plan` alone, each number by its name, against extended precision."""
    settings = Settings(
        prediction_type=kind,
        clip_sample=False,
        set_alpha_to_one=False,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="leading" if zero_snr and kind == "epsilon" else "trailing",
    )
    eta, inverse = changed.get("eta", 0.0), changed.get("inverse", False)
    plan = DDIMScheduler(**settings.as_config()).plan(9, eta=eta, order=changed.get("order", 1))
    listed = [*plan.timesteps, -1]
    pairs = list(itertools.pairwise(listed))
    if inverse:
        plan = plan.inverted()
        pairs.reverse()
    x, out = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    seen = 0
    before: Long | None = None
    for row, (t, previous) in zip(plan, pairs, strict=True):
        here, there = level_at(settings, t), level_at(settings, previous)
        if inverse:
            here, there = there, here
        deviation = sigma(here, there, eta) if eta else Long(0)
        x0, eps = x0_and_eps(kind, here, x, out)
        prev, _ = step(settings, here, there, x, out, eta=eta, noise=torch.zeros(1, 2))
        exact = {
            "timestep": t,
            "previous_timestep": previous,
            "alpha_bar": here,
            "alpha_bar_prev": there,
            "a": prev[0, 0],
            "b": prev[0, 1],
            "sigma": deviation,
            "p": x0[0, 0],
            "q": x0[0, 1],
            "r": eps[0, 0],
            "s": eps[0, 1],
            "signal_rate": np.sqrt(here),
            "noise_rate": np.sqrt(1 - here),
            "signal_rate_prev": np.sqrt(there),
            "direction": np.sqrt(max(1 - there - deviation**2, Long(0))),
            "carried": exact_carried(before, here, there) if plan.order == 2 and before is not None else 0.0,
        }
        assert set(exact) == set(Row._fields)
        for name, value in exact.items():
            found = getattr(row, name)
            assert type(found) is (int if "timestep" in name else float)
            assert found == pytest.approx(float(value), rel=1e-8, abs=1e-9), (name, t)
        assert (row.carried != 0) == (plan.order == 2 and before is not None and here != there)
        before = here
        seen += 1
    assert seen == len(plan) == 9


def test_a_plan_is_a_sequence_of_its_rows() -> None:
    plan = make_plan(Settings(), 10, 0.5)
    assert list(plan) == list(plan.rows) == [plan.row(t) for t in plan.timesteps]
    assert plan[3] is plan.rows[3]
    assert plan[-1] is plan.rows[-1]
    assert plan[2:5] == plan.rows[2:5]
    assert [row.timestep for row in plan[::-3]] == list(plan.timesteps[::-3])
    assert plan[::2] == plan.rows[::2]
    assert plan[20:] == ()
    assert all(row in plan for row in reversed(plan[:3]))  # rows of this plan, not of one with fewer timesteps
    with pytest.raises(IndexError, match=r"no step 10 in a plan of 10, whose steps are 0 to 9; plan\.row"):
        plan[10]
    for index in ("a", 1.0, None, (1, 2)):
        with pytest.raises(TypeError, match="indexed by an int or a slice"):
            plan[index]  # type: ignore[call-overload]
    assert plan[np.int64(3)] is plan.rows[3]


def test_a_row_prints_as_a_line() -> None:
    (line,) = repr(make_plan(Settings(), 10, 0.5)[0]).splitlines()
    assert line.startswith("Row(timestep=900, previous_timestep=800, alpha_bar=0.000270245, ")
    assert len(line) < 300
    plan = make_plan(Settings(), 10)
    rows = plan._row_for(torch.tensor([900, 800]), torch.zeros(2, 3, 4, 4), torch.float32, False)
    assert repr(rows) == "Row of tensors: timestep = tensor (2 1 1 1), float32, from 800 to 900"


@pytest.mark.parametrize("pick", [lambda plan: plan, list, lambda plan: plan[2:5], lambda plan: plan[::3]])
def test_pandas_makes_a_table_of_it(pick: Callable[[SamplingPlan], Any]) -> None:
    pandas = pytest.importorskip("pandas")
    plan = make_plan(Settings(), 10, 0.5)
    table = pandas.DataFrame(pick(plan))
    rows = list(pick(plan))
    assert tuple(table.columns) == Row._fields
    assert table.timestep.dtype.kind == table.previous_timestep.dtype.kind == "i"
    assert all(table[name].dtype == "float64" for name in Row._fields[2:])
    for name in Row._fields:
        assert table[name].tolist() == [getattr(row, name) for row in rows]


def test_rows_are_a_table_for_whatever_reads_dicts() -> None:
    plan = make_plan(Settings(), 10, 0.5)
    records = [row._asdict() for row in plan]
    assert {tuple(record) for record in records} == {Row._fields}
    assert [record["timestep"] for record in records] == list(plan.timesteps)
    assert [record["previous_timestep"] for record in records] == list(plan.previous_timesteps)
    assert [(record["alpha_bar"], record["alpha_bar_prev"]) for record in records] == list(plan.alpha_bars)
    assert json.loads(json.dumps(records)) == records


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", [{"eta": 0.7}, {"order": 2}, {"inverse": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_a_batch_are_the_rows_of_its_timesteps(kind: str, changed: dict[str, Any], dtype: torch.dtype) -> None:
    """Where each sample has a timestep of its own, a row holds tensors; its numbers are those of the rows of floats."""
    settings = Settings(prediction_type=kind, set_alpha_to_one=False)
    plan = DDIMScheduler(**settings.as_config()).plan(10, eta=changed.get("eta", 0.0), order=changed.get("order", 1))
    plan = plan.inverted() if "inverse" in changed else plan
    timesteps = torch.tensor([700, 100, 333, 700])  # one that is not listed, and one twice
    x = torch.zeros(4, 3, 8, 8, dtype=dtype)
    together = plan._row_for(timesteps, x, dtype, False)
    listed = {row.timestep: row for row in plan}
    for name in Row._fields:
        column = getattr(together, name)
        assert column.shape == (4, 1, 1, 1)
        assert column.dtype is dtype
        for place, t in enumerate(timesteps.tolist()):
            row = plan.row(t)
            assert row == listed.get(t, row)
            rounded = torch.tensor(float(getattr(row, name)), dtype=dtype)
            assert torch.equal(column[place, 0, 0, 0], rounded), (name, t)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("count", [1, 3, 61, 999, 1000])
def test_previous_is_the_next_in_the_list(spacing: str, count: int) -> None:
    plan = make_plan(Settings(timestep_spacing=spacing), count)
    assert plan.previous_timesteps == (*plan.timesteps[1:], -1)


def test_alpha_bars_are_the_levels_around_each_step() -> None:
    settings = Settings(timestep_spacing="trailing", set_alpha_to_one=False)
    plan = make_plan(settings, 5)
    exact = [
        (float(level_at(settings, t)), float(level_at(settings, p))) for t, p in [(999, 799), (799, 599), (599, 399)]
    ]
    np.testing.assert_allclose(plan.alpha_bars[:3], exact, rtol=1e-10)
    assert plan.alpha_bars[-1][1] == plan.alphas_cumprod[0]
    inverse = plan.inverted()
    assert inverse.alpha_bars == tuple((after, before) for before, after in reversed(plan.alpha_bars))


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [1000, 4000])
def test_eta_one_works_at_every_count(schedule: str, steps: int) -> None:
    """No radicand is negative by rounding, and none has lost its digits."""
    for zero_snr in (False, True):
        for to_one in (False, True):
            settings = Settings(
                num_train_timesteps=steps,
                beta_schedule=schedule,
                rescale_betas_zero_snr=zero_snr,
                set_alpha_to_one=to_one,
                prediction_type="v_prediction",
                timestep_spacing="trailing",
            )
            for count in (1, 2, 3, 10, 63, 500, steps):
                plan = make_plan(settings, count, 1.0)
                levels = np.array([*alpha_bars(settings), level_at(settings, -1)])
                here, there = levels[list(plan.timesteps)], levels[list(plan.previous_timesteps)]
                # at η=1: 1-ᾱ_prev-σ² = (1-ᾱ_prev)² ᾱ / ((1-ᾱ) ᾱ_prev), which subtracts nothing that is near
                exact = np.sqrt((1 - there) ** 2 * here / ((1 - here) * there)).astype(float)
                np.testing.assert_allclose([row.direction for row in plan.rows], exact, rtol=1e-7)


def test_sigma_hat_has_the_larger_noise_in_the_direction_of_the_smaller() -> None:
    settings = Settings()
    hat, one = make_plan(settings, 10, SIGMA_HAT), make_plan(settings, 10, 1.0)
    for large, small, (here, there) in zip(hat.rows, one.rows, hat.alpha_bars, strict=True):
        assert large.sigma == pytest.approx(math.sqrt(1 - here / there))
        assert (large.a, large.b, large.direction) == (small.a, small.b, small.direction)
        assert large.sigma > small.sigma


def test_a_timestep_off_the_list_steps_to_the_next_lower_listed_one() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    plan = scheduler.plan(timesteps=[800, 500, 20])
    x, out = pair(1, 3, 4, 4)
    for t, target in [(999, [800]), (801, [800]), (800, [500]), (799, [500]), (501, [500]), (500, [20]), (21, [20])]:
        direct = scheduler.plan(timesteps=[t, *target]).step(out, t, x)
        assert torch.equal(plan.step(out, t, x).prev_sample, direct.prev_sample)
    for t in (20, 19, 0):  # past the last one: the image
        direct = scheduler.plan(timesteps=[t]).step(out, t, x)
        assert torch.equal(plan.step(out, t, x).prev_sample, direct.prev_sample)


def test_legacy_steps_by_the_stride_from_wherever_it_is() -> None:
    settings = Settings(timestep_spacing="linspace", clip_sample=False)
    plan = make_plan(settings, 7, legacy_previous_timestep=True)
    assert plan.legacy_stride == 142
    assert plan.previous_timesteps == tuple(max(t - 142, -1) for t in plan.timesteps)
    x, out = pair(1, 3, 4, 4)
    for t in (999, 700, 142, 141, 3):  # listed or not
        exact, _ = step(settings, level_at(settings, t), level_at(settings, t - 142), x, out)
        assert distance(plan.step(out, t, x).prev_sample, exact) < 1e-6


# --- ways to give the timestep ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_all_kinds_of_timestep_agree(clip: str, eta: float) -> None:
    plan = make_plan(Settings(**CLIPS[clip]), 10, eta)
    (out, x), noise = pair(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    for t in (900, 500, 0):
        expected = plan.step(out, t, x, variance_noise=noise)
        for same in (np.int64(t), np.int32(t), torch.tensor(t), torch.tensor([t]), torch.tensor(t, dtype=torch.int32)):
            found = plan.step(out, same, x, variance_noise=noise)  # type: ignore[arg-type]
            assert torch.equal(found.prev_sample, expected.prev_sample)
            assert torch.equal(found.pred_original_sample, expected.pred_original_sample)
        each = plan.step(out, torch.tensor([t] * 4), x, variance_noise=noise)
        torch.testing.assert_close(each.prev_sample, expected.prev_sample, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(each.pred_original_sample, expected.pred_original_sample, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("rederive", [False, True])
def test_per_sample_timesteps_are_single_steps(clip: str, kind: str, dtype: torch.dtype, rederive: bool) -> None:
    plan = make_plan(Settings(prediction_type=kind, **CLIPS[clip]), 10, 0.5)
    (out, x), noise = pair(5, 3, 8, 8, dtype=dtype), torch.randn(5, 3, 8, 8, dtype=dtype)
    timesteps = torch.tensor([900, 300, 300, 0, 555])
    together = plan.step(out, timesteps, x, variance_noise=noise, use_clipped_model_output=rederive)
    for i, t in enumerate(timesteps.tolist()):
        one = slice(i, i + 1)
        alone = plan.step(out[one], t, x[one], variance_noise=noise[one], use_clipped_model_output=rederive)
        close = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1e-3}[dtype]
        assert distance(together.prev_sample[one], alone.prev_sample) < close
        assert distance(together.pred_original_sample[one], alone.pred_original_sample) < close
    assert together.prev_sample.dtype is dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_per_sample_timesteps_may_be_any_integers(dtype: torch.dtype) -> None:
    plan = make_plan(Settings(), 10)
    out, x = pair(2, 3, 4, 4)
    expected = plan.step(out, torch.tensor([200, 100]), x).prev_sample
    assert torch.equal(plan.step(out, torch.tensor([200, 100]).to(dtype), x).prev_sample, expected)


def test_samples_may_have_any_number_of_dimensions() -> None:
    plan = make_plan(Settings(), 10, 0.5)
    for shape in [(), (3,), (3, 2), (3, 2, 4), (3, 2, 4, 4, 2)]:
        (out, x), noise = pair(*shape), torch.randn(shape)
        expected = plan.step(out, 500, x, variance_noise=noise).prev_sample
        assert expected.shape == shape
        if shape:
            found = plan.step(out, torch.tensor([500, 500, 500]), x, variance_noise=noise).prev_sample
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for clip in CLIPS.values():
        for t in (500, torch.zeros(0, dtype=torch.int64)):
            empty = make_plan(Settings(**clip), 10).step(torch.zeros(0, 3), t, torch.zeros(0, 3))
            assert empty.prev_sample.shape == (0, 3)


def test_a_step_stays_on_the_device_of_a_device_timestep() -> None:
    """On the meta device there are no values, so whatever looked at the timestep on the host would fail."""
    plan = make_plan(Settings(thresholding=False), 10)
    out, x = (tensor.to("meta") for tensor in pair(2, 3, 4, 4))
    for values in (900, [900], [900, 100]):
        t = torch.tensor(values, device="meta")
        assert plan.step(out, t, x).prev_sample.device.type == "meta"


# --- buffers, layouts, types -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_large_tensors_take_another_path_to_the_same_result(
    clip: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(Settings(prediction_type=kind, **CLIPS[clip]), 10)
    (out, x), noise = pair(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    for eta in (0.0, 0.5):
        small = plan.with_eta(eta).step(out, 500, x, variance_noise=noise)
        with monkeypatch.context() as patch:
            patch.setattr("ddim.step.LARGE", 1)
            large = plan.with_eta(eta).step(out, 500, x, variance_noise=noise)
            beside = plan.with_eta(eta).step(out[:, :, 1:], 500, x[:, :, 1:], variance_noise=noise[:, :, 1:])
        assert large.prev_sample.shape == x.shape
        torch.testing.assert_close(large.prev_sample, small.prev_sample, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(large.pred_original_sample, small.pred_original_sample, rtol=1e-6, atol=1e-6)
        if clip != "thresholded":  # whose quantile is over the whole sample
            torch.testing.assert_close(beside.prev_sample, small.prev_sample[:, :, 1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clip", CLIPS)
def test_really_large_tensors_are_the_oracles(clip: str) -> None:
    settings = Settings(prediction_type="v_prediction", **CLIPS[clip])
    out, x = pair(2, 2, 256, 256)
    assert x.numel() == LARGE
    found = make_plan(settings, 10).step(out, 500, x)
    prev, x0 = step(settings, level_at(settings, 500), level_at(settings, 400), x, out)
    assert distance(found.prev_sample, prev) < 5e-7
    assert distance(found.pred_original_sample, x0) < 5e-7


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.usefixtures("path")
def test_memory_layouts_do_not_change_the_result(clip: str) -> None:
    plan = make_plan(Settings(**CLIPS[clip]), 10, 0.5)
    (out, x), noise = pair(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    expected = plan.step(out, 500, x, variance_noise=noise)
    last = {"memory_format": torch.channels_last}
    views = [
        (out.to(**last), x.to(**last)),
        (out, x.to(**last)),
        (out.transpose(2, 3).contiguous().transpose(2, 3), x),
        (torch.stack([out, out], dim=-1)[..., 0], torch.stack([x, x])[0]),
        (out.flip(3).flip(3), torch.cat([x, x], dim=1)[:, :3]),
    ]
    for one, other in views:
        found = plan.step(one, 500, other, variance_noise=noise)
        torch.testing.assert_close(found.prev_sample, expected.prev_sample, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.pred_original_sample, expected.pred_original_sample, rtol=1e-6, atol=1e-6)
    kept = plan.step(*views[0][:1], 500, views[0][1], variance_noise=noise.to(**last)).prev_sample
    assert kept.is_contiguous(**last)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.usefixtures("path")
def test_buffers_receive_the_result(clip: str, dtype: torch.dtype, per_sample: bool) -> None:
    plan = make_plan(Settings(**CLIPS[clip]), 10, 0.5)
    (out, x), noise = pair(2, 3, 8, 8, dtype=dtype), torch.randn(2, 3, 8, 8, dtype=dtype)
    t = torch.tensor([500, 300]) if per_sample else 500
    expected = plan.step(out, t, x, variance_noise=noise)
    before = out.clone(), x.clone(), noise.clone()

    buffers = torch.empty_like(x), torch.empty_like(x)
    found = plan.step(out, t, x, variance_noise=noise, out=buffers)
    assert found.prev_sample is buffers[0]
    assert found.pred_original_sample is buffers[1]
    assert torch.equal(buffers[0], expected.prev_sample)
    assert torch.equal(buffers[1], expected.pred_original_sample)
    assert all(torch.equal(one, other) for one, other in zip(before, (out, x, noise), strict=True))

    in_place = x.clone()
    alone = plan.step(out, t, in_place, variance_noise=noise, out=(in_place, None))
    assert alone.prev_sample is in_place
    assert alone.pred_original_sample is None
    assert torch.equal(in_place, expected.prev_sample)
    both = x.clone(), torch.empty_like(x)
    plan.step(out, t, both[0], variance_noise=noise, out=both)
    assert torch.equal(both[0], expected.prev_sample)
    assert torch.equal(both[1], expected.pred_original_sample)


def test_buffers_that_would_spoil_the_result_are_refused() -> None:
    plan = make_plan(Settings(), 10, 0.5)
    (out, x), noise = pair(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    free, other = torch.empty_like(x), torch.empty_like(x)
    for wrong in [(free, free), (out, None), (out, free), (free, out), (free, x), (noise, None), (free, noise)]:
        with pytest.raises(ValueError, match="only prev_sample may be sample"):
            plan.step(out, 500, x, variance_noise=noise, out=wrong)
    for wrong in [
        (free.double(), other),
        (free, other.half()),
        (free[:1], other),
        (free, other[..., :2]),
        (free.to("meta"), other),
    ]:
        with pytest.raises(ValueError, match="the buffer for p"):
            plan.step(out, 500, x, variance_noise=noise, out=wrong)
    for wrong in [free, [free, other], (free,), (free, other, other), (None, free), (5, None)]:
        with pytest.raises(TypeError, match="out must be"):
            plan.step(out, 500, x, variance_noise=noise, out=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_mixed_types_are_promoted_before_anything_is_rounded(clip: str, per_sample: bool) -> None:
    settings = Settings(**CLIPS[clip])
    plan = make_plan(settings, 10)
    out, x = pair(2, 3, 16, 16)
    t = torch.tensor([500, 500]) if per_sample else 500
    for one, other, wide in [
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.float64, torch.float16, torch.float64),
    ]:
        a, b = out.to(one), x.to(other)
        found = plan.step(a, t, b)
        assert found.prev_sample.dtype is found.pred_original_sample.dtype is wide
        prev, x0 = step(settings, level_at(settings, 500), level_at(settings, 400), b, a)
        close = 1e-12 if wide is torch.float64 else 1e-6
        assert distance(found.prev_sample, prev) < close
        assert distance(found.pred_original_sample, x0) < close
        into = torch.empty(x.shape, dtype=wide), torch.empty(x.shape, dtype=wide)
        plan.step(a, t, b, out=into)
        assert torch.equal(into[0], found.prev_sample)


@pytest.mark.parametrize("clip", CLIPS)
def test_x0_can_be_spared(clip: str) -> None:
    plan = make_plan(Settings(**CLIPS[clip]), 10)
    for dtype in (torch.float32, torch.float16):
        out, x = pair(2, 3, 4, 4, dtype=dtype)
        spared, full = plan.step(out, 500, x, return_x0=False), plan.step(out, 500, x)
        assert spared.pred_original_sample is None
        assert torch.equal(spared.prev_sample, full.prev_sample)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_writes_to_nothing_it_was_given_and_returns_nothing_of_it(clip: str, kind: str) -> None:
    plan = make_plan(Settings(prediction_type=kind, **CLIPS[clip]), 10, 0.5)
    (out, x), noise = pair(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    before = out.clone(), x.clone(), noise.clone()
    found = plan.step(out, 500, x, variance_noise=noise)
    found.prev_sample.fill_(7)
    assert not torch.equal(found.pred_original_sample, found.prev_sample)
    found.pred_original_sample.fill_(8)
    assert all(torch.equal(one, other) for one, other in zip(before, (out, x, noise), strict=True))


def test_where_the_sample_is_pure_noise_it_has_no_say_in_a_predicted_image() -> None:
    settings = Settings(
        prediction_type="sample", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    found = make_plan(settings, 10).step(torch.ones(1, 4), 999, torch.tensor([[1.0, math.inf, math.nan, 0.0]]))
    assert torch.equal(found.pred_original_sample, torch.ones(1, 4))


# --- noise -----------------------------------------------------------------------------------------------------------


def test_noise_comes_from_the_generator_a_list_or_the_caller() -> None:
    plan = make_plan(Settings(), 10, 0.8)
    out, x = pair(2, 3, 4, 4)

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    whole = torch.randn(x.shape, generator=seeded(1))
    expected = plan.step(out, 500, x, variance_noise=whole).prev_sample
    assert torch.equal(plan.step(out, 500, x, generator=seeded(1)).prev_sample, expected)
    each = torch.cat([torch.randn((1, 3, 4, 4), generator=seeded(s)) for s in (1, 2)])
    expected = plan.step(out, 500, x, variance_noise=each).prev_sample
    assert torch.equal(plan.step(out, 500, x, generator=[seeded(1), seeded(2)]).prev_sample, expected)
    torch.manual_seed(9)
    free = plan.step(out, 500, x).prev_sample
    torch.manual_seed(9)
    expected = plan.step(out, 500, x, variance_noise=torch.randn(x.shape)).prev_sample
    assert torch.equal(free, expected)
    row = plan.rows[plan.timesteps.index(500)]
    silent = plan.step(out, 500, x, variance_noise=torch.zeros_like(x)).prev_sample
    torch.testing.assert_close(expected - silent, row.sigma * torch.randn(x.shape, generator=torch.manual_seed(9)))


def test_without_eta_no_noise_is_drawn() -> None:
    plan = make_plan(Settings(), 10)
    out, x = pair(2, 3, 4, 4)
    generator = torch.Generator().manual_seed(1)
    state, world = generator.get_state(), torch.get_rng_state()
    plan.step(out, 500, x, generator=generator)
    plan.step(out, 500, x)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), world)


@pytest.mark.parametrize("noise", [torch.float16, torch.float64])
@pytest.mark.parametrize("t", [500, torch.tensor([500, 400])], ids=["one", "each"])
def test_noise_of_another_type_does_not_change_the_results(noise: torch.dtype, t: Any) -> None:
    plan = make_plan(Settings(), 10, 1.0)
    out, x = pair(2, 3, 4, 4)
    given = torch.randn(2, 3, 4, 4, dtype=noise)
    found = plan.step(out, t, x, variance_noise=given).prev_sample
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, plan.step(out, t, x, variance_noise=given.float()).prev_sample)


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [500, torch.tensor([500, 30])], ids=["one", "each"])
@pytest.mark.parametrize("rederive", [False, True])
def test_gradients_are_those_of_finite_differences(clip: str, kind: str, t: Any, rederive: bool) -> None:
    plan = make_plan(Settings(prediction_type=kind, **CLIPS[clip]), 10, 0.5)
    out, x = pair(2, 1, 3, 4, dtype=torch.float64)
    noise = torch.randn(2, 1, 3, 4, dtype=torch.float64)

    def run(out: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        found = plan.step(out, t, x, variance_noise=noise, use_clipped_model_output=rederive)
        return found.prev_sample, found.pred_original_sample

    assert torch.autograd.gradcheck(run, (out.requires_grad_(), x.requires_grad_()), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.usefixtures("path")
def test_gradients_of_large_and_of_half_precision_tensors(clip: str) -> None:
    plan = make_plan(Settings(prediction_type="v_prediction", **CLIPS[clip]), 10)
    out, x = pair(1, 2, 20, 20)

    def slope(out: Tensor, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        found = plan.step(out, 500, x)
        (gradient,) = torch.autograd.grad(found.prev_sample.double().sum() + found[1].double().sum(), x)
        return gradient

    exact = slope(out.double(), x.double())
    assert distance(slope(out, x), exact) < 1e-3  # where a clamp is met by a hair, one of the two has it
    assert distance(slope(out.half(), x.half()), slope(out.half().double(), x.half().double())) < 0.05


@pytest.mark.parametrize("clip", ["plain", "clipped"])
def test_a_sample_can_be_steered_by_a_loss_on_the_predicted_image(clip: str) -> None:
    settings = Settings(**CLIPS[clip])
    plan, denoiser = make_plan(settings, 20), Gaussian(settings, mean=0.0, deviation=0.5)

    def brightness(strength: float) -> float:
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in plan.timesteps:
            x = x.detach().requires_grad_()
            found = plan.step(denoiser(x, t), t, x)
            loss = ((found.pred_original_sample - 0.4) ** 2).sum()
            (gradient,) = torch.autograd.grad(loss, x)
            x = found.prev_sample.detach() - strength * gradient
        return float(((x.detach() - 0.4) ** 2).mean())

    plain = brightness(0.0)
    assert brightness(0.05) < 0.7 * plain
    assert brightness(0.1) < brightness(0.05)


# --- inversion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("to_one", [False, True])
def test_an_inverse_step_undoes_the_step(spacing: str, to_one: bool) -> None:
    plan = make_plan(Settings(timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=to_one), 7)
    inverse = plan.inverted()
    assert inverse.inverse
    assert inverse.timesteps == plan.timesteps[::-1]
    out, x = pair(1, 3, 8, 8, dtype=torch.float64)
    for t in plan.timesteps:  # the network's noise is the same on both ways, so all that is left is rounding
        there = plan.step(out, t, x).prev_sample
        assert distance(inverse.step(out, t, there).prev_sample, x) < 1e-11


@pytest.mark.parametrize("kind", KINDS)
def test_inverting_and_sampling_is_the_identity_in_the_limit(kind: str) -> None:
    settings = Settings(
        prediction_type=kind, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=kind != "sample"
    )
    denoiser = Gaussian(settings, mean=0.3, deviation=0.7)
    image = 0.3 + 0.7 * torch.randn(1, 3, 8, 8, dtype=torch.float64)
    errors = []
    for count in (25, 100, 500):
        plan = make_plan(settings, count)
        x = image
        for way in (plan.inverted(), plan):
            # on the way up the network is asked at the level where the sample is
            for t, (here, _) in zip(way.timesteps, way.alpha_bars, strict=True):
                x = way.step(denoiser.predict(x, Long(here)), t, x).prev_sample
        errors.append(distance(x, image))
    assert errors[2] < 1e-2
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.5 * errors[1]


def test_an_inverse_reaches_the_noise_that_sampling_started_from() -> None:
    settings = Settings(timestep_spacing="trailing", clip_sample=False)
    denoiser = Gaussian(settings, mean=0.3, deviation=0.7)
    z = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    plan = make_plan(settings, 1000).inverted()
    x = denoiser.at(z, Long(1))
    for t, (here, _) in zip(plan.timesteps, plan.alpha_bars, strict=True):
        x = plan.step(denoiser.predict(x, Long(here)), t, x).prev_sample
    assert distance(x, denoiser.at(z, level_at(settings, 999))) < 0.01


def test_inverting_twice_gives_the_plan_back() -> None:
    for changed in ({}, {"legacy_previous_timestep": True}):
        plan = make_plan(Settings(timestep_spacing="linspace", thresholding=True), 13, **changed)
        assert plan.inverted() != plan
        assert plan.inverted().inverted() == plan
    noisy = make_plan(Settings(), 5, 0.5)
    assert noisy.inverted().eta == 0
    assert noisy.inverted().inverted() == noisy.with_eta(0.0)


def test_an_inverse_plan_can_end_in_pure_noise() -> None:
    settings = Settings(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction", clip_sample=False
    )
    plan = make_plan(settings, 5).inverted()
    assert plan.alpha_bars[-1][1] == 0
    assert all(math.isfinite(number) for row in plan.rows for number in row)
    out, x = pair(1, 3, 4, 4, dtype=torch.float64)
    here = level_at(settings, 799)
    found = plan.step(out, 999, x).prev_sample  # nothing is left but the noise
    assert distance(found, x0_and_eps("v_prediction", here, x, out)[1]) < 1e-12


def test_no_noise_can_be_derived_from_an_image_without_any() -> None:
    inverse = make_plan(Settings(), 10).inverted()
    out, x = pair(2, 3, 4, 4)
    for t in (0, torch.tensor(0), torch.tensor([0, 100])):
        with pytest.raises(ConfigError, match="use_clipped_model_output=False"):
            inverse.step(out, t, x, use_clipped_model_output=True)
    assert inverse.step(out, 100, x, use_clipped_model_output=True).prev_sample.isfinite().all()
    plain = make_plan(Settings(clip_sample=False), 10).inverted()  # where it has nothing to say it does no harm
    assert plain.step(out, 0, x, use_clipped_model_output=True).prev_sample.isfinite().all()


# --- a plan is a value -----------------------------------------------------------------------------------------------


def test_with_eta_is_the_plan_of_that_eta_and_is_made_once() -> None:
    scheduler = DDIMScheduler()
    plan = scheduler.plan(10)
    for eta in (0.5, 1, SIGMA_HAT):
        assert plan.with_eta(eta) == scheduler.plan(10, eta=eta)
        assert plan.with_eta(eta) is plan.with_eta(eta)
        assert plan.with_eta(eta).with_eta(0.0) == plan
    assert plan.eta == 0.0


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("eta", [0.0, 0.25, SIGMA_HAT])
def test_a_plan_survives_json_pickle_and_copies(clip: str, eta: Any) -> None:
    plan = make_plan(Settings(timestep_spacing="trailing", **CLIPS[clip]), 7, eta)
    (out, x), noise = pair(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = plan.step(out, torch.tensor([999, 142]), x, variance_noise=noise).prev_sample
    text = json.dumps(plan.to_dict())
    for twin in (
        SamplingPlan.from_dict(json.loads(text)),
        pickle.loads(pickle.dumps(plan)),
        copy.copy(plan),
        copy.deepcopy(plan),
    ):
        assert twin == plan
        assert hash(twin) == hash(plan)
        assert twin.rows == plan.rows
        assert torch.equal(twin.step(out, torch.tensor([999, 142]), x, variance_noise=noise).prev_sample, expected)
    assert SamplingPlan.from_dict(json.loads(json.dumps(plan.inverted().to_dict()))) == plan.inverted()
    least = SamplingPlan.from_dict({"timesteps": [1, 0], "alphas_cumprod": [0.5, 0.4]})
    assert least == SamplingPlan((1, 0), (0.5, 0.4))
    assert make_plan(Settings(), 8, eta) != plan


def test_a_plan_never_changes() -> None:
    plan = make_plan(Settings(), 5)
    for field in dataclasses.fields(plan):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(plan, field.name, getattr(plan, field.name))
        assert not isinstance(getattr(plan, field.name), (list, dict, np.ndarray, Tensor))
    with pytest.raises(AttributeError):
        del plan.eta
    assert isinstance(plan.rows, tuple)
    assert isinstance(plan.rows[0], tuple)
    assert isinstance(plan.previous_timesteps, tuple)


def test_a_plan_shows_its_table() -> None:
    plan = make_plan(Settings(prediction_type="v_prediction"), 5, 0.5)
    lines = repr(plan).splitlines()
    assert lines[0] == "SamplingPlan: 5 steps of 1000, v_prediction, eta 0.5, clipping ±1"
    assert len(lines) == 2 + 5
    header = lines[1].replace("ᾱ prev", "ᾱ_prev").split()
    for line, t, previous, row, levels in zip(
        lines[2:], plan.timesteps, plan.previous_timesteps, plan.rows, plan.alpha_bars, strict=True
    ):
        shown = dict(zip(header, map(float, line.split()), strict=True))
        assert (shown["t"], shown["prev"]) == (t, previous)
        assert (shown["ᾱ"], shown["ᾱ_prev"]) == pytest.approx(levels, abs=1e-6)
        for name, value in (("a", row.a), ("b", row.b), ("σ", row.sigma), ("p", row.p), ("q", row.q)):
            assert shown[name] == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert "thresh" not in repr(plan)
    assert "quantile 0.9, at most 1.7" in repr(make_plan(Settings(**CLIPS["thresholded"]), 2))
    assert "clipping no" in repr(make_plan(Settings(clip_sample=False), 2))
    assert "3 inverse steps" in repr(make_plan(Settings(), 3).inverted())
    assert len(repr(make_plan(Settings(), 60)).splitlines()) == 62
    assert len(repr(make_plan(Settings(), 61)).splitlines()) == 43
    long = repr(make_plan(Settings(), 1000)).splitlines()
    assert len(long) < 60
    assert "960 more" in "".join(long)


class Table(HTMLParser):
    """The cells of the one table of a page, row by row, and its caption."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.caption = ""
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "caption" in self.open:
            self.caption += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            assert not data.strip()


@pytest.mark.parametrize("changed", [{"eta": 0.5}, {"eta": SIGMA_HAT}, {"order": 2}, {"inverse": True}], ids=str)
def test_a_notebook_shows_the_table(changed: dict[str, Any]) -> None:
    inverse = changed.pop("inverse", False)
    plan = DDIMScheduler(prediction_type="v_prediction").plan(7, **changed)
    plan = plan.inverted() if inverse else plan
    page = plan._repr_html_()
    table = Table(page)
    assert table.caption == repr(plan).splitlines()[0]
    heads, *rows = table.rows
    names = "timestep previous_timestep alpha_bar alpha_bar_prev a b sigma p q".split()
    assert heads == [
        "t",
        "previous t",
        "ᾱ",
        "ᾱ prev",
        "a",
        "b",
        "σ",
        "p",
        "q",
        *["second-order share"] * (plan.order - 1),
    ]
    if plan.order == 2:
        names.append("carried")
        assert any(row.carried for row in plan)
    assert len(rows) == len(plan)
    for shown, row in zip(rows, plan, strict=True):
        assert list(map(float, shown)) == pytest.approx([getattr(row, name) for name in names], rel=1e-5)
        assert shown[:2] == [str(row.timestep), str(row.previous_timestep)]
    assert not re.search("colou?r|background|#[0-9a-f]{3}", page)  # light and dark notebooks have their own


def test_a_notebook_shows_both_ends_of_a_long_table() -> None:
    assert len(Table(make_plan(Settings(), 60)._repr_html_()).rows) == 1 + 60
    plan = make_plan(Settings(), 61)
    _, *rows = Table(plan._repr_html_()).rows
    assert len(rows) == 20 + 1 + 20
    assert rows[20] == ["… 21 more …"]
    assert [int(row[0]) for row in rows[:20] + rows[21:]] == [*plan.timesteps[:20], *plan.timesteps[-20:]]


def test_what_a_notebook_shows_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan that can be made has such a name today; a prediction type may be added by its users."""
    monkeypatch.setitem(PREDICTIONS, "<b>&", PREDICTIONS["epsilon"])
    page = dataclasses.replace(make_plan(Settings(), 3), prediction_type="<b>&")._repr_html_()
    assert "<b>" not in page
    assert ", <b>&, eta" in Table(page).caption


def test_an_output_is_read_by_attribute_key_index_and_unpacking() -> None:
    plan = make_plan(Settings(), 5)
    found = plan.step(torch.ones(1, 2), 800, torch.ones(1, 2))
    prev, x0 = found
    assert isinstance(found, DDIMSchedulerOutput)
    assert found.prev_sample is found["prev_sample"] is found[0] is prev
    assert found.pred_original_sample is found["pred_original_sample"] is found[1] is found[-1] is x0
    assert found[:1] == (prev,)
    assert found.to_tuple() == tuple(found) == (prev, x0)
    assert dict(found) == {"prev_sample": prev, "pred_original_sample": x0}
    for wrong, error in (("sample", KeyError), (2, IndexError)):
        with pytest.raises(error):
            found[wrong]


# --- many threads ----------------------------------------------------------------------------------------------------


def test_eight_threads_on_one_scheduler_are_eight_runs() -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(5)

    def run(job: int) -> Tensor:
        plan = scheduler.plan(10 + job, eta=job / 8)
        generator = torch.Generator().manual_seed(job)
        x = torch.randn(2, 3, 8, 8, generator=generator)
        for t in plan.timesteps:
            moment: Any = torch.tensor([t, t]) if job % 2 else t
            x = plan.step(torch.tanh(x) * 0.9, moment, x, generator=generator).prev_sample
        return x

    serial = [run(job) for job in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            parallel = list(pool.map(run, range(8)))
            assert all(torch.equal(one, other) for one, other in zip(serial, parallel, strict=True))


def test_eight_threads_share_one_plan() -> None:
    def run(plan: SamplingPlan, job: int) -> Tensor:
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(job))
        for t in plan.timesteps:
            noise = torch.full_like(x, 0.1)
            x = plan.with_eta(job % 3 / 2).step(x, torch.tensor([t, t]), x, variance_noise=noise).prev_sample
        return x

    for _ in range(3):  # a new plan each time, so that the threads meet while its tables are being made
        plan = make_plan(Settings(), 20)
        with ThreadPoolExecutor(8) as pool:
            parallel = list(pool.map(lambda job, plan=plan: run(plan, job), range(8)))
        fresh = make_plan(Settings(), 20)
        assert all(torch.equal(run(fresh, job), found) for job, found in enumerate(parallel))


# --- the compiler ----------------------------------------------------------------------------------------------------


# Tried with 2.6, 2.8 and 2.9, whose compilers know less of Python: docs/robots.md says what does not work there.
NEWER_COMPILER = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"), reason="older versions of PyTorch cannot compile this as one graph"
)


@NEWER_COMPILER
def test_a_compiled_run_of_a_new_plan_is_one_graph() -> None:
    """Its timesteps are numbers, which the compiler takes for constants."""
    torch._dynamo.reset()
    plan, counter = make_plan(Settings(), 4), CompileCounter()

    def run(out: Tensor, x: Tensor) -> Tensor:
        for t in plan.timesteps:
            x = plan.step(out, t, x).prev_sample
        return x

    out, x = pair(2, 3, 8, 8)
    found = torch.compile(run, backend=counter, fullgraph=True)(out, x)
    torch.testing.assert_close(found, run(out, x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@NEWER_COMPILER
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.thin(every=3)
def test_a_compiled_step_is_compiled_once_for_all_timesteps(clip: str, eta: float) -> None:
    torch._dynamo.reset()
    plan = make_plan(Settings(**CLIPS[clip]), 10, eta)
    counter = CompileCounter()

    def run(out: Tensor, t: Tensor, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        found = plan.step(out, t, x, variance_noise=noise)
        return found.prev_sample, found.pred_original_sample

    compiled = torch.compile(run, backend=counter, fullgraph=True)
    (out, x), noise = pair(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    for t in torch.tensor(plan.timesteps):
        for one, other in zip(compiled(out, t, x, noise), run(out, t, x, noise), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("clip", CLIPS)
def test_a_compiled_step_takes_what_is_not_contiguous(clip: str) -> None:
    """As the predictions of robots' policies are, whose networks have the channels before the horizon."""
    torch._dynamo.reset()
    plan = make_plan(Settings(**CLIPS[clip]), 10, 0.0)
    out, x = (each.transpose(1, 2) for each in pair(2, 7, 16))
    t = plan.timesteps[3]
    step = torch.compile(lambda out, x: plan.step(out, t, x).prev_sample, backend="eager", fullgraph=True)
    torch.testing.assert_close(step(out, x), plan.step(out, t, x).prev_sample, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
def test_a_step_compiled_to_machine_code_agrees(clip: str) -> None:
    torch._dynamo.reset()
    plan = make_plan(Settings(**CLIPS[clip]), 10, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = torch.compile(lambda out, t, x, noise: plan.step(out, t, x, variance_noise=noise), fullgraph=True)
        (out, x), noise = pair(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
        for t in (torch.tensor(900), torch.tensor(0), torch.tensor([300, 700])):
            found, expected = compiled(out, t, x, noise), plan.step(out, t, x, variance_noise=noise)
            torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"timesteps": ()}, "at least one"),
        ({"timesteps": (0, 1)}, "fall strictly"),
        ({"timesteps": (1, 1)}, "fall strictly"),
        ({"timesteps": (3, 0)}, r"0…2"),
        ({"timesteps": (1, -1)}, r"0…2"),
        ({"timesteps": (1.0, 0.0)}, "ints"),
        ({"timesteps": (True,)}, "ints"),
        ({"timesteps": (1, 0), "inverse": True}, "rise strictly"),
        ({"inverse": True, "timesteps": (0, 1), "eta": 0.5}, "deterministic"),
        ({"alphas_cumprod": (0.9, math.nan, 0.1)}, "alphas_cumprod"),
        ({"alphas_cumprod": (1.9, 0.5, 0.1)}, "alphas_cumprod"),
        ({"alphas_cumprod": (0.9, 0.5, -0.1)}, "alphas_cumprod"),
        ({"alphas_cumprod": (0.1, 0.5, 0.9)}, "must fall"),
        ({"alphas_cumprod": ("a", "b", "c")}, "alphas_cumprod"),
        ({"alphas_cumprod": (None, 0.5, 0.1)}, "alphas_cumprod"),
        ({"final_alpha_cumprod": 1.5}, "final_alpha_cumprod"),
        ({"final_alpha_cumprod": None}, "final_alpha_cumprod"),
        ({"prediction_type": "noise"}, "epsilon, sample, v_prediction"),
        ({"eta": -0.1}, "eta"),
        ({"eta": math.nan}, "eta"),
        ({"eta": math.inf}, "eta"),
        ({"eta": "x"}, "sigma_hat"),
        ({"eta": True}, "eta"),
        ({"eta": None}, "eta"),
        ({"eta": torch.tensor(0.5)}, "eta"),
        ({"eta": 1.5}, "use eta in"),
        ({"clip_range": 0.0}, "clip_sample_range"),
        ({"clip_range": -1.0}, "clip_sample_range"),
        ({"clip_range": math.nan}, "clip_sample_range"),
        ({"clip_range": "1"}, "clip_sample_range"),
        ({"thresholding": (1.5, 1.0)}, "dynamic_thresholding_ratio"),
        ({"thresholding": (-0.1, 1.0)}, "dynamic_thresholding_ratio"),
        ({"thresholding": (math.nan, 1.0)}, "dynamic_thresholding_ratio"),
        ({"thresholding": (None, 1.0)}, "dynamic_thresholding_ratio"),
        ({"thresholding": (0.5, 0.0)}, "sample_max_value"),
        ({"thresholding": (0.5, math.nan)}, "sample_max_value"),
        ({"legacy_stride": 0}, "legacy_stride"),
        ({"legacy_stride": -3}, "legacy_stride"),
        ({"legacy_stride": 1.0}, "legacy_stride"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_when_it_is_made(changed: dict[str, Any], named: str) -> None:
    arguments = {"timesteps": (2, 1), "alphas_cumprod": (0.9, 0.5, 0.1), **changed}
    with pytest.raises(ConfigError, match=named):
        SamplingPlan(**arguments)


def test_the_ends_of_each_range_are_in_it() -> None:
    limits = (
        {"thresholding": (1.0, 1.0)},
        {"thresholding": (0.0, 1.0)},
        {"final_alpha_cumprod": 1},
        {"legacy_stride": 1},
    )
    for changed in (*limits, {"eta": 0}, {"eta": 1}, {"alphas_cumprod": (1.0, 0.5, 0.5)}):
        plan = SamplingPlan(**{"timesteps": (2, 0), "alphas_cumprod": (0.9, 0.5, 0.1), **changed})
        assert all(math.isfinite(number) for row in plan.rows for number in row)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"timesteps": [1, 0]},
        {"timesteps": [1, 0], "alphas_cumprod": [0.5, 0.4], "colour": "red"},
        {"timesteps": None, "alphas_cumprod": [0.5, 0.4]},
        {"timesteps": 5, "alphas_cumprod": [0.5, 0.4]},
        {"timesteps": "10", "alphas_cumprod": [0.5, 0.4]},
        {"timesteps": [1, 0], "alphas_cumprod": None},
        {"timesteps": [1, 0], "alphas_cumprod": 0.5},
        {"timesteps": [1, 0], "alphas_cumprod": [0.5, [0.4]]},
        {"timesteps": [1, 0], "alphas_cumprod": [0.5, 0.4], "thresholding": 5},
        {"timesteps": [1, 0], "alphas_cumprod": [0.5, 0.4], "thresholding": [0.9]},
        {"timesteps": [1, 0], "alphas_cumprod": [0.5, 0.4], "eta": [1]},
        {"timesteps": [1, 0], "alphas_cumprod": [0.5, 0.4], "prediction_type": ["epsilon"]},
        [1, 2],
        None,
        "plan",
    ],
)
def test_a_dict_that_is_no_plan_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError):
        SamplingPlan.from_dict(values)


@pytest.mark.parametrize(
    ("t", "error"),
    [
        (-1, ConfigError),
        (1000, ConfigError),
        (torch.tensor(1000), ConfigError),
        (torch.tensor([5, 1000]), ConfigError),
        (torch.tensor([5, -1]), ConfigError),
        (5.0, TypeError),
        ("5", TypeError),
        (None, TypeError),
        (True, TypeError),
        (np.bool_(True), TypeError),
        (np.float64(5), TypeError),
        ([5, 5], TypeError),
        (torch.tensor(5.0), TypeError),
        (torch.tensor([5.0, 4.0]), TypeError),
        (torch.tensor([True, False]), TypeError),
        (torch.tensor([5 + 0j, 4]), TypeError),
        (torch.tensor(True), TypeError),
        (torch.tensor(5 + 0j), TypeError),
        (torch.tensor([5, 4, 3]), ValueError),
        (torch.tensor([[5], [4]]), ValueError),
        (torch.tensor([], dtype=torch.int64), ValueError),
    ],
)
def test_a_timestep_that_is_none_is_refused(t: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timestep"):
        make_plan(Settings(), 10).step(*pair(2, 3, 4, 4)[:1], t, torch.zeros(2, 3, 4, 4))


def test_tensors_that_do_not_fit_are_refused() -> None:
    plan = make_plan(Settings(), 10, 0.5)
    out, x = pair(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"model_output has shape \(1, 3, 4, 4\), the sample \(2, 3, 4, 4\)"):
        plan.step(out[:1], 5, x)
    with pytest.raises(ValueError, match=r"chunk\(2, dim=1\)"):
        plan.step(torch.cat([out, out], dim=1), 5, x)
    for odd in (torch.zeros(6), torch.zeros(2, 6), torch.zeros(6, 3)):
        with pytest.raises(ValueError, match="has shape") as raised:
            plan.step(odd, 5, torch.zeros(2, 3) if odd.ndim == 2 else torch.zeros(3))
        assert ("chunk" in str(raised.value)) is (odd.shape == (2, 6))
    for wrong in (out.long(), out.cfloat(), out.bool()):
        for one, other in ((wrong, wrong), (wrong, x), (out, wrong)):
            with pytest.raises(TypeError, match="floating point"):
                plan.step(one, 5, other)
    for wrong in ([1.0], None, 5.0, np.zeros((2, 3, 4, 4))):
        with pytest.raises(TypeError, match="tensors"):
            plan.step(wrong, 5, x)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="tensors"):
            plan.step(out, 5, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variance_noise has shape"):
        plan.step(out, 5, x, variance_noise=out[:, :2])
    with pytest.raises(TypeError, match="variance_noise"):
        plan.step(out, 5, x, variance_noise=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not both"):
        plan.step(out, 5, x, variance_noise=out, generator=torch.Generator())
    with pytest.raises(ValueError, match="1 generators"):
        plan.step(out, 5, x, generator=[torch.Generator()])
    with pytest.raises(TypeError, match="generator"):
        plan.step(out, 5, x, generator=5)  # type: ignore[arg-type]


def test_zero_snr_names_the_setting_that_would_work() -> None:
    settings = Settings(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ConfigError, match="prediction_type='v_prediction'"):
        make_plan(settings, 10)
    early = make_plan(dataclasses.replace(settings, timestep_spacing="leading"), 10)  # never comes there
    out, x = pair(2, 3, 4, 4)
    assert early.step(out, 998, x).prev_sample.isfinite().all()
    for t in (999, torch.tensor(999), torch.tensor([5, 999])):
        with pytest.raises(ConfigError, match="prediction_type='v_prediction'"):
            early.step(out, t, x)


def test_inverting_a_predicted_image_needs_noise_to_start_from() -> None:
    settings = Settings(prediction_type="sample")
    with pytest.raises(ConfigError, match="set_alpha_to_one=False"):
        make_plan(settings, 10).inverted()
    assert make_plan(dataclasses.replace(settings, set_alpha_to_one=False), 10).inverted().inverse


def test_eta_above_one_is_refused_only_where_it_has_no_room() -> None:
    settings = Settings()
    assert alpha_bars(settings)[0] > 0.99
    for kind in KINDS:
        with pytest.raises(ConfigError, match=r"eta=1\.5 asks at timestep"):
            make_plan(dataclasses.replace(settings, prediction_type=kind), 10, 1.5)
    # a single step to the image: σ is 0 whatever η is
    assert make_plan(settings, 1, 1.5).rows[0].sigma == 0
