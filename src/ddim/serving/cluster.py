"""Ray: a cluster of this machine's own processes, or one that is there already; and what each node needs."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ddim._version import __version__
from ddim.errors import ConfigError, require

__all__ = ["check_nodes", "installed", "joined", "threads_each", "threads_told"]

_PATIENCE = 10.0  # seconds within which a cluster answers
_LOOKING = 120.0  # seconds within which each node says what it has
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
        raise ConfigError(
            f"--ray-address {address}: there is no cluster of Ray that can be joined: {error}{_hint_of_token(address)}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _hint_of_token(address: str) -> str:
    """What to try, as a cluster that asks for a token only fails to answer who has none.

    `ray start --head` asks for one where one lies in the home folder, as it does after Ray has run there on its own.
    """
    if address == "auto" or "RAY_AUTH_MODE" in os.environ:
        return ""
    return "; if it asks for a token, copy ~/.ray/auth_token of its head, and set RAY_AUTH_MODE=token"


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


# What each node needs to draw, whatever the command, by the module's name; and which extra brings it, if one does.
_NEEDED = {
    "ddim": "", "torch": "", "numpy": "", "PIL": "", "safetensors": "", "tokenizers": "", "huggingface_hub": "",
    "tqdm": "", "tyro": "", "pydantic": "serve", "pyarrow": "scale",
}  # fmt: skip
_OF_SERVERS = {"fastapi": "serve", "prometheus_client": "serve", "python_multipart": "serve"}
_SAME = ("Python", "ddim", "torch")  # of which the versions are to be the same; what only differs after a + is


def check_nodes(ray: Any, *, serves: bool = False, needs: Mapping[str, str] | None = None) -> None:
    """Look at what each node of a cluster has installed.

    Args:
        ray: the module, connected to the cluster.
        serves: whether nodes are to serve.
        needs: further modules, and the extra of this package that brings each.

    Raises:
        ConfigError: something is missing or of another version; the message names the node, and what to do.
    """
    needed = {**_NEEDED, **(_OF_SERVERS if serves else {}), **(needs or {})}
    here = installed()
    strategy = require("ray.util.scheduling_strategies", "scale").NodeAffinitySchedulingStrategy
    look = ray.remote(num_cpus=0, max_retries=0)(_looking())
    asked = []
    for node in ray.nodes():
        if node["Alive"]:
            place = strategy(node["NodeID"], soft=False)
            asked.append((node["NodeManagerAddress"], look.options(scheduling_strategy=place).remote([*needed])))
    for address, answer in asked:
        try:
            there = ray.get(answer, timeout=_LOOKING)
        except Exception as error:  # of Ray, of what Ray needs: all of them mean that nothing can be run there
            raise ConfigError(
                f"nothing of Python's can be run on the node {address}: install there what is here, by pip install "
                f"'ddim[scale]=={__version__}' ({str(error).strip().splitlines()[-1]})"
            ) from error
        _check_node(address, there, here, needed)


def _check_node(
    address: str, there: Mapping[str, str | None], here: Mapping[str, str], needed: Mapping[str, str]
) -> None:
    """Raise a ConfigError if a node lacks something, or has another version of it."""
    extras = ",".join(sorted({"scale", *filter(None, needed.values())}))
    install = f"install it there, by pip install 'ddim[{extras}]=={__version__}'"
    missing = [name for name in needed if there[name] is None]
    if missing:
        raise ConfigError(f"the node {address} has no {' and no '.join(missing)}: {install}")
    for name in _SAME:
        version, its = here[name], str(there[name])
        if its.partition("+")[0] == version.partition("+")[0]:
            continue
        what = {"Python": f"use Python {version} there", "ddim": install}
        said = what.get(name, f"install the same there, by pip install '{name}=={version.partition('+')[0]}'")
        raise ConfigError(f"the node {address} has {name} {its}, and this machine has {version}: {said}")


def _looking() -> Callable[[list[str]], dict[str, str | None]]:
    """A function that looks at the modules of a node: {name: version}, None for one that is missing.

    It is made here, so that Ray sends its code, and not only the name of a module that may be missing.
    """

    def look(names: list[str]) -> dict[str, str | None]:
        import importlib
        import platform

        found: dict[str, str | None] = {"Python": ".".join(platform.python_version_tuple()[:2])}
        for name in names:
            try:
                module = importlib.import_module(name)
            except ImportError:
                found[name] = None
            else:
                found[name] = str(getattr(module, "__version__", ""))
        return found

    return look


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
