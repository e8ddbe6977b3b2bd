"""The loop: what it yields, what may be done to it, and when it stops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from oracle import Gaussian, Long, Settings, distance, level_at
from torch import Tensor

from ddim import DDIMScheduler, SampleStep, SamplingPlan, sample
from ddim.errors import ConfigError, NonFiniteError
from ddim.noise import gaussian_noise, seeded_generators

SETTINGS = Settings(clip_sample=False, timestep_spacing="trailing")
DENOISER = Gaussian(SETTINGS, mean=0.3, deviation=0.6)


def make_plan(count: int = 6, eta: float = 0.0, **changed: Any) -> SamplingPlan:
    return DDIMScheduler(**{**SETTINGS.as_config(), **changed}).plan(count, eta=eta)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def drain(*arguments: Any, **options: Any) -> list[SampleStep]:
    return list(sample(*arguments, **options))


def test_the_loop_is_the_plan_step_by_step() -> None:
    plan, x = make_plan(eta=0.5), noise(2, 3, 4, 4)
    made = drain(DENOISER, x, plan, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    assert len(made) == len(plan)
    for index, (t, found) in enumerate(zip(plan.timesteps, made, strict=True)):
        out = DENOISER(x, t)
        x, x0 = plan.step(out, t, x, generator=generator)
        assert (found.index, found.timestep, found.previous_timestep) == (index, t, plan.previous_timesteps[index])
        assert torch.equal(found.sample, x)
        assert torch.equal(found.pred_original_sample, x0)
        assert torch.equal(found.model_output, out)
    assert made[-1].previous_timestep == -1


def test_it_draws_what_it_was_made_to_draw() -> None:
    x = noise(1, 3, 32, 32, dtype=torch.float64)
    for made in sample(DENOISER, x, make_plan(500)):
        found = made.sample
    z = x / math.sqrt(float(level_at(SETTINGS, 999)) * (0.6**2 - 1) + 1)  # the mean is all but gone at the start
    assert distance(found, DENOISER.at(z, Long(1))) < 0.02


@pytest.mark.parametrize("x0", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_what_was_yielded_is_never_written_to_again(x0: bool, clip: bool) -> None:
    """Even though this network answers in the same buffer each time."""
    buffer = torch.empty(2, 6, 4, 4)

    def denoiser(x: Tensor, timestep: Tensor) -> Tensor:
        buffer[:, :3] = DENOISER(x, timestep)
        return buffer[:, :3] if x0 else buffer  # with a variance after it

    x = noise(2, 3, 4, 4)
    start = x.clone()
    kept: list[tuple[SampleStep, list[Tensor]]] = []
    for made in sample(denoiser, x, make_plan(eta=0.5, clip_sample=clip), return_x0=x0):
        tensors = [value for value in vars(made).values() if isinstance(value, Tensor)]
        assert len(tensors) == (3 if x0 else 2)
        assert (made.pred_original_sample is None) is not x0
        kept.append((made, [tensor.clone() for tensor in tensors]))
    for made, before in kept:
        now = [value for value in vars(made).values() if isinstance(value, Tensor)]
        assert all(torch.equal(one, other) for one, other in zip(now, before, strict=True))
    assert torch.equal(x, start)
    assert len({made.sample.data_ptr() for made, _ in kept}) == len(kept)


def test_a_yielded_sample_may_be_spoilt_without_spoiling_the_others() -> None:
    made = []
    for found in sample(DENOISER, noise(1, 3, 4, 4), make_plan()):
        found.pred_original_sample.fill_(99)
        found.model_output.fill_(99)
        made.append(found.sample)
    assert torch.equal(made[-1], drain(DENOISER, noise(1, 3, 4, 4), make_plan())[-1].sample)


def test_a_sample_is_steered_by_assigning_it() -> None:
    plan, x = make_plan(), noise(1, 3, 4, 4)
    asked: list[Tensor] = []

    def denoiser(x: Tensor, timestep: Tensor) -> Tensor:
        asked.append(x)
        return DENOISER(x, timestep)

    given = []
    for made in sample(denoiser, x, plan):
        made.sample = made.sample + 0.1
        given.append(made.sample)
    assert all(one is other for one, other in zip(asked[1:], given[:-1], strict=True))
    plain = drain(DENOISER, x, plan)[-1].sample
    assert float((given[-1] - plain).mean()) > 0.1


def test_a_run_may_be_stopped_early() -> None:
    calls = []

    def denoiser(x: Tensor, timestep: Tensor) -> Tensor:
        calls.append(int(timestep))
        return DENOISER(x, timestep)

    for made in sample(denoiser, noise(1, 3, 4, 4), make_plan(10)):
        if made.index == 3:
            break
    assert calls == [999, 899, 799, 699]
    assert calls == list(make_plan(10).timesteps[:4])


def test_nothing_happens_before_the_first_step_is_asked_for() -> None:
    def denoiser(x: Tensor, timestep: Tensor) -> Tensor:
        raise AssertionError("asked too early")

    sample(denoiser, noise(1, 3), make_plan())


def test_the_network_is_given_the_timestep_as_a_0_dim_host_tensor() -> None:
    seen: list[Tensor] = []

    def denoiser(x: Tensor, timestep: Tensor) -> Tensor:
        seen.append(timestep)
        return DENOISER(x, timestep)

    drain(denoiser, noise(1, 3, 4, 4), make_plan())
    for t, found in zip(make_plan().timesteps, seen, strict=True):
        assert isinstance(found, Tensor)
        assert found.shape == ()
        assert found.dtype is torch.int64
        assert found.device.type == "cpu"
        assert int(found) == t


def test_a_predicted_variance_is_cut_off() -> None:
    def learned(x: Tensor, timestep: Tensor) -> Tensor:
        return torch.cat([DENOISER(x, timestep), torch.full_like(x, 1e6)], dim=1)

    x = noise(2, 3, 4, 4)
    plain = drain(DENOISER, x, make_plan())
    cut = drain(learned, x, make_plan())
    for one, other in zip(plain, cut, strict=True):
        assert one.model_output.shape == other.model_output.shape == x.shape
        assert torch.equal(one.sample, other.sample)


def test_a_predicted_variance_is_cut_off_vectors_too() -> None:
    plan, x = make_plan(), noise(4, 5)
    learned = drain(lambda x, t: torch.cat([DENOISER(x, t), x], dim=1), x, plan)
    assert torch.equal(learned[-1].sample, drain(DENOISER, x, plan)[-1].sample)
    for output in (noise(10), noise(4, 10, 1), noise(4, 6)):  # none of them is a prediction with a variance after it
        with pytest.raises(ValueError, match="model_output has shape"):
            drain(lambda x, t, output=output: output, x, plan)
    with pytest.raises(ValueError, match="model_output has shape"):
        drain(lambda x, t: torch.cat([x, x]), noise(5), plan)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [0, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_what_is_not_finite_stops_the_run_and_is_named(bad: float, when: int, dtype: torch.dtype) -> None:
    plan = make_plan(6)

    def denoiser(x: Tensor, timestep: Tensor) -> Tensor:
        out = DENOISER(x, timestep)
        if int(timestep) == plan.timesteps[when]:
            out[-1, 0, 0, 0] = bad
        return out

    run = sample(denoiser, noise(2, 3, 4, 4, dtype=dtype), plan)
    for _ in range(when):
        next(run)
    with pytest.raises(NonFiniteError, match=rf"step {when + 1} of 6 \(timestep {plan.timesteps[when]}\)"):
        next(run)


def test_large_outputs_that_are_finite_do_not_stop_a_run() -> None:
    def denoiser(x: Tensor, timestep: Tensor) -> Tensor:
        return torch.full_like(x, 60_000.0)  # near the end of float16

    plan = make_plan(2, clip_sample=True)
    made = drain(denoiser, noise(4, 3, 64, 64, dtype=torch.float16), plan)
    assert len(made) == 2


def test_the_options_reach_the_step() -> None:
    plan, x = make_plan(clip_sample=True, clip_sample_range=0.5), noise(1, 3, 4, 4)
    plain = drain(DENOISER, x, plan)[0]
    derived = drain(DENOISER, x, plan, use_clipped_model_output=True)[0]
    out = DENOISER(x, 999)
    expected = plan.step(out, 999, x, use_clipped_model_output=True)
    assert torch.equal(derived.sample, expected.prev_sample)
    assert not torch.equal(derived.sample, plain.sample)
    assert drain(DENOISER, x, plan, return_x0=False)[0].pred_original_sample is None


def test_the_kth_image_of_a_seed_is_the_same_for_any_batch_size() -> None:
    plan = make_plan(eta=1.0)

    def images(batch: int) -> Tensor:
        generators = seeded_generators(11, batch)
        x = gaussian_noise((batch, 3, 4, 4), generators, torch.device("cpu"), torch.float32)
        return drain(DENOISER, x, plan, generator=generators)[-1].sample

    five = images(5)
    for batch in (1, 2, 3):
        torch.testing.assert_close(images(batch), five[:batch], rtol=1e-6, atol=1e-6)
    assert (five[0] - five[1]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_run_keeps_its_type(dtype: torch.dtype) -> None:
    for made in sample(DENOISER, noise(1, 3, 4, 4, dtype=dtype), make_plan(eta=0.5)):
        assert made.sample.dtype is made.pred_original_sample.dtype is made.model_output.dtype is dtype


def test_a_run_can_be_differentiated() -> None:
    x = noise(1, 1, 2, 2, dtype=torch.float64).requires_grad_()
    level = make_plan(4)
    (gradient,) = torch.autograd.grad(drain(DENOISER, x, level)[-1].sample.sum(), x)
    step = 1e-6
    moved = [drain(DENOISER, x.detach() + sign * step, level)[-1].sample.sum() for sign in (1, -1)]
    assert float(gradient.sum()) == pytest.approx(float(moved[0] - moved[1]) / (2 * step), rel=1e-6)


def test_an_inverse_plan_runs_in_the_same_loop() -> None:
    image = 0.3 + 0.6 * noise(1, 3, 8, 8, dtype=torch.float64)
    plan = make_plan(400)
    up = drain(DENOISER, image, plan.inverted())
    assert [made.timestep for made in up] == list(plan.timesteps[::-1])
    assert [made.previous_timestep for made in up] == [-1, *plan.timesteps[:0:-1]]
    again = drain(DENOISER, up[-1].sample, plan)[-1].sample
    assert distance(again, image) < 0.03


@pytest.mark.parametrize(
    ("output", "error"),
    [
        (lambda x: x[:, :1], ValueError),
        (lambda x: torch.cat([x, x]), ValueError),
        (lambda x: x.flatten(1), ValueError),
        (lambda x: x.long(), TypeError),
    ],
)
def test_an_output_that_does_not_fit_is_refused(output: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"model_output|floating point"):
        drain(lambda x, t: output(x), noise(2, 3, 4, 4), make_plan())


def test_settings_that_cannot_work_are_refused_by_the_loop() -> None:
    x = noise(2, 3, 4, 4)
    with pytest.raises(ValueError, match="1 generators"):
        drain(DENOISER, x, make_plan(eta=1.0), generator=[torch.Generator()])
    with pytest.raises(ConfigError, match="use_clipped_model_output"):
        drain(DENOISER, x, make_plan(clip_sample=True).inverted(), use_clipped_model_output=True)
