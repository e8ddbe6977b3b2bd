"""The activation functions that a config may name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddim.models.settings import look_up


class QuickGELU(nn.Module):
    """x·σ(1.702 x), the approximation that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
}


def activation(name: str) -> nn.Module:
    """A new layer for an activation, by its name in a config, in capital or small letters.

    Raises:
        ConfigError: there is no such activation; the message lists all.
    """
    return look_up("activation", name.lower(), ACTIVATIONS)()
