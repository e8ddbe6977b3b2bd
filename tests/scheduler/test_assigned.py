"""What others assign to a scheduler or write into it: followed as diffusers follows it, or refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from ddim import DDIMInverseScheduler, DDIMScheduler
from ddim.errors import ConfigError

# Stable Diffusion's schedule, whose last step does not end on the image.
LATENT: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
}
OUT, X = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).unbind(0)


def both(change: Callable[[Any], Any], at: int, **config: Any) -> tuple[Tensor, Tensor]:
    """The step that ours and that diffusers' makes at a timestep, after the same change."""
    found = []
    for kind in (DDIMScheduler, diffusers.DDIMScheduler):
        scheduler = kind(**{**LATENT, **config})
        change(scheduler)
        found.append(scheduler.step(OUT, at, X).prev_sample)
    return found[0], found[1]


# --- what the steps follow -------------------------------------------------------------------------------------------


def end_on_the_image(s: Any) -> None:
    s.set_timesteps(10)
    s.final_alpha_cumprod = torch.tensor(1.0)


def end_before_they_are_set(s: Any) -> None:
    s.final_alpha_cumprod = torch.tensor(1.0)
    s.set_timesteps(10)


def end_written(s: Any) -> None:
    s.final_alpha_cumprod = s.final_alpha_cumprod.clone()
    s.set_timesteps(10)
    s.final_alpha_cumprod.fill_(0.9995)


def fewer_steps_than_timesteps(s: Any) -> None:
    s.set_timesteps(1000)
    s.num_inference_steps = 100


def only_the_number_of_steps(s: Any) -> None:
    s.num_inference_steps = 100


def levels_written(s: Any) -> None:
    s.set_timesteps(10)
    s.alphas_cumprod.mul_(0.9)


def one_level_written(s: Any) -> None:
    s.set_timesteps(10)
    s.alphas_cumprod[400] = s.alphas_cumprod[399]


def other_levels(s: Any) -> None:
    s.set_timesteps(10)
    s.alphas_cumprod = torch.linspace(0.99, 0.01, 1000)


def one_level_more(s: Any) -> None:
    s.alphas_cumprod = torch.cat([torch.ones(1), s.alphas_cumprod])
    s.set_timesteps(10)


def levels_of_numpy(s: Any) -> None:
    s.set_timesteps(10)
    s.alphas_cumprod = torch.from_numpy(np.linspace(0.99, 0.01, 1000))


def the_end_of_the_list(s: Any) -> None:
    s.set_timesteps(50)
    s.timesteps = s.timesteps[25:]


def the_beginning_of_the_list(s: Any) -> None:
    s.set_timesteps(50)
    s.timesteps = s.timesteps[:-20]


def each_twice(s: Any) -> None:
    s.set_timesteps(10)
    s.timesteps = s.timesteps.repeat_interleave(2)


def backwards(s: Any) -> None:
    s.set_timesteps(10)
    s.timesteps = s.timesteps.flip(0)


def of_numpy_with_a_negative_stride(s: Any) -> None:
    s.num_inference_steps = 50
    s.timesteps = np.arange(0, 1000, 20)[::-1]


def config_written(s: Any) -> None:
    s.set_timesteps(10)
    s.config.prediction_type = "v_prediction"


def clipping_written(s: Any) -> None:
    s.set_timesteps(10)
    s.config.clip_sample = True


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (end_on_the_image, 0),
        (end_before_they_are_set, 0),
        (end_written, 0),
        (fewer_steps_than_timesteps, 500),
        (only_the_number_of_steps, 500),
        (levels_written, 500),
        (one_level_written, 500),
        (other_levels, 500),
        (one_level_more, 500),
        (levels_of_numpy, 500),
        (the_end_of_the_list, 380),
        (the_beginning_of_the_list, 400),
        (each_twice, 500),
        (backwards, 500),
        (of_numpy_with_a_negative_stride, 500),
        (config_written, 500),
        (clipping_written, 500),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_step_follows_as_in_diffusers(change: Callable[[Any], None], at: int) -> None:
    if change is clipping_written:  # there, a pipeline's constructor writes into the same config
        ours, theirs = both(change, at, clip_sample_range=0.5)
    else:
        ours, theirs = both(change, at)
    unchanged, _ = both(lambda s: s.set_timesteps(10), at if at in (0, 500, 400) else 0)
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=2e-5, atol=2e-5)
    if at in (0, 500) and change not in (each_twice, backwards):
        assert float((ours - unchanged).abs().max()) > 1e-4  # the change is one


