"""Frames between points of any pipeline: the noise of each, and what draws each under its text or class.

`ddim.interpolation` has the paths and the grids; here they meet texts, classes and real pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ddim.interpolation import (
    BETWEEN,
    Between,
    Denoisers,
    conditioned,
    grid,
    mixed,
    path,
    picture_noise,
    slerp,
    stations,
)
from ddim.inversion import Notice
from ddim.pipelines.base import DiffusionPipeline
from ddim.pipelines.latents import LatentPipeline
from ddim.plan import SamplingPlan
from ddim.sampling import Denoiser

# What `encode_prompt` gives, in its order; the last two are Stable Diffusion XL's.
_EMBEDDINGS = (
    "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
)  # fmt: skip

__all__ = ["Way", "denoisers_along", "noise_of_pictures"]


@dataclass(frozen=True)
class Way:
    """Where frames lie: on a path through points, or in a square between four corners.

    Attributes:
        points: how many there are.
        frames: from each point to the next, both included; of a square, along each side.
        is_square: whether it is one.
    """

    points: int
    frames: int
    is_square: bool = False

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.places()[0])

    def places(self) -> tuple[Tensor, Tensor]:
        """Where each frame is: (the point before it, how far it is to the next); in a square, (how far down, how far
        right). Both are (n,).

        Raises:
            ConfigError: there are fewer than two points or frames.
        """
        if not self.is_square:
            return stations(self.points, self.frames)
        share = torch.linspace(0, 1, self.frames, dtype=torch.float64)
        return share.repeat_interleave(self.frames), share.repeat(self.frames)

    def along(self, points: Tensor, between: Between = slerp) -> Tensor:
        """What all points have, (p …), or what they have in common, (1 …), for each frame: (n …)."""
        if len(points) == 1:
            return points.expand(len(self), *points.shape[1:])
        return (grid if self.is_square else path)(points, self.frames, between)


def noise_of_pictures(
    pipe: DiffusionPipeline,
    plan: SamplingPlan,
    pictures: Sequence[Image.Image],
    *,
    method: Literal["ddim", "fixed-point"] = "ddim",
    prompts: Sequence[str] = (),
    class_labels: Sequence[int] = (),
    notice: Notice | None = None,
    watched: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser,
) -> Tensor:
    """x_T of real pictures, (p c h w), found without guidance under the text or the class of each.

    Args:
        plan: of the way down, as `SamplingPlan.unclipped` gives it, with η = 0.
        pictures: p of them.
        method, notice: as in `interpolation.picture_noise`.
        prompts, class_labels: one for each picture, one for all, or none.
        watched: makes of the network what is asked in its place, for instance to tell of every evaluation.

    Raises:
        ConfigError: the plan cannot be inverted.
        NonFiniteError: the network gave NaN, or the iteration diverged.
    """
    conditions: dict[str, Any] = {}
    if prompts:
        conditions["prompt"] = list(prompts[: len(pictures)])
    if class_labels:
        conditions["class_labels"] = list(class_labels[: len(pictures)])
    x0 = pipe.encode(list(pictures))
    denoiser = watched(pipe.denoiser(plan.inverted(), len(pictures), **conditions))
    return picture_noise(denoiser, x0, plan, method, notice)


def denoisers_along(
    pipe: DiffusionPipeline,
    plan: SamplingPlan,
    way: Way,
    *,
    prompts: Sequence[str] = (),
    class_labels: Sequence[int] = (),
    negative_prompt: str | None = None,
    between_texts: Literal["linear", "spherical"] = "linear",
    **guidance: Any,
) -> Denoisers:
    """What draws each frame of a way: under its text, or between the classes that it is between.

    Args:
        prompts, class_labels: one for each of the way's points, one for all frames, or none.
        between_texts: how to go between the embeddings of two texts.
        guidance: `guidance_scale`, `guidance_rescale` and `guidance_interval`, as in a call.
    """
    if isinstance(pipe, LatentPipeline):
        found = pipe.encode_prompt(
            list(prompts) or "",
            do_classifier_free_guidance=pipe.is_guided(guidance["guidance_scale"]),
            negative_prompt=negative_prompt,
        )
        each = {}
        for name, tensor in zip(_EMBEDDINGS, found, strict=False):
            if tensor is not None and name.startswith("negative"):
                each[name] = way.along(tensor[:1])
            elif tensor is not None:
                each[name] = way.along(tensor, BETWEEN[between_texts])
        return conditioned(pipe, plan, each, **guidance)
    if len(class_labels) < 2:
        if class_labels:
            guidance["class_labels"] = class_labels[0]
        return conditioned(pipe, plan, **guidance)
    first, second = way.places()

    def of(chosen: Sequence[int]) -> Denoisers:
        return conditioned(pipe, plan, {"class_labels": chosen}, **guidance)

    if way.is_square:
        corners = [of([label] * len(first)) for label in class_labels]
        return mixed(mixed(corners[0], corners[2], first), mixed(corners[1], corners[3], first), second)
    before = [int(point) for point in first]
    return mixed(of([class_labels[i] for i in before]), of([class_labels[i + 1] for i in before]), second)
