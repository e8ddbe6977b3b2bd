"""Ray: a cluster of this machine's own processes, or one that is there already; and what each node needs."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
import socket
from collections.abc import Iterator
from typing import Any

from ddim._version import __version__
from ddim.errors import ConfigError, require

__all__ = ["check_nodes", "installed", "joined", "threads_each", "threads_told"]

_PATIENCE = 10.0  # seconds within which a cluster answers
_STORE = 512 * 2**20  # bytes of the memory that processes of this machine hand large things to each other in


@contextlib.contextmanager
def joined(address: str | None, cpus: int | None = None) -> Iterator[Any]:
    """The module `ray`, connected to a cluster as long as this lasts.

    A process that has joined a cluster already stays in that. A cluster of this machine's own listens at loopback,
    has no dashboard, and ends with this. Neither it nor the connection to another one tells the makers of Ray how it is
    used, unless the environment says so.

    Args:
        address: of a cluster, or "auto"; None starts one of this machine alone.
        cpus: which that one is to have; as many as this process may use unless told.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there is no cluster at this address, or it has another version of Ray or Python.
    """
    if address is not None:
        _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the usual of later versions, else it warns
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # by which Ray listens at loopback alone
    ray = require("ray", "scale")
    if ray.is_initialized():
        yield ray
        return
    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": cpus or len(os.sched_getaffinity(0))}
    try:
        ray.init(
            address="local" if address is None else address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace=f"ddim-{secrets.token_hex(4)}",
            **({**local, "object_store_memory": _STORE} if address is None else {}),
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        if address is None:
            raise ConfigError(f"Ray cannot be started here: {error}") from error
        raise ConfigError(f"--ray-address {address}: there is no cluster of Ray that can be joined: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise a ConfigError if nothing listens at HOST:PORT: Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--ray-address {address} does not answer ({error}): start a cluster by `ray start --head`, which says its "
            "address"
        ) from error


def check_nodes(ray: Any) -> None:
    """Look at what each node of a cluster has installed.

    Raises:
        ConfigError: it is not what is installed here; the message names the node, and what to do.
    """
    here = installed()
    strategy = require("ray.util.scheduling_strategies", "scale").NodeAffinitySchedulingStrategy
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            place = strategy(node["NodeID"], soft=False)
            asked[node["NodeManagerAddress"]] = ray.remote(installed).options(num_cpus=0, scheduling_strategy=place)
    for address, remote in asked.items():
        try:
            there = ray.get(remote.remote(), timeout=120)
        except Exception as error:  # of unpickling, of Ray, of imports: all of them mean that it cannot be run there
            raise ConfigError(
                f"ddim does not run on the node {address}: install it there by pip install "
                f"'ddim[scale]=={__version__}' ({str(error).strip().splitlines()[-1]})"
            ) from error
        for name, version in here.items():
            if there[name] != version:
                raise ConfigError(
                    f"the node {address} has {name} {there[name]}, and this machine has {version}: install the same"
                )


def installed() -> dict[str, str]:
    """The versions of what has to be the same on all nodes."""
    import torch

    return {"Python": ".".join(platform.python_version_tuple()[:2]), "ddim": __version__, "torch": torch.__version__}


def threads_each(count: int, cores: list[int]) -> int:
    """How many threads each of several processes is to have, so that all find room on the nodes; at least 1.

    Args:
        count: of processes.
        cores: of each node.

    >>> [threads_each(*each) for each in ((2, [8]), (3, [8]), (4, [2]), (3, [4, 4]), (1, [4, 4]))]
    [4, 2, 1, 2, 4]
    """
    return next((each for each in range(max(cores), 1, -1) if sum(n // each for n in cores) >= count), 1)


def threads_told(threads: int) -> int:
    """So many threads, or fewer if OMP_NUM_THREADS says so, as PyTorch would have it."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(told)) if told.isdecimal() and int(told) else threads
