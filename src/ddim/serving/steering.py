"""The U-Net with its ControlNets, as the engine runs them: each sample steered by what it shows them, or not at all.

A ControlNet is given those of the samples of a forward pass that it acts on, each with its own picture, and what it
adds is multiplied by each sample's own strength. So samples of which some are steered, others no longer and others not
at all make their steps together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddim.pipelines.control import Residuals, summed
from ddim.serving.network import Joined, Network, moved
from ddim.serving.samples import Controlled, Moment, Sample, Shown, Text

__all__ = ["ControlNet", "SteeredNetwork"]


class ControlNet(Network):
    """One of the ControlNets.

    Args:
        net: a `ControlNetModel`, or one of another library.
        number: which of them it is, from 0.
        slots, threads: as a `Network` has them.
    """

    def __init__(self, net: Any, number: int, slots: int | None = None, threads: int | None = None) -> None:
        super().__init__(net, slots, threads)
        self.number = number

    def prepare(self, samples: Sequence[Sample]) -> None:
        steered = [sample for sample in samples if sample.controls]
        asked = dict.fromkeys(
            (timestep, text) for sample in steered for (timestep, _), text in sample.moments() if text is not None
        )
        self._prepare([(timestep, None) for timestep, _ in asked], [text for _, text in asked])
        for sample in steered:
            self._features(sample.controls[self.number])

    def residuals(
        self,
        x: Tensor,
        moments: Sequence[Moment],
        texts: Sequence[Text],
        joined: Joined,
        controls: Sequence[Controlled | None],
    ) -> Residuals | None:
        """What it adds to the outputs of the U-Net for n samples; None where it acts on none of them.

        With `slots`, it is given all samples that are shown anything, also those on which it does not act: so it is
        never the companions that decide whether a number is added.
        """
        count, number = len(x), self.number
        acting = {
            place: control
            for place, control in enumerate(controls)
            if control is not None and (self.slots is not None or control.strengths[number])
        }
        if not acting:
            return None
        places = [*acting]
        missing = self.rounded(len(places)) - len(places)
        given = [*places, *(places[-1] for _ in range(missing))]
        latents = x[:, : self.net.config.in_channels]
        if given != [*range(count)]:
            latents = latents.index_select(0, moved(torch.tensor(given), x.device))
        own_moments: list[Moment] = [(moments[place][0], None) for place in given]
        shown = [acting[place].shown[number] for place in given]
        timesteps, arguments = self._arguments(latents, own_moments, [texts[place] for place in given], joined)
        arguments |= self._beside(joined, (self, "pictures"), shown, self._pictures)
        with self._running():
            down, middle = self.net(latents, timesteps, return_dict=False, **arguments)  # as strongly as is trained
        strengths = [acting[place].strengths[number] for place in places]
        *down, middle = self._scaled([each[: len(places)] for each in (*down, middle)], shown, strengths)
        if len(places) < count:
            chosen = moved(torch.tensor(places), x.device)
            *down, middle = (
                each.new_zeros((count, *each.shape[1:])).index_copy(0, chosen, each) for each in (*down, middle)
            )
        return down, middle

    def _pictures(self, shown: Sequence[Shown]) -> dict[str, Any]:
        """The argument that says what it is shown for each sample."""
        if not self._is_whole:
            return {"controlnet_cond": torch.cat([each.control.picture for each in shown])}
        return {"features": torch.cat([self._features(each) for each in shown])}

    def _features(self, shown: Shown) -> Tensor:
        """What it makes of what it is shown, which is the same at all steps."""
        if not self._is_whole:
            return shown.control.picture
        if shown.features is None or shown.version != self._version:
            shown.features, shown.version = self.net.read(shown.control.picture), self._version
        assert shown.features is not None
        return shown.features

    def _scaled(self, results: Sequence[Tensor], shown: Sequence[Shown], strengths: Sequence[float]) -> list[Tensor]:
        """Results (m …) times the strength of each sample; where it guesses, see `ControlNetModel.forward`."""
        if all(strength == 1 for strength in strengths) and not any(each.control.is_guessing for each in shown):
            return [*results]
        rising = torch.logspace(-1, 0, len(results)).tolist()
        pools = bool(self.net.config.get("global_pool_conditions"))
        shares = [rising if each.control.is_guessing and not pools else [1.0] * len(results) for each in shown]
        factors = torch.tensor(
            [[strength * share for share in row] for strength, row in zip(strengths, shares, strict=False)],
            dtype=torch.float32,
        )
        columns = moved(factors, results[0].device).unbind(1)
        return [(each * column.view(-1, 1, 1, 1)).to(each) for each, column in zip(results, columns, strict=True)]


class SteeredNetwork(Network):
    """The U-Net and the ControlNets that steer it.

    Args:
        net, slots, threads: as a `Network` has them.
        controlnets: one or more.
    """

    def __init__(
        self, net: Any, controlnets: Sequence[Any], slots: int | None = None, threads: int | None = None
    ) -> None:
        super().__init__(net, slots, threads)
        self.controlnets = [ControlNet(each, number, slots, threads) for number, each in enumerate(controlnets)]

    def begin(self) -> None:
        super().begin()
        for each in self.controlnets:
            each.begin()

    def look(self) -> None:
        super().look()
        for each in self.controlnets:
            each.look()

    def prepare(self, samples: Sequence[Sample]) -> None:
        super().prepare(samples)
        for each in self.controlnets:
            each.prepare(samples)

    def _added(
        self,
        x: Tensor,
        moments: Sequence[Moment],
        texts: Sequence[Text],
        joined: Joined,
        controls: Sequence[Controlled | None],
    ) -> Mapping[str, Any]:
        if not any(controls):
            return {}
        found = [each.residuals(x, moments, texts, joined, controls) for each in self.controlnets]
        return summed([residuals for residuals in found if residuals is not None])
