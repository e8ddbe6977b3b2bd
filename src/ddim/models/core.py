"""Networks with a core: a function of tensors alone, which a backend may run in another way."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class HasCore(nn.Module):
    """A network whose work is done by `core`, or by the `runner` that stands for it.

    What is trained, or differentiated by its inputs, is always run by `core` itself.
    """

    runner: Callable[..., Tensor] | None = None

    def core(self, *inputs: Tensor) -> Tensor:
        """The work, between tensors whose first dimension is the batch or 1."""
        raise NotImplementedError

    def run_core(self, *inputs: Tensor) -> Tensor:
        if self.runner is None or self.training or any(x.requires_grad for x in inputs):
            return self.core(*inputs)
        return self.runner(*inputs)
