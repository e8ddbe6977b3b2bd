"""What every backend does the same way: notice that weights changed, and step back to PyTorch when something fails."""

from __future__ import annotations

import threading
import warnings
from typing import Any

from torch import Tensor, nn

from ddim.models.core import HasCore


class Runner:
    """Stands for the core of a network. A failure is one warning, after which PyTorch runs it.

    Copies and pickles of a network have none: they run in PyTorch.
    """

    name = ""

    def __init__(self, network: HasCore) -> None:
        self.network = network
        self.lock = threading.Lock()
        self.has_failed = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.has_failed:
            return self.network.core(*inputs)
        try:
            return self.run(*inputs)
        except Exception as error:  # of whatever kind its library raises
            result = self.network.core(*inputs)  # raises what is wrong with the inputs, if that was it
            self.give_up(error)
            return result

    def run(self, *inputs: Tensor) -> Tensor:
        """The core's result, by the backend; any exception makes PyTorch run it from now on."""
        raise NotImplementedError

    def give_up(self, error: Exception) -> None:
        with self.lock:
            if self.has_failed:
                return
            self.has_failed = True
        reason = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(
            f"{self.name} cannot run this {type(self.network).__name__} ({reason:.200}): PyTorch runs it instead",
            stacklevel=3,
        )

    def __str__(self) -> str:
        """What runs, in words."""
        return f"PyTorch, as {self.name} failed" if self.has_failed else self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def stamp(parameters: list[nn.Parameter]) -> int:
    """A number that is another one after a change of the parameters: of a value, or of which tensor holds them."""
    try:
        versions = map(_version, parameters)
        return hash((*map(Tensor.data_ptr, parameters), *versions))
    except RuntimeError:  # inference tensors have none
        return hash((*map(Tensor.data_ptr, parameters), *(0 if p.is_inference() else p._version for p in parameters)))


# A third faster than attributes, and it is done at every step.
_version = Tensor._version.__get__  # type: ignore[attr-defined]