@pytest.mark.parametrize("legacy", [False, True])
def test_a_shortened_list_keeps_the_number_of_steps_and_the_stride(legacy: bool) -> None:
    scheduler = DDIMScheduler(**LATENT, legacy_previous_timestep=legacy)
    scheduler.set_timesteps(50)
    whole = {t: scheduler.step(OUT, t, X).prev_sample for t in scheduler.timesteps.tolist()}
    for part in (slice(30, None), slice(None, 30), slice(10, 20)):
        scheduler.set_timesteps(50)
        scheduler.timesteps = scheduler.timesteps[part]
        assert scheduler.num_inference_steps == 50
        for t in scheduler.timesteps.tolist():
            assert torch.equal(scheduler.step(OUT, t, X).prev_sample, whole[t])


def test_another_list_leads_from_each_timestep_to_the_next_lower_one() -> None:
    scheduler = DDIMScheduler(**LATENT)
    scheduler.set_timesteps(50)
    scheduler.timesteps = [901, 400, 400, 7]
    assert scheduler.timesteps.tolist() == [901, 400, 400, 7]
    expected = DDIMScheduler(**LATENT).plan(timesteps=[901, 400, 7])
    for t in (901, 400, 7):
        assert torch.equal(scheduler.step(OUT, t, X).prev_sample, expected.step(OUT, t, X).prev_sample)
    scheduler.timesteps = []
    assert scheduler.timesteps.tolist() == []
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [800, 600, 400, 200, 0]


@pytest.mark.parametrize(
    "value",
    [
        [980, 500, 20],
        (980, 500, 20),
        range(980, 0, -480),
        np.array([980, 500, 20]),
        np.array([20, 500, 980])[::-1],
        np.array([980.0, 500.0, 20.0]),
        torch.tensor([980, 500, 20], dtype=torch.int32),
        torch.tensor([980, 500, 20], dtype=torch.int16),
        torch.tensor([980.0, 500.0, 20.0]),
        [torch.tensor(980), np.int64(500), 20.0],
    ],
    ids=str,
)
def test_timesteps_of_every_kind(value: Any) -> None:
    expected = [int(t) for t in value]
    scheduler = DDIMScheduler()
    scheduler.timesteps = value
    assert scheduler.timesteps.tolist() == expected
    assert not scheduler.timesteps.is_floating_point()
    assert scheduler.plan(timesteps=value).timesteps == tuple(expected)
    scheduler.set_timesteps(timesteps=value)
    assert scheduler.timesteps.tolist() == expected


@pytest.mark.parametrize("eta", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5), torch.tensor(1)])
def test_eta_of_every_kind(eta: Any) -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    noise = torch.randn_like(X)
    expected = scheduler.step(OUT, 500, X, eta=float(eta), variance_noise=noise).prev_sample
    assert torch.equal(scheduler.step(OUT, 500, X, eta=eta, variance_noise=noise).prev_sample, expected)
    assert scheduler.plan(10, eta=eta).eta == float(eta)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["betas", "alphas"])
def test_what_no_step_follows_is_refused(name: str) -> None:
    scheduler = DDIMScheduler()
    before = getattr(scheduler, name)
    setattr(scheduler, name, before.double())  # moved or converted it is the same
    with pytest.raises(AttributeError, match=rf"{name}.*alphas_cumprod.*trained_betas"):
        setattr(scheduler, name, before * 0.5)
    getattr(scheduler, name).mul_(0.5)
    with pytest.raises(ConfigError, match=rf"{name}.*alphas_cumprod.*trained_betas"):
        scheduler.set_timesteps(10)


