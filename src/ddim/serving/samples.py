"""A request that is being drawn: what it is drawn by, how far it is, and its numbers on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddim.models.text_backbone import TextCache
from ddim.noise import seeded_generators
from ddim.pipelines.control import Control
from ddim.pipelines.starts import Kept, Task
from ddim.plan import SamplingPlan
from ddim.serving.futures import Future
from ddim.serving.requests import Request

_NUMBERS = count()

# A timestep, and what the network is told beside it: a class, a guidance scale or nothing.
Moment = tuple[int, float | None]


@dataclass(eq=False)
class Text:
    """A text as the U-Net is told of it.

    Attributes:
        embeds: what it looks at, (1 s d).
        added: what it is told beside the timestep, (1 n) each; see `pipelines.conditions.Condition`.
        number: one of its own, by which what is computed of it is found.
        pairs: of each network that reads it, the version of its weights, and the keys and values that it made of the
            text, (1 heads s d) each.
    """

    embeds: Tensor
    added: Mapping[str, Tensor] = field(default_factory=dict)
    pairs: dict[Any, tuple[int, TextCache]] = field(default_factory=dict)
    number: int = field(default_factory=_NUMBERS.__next__)


class Words(NamedTuple):
    """What a `Text` is made of.

    Attributes:
        prompt: for the first text encoder, or the only one; None are zeros in the place of what it makes of a text.
        second: for the second one, if there is one.
        numbers: told beside the timestep to a model that is told any.
    """

    prompt: str | None
    second: str | None = None
    numbers: tuple[float, ...] = ()


@dataclass(eq=False)
class Shown:
    """What a ControlNet is shown for one picture, and how it acts on it.

    Attributes:
        control: both of them.
        features: what the network made of what it is shown, (1 w h w); None until it is made.
        version: of the network's weights by which that was made.
    """

    control: Control
    features: Tensor | None = None
    version: int = -1


class Controlled(NamedTuple):
    """How the ControlNets act on one evaluation of the U-Net.

    Attributes:
        shown: to each of them.
        strengths: what each one's outputs are multiplied by; 0 where one does not act.
    """

    shown: Sequence[Shown]
    strengths: Sequence[float]


@dataclass(eq=False)
class Sample:
    """One picture on its way.

    Attributes:
        request, future: whose it is.
        plan: its steps.
        seed: of all its noise.
        shape: of it in model space, (1 c h w).
        scale, rescale, interval: of its guidance, see `guidance.guide`.
        is_guided: whether there is any.
        condition: what the network is told beside the timestep: the class, or the guidance scale that a distilled one
            takes as an input; None for neither.
        negative: the condition that guidance compares with.
        prompts: the text, and the one to keep away from; the last is None without guidance. None for no texts.
        words: all that these texts are made of.
        task: what a model on latents starts from; None for a model on pixels.
        settings: what the picture will say that it was drawn by.
        shown: after which steps, counted from 1, the predicted x0 is shown.
        controls: what each ControlNet is shown; nothing where none steers it.
        is_apart: whether it makes its steps with such samples alone that ControlNets steer as well.

        generator: of all its noise; None before the start.
        position: how many steps were made.
        x: x_t, (1 c h w).
        last: the predicted x0 of the step before, for steps of second order.
        channels: what the network is given beside x, (1 c h w).
        kept: what stays of a picture under a mask.
        texts: what `words` became.
        noise: of the step that is being made, which is drawn once however often the step is tried.
        total: on an accelerator, a sum of all that the network gave, which is looked at when the last step was made.
        preview: the predicted x0 to be shown.
        since: the tick that it last took part in, or in which it came.
        begun: when it left the queue, by the clock of `time.monotonic`.
    """

    request: Request
    future: Future
    plan: SamplingPlan
    seed: int
    shape: tuple[int, ...]
    scale: float
    rescale: float
    interval: tuple[int, int] | None
    is_guided: bool
    condition: float | None = None
    negative: float | None = None
    prompts: tuple[str, str | None] | None = None
    words: tuple[Words, Words | None] | None = None
    task: Task | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    shown: frozenset[int] = frozenset()
    controls: Sequence[Shown] = ()
    is_apart: bool = False

    generator: torch.Generator | None = None
    position: int = 0
    x: Tensor | None = None
    last: Tensor | None = None
    channels: Tensor | None = None
    kept: Kept | None = None
    texts: tuple[Text, Text | None] | None = None
    noise: Tensor | None = None
    total: Tensor | None = None
    preview: Tensor | None = None
    since: int = 0
    begun: float = 0.0

    def restart(self) -> list[torch.Generator]:
        """A generator that has drawn nothing yet, for a start that may be tried again; in a list, as one for each."""
        made = seeded_generators(self.seed, 1, self.request.number)
        self.generator = made[0]
        return made

    @property
    def is_finished(self) -> bool:
        """Whether its last step was made."""
        return self.position == len(self.plan)

    @property
    def needs_encoder(self) -> bool:
        """Whether it starts from a picture, which the autoencoder is to encode."""
        return self.task is not None and self.task.canvas.picture is not None

    @property
    def kind(self) -> tuple[Any, ...]:
        """What samples must have in common to make a step together."""
        plan, has_channels = self.plan, self.channels is not None
        how = plan.clip_range, plan.thresholding, plan.prediction_type
        return self.shape, has_channels, self.is_apart, type(plan), *how

    def moments(self) -> Iterator[tuple[Moment, Text | None]]:
        """All that the network will be asked of it, with the text of each."""
        own, negative = self.texts or (None, None)
        yield from (((timestep, self.condition), own) for timestep in self.plan.timesteps)
        if self.is_guided:
            yield from (((timestep, self.negative), negative) for timestep in self.plan.timesteps)

    def controlled(self, is_negative: bool) -> Controlled | None:
        """How ControlNets act on its next step; None where it has none.

        Args:
            is_negative: of the two evaluations under guidance, on the one without the prompt, which a ControlNet that
                guesses leaves alone.
        """
        if not self.controls:
            return None
        each = [shown.control for shown in self.controls]
        acting = [control.acts(self.position, len(self.plan)) for control in each]
        strengths = [
            0.0 if not acts or (is_negative and control.is_guessing) else control.scale
            for control, acts in zip(each, acting, strict=True)
        ]
        return Controlled(self.controls, strengths)

    def is_guided_at(self, timestep: int) -> bool:
        """Whether its step at this timestep is guided."""
        return self.is_guided and (self.interval is None or self.interval[0] <= timestep <= self.interval[1])


def shown_steps(request: Request, steps: int) -> frozenset[int]:
    """After which of so many steps, counted from 1, a request is to be shown its predicted x0: never after the last.

    >>> sorted(shown_steps(Request(previews=3), 25)), sorted(shown_steps(Request(preview_every=10), 25))
    ([6, 12, 19], [10, 20])
    """
    if request.preview_every is not None:
        return frozenset(range(request.preview_every, steps, request.preview_every))
    shown = min(request.previews, steps - 1)
    return frozenset(round(steps * part / (shown + 1)) for part in range(1, shown + 1))
