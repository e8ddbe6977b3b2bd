"""The schedulers: diffusers' interface, name by name, and what is ours."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from fresh import python
from oracle import Gaussian, Long, Settings, alpha_bars, distance, level_at, sigma, step
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from ddim import DDIMInverseScheduler, DDIMScheduler
from ddim.errors import ConfigError
from ddim.process import PREDICTIONS
from ddim.step import DDIMSchedulerOutput

PAIRS = [
    pytest.param(DDIMScheduler, diffusers.DDIMScheduler, id="forward"),
    pytest.param(DDIMInverseScheduler, diffusers.DDIMInverseScheduler, id="inverse"),
]
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def ready(count: int = 10, **changed: Any) -> DDIMScheduler:
    scheduler = DDIMScheduler(**changed)
    scheduler.set_timesteps(count)
    return scheduler


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A model output and a sample."""
    return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)


# --- the interface ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("method", ["__init__", "step", "add_noise", "get_velocity", "scale_model_input"])
def test_arguments_have_diffusers_names_order_and_defaults(ours: type, theirs: type, method: str) -> None:
    if not hasattr(theirs, method):
        pytest.skip("diffusers' inverse scheduler has no such method")
    wanted = [p for p in inspect.signature(getattr(theirs, method)).parameters.values() if p.kind != p.VAR_KEYWORD]
    found = [p for p in inspect.signature(getattr(ours, method)).parameters.values() if p.kind != p.VAR_KEYWORD]
    assert [p.name for p in found[: len(wanted)]] == [p.name for p in wanted]
    assert [p.default for p in found[: len(wanted)]] == [p.default for p in wanted]
    extra = {p.name: p.default for p in found[len(wanted) :]}
    of_config = {"legacy_previous_timestep": False, "optimized_timesteps": None}
    if ours is DDIMScheduler:
        names = ("steps", "order", "spacing", "guidance_scale", "guidance_rescale")
        of_config |= {f"recommended_{name}": None for name in names} | {"trained_timesteps": None}
    assert extra == (of_config if method == "__init__" else {})


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_set_timesteps_takes_what_diffusers_does_and_a_list(ours: type, theirs: type) -> None:
    names = list(inspect.signature(ours.set_timesteps).parameters)
    assert names[:3] == list(inspect.signature(theirs.set_timesteps).parameters)
    assert names[3:] == ["timesteps"]  # pipelines look for this name


@pytest.mark.parametrize("method", ["step", "set_timesteps"])
def test_signatures_are_literal(method: str) -> None:
    """Pipelines look into them to see which arguments they may pass."""
    for cls in (DDIMScheduler, DDIMInverseScheduler):
        kinds = {p.kind for p in inspect.signature(getattr(cls, method)).parameters.values()}
        assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_attributes_are_diffusers(ours: Any, theirs: Any, schedule: str, zero_snr: bool) -> None:
    for to_one in (True, False):
        given = {"beta_schedule": schedule, "rescale_betas_zero_snr": zero_snr, "set_alpha_to_one": to_one}
        mine, other = ours(**given), theirs(**given)
        for name in ("betas", "alphas", "alphas_cumprod"):
            torch.testing.assert_close(getattr(mine, name), getattr(other, name), rtol=1e-3, atol=1e-6)
            assert getattr(mine, name).dtype is torch.float32
        end = "final_alpha_cumprod" if ours is DDIMScheduler else "initial_alpha_cumprod"
        torch.testing.assert_close(getattr(mine, end), getattr(other, end))
        assert torch.equal(mine.timesteps, other.timesteps)
        assert mine.timesteps.dtype is other.timesteps.dtype
        assert mine.num_inference_steps is other.num_inference_steps is None
        assert mine.init_noise_sigma == other.init_noise_sigma == 1.0
        assert mine.order == other.order == 1
        assert len(mine) == len(other) == 1000
        assert mine.config_name == other.config_name


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedule_tensors_are_the_oracles(schedule: str, zero_snr: bool) -> None:
    settings = Settings(beta_schedule=schedule, rescale_betas_zero_snr=zero_snr)
    scheduler = DDIMScheduler(**settings.as_config())
    exact = np.array(alpha_bars(settings))
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), exact.astype(np.float32), rtol=1e-6)
    ratio = exact / np.array([Long(1), *exact[:-1]])
    np.testing.assert_allclose(scheduler.alphas.numpy(), ratio.astype(np.float32), rtol=1e-6)
    np.testing.assert_allclose(scheduler.betas.numpy(), (1 - ratio).astype(np.float32), rtol=1e-6)