def test_eta_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="argument of step"):
        DDIMScheduler().eta = 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["beta_start", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"])
def test_what_made_the_schedule_cannot_be_written_into_the_config(name: str) -> None:
    scheduler = DDIMScheduler()
    with pytest.raises(AttributeError, match=rf"{name}.*from_config"):
        setattr(scheduler.config, name, 0.5)
    with pytest.raises(AttributeError, match="no 'flavour'"):
        scheduler.config.flavour = 1
    with pytest.raises(TypeError, match="read-only"):
        scheduler.config["clip_sample"] = False


@pytest.mark.parametrize("number", [0, -1, 1001, 2.5, "5", True])
def test_a_number_of_steps_that_cannot_be(number: Any) -> None:
    with pytest.raises((ConfigError, TypeError), match="num_inference_steps"):
        DDIMScheduler().num_inference_steps = number


@pytest.mark.parametrize("value", [torch.tensor([0.5, 0.5]), 1.5, -0.1, float("nan"), "x", None])
def test_an_end_that_cannot_be(value: Any) -> None:
    scheduler = DDIMScheduler()
    with pytest.raises(ConfigError, match="must be"):
        scheduler.final_alpha_cumprod = value
    assert float(scheduler.final_alpha_cumprod) == 1


# --- the config ------------------------------------------------------------------------------------------------------


def test_what_is_written_into_the_config_is_read_saved_and_not_shared() -> None:
    scheduler = DDIMScheduler()
    other = copy.deepcopy(scheduler)
    scheduler.config.timestep_spacing = "trailing"
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert scheduler.config["timestep_spacing"] == scheduler.config.timestep_spacing == "trailing"
    assert '"timestep_spacing": "trailing"' in scheduler.to_json_string()
    assert other.config.timestep_spacing == DDIMScheduler().config.timestep_spacing == "leading"
    again = pickle.loads(pickle.dumps(scheduler))
    again.config.timestep_spacing = "linspace"
    again.set_timesteps(4)
    assert again.timesteps.tolist() == [999, 666, 333, 0]
    assert scheduler.config.timestep_spacing == "trailing"


def test_a_plan_is_kept_for_the_same_number_and_made_anew_for_what_changed() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    first = scheduler._planned
    scheduler.set_timesteps(20)
    scheduler.set_timesteps(10)
    assert scheduler._planned is first
    scheduler.timesteps[0] = 5  # what a client does to its list is no affair of the next one's
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == 900
    scheduler.config.steps_offset = 1
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == [t + 1 for t in range(900, -1, -100)]
    scheduler.alphas_cumprod.mul_(0.5)
    scheduler.set_timesteps(10)
    assert scheduler._planned is not None
    assert scheduler._planned.alphas_cumprod[0] == pytest.approx(0.5 * (1 - 1e-4))


@torch.inference_mode()
def test_all_of_it_in_inference_mode() -> None:
    scheduler = DDIMScheduler(**LATENT)
    scheduler.set_timesteps(10)
    before = scheduler.step(OUT, 500, X).prev_sample
    scheduler.alphas_cumprod.mul_(0.9)
    after = scheduler.step(OUT, 500, X).prev_sample
    assert float((after - before).abs().max()) > 1e-3
    scheduler.alphas_cumprod = torch.linspace(0.99, 0.01, 1000)
    assert float((scheduler.step(OUT, 500, X).prev_sample - after).abs().max()) > 1e-3


# --- the forward process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
@pytest.mark.parametrize(
    ("images", "noises", "timesteps"),
    [(1, 1, [1, 500, 999]), (2, 1, [1, 500]), (1, 2, [1, 500]), (2, 1, [7]), (3, 3, [7])],
)
def test_one_of_something_for_all(method: str, images: int, noises: int, timesteps: list[int]) -> None:
    image, noise = torch.randn(images, 4, 8, 8), torch.randn(noises, 4, 8, 8)
    t = torch.tensor(timesteps)
    ours = getattr(DDIMScheduler(), method)(image, noise, t)
    theirs = getattr(diffusers.DDIMScheduler(), method)(image, noise, t)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_noise_of_a_step_for_all_samples() -> None:
    x, out, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.randn(1, 4, 8, 8)
    found = []
    for kind in (DDIMScheduler, diffusers.DDIMScheduler):
        scheduler = kind()
        scheduler.set_timesteps(10)
        found.append(scheduler.step(out, 500, x, eta=1.0, variance_noise=noise).prev_sample)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


# --- methods that are not ours ---------------------------------------------------------------------------------------


class Variance(DDIMScheduler):
    def _get_variance(self, timestep: int, prev_timestep: int) -> Tensor:
        return torch.tensor(0.25)


class Threshold(DDIMScheduler):
    def _threshold_sample(self, sample: Tensor) -> Tensor:
        return torch.full_like(sample, 0.5)


class Previous(DDIMScheduler):
    def previous_timestep(self, timestep: Any) -> int:
        return int(timestep) - 7


class Step(DDIMScheduler):
    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *arguments: Any, **options: Any) -> Any:
        result = super().step(model_output, timestep, sample, *arguments, **options)
        result.prev_sample = result.prev_sample + 1
        return result


