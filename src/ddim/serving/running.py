"""The process of a server: its socket, its signals, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ddim.errors import ConfigError
from ddim.serving.connections import protocol
from ddim.serving.logs import tell

__all__ = ["Running", "address_of", "listening", "serve"]

_CONNECTIONS = 1000  # at a time
_HEADERS = 32_768  # bytes of a request's headers
_KEEP_ALIVE = 30  # seconds that a connection waits for its next request


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: a name or an address.
        port: 0 takes a free one.

    Raises:
        ConfigError: the host is none of this machine's, or the port is taken.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, number)
    except OSError as error:
        raise ConfigError(f"--host {host} is no address of this machine: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise ConfigError(f"--host {host} --port {port} cannot be listened at: {error.strerror}") from error
    return sock


class Running(uvicorn.Server):
    """A server that SIGTERM and SIGINT end in order, and whose process then ends with 0.

    Args:
        app: of `create_app`, or of `create_front`.
        grace: for how many seconds, after such a signal, what runs may go on.
    """

    def __init__(self, app: FastAPI, *, grace: float = 30.0) -> None:
        self.app = app
        limits = app.state.server.limits
        super().__init__(
            uvicorn.Config(
                self.app,
                http=protocol(limits.header_seconds, _CONNECTIONS),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=_HEADERS,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=max(1, round(grace)),
            )
        )
        self._signals: list[int] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Follow signals as long as this lasts. Uvicorn would send itself the signal again, and so not end with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None = None) -> None:
        """Begin to end; a second signal ends at once."""
        self.app.state.server.is_closing = True
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(
    app: FastAPI, sock: socket.socket, *, grace: float = 30.0, opened: Callable[[str], object] | None = None
) -> None:
    """Serve until a signal ends it.

    Args:
        app, grace: see `Running`.
        sock: that listens.
        opened: called with the server's address, in a thread of its own, once it answers.
    """
    server = Running(app, grace=grace)
    host = app.state.server
    address = address_of(sock)
    tell("serving", at=address, models=",".join(host.names), keys="needed" if host.options.keys else "none")
    started = time.monotonic()
    if opened is not None:
        threading.Thread(target=_when_started, args=(server, opened, address), daemon=True).start()
    server.run(sockets=[sock])
    tell("ended", seconds=round(time.monotonic() - started, 1))
    if host.opening:  # Python cannot end in order while a thread is in the midst of loading a model
        sys.stderr.flush()
        os._exit(0)


def address_of(sock: socket.socket) -> str:
    """Where a socket that listens is found: an address for browsers."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _when_started(server: Running, opened: Callable[[str], object], address: str) -> None:
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.02)
    opened(address)
