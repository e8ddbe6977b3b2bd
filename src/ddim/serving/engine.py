"""The engine: the queue, the one thread that drives the network, and its life."""

from __future__ import annotations

import logging
import threading
import time
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from ddim.errors import ConfigError, DeadlineExceededError, EngineClosedError, QueueFullError
from ddim.pipelines import DiffusionPipeline
from ddim.sampling import not_finite
from ddim.serving.batches import Batch, check
from ddim.serving.exact import ExactBatch
from ddim.serving.futures import Cancelled, Event, Failed, Finished, Future, Queued, Started, Step
from ddim.serving.models import Model, PixelModel, model_of
from ddim.serving.network import using_threads
from ddim.serving.requests import Picture, Request
from ddim.serving.samples import Sample

__all__ = ["Engine", "Stats", "usual_batch"]

log = logging.getLogger(__name__)

LARGEST_BATCH = 16  # on a processor, which gains nothing from more; on an accelerator four times as many
_HELD = 8  # ticks, after which what is finished is decoded though it does not fill a batch
POSITIONS = 2**14  # of the latents of all samples together, on a processor: more only make each step take longer


@dataclass(frozen=True)
class Stats:
    """What an engine has done, and does now.

    Attributes:
        max_batch, max_queue: as the engine has them.
        queued: how many requests wait.
        running: how many are being drawn.
        submitted, finished, failed, cancelled, refused: how many requests so far. `refused` found the queue full and
            are not among those submitted.
        ticks: how many times a step was made so far, each by a forward pass, or by several with `slots`.
        steps: how many steps of samples they made.
        batches: how many ticks there were of each number of samples.
        seconds: how long the network and the decoder have worked.
    """

    max_batch: int
    max_queue: int
    queued: int = 0
    running: int = 0
    submitted: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    ticks: int = 0
    steps: int = 0
    batches: Mapping[int, int] = field(default_factory=dict)
    seconds: float = 0.0


class Engine:
    """Draws for many at once: at each tick, one forward pass makes a step of all samples of one shape.

    A sample that arrives joins at the next tick, whatever steps the others are at, and its picture is that of the
    pipeline's own call with the same settings. One thread drives the network; all methods may be called from any.
    An engine that nobody has any more, or that is not closed when the program ends, cancels what it has.

    Args:
        pipe: a `StableDiffusionPipeline`, or one of its kinds, or a `DDIMPipeline`. While the engine runs, whoever
            else uses it may draw with it too.
        max_batch: how many samples are drawn at the same time; see `usual_batch` for what it is unless told.
        max_queue: how many requests may wait; a further one is refused.
        slots: make every picture bit for bit the same whatever is drawn beside it, in whatever order requests come and
            whatever `max_batch` is. Every forward pass then has exactly so many evaluations of the network, of which a
            guided sample takes two: it is filled up where there are fewer, and there are several passes where there
            are more. All else is computed for each sample alone, by one thread. Pictures are alike to the bit only
            where they have the same `slots`, the same backend and the same kind of processor; `serving.probe` says
            what suits a model. None lets pictures differ by rounding.
        decoded: with `slots`, how many pictures the decoder is given at a time. What is finished waits for some ticks
            until there are as many; where there are fewer then, the batch is filled up.

    Attributes:
        pipe, max_batch, max_queue, slots, decoded: as given or chosen.

    Raises:
        ConfigError: a number that is none, or a pipeline of another kind.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        *,
        max_batch: int | None = None,
        max_queue: int = 256,
        slots: int | None = None,
        decoded: int = 1,
    ) -> None:
        model = model_of(pipe)
        self.pipe = pipe
        self.max_batch = usual_batch(pipe) if max_batch is None else _positive(max_batch, "max_batch")
        self.max_queue = _positive(max_queue, "max_queue")
        self.slots = None if slots is None else _positive(slots, "slots")
        self.decoded = _positive(decoded, "decoded")
        self._model = model
        self._driver = driver = Driver(model, self.max_batch, self.max_queue, self.slots, self.decoded)
        chosen = "as is usual for this model here" if max_batch is None else "as told"
        log.info("max_batch is %d, %s; %d requests may wait; %s", self.max_batch, chosen, max_queue, pipe.backend)
        self._thread = threading.Thread(target=driver.run, name="ddim engine", daemon=True)
        self._thread.start()
        weakref.finalize(self, _end, driver, self._thread)

    def __repr__(self) -> str:
        exact = "" if self.slots is None else f", slots={self.slots}"
        return f"Engine({type(self.pipe).__name__}, max_batch={self.max_batch}, max_queue={self.max_queue}{exact})"

    def submit(self, request: Request) -> Future:
        """Have a picture drawn.

        Raises:
            ConfigError: the request cannot be drawn; the message names the setting.
            DataError: its picture cannot be read.
            QueueFullError: `max_queue` requests wait already.
            EngineClosedError: the engine was closed.
        """
        return self.submit_all([request])[0]

    def submit_all(self, requests: Iterable[Request]) -> list[Future]:
        """Have several pictures drawn, or none of them if one cannot be taken; the rest is as in `submit`."""
        self._driver.require_open()
        samples = [self._model.sample(request, Future(request)) for request in requests]
        self._driver.take(samples)
        return [sample.future for sample in samples]

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """A context in which an engine that has nothing to do waits until `max_batch` requests are there.

        So a forward pass is not made for the first of many requests alone.
        """
        self._driver.hold(1)
        try:
            yield
        finally:
            self._driver.hold(-1)

    def stats(self) -> Stats:
        """What the engine has done so far, and does now."""
        return self._driver.stats()

    def close(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Take no more requests, and end.

        Args:
            drain: finish what runs and what waits; False cancels all of it.
            timeout: for how many seconds to wait for that, at most; what is not finished then is cancelled.

        Returns:
            Whether nothing had to be cancelled on account of the timeout.
        """
        self._driver.close(drain)
        if threading.current_thread() is self._thread:  # a listener's call: the thread ends after it
            return True
        self._thread.join(timeout)
        in_time = not self._thread.is_alive()
        if not in_time:
            self._driver.close(drain=False)
            self._thread.join()
        return in_time

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.close(drain=kind is None)


