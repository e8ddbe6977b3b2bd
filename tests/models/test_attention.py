"""Attention in plain steps, as training on a CPU uses it, against PyTorch's fused kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddim.models import attention as module
from ddim.models.attention import attention


def masks(n: int, s: int) -> dict[str, Tensor | None]:
    allowed = torch.rand(2, 1, n, s) < 0.7
    allowed[..., 0] = True
    return {"none": None, "bool": allowed, "added": torch.zeros(2, 1, n, s).masked_fill(~allowed, -10000.0)}


@pytest.mark.parametrize("kind", ["none", "bool", "added", "causal"])
def test_plain_steps_give_the_fused_kernels_values_and_gradients(kind: str) -> None:
    n, s = 6, 6 if kind == "causal" else 9
    tensors = [torch.randn(2, 3, size, 4, dtype=torch.float64, requires_grad=True) for size in (n, s, s)]
    mask = None if kind == "causal" else masks(n, s)[kind]
    mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    ours = attention(*tensors, mask, is_causal=kind == "causal", training=True)
    theirs = F.scaled_dot_product_attention(*tensors, attn_mask=mask, is_causal=kind == "causal")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # the softmax is float32's
    weight = torch.randn_like(ours)
    for mine, its in zip(
        torch.autograd.grad((ours * weight).sum(), tensors),
        torch.autograd.grad((theirs * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)


def test_what_is_not_trained_or_long_takes_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fused(*args: Tensor, **options: object) -> Tensor:
        calls.append(args[0].shape)
        return args[0]

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", fused)
    x, long = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 129, 4)
    attention(x, x, x, training=True)
    assert not calls
    attention(x, x, x)
    attention(long, long, long, training=True)
    assert len(calls) == 2


def test_dropout_drops_weights() -> None:
    x = torch.randn(1, 1, 64, 8)
    ones = torch.ones(1, 1, 64, 8)
    kept = attention(x, x, ones, dropout=0.5, training=True)
    assert kept.std() > 0
    assert torch.equal(attention(x, x, ones, dropout=0.5), attention(x, x, ones))
    assert kept.mean() == pytest.approx(1.0, abs=0.1)
