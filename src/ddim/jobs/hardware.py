"""How a worker computes: with how many threads and rows in flight, and to the same bits as the other workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ddim.evaluation.state import digest
from ddim.jobs.job import Job
from ddim.pipelines import DiffusionPipeline
from ddim.serving import Engine
from ddim.serving.engine import usual_batch
from ddim.serving.probe import probe

__all__ = ["Hardware"]


@dataclass(frozen=True)
class Hardware:
    """How each worker of a job computes.

    Attributes:
        batch_size: rows in flight; None for what suits the device.
        threads: of the processor; None for as many as PyTorch has.
        any_hardware: whether other bits will do than those that the job was begun with.
    """

    batch_size: int | None = None
    threads: int | None = None
    any_hardware: bool = False

    @contextmanager
    def engine(self, job: Job, pipe: DiffusionPipeline) -> Iterator[Engine]:
        """An engine for a job's rows, which is closed after the context.

        Raises:
            ConfigError: it would compute other pictures than the job was begun with.
        """
        before = torch.get_num_threads()
        try:
            pipe.set_progress_bar_config(disable=True)
            found = probe(pipe, self.threads or before)
            about = {"weights": digest(pipe), "slots": found.slots, "bits": found.digest}
            job.agree(about, any_hardware=self.any_hardware)
            torch.set_num_threads(found.threads)
            most = self.batch_size or usual_batch(pipe)
            with Engine(pipe, max_batch=most, max_queue=8 * most, slots=found.slots, decoded=found.decoded) as engine:
                yield engine
        finally:
            torch.set_num_threads(before)
