"""The kernel distance of Bińkowski et al. (2018), unbiased and so fit for few samples; on Inception's features, KID."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddim.evaluation.statistics import checked


class KernelDistance(NamedTuple):
    """A squared maximum mean discrepancy and its error.

    Attributes:
        mean: over the subsets; may be a little below zero where the distributions are equal.
        error: its standard error.
    """

    mean: float
    error: float


def kernel_distance(
    samples: Tensor, reference: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The squared MMD under the kernel (x·y/d + 1)³, by the unbiased estimator, over random subsets.

    The subsets overlap where the sets are not large, so that the mean's standard error is not the subsets' deviation
    over √subsets: as many of them count as independent as fit into the smaller set.

    Args:
        samples: features (n, d).
        reference: features (m, d).
        subsets: how many subsets to draw.
        subset_size: how many vectors each subset takes from either set, without replacement; at most half the smaller
            set is used, as else the subsets would be one and the same.
        seed: the seed of the drawing.

    Raises:
        ValueError: fewer than four features on a side, not finite, or of different sizes.
    """
    x, y = checked(samples), checked(reference)
    fewest = min(len(x), len(y))
    if fewest < 4 or x.shape[1] != y.shape[1]:
        raise ValueError("needed are four or more features on both sides, of one size")
    if subsets < 2 or subset_size < 2:
        raise ValueError(f"needed are two or more subsets of two or more, not {subsets} of {subset_size}")
    size = min(subset_size, fewest // 2)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        chosen = (torch.from_numpy(rng.choice(len(each), size, replace=False)) for each in (x, y))
        found.append(_discrepancy(*(each[index] for each, index in zip((x, y), chosen, strict=True))))
    independent = max(1.0, min(subsets, fewest / size))
    return KernelDistance(float(np.mean(found)), float(np.std(found, ddof=1)) / math.sqrt(independent))


def _discrepancy(x: Tensor, y: Tensor) -> float:
    """The U-statistic of two sets of one size (n, d), which leaves out each vector's kernel with itself."""
    n, d = x.shape
    within = 0.0
    for each in (x, y):
        kernel = (each @ each.T / d + 1) ** 3
        within += float(kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))
    return within - 2 * float(((x @ y.T / d + 1) ** 3).mean())
