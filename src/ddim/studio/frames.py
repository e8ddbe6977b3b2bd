"""What lies between two points or more, drawn for a page: frame after frame, and as a film."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ddim._version import __version__
from ddim.errors import ConfigError, MissingExtraError
from ddim.images import enlarge, image_grid, there_and_back, write_animation
from ddim.interpolation import draw, seed_noise
from ddim.models.core import in_pytorch
from ddim.pipelines import DiffusionPipeline
from ddim.pipelines.between import Way, denoisers_along, noise_of_pictures
from ddim.pipelines.fitting import resized, structure
from ddim.pipelines.recommended import plan_of_call
from ddim.plan import SamplingPlan
from ddim.sampling import Denoiser
from ddim.scheduler.recommended import choose_guidance
from ddim.serving.limits import Limits
from ddim.serving.parameters import SEEDS, Generation
from ddim.serving.pictures import encoded
from ddim.serving.wishes import wish
from ddim.studio.clock import Share
from ddim.studio.nearness import as_tensor, nearness

__all__ = [
    "MOST_BETWEEN",
    "Ends",
    "Film",
    "Frame",
    "Note",
    "classes_of",
    "draw_frames",
    "film",
    "seeds_of",
    "strip",
    "texts_of",
]

MOST_POINTS = 8
MOST_BETWEEN = 30  # pictures, between each two points
_MOST_FRAMES = 96
_AT_A_TIME = 4  # frames

Inversion = Literal["ddim", "fixed-point"]


@dataclass(frozen=True)
class Ends:
    """What to go between: several seeds, texts, classes or pictures; what there is none of is as the settings say.

    Attributes:
        seeds, prompts, class_labels, pictures: p of one of them. Beside pictures, a text or class of each may be given.
        between: how many frames to draw between each two.
        method, steps: by which pictures are led to their noise, and back.
    """

    between: int
    seeds: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    class_labels: tuple[int, ...] = ()
    pictures: tuple[Image.Image, ...] = ()
    method: Inversion = "fixed-point"
    steps: int = 50

    @property
    def way(self) -> Way:
        """Where the frames lie.

        Raises:
            ConfigError: there are too few points, too many, or too many frames.
        """
        points = max(map(len, (self.seeds, self.prompts, self.class_labels, self.pictures)))
        if points < 2:
            raise ConfigError("one point leads nowhere: give two or more")
        way = Way(points, self.between + 2)
        if points > MOST_POINTS or len(way) > _MOST_FRAMES:
            raise ConfigError(
                f"{points} points with {self.between} pictures between each two are {len(way)} pictures: {MOST_POINTS} "
                f"points and {_MOST_FRAMES} pictures are the most"
            )
        return way


# --- what was typed ---------------------------------------------------------------------------------------------------


def seeds_of(text: str) -> tuple[int, ...]:
    """
    >>> seeds_of("7, 8 9")
    (7, 8, 9)

    Raises:
        ConfigError: one is no seed.
    """
    return _numbers(text, "seed", SEEDS)


def classes_of(text: str, count: int) -> tuple[int, ...]:
    """The classes of a text such as "3, 8", of `count` that there are.

    Raises:
        ConfigError: one is none.
    """
    return _numbers(text, "class", count - 1)


def texts_of(text: str) -> tuple[str, ...]:
    """The lines of a text that say something.

    >>> texts_of("a cat\\n\\n a dog ")
    ('a cat', 'a dog')
    """
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _numbers(text: str, name: str, most: int) -> tuple[int, ...]:
    words = text.replace(",", " ").replace(";", " ").split()
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 20 and int(word) <= most):
            raise ConfigError(f"{word[:30]!r} is no {name}: give whole numbers from 0 to {most}, with commas between")
    return tuple(int(word) for word in words)


# --- drawing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """A frame that is drawn."""

    number: int
    image: Image.Image


@dataclass(frozen=True)
class Note:
    """A sentence for the visitor."""

    text: str


@torch.no_grad()
def draw_frames(
    pipe: DiffusionPipeline,
    name: str,
    asked: Generation,
    ends: Ends,
    limits: Limits,
    tell: Callable[[Share | Frame | Note], object] = lambda told: None,
) -> list[Image.Image]:
    """The frames of a way, all points included. The first and the last are what the pipeline draws of the ends alone.

    Args:
        name: what the visitor calls the model.
        asked: the settings. Pictures are drawn without guidance by `ends.steps` steps of first order instead, as only
            then they come back.
        tell: told of each frame when it is there, and after each step; it may raise to end the run.

    Raises:
        Refusal, ConfigError: it cannot be drawn.
    """
    # Pictures come back only if the network is asked as exactly as PyTorch does.
    with in_pytorch(pipe.components.values()) if ends.pictures else contextlib.nullcontext():
        return _draw_frames(pipe, name, asked, ends, limits, tell)


def _draw_frames(
    pipe: DiffusionPipeline,
    name: str,
    asked: Generation,
    ends: Ends,
    limits: Limits,
    tell: Callable[[Share | Frame | Note], object],
) -> list[Image.Image]:
    way = ends.way
    asked = asked.model_copy(update=_first(ends))
    if asked.eta != 0 and not ends.pictures:
        tell(Note("η is 0 here: with noise at each step there would be no way from one picture to the next."))
        asked = asked.model_copy(update={"eta": 0.0})
    batches, inverted = math.ceil(len(way) / _AT_A_TIME), bool(ends.pictures)
    guidance: dict[str, Any] = {"guidance_scale": 1.0, "guidance_rescale": 0.0}
    labels = ends.class_labels
    if inverted:
        plan = pipe.scheduler.plan(ends.steps).unclipped()
        weight = 2.0 if ends.method == "ddim" else 10.0  # of the way up, which two pictures go; a batch weighs 4
        before = weight / (weight + 4 * batches)
        fitted, x = _found(pipe, plan, ends, lambda share, doing: tell(Share(before * share, doing)))
        x = way.along(x)
    else:
        wanted = wish(name, pipe, asked, limits)
        request = wanted.requests(pipe.draws_texts, None)[0]
        plan = plan_of_call(pipe.scheduler, request.steps, 0.0, None, request.order, spacing=request.spacing)
        usual = getattr(pipe, "usual_guidance", 1.0)
        scale, rescale = choose_guidance(pipe.scheduler.config, request.guidance_scale, request.guidance_rescale, usual)
        guidance = {"guidance_scale": scale, "guidance_rescale": rescale}
        guidance["guidance_interval"] = request.guidance_interval
        if not labels and request.class_label is not None:
            labels = (request.class_label,)
        if not pipe.draws_texts and pipe.class_count is None:
            guidance = {}
        factor = structure(pipe)[0]
        shape = (pipe.sample_shape(1)[1], wanted.size[1] // factor, wanted.size[0] // factor)
        x = way.along(seed_noise(pipe, ends.seeds or [wanted.seed], shape))
        before = 0.0
    prompts = (ends.prompts or (asked.prompt or "",)) if pipe.draws_texts and not inverted else ends.prompts
    denoisers = denoisers_along(
        pipe, plan, way, prompts=prompts, class_labels=labels, negative_prompt=asked.negative_prompt, **guidance
    )
    made, drawn = 0, list[Image.Image]()

    def progress() -> None:
        nonlocal made
        made += 1
        done = before + (1 - before) * made / (len(plan) * batches)
        tell(Share(min(done, 1.0), f"{len(drawn)} of {len(way)} pictures"))

    def decode(samples: Tensor) -> list[Image.Image]:
        pictures: list[Image.Image] = pipe.decode(samples.to(pipe.dtype))
        for picture in pictures:
            tell(Frame(len(drawn), picture))
            drawn.append(picture)
        return pictures

    draw(plan, x, denoisers, decode, batch_size=_AT_A_TIME, progress=progress)
    if inverted:
        tell(Note(_how_near(pipe, fitted, [drawn[index * (ends.between + 1)] for index in range(way.points)], ends)))
    return drawn


def _first(ends: Ends) -> dict[str, Any]:
    """The settings that the ends replace, as those of the first point."""
    first: dict[str, Any] = {}
    if ends.prompts:
        first["prompt"] = ends.prompts[0]
    if ends.class_labels:
        first["class_label"] = ends.class_labels[0]
    return first


def _found(
    pipe: DiffusionPipeline, plan: SamplingPlan, ends: Ends, tell: Callable[[float, str], object]
) -> tuple[list[Image.Image], Tensor]:
    """The pictures as large as the model draws them, and their noise."""
    channels, height, width = pipe.picture_shape()
    fitted = [resized(picture, (width, height), channels) for picture in ends.pictures]
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    def watched(denoiser: Denoiser) -> Denoiser:
        def asked(x: Tensor, timestep: Tensor) -> Tensor:
            tell(steps / len(plan), f"finding the pictures' noise: step {min(steps + 1, len(plan))} of {len(plan)}")
            return denoiser(x, timestep)

        return asked

    x = noise_of_pictures(
        pipe,
        plan,
        fitted,
        method=ends.method,
        prompts=ends.prompts,
        class_labels=ends.class_labels,
        notice=lambda _: step(),
        watched=watched,
    )
    return fitted, x


def _how_near(pipe: DiffusionPipeline, fitted: Sequence[Image.Image], drawn: Sequence[Image.Image], ends: Ends) -> str:
    """How near the ends of the way come to the pictures, in a sentence."""
    seen = as_tensor(pipe.decode(pipe.encode(list(fitted))))
    back = as_tensor(drawn)
    errors = "; ".join(str(nearness(seen[i], back[i])) for i in range(len(fitted)))
    by = "DDIM backwards" if ends.method == "ddim" else "the fixed point"
    said = f"The pictures were led to their noise in {ends.steps} steps by {by}, and come back from it so: {errors}."
    if pipe.draws_texts:
        whole = as_tensor(fitted)
        lost = "; ".join(str(nearness(whole[i], seen[i])) for i in range(len(fitted)))
        said += f" What the model's autoencoder alone loses of the files is not counted: {lost}."
    return said


# --- what is kept -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Film:
    """An animation that a browser plays.

    Attributes:
        data, suffix: of its file; ".mp4" or ".webp".
        size: (width, height).
        seconds: that it takes.
        note: why it is no MP4, if it is none.
    """

    data: bytes
    suffix: str
    size: tuple[int, int]
    seconds: float
    note: str | None = None


def film(frames: Sequence[Image.Image], fps: float, *, returns: bool, about: Mapping[str, Any]) -> Film:
    """The frames as an MP4 or, where the library that writes these is missing, as an animated WebP.

    Args:
        fps: frames a second, 1 to 60.
        returns: whether it goes back again at the end.
        about: the settings, which the file says.
    """
    shown = [enlarge(frame, least=256) for frame in frames]
    shown = there_and_back(shown) if returns else shown
    note = {"version": __version__, "command": "interpolate", "settings": dict(about)}
    missing = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "between.mp4")
        try:
            write_animation(path, shown, fps=fps, note=note)
        except MissingExtraError as error:
            missing = f"This is an animated WebP; for an MP4, {error}."
            path = path.with_suffix(".webp")
            write_animation(path, shown, fps=fps, note=note)
        return Film(path.read_bytes(), path.suffix, shown[0].size, len(shown) / fps, missing)


def strip(frames: Sequence[Image.Image], about: Mapping[str, Any]) -> bytes:
    """The frames beside each other in a PNG, which says the settings."""
    note = {"version": __version__, "command": "interpolate", "settings": dict(about)}
    return encoded(image_grid(frames, len(frames)), "png", recipe=note)
