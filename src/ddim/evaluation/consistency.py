"""One x_T, many numbers of steps: do the pictures look alike (the paper's section 5.2 and Figure 5)?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddim.data.progress import progress
from ddim.errors import ConfigError
from ddim.evaluation.drawing import Conditions, draw_numbered, make_plan
from ddim.process import Eta
from ddim.sampling import Pipeline


@dataclass(frozen=True)
class Consistency:
    """Pictures of n noises by each number of steps, and how alike those of one noise are.

    Each picture is compared with one of the most steps: of its own x_T, and, for scale, of another x_T under the same
    condition.

    Attributes:
        pictures: S -> (n c h w) in [-1, 1], from the same noises.
        others: (n c h w) by the most steps, from other noises under the same conditions.
        figures: for each S a dict of `steps`, `cosine` and `rms` (means over the n pictures, to their own noise's),
            `other_cosine` and `other_rms` (to another noise's). Cosines are of features about their mean; rms is of
            pixels in [-1, 1].
    """

    pictures: Mapping[int, Tensor]
    others: Tensor
    figures: list[dict[str, float]]


def consistency(
    pipe: Pipeline,
    steps: Sequence[int],
    count: int,
    seed: int,
    conditions: Conditions,
    features: Callable[[Tensor], Tensor],
    *,
    eta: Eta = 0.0,
    clip_sample: str = "model",
    batch: int = 500,
) -> Consistency:
    """Draw from the same noises with each number of steps.

    Args:
        pipe: what draws; a pipeline of any kind.
        steps: two numbers of steps S or more; the pictures of the largest are what the others are compared with.
        count: the number of noises n, 2 or more.
        seed: the seed of the noises; the other noises are of seed + 1.
        conditions: what each picture is drawn under; for the other noises, too, it is asked with `seed`.
        features: gives the features of pictures, (n c h w) -> (n d).
        eta: should be 0, as with noise on the way the pictures of one x_T differ in any case.
        clip_sample: whether to clip the predicted x0; see `EvaluateSettings`.
        batch: how many pictures to draw at a time.

    Raises:
        ConfigError: fewer than two numbers of steps or two noises.
    """
    if len(set(steps)) < 2 or count < 2:
        raise ConfigError(f"consistency needs two or more numbers of steps and of samples, not {steps} and {count}")
    ordered = sorted(set(steps))
    plans = {number: make_plan(pipe.scheduler, number, eta, clip_sample) for number in ordered}
    parts = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    total = count * (sum(map(len, plans.values())) + len(plans[ordered[-1]]))

    def same_conditions(noise: int, numbers: Sequence[int]) -> dict[str, Any]:
        return conditions(seed, numbers)  # whatever the seed of the noise is

    with progress(total=total, desc="consistency", unit="call", unit_scale=True) as bar:

        def drawn(number: int, noise: int) -> Tensor:
            batches = (
                draw_numbered(pipe, plans[number], noise, part, same_conditions, progress=bar.update) for part in parts
            )
            return torch.cat([batch.cpu() for batch in batches])

        pictures = {number: drawn(number, seed) for number in ordered}
        others = drawn(ordered[-1], seed + 1)

    def seen(images: Tensor) -> Tensor:
        return torch.cat([features(images[part.start : part.stop].to(pipe.device)).cpu() for part in parts]).double()

    goal, goal_others = pictures[ordered[-1]], others
    about = seen(goal)
    centre, about_others = about.mean(0), seen(goal_others)
    figures = []
    for number in ordered:
        vectors = seen(pictures[number])
        figures.append(
            {
                "steps": number,
                "cosine": _cosine(vectors - centre, about - centre),
                "rms": _rms(pictures[number], goal),
                "other_cosine": _cosine(vectors - centre, about_others - centre),
                "other_rms": _rms(pictures[number], goal_others),
            }
        )
    return Consistency(pictures, others, figures)


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(F.cosine_similarity(first, second, dim=1).mean())


def _rms(first: Tensor, second: Tensor) -> float:
    """The mean over pictures of the root of the mean square difference of pixels."""
    return float((first - second).double().square().flatten(1).mean(1).sqrt().mean())
