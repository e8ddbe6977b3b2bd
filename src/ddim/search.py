"""Timesteps found by search: those N of a fine run's M timesteps with which a run ends nearest to where that one ends.

This is dynamic programming over a reference trajectory (Pei et al. 2025, "Optimal Stepsize for Diffusion Sampling").
The fine run gives a sample at each of its timesteps. For i = 1…N and each timestep j of the fine run, the search keeps,
of all runs that reach j in i steps, the one that is nearest to the fine run's sample at j. Such a run is one that
reached an earlier k in i-1 steps, and one step more. That step is the sampler's own and begins at the run's own sample,
not at the fine run's, so that errors add up as they will when the timesteps are used. One pass for N finds the
timesteps for every smaller number too.

A run that is nearest at some timestep need not be the best beginning for what follows. So each list is then improved by
where its run ends: one timestep after the other is moved, as long as that brings the end nearer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.plan import SamplingPlan
from ddim.process import Order, ddim_step, second_order
from ddim.sampling import Denoiser, sample

__all__ = ["evaluations", "find_timesteps"]

SWEEPS = 3  # how often, at most, the timesteps of a list are gone through to improve it
MOVES = (-4, -2, -1, 1, 2, 4)  # by how many of the fine run's timesteps one is moved to see whether that is better


@dataclass(frozen=True)
class _Run:
    """A run with few steps, up to one place of the fine run. Place j is before the fine run's step number j."""

    x: Tensor  # its sample, (b …)
    error: float  # the mean square distance of x from the fine run's sample there
    places: tuple[int, ...]  # the places of the fine run at which the network was evaluated
    x0: Tensor | None = None  # the x0 that was predicted last, for steps of second order


def find_timesteps(
    denoiser: Denoiser,
    noise: Tensor,
    plan: SamplingPlan,
    numbers: Collection[int],
    *,
    order: Order = 1,
    notice: Callable[[int], object] = lambda count: None,
) -> dict[int, tuple[int, ...]]:
    """For each N of `numbers`, the N timesteps of `plan` with which a run ends nearest to where the plan's run ends.

    The search takes about M·(max N) evaluations of the network, and some 9·N² more for each N; `evaluations` says how
    many they are at most.

    Args:
        denoiser: the network as it will be used, with its guidance.
        noise: x_T of some samples, (b …). The more there are, the less the timesteps depend on these samples.
        plan: the fine run, with eta=0, without clipping and of first order. Its M timesteps are the candidates. A list
            may begin below the first of them; the noise is then taken for a sample of the list's first timestep, as it
            is with "leading" timesteps.
        numbers: the Ns, each from 1 to M.
        order: the order of the runs that timesteps are searched for, 1 or 2; see `DDIMScheduler.plan`.
        notice: called, to show progress, with the number of evaluations that were made or turned out not to be needed.

    Returns:
        {N: its timesteps, the largest first}.

    Raises:
        ConfigError: the plan is of another kind, or a number is out of range.
        NonFiniteError: the network gave NaN or infinity in the fine run.
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
    """How many times a search evaluates the network at most.

    Args:
        numbers: the Ns that timesteps are searched for.
        fine: M, the number of steps of the fine run.
    """
    passes = sum(fine - taken + 1 for taken in range(1, max(numbers) + 1))
    return fine + passes + sum(_tries(number) for number in numbers)


def _tries(number: int) -> int:
    """How many evaluations it takes at most to improve a list of so many timesteps.

    They are those of the list itself and, for each move of a timestep, those from that timestep to the end.
    """
    return number + SWEEPS * len(MOVES) * number * (number + 1) // 2


@dataclass(frozen=True)
class _Way:
    """The fine run, and steps from any of its places to any later one. There are M + 1 places, the last is the end."""

    denoiser: Denoiser
    plan: SamplingPlan
    goals: list[Tensor]  # the fine run's sample (b …) at each place
    order: Order
    notice: Callable[[int], object]

    def search(self, numbers: Collection[int]) -> dict[int, tuple[int, ...]]:
        """The dynamic programming: {N: the places at which the best run of N steps evaluates the network}."""
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
        """Places that lead to a nearer end: such that no move of a single one is better, or those after `SWEEPS`."""
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
        """A run that is at the first of these places, and then what it becomes at each further one and at the end."""
        runs = [run]
        for place, there in pairwise((*places, len(self.plan))):
            runs.append(self._land(runs[-1], self._predict(runs[-1], place), place, there))
        return runs

    def _predict(self, run: _Run, place: int) -> tuple[Tensor, Tensor]:
        """The x0 and eps (b …) that the network predicts for a run's sample, which is at a place."""
        row = self.plan.rows[place]
        output = self.denoiser(run.x, torch.tensor(row.timestep))[:, : run.x.shape[1]]
        self.notice(1)
        return row.p * run.x + row.q * output, row.r * run.x + row.s * output

    def _land(self, run: _Run, ahead: tuple[Tensor, Tensor], place: int, there: int) -> _Run:
        """What a run becomes by a step from its place to a later one, `there`; `ahead` is what `_predict` gave."""
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
