"""What a U-Net is told of a text: what it looks at, and what stands beside the timestep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """What a U-Net is told of b texts.

    Attributes:
        embeds: what its cross-attention looks at, (b s d).
        added: what it is told beside the timestep, by its names in `added_cond_kwargs`; each (b n). Stable Diffusion 1
            and 2 are told nothing.
    """

    embeds: Tensor
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: slice) -> Condition:
        """Some of the texts."""
        return Condition(self.embeds[rows], {name: value[rows] for name, value in self.added.items()})

    def for_each_image(self, images_per_prompt: int) -> Condition:
        """The same for n images of each text, (b·n …): the images of one text follow one another."""
        if images_per_prompt == 1:
            return self
        added = {name: value.repeat_interleave(images_per_prompt, dim=0) for name, value in self.added.items()}
        return Condition(self.embeds.repeat_interleave(images_per_prompt, dim=0), added)

    def to(self, *where: torch.device | str | torch.dtype) -> Condition:
        """The same on a device, or of a type, or both."""

        def moved(tensor: Tensor) -> Tensor:
            for each in where:
                tensor = tensor.to(each)
            return tensor

        return Condition(moved(self.embeds), {name: moved(value) for name, value in self.added.items()})

    def tensors(self) -> tuple[Tensor, ...]:
        """All that it is made of."""
        return self.embeds, *self.added.values()


def joined(conditions: Sequence[Condition]) -> Condition:
    """Several conditions as one, in their order; they are told the same kinds of things."""
    first = conditions[0]
    added = {name: torch.cat([each.added[name].to(first.added[name]) for each in conditions]) for name in first.added}
    return Condition(torch.cat([each.embeds.to(first.embeds) for each in conditions]), added)
