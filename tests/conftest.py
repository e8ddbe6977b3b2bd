"""What every test shares: reproducible Hypothesis runs, a fixed seed, and no waiting for the disk or the collector."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from thinned import thin
from tiny_models import classes, texts

__all__ = ["classes", "texts"]

settings.register_profile(
    "ddim",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ddim")


def pytest_configure() -> None:
    """Let Ctrl-C interrupt, here and in what is started, where a shell runs the tests in the background.

    Such a shell has its jobs ignore it, and so would what the tests interrupt.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave a few fast cases of the tests that are marked as `thin`."""
    thin(items)


def pytest_collection_finish() -> None:
    """Search less often for garbage in cycles, and never in what was imported: that search took a tenth of all time.

    With torch, diffusers and transformers imported, one full search takes a quarter of a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Each test starts from the same random state, and with gradients, whatever ran before it."""
    torch.manual_seed(0)
    with torch.enable_grad():
        yield


@pytest.fixture(scope="session", autouse=True)
def _disk_not_waited_for() -> Iterator[None]:
    """What is written need not outlive a power cut here, and waiting for the disk takes a slow machine minutes.

    That files are flushed is seen where the flush fails: in checkpoint/test_pretrained.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _hub_not_asked() -> Iterator[None]:
    """No test waits for the hub to answer: it is taken to be there, and what would be fetched is the test's own."""
    from ddim.checkpoint import hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "reachable", lambda: True)
        yield
