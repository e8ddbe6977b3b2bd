"""How far samples are from data: feature statistics and the Fréchet distance between them.

The distance is called FID only where the features are Inception's; whatever features are used here, it is a Fréchet
distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ddim.schedule import Array


@dataclass
class FeatureStatistics:
    """The count, sum and sum of outer products of feature vectors, in float64; batches and processes add up.

    >>> a, b = FeatureStatistics.of(torch.eye(3)[:2]), FeatureStatistics.of(torch.eye(3)[2:])
    >>> bool(np.allclose((a + b).covariance, FeatureStatistics.of(torch.eye(3)).covariance))
    True
    """

    count: int
    total: Array  # (d,)
    products: Array  # (d d)

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """The statistics of a batch of feature vectors, (n, d).

        Raises:
            ValueError: not two-dimensional, or not finite.
        """
        if features.ndim != 2 or not bool(features.isfinite().all()):
            raise ValueError(f"features must be finite and of shape (n, d), not {tuple(features.shape)}")
        values = features.detach().cpu().double().numpy()
        return cls(len(values), values.sum(0), values.T @ values)

    def __add__(self, other: FeatureStatistics) -> FeatureStatistics:
        return FeatureStatistics(self.count + other.count, self.total + other.total, self.products + other.products)

    @property
    def mean(self) -> Array:
        """(d,)"""
        return np.asarray(self.total / self.count)

    @property
    def covariance(self) -> Array:
        """The unbiased estimate, (d d)."""
        mean = self.mean
        return np.asarray((self.products - self.count * np.outer(mean, mean)) / (self.count - 1))


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """The squared Wasserstein-2 distance of two Gaussians: |μ1-μ2|² + tr(Σ1 + Σ2 - 2(Σ1^½ Σ2 Σ1^½)^½).

    The roots are taken through symmetric eigendecompositions, which hold where there are fewer samples than features.

    Raises:
        ValueError: fewer than two samples, or features of different sizes.
    """
    if min(first.count, second.count) < 2 or first.total.shape != second.total.shape:
        raise ValueError("needed are two or more samples on both sides, with features of one size")
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ second.covariance @ root).clip(0)).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap
    return float(((first.mean - second.mean) ** 2).sum() + spread)


def nearest_distances(samples: Tensor, references: Tensor) -> Tensor:
    """The Euclidean distance of each sample (n, …) to its nearest reference (m, …): shape (n,). Shows copies."""
    return torch.cdist(samples.flatten(1).double(), references.flatten(1).double()).min(dim=1).values
