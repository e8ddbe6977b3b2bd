"""Timesteps found by search: which N of a fine run's M come nearest to where the fine run ends.

Dynamic programming over a reference trajectory (Pei et al. 2025, "Optimal Stepsize for Diffusion Sampling"). The fine
run gives a sample at each of its timesteps. For i = 1…N and each timestep j of the fine run: of all runs that reach j
in i steps, keep the one that is nearest to the fine run's sample there. A run that reaches j in i steps is one that
reached some k before j in i-1, with one step more; the step is the sampler's own, from where that run is and not from
where the fine one is, so errors add up as they will. One pass for N finds the timesteps of every smaller number too.

That is not the last word, as the nearest way to a place need not be the best beginning. So each list is then improved
by its own end: one timestep after the other is moved while that brings the end of the run nearer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.plan import SamplingPlan
from ddim.process import ddim_step, second_order
from ddim.sampling import Denoiser, sample

__all__ = ["evaluations", "find_timesteps"]

SWEEPS = 3  # over the timesteps of a list, at most, to improve it
MOVES = (-4, -2, -1, 1, 2, 4)  # of a timestep among the fine run's, that are tried


@dataclass(frozen=True)
class _Run:
    """A way to one place of the fine run: where it is, how far off that is, and how it came there."""

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
    notice: Callable[[int], object] = lambda count: None,
) -> dict[int, tuple[int, ...]]:
    """For each N of `numbers` the N timesteps of `plan` from which a run ends nearest to where the plan itself ends.

    It costs about M·(max N) evaluations, and some 9·N² for each N; `evaluations` says how many at most.

    Args:
        denoiser: as it will be used, guidance and all.
        noise: x_T of some samples (b …): the more, the more it is the model that the timesteps suit.
        plan: the fine run, with eta=0, without clipping and of first order; its M timesteps are the candidates. A
            list may begin below the first one: the noise is then taken for a sample of that timestep, as it is with
            "leading" timesteps.
        numbers: N, each from 1 to M.
        order: of the runs to find timesteps for.
        notice: called with the number of evaluations that were made, or spared, for progress.

    Raises:
        ConfigError: a plan or numbers that this is not for.
        NonFiniteError: the network gave NaN.
    """
    if plan.eta != 0 or plan.clip_range is not None or plan.thresholding is not None or plan.order != 1:
        raise ConfigError("a search for timesteps needs a plan with eta=0 and order=1, without clipping")
    if not numbers or min(numbers) < 1 or max(numbers) > len(plan):
        raise ConfigError(f"the numbers of timesteps must be from 1 to the plan's {len(plan)}, not {sorted(numbers)}")
    goals = [noise]
    for step in sample(denoiser, noise, plan, return_x0=False):
        goals.append(step.sample)
        notice(1)
    way = _Way(denoiser, plan, goals, order, notice)
    return {
        number: tuple(plan.timesteps[place] for place in way.improved(places))
        for number, places in way.search(numbers).items()
    }


def evaluations(numbers: Collection[int], fine: int) -> int:
    """How many evaluations a search for each of `numbers` of `fine` timesteps makes at most."""
    passes = sum(fine - taken + 1 for taken in range(1, max(numbers) + 1))
    return fine + passes + sum(_tries(number) for number in numbers)


def _tries(number: int) -> int:
    """Evaluations to improve a list of so many, at most: of the list itself, and of what follows each move."""
    return number + SWEEPS * len(MOVES) * number * (number + 1) // 2


@dataclass(frozen=True)
class _Way:
    """The fine run, and steps from any of its places to any later one. Place M is the end."""

    denoiser: Denoiser
    plan: SamplingPlan
    goals: list[Tensor]  # the fine run's samples, at M + 1 places
    order: int
    notice: Callable[[int], object]

    def search(self, numbers: Collection[int]) -> dict[int, tuple[int, ...]]:
        """The dynamic programming: for each number, the places of the evaluations."""
        end = len(self.plan)
        runs = {place: _Run(self.goals[0], 0.0, ()) for place in range(end)}  # the best run that is at each place
        found = {}
        for taken in range(1, max(numbers) + 1):
            reached: dict[int, _Run] = {}
            for place in sorted(set(runs) - {end}):
                ahead = self._predict(runs[place], place)
                for there in range(place + 1, end + 1):
                    run = self._land(runs[place], ahead, place, there)
                    if there not in reached or run.error < reached[there].error:
                        reached[there] = run
            runs = reached
            if taken in numbers:
                found[taken] = runs[end].places
        return found

    def improved(self, places: tuple[int, ...]) -> tuple[int, ...]:
        """Places of which no move of one brings the end nearer, or those after some sweeps."""
        spent, limit = len(places), _tries(len(places))
        runs = self._follow(_Run(self.goals[0], 0.0, ()), places)
        for _ in range(SWEEPS):
            before = places
            for index in range(len(places)):
                low = places[index - 1] + 1 if index else 0
                high = places[index + 1] if index + 1 < len(places) else len(self.plan)
                for there in sorted({places[index] + move for move in MOVES} & set(range(low, high))):
                    moved = (there, *places[index + 1 :])
                    tail = self._follow(runs[index], moved)
                    spent += len(moved)
                    if tail[-1].error < runs[-1].error:
                        runs = runs[:index] + tail
                places = runs[-1].places
            if places == before:
                break
        self.notice(limit - spent)
        return places

    def _follow(self, run: _Run, places: tuple[int, ...]) -> list[_Run]:
        """A run, and what becomes of it at each of these places and at the end."""
        runs = [run]
        for place, there in pairwise((*places, len(self.plan))):
            runs.append(self._land(runs[-1], self._predict(runs[-1], place), place, there))
        return runs

    def _predict(self, run: _Run, place: int) -> tuple[Tensor, Tensor]:
        """One evaluation where a run is: x0 and eps."""
        row = self.plan.rows[place]
        output = self.denoiser(run.x, torch.tensor(row.timestep))[:, : run.x.shape[1]]
        self.notice(1)
        return row.p * run.x + row.q * output, row.r * run.x + row.s * output

    def _land(self, run: _Run, ahead: tuple[Tensor, Tensor], place: int, there: int) -> _Run:
        """The step from a place to a later one."""
        x0, eps = ahead
        level = self._level(there)
        x = ddim_step(x0, eps, level)
        if self.order == 2 and run.x0 is not None:
            last = self._level(run.places[-1])
            x = x + second_order(last, self._level(place), level) * (x0 - run.x0)
        error = float((x - self.goals[there]).square().mean())
        return _Run(x, error, (*run.places, place), x0 if self.order == 2 else None)

    def _level(self, place: int) -> float:
        """ᾱ at a place."""
        rows = self.plan.rows
        return float(rows[place].alpha_bar if place < len(rows) else rows[-1].alpha_bar_prev)
