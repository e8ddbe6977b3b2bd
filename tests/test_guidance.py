"""Classifier-free guidance, its rescale and its interval."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ddim import DDIMScheduler, sample
from ddim.errors import ConfigError
from ddim.guidance import guide, rescale_noise


class Network:
    """Two linear predictions, and a count of what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def both(self, x: Tensor, timestep: Tensor) -> Tensor:
        self.calls.append(("both", int(timestep)))
        first, second = x.chunk(2)
        assert torch.equal(first, second)
        return torch.cat([self.without(first), self.within(second)])

    def conditional(self, x: Tensor, timestep: Tensor) -> Tensor:
        self.calls.append(("conditional", int(timestep)))
        return self.within(x)

    @staticmethod
    def without(x: Tensor) -> Tensor:
        return 0.5 * x - 0.2

    @staticmethod
    def within(x: Tensor) -> Tensor:
        return torch.tanh(x) + 0.1


T = torch.tensor(500)


@pytest.mark.parametrize("scale", [0.0, 0.3, 0.5, 2.0, 7.5, -1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_guidance_is_u_plus_w_times_c_minus_u(scale: float, dtype: torch.dtype) -> None:
    network, x = Network(), torch.randn(3, 2, 4, 4).to(dtype)
    found = guide(network.both, network.conditional, scale)(x, T)
    u, c = network.without(x), network.within(x)
    exact = u.double() + scale * (c.double() - u.double())
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=close, atol=close * max(1, abs(scale)))
    assert found.dtype is dtype
    assert network.calls == [("both", 500)]


def test_a_scale_of_one_asks_for_the_condition_alone() -> None:
    network, x = Network(), torch.randn(3, 2, 4, 4)
    found = guide(network.both, network.conditional, 1.0, rescale=0.5)(x, T)
    assert torch.equal(found, network.within(x))
    assert network.calls == [("conditional", 500)]


@pytest.mark.parametrize("rescale", [0.25, 0.7, 1.0])
def test_rescale_is_the_papers_formula(rescale: float) -> None:
    network, x = Network(), torch.randn(3, 2, 8, 8)
    found = guide(network.both, network.conditional, 7.5, rescale)(x, T)
    for i in range(3):  # over each sample on its own
        u, c = network.without(x[i]).double(), network.within(x[i]).double()
        guided = u + 7.5 * (c - u)
        exact = rescale * guided * c.std() / guided.std() + (1 - rescale) * guided
        torch.testing.assert_close(found[i].double(), exact, rtol=1e-4, atol=1e-5)
        if rescale == 1:
            assert float(found[i].std()) == pytest.approx(float(c.std()), rel=1e-4)


def test_rescale_of_zero_changes_nothing() -> None:
    network, x = Network(), torch.randn(2, 2, 4, 4)
    plain = guide(network.both, network.conditional, 3.0)(x, T)
    assert torch.equal(guide(network.both, network.conditional, 3.0, rescale=0.0)(x, T), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rescale_keeps_type_and_finds_the_deviation_in_float32(dtype: torch.dtype) -> None:
    guided, conditional = (300 * torch.randn(2, 4, 64, 64)).to(dtype), torch.randn(2, 4, 64, 64).to(dtype)
    found = rescale_noise(guided, conditional, 1.0)
    assert found.dtype is dtype
    assert float(found.float().std()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_rescale_does_not_depend_on_the_size_of_the_numbers(size: float) -> None:
    guided, conditional = size * (1 + 0.01 * torch.randn(2, 2, 3, 8, 8))
    expected = rescale_noise(guided.double() / size, conditional.double() / size, 0.8)
    torch.testing.assert_close(rescale_noise(guided, conditional, 0.8).double() / size, expected, rtol=1e-4, atol=1e-6)
    assert (expected - guided / size).abs().max() > 1e-3


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_a_constant_prediction_is_left_as_it_is(rescale: float) -> None:
    flat, image = torch.full((1, 3, 4, 4), -0.7), torch.randn(1, 3, 4, 4)
    assert torch.equal(rescale_noise(flat, flat, rescale), flat)
    assert torch.equal(rescale_noise(flat, image, rescale), flat)
    # of two constants neither has a deviation, but rounding gives each another one
    torch.testing.assert_close(rescale_noise(0.1 * flat.expand(1, 3, 4, 4), 7 * flat, rescale), 0.1 * flat)
    zero = torch.zeros_like(flat)
    assert torch.equal(rescale_noise(zero, zero, rescale), zero)
    one_of_two = rescale_noise(torch.cat([flat, image]), torch.cat([flat, image]), rescale)
    torch.testing.assert_close(one_of_two, torch.cat([flat, image]))


def test_an_interval_saves_half_of_the_work_outside_it() -> None:
    network = Network()
    plan = DDIMScheduler(clip_sample=False).plan(10)
    denoiser = guide(network.both, network.conditional, 4.0, interval=(300, 600))
    for made in sample(denoiser, torch.randn(1, 2, 4, 4), plan):
        last = made.sample
    assert network.calls == [
        ("both" if 300 <= t <= 600 else "conditional", t) for t in (900, 800, 700, 600, 500, 400, 300, 200, 100, 0)
    ]
    assert last.isfinite().all()


@pytest.mark.parametrize(("interval", "inside"), [((500, 500), True), ((501, 900), False), ((0, 499), False)])
def test_an_interval_includes_both_its_ends(interval: tuple[int, int], inside: bool) -> None:
    network, x = Network(), torch.randn(1, 2, 4, 4)
    found = guide(network.both, network.conditional, 4.0, interval=interval)(x, T)
    assert (network.calls == [("both", 500)]) is inside
    assert torch.equal(found, network.within(x)) is not inside


def test_guidance_passes_gradients() -> None:
    network = Network()
    denoiser = guide(network.both, network.conditional, 3.0, rescale=0.6)
    x = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: denoiser(x, T), x)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"scale": math.nan}, "guidance_scale"),
        ({"scale": math.inf}, "guidance_scale"),
        ({"scale": 5.0, "rescale": -0.1}, "guidance_rescale"),
        ({"scale": 5.0, "rescale": 1.1}, "guidance_rescale"),
        ({"scale": 5.0, "rescale": math.nan}, "guidance_rescale"),
        ({"scale": 5.0, "interval": (600, 300)}, "guidance_interval"),
    ],
)
def test_what_cannot_guide_is_refused(arguments: dict[str, Any], named: str) -> None:
    network = Network()
    with pytest.raises(ConfigError, match=named):
        guide(network.both, network.conditional, **arguments)


@pytest.mark.parametrize(
    "arguments", [{"scale": "x"}, {"scale": None}, {"scale": 5.0, "rescale": "x"}, {"scale": 5.0, "interval": 5}]
)
def test_what_is_of_the_wrong_type_is_refused(arguments: dict[str, Any]) -> None:
    network = Network()
    with pytest.raises(TypeError):
        guide(network.both, network.conditional, **arguments)
