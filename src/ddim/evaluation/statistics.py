"""The mean and covariance of features, gathered in batches, and the Fréchet distance between two of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.checkpoint.files import read_tensors, save_tensors
from ddim.errors import CheckpointError
from ddim.schedule import Array


@dataclass
class FeatureStatistics:
    """The count, mean and scatter of feature vectors, in float64; batches and processes add up.

    Sums are kept about the mean and merged by the formula of Chan, Golub and LeVeque (1983), so that features far from
    zero lose no digits.

    Attributes:
        count: n.
        mean: (d,).
        scatter: Σ (f - mean)(f - mean)ᵀ, (d d).

    >>> a, b = FeatureStatistics.of(torch.eye(3)[:2]), FeatureStatistics.of(torch.eye(3)[2:])
    >>> bool(np.allclose((a + b).covariance, FeatureStatistics.of(torch.eye(3)).covariance))
    True
    """

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """The statistics of a batch of feature vectors, (n, d), n ≥ 1.

        Raises:
            ValueError: not two-dimensional, empty, or not finite.
        """
        values = checked(features).numpy()
        mean = values.mean(0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    def __add__(self, other: FeatureStatistics) -> FeatureStatistics:
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features of sizes {len(self.mean)} and {len(other.mean)} do not add up")
        count = self.count + other.count
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + self.count * other.count / count * np.outer(shift, shift)
        return FeatureStatistics(count, self.mean + other.count / count * shift, scatter)

    @property
    def covariance(self) -> Array:
        """The unbiased estimate, (d d); needs n ≥ 2."""
        return np.asarray(self.scatter / (self.count - 1))

    def gathered(self) -> FeatureStatistics:
        """The sum over all processes of `torch.distributed`, the same in each; itself where there is but one."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        parts: list[FeatureStatistics] = [self] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, atomically."""
        tensors = {"mean": torch.from_numpy(self.mean), "scatter": torch.from_numpy(self.scatter)}
        save_tensors(path, {**tensors, "count": torch.tensor(self.count)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file is missing, broken, or holds something else.
        """
        tensors = read_tensors(path)
        size = tensors["mean"].numel() if "mean" in tensors else 0
        shapes = {"count": (), "mean": (size,), "scatter": (size, size)}
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes or int(tensors["count"]) < 1:
            raise CheckpointError(f"{path} holds no feature statistics (count, mean, scatter)")
        return cls(int(tensors["count"]), tensors["mean"].double().numpy(), tensors["scatter"].double().numpy())


def checked(features: Tensor) -> Tensor:
    """Feature vectors (n, d) in float64 on the host.

    Raises:
        ValueError: not two-dimensional, empty, or not finite.
    """
    if features.ndim != 2 or not len(features) or not bool(features.isfinite().all()):
        raise ValueError(f"features must be finite and of shape (n, d), not {tuple(features.shape)}")
    return features.detach().cpu().double()


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """The squared Wasserstein-2 distance of two Gaussians: |μ1-μ2|² + tr(Σ1 + Σ2 - 2(Σ1^½ Σ2 Σ1^½)^½).

    The roots are taken through symmetric eigendecompositions, which hold where there are fewer samples than features
    (Dowson and Landau 1982; Heusel et al. 2017, equation 6, for what it says of pictures).

    Raises:
        ValueError: fewer than two samples, or features of different sizes.
    """
    if min(first.count, second.count) < 2 or first.mean.shape != second.mean.shape:
        raise ValueError("needed are two or more samples on both sides, with features of one size")
    return _distance(first, second, _root(first.covariance))


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(values.clip(0))) @ vectors.T)


def _distance(first: FeatureStatistics, second: FeatureStatistics, root: Array) -> float:
    overlap = np.sqrt(np.linalg.eigvalsh(root @ second.covariance @ root).clip(0)).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap
    return float(((first.mean - second.mean) ** 2).sum() + spread)


def bootstrap_error(
    features: Tensor,
    reference: FeatureStatistics,
    strata: Sequence[int] | None = None,
    resamples: int = 50,
    seed: int = 0,
) -> float:
    """How far off the Fréchet distance of these samples to a reference may be, by their being these and no others.

    It is the bootstrap's standard deviation: the samples are drawn anew from themselves, with replacement, so many
    times; the reference stays as it is. Only the spread of these distances is used: their mean is too large.

    Args:
        features: (n, d), n ≥ 2.
        reference: of features of the same size.
        strata: the class of each sample, if so many of each were asked for: each class is resampled by itself, as
            else the error would be that of samples of random classes.
        resamples: how many times to draw the samples anew, 2 or more.
        seed: the seed of the drawing.
    """
    values = checked(features).numpy()
    centre = values.mean(0)
    values = values - centre
    shifted = FeatureStatistics(reference.count, reference.mean - centre, reference.scatter)
    root = _root(reference.covariance)
    rng = np.random.default_rng(seed)
    groups = _groups(len(values), strata)
    distances = []
    for _ in range(resamples):
        weights = np.zeros(len(values))
        for group in groups:
            weights[group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)))
        mean = weights @ values / len(values)
        scatter = (values * weights[:, None]).T @ values - len(values) * np.outer(mean, mean)
        distances.append(_distance(shifted, FeatureStatistics(len(values), mean, scatter), root))
    return float(np.std(distances, ddof=1))


def _groups(count: int, strata: Sequence[int] | None) -> list[NDArray[np.int64]]:
    """The numbers of the members of each stratum."""
    if strata is None:
        return [np.arange(count)]
    if len(strata) != count:
        raise ValueError(f"{len(strata)} classes were given for {count} feature vectors")
    labels = np.asarray(strata)
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def ideal_distance(
    reference: Tensor, count: int, strata: Sequence[int] | None = None, splits: int = 20, seed: int = 0
) -> float:
    """The Fréchet distance to the reference that `count` samples would have if they came from where it came from.

    It is not zero, since both sides are finite. It is measured between random parts of the reference, `count` vectors
    and the rest, or halves if there are not as many, and scaled to the sizes asked for: to first order it goes with
    1/n + 1/m.

    Args:
        reference: features (m, d), m ≥ 4.
        count: n ≥ 2.
        strata: the class of each reference vector, if the samples have the reference's classes in like numbers: then
            both parts have.
        splits: how many random splits to average over.
        seed: the seed of the splits.
    """
    total = len(reference)
    if total < 4 or count < 2:
        raise ValueError(f"needed are four or more reference features and two samples, not {total} and {count}")
    rng = np.random.default_rng(seed)
    groups = _groups(total, strata)
    part = min(count, total // 2)
    distances = []
    for _ in range(splits):
        place = np.empty(total)  # in [0, 1): any beginning of this order has its share of each group
        for group in groups:
            place[group] = (rng.permutation(len(group)) + rng.random(len(group))) / len(group)
        order = torch.from_numpy(np.argsort(place))
        distances.append(
            frechet_distance(
                FeatureStatistics.of(reference[order[:part]]), FeatureStatistics.of(reference[order[part:]])
            )
        )
    return float(np.mean(distances)) * (1 / count + 1 / total) / (1 / part + 1 / (total - part))
