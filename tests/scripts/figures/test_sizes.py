"""scripts/figures/sizes.py: what an installation takes on the disk."""

from __future__ import annotations

from importlib.metadata import distribution

import pytest
from program import script

sizes = script("figures/sizes")


def test_what_a_package_needs_is_found_to_the_end() -> None:
    alone = sizes.packages("ddim")
    assert {"ddim", "torch", "numpy", "tqdm", "sympy"} <= alone  # sympy is torch's
    assert "matplotlib" not in alone
    assert {"matplotlib", "contourpy"} <= sizes.packages("ddim", ["plot"])


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no-such-package is not installed"):
        sizes.packages("no-such-package")


def test_its_files_are_what_a_package_takes() -> None:
    files = [file.locate() for file in distribution("tqdm").files or ()]
    exact = sum(path.stat().st_size for path in files if path.is_file())
    assert exact <= sizes.on_disk("tqdm") < exact + 4096 * len(files)