class Timesteps(DDIMScheduler):
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:  # type: ignore[override]
        self.num_inference_steps = num_inference_steps
        self.timesteps = np.arange(0, 1000, 1000 // num_inference_steps)[::-1] + 3


def test_methods_of_a_subclass_are_called() -> None:
    zero = torch.zeros(1, 2, 4, 4)
    scheduler: Any = Variance(**LATENT)
    scheduler.set_timesteps(10)
    assert float(scheduler.step(zero, 900, zero, eta=1.0, variance_noise=torch.ones_like(zero))[0].mean()) == 0.5
    scheduler = Threshold(thresholding=True)
    scheduler.set_timesteps(10)
    assert torch.equal(scheduler.step(OUT, 500, X).pred_original_sample, torch.full_like(X, 0.5))
    scheduler = Previous(**LATENT)
    scheduler.set_timesteps(10)
    expected = DDIMScheduler(**LATENT).plan(timesteps=[500, 493])
    torch.testing.assert_close(scheduler.step(OUT, 500, X)[0], expected.step(OUT, 500, X)[0])


def test_a_method_put_into_an_object_is_called_too() -> None:
    scheduler = DDIMScheduler(**LATENT)
    scheduler.set_timesteps(10)
    scheduler._get_variance = lambda timestep, prev_timestep: torch.tensor(0.25)  # type: ignore[method-assign]
    zero = torch.zeros(1, 2, 4, 4)
    assert float(scheduler.step(zero, 900, zero, eta=1.0, variance_noise=torch.ones_like(zero))[0].mean()) == 0.5


@pytest.mark.parametrize("kind", [DDIMScheduler, Variance, Previous])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_step_through_the_methods_is_equation_12(kind: Any, prediction_type: str, eta: float) -> None:
    """With methods that say what ours say, it is the plan's step."""

    class Same(DDIMScheduler):
        def _get_variance(self, timestep: int, prev_timestep: int) -> Tensor:
            return super()._get_variance(timestep, prev_timestep)

        def previous_timestep(self, timestep: Any) -> Any:
            return super().previous_timestep(timestep)

    ours, through = (cls(prediction_type=prediction_type) for cls in (DDIMScheduler, Same))
    noise = torch.randn_like(X)
    for t in (900, 500, 0):
        found = []
        for scheduler in (ours, through):
            scheduler.set_timesteps(10)
            found.append(scheduler.step(OUT, t, X, eta=eta, variance_noise=noise))
        torch.testing.assert_close(found[0].prev_sample, found[1].prev_sample, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[0].pred_original_sample, found[1].pred_original_sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Variance, Previous, Step, Timesteps])
def test_pipelines_go_through_them(kind: Any) -> None:
    from tiny import tiny_pipeline

    pipe = tiny_pipeline()
    ours = pipe(num_inference_steps=4, seed=0, eta=0.5, output_type="np").images
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    assert type(pipe.scheduler) is kind
    theirs = pipe(num_inference_steps=4, seed=0, eta=0.5, output_type="np").images
    assert np.abs(ours - theirs).max() > 1e-3
    by_hand = kind.from_config(pipe.scheduler.config)
    by_hand.set_timesteps(4)
    if kind is Timesteps:
        assert by_hand.timesteps.tolist() == [753, 503, 253, 3]


# --- the inverse scheduler -------------------------------------------------------------------------------------------


def test_the_inverse_scheduler_follows_too() -> None:
    scheduler = DDIMInverseScheduler(**LATENT)
    scheduler.set_timesteps(10)
    before = scheduler.step(OUT, 0, X).prev_sample
    scheduler.initial_alpha_cumprod = 1.0
    after = scheduler.step(OUT, 0, X).prev_sample
    assert float((after - before).abs().max()) > 1e-3
    one = DDIMInverseScheduler(**{**LATENT, "set_alpha_to_one": True})
    one.set_timesteps(10)
    assert torch.equal(one.step(OUT, 0, X).prev_sample, after)
