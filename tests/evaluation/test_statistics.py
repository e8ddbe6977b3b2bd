"""Feature statistics and the distances on them, against what is known exactly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddim.checkpoint import save_tensors
from ddim.errors import CheckpointError
from ddim.evaluation import (
    FeatureStatistics,
    bootstrap_error,
    frechet_distance,
    ideal_distance,
    kernel_distance,
    nearest_distances,
    precision_recall,
)


def exact(mean: np.ndarray, covariance: np.ndarray) -> FeatureStatistics:
    """Statistics whose mean and covariance are exactly these."""
    count = 10**6
    return FeatureStatistics(count, mean, (count - 1) * covariance)


# --- the Fréchet distance --------------------------------------------------------------------------------------------


def test_distance_of_known_gaussians() -> None:
    zero, eye = np.zeros(4), np.eye(4)
    assert frechet_distance(exact(zero, eye), exact(zero, eye)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(exact(zero, eye), exact(zero + 2, eye)) == pytest.approx(16, rel=1e-6)
    assert frechet_distance(exact(zero, eye), exact(zero, 9 * eye)) == pytest.approx(4 * (3 - 1) ** 2, rel=1e-6)


def test_distance_is_symmetric_and_follows_a_rotation() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    first, second = (rng.normal(size=5), root @ root.T), (rng.normal(size=5), np.diag(rng.uniform(0.1, 2, 5)))
    there = frechet_distance(exact(*first), exact(*second))
    assert there == pytest.approx(frechet_distance(exact(*second), exact(*first)), rel=1e-6)
    turned = [exact(turn @ mean, turn @ covariance @ turn.T) for mean, covariance in (first, second)]
    assert there == pytest.approx(frechet_distance(*turned), rel=1e-6)


def mixture(count: int, centres: Tensor, generator: torch.Generator) -> Tensor:
    """Samples (n, d) of a mixture of unit Gaussians around the centres (k, d), all as likely."""
    chosen = torch.randint(len(centres), (count,), generator=generator)
    return centres[chosen] + torch.randn(count, centres.shape[1], generator=generator)


def moments(centres: Tensor) -> FeatureStatistics:
    """The exact mean and covariance of that mixture."""
    mean = centres.mean(0)
    spread = (centres - mean).T @ (centres - mean) / len(centres) + torch.eye(centres.shape[1])
    return exact(mean.double().numpy(), spread.double().numpy())


def test_samples_of_mixtures_come_to_the_exact_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    here, there = 2 * torch.randn(3, 6, generator=generator), 2 * torch.randn(4, 6, generator=generator)
    true = frechet_distance(moments(here), moments(there))
    drawn = [FeatureStatistics.of(mixture(20_000, centres, generator)) for centres in (here, there)]
    assert true > 1
    assert frechet_distance(*drawn) == pytest.approx(true, rel=0.05)
    assert frechet_distance(drawn[0], moments(here)) < 0.01


def test_fewer_samples_than_features_are_fine() -> None:
    few = FeatureStatistics.of(torch.randn(5, 64))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)  # beside a trace of 64
    assert np.isfinite(frechet_distance(few, FeatureStatistics.of(torch.randn(500, 64))))


def test_one_sample_has_no_spread() -> None:
    one, two = FeatureStatistics.of(torch.zeros(1, 3)), FeatureStatistics.of(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="two or more"):
        frechet_distance(one, two)


def test_the_bootstrap_says_how_far_distances_of_other_samples_scatter() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.zeros(1, 4)
    reference = exact(np.full(4, 0.5), np.eye(4))
    sets = [mixture(400, centres, generator) for _ in range(100)]
    scatter = np.std([frechet_distance(FeatureStatistics.of(each), reference) for each in sets], ddof=1)
    errors = [bootstrap_error(each, reference) for each in sets[:5]]
    assert np.mean(errors) == pytest.approx(scatter, rel=0.25)


def test_the_bootstrap_keeps_the_numbers_of_each_class() -> None:
    """Classes far apart: with equal numbers of each the distance hardly scatters, with random numbers it does."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[10.0, 0.0], [-10.0, 0.0]])
    classes = [number % 2 for number in range(200)]
    features = centres[classes] + torch.randn(200, 2, generator=generator)
    reference = exact(np.array([1.0, 0.0]), np.diag([101.0, 1.0]))
    strict, loose = bootstrap_error(features, reference, classes), bootstrap_error(features, reference)
    assert loose > 4 * strict
    sets = [centres[classes] + torch.randn(200, 2, generator=generator) for _ in range(100)]
    scatter = np.std([frechet_distance(FeatureStatistics.of(each), reference) for each in sets], ddof=1)
    assert strict == pytest.approx(scatter, rel=0.5)


