"""A job on Ray: Ray Data hands pieces of rows to actors that hold the pipeline, and starts those anew that die.

What goes through the driver are numbers of rows and counts; rows and pictures are in the job's folder, which all
workers share. A piece that a dead worker had in hand is handed out again, and of it what is not done is drawn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ddim.data.progress import progress, say
from ddim.errors import ConfigError, DataError, DDIMError, require
from ddim.jobs.hardware import Hardware
from ddim.jobs.job import Job
from ddim.jobs.local import Stop
from ddim.jobs.worker import Worker, pieces_of
from ddim.pipelines import DiffusionPipeline
from ddim.serving.cluster import check_nodes, joined, threads_each, threads_told

__all__ = ["Crew", "draw_on_ray"]

_PIECES = 16  # for each worker at least, where there are enough rows, that none waits long for the last one
_SIZES = (250, 125, 50, 25, 10)  # of pieces, all of which divide a thousand
_TOGETHER = 2  # pieces that a worker has in hand, that its engine never waits for the next one
_SHOWN = 8  # workers, of which progress says each
_DEATHS = 5  # of workers over the same piece, after which it is not handed out again
_LOOKS = 0.5  # seconds between two looks for the mark that says to stop


@dataclass(frozen=True)
class Crew:
    """Who draws.

    Attributes:
        workers: how many processes; None for as many as the cluster has GPUs, or else nodes.
        address: of a cluster; None for processes of this machine.
        device: that the user asked for.
    """

    workers: int | None = None
    address: str | None = None
    device: str | None = None


class Hands:
    """What Ray calls: an actor that draws pieces. It never raises, since Ray would try that again and again."""

    def __init__(self, job: Job, open_pipeline: Callable[[], DiffusionPipeline], hardware: Hardware) -> None:
        self._fault = ""
        self._open = contextlib.ExitStack()
        self._looked, self._is_stopped = 0.0, False
        self._mark, self._marks = job.stop_mark, job.out / ".job" / "begun"
        try:
            engine = self._open.enter_context(hardware.engine(job, open_pipeline()))
            self._worker = Worker(job, engine.pipe, engine, self._is_to_stop)
        except Exception as error:
            self._fault = _sentence(error)

    def __call__(self, piece: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Draw the rows from `start` to `stop`; tells how many, who did, and what fault ends all if there is one."""
        drawn = failed = 0
        rows = range(int(piece["start"][0]), int(piece["stop"][0]))
        if not self._fault:
            try:
                with self._begun(rows):
                    made = self._worker.draw([rows])
                drawn, failed = made.drawn, made.failed
            except Exception as error:
                self._fault = _sentence(error)
        where = f"{os.uname().nodename}, process {os.getpid()}"
        return {"worker": [where], "drawn": [drawn], "failed": [failed], "fault": [self._fault]}

    @contextlib.contextmanager
    def _begun(self, rows: range) -> Iterator[None]:
        """A context in which it is written down that a piece is being drawn, which stays where the process dies.

        Raises:
            DataError: it has stayed too often.
        """
        mark = self._marks / str(rows.start)
        mark.parent.mkdir(exist_ok=True)
        with mark.open("ab") as file:
            file.write(b".")
        if mark.stat().st_size > _DEATHS:
            raise DataError(
                f"{_DEATHS} workers have died while they drew the rows {rows.start} to {rows.stop - 1}, as for want of "
                "memory: give a smaller --batch-size, or find out which row it is by a table of these alone"
            )
        yield
        mark.unlink(missing_ok=True)

    def _is_to_stop(self) -> bool:
        now = time.monotonic()
        if now - self._looked > _LOOKS:
            self._looked, self._is_stopped = now, self._mark.exists()
        return self._is_stopped


