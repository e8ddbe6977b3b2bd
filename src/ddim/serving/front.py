"""Where the requests for several replicas come in: the door is that of one server, and what is behind it draws."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from ddim.serving.answers import event
from ddim.serving.api import FILES, Options, add_counting, add_looking, guard, while_there, within
from ddim.serving.bodies import Room, read_body
from ddim.serving.keys import Keys
from ddim.serving.logs import tell
from ddim.serving.metrics import Metrics
from ddim.serving.refusal import Refusal
from ddim.serving.replica import ABOUT
from ddim.serving.totals import Totals

__all__ = ["Front", "ReplicaLostError", "Replicas", "create_front", "of_replica"]

_TELLING = 1.0  # seconds between two times that the replicas' logs are asked for
_FEW = 10.0  # seconds within which a replica answers what needs no drawing

# Of a request, what a replica gets to know: neither the key, which was looked at here, nor the page that sent it.
_KEPT = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "client", "server")
_NOT_HANDED_ON = (b"authorization", b"origin")


class ReplicaLostError(Exception):
    """The replica that a request was handed to is not there any more."""


class Replicas(Protocol):
    """The replicas of a server, wherever they are."""

    def answer(self, scope: Scope, body: bytes, is_closing: bool) -> AsyncGenerator[list[Message]]:
        """`Replica.answer` of the one that has the least to do.

        Raises:
            ReplicaLostError: it is not there any more.
        """

    async def all(self, method: str, *arguments: Any) -> list[Any]:
        """What a method of `Replica` gives, of each that lives."""


class Front:
    """What all requests share before they are handed on; see `Host`."""

    has_page = False
    opening = 0

    def __init__(self, replicas: Replicas, names: Sequence[str], options: Options) -> None:
        self.names, self.options, self.limits = tuple(names), options, options.limits
        self.metrics, self.is_closing = Metrics(), False
        self._replicas, self._totals, self._room = replicas, Totals(), Room(options.limits.all_bytes)

    async def hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application: what a replica answers.

        Raises:
            Refusal: the request is too large, or its replica is lost before it answered.
        """
        request, limits = Request(scope, receive), self.limits
        handed = _handed(scope)
        if request.url.path.startswith(FILES):
            found = await within(_FEW, self._replicas.all("stored", handed))
            for messages in found:
                if messages is not None:
                    for message in messages:
                        await _hand_back(scope, message, send)
                    return
        async with contextlib.AsyncExitStack() as stack:
            body = b""
            if "content-length" in request.headers or "transfer-encoding" in request.headers:
                is_form = request.headers.get("content-type", "").startswith("multipart/")
                most = limits.json_bytes + is_form * (limits.image_bytes + limits.mask_bytes)
                body = await stack.enter_async_context(read_body(request, most, limits, self._room))
            await while_there(request, self._answer(scope, handed, body, send))

    async def _answer(self, scope: Scope, handed: Scope, body: bytes, send: Send) -> None:
        started: Message = {}
        try:
            async with contextlib.aclosing(self._replicas.answer(handed, body, self.is_closing)) as answer:
                # The replica has a deadline of its own; this one is for when none is there to take the request.
                messages = await within(self.limits.deadline + _FEW, anext(answer, None))
                while messages is not None:
                    for message in messages:
                        if message["type"] == "http.response.start":
                            started = message
                        await _hand_back(scope, message, send)
                    messages = await anext(answer, None)
        except ReplicaLostError as error:
            tell("replica lost", level=logging.WARNING, request=scope["ddim"]["request"])
            refusal = Refusal(
                "the process that drew this has ended, and another one takes its place: send it again",
                status=503,
                code="replica_lost",
                headers={"Retry-After": "1"},
            )
            if not started:
                raise refusal from error
            if not dict(started["headers"]).get(b"content-type", b"").startswith(b"text/event-stream"):
                raise OSError("a part of the answer is lost") from error  # which closes the connection
            last = event(refusal.body(scope["ddim"]["request"])) + b"data: [DONE]\n\n"
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def ready(self) -> Response:
        """Whether one of the replicas can draw now. To ask has each of them load the first model."""
        if self.is_closing:
            return JSONResponse({"status": "closing"}, 503)
        scope: Scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET"}
        scope.update(scheme="http", path="/ready", raw_path=b"/ready", query_string=b"", headers=[], ddim={})
        answers = await within(_FEW, self._replicas.all("whole", scope))
        found = [[message for message in messages if message["type"] != ABOUT] for messages in answers]
        if not found:
            return JSONResponse({"status": "loading"}, 503, {"Retry-After": "2"})
        start, *parts = min(found, key=lambda messages: int(messages[0]["status"]))
        body = b"".join(part["body"] for part in parts)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
        return Response(body, start["status"], headers)

    async def counted(self) -> bytes:
        """What all replicas have counted together, and what is counted here."""
        texts = dict(await within(_FEW, self._replicas.all("counted")))
        return self._totals.text({**texts, "": self.metrics.text()})

    async def tell_their_logs(self) -> None:
        """Write what the replicas' logs say into this one, again and again."""
        while True:
            await asyncio.sleep(_TELLING)
            with contextlib.suppress(Refusal):
                await self.tell_now()

    async def tell_now(self) -> None:
        """Write what the replicas' logs say into this one."""
        for name, lines in await within(_FEW, self._replicas.all("told")):
            for line in lines:
                level = logging.getLevelNamesMapping()[line.pop("level").upper()]
                message = line.pop("message")
                del line["time"]
                tell(message, level=level, replica=name, **line)


def of_replica(options: Options, count: int) -> Options:
    """How each of so many replicas is to be, of which all together are as `options` say.

    Keys, and the origins of pages, are looked at where requests come in, which is also where they are counted.
    """
    return replace(options, keys=Keys(), origins=(), tells=False, store_bytes=options.store_bytes // count)


def create_front(replicas: Replicas, names: Sequence[str], options: Options) -> FastAPI:
    """The application of a server whose requests are answered by replicas.

    Args:
        names: of the models.
        options: those of `create_app`; the replicas' own are `of_replica` of them.
    """
    front = Front(replicas, names, options)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        telling = asyncio.create_task(front.tell_their_logs())
        yield
        telling.cancel()
        with contextlib.suppress(Refusal):
            await front.tell_now()

    app = FastAPI(openapi_url=None, redirect_slashes=False, lifespan=life)
    app.state.server = front
    guard(app, front)
    add_looking(app, front)
    add_counting(app, front)
    app.mount("", front.hand_on)
    return app


def _handed(scope: Scope) -> Scope:
    """A request as a replica gets it."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _NOT_HANDED_ON]
    about = {"request": scope["ddim"]["request"]}
    return {**{name: scope[name] for name in _KEPT if name in scope}, "headers": headers, "ddim": about}


async def _hand_back(scope: Scope, message: Message, send: Send) -> None:
    """Send a part of a replica's answer, or note what the log is to say."""
    if message["type"] == ABOUT:
        scope["ddim"].update(message["about"])
    else:
        await send(message)
