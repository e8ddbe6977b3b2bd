"""A network compiled by `torch.compile`: the first run of each shape takes a minute, the rest less than before."""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.backends.runner import Runner
from ddim.models.core import HasCore


class CompiledRunner(Runner):
    """Compiled without graph breaks, for any batch size once a second one was seen."""

    name = "torch.compile"

    def __init__(self, network: HasCore) -> None:
        super().__init__(network)
        self.compiled = torch.compile(network.core, fullgraph=True)

    def run(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.compiled(*inputs)
        return result
