"""A server of ours in a thread of the test's own process, and clients of it."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from fastapi import FastAPI
from PIL import Image

from ddim.pipelines import DiffusionPipeline
from ddim.serving.api import Options, create_app
from ddim.serving.pool import Pool
from ddim.serving.running import Running, listening


@dataclass
class Served:
    """A running server.

    Attributes:
        url: such as http://127.0.0.1:1234.
        port: of it.
        running: the server itself.
        pool: its models.
    """

    url: str
    port: int
    running: Running
    pool: Pool
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client, which tries once unless told; it is closed with the server."""
        made = openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})
        self.clients.append(made)
        return made

    def connect(self, timeout: float = 10.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)


@contextlib.contextmanager
def serving(
    models: Mapping[str, Callable[[], DiffusionPipeline]], options: Options | None = None, **more: Any
) -> Iterator[Served]:
    """A server on loopback.

    Args:
        models: what loads each.
        more: of `Pool`; and `grace`, of `Running`.
    """
    grace = more.pop("grace", 5.0)
    pool = Pool(models, lambda name: models[name](), **more)
    with taking_in(create_app(pool, options), pool, grace) as served:
        yield served


@contextlib.contextmanager
def taking_in(app: FastAPI, pool: Pool, grace: float = 5.0) -> Iterator[Served]:
    """An application on loopback.

    Args:
        pool: what draws for it, or a part of that.
        grace: of `Running`.
    """
    sock = listening("127.0.0.1", 0)
    port = sock.getsockname()[1]
    running = Running(app, grace=grace)
    thread = threading.Thread(target=lambda: running.run(sockets=[sock]))
    thread.start()
    try:
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.005)
        served = Served(f"http://127.0.0.1:{port}", port, running, pool)
        yield served
        for client in served.clients:
            client.close()
    finally:
        running.handle_exit(15)
        thread.join(30)
        assert not thread.is_alive()


def quiet(name: str) -> Callable[[], DiffusionPipeline]:
    """What loads a model that shows no progress."""

    def load() -> DiffusionPipeline:
        pipe = DiffusionPipeline.from_pretrained(name)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


def opened(image: Any) -> Image.Image:
    """The picture in a part of an answer."""
    picture = Image.open(io.BytesIO(base64.b64decode(image.b64_json)))
    picture.load()
    return picture


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def exchange(served: Served, sent: bytes, timeout: float = 10.0) -> bytes:
    """All that comes back for raw bytes until the server closes the connection."""
    with served.connect(timeout) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(sent)
        return received(sock)


def received(sock: socket.socket) -> bytes:
    """All that still comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


def eventually(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.01)


@contextlib.contextmanager
def process(log: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A `ddim serve` of its own, and the port that it took."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ddim", "serve", "--log-format", "json", "--backend", "eager", *options]
    with open(log, "wb") as file, subprocess.Popen(command, stderr=file, env=environment) as running:
        try:
            eventually(lambda: running.poll() is not None or b'"serving"' in log.read_bytes(), 180)
            found = re.search(r'"at": "http://127.0.0.1:(\d+)"', log.read_text())
            assert found, log.read_text()
            yield running, int(found[1])
        finally:
            running.kill()
