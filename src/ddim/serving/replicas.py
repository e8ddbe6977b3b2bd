"""The replicas of a server as actors of Ray Serve, which hands each request to the one that has the least to do."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import platform
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from fastapi import FastAPI
from starlette.types import Message, Scope

from ddim.errors import ConfigError, require
from ddim.serving.front import ReplicaLostError
from ddim.serving.logs import LOG, log_to, tell
from ddim.serving.replica import Replica

__all__ = ["OnRay", "replicated"]

_ONGOING = 10_000  # requests of one replica: its engine's queue says when it is full, and Ray never does
_HEALTH = 1.0  # seconds between two looks whether a replica lives


class _Deployed(Replica):
    """A replica as Ray Serve starts it."""

    async def __init__(self, make_app: Callable[[], FastAPI], threads: int) -> None:  # type: ignore[misc]
        import torch

        torch.set_num_threads(threads)
        log = io.StringIO()
        self._logging = log_to(log, "json")
        self._logging.__enter__()  # until the process ends
        super().__init__(make_app, require("ray.serve", "scale").get_replica_context().replica_id.unique_id, log)
        tell("replica started", process=os.getpid(), node=platform.node(), threads=torch.get_num_threads())
        await self.start()

    async def __del__(self) -> None:
        await self.end()


class OnRay:
    """Replicas behind a handle of Ray Serve's; see `Replicas`."""

    def __init__(self, handle: Any) -> None:
        self._handle, self._answering = handle, handle.options(stream=True)

    async def answer(self, scope: Scope, body: bytes, is_closing: bool) -> AsyncGenerator[list[Message]]:
        response = self._answering.answer.remote(scope, body, is_closing)
        is_whole = False
        try:
            async for messages in response:
                yield messages
            is_whole = True
        except Exception as error:
            is_whole = True
            raise _lost(error) from error
        finally:
            if not is_whole:  # in a thread, as it waits until the request is somewhere
                asyncio.get_running_loop().run_in_executor(None, response.cancel)

    async def all(self, method: str, *arguments: Any) -> list[Any]:
        try:
            found = await self._handle.broadcast(method, *arguments).results_async(return_exceptions=True)
        except Exception as error:
            if isinstance(_lost(error), ReplicaLostError):
                return []
            raise
        return [each for each in found if not isinstance(each, BaseException)]


def _lost(error: Exception) -> Exception:
    """What an error of Ray's means to a request: its replica is lost. Those of the application stay as they are."""
    exceptions, serving = require("ray.exceptions", "scale"), require("ray.serve.exceptions", "scale")
    is_rays = isinstance(error, (exceptions.RayError, serving.RayServeException))
    if is_rays and not isinstance(error, exceptions.RayTaskError):
        return ReplicaLostError(str(error).strip().partition("\n")[0])
    return error


@contextlib.contextmanager
def replicated(ray: Any, make_app: Callable[[], FastAPI], count: int, threads: int, needs_gpu: bool) -> Iterator[OnRay]:
    """Replicas of an application, which end with this.

    Args:
        ray: the module, connected to a cluster; see `ddim.serving.cluster.joined`.
        make_app: makes the application in each process; it is pickled.
        count: of replicas.
        threads: of each.
        needs_gpu: whether they are to share the GPUs of the cluster.

    Raises:
        ConfigError: they cannot be started.
    """
    serve = require("ray.serve", "scale")
    log = logging.getLogger("ray.serve")
    log.handlers, log.propagate = LOG.handlers, False
    log.setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    resources = ray.cluster_resources()
    options: dict[str, Any] = {"num_cpus": min(threads, int(100 * resources.get("CPU", 0) / count) / 100)}
    if needs_gpu and resources.get("GPU"):
        options["num_gpus"] = min(1, int(100 * resources["GPU"] / count) / 100)
    name = f"ddim-{secrets.token_hex(4)}"
    deployment = serve.deployment(
        name="replica",
        num_replicas=count,
        max_ongoing_requests=_ONGOING,
        ray_actor_options=options,
        health_check_period_s=_HEALTH,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=1.0,
        logging_config=quiet,
    )(_Deployed)
    serve.start(proxy_location="Disabled", logging_config=quiet)  # without Ray's own door: requests come by the front
    try:
        handle = serve.run(deployment.bind(make_app, threads), name=name, route_prefix=None)
    except Exception as error:
        raise ConfigError(f"the replicas cannot be started: {error}") from error
    try:
        yield OnRay(handle)
    finally:
        serve.delete(name)