def test_betas_of_one_leave_no_nan_behind() -> None:
    scheduler = DDIMScheduler(3, trained_betas=[0.5, 1.0, 1.0])
    assert scheduler.alphas_cumprod.tolist() == [0.5, 0.0, 0.0]
    assert scheduler.alphas.tolist() == [0.5, 0.0, 0.0]
    assert scheduler.betas.tolist() == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("count", [1, 7, 10, 999])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_set_timesteps_is_diffusers(count: int, spacing: str) -> None:
    mine, other = DDIMScheduler(timestep_spacing=spacing), diffusers.DDIMScheduler(timestep_spacing=spacing)
    mine.set_timesteps(count)
    other.set_timesteps(count)
    assert torch.equal(mine.timesteps, other.timesteps)
    assert mine.timesteps.dtype is torch.int64
    assert mine.num_inference_steps == other.num_inference_steps == count
    if spacing != "linspace":  # which diffusers' inverse has not
        up, other_up = (
            DDIMInverseScheduler(timestep_spacing=spacing),
            diffusers.DDIMInverseScheduler(timestep_spacing=spacing),
        )
        up.set_timesteps(count)
        other_up.set_timesteps(count)
        assert torch.equal(up.timesteps, other_up.timesteps)


def test_set_timesteps_takes_a_list_and_a_device() -> None:
    scheduler = DDIMScheduler()
    for given in ([900, 20, 3], (900, 20, 3), np.array([900, 20, 3]), torch.tensor([900, 20, 3])):
        scheduler.set_timesteps(timesteps=given)  # type: ignore[arg-type]
        assert scheduler.timesteps.tolist() == [900, 20, 3]
        assert scheduler.num_inference_steps == 3
    out, x = pair(1, 3, 4, 4)
    assert torch.equal(scheduler.step(out, 900, x)[0], scheduler.plan(timesteps=[900, 20, 3]).step(out, 900, x)[0])
    scheduler.set_timesteps(5, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    assert scheduler.timesteps.shape == (5,)
    scheduler.set_timesteps(5, "cpu")
    assert scheduler.timesteps.device.type == "cpu"


def test_timesteps_can_be_assigned() -> None:
    scheduler = ready(10)
    settings = Settings()
    scheduler.timesteps = scheduler.timesteps[4:]  # as image-to-image pipelines do
    assert scheduler.timesteps.tolist() == [500, 400, 300, 200, 100, 0]
    assert scheduler.num_inference_steps == 10  # as in diffusers: clients compute T // N from it
    scheduler.timesteps = torch.tensor([700, 30])
    out, x = pair(1, 3, 4, 4)
    exact, _ = step(settings, level_at(settings, 700), level_at(settings, 30), x, out)
    assert distance(scheduler.step(out, 700, x)[0], exact) < 1e-6
    scheduler.timesteps = [5]
    assert scheduler.timesteps.tolist() == [5]
    for wrong in ([1000], [1.5], 7, None, ["a"]):
        with pytest.raises((ConfigError, RuntimeError, TypeError)):
            scheduler.timesteps = wrong
        assert scheduler.timesteps.tolist() == [5]


def test_previous_timestep() -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    assert [scheduler.previous_timestep(t) for t in (999, 1, 0)] == [998, 0, -1]
    scheduler.set_timesteps(7)
    for t, previous in itertools.pairwise([*scheduler.timesteps.tolist(), -1]):
        assert scheduler.previous_timestep(t) == previous
        assert type(scheduler.previous_timestep(t)) is int
        assert torch.equal(scheduler.previous_timestep(torch.tensor(t)), torch.tensor(previous))
    assert scheduler.previous_timestep(torch.tensor([999, 0])).tolist() == [856, -1]
    assert DDIMScheduler(rescale_betas_zero_snr=True).previous_timestep(999) == 998  # needs no plan that works
    for wrong in (-1, 1000, torch.tensor(-1), torch.tensor([5, 1000])):
        with pytest.raises(ConfigError, match="0…999"):
            scheduler.previous_timestep(wrong)
    for wrong in (5.0, True, torch.tensor(5.0)):
        with pytest.raises(TypeError, match="integers"):
            scheduler.previous_timestep(wrong)
    with pytest.raises(TypeError):
        scheduler.previous_timestep("a")  # type: ignore[arg-type]


def test_small_parts_of_the_interface() -> None:
    scheduler = DDIMScheduler()
    x = torch.randn(2, 3)
    assert scheduler.scale_model_input(x, 5) is x
    assert scheduler.scale_model_input(x) is x
    theirs = [cls for cls in diffusers.DDIMScheduler().compatibles if not isinstance(cls, diffusers.utils.DummyObject)]
    assert {cls.__name__ for cls in theirs} <= set(scheduler._compatibles)
    assert {*theirs, DDIMScheduler} == set(scheduler.compatibles)
    assert python("import ddim; print(ddim.DDIMScheduler().compatibles == [ddim.DDIMScheduler])") == "True"
    assert '"beta_schedule": "linear"' in repr(scheduler)


@pytest.mark.parametrize("to_one", [True, False])
def test_get_variance(to_one: bool) -> None:
    settings = Settings(set_alpha_to_one=to_one)
    mine, other = DDIMScheduler(set_alpha_to_one=to_one), diffusers.DDIMScheduler(set_alpha_to_one=to_one)
    for t, previous in [(999, 899), (500, 400), (10, 0), (1, 0), (0, -100), (5, -1)]:
        exact = float(sigma(level_at(settings, t), level_at(settings, previous), 1.0)) ** 2
        found = mine._get_variance(t, previous)
        assert isinstance(found, Tensor)
        assert float(found) == pytest.approx(exact, rel=1e-6, abs=1e-12)
        assert float(found) == pytest.approx(float(other._get_variance(t, previous)), rel=2e-2, abs=1e-9)
        assert torch.equal(mine._get_variance(torch.tensor(t), torch.tensor(previous)), found)  # type: ignore[arg-type]


def test_config_values_are_attributes_with_a_warning() -> None:
    scheduler = DDIMScheduler(steps_offset=3)
    with pytest.warns(FutureWarning, match=r"config\.steps_offset") as caught:
        assert scheduler.steps_offset == 3
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for missing in ("sigmas", "_steps", "__wrapped__"):
            with pytest.raises(AttributeError, match=missing):
                getattr(scheduler, missing)


def test_alphas_cumprod_may_be_moved() -> None:
    scheduler = ready(10)
    before = scheduler.alphas_cumprod
    for moved in (before.double(), before.half(), before.to("cpu")):  # as pipelines move it to a device
        scheduler.alphas_cumprod = moved
        assert scheduler.alphas_cumprod is moved
    for other in (before * 2, before.flip(0), before[None], before[:0], "x", torch.nan * before):
        with pytest.raises(ConfigError, match=r"alphas_cumprod|levels"):
            scheduler.alphas_cumprod = other
        assert scheduler.alphas_cumprod is moved


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_schedulers_can_be_copied_and_pickled(ours: Any, theirs: Any) -> None:
    scheduler = ours(clip_sample_range=2.0)
    out, x = pair(2, 3, 4, 4)
    for state in ("new", "ready", "used"):
        if state == "ready":
            scheduler.set_timesteps(10)
        elif state == "used":
            scheduler.step(out, torch.tensor([500, 0]), x)
        for twin in (copy.copy(scheduler), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
            assert twin.config == scheduler.config
            assert torch.equal(twin.timesteps, scheduler.timesteps)
            if state != "new":
                assert torch.equal(twin.step(out, 500, x)[0], scheduler.step(out, 500, x)[0])
            twin.set_timesteps(3)
            assert len(scheduler.timesteps) == (1000 if state == "new" else 10)


def test_trained_betas_are_kept_in_the_config_and_on_disk(tmp_path: Path) -> None:
    given = [0.1, 0.2, 0.5]
    for betas in (given, tuple(given), np.array(given), torch.tensor(given, dtype=torch.float64)):
        scheduler = DDIMScheduler(3, trained_betas=betas)  # type: ignore[arg-type]
        torch.testing.assert_close(scheduler.betas, torch.tensor(given))
        torch.testing.assert_close(scheduler.alphas_cumprod, torch.tensor([0.9, 0.72, 0.36]))
        scheduler.save_config(tmp_path)
        again = DDIMScheduler.from_pretrained(tmp_path)
        assert torch.equal(again.betas, scheduler.betas)
        torch.testing.assert_close(diffusers.DDIMScheduler.from_pretrained(tmp_path).betas, scheduler.betas)


# --- step ------------------------------------------------------------------------------------------------------------


def test_step_options_reach_the_plan() -> None:
    scheduler = ready(10)
    plan = scheduler.plan(10)
    (out, x), noise = pair(2, 3, 4, 4), torch.randn(2, 3, 4, 4)

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    for t in scheduler.timesteps:
        found = scheduler.step(out, t, x)
        assert isinstance(found, DDIMSchedulerOutput)
        expected = plan.step(out, int(t), x)
        assert torch.equal(found.prev_sample, expected.prev_sample)
        assert torch.equal(found.pred_original_sample, expected.pred_original_sample)
    by_order = scheduler.step(out, 500, x, 0.5, True, None, noise, False)
    expected = plan.with_eta(0.5).step(out, 500, x, use_clipped_model_output=True, variance_noise=noise)
    assert type(by_order) is tuple
    assert all(torch.equal(one, other) for one, other in zip(by_order, expected, strict=True))
    assert not torch.equal(by_order[0], scheduler.step(out, 500, x, 0.5, False, None, noise)[0])
    for generators in (lambda: seeded(3), lambda: [seeded(3), seeded(4)]):
        found = scheduler.step(out, 500, x, eta=1.0, generator=generators())
        expected = plan.with_eta(1.0).step(out, 500, x, generator=generators())
        assert torch.equal(found[0], expected[0])
    assert torch.equal(
        scheduler.step(out, 500, x, eta="sigma_hat", variance_noise=noise)[0],  # type: ignore[arg-type]
        plan.with_eta("sigma_hat").step(out, 500, x, variance_noise=noise)[0],
    )


@pytest.mark.parametrize("rederive", [False, True])
@pytest.mark.parametrize("generators", [1, 2])
def test_a_seeded_run_is_diffusers(generators: int, rederive: bool) -> None:
    """Where diffusers is right, a run of several noisy steps gives the same image."""
    mine, other = ready(10), diffusers.DDIMScheduler()
    other.set_timesteps(10)
    results = []
    for scheduler in (mine, other):
        generator: Any = torch.Generator().manual_seed(1)
        if generators == 2:
            generator = [generator, torch.Generator().manual_seed(2)]
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x, 0.7, rederive, generator).prev_sample
        results.append(x)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_a_step_changes_nothing_in_the_scheduler() -> None:
    scheduler = ready(10)
    before = {name: copy.deepcopy(value) for name, value in vars(scheduler).items()}
    (out, x), noise = pair(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    first = scheduler.step(out, 500, x, 1.0, variance_noise=noise)[0]
    scheduler.step(out, torch.tensor([900, 5]), x, 0.3)
    scheduler.plan(77, eta=1.0)
    assert set(vars(scheduler)) == set(before)
    for name, value in before.items():
        now = getattr(scheduler, name)
        assert torch.equal(now, value) if isinstance(value, Tensor) else now == value, name
    assert torch.equal(scheduler.step(out, 500, x, 1.0, variance_noise=noise)[0], first)


def test_eight_threads_may_share_a_scheduler() -> None:
    scheduler = ready(10)

    def run(job: int) -> Tensor:
        x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(job))
        generator = torch.Generator().manual_seed(job)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x, eta=job / 7, generator=generator).prev_sample
        return x

    serial = [run(job) for job in range(8)]
    fresh = scheduler
    for _ in range(3):
        scheduler = ready(10)
        with ThreadPoolExecutor(8) as pool:
            parallel = list(pool.map(run, range(8)))
        assert all(torch.equal(one, other) for one, other in zip(serial, parallel, strict=True))
    assert fresh is not scheduler


