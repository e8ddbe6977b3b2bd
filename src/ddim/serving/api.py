"""OpenAI's images API over HTTP: its routes, and what happens to every request on its way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddim._version import __version__
from ddim.serving.answers import Answer, identifier_of
from ddim.serving.bodies import Form, Room, media_type, read_form, read_json
from ddim.serving.connections import PatientSend
from ddim.serving.document import ERRORS, PICTURE, form_body, json_or_form_body
from ddim.serving.keys import Keys, check_origin
from ddim.serving.limits import MIB, Limits
from ddim.serving.logs import tell
from ddim.serving.memory import give_back
from ddim.serving.metrics import METRICS_TYPE, Metrics, OfEngines
from ddim.serving.parameters import MOST_CONTROLS, Drawing, Edit, Generation, Variation, from_form, from_json
from ddim.serving.pictures import Sent, from_base64, read_controls, read_image, read_mask
from ddim.serving.pool import Pool
from ddim.serving.refusal import Refusal
from ddim.serving.runs import Run, Stream, vary_aside
from ddim.serving.store import Store
from ddim.serving.variations import check_inversion
from ddim.serving.wishes import wish

__all__ = [
    "FILES",
    "ClientGoneError",
    "Host",
    "Options",
    "Server",
    "add_counting",
    "add_looking",
    "create_app",
    "guard",
    "while_there",
    "within",
]

FILES = "/v1/images/files/"  # where pictures wait that are fetched by their address

# What needs no key: whether the process lives, and the documentation, which is the same everywhere. Pictures in the
# store need none either, as their names are secrets of their own.
_OPEN = ("/health", "/ready", "/docs", "/openapi.json")

Result = TypeVar("Result")
Asked = TypeVar("Asked", bound=Drawing)

_EVERY = 10.0  # seconds between two lines of the log that say how fast pictures are drawn
_GIVEN_BACK = 5.0  # seconds between two times that freed memory is given back, which costs a part of one step


@dataclass(frozen=True)
class Options:
    """How a server is to be.

    Attributes:
        limits: of requests.
        keys: of which every request needs one.
        origins: of pages in browsers that may draw, such as https://example.org.
        store_bytes, store_seconds: how much is kept of what is fetched by an address, and how long.
        address: where clients find this server, such as https://example.org; None is how a request came here.
        logs_prompts: whether the log has the prompts.
        draws: whether pictures can be asked for; a page at the root may be all that is wanted.
        tells: whether requests are counted and logged here; those of a replica are where they come in.
    """

    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    origins: tuple[str, ...] = ()
    store_bytes: int = 256 * MIB
    store_seconds: float = 3600.0
    address: str | None = None
    logs_prompts: bool = False
    draws: bool = True
    tells: bool = True


class Host(Protocol):
    """What takes requests in: a `Server`, or the `Front` of several.

    Attributes:
        options: how it is to be.
        limits: of requests.
        is_closing: no more requests are taken.
        has_page: a page is at the root, whose addresses are all that are not the API's own, and need no key.
        metrics: what is counted here.
        names: of the models that can be asked for.
        opening: how many of them are being loaded in this process.
    """

    options: Options
    limits: Limits
    is_closing: bool
    has_page: bool
    metrics: Metrics

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def opening(self) -> int: ...

    async def ready(self) -> Response:
        """Whether a picture can be drawn now. To ask loads the first model, if none is there."""

    async def counted(self) -> bytes:
        """What is counted and measured, in Prometheus' text format."""