def usual_batch(pipe: DiffusionPipeline) -> int:
    """How many samples an engine draws at the same time, unless it is told.

    On a processor: 16, or as many fewer as their latents together have more than 2¹⁴ positions, as more would only
    make each step take longer (4 at Stable Diffusion's 64x64). On an accelerator: as many as half of its free memory
    has room for, up to 64. At least 2.
    """
    height, width = usual_shape(pipe)
    positions = height * width
    if pipe.device.type != "cuda":
        return max(2, min(LARGEST_BATCH, POSITIONS // positions))
    free, _ = torch.cuda.mem_get_info(pipe.device)
    unet: Any = pipe.components["unet"]
    # What is alive at once at the highest resolution: about 60 times its channels, of each of two predictions.
    needed = 2 * 60 * positions * unet.config.block_out_channels[0] * torch.finfo(pipe.dtype).bits // 8
    return max(2, min(4 * LARGEST_BATCH, int(free / 2 // needed)))


def usual_shape(pipe: DiffusionPipeline) -> tuple[int, int]:
    """Height and width of what the network draws, or Stable Diffusion's if the model does not say them."""
    try:
        _, _, height, width = pipe.sample_shape(1)
    except ConfigError:
        height = width = 64
    return height, width


class Driver:
    """What the engine's thread does. It knows nothing of the engine, which may so be forgotten while it runs."""

    def __init__(self, model: Model, max_batch: int, max_queue: int, slots: int | None, decoded: int) -> None:
        self.model, self.max_batch, self.max_queue, self.decoded = model, max_batch, max_queue, decoded
        self.slots, model.is_exact = slots, slots is not None
        self.network = model.network(slots, None if slots is None else torch.get_num_threads())
        self._changed = threading.Condition()  # holds for the queue and for whether it is closing
        self._queue: deque[Sample] = deque()
        self._running: list[Sample] = []
        self._ended: list[Sample] = []  # finished, and to be decoded
        self._held = 0  # how many have more requests to come
        self._is_closing = False
        self._is_cancelling = False
        self._counting = threading.Lock()  # of the counts alone; nothing else is locked while it is held
        self._counts: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()
        self._seconds = 0.0
        self._ticks = 0
        self._most = max_batch  # samples in a forward pass; fewer after there was no memory for as many
        self._batches: dict[tuple[Any, ...], Batch] = {}
        self._pace = Pace(model.pipe.device)

    # --- called by any thread ----------------------------------------------------------------------------------------

    def require_open(self) -> None:
        """Raise an EngineClosedError if no more requests are taken."""
        if self._is_closing:
            raise EngineClosedError("the engine was closed and takes no more requests")

    def take(self, samples: Sequence[Sample]) -> None:
        """Put samples into the queue, all or none.

        Raises:
            QueueFullError, EngineClosedError: see `Engine.submit`.
        """
        with self._changed:
            self.require_open()
            waiting = sum(not sample.future.done() for sample in self._queue)
            if waiting + len(samples) > self.max_queue:
                self._count("refused", len(samples))
                raise QueueFullError(f"{waiting} requests wait, and {self.max_queue} may: ask again later")
            for place, sample in enumerate(samples):
                sample.future.listen(self._counted)
                sample.future.tell(Queued(waiting + place))
            self._count("submitted", len(samples))
            self._queue.extend(samples)
            self._changed.notify()

    def close(self, drain: bool) -> None:
        """Take no more requests, and end when all are drawn, or at the next tick."""
        with self._changed:
            self._is_closing = True
            self._is_cancelling = self._is_cancelling or not drain
            self._changed.notify()

    def hold(self, more: int) -> None:
        """Begin to wait, or wait no longer, until there are as many requests as are drawn at a time."""
        with self._changed:
            self._held += more
            self._changed.notify()

    def stats(self) -> Stats:
        with self._changed:
            queued = sum(not sample.future.done() for sample in self._queue)
            running = sum(not sample.future.done() for sample in (*self._running, *self._ended))
        with self._counting:
            counts, sizes = dict(self._counts), dict(sorted(self._sizes.items()))
        return Stats(
            self.max_batch, self.max_queue, queued, running, ticks=self._ticks, batches=sizes, seconds=self._seconds,
            **counts,
        )  # fmt: skip

    def _count(self, what: str, number: int = 1) -> None:
        with self._counting:
            self._counts[what] += number

    def _counted(self, event: Event) -> None:
        if isinstance(event, (Finished, Failed, Cancelled)):
            self._count(type(event).__name__.lower())

    # --- the thread --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Draw until closed. Whatever happens, nobody waits for ever."""
        error: Exception = EngineClosedError("the engine was closed before the picture was drawn")
        try:
            with torch.no_grad():
                while self._go_on():
                    pass
        except Exception as unforeseen:
            log.exception("the engine has ended")
            error = unforeseen
        finally:
            with self._changed:
                self._is_closing = True
                left = [*self._queue, *self._running, *self._ended]
                self._queue.clear()
                self._running.clear()
                self._ended.clear()
            for sample in left:
                sample.future.tell(Failed(error))
            self._batches.clear()

    def _go_on(self) -> bool:
        """Take in who has come, make one tick, and give away what is finished. False when there is no more to do."""
        with self._changed:
            if not self._queue and not self._running:
                self._batches.clear()
                self._changed.wait_for(lambda: self._is_worth_it() or self._is_closing)
                self.network.begin()
            if self._is_closing and not self._queue and not self._running:
                return False
            is_cancelling = self._is_cancelling
        start = time.perf_counter()
        if is_cancelling:
            for sample in [*self._queue, *self._running, *self._ended]:
                sample.future.cancel()
        self._leave(self._late())
        newcomers = self._newcomers()
        # How a sum is shared out among threads shows in its last bits, but for those of whole forward passes.
        with using_threads(None if self.slots is None else 1):
            if newcomers:
                self._begin(newcomers)
            if self._running:
                self._tick()
            if self._running or self._ended:
                self._give_away()
        self._seconds += time.perf_counter() - start
        return True

    def _is_worth_it(self) -> bool:
        """Whether there is something to begin with, and no reason to wait for more."""
        return bool(self._queue) and (not self._held or len(self._queue) >= min(self.max_batch, self.max_queue))

    def _late(self) -> list[Sample]:
        """Tell those whose deadline has passed, and return all that are done, whose places are free."""
        now = time.monotonic()
        with self._changed:
            every = [*self._queue, *self._running, *self._ended]
        for sample in every:
            deadline = sample.future.deadline
            if deadline is not None and now > deadline and not sample.future.done():
                allowed = sample.request.deadline
                error = DeadlineExceededError(
                    f"the picture was not finished within its deadline of {allowed:g} seconds"
                )
                sample.future.tell(Failed(error))
        return [sample for sample in every if sample.future.done()]

    def _leave(self, samples: Iterable[Sample]) -> None:
        gone = set(samples)
        if gone:
            with self._changed:
                self._queue = deque(sample for sample in self._queue if sample not in gone)
                self._running = [sample for sample in self._running if sample not in gone]
                self._ended = [sample for sample in self._ended if sample not in gone]

    def _newcomers(self) -> list[Sample]:
        """Those who are next in the queue and have a place.

        Encoding a picture takes about as long as one sample's part in a tick. So of those who start from one, no more
        are let in at a time than samples are running.
        """
        new: list[Sample] = []
        with self._changed:
            pictures = max(len(self._running), 1)
            while self._queue and len(self._running) + len(new) < self.max_batch:
                pictures -= self._queue[0].needs_encoder
                if pictures < 0:
                    break
                new.append(self._queue.popleft())
            self._running += new
        return new

    def _begin(self, samples: Sequence[Sample]) -> None:
        now = time.monotonic()
        for sample in samples:
            sample.begun, sample.since = now, self._ticks

        def begin(some: Sequence[Sample]) -> None:
            self.model.begin(some)
            self.network.look()
            self.network.prepare(some)
            for sample in some:
                sample.future.tell(Started(len(sample.plan)))

        self._by_halves(samples, begin)

    def _tick(self) -> None:
        """One step of the samples of one kind: of that whose turn is longest ago."""
        kinds: dict[tuple[Any, ...], list[Sample]] = {}
        for sample in self._running:
            kinds.setdefault(sample.kind, []).append(sample)
        for kind in [kind for kind in self._batches if kind not in kinds]:
            del self._batches[kind]
        kind, samples = min(kinds.items(), key=lambda item: min(sample.since for sample in item[1]))
        batch = self._batches.get(kind)
        if batch is None:
            cuts_first = isinstance(self.model, PixelModel)
            batch = (
                Batch(self.network, cuts_first)
                if self.slots is None
                else ExactBatch(self.network, cuts_first, self.slots)
            )
            self._batches[kind] = batch
        samples = list(batch.next(samples))
        self._ticks += 1
        done: list[Sample] = []

        def advance(some: Sequence[Sample]) -> None:
            self.network.look()
            left = batch.advance(some)
            with self._counting:
                self._sizes[len(some)] += 1
                self._counts["steps"] += len(some) - len(left)
            if left and len(some) == 1:
                raise not_finite(left[0].position, left[0].plan)
            for sample in left:  # what one gets from the network may be the fault of another beside it
                self._by_halves([sample], advance)
            done.extend(sample for sample in some if sample not in left)

        for first in range(0, len(samples), self._most):
            self._by_halves(samples[first : first + self._most], advance)
        for sample in samples:
            sample.since = self._ticks
        self._pace.step()
        for sample in done:
            if sample.preview is None and not sample.is_finished:
                sample.future.tell(Step(sample.position, len(sample.plan)))

    def _give_away(self) -> None:
        """Decode what is to be shown and what is finished: all that goes together, or as many as are always decoded."""
        finished = [sample for sample in self._running if sample.is_finished]
        shown = [sample for sample in self._running if sample.preview is not None and not sample.is_finished]
        self._leave(finished)  # their places are free while they are decoded
        with self._changed:
            self._ended += finished
            is_idle = not self._queue and not self._running
        alike: dict[tuple[Any, ...], list[Sample]] = {}
        for sample in [*self._ended, *shown]:
            if not sample.future.done():
                alike.setdefault((sample.shape, sample.request.output_type), []).append(sample)
        for (_, output_type), samples in alike.items():
            for some in [samples] if self.slots is None else self._decodable(samples, is_idle):
                self._by_halves(some, partial(self._decode, output_type=output_type))
                self._leave([sample for sample in some if sample.future.done()])

    def _decodable(self, samples: Sequence[Sample], is_idle: bool) -> Iterator[Sequence[Sample]]:
        """Those of samples of one shape that are to be decoded now, in parts of at most `decoded`."""
        shown = [sample for sample in samples if not sample.is_finished]
        yield from ([sample] for sample in shown)
        ended = [sample for sample in samples if sample.is_finished]
        for first in range(0, len(ended), self.decoded):
            some = ended[first : first + self.decoded]
            if len(some) == self.decoded or is_idle or self._ticks - some[0].since >= _HELD:
                yield some

    def _decode(self, samples: Sequence[Sample], output_type: str) -> None:
        for sample in samples:
            if sample.is_finished:
                try:
                    check(sample)
                except ArithmeticError as error:
                    sample.future.tell(Failed(error))
        samples = [sample for sample in samples if not sample.future.done()]
        if not samples:
            return
        x = torch.cat([_latents(sample) for sample in samples])
        if self.slots is not None and len(x) < self.decoded:
            x = torch.cat([x, x[-1:].expand(self.decoded - len(x), *x.shape[1:])])
        pictures, flags = self.model.pictures(x, output_type)
        now = time.monotonic()
        for place, (sample, picture) in enumerate(zip(samples, pictures, strict=False)):
            if isinstance(picture, Tensor):
                picture = picture.cpu().clone()
            steps, sample.preview = len(sample.plan), None
            future = sample.future
            if not sample.is_finished:
                future.tell(Step(sample.position, steps, picture))
                continue
            future.tell(Step(steps, steps))
            flag = None if flags is None else flags[place]
            seconds, waited = now - future.submitted, sample.begun - future.submitted
            future.tell(Finished(Picture(picture, sample.seed, sample.settings, flag, seconds, waited)))

    def _by_halves(self, samples: Sequence[Sample], work: Callable[[Sequence[Sample]], None]) -> None:
        """Do something with samples; where it fails, with each half, so that it fails for whom it concerns alone."""
        failure: Exception | None = None
        try:
            work(samples)
        except Exception as error:
            failure = error
            if isinstance(error, torch.OutOfMemoryError):
                self._most = max(1, min(self._most, len(samples) // 2))
                log.warning("there is no memory for %d samples at once", len(samples))
        if failure is None:
            return
        if len(samples) > 1:
            failure = None  # it keeps alive what the failed work has computed
            for half in (samples[: len(samples) // 2], samples[len(samples) // 2 :]):
                self._by_halves(half, work)
            return
        (sample,) = samples
        if sample.preview is not None and not sample.is_finished:
            sample.preview = None  # the run goes on without being seen
            sample.future.tell(Step(sample.position, len(sample.plan)))
            return
        traceback.clear_frames(failure.__traceback__)  # which keep alive what was computed
        log.warning("a request failed: %s: %s", type(failure).__name__, failure)
        sample.future.tell(Failed(failure))
        self._leave([sample])


class Pace:
    """Keeps the host at most two ticks before an accelerator, so that who comes need not wait for more than those."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: deque[Any] = deque()

    def step(self) -> None:
        """Be told that a tick was handed over."""
        if self._device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._before.append(event)
            if len(self._before) > 2:
                self._before.popleft().synchronize()


def _latents(sample: Sample) -> Tensor:
    """What is to be decoded of a sample: its end, or the predicted x0 on the way."""
    x = sample.x if sample.is_finished else sample.preview
    assert x is not None
    return x


def _end(driver: Driver, thread: threading.Thread) -> None:
    """Cancel what an engine has that nobody has any more."""
    driver.close(drain=False)
    if threading.current_thread() is not thread:
        thread.join()


def _positive(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a positive int, not {value!r:.50}")
    return value