def test_a_step_needs_timesteps() -> None:
    with pytest.raises(ConfigError, match="set_timesteps"):
        DDIMScheduler().step(*pair(1, 3)[:1], 5, torch.zeros(1, 3))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_an_invalid_step_is_refused_by_the_scheduler_too(kind: str) -> None:
    scheduler = ready(10, prediction_type=kind)
    out, x = pair(2, 3, 4, 4)
    for eta in (-1, float("nan"), "x", None, [1], np.float32(1.5), 1.5, torch.tensor(-0.5)):
        with pytest.raises(ConfigError, match="eta"):
            scheduler.step(out, 500, x, eta=eta)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not both"):
        scheduler.step(out, 500, x, 0.5, generator=torch.Generator(), variance_noise=x)
    with pytest.raises(ConfigError, match="0…999"):
        scheduler.step(out, 1000, x)


# --- a config that is rewritten --------------------------------------------------------------------------------------


def test_a_config_rewritten_as_pipelines_do_is_respected() -> None:
    scheduler = ready(10)
    out, x = pair(1, 3, 4, 4)
    clipped = scheduler.step(out * 9, 500, x)
    assert clipped.pred_original_sample.abs().max() <= 1
    new_config = dict(scheduler.config)
    new_config["clip_sample"] = False
    new_config["steps_offset"] = 1
    scheduler._internal_dict = FrozenDict(new_config)  # type: ignore[assignment]
    # the timesteps stay, the step follows
    assert scheduler.timesteps[-1] == 0
    free = scheduler.step(out * 9, 500, x)
    settings = Settings(clip_sample=False)
    exact, x0 = step(settings, level_at(settings, 500), level_at(settings, 400), x, out * 9)
    assert distance(free.prev_sample, exact) < 1e-6
    assert distance(free.pred_original_sample, x0) < 1e-6
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[-1] == 1
    assert scheduler.config.steps_offset == 1


