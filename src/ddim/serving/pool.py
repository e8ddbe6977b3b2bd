"""The models of a server: each is loaded when it is first asked for, and the least used leaves where they are many."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ddim.pipelines import DiffusionPipeline
from ddim.serving.engine import Engine
from ddim.serving.logs import tell
from ddim.serving.refusal import Refusal

__all__ = ["Loaded", "Pool"]

_WAITING = 64  # how many requests may wait for a model to leave


@dataclass(eq=False)
class Loaded:
    """A model that is there.

    Attributes:
        name: by which it is asked for.
        pipe, engine: of it.
        last: when it was asked for last, as a number that grows.
        aside: for what is drawn beside the engine, one at a time.
        waiting: how many are drawn beside it, or wait for that.
        control_scales: how strongly each of its ControlNets acts where a request does not say; nothing for as usual.
    """

    name: str
    pipe: DiffusionPipeline
    engine: Engine
    last: int = 0
    aside: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    control_scales: Sequence[float] = ()

    def retry_after(self) -> int:
        """In how many seconds a place may be free: about as long as what waits will take, from 1 to 60."""
        stats = self.engine.stats()
        each = stats.seconds / max(stats.finished, 1)
        return min(60, max(1, round(each * stats.queued / 2)))


class Pool:
    """The models of a server. Its methods are for the event loop's thread.

    Args:
        names: of all models, the first of which is used where none is named.
        open_model: loads the model of a name, which takes a while and is done in a thread of its own.
        most: how many may be loaded at a time; all of them unless told.
        max_batch, max_queue: of each engine.
        control_scales: of models, by their names, how strongly each of their ControlNets acts unless a request says.

    Attributes:
        names: of all models.
        created: when the pool was, in seconds of the epoch.
        opening: how many models are being loaded.
    """

    def __init__(
        self,
        names: Iterable[str],
        open_model: Callable[[str], DiffusionPipeline],
        most: int | None = None,
        *,
        max_batch: int | None = None,
        max_queue: int = 256,
        control_scales: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self._control_scales = control_scales or {}
        self.names = tuple(names)
        self.created = int(time.time())
        self._open, self._most = open_model, most or len(self.names)
        self._max_batch, self._max_queue = max_batch, max_queue
        self._loaded: dict[str, Loaded] = {}
        self._loading: dict[str, asyncio.Task[Loaded]] = {}
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()  # set when somebody has left a model
        self._count = itertools.count(1)
        self._users: Counter[str] = Counter()  # how many requests use a model, or wait for it
        self._waiting = 0
        self.opening = 0

    @property
    def loaded(self) -> tuple[Loaded, ...]:
        """The models that are there."""
        return tuple(self._loaded.values())

    def name_of(self, asked: str | None) -> str:
        """The name of the model that a request is for.

        Raises:
            Refusal: there is none of this name; with status 404.
        """
        if asked is None:
            return self.names[0]
        if asked not in self.names:
            raise Refusal(
                f"there is no model {asked[:100]!r} here: there {'are' if len(self.names) > 1 else 'is'} "
                f"{', '.join(self.names)}",
                "model",
                status=404,
                code="model_not_found",
            )
        return asked

    async def take(self, name: str) -> Loaded:
        """A model, which stays until `leave` is called as often.

        Raises:
            Refusal: it cannot be loaded, or too many wait for a place.
        """
        self._users[name] += 1
        try:
            model = self._loaded.get(name) or await self._load(name)
        except BaseException:
            self.leave(name)
            raise
        model.last = next(self._count)
        return model

    def leave(self, name: str) -> None:
        """Use a model no longer that was taken."""
        self._users[name] -= 1
        self._left.set()

    def users(self, name: str) -> int:
        """How many requests use a model, or wait for it."""
        return self._users[name]

    async def close(self) -> None:
        """Cancel what is drawn, and end all engines."""
        for task in self._loading.values():
            task.cancel()
        for model in self.loaded:
            await asyncio.to_thread(model.engine.close, drain=False)
        self._loaded.clear()

    async def _load(self, name: str) -> Loaded:
        """A model that is not there. All who want it wait for one loading, which goes on when one of them leaves."""
        task = self._loading.get(name)
        if task is None:
            if self._waiting >= _WAITING:
                raise Refusal(
                    "too many requests wait for another model", status=429, headers={"Retry-After": "10"}, code="busy"
                )
            task = self._loading[name] = asyncio.create_task(self._make_room_and_load(name))
            task.add_done_callback(lambda done: self._loading.pop(name, None))
        self._waiting += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiting -= 1

    async def _make_room_and_load(self, name: str) -> Loaded:
        async with self._turn:
            while len(self._loaded) >= self._most:
                await self._one_leaves()
            started = time.perf_counter()
            while True:
                try:
                    model = await self._in_thread(name)
                    break
                except Exception as error:
                    is_memory = isinstance(error, MemoryError) or "memory" in str(error)
                    if is_memory and self._free():
                        await self._one_leaves()
                        continue
                    tell("model cannot be loaded", level=logging.ERROR, error=error, model=name)
                    raise Refusal(
                        f"the model {name} cannot be loaded; the server's log says why",
                        "model",
                        status=503,
                        code="model_unavailable",
                        headers={"Retry-After": "30"},
                    ) from error
            self._loaded[name] = model
            stats = model.engine.stats()
            tell(
                "model loaded",
                model=name,
                seconds=round(time.perf_counter() - started, 2),
                max_batch=stats.max_batch,
                max_queue=stats.max_queue,
            )
            return model

    async def _in_thread(self, name: str) -> Loaded:
        """Load a model in a thread that the process does not wait for when it ends, as a loading cannot be stopped."""
        loop, found = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def hand_over(model: Loaded | None, error: BaseException | None) -> None:
            if found.done():
                return
            if error is not None:
                found.set_exception(error)
            else:
                found.set_result(model)

        def work() -> None:
            model = error = None
            try:
                model = self._opened(name)
            except Exception as fault:
                error = fault
            self.opening -= 1
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(hand_over, model, error)

        self.opening += 1
        threading.Thread(target=work, name=f"ddim-load-{name}", daemon=True).start()
        loaded: Loaded = await found
        return loaded

    def _opened(self, name: str) -> Loaded:
        pipe = self._open(name)
        engine = Engine(pipe, max_batch=self._max_batch, max_queue=self._max_queue)
        return Loaded(name, pipe, engine, control_scales=self._control_scales.get(name, ()))

    async def _one_leaves(self) -> None:
        """Let go of the model that nobody asked for the longest, once there is one that nobody uses."""
        while True:
            free = self._free()
            if free:
                break
            self._left.clear()
            await self._left.wait()
        oldest = min(free, key=lambda model: model.last)
        del self._loaded[oldest.name]
        await asyncio.to_thread(oldest.engine.close, drain=False)
        tell("model left", model=oldest.name)

    def _free(self) -> list[Loaded]:
        """The models that are there and that nobody uses."""
        return [model for model in self.loaded if not self._users[model.name]]