class Server:
    """What all requests share.

    Attributes:
        is_closing: no more requests are taken.
        has_page: a page is at the root, whose addresses are all that are not this server's own, and need no key.
    """

    def __init__(self, pool: Pool, options: Options) -> None:
        self.pool, self.options, self.limits = pool, options, options.limits
        self.store = Store(options.store_bytes, options.store_seconds)
        self.metrics = Metrics(OfEngines(pool, self.store))
        self.room = Room(options.limits.all_bytes)
        self.decoder = ThreadPoolExecutor(1, "ddim-decode")  # one picture at a time, whatever its size
        self.is_closing = self.has_page = False
        self._loading: asyncio.Task[None] | None = None
        self._load_error = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The models that can be asked for."""
        return self.pool.names

    @property
    def opening(self) -> int:
        """How many models are being loaded."""
        return self.pool.opening

    # --- drawing -----------------------------------------------------------------------------------------------------

    async def draw(
        self,
        request: Request,
        asked: Drawing,
        prefix: str,
        sent: Sent | None = None,
    ) -> Response:
        """The answer to a request for pictures.

        Args:
            prefix: of the types of events.
            sent: the pictures that came with it.

        Raises:
            Refusal: it cannot be followed.
        """
        about, started = _about(request.scope), time.monotonic()
        name = self.pool.name_of(asked.model)
        identifier = identifier_of(asked)
        about |= {"model": name, "n": asked.n, "user": None if identifier is None else identifier[:64]}
        if self.options.logs_prompts:
            about["prompt"] = getattr(asked, "prompt", None)

        async def taken() -> Run:
            model = await self.pool.take(name)
            try:
                wanted = await asyncio.to_thread(
                    wish, name, model.pipe, asked, self.limits, *(sent or Sent()), model.control_scales
                )
                answer = Answer(name, model.pipe, wanted, prefix)
                about.update(seed=wanted.seed, size=f"{wanted.size[0]}x{wanted.size[1]}")
                return Run(model, answer, lambda: self.pool.leave(name))
            except BaseException:
                self.pool.leave(name)
                raise

        run = await while_there(request, within(self.limits.deadline, taken()))
        with contextlib.ExitStack() as stack:
            stack.callback(run.end)
            left = self.limits.deadline - (time.monotonic() - started)
            if isinstance(asked, Variation) and (asked.method == "inversion" or not run.model.pipe.draws_texts):
                work = vary_aside(run, left)
            else:
                await run.submit(left)
                if getattr(asked, "stream", False):
                    stack.pop_all()
                    return Stream(run, self._seen(name, started, about))
                work = run.pictures()
            files, settings = await while_there(request, work)
        seconds = time.monotonic() - started
        self.metrics.seconds.labels(name, about["route"]).observe(seconds)
        about["steps"] = settings.get("steps")
        store = self.store if asked.response_format == "url" else None
        where = (self.options.address or str(request.base_url)).rstrip("/") + FILES
        headers = {"X-DDIM-Seed": str(run.answer.wish.seed)}
        if store is None:  # pictures of megabytes are not written as text here, where all requests wait
            return await asyncio.to_thread(lambda: JSONResponse(run.answer.body(files, settings), headers=headers))
        try:
            return JSONResponse(run.answer.body(files, settings, store, where), headers=headers)
        except ValueError as error:
            raise Refusal(f"{error}: ask for response_format b64_json", "response_format") from error

    async def read_form(self, request: Request, kind: type[Asked]) -> tuple[Asked, Sent]:
        """What a form asks for, and its pictures, decoded; the memory of the body is free again.

        Raises:
            Refusal: it cannot be followed.
        """
        async with read_form(request, self.limits, self.room) as form:
            asked = from_form(kind, form.fields)
            one = {Edit: ("image", "mask"), Variation: ("image",)}.get(kind, ())
            files, shown = _files(form, one)
            if isinstance(asked, Variation):
                check_inversion(asked, bool(shown or asked.control_image))
            self.pool.name_of(asked.model)
            return asked, await self.decoded(asked, files, shown)

    async def read_json(self, request: Request, kind: type[Asked]) -> tuple[Asked, Sent]:
        """The same of a body in JSON, in which pictures are base64.

        Raises:
            Refusal: it cannot be followed.
        """
        async with read_json(request, self.limits, self.room) as body:
            asked = from_json(kind, body)
            self.pool.name_of(asked.model)
            return asked, await self.decoded(asked)

    async def decoded(
        self, asked: Drawing, files: Mapping[str, bytes] | None = None, shown: Sequence[bytes] = ()
    ) -> Sent:
        """The pictures of a request.

        Args:
            files: of the image and the mask.
            shown: the files for ControlNets.

        Raises:
            Refusal: one is none.
        """
        texts = [asked.control_image] if isinstance(asked.control_image, str) else asked.control_image or []
        if texts and shown:
            raise Refusal("control_image is there as files and as base64: give one of them", "control_image")

        def decode() -> Sent:
            image = mask = None
            if files:
                image = read_image(files["image"], self.limits)
                mask = read_mask(files["mask"], image.size, self.limits) if "mask" in files else None
            controls = shown or [from_base64(text, "control_image") for text in texts]
            return Sent(image, mask, tuple(read_controls(controls, self.limits)))

        asked.control_image = None  # which would keep the texts
        if not (files or shown or texts):
            return Sent()
        return await asyncio.get_running_loop().run_in_executor(self.decoder, decode)

    def _seen(self, model: str, started: float, about: dict[str, Any]) -> Callable[[str], None]:
        """What a stream tells of its way: "partial" for its first picture, and "completed" at the end."""

        def seen(what: str) -> None:
            seconds = time.monotonic() - started
            if what == "partial":
                self.metrics.first_partial.labels(model).observe(seconds)
            else:
                self.metrics.seconds.labels(model, about["route"]).observe(seconds)

        return seen

    # --- whether it can draw -----------------------------------------------------------------------------------------

    async def ready(self) -> Response:
        """Whether a picture can be drawn now. To ask loads the first model, if none is there."""
        if self.is_closing:
            return JSONResponse({"status": "closing"}, 503)
        if self.pool.loaded:
            return JSONResponse({"status": "ready", "models": [model.name for model in self.pool.loaded]})
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_first())
        return JSONResponse({"status": self._load_error or "loading"}, 503, {"Retry-After": "2"})

    async def _load_first(self) -> None:
        name = self.pool.names[0]
        try:
            await self.pool.take(name)
            self.pool.leave(name)
            self._load_error = ""
        except Refusal as error:
            self._load_error = error.message
        finally:
            self._loading = None

    async def counted(self) -> bytes:
        """What is counted and measured, in Prometheus' text format."""
        return self.metrics.text()

    async def give_back_memory(self) -> None:
        """Give freed memory back to the system, again and again."""
        while True:
            await asyncio.sleep(_GIVEN_BACK)
            await asyncio.to_thread(give_back)

    async def tell_rates(self) -> None:
        """Say in the log how fast each model draws, as long as it does."""
        before: dict[str, tuple[int, int]] = {}
        while True:
            await asyncio.sleep(_EVERY)
            for model in self.pool.loaded:
                stats = model.engine.stats()
                steps, images = before.get(model.name, (0, 0))
                before[model.name] = (stats.steps, stats.finished)
                if stats.running or stats.queued or stats.steps != steps:
                    tell(
                        "drawing",
                        model=model.name,
                        images_a_second=round((stats.finished - images) / _EVERY, 3),
                        steps_a_second=round((stats.steps - steps) / _EVERY, 2),
                        running=stats.running,
                        queued=stats.queued,
                        max_batch=stats.max_batch,
                    )


