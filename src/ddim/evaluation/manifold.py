"""Nearest neighbours: how many samples look like data, how much of the data is covered, and what is a copy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddim.evaluation.statistics import checked

_ROWS = 1024  # of how many vectors the distances to all others are held in memory at a time


class PrecisionRecall(NamedTuple):
    """Two shares, both in [0, 1].

    Attributes:
        precision: the share of the samples that lie where the data is.
        recall: the share of the data that lies where the samples are.
    """

    precision: float
    recall: float


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3, seed: int = 0) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2).

    A set's manifold is the union of the balls around its vectors that reach their k-th nearest neighbours in it. The
    larger set is cut to the size of the smaller, at random, since more vectors have smaller balls.

    Args:
        samples: features (n, d).
        reference: features (m, d).
        k: which neighbour a ball reaches to; 1 is the nearest.
        seed: the seed of the cut.

    Raises:
        ValueError: not more than k features on a side, not finite, or of different sizes.
    """
    x, y = checked(samples), checked(reference)
    count = min(len(x), len(y))
    if count <= k or k < 1 or x.shape[1] != y.shape[1]:
        raise ValueError(f"needed are more than k={k} features on both sides, of one size, and k of 1 or more")
    rng = np.random.default_rng(seed)
    x, y = (each[torch.from_numpy(rng.permutation(len(each))[:count])] for each in (x, y))
    return PrecisionRecall(_covered(x, y, k), _covered(y, x, k))


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of the points that lie in some centre's ball."""
    # The nearest to each centre is itself, so the k-th neighbour is the k+1-st smallest distance.
    radii = torch.cat([torch.cdist(part, centres).kthvalue(k + 1, dim=1).values for part in _parts(centres)])
    inside = [(torch.cdist(part, centres) <= radii).any(dim=1) for part in _parts(points)]
    return float(torch.cat(inside).double().mean())


def _parts(vectors: Tensor) -> list[Tensor]:
    return [vectors[first : first + _ROWS] for first in range(0, len(vectors), _ROWS)]


def nearest_distances(samples: Tensor, references: Tensor) -> Tensor:
    """The Euclidean distance of each sample (n, …) to its nearest reference (m, …): shape (n,). Shows copies."""
    return torch.cdist(samples.flatten(1).double(), references.flatten(1).double()).min(dim=1).values
