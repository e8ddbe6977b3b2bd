"""Networks with a core: a function of tensors alone, which a backend may run in another way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor, nn

from ddim.models.replaced import parts

T = TypeVar("T")

Runner = Callable[..., Tensor]


class HasCore(nn.Module):
    """A network whose work is done by `core`, or in its place by a `runner`, if a backend has set one.

    In training mode, and where the inputs want a gradient, `core` itself runs, as a runner has no backward pass. So it
    does where a part of the network was replaced, as a runner knows nothing of that.
    """

    runner: Runner | None = None
    _known_parts: tuple[Runner | None, Sequence[nn.Module]] = (
        None,
        (),
    )  # a runner, and what it has seen

    def core(self, *inputs: Tensor) -> Tensor:
        """The network's work as a function of tensors alone, whose first dimension is the batch or 1."""
        raise NotImplementedError

    def is_altered(self) -> bool:
        """Whether the network is set to compute something that a runner knows nothing of; a subclass says so."""
        return False

    def active_runner(self) -> Runner | None:
        """The runner, if there is one that may run the network as it is now."""
        if self.runner is None or self.training or self.is_altered():
            return None
        found = parts(*self.children())
        known_to, known = self._known_parts
        if found is None:
            return None
        if known_to is not self.runner:  # it is new, and will see these parts
            self._known_parts = (self.runner, found)
        elif found != known:
            return None
        return self.runner

    def run_core(self, *inputs: Tensor) -> Tensor:
        """What `core` returns, computed by the runner where there is one that may."""
        return self.run_by(self.active_runner(), *inputs)

    def run_by(self, runner: Runner | None, *inputs: Tensor) -> Tensor:
        """What `core` returns, computed by `runner` unless that is None or an input wants a gradient."""
        if runner is None or any(x.requires_grad for x in inputs):
            return self.core(*inputs)
        return runner(*inputs)


def in_turn(given: Tensor | Iterator[T] | None) -> Tensor | T | None:
    """What the next of several layers is given: the same tensor as each of them, or what was made for it beforehand.

    Args:
        given: a tensor or None, which all layers share; or one value for each layer, in the order in which they run.
    """
    return given if given is None or isinstance(given, Tensor) else next(given)