async def within(seconds: float, work: Awaitable[Result]) -> Result:
    """What comes of something that may take so many seconds.

    Raises:
        Refusal: it takes longer.
    """
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise Refusal(
            f"it took longer than {seconds:g} seconds", status=504, code="deadline", headers={"X-Should-Retry": "false"}
        ) from error


async def while_there(request: Request, work: Awaitable[Result]) -> Result:
    """What comes of something, as long as the client waits for it: when it goes away, the work is cancelled.

    Raises:
        ClientGoneError: the client went away.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


class ClientGoneError(Exception):
    """Whoever sent a request does not wait for its answer any more."""


def _about(scope: Scope) -> dict[str, Any]:
    """What the log says of a request."""
    about: dict[str, Any] = scope.setdefault("ddim", {})
    return about


class _Every:
    """What happens to every request: it gets an id, needs a key, is answered whatever happens, counted and logged."""

    def __init__(self, app: ASGIApp, server: Host) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        about = _about(scope)
        about.setdefault("request", f"req_{secrets.token_hex(12)}")  # that of a replica has one where it came in
        about["route"] = "other"

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = about["request"]
                headers["X-Content-Type-Options"] = "nosniff"
                if self._server.is_closing:
                    headers["Connection"] = "close"
            await send(message)

        error: Exception | None = None
        try:
            self._admit(scope)
            await self._app(scope, receive, answering)
        except Refusal as refusal:
            await refused(scope, refusal)(scope, receive, answering)
        except (ClientGoneError, OSError):
            status = status or 499
        except Exception as fault:
            error = fault
            if not status:
                await refused(scope, _fault())(scope, receive, answering)
        except asyncio.CancelledError:
            status = status or 503
            raise
        finally:
            self._tell(scope, status, time.perf_counter() - started, error)

    def _admit(self, scope: Scope) -> None:
        """Raise a `Refusal` for a request that may not come in."""
        headers = Headers(scope=scope)
        path, options = scope["path"], self._server.options
        if path in _OPEN or path.startswith(FILES):
            return
        if not self._server.has_page or path.startswith("/v1/") or path == "/metrics":  # a page has its own door
            if not options.keys:
                check_origin(headers.get("origin"), options.origins)
            options.keys.check(headers.get("authorization"))
        if self._server.is_closing:
            raise Refusal(
                "the server is about to end: send it again in a moment",
                status=503,
                code="closing",
                headers={"Retry-After": "5"},
            )

    def _tell(self, scope: Scope, status: int, seconds: float, error: Exception | None) -> None:
        about = _about(scope)
        if scope["path"] in _OPEN and status in (200, 503) and error is None:
            return  # what is asked every few seconds would fill the log
        if self._server.has_page and about["route"] == "other" and status < 500 and error is None:
            return  # what a page is made of
        known = about.get("model", "")
        if not self._server.options.tells:
            if error is not None:
                tell("fault", level=logging.ERROR, error=error, request=about["request"])
            return
        self._server.metrics.requests.labels(known, about["route"], str(status)).inc()
        tell(
            "request",
            level=logging.ERROR if error is not None else logging.INFO,
            error=error,
            method=scope["method"],
            status=status,
            seconds=round(seconds, 3),
            **about,
        )


def refused(scope: Scope, refusal: Refusal) -> Response:
    """The answer to a request that is not followed."""
    about = _about(scope)
    about["refused"] = refusal.code or refusal.param or refusal.status
    return JSONResponse(refusal.body(about["request"]), refusal.status, refusal.headers)


def _fault() -> Refusal:
    """What is said of a fault of the server's own."""
    return Refusal("the server has a fault of its own; its log has more, under the request's id", status=500)


