"""Steps whose every bit is the same whatever is drawn beside a sample.

The last bits of what a network gives depend on the size of its batch, as libraries choose another way of multiplying
matrices for each; and where numbers stand in a tensor says whether they are computed eight at a time or alone. So here
all forward passes have one size, and whatever is computed around them is computed for each sample alone. That a
network's own rows do not depend on each other is up to its libraries: `serving.probe` finds it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ddim.serving.batches import Batch, broken, move, there
from ddim.serving.network import Network
from ddim.serving.samples import Sample

__all__ = ["ExactBatch"]


class ExactBatch(Batch):
    """Samples of one kind that share nothing but forward passes of one size.

    Args:
        network, cuts_first: as a `Batch` has them.
        slots: the size that the network's forward passes have.
    """

    def __init__(self, network: Network, cuts_first: bool, slots: int) -> None:
        super().__init__(network, cuts_first)
        self.slots = slots

    def next(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """As many as fill whole forward passes, of those whose last step is longest ago; all, where they fill none.

        Bits do not depend on who goes first, and so no pass is made half empty while others could fill it.
        """
        needed = {sample: 1 + sample.is_guided_at(sample.plan[sample.position].timestep) for sample in samples}
        room = sum(needed.values()) // self.slots * self.slots
        if not room:
            return samples
        chosen = []
        for sample in sorted(samples, key=lambda sample: sample.since):
            if needed[sample] <= room:
                room -= needed[sample]
                chosen.append(sample)
        return chosen

    def advance(self, samples: Sequence[Sample]) -> list[Sample]:
        rows = [sample.plan[sample.position] for sample in samples]
        each = [
            self.asked([sample], [row], there(sample.x), sample.channels)
            for sample, row in zip(samples, rows, strict=True)
        ]
        out = self.network(
            torch.cat([asked.x for asked in each]),
            [moment for asked in each for moment in asked.moments],
            [text for asked in each for text in asked.texts],
            self._joined,
            [control for asked in each for control in asked.controls],
        )
        left, going_on, reached = [], [], []
        parts = torch.split(out, [len(asked.x) for asked in each])
        for sample, row, asked, part in zip(samples, rows, each, parts, strict=True):
            # A copy, as on an accelerator the order of a sum may depend on where in memory its numbers begin.
            weighed = self.weighed(asked, part.clone(), [sample], there(sample.x))
            if weighed.is_cpu and broken(weighed):
                left.append(sample)
            else:
                going_on.append(sample)
                reached.append(self.reached([sample], [row], weighed, there(sample.x)))
        for sample, one in zip(going_on, reached, strict=True):  # after all of them, as any may have raised
            move([sample], one)
        return left
