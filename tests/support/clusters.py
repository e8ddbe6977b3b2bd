"""Clusters of Ray of two raylets on loopback, which are two nodes to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def two_nodes(**second: str) -> Iterator[Any]:
    """A cluster of two nodes of one processor each; `second` is what the second one's environment has beside ours.

    It is Ray's own `Cluster`, with `address`, and `second`, the node.
    """
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False},
    )
    try:
        made.second = made.add_node(num_cpus=1, object_store_memory=80_000_000, env_vars={**os.environ, **second})
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


def raylet(node: Any) -> int:
    """The process of a node, whose children are the workers on it."""
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def parent(pid: int) -> int:
    """The process that has started another one; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