def create_app(pool: Pool, options: Options | None = None) -> FastAPI:
    """The application of a server.

    Args:
        pool: its models.
        options: how it is to be; the defaults are for this machine alone.
    """
    server = Server(pool, options or Options())

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        care = [asyncio.create_task(work()) for work in (server.tell_rates, server.give_back_memory)]
        yield
        for task in care:
            task.cancel()
        await pool.close()
        server.decoder.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="ddim",
        version=__version__,
        description="Pictures by OpenAI's images API, and what DDIM has beyond it.",
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
        lifespan=life,
        responses=ERRORS,
    )
    app.state.server = server
    guard(app, server)
    add_looking(app, server)
    if server.options.draws:
        _add_drawing(app, server)
        _add_models(app, server)
        add_counting(app, server)
    return app


def guard(app: FastAPI, server: Host) -> None:
    """Have every request of an application go through what happens to all of them."""
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(_Every, server=server)
    if server.options.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(server.options.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "X-DDIM-Seed", "Retry-After"],
        )
    app.add_middleware(PatientSend, seconds=server.limits.send_seconds)


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refused(request.scope, error)


async def _on_http(request: Request, error: Exception) -> Response:
    """What the router says: there is no such address, or not by this method."""
    assert isinstance(error, HTTPException)
    what = "there is nothing at this address" if error.status_code == 404 else str(error.detail).lower()
    return refused(
        request.scope,
        Refusal(f"{request.method} {request.url.path[:100]}: {what}", status=error.status_code, headers=error.headers),
    )


def _route(request: Request, name: str) -> None:
    _about(request.scope)["route"] = name


