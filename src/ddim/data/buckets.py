"""Aspect-ratio buckets: a few sizes of about one area, so that pictures of any shape are learnt from in their shapes.

The pictures of a batch have one size. So each picture goes into a bucket, whose size has nearly its proportions, and a
batch is of one bucket. An epoch shows each picture once: where the pictures of a bucket do not fill its last batch, this
batch is short, and counts for less, so that all pictures count the same.

The batches are a function of (seed, number of the batch) and of nothing that came before, as the stream is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from ddim.data.preparation import Size
from ddim.data.progress import progress
from ddim.data.source import Source
from ddim.data.stream import Draw, shuffled
from ddim.errors import ConfigError

Array = np.ndarray[Any, Any]

LARGEST_STEP = 64  # pixels between the sides of two buckets, unless told; for models of small pictures it is less


def usual_step(resolution: int, factor: int) -> int:
    """What the sides of buckets are multiples of, in pixels, unless told: 64, or for small pictures about an eighth.

    Args:
        resolution: of a square picture.
        factor: what the model needs the sides to be multiples of; the step is a multiple of it.

    >>> usual_step(512, 64), usual_step(1024, 32), usual_step(64, 16)
    (64, 64, 16)
    """
    return factor * max(1, math.ceil(min(LARGEST_STEP, resolution / 8) / factor))


def bucket_sizes(resolution: int, step: int, least: int, most: int) -> list[Size]:
    """All (width, height) of buckets: for each width the largest height, and for each height the largest width.

    Args:
        resolution: no bucket has a larger area than a square of so many pixels.
        step: sides are multiples of it.
        least, most: the smallest and the largest side.

    Returns:
        The sizes, the largest area first.

    Raises:
        ConfigError: there are none.

    >>> bucket_sizes(512, 128, 384, 640)
    [(512, 512), (384, 640), (640, 384)]
    """
    sides = range(math.ceil(least / step) * step, most + 1, step)
    found = set()
    for side in sides:
        other = min(resolution**2 // side, most) // step * step
        if other in sides:
            found |= {(side, other), (other, side)}
    if not found:
        raise ConfigError(
            f"no bucket has sides from min_bucket_reso={least} to max_bucket_reso={most} that are multiples of {step} "
            f"and at most the area of resolution={resolution}: give a smaller min_bucket_reso or bucket_reso_steps"
        )
    return sorted(found, key=lambda size: (-size[0] * size[1], abs(math.log(size[0] / size[1])), size))


def own_size(size: Size, resolution: int, step: int, most: int) -> Size:
    """The bucket of a picture that is not to be enlarged: its own size, or if it is too large one of its proportions.

    Both sides are rounded down to multiples of `step`, and a side that is less becomes one step, which is the only case
    in which a picture is enlarged.

    >>> own_size((300, 200), 512, 64, 1024), own_size((3000, 2000), 512, 64, 1024), own_size((9000, 30), 512, 64, 1024)
    ((256, 192), (576, 384), (1024, 64))
    """
    scale = min(1.0, resolution / math.sqrt(size[0] * size[1]))
    # A share of a pixel more, so that a side that is a multiple but for rounding stays it.
    width, height = (min(max(int(side * scale + 1e-6) // step, 1) * step, most // step * step) for side in size)
    longest = resolution**2 // min(width, height) // step * step  # binding only where the shorter side was enlarged
    return min(width, max(longest, step)), min(height, max(longest, step))


def nearest(size: Size, sizes: Sequence[Size]) -> int:
    """Which of several sizes has the proportions that are nearest to a picture's; of equal ones the first.

    How far two proportions are from each other is the ratio of the larger to the smaller one, so that wide and tall
    pictures are treated alike.
    """
    ratios = [abs(math.log(width * size[1] / (height * size[0]))) for width, height in sizes]
    return ratios.index(min(ratios))


@dataclass(frozen=True)
class Rules:
    """How pictures are put into buckets.

    Attributes:
        resolution: no bucket that is made has a larger area than a square of so many pixels.
        step: what sides are multiples of.
        least, most: the smallest and the largest side.
        given: the buckets' sizes, if they are not to be made.
        no_upscale: make a bucket of each picture's own size instead, where it would be enlarged.
    """

    resolution: int
    step: int
    least: int
    most: int
    given: tuple[Size, ...] = ()
    no_upscale: bool = False

    def buckets(self, source: Source) -> Buckets:
        """Find the bucket of each picture of a source. Its size is read, but it is not decoded.

        Raises:
            ConfigError: there are no such buckets.
            DataError: a picture's file is damaged.
        """
        sizes = list(self.given) or bucket_sizes(self.resolution, self.step, self.least, self.most)
        pictures = range(source.count)
        owns = [source.size(index) for index in progress(pictures, desc="reading sizes", unit="image", leave=False)]
        chosen = [self._choose(own, sizes) for own in owns]
        used = sorted(set(chosen), key=lambda size: (size[0] / size[1], size))
        numbers = {size: number for number, size in enumerate(used)}
        return Buckets(tuple(used), np.array([numbers[size] for size in chosen]), tuple(owns))

    def _choose(self, own: Size, sizes: Sequence[Size]) -> Size:
        size = sizes[nearest(own, sizes)]
        if self.no_upscale and (size[0] > own[0] or size[1] > own[1]):
            return own_size(own, self.resolution, self.step, self.most)
        return size


class Batch(NamedTuple):
    """The pictures of a batch, of all processes together."""

    first: int  # the position of its first picture in the stream
    indices: Array  # of the pictures, one position after the other


@dataclass(frozen=True, eq=False)
class Buckets:
    """Which picture is in which bucket.

    Attributes:
        sizes: (width, height) of each bucket that has pictures, from tall to wide.
        of: each picture's bucket, (count,).
        owns: each picture's own (width, height).
    """

    sizes: tuple[Size, ...]
    of: Array
    owns: tuple[Size, ...]

    def size(self, index: int) -> Size:
        """(width, height) of a picture in training."""
        return self.sizes[self.of[index]]

    def members(self) -> list[Array]:
        """The pictures of each bucket."""
        return [np.flatnonzero(self.of == number) for number in range(len(self.sizes))]

    def per_epoch(self, batch: int) -> int:
        """How many batches of at most so many pictures show each picture once."""
        return sum(math.ceil(len(members) / batch) for members in self.members())

    def cropped(self) -> tuple[float, float]:
        """The share of a picture that is cropped to the proportions of its bucket: (on average, at most)."""
        ratios = np.array([own[0] / own[1] for own in self.owns]) / np.array([w / h for w, h in self.sizes])[self.of]
        lost = 1 - np.minimum(ratios, 1 / ratios)
        return float(lost.mean()), float(lost.max())

    def enlarged(self) -> int:
        """How many pictures are enlarged."""
        pairs = ((own, self.size(index)) for index, own in enumerate(self.owns))
        return sum(size[0] > own[0] or size[1] > own[1] for own, size in pairs)


class BucketBatches(Sampler[list[Draw]]):
    """The batches that one process of several reads: each of one bucket, which is the same for all processes.

    In an epoch the pictures are shuffled, those of each bucket are cut into batches, of which the last may be short, and
    the batches are shuffled. A batch is dealt to the processes in turn. Where a short one does not give each of them as
    many, some pictures are there twice, the second time with the weight 0. The mean over a process's pictures of weight
    times loss is the sum of their losses divided by the pictures of a whole batch.

    Args:
        buckets: which picture is in which bucket.
        seed: decides the order.
        size: how many pictures a process takes for a batch, if it is not short.
        numbers: of the batches, counted from the start of the run.
        process, processes: the number of this process, and of all.
    """

    def __init__(
        self, buckets: Buckets, seed: int, size: int, numbers: range, process: int = 0, processes: int = 1
    ) -> None:
        self.buckets, self.seed, self.size, self.numbers = buckets, seed, size, numbers
        self.process, self.processes = process, processes
        self._epoch = functools.lru_cache(maxsize=2)(self.epoch)

    def epoch(self, epoch: int) -> list[Batch]:
        """All batches of an epoch, of all processes together."""
        count, whole = len(self.buckets.of), self.size * self.processes
        order = shuffled(count, self.seed, 0, epoch)
        bucket = self.buckets.of[order]
        lots = [
            members[first : first + whole]
            for members in (order[bucket == number] for number in range(len(self.buckets.sizes)))
            for first in range(0, len(members), whole)
        ]
        lots = [lots[number] for number in shuffled(len(lots), self.seed, 3, epoch)]
        firsts = np.cumsum([epoch * count, *map(len, lots)])
        return [Batch(int(first), lot) for first, lot in zip(firsts, lots, strict=False)]

    def __iter__(self) -> Iterator[list[Draw]]:
        per_epoch = self.buckets.per_epoch(self.size * self.processes)
        for number in self.numbers:
            epoch, which = divmod(number, per_epoch)
            yield self.share(self._epoch(epoch)[which])

    def share(self, batch: Batch) -> list[Draw]:
        """What this process reads of a batch."""
        each = math.ceil(len(batch.indices) / self.processes)
        draws = []
        for place in range(self.process, each * self.processes, self.processes):
            offset = place % len(batch.indices)
            weight = each / self.size if place == offset else 0.0
            draws.append(Draw(batch.first + offset, int(batch.indices[offset]), weight))
        return draws

    def __len__(self) -> int:
        return len(self.numbers)
