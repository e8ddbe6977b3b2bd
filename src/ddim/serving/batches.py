"""One step of samples of one kind: one forward pass for all, and each sample's step by the numbers of its own row.

The arithmetic is that of `sampling.sample`, with the same functions, given a `Row` of tensors that broadcast over the
samples, or one of floats where all samples are at the same row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddim.guidance import weigh
from ddim.noise import gaussian_noise
from ddim.plan import SamplingPlan
from ddim.sampling import not_finite
from ddim.serving.network import Joined, Network, moved
from ddim.serving.samples import Controlled, Moment, Sample, Text
from ddim.step import Row, carry_on, check_step, combine, take_step


class Asked(NamedTuple):
    """What the network is to predict: for those that are guided without their condition, and then for all with it.

    Attributes:
        x: what the network is given, (g+b c h w).
        moments: of each of them.
        texts: of each of them; none for a network that reads no text.
        guided: the g samples of the b that are guided at this step.
        chosen: their places among the b; None if that is all of them, or none.
        controls: how ControlNets act on each of them; nothing where none steers any.
    """

    x: Tensor
    moments: Sequence[Moment]
    texts: Sequence[Text]
    guided: Sequence[Sample]
    chosen: Tensor | None
    controls: Sequence[Controlled | None] = ()


class Reached(NamedTuple):
    """Where a step leads b samples.

    Attributes:
        x: the next x, (b c h w).
        x0: the predicted x0, (b c h w); None where nobody needs it.
        totals: of each sample, on an accelerator, see `Sample.total`.
    """

    x: Tensor
    x0: Tensor | None
    totals: Sequence[Tensor] | None


class Batch:
    """Samples of one kind, which make their steps together.

    Args:
        network: what they are given to.
        cuts_first: whether a predicted variance is cut off before guidance and not after it, as pipelines on pixels do.
    """

    def __init__(self, network: Network, cuts_first: bool) -> None:
        self.network = network
        self._cuts_first = cuts_first
        self._members: tuple[Sample, ...] = ()  # those that what follows was put together for
        self._x: Tensor | None = None  # (b c h w)
        self._channels: Tensor | None = None  # what the network is given beside x
        self._joined: list[Joined] = []

    def next(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Of the samples of this kind, those whose turn it is to make a step: all of them."""
        return samples

    def advance(self, samples: Sequence[Sample]) -> list[Sample]:
        """Make one step of each. Where this raises, no sample has changed.

        Returns:
            Those that were left where they are, since the network gave NaN or infinity for them. On an accelerator
            that is not known before their last step, see `check`.
        """
        x = self._together(samples)
        rows = [sample.plan[sample.position] for sample in samples]
        asked = self.asked(samples, rows, x, self._channels)
        out = self.network(asked.x, asked.moments, asked.texts, self._joined, asked.controls)
        out = self.weighed(asked, out, samples, x)
        left = broken(out) if out.is_cpu else []
        if left:
            going_on = [place for place in range(len(samples)) if place not in left]
            if going_on:
                chosen = torch.tensor(going_on)
                some = [samples[place] for place in going_on]
                move(some, self.reached(some, [rows[place] for place in going_on], out[chosen], x[chosen]))
            self._members = ()
            return [samples[place] for place in left]
        reached = self.reached(samples, rows, out, x)
        move(samples, reached)
        self._x, self._members = reached.x, tuple(samples)
        return []

    def _together(self, samples: Sequence[Sample]) -> Tensor:
        """x_t of all samples, (b c h w); it is put together anew only where they are others than in the last step."""
        if self._x is None or len(samples) != len(self._members) or any(map(_differ, samples, self._members)):
            self._members = tuple(samples)
            self._x = torch.cat([there(sample.x) for sample in samples])
            channels = [sample.channels for sample in samples if sample.channels is not None]
            self._channels = torch.cat(channels) if channels else None
        return self._x

    # --- the network -------------------------------------------------------------------------------------------------

    def asked(self, samples: Sequence[Sample], rows: Sequence[Row], x: Tensor, channels: Tensor | None) -> Asked:
        """What the network is to predict for samples at x (b c h w), and the channels that it is given beside it."""
        guided = [
            place for place, (s, row) in enumerate(zip(samples, rows, strict=True)) if s.is_guided_at(row.timestep)
        ]
        first = [samples[place] for place in guided]
        moments: list[Moment] = [(rows[place].timestep, samples[place].negative) for place in guided]
        moments += [(row.timestep, sample.condition) for sample, row in zip(samples, rows, strict=True)]
        texts: list[Text] = [negative for s in first if s.texts is not None and (negative := s.texts[1]) is not None]
        texts += [sample.texts[0] for sample in samples if sample.texts is not None]
        given = x if channels is None else torch.cat([x, channels], dim=1)
        all_of_them = len(guided) == len(samples)
        chosen = None if all_of_them or not guided else moved(torch.tensor(guided), x.device)
        if guided:
            given = torch.cat([given if chosen is None else given.index_select(0, chosen), given])
        controls: list[Controlled | None] = []
        if any(sample.controls for sample in samples):
            controls = [sample.controlled(is_negative=True) for sample in first]
            controls += [sample.controlled(is_negative=False) for sample in samples]
        return Asked(given, moments, texts, first, chosen, controls)

    def weighed(self, asked: Asked, out: Tensor, samples: Sequence[Sample], x: Tensor) -> Tensor:
        """Of what the network gave, each sample's prediction, under guidance where it is guided: (b c h w)."""
        if self._cuts_first:
            out = _without_variance(out, x)
        first, chosen = asked.guided, asked.chosen
        without, within = out[: len(first)], out[len(first) :]
        if first:
            scale = _one_or_each([s.scale for s in first], x)
            rescale = _one_or_each([s.rescale for s in first], x)
            if chosen is None:
                within = weigh(without, within, scale, rescale)
            else:
                weighed = weigh(without, within.index_select(0, chosen), scale, rescale)
                within = within.index_copy(0, chosen, weighed)
        return within if self._cuts_first else _without_variance(within, x)

    # --- the step ----------------------------------------------------------------------------------------------------

    def reached(self, samples: Sequence[Sample], rows: Sequence[Row], out: Tensor, x: Tensor) -> Reached:
        """Where a step leads samples, at these rows, from x (b c h w) by what the network gave for them."""
        noise = self._noise(samples, out)
        shown = any(sample.position + 1 in sample.shown for sample in samples)
        of_second_order = any(sample.plan.order == 2 for sample in samples)
        prev, x0 = _stepped(samples, rows, out, x, noise, of_second_order or shown)
        if of_second_order and x0 is not None:
            carried = _one_or_each([row.carried for row in rows], x)
            if isinstance(carried, Tensor) or carried:
                last = torch.cat([x0.new_zeros(s.shape) if s.last is None else s.last for s in samples])
                prev = carry_on(prev, x0, last, carried)
        kept = [place for place, sample in enumerate(samples) if sample.kept is not None]
        if kept:
            prev = _put_back(samples, kept, prev, [sample.position + 1 for sample in samples])
        return Reached(prev, x0, None if out.is_cpu else _totals(samples, out))

    def _noise(self, samples: Sequence[Sample], out: Tensor) -> Tensor | None:
        """The noise of this step, (b c h w), of each sample by its own generator; 0 for those of eta=0."""
        noisy = [place for place, sample in enumerate(samples) if sample.plan.eta != 0]
        if not noisy:
            return None
        for sample in (samples[place] for place in noisy):
            if sample.noise is None:  # as it is unless the step was tried before
                assert sample.generator is not None
                sample.noise = gaussian_noise((1, *out.shape[1:]), [sample.generator], out.device, out.dtype)
        every = torch.cat([there(samples[place].noise) for place in noisy])
        if len(noisy) == len(samples):
            return every
        return torch.zeros_like(out).index_copy(0, moved(torch.tensor(noisy), out.device), every)


