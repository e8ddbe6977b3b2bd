"""What the Trajectory tab shows: every step in the page, the finished picture without loss."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from serving import quiet

from ddim.serving.limits import Limits
from ddim.serving.parameters import Generation
from ddim.serving.pool import Pool
from ddim.serving.refusal import Refusal
from ddim.serving.wishes import wish
from ddim.studio.desk import StoppedError, Studio
from ddim.studio.recording import MOST, record
from ddim.studio.trajectory import recorded, scrubber

MODELS = {name: quiet(name) for name in ("digits", "emoji-fast")}


@pytest.fixture
def desk() -> Iterator[Studio]:
    """A studio without a page."""
    found = Studio(Pool(MODELS, lambda name: MODELS[name]()), {name: name for name in MODELS})
    yield found
    found.sessions.close()


def pictures(html: str) -> list[Image.Image]:
    """Those of a part of a page."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


def sections(html: str) -> list[str]:
    return html.split("<section")[1:]


def test_every_step_is_in_the_page_and_the_last_place_is_the_picture(desk: Studio) -> None:
    async def run() -> list[str]:
        asked = Generation(prompt="a red heart", seed=5)
        pages = [html async for html in recorded(desk, desk.sessions.of("me"), "emoji-fast", asked, ["Mind <this>."])]
        await desk.pool.close()
        return pages

    pages = asyncio.run(run())
    html = pages[-1]
    assert "Loading emoji-fast" in pages[0]
    assert any("step " in page for page in pages[1:-1])
    assert len(sections(html)) == 5
    assert [("hidden" in each.partition(">")[0]) for each in sections(html)] == [True] * 4 + [False]
    assert 'max="4"' in html
    assert "Step 1 of 4, at timestep 999" in sections(html)[0]
    assert "Mind &lt;this&gt;." in html
    image = MODELS["emoji-fast"]()("a red heart", seed=5).images[0]
    (last,) = pictures(sections(html)[-1])
    assert np.array_equal(np.asarray(last), np.asarray(image))


def test_a_step_says_its_row_of_the_plan(desk: Studio) -> None:
    pipe = MODELS["digits"]()
    asked = Generation(seed=1, steps=4, order=1, eta=0.5, class_label=7, guidance_scale=2.0)
    html = scrubber(record(pipe, wish("digits", pipe, asked, Limits())))
    row = pipe.scheduler.plan(4, eta=0.5)[2]
    third = sections(html)[2]
    said = dict(re.findall(r"<dt>(.+?)</dt>\s*<dd>(.+?)</dd>", third))
    assert said["timestep t"] == str(row.timestep)
    assert said["next t"] == str(row.previous_timestep)
    assert float(said["ᾱ"]) == pytest.approx(row.alpha_bar, rel=1e-4)
    assert float(said["σ"]) == pytest.approx(row.sigma, rel=1e-3)
    assert float(said["SNR"]) == pytest.approx(row.alpha_bar / (1 - row.alpha_bar), rel=1e-3)
    assert len(pictures(third)) == 6  # x_t and x0, what was given, the answer, and x0 without and with the class
    assert "without the class" in third
    assert "class</th><td><div>7" in html
    assert "guidance</th><td><div>2, rescale 0" in html


def test_what_is_left_out_is_said(desk: Studio) -> None:
    pipe = MODELS["digits"]()
    few = scrubber(record(pipe, wish("digits", pipe, Generation(seed=1, steps=4), Limits())))
    many = scrubber(record(pipe, wish("digits", pipe, Generation(seed=1, steps=MOST + 1), Limits())))
    assert "are kept" not in few
    assert f"Of the {MOST + 1} steps {MOST} are kept, evenly apart" in many
    assert len(sections(many)) == MOST + 1
    assert len(many) < 2**24


def test_cancelling_ends_it_within_a_step(desk: Studio) -> None:
    async def run() -> float:
        session = desk.sessions.of("me")
        asked = Generation(seed=1, steps=1000)

        async def watch() -> None:
            async for html in recorded(desk, session, "digits", asked):
                if "step " in html:
                    session.cancel("trajectory")

        started = time.process_time()
        with pytest.raises(StoppedError):
            await watch()
        spent = time.process_time() - started
        assert desk.pool.users("digits") == 0
        await desk.pool.close()
        return spent

    assert asyncio.run(run()) < 10


def test_what_cannot_be_drawn_is_said(desk: Studio) -> None:
    async def run(**asked: object) -> None:
        try:
            async for _ in recorded(desk, desk.sessions.of("me"), "digits", Generation(**asked)):  # type: ignore[arg-type]
                pass
        finally:
            await desk.pool.close()

    with pytest.raises(Refusal, match="draws no texts"):
        asyncio.run(run(prompt="a red heart"))
