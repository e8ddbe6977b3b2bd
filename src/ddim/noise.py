"""Noise and where it comes from: generators, and seeds, which give each image a stream of random numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["Generators", "check_generator", "gaussian_noise", "generators", "seeded_generators"]

# One generator for the whole batch, a list with one for each sample, or None for torch's global generator.
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


def gaussian_noise(shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers, drawn on the generator's own device and then moved to `device`.

    Args:
        shape: (batch, …).
        generator: one for the whole batch; a list with one for each sample; or None for torch's global generator.
        device: where the result is; with None as generator, also where it is drawn.
        dtype: the type of the result, in which it is drawn.

    Raises:
        TypeError, ValueError: see `check_generator`.
    """
    if generator is None:
        return torch.randn(tuple(shape), device=device, dtype=dtype)
    check_generator(generator, shape[0])
    if isinstance(generator, torch.Generator):
        return _moved(torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=dtype), device)
    rows = [torch.randn((1, *shape[1:]), generator=g, device=g.device, dtype=dtype) for g in generator]
    if all(row.device == rows[0].device for row in rows):
        return _moved(torch.cat(rows), device)  # one copy instead of one for each sample
    return torch.cat([_moved(row, device) for row in rows])


def _moved(drawn: Tensor, device: torch.device) -> Tensor:
    """New numbers on a device.

    From the host to CUDA they are copied without waiting for what the device still has to do, else a run with noise at
    each step would wait at each. That is safe, as CUDA has read memory that is not pinned before the call returns.
    """
    return drawn.to(device, non_blocking=drawn.device.type == "cpu" and torch.device(device).type == "cuda")


def check_generator(generator: Generators, count: int) -> None:
    """Check that a generator, or a list of them, can draw the noise of `count` samples.

    Raises:
        TypeError: it is neither a generator, nor a list of them, nor None.
        ValueError: the list is not as long as there are samples.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
        raise TypeError(f"generator must be a torch.Generator or a list of them, not {generator!r:.100}; or use seed=")
    if len(generator) != count:
        raise ValueError(f"{len(generator)} generators were given for a batch of {count}: give one for each sample")


def generators(generator: Generators, seed: int | Sequence[int] | None, count: int) -> Generators:
    """The generators that draw the noise of `count` images, from what a caller gave: generators, a seed or nothing.

    Args:
        generator: generators, which are returned as they are.
        seed: a seed or a list of them, see `seeded_generators`.
        count: the number of images.

    Raises:
        ValueError: both are given, or a list is not as long as there are images, or a seed is no int of 0 or more.
        TypeError: the generator is no generator, or the seed no seed.
    """
    if seed is None:
        check_generator(generator, count)
        return generator
    if generator is not None:
        raise ValueError("give a generator or a seed, not both")
    return seeded_generators(seed, count)


def seeded_generators(seed: int | Sequence[int], count: int, first: int = 0) -> list[torch.Generator]:
    """One generator for each image, all on the CPU: each image of a seed has a stream of random numbers of its own.

    The streams do not depend on how many images are drawn at once, on the device or on the number of threads.

    Args:
        seed: an int of 0 or more, whose images from number `first` on are meant; or a list of `count` such ints, of
            each of which image number 0 is meant.
        count: the number of images.
        first: the number of the first image of a single seed.

    Raises:
        ValueError: a seed is no int of 0 or more, or the list has not `count` seeds.
        TypeError: the seed is neither an int nor a list.

    >>> one, four = seeded_generators(7, 1), seeded_generators(7, 4)
    >>> bool((torch.randn(3, generator=one[0]) == torch.randn(3, generator=four[0])).all())
    True
    """
    if isinstance(seed, (int, np.integer)):
        keys = [(seed, k) for k in range(first, first + count)]
    elif not isinstance(seed, Sequence):
        raise TypeError(f"a seed must be an int or a list of them, not {seed!r}")
    else:
        keys = [(s, 0) for s in seed]
        if len(keys) != count:
            raise ValueError(f"{len(keys)} seeds were given for {count} images: give one seed, or one for each image")
    if any(isinstance(s, bool) or not isinstance(s, (int, np.integer)) or s < 0 for s, _ in keys):
        raise ValueError(f"a seed must be an int of 0 or more, not {seed!r}")
    states = [np.random.SeedSequence(int(s), spawn_key=(k,)).generate_state(1, np.uint64)[0] for s, k in keys]
    return [torch.Generator().manual_seed(int(state)) for state in states]