def move(samples: Sequence[Sample], reached: Reached) -> None:
    """Bring samples to where their step leads."""
    x0 = reached.x0
    for place, (sample, x) in enumerate(zip(samples, reached.x.unsqueeze(1), strict=True)):
        sample.x, sample.noise = x, None
        sample.position += 1
        if sample.plan.order == 2 and x0 is not None:
            sample.last = x0[place : place + 1]
        if sample.position in sample.shown and x0 is not None:
            preview = x0[place : place + 1]
            sample.preview = preview if sample.kept is None else sample.kept(preview, len(sample.plan))
        if reached.totals is not None:
            sample.total = reached.totals[place]


def check(sample: Sample) -> None:
    """Raise a NonFiniteError if the network gave NaN or infinity for a sample on an accelerator, which waits for it."""
    if sample.total is not None and not math.isfinite(sample.total.item()):
        raise not_finite(sample.position - 1, sample.plan)


def _totals(samples: Sequence[Sample], out: Tensor) -> Sequence[Tensor]:
    """For each sample, a sum of all that the network gave for it so far, which is finite only if that was."""
    now = out.sum(dim=tuple(range(1, out.ndim)), dtype=torch.float32)
    before = [now.new_zeros(()) if sample.total is None else sample.total for sample in samples]
    return (torch.stack(before) + now).unbind()


