"""A network that looks at a text, as one run uses it: what does not change between the steps is computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddim.models import ClassTimeCache
from ddim.models.core import hold
from ddim.models.replaced import is_replaced
from ddim.models.snapshot import Snapshot
from ddim.pipelines.conditions import Condition

# How many numbers a run may compute of its timesteps and conditions before its first step, and keep; 64 MiB in float32.
LARGEST_CACHE = 2**24


class Told:
    """What a U-Net or a ControlNet is told of texts and timesteps.

    The keys and values of every cross-attention and every timestep's embedding are made here and not at each step. A
    network that cannot do so (one of another library, or one that is exported) is given the text and the timestep, and
    so is one of which a part is replaced (`models.replaced`): what was put there is to be called at each step, with the
    text. The run keeps the backend that the network has at its beginning.

    Args:
        network: a `UNet2DConditionModel`, a `ControlNetModel`, or a network of another library that is called as one of
            these is; so it has no type.
        timesteps: of the run, (n,).
        batch: how many samples there are.
        timestep_cond: (1 width), what a network with `time_cond_proj_dim` is told, else None.
        is_plain: whether no more is told at each step, such as arguments for attention processors.
    """

    def __init__(
        self, network: Any, timesteps: Tensor, batch: int, timestep_cond: Tensor | None = None, is_plain: bool = True
    ) -> None:
        self.network = network
        self.held = hold(network)
        self._timesteps, self._batch, self._cond, self._is_plain = timesteps, batch, timestep_cond, is_plain
        self._made_for = self._state()
        self._time = self._shared_times()

    def has_changed(self) -> bool:
        """Whether weights or parts of the network are others than before; if so, arguments are to be made anew."""
        state = self._state()
        if state == self._made_for:
            return False
        self._made_for = state
        self._time = self._shared_times()
        return True

    def _state(self) -> tuple[Snapshot | None, bool]:
        """What the arguments are made for: the weights as they are, and whether they may be made beforehand."""
        weights, has_caches = self.held.look(), hasattr(self.network, "project_text")
        self.held.is_whole = has_caches and self._is_plain and not is_replaced(self.network)
        return weights, self.held.is_whole

    @property
    def computes_once(self) -> bool:
        """Whether what does not change may be computed beforehand."""
        return self._made_for[1]

    def _shared_times(self) -> dict[str, Any] | None:
        """The arguments that say the timestep, but for the timestep itself; None if texts have a part in them."""
        if self.network.config.get("addition_embed_type") is not None:
            return None
        if self.computes_once:
            return {"time_cache": self.network.project_time(self._timesteps, timestep_cond=self._cond)}
        return {} if self._cond is None else {"timestep_cond": self._cond.expand(self._batch, -1)}

    def _times(self, added: Mapping[str, Tensor]) -> dict[str, Any]:
        """The same where it belongs to the texts: what is told beside the timestep is part of it.

        What is the same for several samples is computed once, unless all that is computed were too much to keep.
        """
        if self._time is not None:
            return self._time if not added else {**self._time, "added_cond_kwargs": dict(added)}
        if self.computes_once and added:
            names, widths = [*added], [value.shape[1] for value in added.values()]
            rows = torch.cat([value.float() for value in added.values()], dim=1)
            different, places = rows.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
            if len(different) * len(self._timesteps) * sum(self.network.time_widths) <= LARGEST_CACHE:
                each = dict(zip(names, different.split(widths, dim=1), strict=True))
                cache = self.network.project_time(self._timesteps, timestep_cond=self._cond, added_cond_kwargs=each)
                return {"time_cache": ClassTimeCache(cache, places)}
        more = {} if self._cond is None else {"timestep_cond": self._cond.expand(self._batch, -1)}
        return {**more, "added_cond_kwargs": dict(added)}

    def arguments(self, condition: Condition) -> dict[str, Any]:
        """The network's arguments that say the texts, and the timestep but for the timestep itself."""
        embeds = condition.embeds
        once = self.computes_once
        text = {"text_cache": self.network.project_text(embeds)} if once else {"encoder_hidden_states": embeds}
        return {**text, **self._times(condition.added)}
