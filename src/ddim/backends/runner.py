"""What all backends share: they let PyTorch run the network when they fail."""

from __future__ import annotations

import threading
import warnings
import weakref
from typing import Any

from torch import Tensor

from ddim.models.core import HasCore


class Runner:
    """Runs the core of a network in PyTorch's place. Where that fails, it warns once, and PyTorch runs the network.

    A runner is neither copied nor pickled: the copy of a network has None in its place and runs in PyTorch. It does not
    keep its network alive, so that both end, and give back their memory, as soon as nobody uses the network any more.

    Attributes:
        name: the backend's name, for warnings and for `describe`.
        lock: held by a thread that changes the runner.
        has_failed: whether PyTorch runs the network from now on.
    """

    name = ""

    def __init__(self, network: HasCore) -> None:
        self._network = weakref.ref(network)
        self.lock = threading.Lock()
        self.has_failed = False

    @property
    def network(self) -> HasCore:
        """The network whose core is run."""
        network = self._network()
        if network is None:
            raise RuntimeError(f"the network that {self.name} ran is gone")
        return network

    def begin(self) -> None:
        """Be told that a run begins, of which the calls that follow are the steps."""

    def __call__(self, *inputs: Tensor) -> Any:
        if self.has_failed:
            return self.network.core(*inputs)
        try:
            return self.run(*inputs)
        except Exception as error:  # a backend's library may raise an error of any kind
            result = self.network.core(*inputs)  # raises PyTorch's own error if it was the inputs that were wrong
            self.give_up(error)
            return result

    def rounded(self, batch: int) -> int:
        """To how many samples a batch is best filled up, so that few sizes are met; the batch itself unless told."""
        return batch

    def run(self, *inputs: Tensor) -> Any:
        """What the core returns for these inputs, computed by the backend; a subclass says how.

        Whatever this raises makes PyTorch run the network, now and from now on.
        """
        raise NotImplementedError

    def give_up(self, error: Exception) -> None:
        """Let PyTorch run the network from now on, and warn of that once, with the reason."""
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
        """What runs the network, in words."""
        return f"PyTorch, as {self.name} failed" if self.has_failed else self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()
