"""One server for all tests that change nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import Served, quiet, serving


@pytest.fixture(scope="session")
def models() -> dict[str, Callable[[], Any]]:
    """The bundled models, which draw small pictures within a second."""
    return {name: quiet(name) for name in ("emoji", "digits")}


@pytest.fixture(scope="session")
def served(models: dict[str, Callable[[], Any]]) -> Iterator[Served]:
    with serving(models) as found:
        yield found
