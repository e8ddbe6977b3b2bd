"""The studio's door: what a page may ask the server for, and whose page it is.

Gradio answers much more than the studio's page needs: it fetches addresses and reads files that a request names, takes
bodies of any size, and lets pages of other sites ask. So this stands before it, and lets through what is known to be
needed, from the studio's own page, within bounds, by somebody who has logged in.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import pydantic_core
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddim.serving.bodies import Room, read_body, read_form
from ddim.serving.keys import is_loopback
from ddim.serving.limits import Limits
from ddim.serving.refusal import Refusal
from ddim.studio.visits import Visit, Visits

__all__ = ["Gate"]

_API = "/gradio_api/"
_HEARTBEAT, _FILE = f"{_API}heartbeat/", f"{_API}file="
_OPEN = ("/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/assets/", "/static/")  # without a login
_LOOKED_AT = ("/logout", "/config", f"{_API}info", f"{_API}app_id", f"{_API}queue/data", _HEARTBEAT, _FILE)
_POSTED = tuple(_API + each for each in ("queue/join", "run/predict", "cancel", "reset"))
_UPLOAD = f"{_API}upload"

# A browser follows this whatever a page's code would do: nothing is asked of another host.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
}
# What is opened by itself may have been uploaded by anybody, and must not run as the studio's own page.
_FILE_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src 'self'; media-src 'self'",
    "Cache-Control": "private, no-store",
}


class Gate:
    """What stands before the page.

    Args:
        app: the page.
        visits: of all browsers.
        limits: of bodies.
        room: for all of them together.
        user: who has logged in, by the request's cookies, or None; None where nobody has to.
        any_host: whether the studio may be called by any name. Otherwise, where nobody has to log in, only by an
            address or as this machine: a page elsewhere can make its own name mean this machine.
    """

    def __init__(
        self,
        app: ASGIApp,
        visits: Visits,
        limits: Limits,
        room: Room,
        user: Callable[[dict[str, str]], str | None] | None = None,
        *,
        any_host: bool = False,
    ) -> None:
        self._app, self._visits, self._limits, self._room = app, visits, limits, room
        self._user, self._any_host = user, any_host
        self._cookie = f"ddim-studio-{secrets.token_hex(4)}"  # cookies of one host are those of all its ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer: Response
        try:
            await self._admit(scope, receive, send)
            return
        except Refusal as refusal:
            # Gradio's page shows "detail"
            answer = JSONResponse({"detail": refusal.message}, refusal.status, refusal.headers)
        await answer(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        kind = _kind(scope["method"], path)
        if kind is None:
            raise Refusal("the studio's page has no use for this", status=404)
        self._check_host(headers)
        cookies = cookie_parser(headers.get("cookie", ""))
        if kind == "open":
            await self._app(scope, receive, self._answering(send, path, cookies))
            return
        _check_site(headers)
        if kind == "login":
            async with read_body(Request(scope, receive), self._limits.json_bytes, self._limits, self._room) as body:
                await self._app(scope, _again(body, receive), _without_cors(send))
            return
        if self._user is not None and self._user(cookies) is None:
            raise Refusal("log in first", status=401)
        visit = self._visits.of(cookies.get(self._cookie, ""))
        if visit is None:
            raise Refusal("open the studio's page anew, and let it keep its cookie", status=403)
        if path == f"{_API}upload_progress":  # an upload is kept when all of it is here
            done = Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")
            await done(scope, receive, send)
        elif kind == "posted":
            await self._posted(visit, scope, receive, send)
        elif path == _UPLOAD:
            await self._upload(visit, scope, receive, send)
        elif path.startswith(_HEARTBEAT):
            await self._heartbeat(visit, scope, receive, send)
        else:
            self._check_looked_at(visit, scope)
            more = _FILE_HEADERS if path.startswith(_FILE) else {}
            await self._app(scope, receive, _without_cors(send, more))

    def _answering(self, send: Send, path: str, cookies: dict[str, str]) -> Send:
        """Give the page its headers and, if it is a new visitor's, a cookie."""
        if path != "/":
            return _without_cors(send)
        if self._visits.of(cookies.get(self._cookie, "")) is not None:
            return _without_cors(send, _PAGE_HEADERS)
        kept = f"{self._cookie}={self._visits.begin()}; HttpOnly; SameSite=Lax; Path=/"
        return _without_cors(send, {**_PAGE_HEADERS, "Set-Cookie": kept})

    def _check_host(self, headers: Headers) -> None:
        """Refuse a name that anybody may have given to this machine."""
        if self._user is not None or self._any_host:
            return
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if not is_loopback(host) and not _is_address(host):
            raise Refusal(
                f"the studio is not called {host[:100]}: open it by its address, or start it with --auth-file",
                status=403,
            )

    def _check_looked_at(self, visit: Visit, scope: Scope) -> None:
        path = scope["path"]
        if path.startswith(_FILE) and not self._visits.may_have(visit, path.removeprefix(_FILE)):
            raise Refusal("there is no such file, or it is another visitor's", status=403)
        if path.endswith("/queue/data"):
            query = parse_qs(scope["query_string"].decode("latin-1"))
            self._visits.claim(visit, query.get("session_hash", [None])[-1])

    async def _heartbeat(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        """The connection that lasts as long as a page is open."""
        page = self._visits.claim(visit, scope["path"].removeprefix(_HEARTBEAT))
        self._visits.opened(visit, page)
        try:
            await self._app(scope, receive, _without_cors(send))
        finally:
            self._visits.closed(visit, page)

    async def _posted(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        """What a page does: it names itself, and files that are its own."""
        most = self._limits.image_bytes + self._limits.mask_bytes  # what is painted is part of it
        async with read_body(Request(scope, receive), most, self._limits, self._room) as body:
            try:
                value = pydantic_core.from_json(body)
            except ValueError as error:
                raise Refusal("the body is no JSON", status=400) from error
            if not isinstance(value, dict):
                raise Refusal("the body must be an object", status=400)
            self._visits.claim(visit, value.get("session_hash"))
            for named in _files(value):
                if not self._visits.may_have(visit, named):
                    raise Refusal("there is no such file, or it is another visitor's", status=403)
            await self._app(scope, _again(body, receive), _without_cors(send))

    async def _upload(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        """Keep the files of a form for this visit alone, and answer where they are, as Gradio would."""
        async with read_form(Request(scope, receive), self._limits, self._room) as form:
            files, names = form.files.get("files", []), form.names.get("files", [])
            if not files:
                raise Refusal("the form has no files", status=400)
            if any(len(each) > self._limits.image_bytes for each in files):
                raise Refusal(f"a file has over {self._limits.image_bytes:,} bytes, which is the most", status=413)
            kept = [
                await asyncio.to_thread(self._visits.keep, visit, data, name)
                for data, name in zip(files, names, strict=True)
            ]
        await JSONResponse([str(each) for each in kept])(scope, receive, _without_cors(send))


def _kind(method: str, path: str) -> Literal["open", "login", "posted", "asked"] | None:
    """What a request is; None for what the page does not need."""
    if method in ("GET", "HEAD"):
        if any(path == each or (each.endswith("/") and each != "/" and path.startswith(each)) for each in _OPEN):
            return "open"
        if any(path == each or (each[-1] in "/=" and path.startswith(each)) for each in _LOOKED_AT):
            return "asked"
        if path in (f"{_API}login_check", f"{_API}upload_progress"):
            return "asked"
    if method == "POST":
        if path.rstrip("/") == "/login":
            return "login"
        if path in _POSTED:
            return "posted"
        if path == _UPLOAD:
            return "asked"
    return None


def _check_site(headers: Headers) -> None:
    """Refuse what a page of another site asks for."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise Refusal("a page of another site may not do this", status=403)
    elif origin is not None and urlsplit(origin).netloc not in (headers.get("host"), headers.get("x-forwarded-host")):
        raise Refusal("a page of another site may not do this", status=403)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _files(value: Any) -> Iterator[str]:
    """The paths of all files that a body names."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if isinstance(each.get("path"), str):
                yield each["path"]
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _again(body: bytes, receive: Receive) -> Receive:
    """What was read, to be read once more; then whether the client is still there."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


def _without_cors(send: Send, more: dict[str, str] | None = None) -> Send:
    """Answer without the headers by which Gradio lets pages of other sites read, and with these instead."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [each for each in headers if each.startswith("access-control-")]:
                del headers[name]
            for name, value in (more or {}).items():
                if name == "Set-Cookie":
                    headers.append(name, value)
                else:
                    headers[name] = value
        await send(message)

    return sent