def _add_drawing(app: FastAPI, server: Server) -> None:
    @app.post("/v1/images/generations", openapi_extra=json_or_form_body(Generation), tags=["images"])
    async def generate(request: Request) -> Response:
        """Draw pictures of a text, of a class, or of nothing in particular.

        The body is JSON, or a form, in which what a ControlNet is shown may be files.
        """
        _route(request, "generations")
        read = server.read_form if media_type(request) == "multipart/form-data" else server.read_json
        asked, sent = await read(request, Generation)
        return await server.draw(request, asked, "image_generation", sent)

    @app.post("/v1/images/edits", openapi_extra=form_body(Edit, "image", "mask"), tags=["images"])
    async def edit(request: Request) -> Response:
        """Paint a picture anew, as a whole or where the mask's alpha is 0."""
        _route(request, "edits")
        asked, sent = await server.read_form(request, Edit)
        return await server.draw(request, asked, "image_edit", sent)

    @app.post("/v1/images/variations", openapi_extra=form_body(Variation, "image"), tags=["images"])
    async def vary(request: Request) -> Response:
        """Draw pictures like another one: through a part of noise, or near its own noise."""
        _route(request, "variations")
        asked, sent = await server.read_form(request, Variation)
        return await server.draw(request, asked, "image_variation", sent)

    @app.get(FILES + "{name}", tags=["images"], response_class=Response, responses=PICTURE)
    async def fetch(request: Request, name: str) -> Response:
        """A picture that was asked for with response_format url."""
        _route(request, "files")
        kept = server.store.get(name)
        if kept is None:
            raise Refusal("there is no such picture, or not any more", status=404, code="not_found")
        seconds = int(server.options.store_seconds)
        return Response(kept.data, media_type=kept.media_type, headers={"Cache-Control": f"private, max-age={seconds}"})


def _files(form: Form, names: tuple[str, ...]) -> tuple[dict[str, bytes], list[bytes]]:
    """The files of a form: one of each name, of which the first has to be there, and those for ControlNets.

    Raises:
        Refusal: one is missing, or there are others.
    """
    found: dict[str, bytes] = {}
    shown: list[bytes] = []
    for given, files in form.files.items():
        name = given.removesuffix("[]")
        if name in _OTHER_FILES:
            raise Refusal(
                f"{name} cannot be followed: say with a mask where to paint", name, code="unsupported_parameter"
            )
        if name == "control_image":
            shown += files
            continue
        if name not in names:
            there = " and ".join((*names, "control_image"))
            raise Refusal(f"there is no file {name[:100]} here: there is {there}", name[:100])
        if len(files) > 1 or name in found:
            raise Refusal(f"{name}: one picture is taken, not several", name)
        found[name] = files[0]
    if names and names[0] not in found:
        raise Refusal(f"{names[0]} is missing: send the file of a picture", names[0])
    if len(shown) > MOST_CONTROLS:
        raise Refusal(f"control_image is there {len(shown)} times, and {MOST_CONTROLS} are the most", "control_image")
    return found, shown


_OTHER_FILES = ("markup",)


def add_looking(app: FastAPI, server: Host) -> None:
    """Add the routes that say whether the server lives, and whether it can draw."""

    @app.get("/health", tags=["server"])
    async def health() -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "alive"}

    @app.get("/ready", tags=["server"], responses={503: {"description": "It cannot, now."}})
    async def ready() -> Response:
        """Whether it can draw; the first model is loaded if none is there."""
        return await server.ready()


def _add_models(app: FastAPI, server: Server) -> None:
    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": server.pool.created, "owned_by": "ddim"}

    @app.get("/v1/models", tags=["models"])
    async def models(request: Request) -> dict[str, Any]:
        """The models of this server."""
        _route(request, "models")
        return {"object": "list", "data": [described(name) for name in server.pool.names]}

    @app.get("/v1/models/{name:path}", tags=["models"])
    async def model(request: Request, name: str) -> dict[str, Any]:
        """One of them."""
        _route(request, "models")
        return described(server.pool.name_of(name))


def add_counting(app: FastAPI, server: Host) -> None:
    """Add the route of what is counted."""

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def metrics(request: Request) -> Response:
        """What is counted and measured, for Prometheus."""
        _route(request, "metrics")
        return Response(await server.counted(), media_type=METRICS_TYPE)
