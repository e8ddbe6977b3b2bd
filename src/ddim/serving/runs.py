"""The pictures of one request on their way: waited for together, or sent as they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from typing import Any

from PIL import Image
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ddim.errors import ConfigError, DDIMError, DeadlineExceededError, EngineClosedError, QueueFullError
from ddim.serving.answers import Answer, event
from ddim.serving.futures import Cancelled, Event, Failed, Finished, Future, Step
from ddim.serving.logs import tell
from ddim.serving.pool import Loaded
from ddim.serving.refusal import Refusal
from ddim.serving.requests import Picture
from ddim.serving.variations import vary
from ddim.serving.wishes import refusal_of

__all__ = ["Run", "Stream", "vary_aside"]

_ALIVE = 10.0  # seconds after which a stream says that it is alive
_ASIDE = 16  # how many variations may wait for one that is drawn


class Run:
    """A request that is drawn by a model.

    Args:
        model: which stays until the end.
        answer: to be sent.
        leave: called once, at the end.
    """

    def __init__(self, model: Loaded, answer: Answer, leave: Callable[[], object]) -> None:
        self.model, self.answer = model, answer
        self._leave: Callable[[], object] | None = leave
        self._futures: list[Future] = []

    async def submit(self, deadline: float, preview_every: int | None = None) -> None:
        """Have the pictures drawn.

        Args:
            deadline: in seconds from now.
            preview_every: show the predicted x0 of every so manieth step; else as many as are asked for.

        Raises:
            Refusal: the engine cannot draw them, or has no room for them.
        """
        wish, engine = self.answer.wish, self.model.engine

        def submit() -> None:
            requests = wish.requests(self.model.pipe.draws_texts, max(deadline, 0.001), preview_every)
            self._futures = engine.submit_all(requests)
            if self._leave is None:  # it was given up meanwhile
                self.end()

        try:
            await asyncio.to_thread(submit)
        except (QueueFullError, EngineClosedError) as error:
            raise _explained(error, self) from error
        except (DDIMError, ValueError, TypeError) as error:
            raise refusal_of(error, wish.asked) from error

    def end(self) -> None:
        """Cancel what is not done, and leave the model."""
        for future in self._futures:
            future.cancel()
        if self._leave is not None:
            leave, self._leave = self._leave, None
            leave()

    async def happening(self) -> AsyncIterator[tuple[int, Event | None]]:
        """(number of the picture, what happened) until all are there; None where nothing did for ten seconds.

        Raises:
            Refusal: one of them failed.
        """
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()

        def hear(number: int) -> Callable[[Event], object]:
            def heard(event: Event) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(queue.put_nowait, (number, event))

            return heard

        for number, future in enumerate(self._futures):
            future.listen(hear(number))
        left = len(self._futures)
        while left:
            try:
                # `wait_for` of Python 3.11 misses being cancelled as an event comes.
                async with asyncio.timeout(_ALIVE):
                    number, happened = await queue.get()
            except TimeoutError:
                yield 0, None
                continue
            if isinstance(happened, Failed):
                raise _explained(happened.error, self)
            if isinstance(happened, Cancelled):
                raise _explained(EngineClosedError("the engine was closed"), self)
            left -= isinstance(happened, Finished)
            yield number, happened

    async def pictures(self) -> tuple[list[bytes], dict[str, Any]]:
        """The files of all pictures, and the settings that they were drawn by.

        Raises:
            Refusal: one of them failed.
        """
        drawn: dict[int, Picture] = {}
        async for number, happened in self.happening():
            if isinstance(happened, Finished):
                drawn[number] = happened.picture
        files = [await self.file(drawn[number].image, number, drawn[number].settings) for number in sorted(drawn)]
        return files, dict(drawn[0].settings)

    async def file(self, image: Image.Image, number: int, settings: Any) -> bytes:
        """A picture's file, which is written in another thread."""
        return await asyncio.to_thread(self.answer.file, image, number, settings)


