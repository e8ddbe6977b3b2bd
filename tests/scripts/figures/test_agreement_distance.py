"""The digits network under our sampler and under diffusers' gives the same distance to the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from program import script


@pytest.mark.slow
def test_diffusers_loop_gives_the_same_distance(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    found = script("figures/agreement_distance").compare(tmp_path, samples=60, steps=[4], seeds=[0, 1, 2], batch=60)
    ours, theirs = found["ddim"][4], found["diffusers"][4]
    assert ours == pytest.approx(theirs, abs=0.05 * np.std(ours, ddof=1))


@pytest.mark.slow
def test_diffusers_loop_gives_the_same_distance_for_many_samples(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    found = script("figures/agreement_distance").compare(tmp_path, samples=1000, steps=[10, 50], seeds=[0, 1, 2])
    for steps in (10, 50):
        ours, theirs = found["ddim"][steps], found["diffusers"][steps]
        assert ours == pytest.approx(theirs, abs=0.05 * np.std(ours, ddof=1))