def _sentence(error: Exception) -> str:
    if isinstance(error, DDIMError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed there: install ddim on each node with the extras that are used here"
    return f"{type(error).__name__}: {error}"


def draw_on_ray(
    job: Job, open_pipeline: Callable[[], DiffusionPipeline], hardware: Hardware, stop: Stop, crew: Crew
) -> None:
    """Draw what is left of a job, by workers of a Ray cluster.

    Args:
        open_pipeline: what draws; it is called by each worker.
        hardware: how each of them computes.

    Raises:
        ConfigError: there is no such cluster, or a node lacks what is needed.
        DataError: a worker met a fault that is not a row's own; says which.
        MissingExtraError: Ray is not installed.
    """
    job.stop_mark.unlink(missing_ok=True)
    shutil.rmtree(job.out / ".job" / "begun", ignore_errors=True)
    stop.then = job.stop_mark.touch
    with (
        _said_aside(job.out / ".job" / "ray.log"),
        _started(job, hardware, crew) as (workers, resources),
        stop.listening(),  # once more, as Ray has set handlers of its own
    ):
        _run(job, open_pipeline, replace(hardware, threads=int(resources["num_cpus"])), workers, resources)
    job.stop_mark.unlink(missing_ok=True)


def _run(job: Job, open_pipeline: Any, hardware: Hardware, workers: int, resources: Mapping[str, float]) -> None:
    data: Any = require("ray.data", "scale")
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = context.enable_auto_log_stats = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    left = job.left()
    wanted = left.rows // (workers * _PIECES)
    size = next((size for size in _SIZES if size <= wanted), _SIZES[-1])
    pieces = [{"start": piece.start, "stop": piece.stop} for piece in pieces_of(job, size)]
    results = data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        Hands,
        fn_constructor_args=(job, open_pipeline, hardware),
        batch_size=None,
        compute=data.ActorPoolStrategy(
            size=min(workers, len(pieces)), max_concurrent_calls_per_actor=_TOGETHER, enable_true_multi_threading=True
        ),
        **resources,
    )
    fault = ""
    by_worker: dict[str, int] = {}
    with progress(total=job.count, initial=job.count - left.rows, desc="drawing", unit="row", smoothing=0.05) as bar:
        for result in results.iter_rows():
            made = int(result["drawn"]) + int(result["failed"])
            by_worker[result["worker"]] = by_worker.get(result["worker"], 0) + made
            bar.set_postfix_str(_by_worker(by_worker, bar.format_dict["rate"]), refresh=False)
            bar.update(made)
            if result["fault"] and not fault:
                fault = f"{result['fault']} (said by the worker on {result['worker']})"
                job.stop_mark.touch()  # the others finish what they have in hand
    if fault:
        raise DataError(fault)
    if len(by_worker) > 1:
        say("rows by worker: " + ", ".join(f"{count:,} ({where})" for where, count in by_worker.items()))


def _by_worker(counts: Mapping[str, int], rate: float | None) -> str:
    """How far each worker is; of many, how many there are, and what the first and the last of them have done."""
    said = f"{rate:.3g} a second; " if rate else ""
    if len(counts) <= _SHOWN:
        return said + "by worker " + " + ".join(f"{count:,}" for count in counts.values())
    return said + f"by {len(counts)} workers {min(counts.values()):,} to {max(counts.values()):,}"


