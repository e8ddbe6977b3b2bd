"""Networks with a core: a function of tensors alone, which a backend may run in another way."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class HasCore(nn.Module):
    """A network whose work is done by `core`, or in its place by a `runner`, if a backend has set one.

    In training mode, and where the inputs want a gradient, `core` itself runs, as a runner has no backward pass.
    """

    runner: Callable[..., Tensor] | None = None

    def core(self, *inputs: Tensor) -> Tensor:
        """The network's work as a function of tensors alone, whose first dimension is the batch or 1."""
        raise NotImplementedError

    def run_core(self, *inputs: Tensor) -> Tensor:
        """What `core` returns, computed by the runner where there is one that may."""
        if self.runner is None or self.training or any(x.requires_grad for x in inputs):
            return self.core(*inputs)
        return self.runner(*inputs)
