"""What people reported of diffusers' DDIM, and that it is right here.

Each test first shows, with a number where there is one, that ours is right; then that the diffusers installed still
has the fault. Where it has been repaired the test says so by a skip: the comparison in the documentation is then out of
date. Issue numbers are huggingface/diffusers'.
"""

from __future__ import annotations

import ast
import inspect
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from oracle import Gaussian, Long, Settings, alpha_bars, distance, level_at, step
from torch import Tensor

from ddim import DDIMPipeline, DDIMScheduler, sample
from ddim.errors import ConfigError
from ddim.guidance import rescale_noise
from ddim.noise import gaussian_noise, seeded_generators


def repaired(what: str) -> None:
    pytest.skip(f"diffusers {diffusers.__version__} has repaired: {what}")


def run(scheduler: Any, denoiser: Gaussian, x: Tensor, count: int, eta: float = 0.0) -> Tensor:
    """A whole run; a network asked at timestep -1 sees what Python's index -1 gives."""
    scheduler.set_timesteps(count)
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps.tolist():
        out = denoiser.predict(x, alpha_bars(denoiser.settings)[t])
        x = scheduler.step(out, t, x, eta=eta, generator=generator).prev_sample
    return x


def both(settings: Settings) -> tuple[Any, Any]:
    return DDIMScheduler(**settings.as_config()), diffusers.DDIMScheduler(**settings.as_config())


def start(denoiser: Gaussian) -> tuple[Tensor, float]:
    """Where the path with the standardized value 1 starts, and where it must end."""
    z = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return denoiser.at(z, level_at(denoiser.settings, 999)), float(denoiser.at(z, Long(1)))


def their_function(file: str, name: str) -> Any:
    """One function of diffusers', without importing the pipelines (and transformers) around it."""
    source = (Path(diffusers.__file__).parent / file).read_text(encoding="utf-8")
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == name]
    if len(found) != 1:
        pytest.skip(f"this diffusers has no {name} in {file}")
    return found[0]


# --- timesteps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_the_previous_timestep_is_the_next_in_the_list(spacing: str) -> None:
    """#11347, #12633, #9261: t - T//N is another one, so a run does not converge to the right result."""
    settings = Settings(timestep_spacing=spacing, clip_sample=False)
    denoiser = Gaussian(settings)
    x, exact = start(denoiser)
    ours, theirs = both(settings)
    errors = {count: abs(float(run(ours, denoiser, x, count)) - exact) for count in (150, 300, 600)}
    assert errors[600] < 0.003
    assert errors[300] == pytest.approx(errors[150] / 2, rel=0.1)
    assert errors[600] == pytest.approx(errors[300] / 2, rel=0.15)
    their_error = abs(float(run(theirs, denoiser, x, 600)) - exact)
    if their_error < 2 * errors[600]:
        repaired("the previous timestep")
    assert their_error > 4 * errors[600]


def test_trailing_gives_as_many_timesteps_as_were_asked_for() -> None:
    """For 62 values of N there is one more, -1, at which ᾱ_{T-1} is read, and the sample is destroyed."""
    settings = Settings(timestep_spacing="trailing", clip_sample=False)
    denoiser = Gaussian(settings)
    x, exact = start(denoiser)
    ours, theirs = both(settings)
    for count in (61, 103, 201):
        found = [float(run(ours, denoiser, x, n)) for n in (count - 1, count, count + 1)]
        assert len(ours.plan(count)) == count
        assert found[1] == pytest.approx(found[0], rel=0.05)
        assert found[1] == pytest.approx(found[2], rel=0.05)
        assert found[0] < found[1] < found[2] < exact
    theirs.set_timesteps(61)
    if len(theirs.timesteps) == 61:
        repaired("the number of trailing timesteps")
    assert theirs.timesteps[-1] == -1
    assert abs(float(run(theirs, denoiser, x, 61)) - exact) > 0.4  # 60 and 62 are within 0.03


def test_an_offset_does_not_lead_out_of_the_schedule() -> None:
    """#10003: steps_offset=1 with N=1000 is an IndexError."""
    settings = Settings(steps_offset=1, clip_sample=False)
    denoiser = Gaussian(settings)
    x, exact = start(denoiser)
    ours, theirs = both(settings)
    assert float(run(ours, denoiser, x, 1000)) == pytest.approx(exact, rel=0.01)
    assert ours.timesteps[0] == 999
    theirs.set_timesteps(1000)
    if theirs.timesteps.max() < 1000:
        repaired("steps_offset=1 with N=1000")
    with pytest.raises(IndexError):
        theirs.step(x, int(theirs.timesteps[0]), x)


