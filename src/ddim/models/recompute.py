"""Gradient checkpointing: training needs less memory, as activations are not kept but computed a second time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A module that calls its layers through `run`, so that their activations can be computed again."""

    gradient_checkpointing = False

    def run(self, layer: nn.Module, *inputs: Any) -> Any:
        """Call a layer; with gradient checkpointing, its activations are computed again in the backward pass."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


def set_gradient_checkpointing(model: nn.Module, on: bool) -> None:
    """Switch gradient checkpointing on or off in all parts of a model that can do it."""
    for module in model.modules():
        if isinstance(module, Recomputing):
            module.gradient_checkpointing = on
