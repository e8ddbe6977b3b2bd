"""What an evaluation draws: pictures by their numbers, each with a noise and a condition of its own.

Picture k of a seed is the same however many are drawn at once, so a run that was interrupted goes on exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim.data import IMAGE_SUFFIXES, Source, captioned_source, digits, open_source
from ddim.data.preparation import Preparation
from ddim.data.stream import shuffled
from ddim.errors import ConfigError, DataError
from ddim.noise import Generators, gaussian_noise, seeded_generators
from ddim.plan import SamplingPlan
from ddim.process import SIGMA_HAT, Eta
from ddim.sampling import Denoiser, Pipeline, Scheduler, sample

Conditions = Callable[[int, Sequence[int]], dict[str, Any]]
"""(seed, numbers of pictures) -> arguments of the pipeline's `denoiser`."""

DenoiserFor = Callable[[SamplingPlan], Denoiser]
"""A plan -> the network, ready for the timesteps of that plan, under the conditions of the samples."""

Loop = Callable[[DenoiserFor, Tensor, SamplingPlan, Generators], Tensor]
"""(the network, x_T, the plan that is asked for, a generator for each sample) -> x_0: what samplers differ in.

x_T and x_0 are (n c h w). The loop of another sampler may use no more of the plan than its length, and ask for the
network at timesteps of its own."""


# --- data ------------------------------------------------------------------------------------------------------------


def open_data(
    against: str, *, captioned: bool, labelled: bool, image_column: str, label_column: str, caption_column: str
) -> Source:
    """The data to compare with.

    Raises:
        DataError: there is no such data, or no captions or classes where they are needed.
        MissingExtraError: the library that reads it is not installed.
    """
    name, _, part = against.partition(":")
    if name == "digits" and part in ("", "all", "train", "held-out"):
        if captioned:
            raise DataError("the digits have no captions: give a folder or a table of pictures with captions")
        return digits(part or "all")
    if captioned:
        is_folder = os.path.isdir(against) and any(
            path.suffix.lower() in IMAGE_SUFFIXES for path in Path(against).rglob("*")
        )
        return captioned_source(
            train_data_dir=against if is_folder else None,
            dataset_name=None if is_folder else against,
            image_column=image_column,
            caption_column=caption_column,
        )
    return open_source(against, labelled, image_column, label_column)


def load_pictures(source: Source, shape: tuple[int, int, int], numbers: Sequence[int]) -> Tensor:
    """Pictures of a source by number, resized and cropped to (channels, height, width): (n c h w) in [-1, 1].

    Raises:
        DataError: they are tensors of another size.
        ConfigError: the shape is not square.
    """
    channels, height, width = shape
    if height != width:
        raise ConfigError(f"pictures of {height}x{width} cannot be compared with data yet: only square ones can")
    prepare, rng = Preparation(height, channels), np.random.default_rng(0)
    load = source.at_least(height).load
    pictures = torch.stack([prepare(load(number), rng) for number in numbers])
    if pictures.shape[1:] != shape:
        raise DataError(f"the data's pictures are {tuple(pictures.shape[1:])}, the model draws {shape}")
    return pictures


# --- conditions ------------------------------------------------------------------------------------------------------


