"""What all tabs of the studio share: its models, its visitors, and two ways to draw for them.

What the engine can draw, it draws, beside all others (`Studio.draw`). What it does not know, such as inversion or
every x_t of a run, is drawn beside it in a thread, one at a time for each model (`Studio.aside`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from PIL import Image

from ddim.checkpoint.hub import Repository
from ddim.checkpoint.known import Known, guidance_of, known
from ddim.errors import CheckpointError, DDIMError
from ddim.pipelines import DiffusionPipeline
from ddim.pipelines.fitting import structure
from ddim.scheduler import DDIMScheduler
from ddim.serving.answers import Answer
from ddim.serving.limits import Limits
from ddim.serving.parameters import Drawing
from ddim.serving.pool import Loaded, Pool
from ddim.serving.refusal import Refusal
from ddim.serving.runs import Run
from ddim.serving.wishes import wish
from ddim.studio.sessions import Session, Sessions

__all__ = ["Done", "StoppedError", "Studio", "sentence", "together"]

Result = TypeVar("Result")


class StoppedError(Exception):
    """The visitor cancelled what was drawn, or has gone away."""


@dataclass(frozen=True)
class Done(Generic[Result]):
    """What came of a run beside the engine: the last that is heard of it."""

    result: Result


class Studio:
    """The desk at which all tabs work.

    Args:
        pool: the models, each of which is loaded when it first draws.
        places: where each is, by its name: what is known of it is read there, without loading it.
        limits: of what visitors may ask for and upload.

    Attributes:
        pool, limits: as given.
        sessions: of the visitors.
    """

    def __init__(self, pool: Pool, places: Mapping[str, str], limits: Limits | None = None) -> None:
        self.pool, self.limits = pool, limits or Limits()
        self.sessions = Sessions()
        self._places = dict(places)
        self._known: dict[str, Known | None] = {}
        self._schedulers: dict[str, DDIMScheduler] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of all models, the usual one first."""
        return self.pool.names

    def loaded(self, name: str) -> Loaded | None:
        """A model, if it is there; this loads none."""
        return next((each for each in self.pool.loaded if each.name == name), None)

    def known(self, name: str) -> Known | None:
        """What is known of a model: what it says itself if it is loaded, else what its configs say; None where they
        are not at hand, as those of the hub, which nobody is to wait for."""
        loaded = self.loaded(name)
        if loaded is not None and self._known.get(name) is None:
            self._known[name] = _known_of(loaded.pipe)
        elif name not in self._known:
            place = self._places.get(name)
            try:
                is_here = place is not None and Repository(place).folder is not None
                self._known[name] = known(place) if is_here and place is not None else None
            except CheckpointError:
                self._known[name] = None
        return self._known[name]

    def scheduler(self, name: str) -> DDIMScheduler | None:
        """A model's scheduler, read without its networks; None where its config is not at hand."""
        loaded = self.loaded(name)
        if loaded is not None:
            return loaded.pipe.scheduler
        if name not in self._schedulers:
            try:
                self._schedulers[name] = DDIMScheduler.from_pretrained(
                    self._places[name], subfolder="scheduler", local_files_only=True
                )
            except (DDIMError, OSError, ValueError, KeyError):
                return None
        return self._schedulers[name]

    @contextlib.asynccontextmanager
    async def model(self, name: str) -> AsyncIterator[Loaded]:
        """A model, which stays as long as this lasts; it is loaded if it is not there.

        Raises:
            Refusal: there is none of this name, or it cannot be loaded.
        """
        name = self.pool.name_of(name)
        loaded = await self.pool.take(name)
        try:
            yield loaded
        finally:
            self.pool.leave(name)

    @contextlib.asynccontextmanager
    async def draw(
        self,
        session: Session,
        tab: str,
        name: str,
        asked: Drawing,
        image: Image.Image | None = None,
        mask: Image.Image | None = None,
        *,
        preview_every: int | None = None,
    ) -> AsyncIterator[Run]:
        """Have pictures drawn by the engine: `Run.happening` says what happens. At the end, what is not done is
        cancelled.

        Args:
            session, tab: by which it is cancelled; of several things at once, a tab calls them "tab/1", "tab/2" ….
            name: of the model.
            asked: a `Generation`, or an `Edit` with an image.
            image: to start from.
            mask: of the image's size, white where to paint.
            preview_every: show the predicted x0 of every so manieth step.

        Raises:
            Refusal: it cannot be drawn; its message is a sentence for the visitor.
            StoppedError: it was cancelled.
        """
        run: Run | None = None
        stopped = asyncio.Event()

        def stop() -> None:
            stopped.set()
            if run is not None:
                run.end()

        session.begin(tab, stop)
        try:
            async with self.model(name) as loaded:
                wanted = await asyncio.to_thread(wish, name, loaded.pipe, asked, self.limits, image, mask)
                if stopped.is_set():
                    raise StoppedError
                run = Run(loaded, Answer(name, loaded.pipe, wanted, "image"), lambda: None)
                try:
                    await run.submit(self.limits.deadline, preview_every)
                    yield run
                except Refusal:
                    if stopped.is_set():
                        raise StoppedError from None
                    raise
                finally:
                    run.end()
        finally:
            session.done(tab, stop)

    async def aside(
        self,
        session: Session,
        tab: str,
        name: str,
        work: Callable[[DiffusionPipeline, Callable[[Any], None]], Result],
    ) -> AsyncIterator[Any | Done[Result]]:
        """Do something with a model beside the engine, in a thread; yields what it tells on its way, and at the end
        `Done` with what it returns.

        Args:
            session, tab: by which it is cancelled, as in `draw`.
            name: of the model.
            work: called with the pipeline and a function `tell`, whose argument is yielded. It has to call `tell` after
                each step, since that is where it ends when it was cancelled.

        Raises:
            Refusal: the model cannot be loaded.
            StoppedError: it was cancelled.
            Exception: whatever `work` raises.
        """
        loop, heard, end = asyncio.get_running_loop(), asyncio.Queue[Any](), object()
        stopped = asyncio.Event()

        def tell(what: Any) -> None:
            if stopped.is_set():
                raise StoppedError
            loop.call_soon_threadsafe(heard.put_nowait, what)

        session.begin(tab, stopped.set)
        try:
            async with self.model(name) as loaded, loaded.aside:
                if stopped.is_set():
                    raise StoppedError
                task = asyncio.create_task(asyncio.to_thread(work, loaded.pipe, tell))
                task.add_done_callback(lambda _: heard.put_nowait(end))
                try:
                    while (what := await heard.get()) is not end:
                        yield what
                    yield Done(task.result())
                finally:
                    stopped.set()
                    if not task.done():
                        await asyncio.wait((task,))
        finally:
            session.done(tab, stopped.set)


