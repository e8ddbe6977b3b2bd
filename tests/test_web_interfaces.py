"""What docs/tasks/web-uis.md says of the DDIM of ComfyUI and the web UI: their arithmetic, written anew, is ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddim import DDIMScheduler, sample
from ddim.noise import gaussian_noise
from ddim.process import PredictionType

KINDS: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
WEIGHTS = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
NOISE = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network(x: Tensor, timestep: Tensor | int) -> Tensor:
    return torch.tanh(x @ WEIGHTS) * (0.5 + float(timestep) / 2000)


def scheduler(kind: PredictionType) -> DDIMScheduler:
    stable_diffusion = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return DDIMScheduler(**stable_diffusion, clip_sample=False, set_alpha_to_one=True, prediction_type=kind)


def listed(steps: int) -> list[int]:
    return list(range(1, 1000, 1000 // steps))[::-1]


def test_there_are_more_timesteps_where_the_steps_do_not_divide() -> None:
    assert [len(listed(steps)) for steps in (20, 30, 60, 80)] == [20, 31, 63, 84]
    assert tuple(listed(20)) == scheduler("epsilon").plan(20).timesteps
    assert (len(scheduler("epsilon").plan(30)), listed(30)[0]) == (30, 991)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [20, 30])
def test_comfyui(kind: PredictionType, steps: int) -> None:
    """Euler's method over σ = √((1-ᾱ)/ᾱ) down to 0, for a network that is shown x/√(σ²+1)."""
    made = scheduler(kind)
    levels = made.alphas_cumprod.double()[listed(steps)]
    sigmas = [*((1 - levels) / levels).sqrt().tolist(), 0.0]
    x = NOISE * sigmas[0]
    for timestep, sigma, following in zip(listed(steps), sigmas, sigmas[1:], strict=False):
        scale = (sigma**2 + 1) ** 0.5
        out = network(x / scale, timestep)
        clean = x - out * sigma if kind == "epsilon" else x / scale**2 - out * sigma / scale
        x = x + (x - clean) / sigma * (following - sigma)
    start = NOISE * float(1 - levels[0]) ** 0.5
    *_, last = sample(network, start, made.plan(timesteps=listed(steps)))
    torch.testing.assert_close(last.sample, x, atol=5e-6, rtol=0)
    if steps == 20:
        assert f"{float(1 - levels[0]) ** 0.5:.3f}" == "0.996"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [20, 30])
def test_the_web_ui(kind: PredictionType, steps: int) -> None:
    """Equation 12 from each timestep to the next listed one, but for the step from the lowest one to the picture."""
    made = scheduler(kind)
    levels = made.alphas_cumprod.double()[listed(steps)].tolist()
    x = NOISE
    for timestep, here, there in zip(listed(steps), levels, levels[1:], strict=False):
        out = network(x, timestep)
        eps = out if kind == "epsilon" else here**0.5 * out + (1 - here) ** 0.5 * x
        x = there**0.5 * (x - (1 - here) ** 0.5 * eps) / here**0.5 + (1 - there) ** 0.5 * eps
    whole = list(sample(network, NOISE, made.plan(timesteps=listed(steps))))
    torch.testing.assert_close(whole[-2].sample, x, atol=5e-6, rtol=0)
    assert len(whole) - 1 == (19 if steps == 20 else 30)


def test_the_noise_of_generators_is_theirs() -> None:
    """Of one generator for a batch, as in ComfyUI, and of one for each picture, seeded by s + k, as in the web UI."""
    host, shape = torch.device("cpu"), (2, 4, 8, 8)
    seeded = [torch.Generator("cpu").manual_seed(7 + k) for k in range(2)]
    comfyui = gaussian_noise(shape, torch.Generator("cpu").manual_seed(7), host, torch.float32)
    web_ui = gaussian_noise(shape, seeded, host, torch.float32)
    assert torch.equal(comfyui, torch.randn(shape, generator=torch.Generator("cpu").manual_seed(7)))
    for k in range(2):
        assert torch.equal(web_ui[k], torch.randn(shape[1:], generator=torch.Generator("cpu").manual_seed(7 + k)))
