"""Gradient checkpointing: training needs less memory, as activations are not kept but computed a second time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A module that calls its layers through `run`, so that their activations can be computed again."""

    gradient_checkpointing = False

    def run(self, layer: nn.Module, *inputs: Any, **options: Any) -> Any:
        """Call a layer; with gradient checkpointing, its activations are computed again in the backward pass."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False, **options)
        return layer(*inputs, **options)


class CanRecompute(nn.Module):
    """A network that can trade time for memory in training, in all its parts that are `Recomputing`."""

    _supports_gradient_checkpointing = True  # training scripts ask for it

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether `enable_gradient_checkpointing` was called last."""
        return any(isinstance(module, Recomputing) and module.gradient_checkpointing for module in self.modules())

    def enable_gradient_checkpointing(self, on: bool = True) -> None:
        """Save memory in training by computing activations a second time in the backward pass."""
        for module in self.modules():
            if isinstance(module, Recomputing):
                module.gradient_checkpointing = on

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations again: training is faster, and needs more memory."""
        self.enable_gradient_checkpointing(False)
