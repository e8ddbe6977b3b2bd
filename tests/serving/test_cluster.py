"""What is looked at on the nodes of a cluster before anything is run there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clusters import two_nodes

from ddim._version import __version__
from ddim.errors import ConfigError
from ddim.serving import cluster
from ddim.serving.cluster import _check_node, _looking, check_nodes, installed, joined, threads_told

HERE: dict[str, str] = {"Python": "3.12", "ddim": __version__, "torch": "2.9.0+cpu"}

# Put before everything in each process: a module of one name is not found, or ddim has another version.
CHANGED = """
import importlib.util, os, sys
class Changed:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == os.environ.get("HIDDEN"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == "ddim._version" and "OTHER" in os.environ:
            return importlib.util.spec_from_loader(name, self)
        return None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        module.__version__ = os.environ["OTHER"]
sys.meta_path.insert(0, Changed())
"""


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({}, ""),
        ({"torch": "2.9.0+cu128"}, ""),
        (
            {"torch": "2.8.0"},
            r"has torch 2\.8\.0, and this machine has 2\.9\.0\+cpu: .* by pip install 'torch==2\.9\.0'",
        ),
        ({"ddim": "0.1"}, rf"has ddim 0\.1, and this machine has {__version__}: .*pip install 'ddim\[scale,serve\]=="),
        ({"Python": "3.11"}, r"has Python 3\.11, and this machine has 3\.12: use Python 3\.12 there"),
        ({"torch": None}, r"has no torch: install it there, by pip install 'ddim\[scale,serve\]=="),
        ({"pydantic": None, "PIL": None}, "has no PIL and no pydantic: install it there"),
    ],
)
def test_what_a_node_lacks_is_said(there: dict[str, str | None], message: str) -> None:
    needed = {"ddim": "", "torch": "", "PIL": "", "pydantic": "serve"}
    found = {**HERE, "PIL": "11", "pydantic": "2", **there}
    if not message:
        _check_node("10.0.0.7", found, HERE, needed)
        return
    with pytest.raises(ConfigError, match=f"^the node 10.0.0.7 {message}"):
        _check_node("10.0.0.7", found, HERE, needed)


def test_a_node_says_what_it_has() -> None:
    found = _looking()(["ddim", "torch", "nothing_of_this_name"])
    assert found == {**installed(), "nothing_of_this_name": None}


@pytest.mark.slow
def test_the_code_that_looks_needs_nothing_of_ours() -> None:
    """It is sent to a node that may not have this package."""
    import ray.cloudpickle as cloudpickle

    program = (
        "import sys, ray.cloudpickle as pickle; sys.modules['ddim'] = None; "
        "print(pickle.load(sys.stdin.buffer)(['ddim', 'json'])['ddim'])"
    )
    sent = cloudpickle.dumps(_looking())
    assert subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True).stdout == b"None\n"


def test_threads_are_as_many_as_the_environment_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert (threads_told(4), threads_told(1)) == (2, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert threads_told(4) == 4


def test_a_cluster_that_may_ask_for_a_token_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself says only that it could not connect."""
    import ray

    def refuses(**given: Any) -> None:
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(ray, "init", refuses)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "_check_answers", lambda address: None)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    hint = r"Failed to connect; if it asks for a token, copy .* RAY_AUTH_MODE=token"
    with pytest.raises(ConfigError, match=hint), joined("10.0.0.1:6379"):
        pass
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ConfigError, match=r"can be joined: Failed to connect$"), joined("10.0.0.1:6379"):
        pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"HIDDEN": "ddim"}, f"has no ddim: install it there, by pip install .*=={__version__}'"),
        ({"HIDDEN": "torch"}, "has no torch: install it there"),
        ({"OTHER": "0.0.1"}, rf"has ddim 0\.0\.1, and this machine has {__version__}: install it there"),
    ],
    ids=str,
)
def test_a_node_without_the_software_is_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(CHANGED)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    refused = pytest.raises(ConfigError, match=f"^the node [0-9.]+ {message}")
    with two_nodes(PYTHONPATH=path, **changes) as nodes, joined(nodes.address) as ray, refused:
        check_nodes(ray)