def test_timesteps_of_ones_own_and_quadratic_ones_and_the_previous_one() -> None:
    """#2165, #1457, #5310, #7401: none of these can be had."""
    denoiser = Gaussian(Settings(clip_sample=False), deviation=0.1)
    x, exact = start(denoiser)

    def error(scheduler: DDIMScheduler, **wanted: Any) -> float:
        plan, found = scheduler.plan(**wanted), x
        for t in plan.timesteps:
            found = plan.step(denoiser(found, t), t, found).prev_sample
        return abs(float(found) - exact)

    listed = [999, *DDIMScheduler(timestep_spacing="quadratic", clip_sample=False).plan(20).timesteps]
    uniform = error(DDIMScheduler(timestep_spacing="linspace", clip_sample=False), num_inference_steps=21)
    assert error(DDIMScheduler(clip_sample=False), timesteps=listed) < 0.7 * uniform
    ours = DDIMScheduler()
    ours.set_timesteps(timesteps=[900, 400, 10])
    assert [ours.previous_timestep(t) for t in (900, 400, 10)] == [400, 10, -1]

    theirs = diffusers.DDIMScheduler(timestep_spacing="quadratic")
    with pytest.raises(ValueError, match="not supported"):
        theirs.set_timesteps(20)
    if "timesteps" in inspect.signature(theirs.set_timesteps).parameters or hasattr(theirs, "previous_timestep"):
        repaired("custom timesteps")


def test_each_sample_may_have_its_own_timestep() -> None:
    """#1784: only in a class of its own."""
    settings = Settings()
    ours, theirs = both(settings)
    out, x = torch.randn(2, 2, 3, 8, 8)
    timesteps = torch.tensor([900, 300])
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    found = ours.step(out, timesteps, x).prev_sample
    for i, t in enumerate(timesteps.tolist()):
        exact, _ = step(settings, level_at(settings, t), level_at(settings, t - 100), x[i], out[i])
        assert distance(found[i], exact) < 1e-6
    try:
        theirs.step(out, timesteps, x)
    except (RuntimeError, ValueError):
        return
    repaired("per-sample timesteps")


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_zero_snr_with_a_predicted_epsilon_is_an_error_and_no_black_image() -> None:
    """#3851, #4195, #5103: a division by zero, silently."""
    ours, theirs = both(Settings(rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False))
    with pytest.raises(ConfigError, match="prediction_type='v_prediction'"):
        ours.set_timesteps(10)
    theirs.set_timesteps(10)
    out, x = torch.randn(2, 1, 3, 8, 8)
    if theirs.step(out, 999, x).prev_sample.isfinite().all():
        repaired("zero terminal SNR with epsilon")


def test_zero_snr_with_full_noise_is_not_nan() -> None:
    """#5969: η=1 and trailing: the radicand is negative by rounding."""
    settings = Settings(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction", clip_sample=False
    )
    ours, theirs = both(settings)
    denoiser = Gaussian(settings, mean=0.5, deviation=0.5)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = run(ours, denoiser, x, 250, eta=1.0)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(found.std()) == pytest.approx(0.5, abs=0.02)
    if not run(theirs, denoiser, x, 250, eta=1.0).isnan().any():
        repaired("zero terminal SNR with eta=1")


def test_float32_numbers_are_not_nan() -> None:
    """A fine cosine schedule, or a single step that ends on ᾱ_0, with η=1; no thread found."""
    fine = Settings(num_train_timesteps=4000, beta_schedule="squaredcos_cap_v2")
    single = Settings(timestep_spacing="trailing", set_alpha_to_one=False, beta_schedule="squaredcos_cap_v2")
    out, x, noise = torch.randn(3, 1, 3, 8, 8)
    theirs_failed = 0
    for settings, count in ((fine, 4000), (single, 1)):
        ours, theirs = both(settings)
        ours.set_timesteps(count)
        theirs.set_timesteps(count)
        listed = ours.timesteps.tolist()
        for index in {*range(0, count, 97), *range(max(count - 40, 0), count)}:
            t, previous = listed[index], [*listed[1:], -1][index]
            found = ours.step(out, t, x, 1.0, variance_noise=noise).prev_sample
            here, there = level_at(settings, t), level_at(settings, previous)
            exact, _ = step(settings, here, there, x, out, eta=1.0, noise=noise)
            assert distance(found, exact) < 1e-5
            theirs_failed += not theirs.step(out, t, x, 1.0, variance_noise=noise).prev_sample.isfinite().all()
    if not theirs_failed:
        repaired("the precision of its numbers")


