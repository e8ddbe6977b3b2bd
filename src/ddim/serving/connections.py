"""HTTP connections that end when a client neither finishes its request nor takes its answer.

Uvicorn waits for a request's headers, and for a client to read, for as long as they take. A few hundred clients that
send a letter now and then would hold all connections that a server can have.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["PatientSend", "protocol"]


def protocol(header_seconds: float, most: int) -> type[H11Protocol]:
    """A class of connections whose requests have their headers within a time.

    Args:
        header_seconds: counted from the opening of a connection, and later from a request's first byte.
        most: the most connections at a time; a further one is closed at once.
    """

    class Connection(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
                return
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_half = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
            is_late = self.cycle is not None and self.cycle.response_complete  # a body after its answer
            if is_half or (is_late and self.conn.their_state is h11.SEND_BODY):
                if self._waiting is None:
                    self._wait()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(header_seconds, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Connection


class PatientSend:
    """An application whose answers a client has to take: each part of one within so many seconds.

    A client that does not is gone, as far as the application sees: its request is cancelled.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError as error:
                raise OSError("the client does not take its answer") from error

        await self._app(scope, receive, sent)
