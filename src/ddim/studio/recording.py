"""A run with all of its steps: what went into the network at each, what came out, and what that means as pictures.

The run is that of the pipeline's own call with the same settings and seed, to the last bit: the same networks are asked
the same things in the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddim.guidance import guide
from ddim.images import to_images
from ddim.pipelines import DiffusionPipeline
from ddim.pipelines.conditions import Condition, joined
from ddim.pipelines.draws import Draws
from ddim.plan import SamplingPlan
from ddim.plots.trajectory import evenly
from ddim.sampling import Denoiser, sample
from ddim.serving.futures import Future
from ddim.serving.models import model_of
from ddim.serving.samples import Sample
from ddim.serving.wishes import Wish
from ddim.step import Row

__all__ = ["MOST", "SIDE", "Moment", "Recording", "planes", "record"]

MOST = 100  # steps that are kept of a run
SIDE = 256  # pixels of the longer side that a picture is kept in; the last one is kept as it is
_LARGE = 3.0  # how many standard deviations from 0 are shown as black or white


@dataclass(frozen=True)
class Moment:
    """One step.

    Attributes:
        index: which of the run's steps, from 0.
        row: its numbers.
        x_t: the sample before it, as a picture.
        x0: what the step took for the image.
        given, output: x_t as the network was given it, and what the network answered, see `planes`.
        without, within: under guidance, the image that each of the two answers alone stands for: that without the text
            or class, or with the negative text, and that with it. Else None.
    """

    index: int
    row: Row
    x_t: Image.Image
    x0: Image.Image
    given: Image.Image
    output: Image.Image
    without: Image.Image | None = None
    within: Image.Image | None = None


@dataclass(frozen=True)
class Recording:
    """A run.

    Attributes:
        moments: its steps; of more than `MOST`, as many, evenly apart, with the first and the last.
        image: what was drawn.
        plan: its table.
        settings: that it was drawn by, by the names of the engine's requests.
        mask, masked: what a network for inpainting is given beside x_t: where it paints, and the picture without that.
        notes: sentences about it.
    """

    moments: tuple[Moment, ...]
    image: Image.Image
    plan: SamplingPlan
    settings: Mapping[str, Any]
    mask: Image.Image | None = None
    masked: Image.Image | None = None
    notes: tuple[str, ...] = ()


@torch.no_grad()
def record(
    pipe: DiffusionPipeline,
    wish: Wish,
    tell: Callable[[tuple[int, int, Moment | None]], object] = lambda _: None,
) -> Recording:
    """Run what is wished for, its first picture, and keep its steps.

    Args:
        wish: of this pipeline.
        tell: called after each step as ((its number from 1 on, how many there are, the step if it is kept)); it may
            raise to end the run.

    Raises:
        ConfigError, ValueError: it cannot be drawn; the message names the setting.
        NonFiniteError: the network gave NaN; names the step.
    """
    model = model_of(pipe)
    request = wish.requests(pipe.draws_texts, None)[0]
    run = model.sample(request, Future(request))
    plan, kept, moments = run.plan, evenly(len(run.plan), MOST), list[Moment]()
    model.begin([run])
    assert run.x is not None
    assert run.generator is not None
    x, generators = run.x, [run.generator]
    pairs: list[Tensor] = []
    denoiser = _denoiser(pipe, run, run.channels, pairs.append)

    def pictures(samples: Tensor) -> list[Image.Image]:
        return [_small(each) for each in model.pictures(samples, "pil")[0]]

    for step in sample(denoiser, x, plan, generator=generators):
        moment, row = None, plan[step.index]
        if step.index in kept:
            assert step.pred_original_sample is not None
            assert step.model_output is not None
            parts = pairs[-1].chunk(2) if pairs else ()
            answers = [_x0(plan, row, part[:, : x.shape[1]], x) for part in parts]
            x_t, x0, *both = pictures(torch.cat([x, step.pred_original_sample, *answers]))
            moment = Moment(step.index, row, x_t, x0, _small(planes(x)), _small(planes(step.model_output)), *both)
            moments.append(moment)
        pairs.clear()
        if run.kept is not None:
            step.sample = run.kept(step.sample, step.index)
        x = step.sample
        tell((step.index + 1, len(plan), moment))
    (image,) = model.pictures(x, "pil")[0]
    mask = masked = None
    if run.channels is not None:
        mask = _small(to_images(run.channels[:, :1] * 2 - 1)[0])
        (masked,) = pictures(run.channels[:, 1:])
    notes = list(wish.notes)
    if run.kept is not None:
        notes.append("after each step, what the mask leaves is put back, with the noise of the next one")
    return Recording(tuple(moments), image, plan, run.settings, mask, masked, tuple(notes))


def planes(x: Tensor) -> Image.Image:
    """Numbers as the network takes and gives them, (1 c h w): 0 is grey, and 3 or more white.

    One channel makes a grey picture and three make a coloured one; others lie beside each other, in two rows.
    """
    values = (x.float() / _LARGE).clamp(-1, 1)
    channels = values.shape[1]
    if channels in (1, 3):
        return to_images(values)[0]
    columns = math.ceil(channels / 2)
    each = [np.pad(np.asarray(to_images(values[:, c : c + 1])[0]), ((0, 1), (0, 1)), constant_values=255)
            for c in range(channels)]  # fmt: skip
    each += [np.full_like(each[0], 255)] * (2 * columns - channels)
    rows = [np.concatenate(each[first : first + columns], axis=1) for first in (0, columns)]
    return Image.fromarray(np.concatenate(rows)[:-1, :-1])


def _denoiser(
    pipe: DiffusionPipeline, run: Sample, channels: Tensor | None, hear: Callable[[Tensor], object]
) -> Denoiser:
    """The network under the run's conditions, as in the pipeline's call.

    Args:
        hear: called with both predictions, (2 c h w), the one without the condition first, where there is guidance.
    """
    plan = run.plan
    alone: Denoiser
    pair: Denoiser
    if isinstance(pipe, Draws):
        assert run.texts is not None
        own, negative = (None if text is None else Condition(text.embeds, text.added) for text in run.texts)
        assert own is not None
        scale = run.scale if run.condition is not None else 1.0
        alone = pipe.denoiser_under(plan, 1, own, None, scale=scale, channels=channels)
        if negative is None:
            return alone
        pair = pipe.denoiser_under(plan, 2, joined([negative, own]), None, scale=1.0, channels=channels)
    else:
        label = None if run.condition is None else [int(run.condition)]
        alone = pipe.denoiser(plan, 1, class_labels=label)
        if not run.is_guided:
            return alone
        assert run.negative is not None
        pair = pipe.denoiser(plan, 2, class_labels=[int(run.negative), *(label or ())])

    def both(x: Tensor, timestep: Tensor) -> Tensor:
        found = pair(x, timestep)
        hear(found)
        return found

    return guide(both, alone, run.scale, run.rescale, run.interval)


def _x0(plan: SamplingPlan, row: Row, output: Tensor, x: Tensor) -> Tensor:
    """The image that an answer of the network stands for."""
    noise = torch.zeros_like(x) if plan.eta != 0 else None
    found = plan.step(output, row.timestep, x, variance_noise=noise).pred_original_sample
    assert found is not None
    return found


def _small(image: Image.Image) -> Image.Image:
    """A picture as it is kept."""
    if max(image.size) > SIDE:
        image = image.copy()
        image.thumbnail((SIDE, SIDE))
    return image