def test_register_to_config_is_respected_too() -> None:
    scheduler = ready(10)
    out, x = pair(1, 3, 4, 4)
    scheduler.register_to_config(prediction_type="v_prediction", clip_sample=False)
    assert scheduler.config.prediction_type == "v_prediction"
    settings = Settings(prediction_type="v_prediction", clip_sample=False)
    exact, _ = step(settings, level_at(settings, 500), level_at(settings, 400), x, out)
    assert distance(scheduler.step(out, 500, x)[0], exact) < 1e-6
    scheduler.register_to_config(prediction_type="nonsense")
    with pytest.raises(ConfigError, match="nonsense"):
        scheduler.step(out, 500, x)


@pytest.mark.slow
def test_our_scheduler_in_diffusers_own_pipeline() -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    images = []
    for scheduler in (DDIMScheduler(), diffusers.DDIMScheduler()):
        pipe = diffusers.DDPMPipeline(unet, scheduler)  # which keeps the scheduler that it is given
        pipe.set_progress_bar_config(disable=True)
        assert pipe.scheduler is scheduler
        generator = torch.Generator().manual_seed(0)
        images.append(pipe(generator=generator, num_inference_steps=4, output_type="np").images)
    np.testing.assert_allclose(images[0], images[1], atol=1e-3)


