"""The table of distances over steps and etas: its cells are drawn, measured and kept, so that a run can go on."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim.data import Source
from ddim.data.progress import duration, progress
from ddim.errors import ConfigError
from ddim.evaluation.drawing import Conditions, Loop, draw_numbered, load_pictures, make_plan, run_plan
from ddim.evaluation.features import FeatureExtractor
from ddim.evaluation.kernel import kernel_distance
from ddim.evaluation.manifold import precision_recall
from ddim.evaluation.state import Batch, Cell, Folder, joined
from ddim.evaluation.statistics import FeatureStatistics, bootstrap_error, frechet_distance, ideal_distance
from ddim.plan import SamplingPlan
from ddim.sampling import Pipeline

_PICTURES = 256  # of the data, whose features are computed at a time
RESAMPLES = 50  # how many the bootstrap behind `frechet_error` makes


class Grid:
    """A run over the cells of a table, each of which is an eta, a number of steps and a seed.

    Args:
        pipe: what draws; a pipeline of any kind.
        source: the data to compare with.
        extractor: gives the features of pictures, which are what is compared.
        folder: where all that was drawn and measured is kept.
        conditions: what each picture is drawn under.
        samples: how many samples to draw for each cell.
        batch: how many samples to draw at a time.
        clip_sample: whether to clip the predicted x0; see `EvaluateSettings`.
        loop: what leads from noise to samples; another sampler than this package's, to compare with.

    Raises:
        ConfigError: the extractor is not for the pictures that the model draws.
    """

    def __init__(
        self,
        pipe: Pipeline,
        source: Source,
        extractor: FeatureExtractor,
        folder: Folder,
        conditions: Conditions,
        *,
        samples: int,
        batch: int,
        clip_sample: str = "model",
        loop: Loop = run_plan,
    ) -> None:
        self.pipe = pipe
        self.source = source
        self.extractor = extractor
        self.folder = folder
        self.conditions = conditions
        self.samples = samples
        self.parts = [range(first, min(first + batch, samples)) for first in range(0, samples, batch)]
        self.clip_sample = clip_sample
        self.loop = loop
        shape = pipe.picture_shape()
        if extractor.shape is not None and extractor.shape != shape:
            raise ConfigError(
                f"{extractor.name} features are for pictures {extractor.shape} (c h w), the model draws {shape}"
            )
        self.shape = shape
        self._is_warm = False

    def plan(self, cell: Cell) -> SamplingPlan:
        """The table of a cell's run."""
        return make_plan(self.pipe.scheduler, cell.steps, cell.eta, self.clip_sample)

    def reference(self) -> Tensor:
        """The features of the data, (m, d), computed once and kept in the folder."""
        found = self.folder.load_reference()
        if found is None:
            parts = []
            with progress(total=self.source.count, desc="data", unit="picture", delay=1) as bar:
                for number in range(self._reference_parts):
                    part = self.folder.load_reference_part(number)
                    parts.append(self._reference_part(number) if part is None else part)
                    bar.update(len(parts[-1]))
            found = torch.cat(parts)
            self.folder.save_reference(found)
        return found

    @property
    def _reference_parts(self) -> int:
        return -(-self.source.count // _PICTURES)

    def _reference_part(self, number: int) -> Tensor:
        numbers = range(number * _PICTURES, min((number + 1) * _PICTURES, self.source.count))
        return self.extractor(load_pictures(self.source, self.shape, numbers).to(self.pipe.device)).cpu()

    def open_parts(self, cells: Sequence[Cell]) -> list[tuple[Cell | None, int]]:
        """What is missing in the folder, as (cell, number of a batch); cell None is for a part of the data's features.

        Each can be done by another process, by `do_part`; `run` puts them together as if one had done all. Batches of
        few steps come first.
        """
        missing: list[tuple[Cell | None, int]] = []
        if self.folder.load_reference() is None:
            missing += [
                (None, number)
                for number in range(self._reference_parts)
                if self.folder.load_reference_part(number) is None
            ]
        plans = {cell: self.plan(cell) for cell in cells}
        for cell in sorted(cells, key=lambda c: len(plans[c])):
            if self.folder.figures(cell) is None:
                missing += [(cell, n) for n in range(len(self.parts)) if not self.folder.has_batch(cell, n)]
        return missing

    def do_part(self, cell: Cell | None, number: int) -> None:
        """Do one of `open_parts`, and keep it in the folder."""
        if cell is None:
            self.folder.save_reference_part(number, self._reference_part(number))
            return
        self._warm_up(cell.seed)
        self.folder.save_batch(cell, number, self._draw(self.plan(cell), cell.seed, self.parts[number]))

    def ideal(self) -> float:
        """The Fréchet distance that a perfect model would have; see `ideal_distance`."""
        by_class = "class_labels" in self.conditions(0, range(1))
        return ideal_distance(self.reference(), self.samples, self.source.labels if by_class else None)

    def run(self, cells: list[Cell]) -> Iterator[Mapping[str, Any]]:
        """Draw and measure the cells that are not finished, those of few steps first; yields the figures of each."""
        plans = {cell: self.plan(cell) for cell in cells}  # so all settings are checked before anything is drawn
        reference = self.reference()
        statistics = FeatureStatistics.of(reference)
        open_cells = [cell for cell in sorted(cells, key=lambda c: len(plans[c])) if self.folder.figures(cell) is None]
        wholes = {cell: self.folder.load_whole(cell) for cell in open_cells}
        drawn = {cell: self.folder.load_batches(cell) for cell in open_cells if wholes[cell] is None}
        done = sum(len(plans[cell]) * self.samples for cell in open_cells if wholes[cell] is not None)
        done += sum(len(plans[cell]) * len(b.features) for cell, found in drawn.items() for b in found.values())
        total = sum(len(plans[cell]) * self.samples for cell in open_cells)
        estimate = _Estimate(plans, self.samples)
        if done < total:
            self._warm_up(open_cells[0].seed)
        with progress(
            total=total, initial=done, unit="call", unit_scale=True, disable=not open_cells, smoothing=0.1
        ) as bar:
            for cell in open_cells:
                bar.set_description(f"η={cell.eta} S={cell.steps} seed {cell.seed}")
                whole = wholes[cell]
                if whole is None:
                    batches = drawn.pop(cell)
                    for number in sorted(set(range(len(self.parts))) - set(batches)):
                        batches[number] = self._draw(plans[cell], cell.seed, self.parts[number], bar.update)
                        self.folder.save_batch(cell, number, batches[number])
                        estimate.tell(cell, batches[number], open_cells, bar)
                    whole = joined([batches[number] for number in range(len(self.parts))])
                figures = {
                    "eta": cell.eta,
                    "steps": cell.steps,
                    "seed": cell.seed,
                    "timesteps": len(plans[cell]),
                    **self._measure(whole, reference, statistics, cell.seed),
                }
                self.folder.finish(cell, whole, figures)
                yield figures

    def _pictures(
        self, plan: SamplingPlan, seed: int, numbers: range, progress: Callable[[int], object] = lambda count: None
    ) -> Tensor:
        return draw_numbered(self.pipe, plan, seed, numbers, self.conditions, loop=self.loop, progress=progress)

    def _warm_up(self, seed: int) -> None:
        """Draw something once: the first call is slower than all others, so its time is not counted."""
        if not self._is_warm:
            self._is_warm = True
            self._pictures(make_plan(self.pipe.scheduler, 1, 0.0, self.clip_sample), seed, self.parts[0])

    def _draw(
        self, plan: SamplingPlan, seed: int, numbers: range, progress: Callable[[int], object] = lambda count: None
    ) -> Batch:
        with _stopwatch(self.pipe.device) as spent:
            pictures = self._pictures(plan, seed, numbers, progress)
        return Batch(self.extractor(pictures).cpu(), *spent)

    def _measure(self, batch: Batch, reference: Tensor, statistics: FeatureStatistics, seed: int) -> dict[str, Any]:
        features = batch.features
        classes = self.conditions(seed, range(len(features))).get("class_labels")
        kernel = kernel_distance(features, reference)
        manifold = precision_recall(features, reference)
        return {
            "samples": len(features),
            "frechet": frechet_distance(FeatureStatistics.of(features), statistics),
            "frechet_error": bootstrap_error(features, statistics, classes, RESAMPLES),
            "kernel": kernel.mean,
            "kernel_error": kernel.error,
            "precision": manifold.precision,
            "recall": manifold.recall,
            "seconds": batch.seconds,
            "cpu_seconds": batch.cpu_seconds,
        }


class _Estimate:
    """Says once, after the first batch, how long each number of steps will take."""

    def __init__(self, plans: Mapping[Cell, SamplingPlan], samples: int) -> None:
        self.plans = plans
        self.samples = samples
        self.told = False

    def tell(self, cell: Cell, batch: Batch, cells: list[Cell], bar: Any) -> None:
        if self.told:
            return
        self.told = True
        each = batch.seconds / len(batch.features) / len(self.plans[cell])
        times = {c.steps: each * len(self.plans[c]) * self.samples for c in cells}
        listed = ", ".join(f"S={steps} {duration(seconds)}" for steps, seconds in times.items())
        total = sum(each * len(self.plans[c]) * self.samples for c in cells)
        bar.write(f"each cell will take about: {listed}; all {len(cells)}: {duration(total)}", file=sys.stderr)


@contextlib.contextmanager
def _stopwatch(device: torch.device) -> Iterator[list[float]]:
    """Yields a list that afterwards holds the seconds of the clock and of the processors."""
    spent: list[float] = []
    started = time.perf_counter(), time.process_time()
    yield spent
    if device.type != "cpu":
        torch.accelerator.synchronize()
    spent += [time.perf_counter() - started[0], time.process_time() - started[1]]


def summarize(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each (eta, steps): means over the seeds, and the standard deviation where there are several.

    `frechet_error` is the standard deviation over the seeds then, and else the bootstrap's; `error_is` says which.
    """
    groups: dict[tuple[Any, int], list[dict[str, Any]]] = {}
    for each in figures:
        groups.setdefault((each["eta"], each["steps"]), []).append(each)
    rows = []
    for (eta, steps), cells in groups.items():
        several = len(cells) > 1
        row: dict[str, Any] = {"eta": eta, "steps": steps, "timesteps": cells[0]["timesteps"], "seeds": len(cells)}
        row["samples"] = sum(cell["samples"] for cell in cells)
        for name in ("frechet", "kernel", "precision", "recall", "seconds", "cpu_seconds"):
            row[name] = float(np.mean([cell[name] for cell in cells]))
        for name in ("frechet", "kernel"):
            spread = np.std([cell[name] for cell in cells], ddof=1) if several else cells[0][f"{name}_error"]
            row[f"{name}_error"] = float(spread)
        row["error_is"] = "standard deviation over seeds" if several else "bootstrap over samples"
        rows.append(row)
    return rows
