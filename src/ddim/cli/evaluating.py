"""`ddim evaluate --workers`: batches drawn by several processes, by Ray Data.

Each batch is drawn as one process would draw it, with the same pictures together, and written into the folder by the
one that drew it. Nothing but its number goes through this process, which then puts all batches together in their order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from ddim.cli.evaluate import EvaluateSettings, open_grid, open_parts
from ddim.errors import DDIMError, require
from ddim.evaluation.state import Cell

__all__ = ["draw_by_workers", "say_threads"]


class _Drawer:
    """What draws in one process."""

    def __init__(
        self, settings: EvaluateSettings, parts: Sequence[tuple[Cell | None, int]], threads: int, folder: str
    ) -> None:
        import torch

        os.chdir(folder)  # where the command was given, by which its places are meant
        torch.set_num_threads(threads)
        self.grid, _ = open_grid(settings, open_parts(settings))
        self.parts = parts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number in batch["id"]:
            self.grid.do_part(*self.parts[int(number)])
        return batch


def say_threads(threads: int) -> None:
    """Say on stderr that one process would have other threads than each worker, by which last digits may differ.

    In which order numbers are added up depends on how many threads they are shared out among.
    """
    import torch

    from ddim.data.progress import say

    own = torch.get_num_threads()
    if own != threads:
        say(
            f"each worker has {threads} thread{'s' * (threads != 1)}, and one process here has {own}: the last digits "
            f"of figures may differ from that one's, unless it has OMP_NUM_THREADS={threads}"
        )


def draw_by_workers(settings: EvaluateSettings, parts: Sequence[tuple[Cell | None, int]]) -> None:
    """Have several processes do what is missing.

    Args:
        settings: of the evaluation, with `workers`; None has as many as the cluster has GPUs, or else nodes.
        parts: of `Grid.open_parts`.

    Raises:
        ConfigError: the cluster cannot be joined, or a node has other versions installed.
        DDIMError: a worker failed; what is done stays done.
    """
    from ddim.data.progress import progress
    from ddim.serving.cluster import check_nodes, joined, threads_each, threads_told

    if not parts:
        return
    own = len(os.sched_getaffinity(0))
    with joined(settings.ray_address, max(settings.workers or 1, own)) as ray:
        check_nodes(ray)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cards = 0 if settings.device == "cpu" else int(sum(each.get("GPU", 0) for each in nodes))
        count = min(settings.workers or cards or len(nodes), len(parts))
        cores = [own] if settings.ray_address is None else [int(each.get("CPU", 0)) for each in nodes]
        threads = threads_told(threads_each(count, cores))
        say_threads(threads)
        data: Any = require("ray.data", "scale")
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # Numbers that are there need no task that reads them, which would wait for a core when workers have them all.
        numbers = data.from_items([{"id": number} for number in range(len(parts))], override_num_blocks=len(parts))
        done = numbers.map_batches(
            _Drawer,
            fn_constructor_args=(settings, list(parts), threads, os.getcwd()),
            batch_size=1,
            concurrency=count,
            num_cpus=threads,
            num_gpus=min(1, cards / count) if cards else None,
        )
        with progress(total=len(parts), desc=f"{count} workers", unit="batch") as bar:
            try:
                for _ in done.iter_rows():
                    bar.update()
            except Exception as error:
                cause = error
                while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
                    cause = cause.__cause__
                raise DDIMError(f"a worker failed: {str(cause).strip().splitlines()[-1]}") from error