def _in_order(count: int, seed: int, numbers: Sequence[int]) -> list[int]:
    """For each picture a number below `count`: all of them in an order of the seed, and then in another order."""
    return [int(shuffled(count, seed, number // count)[number % count]) for number in numbers]


def conditions(pipe: Pipeline, source: Source | None, labels: str, guidance: tuple[float, float]) -> Conditions:
    """What each picture is drawn under.

    Args:
        source: the data, whose captions a text-to-image model draws, and whose classes are drawn by labels="data".
        labels: "turn" or "data", for a class-conditional model; see `EvaluateSettings`.
        guidance: the guidance scale and the guidance rescale.

    Raises:
        ConfigError: guidance for a model that has no conditions.
        DataError: captions or labels are needed and the source has none.
    """
    scale, rescale = guidance
    arguments: dict[str, Any] = {"guidance_scale": scale, "guidance_rescale": rescale}
    if pipe.draws_texts:
        if source is None or source.captions is None:
            raise DataError(
                "a text-to-image model draws the captions of the data, which has none: give data with captions"
            )
        captions = source.captions

        def texts(seed: int, numbers: Sequence[int]) -> dict[str, Any]:
            chosen = (captions[index] for index in _in_order(len(captions), seed, numbers))
            dice = (np.random.default_rng([seed, 1, number]) for number in numbers)
            return {**arguments, "prompt": [c[int(rng.integers(len(c)))] for c, rng in zip(chosen, dice, strict=True)]}

        return texts
    classes = pipe.class_count
    if not classes:
        if scale != 1:
            raise ConfigError("this model knows no classes: guidance_scale must be 1")
        return lambda seed, numbers: {}
    if labels == "turn":
        return lambda seed, numbers: {**arguments, "class_labels": [number % classes for number in numbers]}
    if source is None or source.labels is None:
        raise DataError("the data has no classes: leave out --labels data")
    known = source.labels
    if max(known) >= classes:
        raise DataError(f"the data has {max(known) + 1} classes, the model {classes}: leave out --labels data")
    return lambda seed, numbers: {
        **arguments,
        "class_labels": [known[index] for index in _in_order(len(known), seed, numbers)],
    }


# --- drawing ---------------------------------------------------------------------------------------------------------


def make_plan(scheduler: Scheduler, steps: int, eta: Eta, clip_sample: str = "model") -> SamplingPlan:
    """A plan whose predicted x0 is clipped as `EvaluateSettings.clip_sample` says."""
    if clip_sample != "model":
        clips = clip_sample == "always" or (clip_sample == "sigma_hat" and eta == SIGMA_HAT)
        scheduler = scheduler.from_config(scheduler.config, clip_sample=clips)
    return scheduler.plan(steps, eta=eta)


def run_plan(denoiser_for: DenoiserFor, x: Tensor, plan: SamplingPlan, generators: Generators) -> Tensor:
    """The loop of this package: the plan, step by step.

    With eta="sigma_hat" the last step adds no noise, as in the paper's code; elsewhere the last step's noise is zero or
    as small as its σ.

    Raises:
        NonFiniteError: the network gave NaN; names the step.
    """
    denoiser = denoiser_for(plan)
    has_quiet_end = plan.eta == SIGMA_HAT
    for step in sample(denoiser, x, plan, generator=generators, return_x0=False):
        if has_quiet_end and step.index == len(plan) - 1:
            assert step.model_output is not None
            silence = torch.zeros_like(x)
            x = plan.step(step.model_output, step.timestep, x, variance_noise=silence, return_x0=False).prev_sample
        else:
            x = step.sample
    return x


@torch.inference_mode()
def draw_numbered(
    pipe: Pipeline,
    plan: SamplingPlan,
    seed: int,
    numbers: range,
    conditions: Conditions,
    *,
    loop: Loop = run_plan,
    progress: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Pictures of a seed by their numbers: (n c h w) in [-1, 1].

    Whatever the loop, picture k of a seed starts from the same noise and is drawn under the same condition.

    Args:
        loop: what leads from the noise to the samples.
        progress: called with n each time that the network was asked for n samples.

    Raises:
        NonFiniteError: the network gave NaN; names the step.
    """
    count = len(numbers)
    generators = seeded_generators(seed, count, first=numbers.start)
    x = gaussian_noise(pipe.sample_shape(count), generators, pipe.device, pipe.dtype)
    given = conditions(seed, numbers)

    def denoiser_for(run: SamplingPlan) -> Denoiser:
        network = pipe.denoiser(run, count, **given)

        def counted(x: Tensor, timestep: Tensor) -> Tensor:
            output = network(x, timestep)
            progress(count)
            return output

        return counted

    pictures: Tensor = pipe.decode(loop(denoiser_for, x, plan, generators), "pt")
    return pictures * 2 - 1
