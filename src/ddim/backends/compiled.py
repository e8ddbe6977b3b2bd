"""A network compiled by `torch.compile`: the first run takes about a minute, and those after it are faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddim.backends.runner import Runner
from ddim.models.core import HasCore


class CompiledRunner(Runner):
    """Runs a core that `torch.compile` made into one graph.

    The first run compiles it for its batch size, and the first run with another batch size for any batch size.
    """

    name = "torch.compile"

    def __init__(self, network: HasCore) -> None:
        super().__init__(network)
        self.compiled = torch.compile(network.core, fullgraph=True)

    def run(self, *inputs: Tensor) -> Any:
        return self.compiled(*inputs)