def test_more_noise_than_there_is_room_for_is_an_error() -> None:
    """η = 1.5 gives NaN at nine of ten steps."""
    ours, theirs = both(Settings())
    out, x, noise = torch.randn(3, 1, 3, 8, 8)
    ours.set_timesteps(10)
    with pytest.raises(ConfigError, match="use eta in"):
        ours.step(out, 900, x, eta=1.5)
    with pytest.raises(ConfigError, match="use eta in"):
        ours.plan(10, eta=1.5)
    theirs.set_timesteps(10)
    spoilt = sum(
        bool(theirs.step(out, t, x, 1.5, variance_noise=noise).prev_sample.isnan().any()) for t in theirs.timesteps
    )
    if spoilt == 0:
        repaired("eta above 1")
    assert spoilt == 9


def test_too_few_trained_betas_are_an_error_at_once() -> None:
    """They give an IndexError later."""
    with pytest.raises(ConfigError, match="num_train_timesteps=500"):
        DDIMScheduler(trained_betas=[0.01] * 500)
    try:
        theirs = diffusers.DDIMScheduler(trained_betas=[0.01] * 500)
    except ValueError:
        repaired("the length of trained_betas")
    theirs.set_timesteps(10)
    with pytest.raises(IndexError):
        theirs.step(torch.zeros(1, 3), theirs.timesteps[0], torch.zeros(1, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_first_noise_levels_do_not_vanish_in_half_precision(dtype: torch.dtype) -> None:
    """#3056, PR 9004: ᾱ is rounded before 1-ᾱ, so that nearly clean images are wholly clean."""
    ours, theirs = both(Settings())
    noise = torch.randn(1, 3, 64, 64)
    lost = 0
    for t in range(10):
        exact = float(1 - level_at(Settings(), t)) ** 0.5
        clean = torch.zeros_like(noise, dtype=dtype)
        found = ours.add_noise(clean, noise.to(dtype), torch.tensor([t]))
        assert float(found.double().std()) == pytest.approx(exact * float(noise.std()), rel=0.01)
        lost += bool((theirs.add_noise(clean, noise.to(dtype), torch.tensor([t])) == clean).all())
    if lost == 0:
        repaired("half-precision noise levels")
    assert lost == (10 if dtype is torch.bfloat16 else 2)


def test_a_constant_prediction_is_not_nan_after_rescaling() -> None:
    """#13425: a standard deviation of zero is divided by."""
    constant, image = torch.full((1, 3, 4, 4), 0.5), torch.randn(1, 3, 4, 4)
    assert torch.equal(rescale_noise(constant, constant, 0.7), constant)
    mixed = rescale_noise(torch.cat([constant, image]), torch.cat([constant, 2 * image]), 0.7)
    torch.testing.assert_close(mixed, torch.cat([constant, image * (0.7 * 2 + 0.3)]))
    function = their_function("pipelines/stable_diffusion/pipeline_stable_diffusion.py", "rescale_noise_cfg")
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([function], []), "diffusers", "exec"), scope)
    if scope["rescale_noise_cfg"](constant, constant, 0.7).isfinite().all():
        repaired("rescale_noise_cfg of a constant")


# --- sharing ---------------------------------------------------------------------------------------------------------


def test_two_requests_may_share_a_scheduler() -> None:
    """#9833, #3672: the second call of set_timesteps spoils the run of the first."""
    settings = Settings(clip_sample=False)
    denoiser = Gaussian(settings)
    x, exact = start(denoiser)
    ours, theirs = both(settings)
    alone = float(run(ours, denoiser, x, 50))

    first, second = ours.plan(50), ours.plan(5)
    found = x
    for t in first.timesteps:
        found = first.step(denoiser(found, t), t, found).prev_sample
        second.step(x, 800, x)
        ours.set_timesteps(5)
    assert float(found) == pytest.approx(alone, rel=1e-12)
    assert alone == pytest.approx(exact, rel=0.05)

    theirs.set_timesteps(50)
    found = x
    for index, t in enumerate(theirs.timesteps.tolist()):
        if index == 10:
            theirs.set_timesteps(5)  # another request
        found = theirs.step(denoiser(found, t), t, found).prev_sample
    if float(found) == pytest.approx(alone, rel=1e-3):
        repaired("sharing a scheduler")


