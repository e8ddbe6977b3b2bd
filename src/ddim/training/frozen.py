"""Networks that a run uses as they are, in as little memory as can be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Reload = Callable[[Collection[str]], Mapping[str, nn.Module]]


class Frozen(nn.ModuleDict):
    """Networks that are not trained, by their names in a pipeline.

    What is not needed for a step is put away: its weights are given up, and read again when a picture is drawn or the
    pipeline is saved. What is needed may be kept in half precision, and is read again, too, to be saved as it was.

    Args:
        networks: as they were loaded.
        reload: from names to the networks as they were loaded, once more. None keeps all of them.
    """

    def __init__(self, networks: Mapping[str, nn.Module], reload: Reload | None) -> None:
        super().__init__(dict(networks))
        self.requires_grad_(False)
        self.eval()
        self.reload = reload
        self.changed: set[str] = set()

    def train(self, mode: bool = True) -> Frozen:
        """They are never in training."""
        super().train(False)
        return self

    def put_away(self, *names: str) -> None:
        """Give up the weights of networks that no step needs."""
        if self.reload is not None:
            for name in names:
                self[name].to("meta")
                self.changed.add(name)

    def keep_as(self, dtype: torch.dtype, *names: str) -> None:
        """Keep the weights of networks that steps need in another type of number, where nothing in them is trained."""
        for name in names:
            if self.reload is not None and not any(each.requires_grad for each in self[name].parameters()):
                self[name].to(dtype)
                self.changed.add(name)

    def whole(self, names: Collection[str], device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
        """Networks as they were loaded, on a device and in a type of number."""
        changed = [name for name in names if name in self.changed]
        again = self.reload(changed) if self.reload is not None and changed else {}
        same = {name: copied_as(self[name], dtype, device) for name in names if name not in again}
        return {**same, **{name: network.eval().to(device, dtype) for name, network in again.items()}}


def copied_as(
    module: nn.Module, dtype: torch.dtype, device: torch.device | None = None, *, only: Collection[int] | None = None
) -> nn.Module:
    """A copy of a module, not to be trained, whose tensors are the module's own where their type and device are right.

    So a copy in the same type takes no memory. What is written into its tensors is written into the module's.

    Args:
        dtype: of its floating-point numbers.
        device: where it is to be; None leaves it where it is.
        only: the `id` of each parameter whose type is to change; None is all of them.
    """
    memo: dict[int, Any] = {}

    def converted(tensor: Tensor) -> Tensor:
        is_wanted = tensor.is_floating_point() and (only is None or id(tensor) in only)
        return tensor.detach().to(device=device, dtype=dtype if is_wanted else None)

    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(converted(parameter), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = converted(buffer)
    return copy.deepcopy(module, memo)
