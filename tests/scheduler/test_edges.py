"""Settings and tensors at the edge, drawn at random: the right value by the oracle, or one clear error.

A clear error is one of `ddim.errors`, or a ValueError or TypeError of this package's own, as the methods document.
"""

from __future__ import annotations

import inspect
import json
import math
import random
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
import torch
from hostile import VALUES, limits
from torch import Tensor

from ddim.errors import ConfigError, DDIMError
from ddim.plan import SamplingPlan
from ddim.scheduler import DDIMInverseScheduler, DDIMScheduler
from ddim.step import threshold

INF, NAN, HUGE = math.inf, math.nan, 10**400
SHAPES = [(2, 3, 4, 4), (1, 3, 2, 2), (2, 0, 4), (0, 3, 4, 4), (2, 3, 0, 0), (), (5,), (0,), (2, 3), (1, 1, 520, 520)]
SCALES = [1, 1, 1, 1e-38, 1e-45, 5e-324, 1e-308, 1e38, 3.4e38, 1e300, 1e308, 0, NAN, INF]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LISTS: list[Any] = [
    *([], [0], [1, 1], [NAN], [INF], [10**30], [-1], ["x"], None, 5, [[1]], [True], [1e308], "12", {1: 2}, [[], []]),
    *(range(5, 0, -1), [999, 0], np.array([2.5]), np.array(["a"]), np.zeros(0), [None], [HUGE], list(range(10**5))),
    *(torch.tensor([3, 1]), torch.tensor(1), torch.tensor([2, 1.0]), torch.zeros(0), torch.tensor([1j])),
    *(torch.tensor([2, 1], device="meta"), torch.zeros(3, 3), torch.tensor([NAN])),
]
OF_A_PLAN: list[Any] = [
    None,
    "x",
    NAN,
    INF,
    [],
    [NAN],
    [1, 2],
    {},
    HUGE,
    True,
    [[1]],
    -1,
    [INF, INF],
    10**9,
    "sigma_hat",
]


OF_THE_ORACLE = (
    "prediction_type",
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)


class Draw(NamedTuple):
    """One case; `repr` of it makes it again."""

    settings: dict[str, Any]
    is_inverse: bool
    what: str
    steps: int
    eta: Any
    rederive: bool
    sample: Tensor
    output: Tensor