def _stepped(
    samples: Sequence[Sample], rows: Sequence[Row], out: Tensor, x: Tensor, noise: Tensor | None, return_x0: bool
) -> tuple[Tensor, Tensor | None]:
    """x_prev and the predicted x0, (b c h w) each."""
    plan = samples[0].plan
    if type(plan) is not SamplingPlan:  # a step of somebody else's making, which knows of one run alone
        each = [
            sample.plan.step(
                out[place : place + 1],
                rows[place].timestep,
                x[place : place + 1],
                variance_noise=None if sample.plan.eta == 0 or noise is None else noise[place : place + 1],
                return_x0=return_x0,
            )
            for place, sample in enumerate(samples)
        ]
        x0 = [one.pred_original_sample for one in each if one.pred_original_sample is not None]
        return torch.cat([one.prev_sample for one in each]), torch.cat(x0) if x0 else None
    dtype, wide = check_step(out, x)
    prev, original = take_step(
        _row_of_all(rows, x, wide),
        out,
        x,
        dtype,
        wide,
        noise=noise,
        clip=plan.clipping,
        output_is_eps=plan.prediction_type == "epsilon",
        return_x0=return_x0,
    )
    return prev, original


def _row_of_all(rows: Sequence[Row], x: Tensor, dtype: torch.dtype) -> Row:
    """One row for all samples: of floats if they are alike, else of tensors (b 1 …)."""
    if all(row == rows[0] for row in rows[1:]):
        return rows[0]
    table = moved(torch.tensor(rows, dtype=torch.float64).to(dtype), x.device)
    return Row(*table.view(*table.shape, *[1] * (x.ndim - 1)).unbind(1))


def _put_back(samples: Sequence[Sample], kept: Sequence[int], prev: Tensor, reached: Sequence[int]) -> Tensor:
    """What stays of pictures put back into x_prev, at the level of noise that each has reached; see `starts.Kept`.

    Args:
        kept: the places of the samples of which something stays.
        reached: how many steps of each sample were made.
    """
    parts = [part for place in kept if (part := samples[place].kept) is not None]
    latents, noise, mask = (torch.cat([getattr(p, name) for p in parts]) for name in ("latents", "noise", "mask"))
    levels = []
    for place in kept:
        plan, step = samples[place].plan, reached[place]
        levels.append((plan[step].signal_rate, plan[step].noise_rate) if step < len(plan) else (1.0, 0.0))
    wide = torch.promote_types(prev.dtype, torch.float32)
    signal, rate = moved(torch.tensor(levels, dtype=wide), prev.device).view(-1, 2, *[1] * (prev.ndim - 1)).unbind(1)
    there = combine(latents.to(wide), noise.to(wide), signal, rate).to(latents.dtype)
    if len(kept) == len(samples):
        return (1 - mask) * there + mask * prev
    chosen = moved(torch.tensor(kept), prev.device)
    painted = (1 - mask) * there + mask * prev.index_select(0, chosen)
    return prev.index_copy(0, chosen, painted.to(prev.dtype))


def _one_or_each(numbers: Sequence[float], x: Tensor) -> float | Any:
    """A number that all samples have; or a tensor (b 1 …) of one for each."""
    if all(number == numbers[0] for number in numbers):
        return numbers[0]
    dtype = torch.promote_types(x.dtype, torch.float32)
    return moved(torch.tensor(numbers, dtype=dtype), x.device).view(-1, *[1] * (x.ndim - 1))


def broken(out: Tensor) -> list[int]:
    """The places of the samples for which the network gave NaN or infinity; for a network on the host."""
    if math.isfinite(out.sum(dtype=torch.float32).item()):
        return []
    totals = out.sum(dim=tuple(range(1, out.ndim)), dtype=torch.float32).tolist()
    return [place for place, total in enumerate(totals) if not math.isfinite(total)]


def _without_variance(out: Tensor, x: Tensor) -> Tensor:
    """A prediction without the variance that some networks predict beside it, in twice as many channels."""
    return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


def there(tensor: Tensor | None) -> Tensor:
    """What a sample that has begun has."""
    assert tensor is not None
    return tensor


def _differ(one: Sample, other: Sample) -> bool:
    return one is not other
