"""The U-Net as the engine runs it: each sample at its own timestep, under its own text, class or scale.

So it runs a ControlNet too, see `steering`. What does not change is computed once: what the network makes of a timestep
is kept for all who come by it, and a text's keys and values for as long as somebody draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddim.models import ChosenTimes
from ddim.models.core import Held, hold
from ddim.models.embeddings import guidance_condition
from ddim.models.replaced import is_replaced
from ddim.models.snapshot import Snapshot
from ddim.models.text_backbone import TextCache
from ddim.serving.samples import Controlled, Moment, Sample, Text

T = TypeVar("T")

# How many numbers are kept of timesteps; 64 MiB in float32.
LARGEST_TABLE = 2**24

# A moment with the number of the text, if the network is told of it beside the timestep, and else -1.
Told = tuple[int, float | None, int]


@dataclass
class Beside:
    """What the samples of one forward pass have, texts or pictures, side by side as a network is given it.

    Attributes:
        whose: the texts or pictures, in order.
        version: of the network that made it of them.
        arguments: of the network.
    """

    whose: tuple[Any, ...] = ()
    version: int = -1
    arguments: dict[str, Any] | None = None


# What is side by side in a forward pass, by the network, and for a ControlNet's pictures by that and a word.
Joined = dict[Any, Beside]


class Network:
    """The U-Net of a pipeline, which one thread runs.

    Args:
        net: a `UNet2DConditionModel` or a `UNet2DModel`; or one of another library that is called as the first is.
        slots: of how many samples every forward pass is: filled up where there are fewer, and in several passes where
            there are more. What is computed once is then computed for each timestep and each text alone. None takes
            all that come at once.
        threads: how many PyTorch uses in forward passes, whatever it uses elsewhere; None changes nothing.
    """

    def __init__(self, net: Any, slots: int | None = None, threads: int | None = None) -> None:
        self.net, self.slots, self.threads = net, slots, threads
        self._is_distilled = net.config.get("time_cond_proj_dim") is not None
        self._held: Held | None = None
        self._made_for: tuple[Snapshot | None, bool] = (None, False)
        self._places: dict[Told, int] = {}  # the rows of the table
        self._table: Tensor | None = None  # (n K)
        self._version = 0  # of the weights, as far as was looked

    def begin(self) -> None:
        """Be told that the network was idle: whatever was done to it meanwhile counts from now on."""
        self._held = None

    def rounded(self, count: int) -> int:
        """To how many samples a batch of so many is to be filled up."""
        if self.slots is not None:
            return self.slots
        runner: Any = None if self._held is None else self._held.runner
        return runner.rounded(count) if hasattr(runner, "rounded") else count

    def look(self) -> None:
        """Look at the weights, at each tick; what was made of others is made anew."""
        if self._held is None or self._held.runner is not getattr(self._held.network, "runner", None):
            self._held = hold(self.net)
            self._held.is_alone = True
        weights = self._held.look()
        is_whole = hasattr(self.net, "project_time") and not is_replaced(self.net)
        self._held.is_whole = is_whole
        if (weights, is_whole) != self._made_for:
            self._made_for = weights, is_whole
            self._places, self._table = {}, None
            self._version += 1

    @property
    def _is_whole(self) -> bool:
        return self._made_for[1]

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Compute what samples that begin will need of their timesteps and their texts, after `look`."""
        asked = dict.fromkeys(moment for sample in samples for moment in sample.moments())
        self._prepare([moment for moment, _ in asked], [text for _, text in asked if text is not None])

    def _prepare(self, moments: Sequence[Moment], texts: Sequence[Text]) -> None:
        """The same of moments, and the text of each; no texts for a network that reads none."""
        if self._is_whole:
            self._project_times(moments, texts)
            self._project_texts(texts)

    def __call__(
        self,
        x: Tensor,
        moments: Sequence[Moment],
        texts: Sequence[Text],
        joined: list[Joined],
        controls: Sequence[Controlled | None] = (),
    ) -> Tensor:
        """What the network predicts, (n …), after `look`.

        Args:
            x: (n c h w).
            moments: of each of the n.
            texts: of each of the n; none for a network that reads no text.
            joined: what an earlier call for the same samples has left there, for each forward pass, is used again.
            controls: how ControlNets steer each of the n; none for a network that knows none.
        """
        size = self.slots or len(x)
        outs = []
        for number, first in enumerate(range(0, len(x), size)):
            if number:
                self.look()
            if number == len(joined):
                joined.append({})
            part = slice(first, first + size)
            # A copy, so that each pass has its numbers at the beginning of a piece of memory, as the first one has.
            given = x[part].clone() if number else x[part]
            outs.append(self._pass(given, moments[part], texts[part], joined[number], controls[part]))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _pass(
        self,
        x: Tensor,
        moments: Sequence[Moment],
        texts: Sequence[Text],
        joined: Joined,
        controls: Sequence[Controlled | None],
    ) -> Tensor:
        """One forward pass."""
        count = len(x)
        missing = self.rounded(count) - count
        if missing:
            x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
            moments = [*moments, *(moments[-1] for _ in range(missing))]
            texts = [*texts, *(texts[-1] for _ in range(missing if texts else 0))]
            controls = [*controls, *(controls[-1] for _ in range(missing if controls else 0))]
        added = self._added(x, moments, texts, joined, controls)
        timesteps, arguments = self._arguments(x, moments, texts, joined)
        with self._running():
            out: Tensor = self.net(x, timesteps, **arguments, **added).sample
        return out[:count]

    def _added(
        self,
        x: Tensor,
        moments: Sequence[Moment],
        texts: Sequence[Text],
        joined: Joined,
        controls: Sequence[Controlled | None],
    ) -> Mapping[str, Any]:
        """The arguments that say what other networks add to this one's outputs; nothing, but in `steering`."""
        return {}

    @contextmanager
    def _running(self) -> Iterator[None]:
        """A context in which the network is called, after `look`."""
        held = self._held
        assert held is not None
        with held, using_threads(self.threads):
            yield

    def _arguments(
        self, x: Tensor, moments: Sequence[Moment], texts: Sequence[Text], joined: Joined
    ) -> tuple[Tensor, dict[str, Any]]:
        """The timesteps, and the arguments that say what is told beside them, and the texts."""
        timesteps = moved(torch.tensor([float(timestep) for timestep, _ in moments]), x.device)
        return timesteps, {**self._told(moments, texts, x), **self._read(texts, joined)}

    # --- timesteps and conditions ------------------------------------------------------------------------------------

    def _told(self, moments: Sequence[Moment], texts: Sequence[Text], x: Tensor) -> dict[str, Any]:
        """The arguments that say the timesteps, but for the timesteps themselves, and the conditions."""
        if self._is_whole:
            keys = self._project_times(moments, texts)
            assert self._table is not None
            rows = moved(torch.tensor([self._places[key] for key in keys]), x.device)
            return {"time_cache": ChosenTimes(self._table, rows)}
        return {**self._conditions(moments, x.device, x.dtype), **_added(texts)}

    def _conditions(self, moments: Sequence[Moment], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        given = [condition for _, condition in moments if condition is not None]
        if not given:
            return {}
        if self._is_distilled:
            scales = torch.tensor(given, dtype=torch.float64)
            width = self.net.config.time_cond_proj_dim
            return {"timestep_cond": moved(guidance_condition(scales, width).to(dtype), device)}
        return {"class_labels": moved(torch.tensor(given, dtype=torch.int64), device)}

    def _project_times(self, moments: Sequence[Moment], texts: Sequence[Text]) -> list[Told]:
        """Have a row in the table for each of these, and say by which key it is found."""
        beside = texts if any(text.added for text in texts) else ()
        numbers = [text.number for text in beside] or [-1] * len(moments)
        keys: list[Told] = [(*moment, number) for moment, number in zip(moments, numbers, strict=True)]
        every: Sequence[Text | None] = beside or [None] * len(keys)
        wanted = dict(zip(keys, every, strict=True))
        new = [key for key in wanted if key not in self._places]
        if not new:
            return keys
        unet = self.net
        most = max(LARGEST_TABLE // sum(unet.time_widths), 1)
        if len(self._places) + len(new) > most:
            self._places, self._table = {}, None
            new = list(wanted)
        device = unet.device
        rows = [] if self._table is None else [self._table]
        for some in self._at_once(new):
            timesteps = moved(torch.tensor([float(timestep) for timestep, _, _ in some]), device)
            told = self._conditions([(timestep, condition) for timestep, condition, _ in some], device, unet.dtype)
            told |= _added([text for key in some if (text := wanted[key]) is not None])
            rows.append(unet.project(unet.embed(timesteps, **told)))
        self._places |= {key: len(self._places) + place for place, key in enumerate(new)}
        self._table = rows[0] if len(rows) == 1 else torch.cat(rows)
        return keys

    # --- texts -------------------------------------------------------------------------------------------------------

    def _read(self, texts: Sequence[Text], joined: Joined) -> dict[str, Any]:
        """The arguments that say the texts."""
        if not texts:
            return {}
        return self._beside(joined, self, texts, self._side_by_side)

    def _beside(
        self, joined: Joined, key: Any, whose: Sequence[T], make: Callable[[Sequence[T]], dict[str, Any]]
    ) -> dict[str, Any]:
        """What is made of texts or pictures; it is made anew only where they, or the network, are others."""
        beside = joined.setdefault(key, Beside())
        if beside.arguments is None or beside.version != self._version or beside.whose != tuple(whose):
            beside.whose, beside.version = tuple(whose), self._version
            beside.arguments = make(whose)
        return beside.arguments

    def _side_by_side(self, texts: Sequence[Text]) -> dict[str, Any]:
        if not self._is_whole:
            return {"encoder_hidden_states": torch.cat([text.embeds for text in texts])}
        self._project_texts(texts)
        pairs = [text.pairs[self][1] for text in texts]
        return {
            "text_cache": tuple(tuple(map(torch.cat, zip(*layer, strict=True))) for layer in zip(*pairs, strict=True))
        }

    def _project_texts(self, texts: Sequence[Text]) -> None:
        """Have the keys and values of each of these."""
        known = self._version
        new = [text for text in dict.fromkeys(texts) if self not in text.pairs or text.pairs[self][0] != known]
        if not new:
            return
        for some in self._at_once(new):
            layers: TextCache = self.net.project_text(torch.cat([text.embeds for text in some]))
            for place, text in enumerate(some):
                text.pairs[self] = known, tuple((_alone(key, place), _alone(value, place)) for key, value in layers)

    def _at_once(self, given: Sequence[T]) -> Sequence[Sequence[T]]:
        """What is computed together: all, or with `slots` each alone."""
        return [given] if self.slots is None else [[one] for one in given]


def _added(texts: Sequence[Text]) -> dict[str, Any]:
    """The argument that says of texts what stands beside the timestep; none for a network that is told nothing."""
    if not texts or not texts[0].added:
        return {}
    return {"added_cond_kwargs": {name: torch.cat([text.added[name] for text in texts]) for name in texts[0].added}}


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """A context in which PyTorch has so many threads for what this thread computes; None changes nothing."""
    if count is None or count == (before := torch.get_num_threads()):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _alone(tensor: Tensor, place: int) -> Tensor:
    """One row of a tensor, in memory of its own, so that it does not keep the others'."""
    return tensor if len(tensor) == 1 else tensor[place : place + 1].clone()


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """New numbers of the host on a device, without waiting for what the device still has to do."""
    return tensor.to(device, non_blocking=device.type == "cuda")
