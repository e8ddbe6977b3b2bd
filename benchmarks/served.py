"""A `ddim serve` of its own process on loopback, and plain clients of it, for what measures servers."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: where it listens at 127.0.0.1.
        process: of it.
    """

    port: int
    process: subprocess.Popen[bytes]

    def connect(self, timeout: float = 620.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def metrics(self) -> dict[str, float]:
        """Each figure of /metrics, by its name and labels."""
        with contextlib.closing(self.connect(30)) as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def in_flight(self) -> int:
        """Pictures that wait or are being drawn."""
        return int(sum(n for name, n in self.metrics().items() if name.startswith(("ddim_queued{", "ddim_running{"))))

    def resident(self) -> int:
        """The bytes of memory that the process holds."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> int:
        """End it in order; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def served(models: Sequence[str], *options: str) -> Iterator[Server]:
    """A server of models, killed at the end if it still runs.

    Raises:
        RuntimeError: it did not start; has its log.
    """
    command = [sys.executable, "-m", "ddim", "serve", "--port", "0", "--log-format", "json", *options]
    command += [part for model in models for part in ("--model", model)]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield Server(_port(process, log), process)
        finally:
            process.kill()


def _port(process: subprocess.Popen[bytes], log: Any) -> int:
    for _ in range(6000):  # five minutes: a busy machine takes its time
        # The process writes at its own place in the file: os.pread moves nothing.
        told = os.pread(log.fileno(), 1 << 20, 0).decode()
        found = re.search(r'"at": "http://127.0.0.1:(\d+)"', told)
        if found:
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"ddim serve did not start:\n{told}")


def body(asked: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> tuple[bytes, dict[str, str]]:
    """(content, headers) of a request: JSON, or with files, of PNGs, a form."""
    if not files:
        return json.dumps(asked).encode(), {"Content-Type": "application/json"}
    fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in asked.items()}
    pictures = {name: (f"{name}.png", content, "image/png") for name, content in files.items()}
    form = httpx.Request("POST", "http://127.0.0.1", data=fields, files=pictures)
    return form.read(), {"Content-Type": form.headers["Content-Type"]}


def post(
    connection: http.client.HTTPConnection,
    asked: Mapping[str, Any],
    route: str = "generations",
    files: Mapping[str, bytes] | None = None,
) -> http.client.HTTPResponse:
    """The answer to a request for pictures, of which only the head has been read."""
    connection.request("POST", f"/v1/images/{route}", *body(asked, files))
    return connection.getresponse()


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream."""
    for line in response:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def picture(b64: str) -> Image.Image:
    opened = Image.open(io.BytesIO(base64.b64decode(b64)))
    opened.load()
    return opened
