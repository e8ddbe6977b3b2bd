"""Real pictures: to their noise and back by every method of inversion, and edited by CycleDiffusion and inversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from PIL import Image

from ddim.editing import decode_cycle, edit, encode_cycle
from ddim.errors import NonFiniteError
from ddim.inversion import METHODS, invert_fixed_point, keeping, widened
from ddim.models.core import in_pytorch
from ddim.noise import seeded_generators
from ddim.pipelines import DiffusionPipeline
from ddim.pipelines.fitting import resized
from ddim.sampling import Denoiser, SampleStep
from ddim.scheduler.recommended import suitable_guidance
from ddim.studio.clock import Share
from ddim.studio.nearness import Nearness, amplification, as_tensor, difference, nearness, noise_picture

__all__ = ["NAMES", "Came", "Changed", "Edits", "Failed", "Start", "come_back", "edit_both", "fitted"]

# What the methods are called on the page.
NAMES = {"ddim": "DDIM backwards", "fixed-point": "Fixed point", "bidirectional": "Reversible sampler"}

# Each method evaluates the network 2N times for N steps there and back; fixed point does it so many times more, about,
# which is not known before: with the bundled models 200 to 430 times.
_FIXED_POINT = 250

# The most evaluations at one step of fixed point, so that nobody waits for a step that finds no end.
_ITERATIONS = 200


@dataclass(frozen=True)
class Start:
    """What goes in.

    Attributes:
        image: the picture in the model's size.
        seen: as the model has it: what comes out of the autoencoder at once, or the picture itself.
        lost: what the autoencoder alone loses; None without one.
    """

    image: Image.Image
    seen: Image.Image
    lost: Nearness | None


@dataclass(frozen=True)
class Came:
    """A picture that came back.

    Attributes:
        method: a key of `inversion.METHODS`.
        noise: x_T as a picture, see `noise_picture`.
        deviation: its standard deviation; that of noise is 1.
        image: what came back.
        apart: the difference from `Start.seen`, amplified.
        times: how often it was.
        error: against `Start.seen`: of the inversion alone.
        whole: against `Start.image`.
        evaluations: of the network.
        unsettled: at how many steps fixed point was not found.
    """

    method: str
    noise: Image.Image
    deviation: float
    image: Image.Image
    apart: Image.Image
    times: int
    error: Nearness
    whole: Nearness
    evaluations: int
    unsettled: int = 0


@dataclass(frozen=True)
class Failed:
    """A method that did not come through, and why."""

    method: str
    why: str


def fitted(pipe: DiffusionPipeline, picture: Image.Image) -> Image.Image:
    """A picture in the size and the mode that a model draws; other proportions are cropped in the middle."""
    channels, height, width = pipe.picture_shape()
    return resized(picture, (width, height), channels)


class _Watch:
    """Tells of every evaluation of a network how much of all is done.

    Args:
        parts: the expected evaluations of each part of the work, and what it is called.
    """

    def __init__(self, parts: list[tuple[int, str]], tell: Callable[[Any], object]) -> None:
        self._parts, self._tell = parts, tell
        self._all, self._before = sum(count for count, _ in parts), 0
        self._now, self.made = -1, 0

    def next(self) -> None:
        """A part begins."""
        self._before += self._parts[self._now][0] if self._now >= 0 else 0
        self._now, self.made = self._now + 1, 0

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        def asked(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            count, doing = self._parts[self._now]
            self._tell(Share((self._before + min(self.made, 0.97 * count)) / self._all, doing))
            self.made += 1
            return denoiser(x, timestep)

        return asked


@torch.no_grad()
def come_back(
    pipe: DiffusionPipeline,
    picture: Image.Image,
    steps: int,
    conditions: Mapping[str, Any],
    tell: Callable[[Share | Start | Came | Failed], object] = lambda told: None,
) -> None:
    """Lead a picture to its noise and back by each of `inversion.METHODS`.

    PyTorch runs the network, the samples are kept in float64, and there is no guidance, as `ddim invert` does.

    Args:
        steps: N of each way, 2 or more.
        conditions: what the picture shows, as `pipe.denoiser` takes it: {"prompt": …} or {"class_labels": …}.
        tell: told of the start, of each method's result, and of each evaluation of the network; it may raise to end it.

    Raises:
        ConfigError: no such plan can be made.
    """
    with in_pytorch(pipe.components.values()):
        _come_back(pipe, picture, steps, conditions, tell)


def _come_back(
    pipe: DiffusionPipeline,
    picture: Image.Image,
    steps: int,
    conditions: Mapping[str, Any],
    tell: Callable[[Share | Start | Came | Failed], object],
) -> None:
    image = fitted(pipe, picture)
    plan = pipe.scheduler.plan(steps).unclipped()
    x0 = widened(pipe.encode([image]))
    seen = pipe.decode(x0.to(pipe.dtype), "pt")
    whole = as_tensor([image])
    tell(Start(image, pipe.decode(x0.to(pipe.dtype))[0], nearness(whole, seen) if pipe.draws_texts else None))
    expected = {name: 2 * steps + _FIXED_POINT * (name == "fixed-point") for name in METHODS}
    watch = _Watch([(count, NAMES[name]) for name, count in expected.items()], tell)
    times: int | None = None  # one for all, so that they can be compared
    for name, way in METHODS.items():
        watch.next()
        denoiser = watch(keeping(pipe.denoiser(plan, 1, **conditions), pipe.dtype))
        if name == "fixed-point":
            way = replace(way, up=partial(invert_fixed_point, iterations=_ITERATIONS))
        evaluations = [0]

        def count(_: SampleStep, made: list[int] = evaluations) -> None:
            made.append(watch.made)

        try:
            states = way.encode(denoiser, x0, plan, count)
            back = way.decode(denoiser, states, plan)
        except NonFiniteError as error:
            tell(Failed(name, str(error)))
            continue
        again = pipe.decode(back.to(pipe.dtype), "pt")
        times = amplification(seen, again) if times is None else times
        tell(
            Came(
                name,
                noise_picture(states[0]),
                float(states[0].std()),
                pipe.decode(back.to(pipe.dtype))[0],
                difference(seen, again, times),
                times,
                nearness(seen, again),
                nearness(whole, again),
                watch.made,
                sum(after - before > _ITERATIONS for before, after in pairwise(evaluations)),
            )
        )


# --- editing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edits:
    """How a picture is edited.

    Attributes:
        source, target: what it shows, and what it is to show, as `pipe.denoiser` takes them.
        strength: how far up to the noise to go, above 0 and up to 1.
        steps: of the whole way to the noise, of which the share `strength` is made.
        guidance_scale: towards the target.
        seed: of the noise that CycleDiffusion draws.
        method: of the inversion, a key of `inversion.METHODS`.
    """

    source: Mapping[str, Any]
    target: Mapping[str, Any]
    strength: float = 0.7
    steps: int = 100
    guidance_scale: float | None = None
    seed: int = 0
    method: Literal["ddim", "fixed-point", "bidirectional"] = "ddim"


@dataclass(frozen=True)
class Changed:
    """An edited picture; `by` is "cycle" or "inversion"."""

    by: Literal["cycle", "inversion"]
    image: Image.Image


@torch.no_grad()
def edit_both(
    pipe: DiffusionPipeline,
    picture: Image.Image,
    how: Edits,
    tell: Callable[[Share | Start | Changed | Failed], object] = lambda told: None,
) -> None:
    """Edit a picture by CycleDiffusion, at η = 1, and through inversion, as `ddim edit` does. PyTorch runs the network.

    Args:
        tell: told of the start, of both results, and of each evaluation of the network; it may raise to end it.

    Raises:
        ConfigError: no such plan can be made, or the guidance is not for this model.
    """
    with in_pytorch(pipe.components.values()):
        _edit_both(pipe, picture, how, tell)


def _edit_both(
    pipe: DiffusionPipeline,
    picture: Image.Image,
    how: Edits,
    tell: Callable[[Share | Start | Changed | Failed], object],
) -> None:
    image = fitted(pipe, picture)
    random = pipe.scheduler.plan(how.steps, eta=1.0).unclipped().shortened(how.strength)
    plan = pipe.scheduler.plan(how.steps).unclipped().shortened(how.strength)
    scale, rescale = suitable_guidance(pipe.scheduler.config, pipe.draws_texts, how.guidance_scale, None)
    guidance = {"guidance_scale": scale, "guidance_rescale": rescale}
    x0 = pipe.encode([image])
    seen = pipe.decode(x0, "pt")
    lost = nearness(as_tensor([image]), seen) if pipe.draws_texts else None
    tell(Start(image, pipe.decode(x0)[0], lost))
    through = 2 * len(plan) + _FIXED_POINT * (how.method == "fixed-point")
    watch = _Watch([(2 * len(plan), "CycleDiffusion"), (through, "Through inversion")], tell)
    watch.next()
    source, target = pipe.denoiser(random, 1, **how.source), pipe.denoiser(random, 1, **how.target, **guidance)
    cycle = encode_cycle(watch(source), x0, random, seeded_generators(how.seed, 1))
    x = x0
    for step in decode_cycle(watch(target), cycle, random):
        x = step.sample
    tell(Changed("cycle", pipe.decode(x.to(pipe.dtype))[0]))
    watch.next()
    source, target = pipe.denoiser(plan, 1, **how.source), pipe.denoiser(plan, 1, **how.target, **guidance)
    try:
        x = edit(watch(source), watch(target), x0, plan, how.method)
    except NonFiniteError as error:
        tell(Failed("inversion", str(error)))
    else:
        tell(Changed("inversion", pipe.decode(x.to(pipe.dtype))[0]))