class Stream(StreamingResponse):
    """The pictures of a run as events: those on the way, and each one that is done.

    Args:
        seen: told "partial" at the first picture on the way, and "completed" at the end.
    """

    def __init__(self, run: Run, seen: Callable[[str], None]) -> None:
        headers = {
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",  # nginx is to hand on each event at once
            "X-DDIM-Seed": str(run.answer.wish.seed),
        }
        self._run, self._seen = run, seen
        super().__init__(self._events(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._about = scope["ddim"]
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.end()

    async def _events(self) -> AsyncIterator[bytes]:
        run = self._run
        partials: dict[int, int] = {}
        try:
            async for number, happened in run.happening():
                if happened is None:
                    yield b": it is being drawn\n\n"
                elif isinstance(happened, Step) and happened.preview is not None:
                    index = partials.get(number, 0)
                    partials[number] = index + 1
                    if not index and number == 0:
                        self._seen("partial")
                    yield await asyncio.to_thread(self._partial, happened.preview, number, index)
                elif isinstance(happened, Finished):
                    picture = happened.picture
                    self._about["steps"] = picture.settings.get("steps")
                    yield await asyncio.to_thread(self._completed, picture, number)
            self._seen("completed")
        except Refusal as refusal:
            yield event(refusal.body(self._about["request"]))
        yield b"data: [DONE]\n\n"

    def _partial(self, image: Image.Image, number: int, index: int) -> bytes:
        """The event of a picture on its way."""
        return event(self._run.answer.partial(image, number, index))

    def _completed(self, picture: Picture, number: int) -> bytes:
        """The event of a picture that is done."""
        answer = self._run.answer
        file = answer.file(picture.image, number, picture.settings)
        return event(answer.completed(file, number, picture.settings))


async def vary_aside(run: Run, deadline: float) -> tuple[list[bytes], dict[str, Any]]:
    """The files of a variation that is drawn beside the engine, and its settings; one of a model at a time.

    Raises:
        Refusal: it cannot be drawn, too many wait already, or it took too long.
    """
    model, is_over = run.model, False

    def notice() -> None:
        if is_over:
            raise CancelledError

    if model.waiting >= _ASIDE:
        raise _explained(QueueFullError("too many variations wait"), run)
    model.waiting += 1
    try:
        async with asyncio.timeout(deadline), model.aside:
            work = asyncio.get_running_loop().run_in_executor(None, vary, model.pipe, run.answer.wish, notice)
            try:
                images, settings = await asyncio.shield(work)
            except asyncio.CancelledError:
                is_over = True
                await asyncio.wait((work,))
                raise
    except TimeoutError as error:
        raise _explained(DeadlineExceededError(str(error)), run) from error
    except (ConfigError, ValueError, TypeError) as error:
        raise refusal_of(error, run.answer.wish.asked) from error
    finally:
        model.waiting -= 1
    return [await run.file(image, number, settings) for number, image in enumerate(images)], settings


def _explained(error: Exception, run: Run) -> Refusal:
    """What a client is told of an error of the engine's."""
    if isinstance(error, QueueFullError):
        return Refusal(
            "as many requests wait as the server takes: send it again in a moment",
            status=429,
            code="queue_full",
            headers={"Retry-After": str(run.model.retry_after())},
        )
    if isinstance(error, EngineClosedError):
        return Refusal("the server is about to end", status=503, code="closing", headers={"Retry-After": "5"})
    if isinstance(error, DeadlineExceededError):
        return Refusal(
            "the picture was not done before the deadline: ask for fewer steps, or again when less is drawn",
            status=504,
            code="deadline",
            headers={"X-Should-Retry": "false"},
        )
    if isinstance(error, ConfigError):
        return refusal_of(error, run.answer.wish.asked)
    tell("picture failed", level=logging.ERROR, error=error, model=run.model.name)
    return Refusal(
        f"the picture could not be drawn ({type(error).__name__}); the server's log has more",
        status=500,
        code="drawing_failed",
    )
