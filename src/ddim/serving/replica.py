"""One of several processes that draw for the same clients: a server without a socket, to which requests are handed."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import FastAPI
from starlette.types import Message, Scope

from ddim.serving.api import FILES, Server

__all__ = ["ABOUT", "Replica"]

ABOUT = "ddim.about"


class Replica:
    """The application of a server, as `Front` uses it from another process.

    Args:
        make_app: makes the application; it is `create_app` with its arguments.
        name: of the replica.
        log: where the log is written to as JSON; see `log_to`.
    """

    def __init__(self, make_app: Callable[[], FastAPI], name: str, log: io.StringIO) -> None:
        self.name, self._log = name, log
        self._app = make_app()
        self._server: Server = self._app.state.server
        self._life = self._app.router.lifespan_context(self._app)
        self._runs: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin what the application does beside its requests."""
        await self._life.__aenter__()

    async def end(self) -> None:
        """Cancel what is drawn, and let the models go."""
        await self._life.__aexit__(None, None, None)

    async def answer(self, scope: Scope, body: bytes, is_closing: bool) -> AsyncGenerator[list[Message]]:
        """The answer to a request, as messages of ASGI, each time as many as there are.

        Before the first and the last one there is one of type `ABOUT`, with what the log is to say of the request.

        When this is cancelled the client has gone away, as far as the application sees.

        Args:
            scope: of the request; "ddim" in it has its id.
            body: the whole one.
            is_closing: no new requests are to be taken.
        """
        self._server.is_closing = is_closing
        sent = asyncio.Queue[Message | None]()
        is_gone, is_read = asyncio.Event(), False

        async def receive() -> Message:
            nonlocal is_read
            if not is_read:
                is_read = True
                return {"type": "http.request", "body": body, "more_body": False}
            await is_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start" or not message.get("more_body"):
                sent.put_nowait({"type": ABOUT, "about": {**scope["ddim"], "replica": self.name}})
            sent.put_nowait(message)

        async def run() -> None:
            try:
                await self._app(scope, receive, send)
            finally:
                sent.put_nowait(None)

        work = asyncio.create_task(run())
        self._runs.add(work)
        work.add_done_callback(self._runs.discard)
        try:
            is_whole = False
            while not is_whole:
                messages = [await sent.get()]
                while not sent.empty():
                    messages.append(sent.get_nowait())
                is_whole = messages[-1] is None
                yield [message for message in messages if message is not None]
            await work
        finally:
            is_gone.set()

    async def whole(self, scope: Scope) -> list[Message]:
        """All messages of the answer to a request without a body."""
        return [message async for messages in self.answer(scope, b"", False) for message in messages]

    async def stored(self, scope: Scope) -> list[Message] | None:
        """The answer to a request for a picture in the store; None if it is not here."""
        if self._server.store.get(scope["path"].removeprefix(FILES)) is None:
            return None
        return await self.whole(scope)

    async def counted(self) -> tuple[str, bytes]:
        """Its name, and what it has counted, in Prometheus' text format."""
        return self.name, await self._server.counted()

    async def told(self) -> tuple[str, list[dict[str, Any]]]:
        """Its name, and what its log has since this was last asked for: the fields of each line."""
        lines = self._log.getvalue().splitlines()
        self._log.seek(0)
        self._log.truncate()
        return self.name, [json.loads(line) for line in lines]
