"""What a step does to tensors beside its sums: dynamic thresholding. The steps themselves are in test_plan.py."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddim.step import threshold


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_sorting(x0: Tensor, ratio: float, maximum: float) -> Tensor:
    rows = []
    for row in x0:
        s = np.quantile(row.abs().double().numpy().ravel(), ratio)
        s = min(max(float(s), 1.0), maximum)
        rows.append(row.clamp(-s, s) / s)
    return torch.stack(rows)


@given(
    ratio=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.995, 1.0])),
    maximum=st.sampled_from([1.0, 1.5, 3.0, 100.0]),
    count=st.sampled_from([1, 2, 3, 48, 257]),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    seed=st.integers(0, 99),
    double=st.booleans(),
)
def test_threshold_is_the_quantile_of_each_sample(
    ratio: float, maximum: float, count: int, scale: float, seed: int, double: bool
) -> None:
    x0 = torch.randn(3, count, generator=generator(seed), dtype=torch.float64 if double else torch.float32)
    x0 = x0 * torch.tensor([[scale], [1.0], [3 * scale]])
    exact = by_sorting(x0, ratio, maximum)
    torch.testing.assert_close(threshold(x0, ratio, maximum), exact, rtol=1e-5, atol=1e-6)
    # the way that accelerators, autograd and the compiler take
    other = threshold(x0.clone().requires_grad_(), ratio, maximum).detach()
    torch.testing.assert_close(other, exact, rtol=1e-5, atol=1e-6)


def test_threshold_leaves_its_input_and_the_range_alone() -> None:
    x0 = torch.randn(2, 3, 8, 8) * 4
    before = x0.clone()
    found = threshold(x0, 0.9, 100.0)
    assert torch.equal(x0, before)
    assert found.abs().max() == 1
    small = torch.rand(2, 3, 8, 8) - 0.5
    assert torch.equal(threshold(small, 0.995, 10.0), small)  # s = 1
    assert torch.equal(threshold(x0, 0.995, 1.0), x0.clamp(-1, 1))


def test_threshold_of_nan_is_nan_and_only_there() -> None:
    x0 = torch.full((2, 4), 0.5)
    x0[0, 1] = math.nan
    found = threshold(x0, 0.5, 2.0)
    assert found.isnan().sum() == 1
    assert torch.equal(found[1], x0[1])
