"""Feature statistics and the Fréchet distance, against what is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddim.evaluation import FeatureStatistics, frechet_distance, nearest_distances


def exact(mean: np.ndarray, covariance: np.ndarray) -> FeatureStatistics:
    """Statistics whose mean and covariance are exactly these."""
    count = 10**6
    return FeatureStatistics(count, count * mean, (count - 1) * covariance + count * np.outer(mean, mean))


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


def test_fewer_samples_than_features_are_fine() -> None:
    torch.manual_seed(0)
    few = FeatureStatistics.of(torch.randn(5, 64))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)  # beside a trace of 64
    assert np.isfinite(frechet_distance(few, FeatureStatistics.of(torch.randn(500, 64))))


def test_statistics_of_parts_add_up() -> None:
    features = torch.randn(100, 7) * 3 + 1000
    whole = FeatureStatistics.of(features)
    parts = FeatureStatistics.of(features[:30]) + FeatureStatistics.of(features[30:])
    np.testing.assert_allclose(parts.mean, features.double().numpy().mean(0))
    np.testing.assert_allclose(parts.covariance, np.cov(features.double().numpy().T), rtol=1e-6, atol=1e-7)
    assert whole.count == parts.count == 100


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.full((2, 2), float("nan"))])
def test_bad_features_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="finite"):
        FeatureStatistics.of(bad)


def test_one_sample_has_no_spread() -> None:
    one, two = FeatureStatistics.of(torch.zeros(1, 3)), FeatureStatistics.of(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="two or more"):
        frechet_distance(one, two)


def test_nearest_distances_find_copies() -> None:
    references = torch.randn(20, 1, 4, 4)
    samples = torch.stack([references[7], references[3] + 1])
    distances = nearest_distances(samples, references)
    assert distances[0] == 0
    assert 0 < distances[1] <= 4 + 1e-6
