"""The activation functions that configs name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ddim.errors import ConfigError


class QuickGELU(nn.Module):
    """x·σ(1.702 x), the approximation that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


T = TypeVar("T")

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
}


def activation(name: str) -> nn.Module:
    """The activation of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    return choose("activation", name.lower(), ACTIVATIONS)()


def choose(what: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or a ConfigError that lists what is known."""
    if name not in known:
        raise ConfigError(f"unknown {what} {name!r}; known are {', '.join(sorted(known))}")
    return known[name]