# --- starting --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _started(job: Job, hardware: Hardware, crew: Crew) -> Iterator[tuple[int, dict[str, float]]]:
    """A context with Ray: how many workers there are to be, and what each of them takes."""
    if crew.address is None:
        workers = crew.workers or 1
        threads = hardware.threads or threads_told(max(1, len(os.sched_getaffinity(0)) // workers))
        with joined(None, workers * threads) as ray, _watched():
            yield workers, _resources(ray, crew, workers, threads)
        return
    with joined(crew.address) as ray:
        check_nodes(ray)
        nodes = _checked_nodes(ray, _needed(job))
        cards = _count(ray, "GPU") if _wants_cards(crew) else 0
        workers = crew.workers or cards or len(nodes)
        cores = [int(node["Resources"].get("CPU", 1)) for node in nodes]
        yield workers, _resources(ray, crew, workers, hardware.threads or threads_each(workers, cores))


def _resources(ray: Any, crew: Crew, workers: int, threads: int) -> dict[str, float]:
    """What Ray keeps for each worker.

    Raises:
        ConfigError: there is not as much.
    """
    resources: dict[str, float] = {"num_cpus": threads}
    cards, processors = _count(ray, "GPU"), _count(ray, "CPU")
    if cards and _wants_cards(crew):
        if workers > cards:
            raise ConfigError(f"--workers {workers} need a GPU each, and there are {cards}: give {cards}")
        resources["num_gpus"] = 1
    if workers * threads > processors:
        raise ConfigError(
            f"--workers {workers} of {threads} threads need as many processors, and the cluster has {processors}: "
            "give fewer --workers or --threads"
        )
    return resources


def _count(ray: Any, resource: str) -> int:
    return int(ray.cluster_resources().get(resource, 0))


def _wants_cards(crew: Crew) -> bool:
    return (crew.device or "cuda").startswith("cuda")


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """A context in which the program ends, with a sentence, when a process of Ray's own dies that it started.

    Ray would end it as well, but after a while, and without a word.
    """
    import ray._private.worker as worker

    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(1.0):
            node: Any = worker._global_node
            if node is not None and not node.remaining_processes_alive() and not is_over.is_set():
                say("a process of Ray's has died on this machine; to go on, run the same command again")
                sys.stderr.flush()
                os._exit(1)

    thread = threading.Thread(target=watch, name="ddim watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class _Needed(NamedTuple):
    """What each node is to see.

    Attributes:
        folder: of the job.
        size: of its job.json, in bytes.
        model: its folder or file, if it is one.
        pictures: the folder from which rows name the pictures that they start from, if they may.
    """

    folder: str
    size: int
    model: str | None
    pictures: str | None


def _needed(job: Job) -> _Needed:
    model = str(job.asked["model"])
    return _Needed(
        str(job.out),
        (job.out / "job.json").stat().st_size,
        model if Path(model).exists() else None,
        str(job.beside) if job.has_pictures else None,
    )


def _checked_nodes(ray: Any, needed: _Needed) -> list[Any]:
    """The nodes of a cluster, all of which see the files that a worker needs.

    Raises:
        ConfigError: a node lacks something.
    """
    affinity: Any = require("ray.util.scheduling_strategies", "scale")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    remote = ray.remote(num_cpus=0, max_retries=0)(_lacks)
    answers = [
        remote.options(scheduling_strategy=affinity.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            *needed
        )
        for node in nodes
    ]
    for node, found in zip(nodes, ray.get(answers, timeout=120), strict=True):
        if found:
            raise ConfigError(f"the node {node['NodeManagerAddress']} {found}")
    return nodes


def _lacks(folder: str, size: int, model: str | None, pictures: str | None) -> str:
    """What a node does not see, in words; called on that node."""
    path = Path(folder, "job.json")
    if not path.exists() or path.stat().st_size != size:
        return f"does not see the folder {folder}: give an --out that all nodes share"
    if model is not None and not Path(model).exists():
        return f"has no {model}: give a --model that all nodes have"
    if pictures is not None and not Path(pictures).exists():
        return f"has no {pictures}, where the rows' pictures are: let PROMPTS lie in a folder that all nodes share"
    return ""


@contextlib.contextmanager
def _said_aside(path: Path) -> Iterator[None]:
    """A context in which what Ray says goes into a file, and what we say to where it went before."""
    sys.stderr.flush()
    is_real = False
    with contextlib.suppress(OSError, ValueError):
        is_real = sys.stderr.fileno() == 2
    ours, kept = sys.stderr, os.dup(2)
    with path.open("a") as log, contextlib.redirect_stdout(log):
        os.dup2(log.fileno(), 2)
        if is_real:
            sys.stderr = open(kept, "w", buffering=1, closefd=False)  # noqa: SIM115
        try:
            yield
        finally:
            sys.stderr.flush()
            sys.stderr = ours
            os.dup2(kept, 2)
            os.close(kept)
