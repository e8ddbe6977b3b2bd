"""The studio's pages as a whole, whatever is on their tabs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
from browsing import PHONE, Studio, Visitor

from ddim.pipelines import DiffusionPipeline


def test_opening_loads_no_model_and_the_first_picture_is_the_librarys(
    studio: Studio, visit: Callable[..., Visitor]
) -> None:
    loaded = studio.log.count("model loaded")
    visitor = visit()
    assert studio.log.count("model loaded") == loaded
    visitor.fill("Prompt", "a red heart")
    visitor.unfold("Seed, size and number")
    visitor.fill("Seed", 7)
    visitor.press("Draw")
    visitor.wait("#draw-stage .status", "Drawn")
    (shown,) = visitor.pictures("#draw-stage")
    pipe = DiffusionPipeline.from_pretrained("emoji-fast")
    pipe.set_progress_bar_config(disable=True)
    expected = pipe("a red heart", seed=7).images[0]
    assert np.abs(np.asarray(shown, int) - np.asarray(expected, int)).mean() < 2
    visitor.screenshot("draw")


def test_other_loops_can_run_after_a_browser() -> None:
    asyncio.run(asyncio.sleep(0))


def test_a_phone_in_the_dark(visit: Callable[..., Visitor]) -> None:
    visitor = visit(dark=True, size=PHONE)
    assert visitor.overflow() == []
    visitor.screenshot("draw-phone-dark", whole=True)