# --- the forward process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_add_noise_and_velocity_are_the_papers(zero_snr: bool, dtype: torch.dtype) -> None:
    settings = Settings(rescale_betas_zero_snr=zero_snr)
    scheduler = DDIMScheduler(rescale_betas_zero_snr=zero_snr)
    image, noise = pair(5, 3, 8, 8, dtype=dtype)
    timesteps = torch.tensor([0, 3, 500, 998, 999])
    close = {torch.float64: 1e-12, torch.float32: 1e-7, torch.float16: 3e-4, torch.bfloat16: 3e-3}[dtype]
    noisy = scheduler.add_noise(image, noise, timesteps)
    velocity = scheduler.get_velocity(image, noise, timesteps)
    assert noisy.dtype is velocity.dtype is dtype
    for i, t in enumerate(timesteps.tolist()):
        ab = level_at(settings, t)
        signal, deviation = float(np.sqrt(ab)), float(np.sqrt(1 - ab))
        assert distance(noisy[i], signal * image[i].double() + deviation * noise[i].double()) < close
        assert distance(velocity[i], signal * noise[i].double() - deviation * image[i].double()) < close
    if zero_snr:
        assert torch.equal(noisy[-1], noise[-1])
        assert torch.equal(velocity[-1], -image[-1])


def test_add_noise_and_velocity_are_diffusers() -> None:
    mine, other = DDIMScheduler(), diffusers.DDIMScheduler()
    image, noise = pair(3, 3, 8, 8)
    for t in (torch.tensor([5, 500, 999]), torch.tensor([7])):
        for method in ("add_noise", "get_velocity"):
            found = getattr(mine, method)(image, noise, t)
            torch.testing.assert_close(found, getattr(other, method)(image, noise, t), rtol=1e-4, atol=1e-4)


