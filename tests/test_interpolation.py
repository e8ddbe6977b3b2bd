"""Slerp, paths and grids, and what is drawn on them, against closed forms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Gaussian, Long, Settings, distance, level_at
from tiny import tiny_pipeline
from torch import Tensor

from ddim import DDIMScheduler
from ddim.errors import ConfigError
from ddim.interpolation import (
    conditioned,
    draw,
    grid,
    lerp,
    mixed,
    path,
    picture_noise,
    seed_noise,
    slerp,
    stations,
)
from ddim.pipelines.pixels import DDIMPipeline

SHARES = [0.0, 0.1, 0.25, 0.5, 0.9, 1.0]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- between two points ----------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(angle=st.floats(1e-6, math.pi - 1e-6), share=st.floats(0, 1))
def test_in_the_plane_it_turns_by_a_share_of_the_angle(angle: float, share: float) -> None:
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    turned = torch.tensor([[math.cos(share * angle), math.sin(share * angle)]], dtype=torch.float64)
    torch.testing.assert_close(slerp(a, b, share), turned, rtol=0, atol=1e-8)


def test_it_is_equation_67_in_many_dimensions() -> None:
    a, b = normal(3, 4, 8, 8), 2 * normal(3, 4, 8, 8, seed=1)
    for share in SHARES:
        found = slerp(a, b, share)
        for i in range(3):
            u, v = (x[i].double().flatten().numpy() for x in (a, b))
            angle = np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
            exact = (np.sin((1 - share) * angle) * u + np.sin(share * angle) * v) / np.sin(angle)
            np.testing.assert_allclose(found[i].flatten().numpy(), exact, rtol=1e-5, atol=1e-6)


def test_it_keeps_the_length_of_gaussian_noise_and_the_straight_line_does_not() -> None:
    a, b = normal(2, 3, 64, 64), normal(2, 3, 64, 64, seed=1)
    length = float(a[0].norm())
    assert slerp(a, b, 0.5).flatten(1).norm(dim=1).tolist() == pytest.approx([length, length], rel=0.02)
    assert lerp(a, b, 0.5).flatten(1).norm(dim=1).tolist() == pytest.approx([length / 2**0.5] * 2, rel=0.02)


@pytest.mark.parametrize("between", [slerp, lerp])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["far", "same", "near", "opposite", "nearly opposite", "zero"])
def test_ends_are_exact_and_all_between_is_finite(
    between: Callable[..., Tensor], dtype: torch.dtype, case: str
) -> None:
    a = normal(2, 3, 5, 5, dtype=dtype)
    b = {
        "far": normal(2, 3, 5, 5, seed=1, dtype=dtype),
        "same": a.clone(),
        "near": (a.double() * (1 + 1e-7)).to(dtype),
        "opposite": -a,
        "nearly opposite": -(a.double() + 1e-5 * normal(2, 3, 5, 5, seed=2, dtype=torch.float64)).to(dtype),
        "zero": torch.zeros_like(a),
    }[case]
    assert torch.equal(between(a, b, 0), a)
    assert torch.equal(between(a, b, 1), b)
    for share in SHARES:
        found = between(a, b, share)
        assert found.dtype == dtype
        assert found.shape == a.shape
        assert found.isfinite().all()
        torch.testing.assert_close(found, between(b, a, 1 - share))  # there and back is one way
    if case == "same":
        torch.testing.assert_close(between(a, b, 0.3), a)


@pytest.mark.parametrize("nudge", [0.0, 1e-9, 1e-5, 1e-2])
@pytest.mark.parametrize("shape", [(1, 3, 5, 5), (1, 4, 8, 8), (1, 2)])
def test_the_way_to_the_opposite_is_half_a_circle(nudge: float, shape: tuple[int, ...]) -> None:
    a = normal(*shape, dtype=torch.float64)
    b = -a + nudge * normal(*shape, seed=1, dtype=torch.float64)
    b *= a.norm() / b.norm()
    points = [slerp(a, b, share) for share in np.linspace(0, 1, 9)]
    for point in points:
        assert float(point.norm()) == pytest.approx(float(a.norm()), rel=2 * nudge + 1e-9)
    steps = [float((q - p).norm()) for p, q in pairwise(points)]
    assert steps == pytest.approx([steps[0]] * 8, rel=10 * nudge + 1e-6)
    assert steps[0] == pytest.approx(2 * math.sin(math.pi / 16) * float(a.norm()), rel=10 * nudge + 1e-6)


def test_the_opposite_of_a_vector_that_is_all_in_its_middle() -> None:
    a = torch.tensor([[0.0, 2.0, 0.0]])
    assert float(slerp(a, -a, 0.5).norm()) == pytest.approx(2)
    lone = torch.tensor([[2.0]])  # on a line there is no way around
    assert slerp(lone, -lone, 0.5).item() == 0


def test_a_small_angle_is_not_lost() -> None:
    """The arc cosine in float32, and even in float64, would call these parallel."""
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    assert slerp(a, b, 0.25)[0, 1].item() == pytest.approx(0.25e-9, rel=1e-6)


def test_a_sample_does_not_know_of_its_batch() -> None:
    a, b = normal(5, 3, 4, 4), normal(5, 3, 4, 4, seed=1)
    together = slerp(a, b, SHARES[:5])
    for i in range(5):
        torch.testing.assert_close(slerp(a[i : i + 1], b[i : i + 1], SHARES[i])[0], together[i])
    torch.testing.assert_close(slerp(a[:1], b, 0.3)[2], slerp(a[:1], b[2:3], 0.3)[0])


def test_half_precision_is_rounded_once() -> None:
    a, b = normal(1, 3, 32, 32, dtype=torch.bfloat16), normal(1, 3, 32, 32, seed=1, dtype=torch.bfloat16)
    wide = slerp(a.double(), b.double(), 0.3)
    assert float(((slerp(a, b, 0.3).double() - wide) / wide).abs().max()) <= 2**-8 + 1e-4  # half of the last digit


@pytest.mark.parametrize("between", [slerp, lerp])
def test_what_does_not_fit_is_refused(between: Callable[..., Tensor]) -> None:
    x = normal(2, 3)
    for a, b, share, error in [
        (x, normal(2, 4), 0.5, ValueError),
        (x, normal(3, 3), 0.5, ValueError),
        (x, x, [0.1, 0.2, 0.3], ValueError),
        (x, x, math.nan, ValueError),
        (x[0], x[0], 0.5, ValueError),
        (x, x.long(), 0.5, TypeError),
        (x, [1.0], 0.5, TypeError),
    ]:
        with pytest.raises(error):
            between(a, b, share)


# --- paths and grids -------------------------------------------------------------------------------------------------


def test_a_path_goes_through_its_points() -> None:
    points = normal(3, 2, 4, 4)
    frames = path(points, 5)
    assert frames.shape == (9, 2, 4, 4)
    for i, place in enumerate((0, 4, 8)):
        assert torch.equal(frames[place], points[i])
    torch.testing.assert_close(frames[5:6], slerp(points[1:2], points[2:3], 0.25))
    torch.testing.assert_close(path(points, 5, lerp)[2], (points[0] + points[1]) / 2)


def test_a_grid_has_its_corners_and_edges() -> None:
    corners = normal(4, 2, 4, 4)
    square = grid(corners, 5).view(5, 5, 2, 4, 4)
    for corner, place in zip(corners, [(0, 0), (0, 4), (4, 0), (4, 4)], strict=True):
        assert torch.equal(square[place], corner)
    torch.testing.assert_close(square[0], path(corners[[0, 1]], 5))
    torch.testing.assert_close(square[:, 4], path(corners[[1, 3]], 5))
    left, right = (slerp(corners[i : i + 1], corners[i + 2 : i + 3], 0.25) for i in (0, 1))
    torch.testing.assert_close(square[1, 2:3], slerp(left, right, 0.5))


def test_paths_and_grids_that_go_nowhere() -> None:
    points = normal(4, 3)
    for wrong in (
        lambda: path(points[:1], 3),
        lambda: path(points, 1),
        lambda: path(points, 2.5),  # type: ignore[arg-type]
        lambda: grid(points[:3], 3),
        lambda: grid(points, 1),
    ):
        with pytest.raises(ConfigError):
            wrong()


# --- a model whose ODE is known --------------------------------------------------------------------------------------

SETTINGS = Settings(clip_sample=False, timestep_spacing="trailing")


def across(model: Gaussian, x0: Tensor, share: float) -> Tensor:
    """What lies between two images of the Gaussian: their encodings are linear (`Gaussian.at`), and so all is known."""
    end = level_at(SETTINGS, SETTINGS.num_train_timesteps - 1)
    noise = model.at((x0 - model.mean) / model.deviation, end)
    a, b = noise.flatten(1)
    angle = torch.arccos(a @ b / a.norm() / b.norm())
    between = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    still = model.at(torch.zeros((), dtype=torch.float64), end)
    deviation = model.at(torch.ones((), dtype=torch.float64), end) - still
    return model.at((between - still) / deviation, Long(1)).view_as(x0[0])


@pytest.mark.parametrize("mean", [0.0, 0.4])
def test_between_images_of_a_gaussian(mean: float) -> None:
    model = Gaussian(SETTINGS, mean=mean, deviation=0.5)
    plan = DDIMScheduler(**SETTINGS.as_config()).plan(500)
    x0 = mean + 0.5 * normal(2, 1, 6, 6, dtype=torch.float64)
    noise = picture_noise(model, x0, plan)
    found = torch.stack(draw(plan, path(noise, 5), lambda start, stop: model, list, batch_size=2))
    assert distance(found[[0, 4]], x0) < 0.01
    for i, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        assert distance(found[i], across(model, x0, share)) < 0.02
        if mean == 0:  # then images and encodings differ by a factor alone
            assert distance(found[i], slerp(x0[:1], x0[1:], share)[0]) < 0.02


def test_pictures_come_back_as_they_were_by_fixed_point() -> None:
    model = Gaussian(SETTINGS, mean=0.2, deviation=0.5)
    plan = DDIMScheduler(**SETTINGS.as_config()).plan(10)
    x0 = 0.2 + 0.5 * normal(2, 1, 6, 6, dtype=torch.float64)
    errors = []
    for method in ("ddim", "fixed-point"):
        noise = picture_noise(model, x0, plan, method)
        errors.append(distance(torch.stack(draw(plan, noise, lambda start, stop: model, list)), x0))
    assert errors[1] < 4e-3 < 0.01 < errors[0]
    with pytest.raises(ConfigError, match="fixed-point"):
        picture_noise(model, x0, plan, "bidirectional")


def test_between_two_classes_is_the_geometric_mean_of_their_densities() -> None:
    """Of N(-0.5, d²) and N(0.7, d²) that is N((1-t)·-0.5 + t·0.7, d²), at every noise level."""
    plan = DDIMScheduler(**SETTINGS.as_config()).plan(10)
    classes = [Gaussian(SETTINGS, mean=mean, deviation=0.3) for mean in (-0.5, 0.7)]
    shares = torch.linspace(0, 1, 5, dtype=torch.float64)
    x = normal(1, 1, 6, 6, dtype=torch.float64).expand(5, 1, 6, 6)
    low, high = (lambda start, stop, model=model: model for model in classes)
    found = draw(plan, x, mixed(low, high, shares), list, batch_size=2)
    for share, frame, start in zip(shares.tolist(), found, x, strict=True):
        middle = Gaussian(SETTINGS, mean=(1 - share) * -0.5 + share * 0.7, deviation=0.3)
        (exact,) = draw(plan, start[None], lambda start, stop, middle=middle: middle, list)
        torch.testing.assert_close(frame, exact)


# --- with a network --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe() -> DDIMPipeline:
    return tiny_pipeline(num_class_embeds=4)


def test_frames_are_the_same_in_batches_of_any_size(pipe: DDIMPipeline) -> None:
    plan = pipe.scheduler.plan(3)
    x = path(seed_noise(pipe, [0, 1]), 5)
    labels = {"class_labels": [0, 1, 2, 1, 0]}
    runs: list[Any] = []
    for size in (1, 2, 16):
        calls: list[int] = []
        denoisers = conditioned(pipe, plan, labels, guidance_scale=2.0)
        runs.append(
            torch.stack(draw(plan, x, denoisers, list, batch_size=size, progress=lambda calls=calls: calls.append(1)))
        )
        assert len(calls) == 3 * math.ceil(5 / size)
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(runs[0], runs[2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(runs[0][0], runs[0][1], atol=1e-3)


def test_the_ends_are_what_the_pipeline_draws(pipe: DDIMPipeline) -> None:
    plan = pipe.scheduler.plan(3)
    frames = draw(plan, path(seed_noise(pipe, [7, 3]), 3), conditioned(pipe, plan, class_labels=2), pipe.decode)
    for frame, seed in ((frames[0], 7), (frames[2], 3)):
        (own,) = pipe(num_inference_steps=3, seed=seed, class_labels=2).images
        difference = np.abs(np.asarray(frame, int) - np.asarray(own, int))
        assert difference.max() <= 1


def test_frames_of_two_classes_end_in_each_alone(pipe: DDIMPipeline) -> None:
    plan = pipe.scheduler.plan(3)
    x = seed_noise(pipe, [0]).expand(3, -1, -1, -1)
    _, share = stations(2, 3)
    low, high = (conditioned(pipe, plan, class_labels=label) for label in (0, 2))
    found = torch.stack(draw(plan, x, mixed(low, high, share), list))
    for frame, alone in ((found[0], low), (found[2], high)):
        torch.testing.assert_close(frame, draw(plan, x[:1], alone, list)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=1e-3)


def test_what_cannot_be_drawn_is_refused(pipe: DDIMPipeline) -> None:
    x, plan = seed_noise(pipe, [0]), pipe.scheduler.plan(2)
    denoisers = conditioned(pipe, plan)
    with pytest.raises(ConfigError, match="eta=0"):
        draw(plan.with_eta(1.0), x, denoisers, list)
    with pytest.raises(ConfigError, match="batch_size"):
        draw(plan, x, denoisers, list, batch_size=0)
    with pytest.raises(ValueError, match="seed"):
        seed_noise(pipe, [-1])


def test_a_plan_loses_its_clipping_and_nothing_else(pipe: DDIMPipeline) -> None:
    plan = pipe.scheduler.plan(4)
    assert plan.clip_range is not None
    assert plan.unclipped() == dataclasses.replace(plan, clip_range=None)