@pytest.mark.parametrize("count", [4, 200, 2000])  # fewer than features; than the reference; more
def test_the_ideal_distance_is_that_of_samples_from_the_same_place(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, 5, generator=generator)
    found, expected = [], []
    for _ in range(10):
        reference = mixture(1000, centres, generator)
        found.append(ideal_distance(reference, count, splits=10))
        drawn = FeatureStatistics.of(mixture(count, centres, generator))
        expected.append(frechet_distance(drawn, FeatureStatistics.of(reference)))
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.35)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_of_parts_add_up_and_lose_no_digits() -> None:
    features = torch.randn(100, 7, dtype=torch.float64) * 1e-3 + 1e5
    whole = FeatureStatistics.of(features)
    parts = FeatureStatistics.of(features[:1]) + FeatureStatistics.of(features[1:30])
    parts = parts + FeatureStatistics.of(features[30:])
    np.testing.assert_allclose(parts.mean, features.numpy().mean(0), rtol=1e-14)
    for each in (whole, parts):
        np.testing.assert_allclose(each.covariance, np.cov((features - 1e5).numpy().T), rtol=1e-5, atol=1e-11)
    assert whole.count == parts.count == 100


def test_statistics_are_saved_and_loaded(tmp_path: Path) -> None:
    statistics = FeatureStatistics.of(torch.randn(10, 3))
    statistics.save(tmp_path / "here" / "s.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "here" / "s.safetensors")
    assert loaded.count == 10
    assert np.array_equal(loaded.mean, statistics.mean)
    assert np.array_equal(loaded.scatter, statistics.scatter)


@pytest.mark.parametrize("tensors", [{"mean": torch.zeros(3)}, {"mean": torch.zeros(3), "scatter": torch.zeros(2, 2)}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_tensors(tmp_path / "x.safetensors", {**tensors, "count": torch.tensor(3)})
    with pytest.raises(CheckpointError, match="no feature statistics"):
        FeatureStatistics.load(tmp_path / "x.safetensors")


def test_alone_there_is_nothing_to_gather() -> None:
    statistics = FeatureStatistics.of(torch.randn(10, 3))
    assert statistics.gathered() is statistics


PROCESS = """
import sys, torch, torch.distributed
from ddim.evaluation import FeatureStatistics
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
mine = torch.randn(50, 4)[[slice(0, 20), slice(20, 50)][rank]]
FeatureStatistics.of(mine).gathered().save(out)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_gather_the_statistics_of_all(tmp_path: Path) -> None:
    outs = [str(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "store"), outs[rank]])
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    torch.manual_seed(0)
    whole = FeatureStatistics.of(torch.randn(50, 4))
    for out in outs:
        found = FeatureStatistics.load(out)
        assert found.count == 50
        np.testing.assert_allclose(found.covariance, whole.covariance, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.full((2, 2), float("nan")), torch.zeros(0, 3)])
def test_bad_features_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="finite"):
        FeatureStatistics.of(bad)


# --- the kernel distance ---------------------------------------------------------------------------------------------


def test_the_kernel_distance_of_equal_distributions_is_zero_within_its_error() -> None:
    """Unbiased: over many pairs of sets it is as often below zero as above, and their mean is zero."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=generator)
    found = [
        kernel_distance(
            mixture(200, centres, generator), mixture(300, centres, generator), subsets=20, subset_size=50, seed=seed
        )
        for seed in range(40)
    ]
    means = np.array([each.mean for each in found])
    assert abs(means.mean()) < 3 * means.std() / np.sqrt(len(means))
    assert 8 < (means < 0).sum() < 32
    within = [abs(each.mean) < 2 * each.error for each in found]
    assert np.mean(within) > 0.9


def test_the_kernel_distance_of_points_is_the_formula() -> None:
    """Two constants: every kernel is one number, so the estimate is exact."""
    x, y = torch.full((10, 4), 1.0), torch.full((12, 4), -0.5)
    kernel = lambda u, v: (u * v + 1) ** 3  # noqa: E731 - the mean over 4 equal features
    expected = kernel(1, 1) + kernel(-0.5, -0.5) - 2 * kernel(1, -0.5)
    found = kernel_distance(x, y, subsets=3)
    assert found.mean == pytest.approx(expected)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_the_kernel_distance_of_other_distributions_is_positive_and_grows() -> None:
    generator = torch.Generator().manual_seed(0)
    here = torch.randn(400, 8, generator=generator)
    near, far = (torch.randn(400, 8, generator=generator) + shift for shift in (0.5, 1.0))
    near_found, far_found = (kernel_distance(here, other, subsets=20) for other in (near, far))
    assert near_found.mean > 3 * near_found.error
    assert far_found.mean > 2 * near_found.mean


@pytest.mark.parametrize(
    ("x", "y", "options"),
    [
        ((3, 2), (9, 2), {}),
        ((9, 2), (9, 3), {}),
        ((9, 2), (9, 2), {"subsets": 1}),
        ((9, 2), (9, 2), {"subset_size": 1}),
    ],
)
def test_kernel_distances_that_cannot_be(x: tuple[int, int], y: tuple[int, int], options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needed are"):
        kernel_distance(torch.zeros(x), torch.zeros(y), **options)


# --- neighbours ------------------------------------------------------------------------------------------------------


def test_precision_and_recall_of_equal_distant_and_nested_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(500, 4, generator=generator)
    assert precision_recall(data, data) == (1.0, 1.0)
    assert precision_recall(data + 100, data) == (0.0, 0.0)
    same = precision_recall(torch.randn(500, 4, generator=generator), data)
    assert min(same) > 0.7
    narrow = precision_recall(0.1 * torch.randn(500, 4, generator=generator), data)  # a mode of the data alone
    assert narrow.precision > 0.95
    assert narrow.recall < 0.1
    wide = precision_recall(10 * torch.randn(500, 4, generator=generator), data)
    assert wide.precision < 0.1
    assert wide.recall > 0.95


def test_precision_and_recall_of_points_that_can_be_counted() -> None:
    """On a line, k = 1. Balls of the data: 0 ± 1, 1 ± 1, 10 ± 9. Of the samples: 0.5 ± 2, 2.5 ± 2, 30 ± 27.5."""
    data, samples = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[0.5], [2.5], [30.0]])
    found = precision_recall(samples, data, k=1)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(1.0)
    moved = precision_recall(samples + 100, data, k=1)
    assert moved == (0.0, 0.0)


def test_the_larger_set_is_cut() -> None:
    """Many samples have small balls: uncut, their manifold would seem to miss the data."""
    generator = torch.Generator().manual_seed(0)
    data, many = torch.randn(100, 3, generator=generator), torch.randn(3000, 3, generator=generator)
    cut = precision_recall(many, data)
    fair = precision_recall(torch.randn(100, 3, generator=generator), data)
    assert cut.recall == pytest.approx(fair.recall, abs=0.15)


@pytest.mark.parametrize(("shape", "k"), [((3, 2), 3), ((9, 3), 3), ((9, 2), 0)])
def test_too_few_for_neighbours(shape: tuple[int, int], k: int) -> None:
    with pytest.raises(ValueError, match="more than k"):
        precision_recall(torch.zeros(shape), torch.zeros(9, 2), k=k)


def test_nearest_distances_find_copies() -> None:
    references = torch.randn(20, 1, 4, 4)
    samples = torch.stack([references[7], references[3] + 1])
    distances = nearest_distances(samples, references)
    assert distances[0] == 0
    assert 0 < distances[1] <= 4 + 1e-6