def draw_settings(draw: random.Random) -> dict[str, Any]:
    pick = draw.choice
    usual: dict[str, Any] = {
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "steps_offset": 0,
        "dynamic_thresholding_ratio": 0.995,
        "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
    }
    odd: dict[str, list[Any]] = {
        "beta_start": [0, 1, 1e-300, 1e-38, 5e-324, 0.5, NAN, -1],
        "beta_end": [0, 1, 0.999999, 1e-10, 1e-300, NAN, INF],
        "steps_offset": [1, 10**6, 10**30, -1],
        "dynamic_thresholding_ratio": [0, 1, 0.5, NAN, 1e-308, 2, -1],
        "clip_sample_range": [1e308, 1e-308, 1e38, 4e38, 0, -1, NAN, INF, HUGE],
        "sample_max_value": [2, 1e308, 4e38, 1e-308, 1e-45, 0.5, INF, NAN, 0, -1, HUGE],
    }
    settings: dict[str, Any] = {
        "num_train_timesteps": pick([1, 2, 3, 10, 50, 1000, 1000, 1000]),
        "beta_schedule": pick(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "prediction_type": pick(["epsilon", "sample", "v_prediction"]),
        "timestep_spacing": pick(["leading", "trailing", "linspace", "quadratic"]),
        "clip_sample": pick([True, False]),
        "set_alpha_to_one": pick([True, False]),
        "thresholding": pick([True, False]),
        "rescale_betas_zero_snr": pick([False, False, True]),
        "legacy_previous_timestep": pick([False, False, True]),
    }
    settings |= {key: value if draw.random() < 0.85 else pick(odd[key]) for key, value in usual.items()}
    if draw.random() < 0.1:
        total = settings["num_train_timesteps"]
        settings["trained_betas"] = [pick([0, 1, 0.5, 1e-300, 0.01]) for _ in range(total)]
    return settings


def draw_tensor(draw: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    numbers = np.random.default_rng(draw.getrandbits(32)).standard_normal(shape)
    x = (torch.as_tensor(numbers) * draw.choice(SCALES)).to(dtype)
    kind = draw.random()
    if kind < 0.1 and x.ndim > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind < 0.2 and x.ndim > 1 and x.numel():
        return x[..., :1].expand(shape)
    if kind < 0.25 and x.is_floating_point():
        return x.requires_grad_()
    return x.to("meta") if kind < 0.27 else x


def draw_case(draw: random.Random) -> Draw:
    settings = draw_settings(draw)
    shape = draw.choice(SHAPES)
    dtype = draw.choice(TYPES) if draw.random() < 0.5 else torch.float32
    other = draw.choice(TYPES) if draw.random() < 0.1 else dtype
    return Draw(
        settings,
        is_inverse=draw.random() < 0.15,
        what=draw.choice(["step", "step", "step", "at a tensor", "at a tensor", "noise", "velocity", "dict", "lists"]),
        steps=draw.choice([1, 1, 2, settings["num_train_timesteps"], 10, 0]),
        eta=draw.choice([0, 0, 0, 1.0, 0.5, "sigma_hat", NAN, INF, 2, 1e-308, HUGE]),
        rederive=draw.random() < 0.3,
        sample=draw_tensor(draw, shape, dtype),
        output=draw_tensor(draw, shape, other),
    )


def differs(found: Tensor, exact: Tensor, size: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers are wrong by more than the rounding of terms of that size, where all of these are finite."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    counts = exact.isfinite() & (exact.abs() < torch.finfo(dtype).max) & (size < torch.finfo(wide).max / 4)
    allowed = ROUNDING[dtype] * size + 4 * torch.finfo(dtype).tiny
    return bool((counts & ~((found.detach().double() - exact).abs() <= allowed)).any())


def check_mixture(case: Draw, scheduler: Any, timestep: int, draw: random.Random) -> str | None:
    """`add_noise` and `get_velocity` against equation 4."""
    x, z = case.sample, case.output
    at = draw.choice([timestep, torch.tensor(timestep), torch.tensor([timestep]), torch.full(x.shape[:1], timestep)])
    level = scheduler.plan(1).alphas_cumprod[timestep]
    signal, noise = math.sqrt(level), math.sqrt(1 - level)
    if case.what == "noise":
        found, first, second = scheduler.add_noise(x, z, at), signal * x.double(), noise * z.double()
    else:
        found, first, second = scheduler.get_velocity(x, z, at), signal * z.double(), -noise * x.double()
    if found.shape != x.shape:
        return f"the shape {tuple(found.shape)}"
    if found.is_meta:
        return None
    exact = (first + second).detach()
    return "the value" if differs(found, exact, first.abs() + second.abs(), found.dtype) else None


def check_step(case: Draw, scheduler: DDIMScheduler, timestep: int, draw: random.Random) -> str | None:
    """`step` against the oracle, where the settings mean something to it."""
    x, out, settings = case.sample, case.output, case.settings
    kind = out.dtype if out.is_floating_point() else torch.float32
    noise = torch.full(x.shape, 0.5, dtype=kind) if case.eta != 0 else None
    at: Any = timestep
    if case.what == "at a tensor":
        at = draw.choice([torch.tensor(timestep), torch.tensor([timestep]), torch.full(x.shape[:1], timestep)])
    result = scheduler.step(out, at, x, eta=case.eta, use_clipped_model_output=case.rederive, variance_noise=noise)
    prev, x0 = result.prev_sample, result.pred_original_sample
    assert x0 is not None
    if prev.shape != x.shape or x0.shape != x.shape:
        return f"the shape {tuple(prev.shape)}"
    if x.is_meta or not x.numel() or not x.ndim or case.eta == "sigma_hat":
        return None
    row = scheduler.plan(case.steps).row(timestep)
    unused = {key: 1.0 for key, value in settings.items() if value == HUGE}  # which is refused where it is used
    known = oracle.Settings(**{k: v for k, v in {**settings, **unused}.items() if k in OF_THE_ORACLE})
    x, out = x.detach(), out.detach()
    levels = np.longdouble(row.alpha_bar), np.longdouble(row.alpha_bar_prev)
    exact_prev, exact_x0 = oracle.step(
        known, *levels, x, out, eta=float(case.eta), noise=noise, use_clipped_model_output=case.rederive
    )
    of_x, of_out = x.double().abs(), out.double().abs()
    original = abs(row.p) * of_x + abs(row.q) * of_out
    eps = abs(row.r) * of_x + abs(row.s) * of_out
    if not (original.isfinite() & (original < 1e37) & (eps < 1e37)).all():
        return None  # what is in between may be infinite in the type that is computed in
    size = original + exact_x0.abs() + 1
    if differs(x0, exact_x0, size, prev.dtype):
        return "the predicted x0"
    if case.rederive and row.noise_rate:
        eps = (of_x + row.signal_rate * size) / row.noise_rate
    size = size * row.signal_rate_prev + eps * row.direction + abs(row.a) * of_x + abs(row.b) * of_out + row.sigma
    return "x_prev" if differs(prev, exact_prev, size, prev.dtype) else None


def check_case(case: Draw, draw: random.Random) -> str | None:
    """What is wrong, in words; None if nothing is. Raises the case's clear error."""
    cls: Any = DDIMInverseScheduler if case.is_inverse else DDIMScheduler
    scheduler = cls.from_config(case.settings)
    if case.what == "lists":
        listed = draw.choice(LISTS)
        scheduler.set_timesteps(timesteps=listed)
        scheduler.timesteps = listed
        return None
    scheduler.set_timesteps(case.steps)
    if case.what == "dict":
        plan = scheduler.plan(case.steps, eta=0 if case.is_inverse else case.eta)
        values = json.loads(json.dumps(plan.to_dict()))
        if SamplingPlan.from_dict(values) != plan:
            return "another plan from the plan's dict"
        SamplingPlan.from_dict({**values, draw.choice([*values]): draw.choice(OF_A_PLAN)})
        return None
    timestep = int(draw.choice(scheduler.timesteps.tolist()))
    if case.what in ("noise", "velocity"):
        return check_mixture(case, scheduler, timestep, draw)
    if case.is_inverse:
        found = scheduler.step(case.output, timestep, case.sample).prev_sample
        return None if found.shape == case.sample.shape else "the shape"
    return check_step(case, scheduler, timestep, draw)


def sweep(seed: int, count: int) -> tuple[int, list[str]]:
    """How many of so many cases had a result, and what was wrong."""
    draw = random.Random(seed)
    worked, wrong = 0, []
    for number in range(count):
        case = draw_case(draw)
        try:
            fault = check_case(case, draw)
            worked += 1
        except DDIMError:
            fault = None
        except (ValueError, TypeError) as error:  # of ours, and not of a library that we call
            place = traceback.extract_tb(error.__traceback__)[-1]
            fault = None if "/ddim/" in place.filename and "raise " in (place.line or "") else repr(error)
        except Exception as error:
            fault = repr(error)
        if fault is not None:
            wrong.append(f"seed {seed}, case {number}: {fault}: {case}"[:2000])
    return worked, wrong


@pytest.mark.filterwarnings("ignore:quadratic spacing", "ignore:.*does not know these settings")
def test_random_settings_give_the_right_value_or_one_clear_error() -> None:
    worked, wrong = sweep(0, 400)
    assert not wrong
    assert worked > 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_more_of_them(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        worked, wrong = sweep(seed, 5000)
    assert not wrong
    assert worked > 1000


OPTIMIZED: list[Any] = [{"2": bad} for bad in ("12", [[1]], None, [HUGE], {"a": 1}, [1e308], [5, 5], [INF])]


@pytest.mark.parametrize("cls", [DDIMScheduler, DDIMInverseScheduler])
def test_any_setting_of_a_file_works_or_is_one_clear_error(cls: Any, tmp_path: Path) -> None:
    settings = [*inspect.signature(cls.__init__).parameters][1:]
    x = torch.ones(1, 4, 2, 2)
    worked = 0
    with warnings.catch_warnings(), limits():
        warnings.simplefilter("ignore")
        for number, name in enumerate([*settings, "_class_name", "_diffusers_version", "_use_default_values"]):
            for value in [*VALUES[number % 5 :: 5], *OPTIMIZED * (name == "optimized_timesteps")]:
                base = {"timestep_spacing": "optimized"} if value in OPTIMIZED else {"thresholding": number % 2 == 0}
                (tmp_path / cls.config_name).write_text(json.dumps({**base, name: value}))
                worked += works(cls, tmp_path, x)
    assert worked > 20


def works(cls: Any, folder: Path, x: Tensor) -> bool:
    """Whether a run by a scheduler's file works; a short error of ours is raised otherwise."""
    try:
        scheduler = cls.from_pretrained(folder)
        scheduler.set_timesteps(2)
        for timestep in scheduler.timesteps:
            assert scheduler.step(x, timestep, x).prev_sample.shape == x.shape
    except DDIMError as error:
        return not is_short(error)
    return True


def is_short(error: Exception) -> bool:
    assert len(str(error)) < 3000
    return True


# --- the kinds that were found ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 0, 4), (0, 3, 4, 4), (2, 3, 0, 0), (0,), (1, 0)])
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_thresholding_of_nothing_is_nothing(shape: tuple[int, ...], wants_gradient: bool) -> None:
    scheduler = DDIMScheduler(thresholding=True)
    scheduler.set_timesteps(10)
    x = torch.zeros(shape, requires_grad=wants_gradient)
    assert scheduler.step(x, 901 // 100 * 100, x).prev_sample.shape == shape


def test_thresholding_of_single_numbers() -> None:
    for wants_gradient in (False, True):
        x = torch.tensor([0.5, -3.0, 20.0], requires_grad=wants_gradient)
        assert threshold(x, 0.9, 10.0).tolist() == [0.5, -1.0, 1.0]
        assert [float(threshold(one, 0.9, 10.0).detach()) for one in x] == pytest.approx([0.5, -1, 1])
        assert threshold(x[1], 0.9, 10.0).shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("limit", [1e-308, 1e-45, 4e38, 1e300, INF])
def test_limits_that_a_type_does_not_have(limit: float, dtype: torch.dtype) -> None:
    x = torch.tensor([[-2.0, 0.0, 0.25, 3.0]], dtype=dtype)
    for wants_gradient in (False, True):
        for settings in ({"clip_sample_range": limit}, {"thresholding": True, "sample_max_value": limit}):
            scheduler = DDIMScheduler(prediction_type="sample", **settings)  # type: ignore[arg-type]
            scheduler.set_timesteps(10)
            found = scheduler.step(x.clone().requires_grad_(wants_gradient), 500, x).pred_original_sample
            assert found is not None
            if limit < 1 and "thresholding" in settings:
                assert found.tolist() == [[-1, 0, 1, 1]]
            elif limit < 1:
                assert found.abs().max() <= 1.5e-45
            elif "thresholding" not in settings:
                assert torch.equal(found, x)
            else:
                exact = oracle.limited(oracle.Settings(thresholding=True, sample_max_value=limit), x.double())
                torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=0)


def test_a_level_so_low_that_the_factors_are_lopsided() -> None:
    """a·(x + b/a·y), which rounds better where the terms cancel, is infinite here."""
    plan = SamplingPlan((1, 0), (0.5, 1e-80), prediction_type="v_prediction", clip_range=None)
    x, out = torch.full((1, 4), 2.0), torch.full((1, 4), 3.0)
    result = plan.step(out, 1, x)
    assert result.prev_sample[0].tolist() == pytest.approx([plan.row(1).a * 2 + plan.row(1).b * 3] * 4)
    into = (x, torch.empty_like(x))
    assert torch.equal(plan.step(out, 1, x.clone(), out=None).prev_sample, plan.step(out, 1, x, out=into).prev_sample)


@pytest.mark.parametrize("side", [2, 520])
def test_factors_that_float32_does_not_have(side: int) -> None:
    plan = SamplingPlan((1,), (0.5, 1e-80), clip_range=None)
    assert plan.row(1).p > 1e39
    x = torch.full((1, 1, side, side), 1e-10)
    x[..., 0] = 0.0
    for into in (None, (torch.empty_like(x), torch.empty_like(x))):
        result = plan.step(x * 1e-9, 1, x, out=into)
        found = result.pred_original_sample
        assert found is not None
        assert found[0, 0, 0, 1].item() == pytest.approx(1e30, rel=1e-6)
        assert found[0, 0, 0, 0].item() == 0


def test_numbers_that_no_float_is_as_large_as_are_refused() -> None:
    for settings in ({"clip_sample_range": HUGE}, {"thresholding": True, "sample_max_value": HUGE}):
        with pytest.raises(ConfigError, match=r"clip_sample_range|sample_max_value"):
            DDIMScheduler(**settings).plan(10)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="eta must be a number"):
        DDIMScheduler().plan(10, eta=HUGE)
    stride = SamplingPlan.from_dict({"timesteps": [1], "alphas_cumprod": [0.9, 0.5], "legacy_stride": HUGE})
    assert stride.previous_timesteps == (-1,)


def test_tensors_on_two_devices_are_said() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="model_output is on meta, the sample on cpu: move one to the other"):
        scheduler.step(x.to("meta"), 900, x)
    with pytest.raises(ValueError, match="sample and noise are on cpu and meta"):
        scheduler.add_noise(x, x.to("meta"), 900)
    with pytest.raises(ValueError, match="timesteps on the meta device have no values"):
        scheduler.add_noise(x, x, torch.zeros(2, dtype=torch.int64, device="meta"))
    with pytest.raises(ConfigError, match="timesteps must be a list of ints"):
        scheduler.set_timesteps(timesteps=torch.tensor([2, 1], device="meta"))  # type: ignore[arg-type]


def test_a_single_number_is_noised_as_a_single_number() -> None:
    scheduler = DDIMScheduler()
    x, z = torch.tensor(2.0), torch.tensor(3.0)
    whole = scheduler.add_noise(x[None], z[None], 500)
    for timestep in (500, torch.tensor(500), torch.tensor([500])):
        assert torch.equal(scheduler.add_noise(x, z, timestep), whole[0])
    with pytest.raises(ValueError, match="2 timesteps do not fit"):
        scheduler.add_noise(x, z, torch.tensor([500, 1]))
