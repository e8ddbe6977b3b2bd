"""Timesteps found by search: which N of a fine run's M come nearest to where the fine run ends.

Dynamic programming over a reference trajectory (Pei et al. 2025, "Optimal Stepsize for Diffusion Sampling"). The fine
run gives a sample at each of its timesteps. For i = 1…N and each timestep j of the fine run: of all runs that reach j
in i steps, keep the one that is nearest to the fine run's sample there. A run that reaches j in i steps is one that
reached some k before j in i-1, with one step more; the step is the sampler's own, from where that run is and not from
where the fine one is, so errors add up as they will. One pass for N finds the timesteps of every smaller number too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.plan import SamplingPlan
from ddim.process import prediction, second_order
from ddim.sampling import Denoiser, sample


@dataclass(frozen=True)
class _Run:
    """The best way to one place: where it is, and how it came there."""

    x: Tensor
    error: float
    places: tuple[int, ...]  # in the fine run, of the evaluations
    x0: Tensor | None = None  # the last prediction


def find_timesteps(
    denoiser: Denoiser,
    noise: Tensor,
    plan: SamplingPlan,
    numbers: Collection[int],
    *,
    order: int = 1,
    notice: Callable[[], object] = lambda: None,
) -> dict[int, tuple[int, ...]]:
    """For each N of `numbers` the N timesteps of `plan` from which a run ends nearest to where the plan itself ends.

    It costs about M·(max N) evaluations.

    Args:
        denoiser: as it will be used, guidance and all.
        noise: x_T of some samples (b …): the more, the more it is the model that the timesteps suit.
        plan: the fine run, with eta=0, without clipping and of first order; its M timesteps are the candidates. The
            first one is always used.
        numbers: N, each from 1 to M.
        order: of the runs to find timesteps for.
        notice: called after each evaluation, for progress.

    Raises:
        ConfigError: a plan or numbers that this is not for.
        NonFiniteError: the network gave NaN.
    """
    if plan.eta != 0 or plan.clip_range is not None or plan.thresholding is not None or plan.order != 1:
        raise ConfigError("a search for timesteps needs a plan with eta=0 and order=1, without clipping")
    if not numbers or min(numbers) < 1 or max(numbers) > len(plan):
        raise ConfigError(f"the numbers of timesteps must be from 1 to the plan's {len(plan)}, not {sorted(numbers)}")
    goals = [noise]
    for step in sample(denoiser, noise, plan, x0=False):
        goals.append(step.sample)
        notice()
    levels = [before for before, _ in plan.alpha_bars] + [plan.alpha_bars[-1][1]]
    end = len(plan)
    runs = {0: _Run(noise, 0.0, ())}  # place -> the best run that is there, all after the same number of steps
    found = {}
    for taken in range(1, max(numbers) + 1):
        reached: dict[int, _Run] = {}
        for place in sorted(runs):
            if place == end:
                continue
            for there, run in _onward(denoiser, plan, levels, goals, runs[place], place, order):
                if there not in reached or run.error < reached[there].error:
                    reached[there] = run
            notice()
        runs = reached
        if taken in numbers:
            found[taken] = tuple(plan.timesteps[place] for place in runs[end].places)
    return found


def evaluations(number: int, fine: int) -> int:
    """How many evaluations a search for `number` of `fine` timesteps makes, the fine run among them."""
    return fine + sum(1 if taken == 1 else fine - taken + 1 for taken in range(1, number + 1))


def _onward(
    denoiser: Denoiser,
    plan: SamplingPlan,
    levels: list[float],
    goals: list[Tensor],
    run: _Run,
    place: int,
    order: int,
) -> list[tuple[int, _Run]]:
    """One evaluation where a run is, and the step from there to every later place."""
    here = levels[place]
    kind = prediction(plan.prediction_type)
    output = denoiser(run.x, torch.tensor(plan.timesteps[place]))[:, : run.x.shape[1]]
    (p, q), (r, s) = kind.x0(here), kind.eps(here)
    x0, eps = p * run.x + q * output, r * run.x + s * output
    places = (*run.places, place)
    onward = []
    for there in range(place + 1, len(goals)):
        x = math.sqrt(levels[there]) * x0 + math.sqrt(1 - levels[there]) * eps
        if order == 2 and run.x0 is not None:
            x = x + second_order(levels[run.places[-1]], here, levels[there]) * (x0 - run.x0)
        error = float((x - goals[there]).square().mean())
        onward.append((there, _Run(x, error, places, x0 if order == 2 else None)))
    return onward