def test_a_step_does_not_wait_for_the_device() -> None:
    """#9485: a CPU table is indexed with a timestep of the device, which is a synchronization each step.

    On the meta device a tensor has no values, so whoever needs the timestep's fails.
    """
    ours, theirs = both(Settings())
    x = torch.empty(2, 3, 8, 8, device="meta")
    ours.set_timesteps(10, device="meta")
    theirs.set_timesteps(10, device="meta")
    assert ours.step(x, ours.timesteps[0], x).prev_sample.shape == x.shape
    try:
        theirs.step(x, theirs.timesteps[0], x)
    except (NotImplementedError, RuntimeError):
        return
    repaired("the synchronization of each step")


def test_a_config_is_frozen() -> None:
    """#3767, #9503: theirs is emptied and added to."""
    config = DDIMScheduler().config
    before = dict(config)
    for name, arguments in (("clear", ()), ("popitem", ()), ("__ior__", ({"a": 1},)), ("update", ({"a": 1},))):
        with pytest.raises(TypeError, match="read-only"):
            getattr(config, name)(*arguments)
    assert dict(config) == before
    theirs = diffusers.DDIMScheduler().config
    try:
        theirs.clear()
    except Exception:
        repaired("FrozenDict")
    assert len(theirs) == 0


# --- pipelines -------------------------------------------------------------------------------------------------------


def test_the_pipeline_takes_latents() -> None:
    """#4654, #5703: without them nothing can be interpolated or inverted through it."""
    assert "latents" in inspect.signature(DDIMPipeline.__call__).parameters
    function = their_function("pipelines/ddim/pipeline_ddim.py", "__call__")
    if "latents" in [argument.arg for argument in function.args.args]:
        repaired("the DDIM pipeline's latents")


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_does_not_depend_on_how_many_are_made_with_it(eta: float) -> None:
    """#2659, #6222: with one seed, the batch size decides what each image is."""
    settings = Settings()
    denoiser = Gaussian(settings)
    plan = DDIMScheduler().plan(10, eta=eta)

    def images(generators: Any, batch: int) -> Tensor:
        x = gaussian_noise((batch, 3, 4, 4), generators, torch.device("cpu"), torch.float32)
        for made in sample(denoiser, x, plan, generator=generators):
            x = made.sample
        return x

    five = images(seeded_generators(7, 5), 5)
    for batch in (1, 2, 4):
        torch.testing.assert_close(images(seeded_generators(7, batch), batch), five[:batch], rtol=1e-6, atol=1e-6)
    last = images(seeded_generators(7, 5)[4:], 1)  # made elsewhere, alone
    torch.testing.assert_close(last, five[4:], rtol=1e-6, atol=1e-6)
    assert (five[0] - five[1]).abs().max() > 0.1
    if eta:  # what one generator for the whole batch does
        one, three = (images(torch.Generator().manual_seed(7), batch) for batch in (1, 3))
        assert (one - three[:1]).abs().max() > 0.1


def test_the_table_of_faults_is_not_one_of_opinions() -> None:
    """The closed forms on which this file rests: a Gaussian's denoiser knows its own path."""
    settings = Settings(clip_sample=False)
    denoiser = Gaussian(settings, mean=0.3, deviation=0.2)
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.2 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    noise = torch.randn(200_000, generator=generator, dtype=torch.float64)
    for t in (10, 300, 900):
        ab = float(level_at(settings, t))
        x = math.sqrt(ab) * image + math.sqrt(1 - ab) * noise
        residual = noise - denoiser(x, t)
        # the best guess leaves nothing that x or a constant could explain
        assert abs(float(residual.mean())) < 0.01
        assert abs(float((residual * x).mean())) < 0.01
        spread = float(denoiser.at(torch.ones(1), Long(ab)) - math.sqrt(ab) * 0.3)
        assert spread == pytest.approx(float(x.std()), rel=0.01)