def _known_of(pipe: DiffusionPipeline) -> Known:
    """What a model says of itself when it is loaded."""
    config = pipe.scheduler.config
    return Known(
        draws_texts=pipe.draws_texts,
        class_count=pipe.class_count,
        timesteps=int(config.num_train_timesteps),
        prediction_type=config.prediction_type,
        factor=structure(pipe)[0] if pipe.draws_texts else None,
        side=pipe.picture_shape()[1],
        is_xl=pipe.is_xl,
        **guidance_of(pipe.components["unet"].config, config),
    )


async def together(events: AsyncIterator[Result], seconds: float = 0.05) -> AsyncIterator[list[Result]]:
    """What happens, in lists of all that came within so many seconds of the first: a page is not told of each alone."""

    async def following() -> Result:
        return await anext(events)

    task: asyncio.Task[Result] | None = None
    try:
        while True:
            heard: list[Result] = []
            until = None
            while until is None or (left := until - asyncio.get_running_loop().time()) > 0:
                task = task or asyncio.create_task(following())
                await asyncio.wait((task,), timeout=None if until is None else left)
                if not task.done():
                    break
                done, task = task, None
                try:
                    heard.append(done.result())
                except StopAsyncIteration:
                    if heard:
                        yield heard
                    return
                except BaseException:
                    if heard:
                        yield heard
                    raise
                until = until or asyncio.get_running_loop().time() + seconds
            yield heard
    finally:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


def sentence(error: BaseException) -> str:
    """What a visitor is told of an error, in which parameters are called as their fields are.

    >>> sentence(ValueError("guidance_scale must be a number"))
    'Guidance scale must be a number.'
    """
    said = error.message if isinstance(error, Refusal) else str(error)
    if not isinstance(error, (Refusal, DDIMError, ValueError)):
        said = f"it could not be drawn ({type(error).__name__}); the log has more"
    said = re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda name: name[0].replace("_", " "), said.strip())
    said = said or "it could not be drawn"
    return said[0].upper() + said[1:] + "." * (said[-1] not in ".!?")