def test_add_noise_takes_timesteps_of_every_kind() -> None:
    scheduler = DDIMScheduler()
    image, noise = pair(2, 3, 4, 4)
    expected = scheduler.add_noise(image, noise, torch.tensor([500, 500]))
    for t in (500, np.int64(500), [500], [500, 500], torch.tensor(500), torch.tensor([500]), torch.tensor([[500]])):
        assert torch.equal(scheduler.add_noise(image, noise, t), expected)  # type: ignore[arg-type]
    small = torch.tensor([200, 100], dtype=torch.uint8)
    assert torch.equal(scheduler.add_noise(image, noise, small), scheduler.add_noise(image, noise, small.long()))
    assert scheduler.add_noise(image[:0], noise[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 4, 4)
    mixed = scheduler.add_noise(image.half(), noise, 500)
    assert mixed.dtype is torch.float32
    meta = scheduler.add_noise(image.to("meta"), noise.to("meta"), torch.tensor([5, 6], device="meta"))
    assert meta.shape == image.shape


def test_add_noise_passes_gradients() -> None:
    scheduler = DDIMScheduler()
    image, noise = pair(2, 1, 2, 2, dtype=torch.float64)

    def run(image: Tensor, noise: Tensor) -> Tensor:
        return scheduler.add_noise(image, noise, torch.tensor([500, 9]))

    assert torch.autograd.gradcheck(run, (image.requires_grad_(), noise.requires_grad_()))


@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_what_makes_no_noisy_sample_is_refused(method: str) -> None:
    call = getattr(DDIMScheduler(), method)
    image, noise = pair(2, 3, 4, 4)
    for wrong in (torch.tensor([5, 1000]), torch.tensor([-1, 5]), 1000, -1):
        with pytest.raises(ConfigError, match="0…999"):
            call(image, noise, wrong)
    for wrong in (1.5, True, torch.tensor([0.5, 0.5]), "a", None, torch.tensor(5 + 0j)):
        with pytest.raises(TypeError):
            call(image, noise, wrong)
    for wrong in (torch.tensor([5, 5, 5]), [1, 2, 3], []):
        with pytest.raises((ValueError, TypeError), match="timesteps"):
            call(image, noise, wrong)
    with pytest.raises(ValueError, match="do not fit"):
        call(image, noise[:, :2], 5)
    with pytest.raises(ValueError, match="timesteps"):
        call(image, noise.repeat(2, 1, 1, 1), 5)
    for one, other in ((image.long(), noise.long()), (image, noise.long()), (image.cfloat(), noise)):
        with pytest.raises(TypeError, match="floating point"):
            call(one, other, 5)
    for wrong in (None, [1.0], np.zeros((2, 3, 4, 4))):
        with pytest.raises(TypeError, match="tensors"):
            call(wrong, noise, 5)
        with pytest.raises(TypeError, match="tensors"):
            call(image, wrong, 5)


SHAPES = {  # of samples, their noise and the timesteps, as diffusers' pipelines have them
    "one noise for all": ((3, 2, 4, 4), (2, 4, 4), 1),
    "one noise for all frames": ((2, 4, 3, 8, 8), (2, 4, 1, 8, 8), 2),
    "a picture and the noise of its frames": ((4, 2, 8, 8), (1, 4, 2, 8, 8), 1),
    "a spectrogram at all timesteps": ((1, 8, 8), (2, 1, 8, 8), 5),
    "audio": ((2, 4, 16), (2, 4, 16), 2),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_shapes_that_broadcast_do_as_in_diffusers(method: str, name: str) -> None:
    sample, noise, count = SHAPES[name]
    arguments = torch.randn(sample), torch.randn(noise), torch.arange(count) * 100 + 5
    ours, theirs = (getattr(library(), method)(*arguments) for library in (DDIMScheduler, diffusers.DDIMScheduler))
    assert ours.shape == torch.broadcast_shapes(sample, noise, (count, *[1] * (len(sample) - 1)))
    torch.testing.assert_close(ours, theirs)


# --- plans -----------------------------------------------------------------------------------------------------------


def test_plan_leaves_the_scheduler_alone_and_reads_the_config() -> None:
    scheduler = DDIMScheduler(clip_sample_range=2.5, steps_offset=1)
    plan = scheduler.plan(10, eta=0.5)
    assert scheduler.num_inference_steps is None
    assert len(scheduler.timesteps) == 1000
    assert plan.timesteps == tuple(range(901, 0, -100))
    assert (plan.eta, plan.clip_range, plan.thresholding, plan.inverse) == (0.5, 2.5, None, False)
    assert scheduler.plan(timesteps=plan.timesteps, eta=0.5) == plan
    thresholded = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=3.0).plan(5)
    assert thresholded.thresholding == (0.9, 3.0)


def test_legacy_steps_have_the_stride_of_the_number_asked_for() -> None:
    scheduler = DDIMScheduler(legacy_previous_timestep=True, timestep_spacing="linspace")
    assert scheduler.plan(7).legacy_stride == 1000 // 7
    assert scheduler.plan(timesteps=[900, 500, 100]).previous_timesteps == (567, 167, -1)
    scheduler.set_timesteps(7)
    assert [scheduler.previous_timestep(t) for t in (999, 832, 100)] == [857, 690, -1]
    with pytest.warns(UserWarning, match="quadratic"):
        dropped = DDIMScheduler(legacy_previous_timestep=True, timestep_spacing="quadratic").plan(200)
    assert len(dropped) < 200
    assert dropped.legacy_stride == 5


def test_plan_wants_a_count_or_a_list() -> None:
    scheduler = DDIMScheduler()
    for arguments in ({}, {"num_inference_steps": 5, "timesteps": [5, 4]}):
        for call in (scheduler.plan, scheduler.set_timesteps):
            with pytest.raises(ConfigError, match="either num_inference_steps or timesteps"):
                call(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [[], [1.5], [5, 5], [1, 5], [1000], [-1], "abc", 5, [True], [None], [[5, 4]], torch.tensor(5), {5: "a", "b": 1}],
    ids=repr,
)
def test_a_list_that_is_no_list_of_timesteps_is_refused(wrong: Any) -> None:
    scheduler = ready(10)
    for call in (scheduler.plan, scheduler.set_timesteps):
        with pytest.raises(ConfigError, match=r"timestep"):
            call(timesteps=wrong)
    assert len(scheduler.timesteps) == 10  # as before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"clip_sample_range": 0}, "clip_sample_range"),
        ({"clip_sample_range": "1"}, "clip_sample_range"),
        ({"thresholding": True, "dynamic_thresholding_ratio": 2}, "dynamic_thresholding_ratio"),
        ({"thresholding": True, "dynamic_thresholding_ratio": None}, "dynamic_thresholding_ratio"),
        ({"thresholding": True, "sample_max_value": 0.0}, "sample_max_value"),
        ({"prediction_type": "noise"}, "prediction_type"),
        ({"timestep_spacing": "karras"}, "timestep_spacing"),
        ({"timestep_spacing": {}}, "timestep_spacing"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "prediction_type='v_prediction'"),
    ],
)
def test_what_cannot_work_is_refused_by_plan_but_can_be_loaded_and_changed(changed: dict[str, Any], named: str) -> None:
    scheduler = DDIMScheduler(**changed)
    for call in (scheduler.plan, scheduler.set_timesteps):
        with pytest.raises(ConfigError, match=named):
            call(10)
    default = inspect.signature(DDIMScheduler).parameters
    mended = DDIMScheduler.from_config(scheduler.config, **{name: default[name].default for name in changed})
    assert len(mended.plan(10)) == 10


