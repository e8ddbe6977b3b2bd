"""In which size a picture is started from, and the picture in that size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddim import DiffusionPipeline
from ddim.images import enlarge
from ddim.pipelines.fitting import resized, start_size


@pytest.fixture(scope="module")
def emoji() -> Any:
    return DiffusionPipeline.from_pretrained("emoji")


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        ((64, 64), (None, None), (64, 64)),
        ((256, 256), (None, None), (64, 64)),
        ((10, 10), (None, None), (64, 64)),
        ((4000, 3000), (None, None), (72, 56)),
        ((3000, 4000), (None, None), (56, 72)),
        ((72, 56), (None, None), (72, 56)),  # what was drawn so is drawn so again
        ((640, 480), (48, None), (64, 48)),
        ((640, 480), (None, 128), (128, 96)),
        ((640, 480), (32, 32), (32, 32)),
        ((10_000, 10), (None, None), (2024, 16)),  # no side is less than the U-Net can halve
    ],
)
def test_the_size_that_is_started_from(
    emoji: Any, own: tuple[int, int], given: tuple[int | None, int | None], expected: tuple[int, int]
) -> None:
    assert start_size(own, emoji, *given) == expected


def test_an_enlarged_picture_comes_back() -> None:
    """Hard pixels exactly, smooth ones but for the filter's own error."""
    rng = np.random.default_rng(0)
    for mode, channels in (("L", 1), ("RGB", 3)):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).convert(mode)
        assert resized(enlarge(small, 32), (8, 8), channels).tobytes() == small.tobytes()
        assert resized(enlarge(small, 32).convert("RGB"), (8, 8), channels).tobytes() == small.tobytes()
    smooth = Image.fromarray(rng.integers(60, 200, (16, 16, 3), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    back = resized(enlarge(smooth, 4), (64, 64), 3)
    assert np.sqrt(np.mean((np.asarray(back, float) - np.asarray(smooth, float)) ** 2)) < 4
    assert np.abs(np.asarray(enlarge(smooth, 4), float) - np.asarray(smooth.resize((256, 256), 0), float)).mean() > 1