@pytest.mark.parametrize(
    "changed",
    [
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 10.0},
        {"beta_start": "x"},
        {"beta_end": float("nan")},
        {"beta_schedule": "cosine"},
        {"trained_betas": [0.1]},
        {"num_train_timesteps": 1, "rescale_betas_zero_snr": True},
    ],
)
def test_a_schedule_that_is_none_is_refused_at_construction(changed: dict[str, Any]) -> None:
    for cls in (DDIMScheduler, DDIMInverseScheduler):
        with pytest.raises(ConfigError):
            cls(**changed)
    with pytest.raises(TypeError, match="colour"):
        DDIMScheduler(colour="red")  # type: ignore[call-arg]


# --- order of convergence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_the_error_falls_as_one_over_the_number_of_steps(schedule: str, kind: str) -> None:
    """DDIM is Euler's method on the probability-flow equation (14), so it is of first order."""
    settings = Settings(beta_schedule=schedule, prediction_type=kind, timestep_spacing="trailing", clip_sample=False)
    denoiser = Gaussian(settings, mean=0.4, deviation=0.6)
    scheduler = DDIMScheduler(**settings.as_config())
    z = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    counts, errors = np.array([25, 50, 100, 200]), []
    for count in counts:
        x = denoiser.at(z, level_at(settings, 999))
        plan = scheduler.plan(int(count))
        for t in plan.timesteps:
            x = plan.step(denoiser(x, t), t, x).prev_sample
        errors.append(distance(x, denoiser.at(z, Long(1))))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -1.15 < slope < -0.85, errors


# --- the inverse scheduler -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(
    "changed", [{}, {"clip_sample": False}, {"steps_offset": 1}, {"beta_schedule": "scaled_linear"}]
)
@pytest.mark.parametrize("count", [1, 7, 10, 50])
def test_the_inverse_is_diffusers_for_leading(kind: str, changed: dict[str, Any], count: int) -> None:
    given = {"prediction_type": kind, "set_alpha_to_one": kind != "sample", **changed}
    mine, other = DDIMInverseScheduler(**given), diffusers.DDIMInverseScheduler(**given)
    mine.set_timesteps(count)
    other.set_timesteps(count)
    assert torch.equal(mine.timesteps, other.timesteps)
    out, x = pair(2, 3, 8, 8)
    settings = Settings(**given)
    for t, before in zip(mine.timesteps.tolist(), [-1, *mine.timesteps.tolist()], strict=False):
        found, expected = mine.step(out, t, x), other.step(out, t, x)
        # the levels of a step down, exchanged
        prev, x0 = step(settings, level_at(settings, before), level_at(settings, t), x, out)
        assert distance(found.prev_sample, prev) < 1e-6
        assert distance(found.pred_original_sample, x0) < 1e-6
        assert distance(expected.prev_sample, prev) < 3e-4  # its own rounding
        assert distance(expected.pred_original_sample, x0) < 3e-4
    assert type(mine.step(out, mine.timesteps[0], x, return_dict=False)) is tuple


@pytest.mark.parametrize("count", [3, 7, 60])
def test_the_inverse_is_exact_for_trailing(count: int) -> None:
    """A network that always gives the same noise is inverted exactly: not by diffusers, which misses the timesteps."""
    given = {"timestep_spacing": "trailing", "clip_sample": False}
    out, image = pair(1, 3, 8, 8)

    def round_trip(up: Any, down: Any) -> float:
        up.set_timesteps(count)
        x = image
        for t in up.timesteps:
            x = up.step(out, t, x).prev_sample
        plan = down.plan(count)  # the right way down
        for t in plan.timesteps:
            x = plan.step(out, t, x).prev_sample
        return distance(x, image)

    assert round_trip(DDIMInverseScheduler(**given), DDIMScheduler(**given)) < 2e-4
    if round_trip(diffusers.DDIMInverseScheduler(**given), DDIMScheduler(**given)) < 1e-3:
        pytest.skip("this diffusers inverts trailing timesteps exactly, too")


def test_the_inverse_has_its_own_small_interface() -> None:
    scheduler = DDIMInverseScheduler()
    assert scheduler.timesteps.tolist() == list(range(1000))
    assert scheduler.previous_timestep(5) == 4
    scheduler.set_timesteps(timesteps=[10, 20, 900])
    assert scheduler.timesteps.tolist() == [10, 20, 900]
    assert scheduler.plan(10).inverse
    with pytest.raises(ConfigError, match="rise strictly"):
        scheduler.set_timesteps(timesteps=[20, 10])
    with pytest.raises(ConfigError, match="deterministic"):
        scheduler.plan(10, eta=0.5)
    assert scheduler.plan(10).inverted() == DDIMScheduler().plan(10)


def test_the_inverse_of_a_schedulers_config() -> None:
    forward = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, thresholding=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inverse = DDIMInverseScheduler.from_config(forward.config)
        back = DDIMScheduler.from_config(inverse.config)
    assert inverse.config.beta_schedule == "scaled_linear"
    assert torch.equal(inverse.alphas_cumprod, forward.alphas_cumprod)
    assert back.config.thresholding is True


# --- the compiler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.thin(together=1)
def test_a_compiled_step_is_compiled_once(eta: float, zero_snr: bool) -> None:
    torch._dynamo.reset()
    changed = {"timestep_spacing": "trailing", "prediction_type": "v_prediction"} if zero_snr else {}
    scheduler = ready(10, rescale_betas_zero_snr=zero_snr, **changed)
    counter = CompileCounter()

    def run(out: Tensor, t: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        return scheduler.step(out, t, x, eta=eta, variance_noise=noise).prev_sample

    (out, x), noise = pair(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    eager = [run(out, t, x, noise) for t in scheduler.timesteps]
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    for t, expected in zip(scheduler.timesteps, eager, strict=True):
        torch.testing.assert_close(compiled(out, t, x, noise), expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


def test_compiled_noising_agrees() -> None:
    torch._dynamo.reset()
    scheduler = DDIMScheduler()
    image, noise = pair(2, 3, 8, 8)
    expected = [scheduler.add_noise(image, noise, torch.tensor([t, 5])) for t in (0, 500, 999)]
    counter = CompileCounter()
    compiled = torch.compile(scheduler.add_noise, backend=counter, fullgraph=True)
    for t, exact in zip((0, 500, 999), expected, strict=True):
        torch.testing.assert_close(compiled(image, noise, torch.tensor([t, 5])), exact)
    assert counter.frame_count == 1


def test_oracle_settings_are_the_schedulers_defaults() -> None:
    """The oracle shares no code with the package, so that its defaults are the same is worth a test."""
    assert {**DDIMScheduler().config, **Settings().as_config()} == dict(DDIMScheduler().config)
    assert replace(Settings(), clip_sample=False).clip_sample is False
