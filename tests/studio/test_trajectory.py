"""What the Trajectory tab shows: every step in the page, the finished picture without loss."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from browsing import PHONE, Visitor
from PIL import Image
from serving import quiet

from ddim import DDIMScheduler
from ddim.serving.limits import Limits
from ddim.serving.parameters import Generation
from ddim.serving.pool import Pool
from ddim.serving.refusal import Refusal
from ddim.serving.wishes import wish
from ddim.studio.desk import StoppedError, Studio
from ddim.studio.recording import MOST, SIDE, Moment, Recording, record
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


def test_a_page_of_large_pictures_is_bounded() -> None:
    """Noise of 1024 pixels a side in a hundred steps: the steps are coarse and the finished picture is not."""
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    large, small = Image.fromarray(noise), Image.fromarray(noise[:SIDE, :SIDE])
    plan = DDIMScheduler().plan(100)
    moments = [Moment(n, row, small, small, small, small, small, small) for n, row in enumerate(plan)]
    html = scrubber(Recording(tuple(moments), large, plan, {"prompt": "noise", "seed": 0}))
    assert len(html) < 2**26
    assert "made coarser" in html
    (last,) = pictures(sections(html)[-1])
    assert np.array_equal(np.asarray(last), noise)


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


# --- in the browser ---------------------------------------------------------------------------------------------------


def recording(visitor: Visitor, steps: int = 4) -> None:
    """Press Record, and wait for the slider."""
    visitor.press("Record")
    visitor.wait("#trajectory-stage .where", f"The picture, after {steps} steps")


def place(visitor: Visitor) -> tuple[str, str]:
    """Where the slider is, and what is said of it."""
    slider = visitor.page.locator("#trajectory-stage input[type=range]")
    said = slider.get_attribute("aria-valuetext") or ""
    assert visitor.page.locator("#trajectory-stage .where").inner_text() == said
    assert visitor.page.locator("#trajectory-stage .moment:visible").get_attribute("data-said") == said
    return slider.input_value(), said


def seen(visitor: Visitor) -> list[Image.Image]:
    return visitor.pictures("#trajectory-stage .moment:not([hidden])")


def test_from_opening_through_the_steps_to_the_library_s_picture(visitor: Visitor) -> None:
    visitor.fill("Prompt", "a red heart")
    visitor.tab("Trajectory")
    visitor.wait("#trajectory-summary", "“a red heart” · 4 steps · seed 7")
    recording(visitor)
    pipe = MODELS["emoji-fast"]()
    steps: list[Any] = []
    (image,) = pipe(
        "a red heart",
        seed=7,
        callback_on_step_end=lambda _, index, t, state: steps.append(state["pred_original_sample"]),
        callback_on_step_end_tensor_inputs=["pred_original_sample"],
    ).images
    assert place(visitor) == ("4", "The picture, after 4 steps")
    (last,) = seen(visitor)
    assert close(last, image, 0)

    visitor.page.keyboard.press("ArrowLeft")
    assert place(visitor) == ("3", "Step 4 of 4, at timestep 249")
    visitor.page.keyboard.press("Home")
    assert place(visitor) == ("0", "Step 1 of 4, at timestep 999")
    _, x0, *_ = seen(visitor)
    assert close(x0, pipe.decode(steps[0])[0], 1)  # it was decoded beside others


# The fast test beside it is test_from_opening_through_the_steps_to_the_library_s_picture.
@pytest.mark.slow
def test_the_slider_and_the_player_show_each_step_and_a_new_run_takes_its_place(visitor: Visitor) -> None:
    visitor.fill("Prompt", "a red heart")
    visitor.tab("Trajectory")
    recording(visitor)
    pipe = MODELS["emoji-fast"]()
    steps: list[Any] = []
    pipe(
        "a red heart",
        seed=7,
        callback_on_step_end=lambda _, index, t, state: steps.append(state["pred_original_sample"]),
        callback_on_step_end_tensor_inputs=["pred_original_sample"],
    )
    visitor.page.keyboard.press("Home")
    slider = visitor.page.get_by_label("Step of the run")
    slider.focus()
    slider.press("ArrowRight")
    assert place(visitor)[0] == "1"
    slider.fill("2")
    assert close(seen(visitor)[1], pipe.decode(steps[2])[0], 1)
    slider.press("End")
    visitor.press("Play the steps")
    visitor.until("document.querySelector('#trajectory-stage input[type=range]').value == 0")
    visitor.until("document.querySelector('#trajectory-stage input[type=range]').value == 4")
    visitor.wait("#trajectory-stage .play[aria-label='Play the steps']")
    visitor.tab("Draw")
    visitor.fill("Prompt", "a blue star")
    visitor.fill("Steps", 2)
    visitor.tab("Trajectory")
    slider.press("Home")
    recording(visitor, 2)
    assert place(visitor) == ("2", "The picture, after 2 steps")
    assert close(seen(visitor)[0], pipe("a blue star", seed=7, num_inference_steps=2).images[0], 0)


def close(one: Image.Image, other: Image.Image, most: int) -> bool:
    difference = np.asarray(one.convert("RGB")).astype(int) - np.asarray(other.convert("RGB"))
    return bool(np.abs(difference).max() <= most)


@pytest.mark.slow
def test_many_steps_are_gone_through_at_once(visitor: Visitor) -> None:
    """No step of the slider waits for the server: all of them are in the page, and each shows within 100 ms."""
    visitor.choose("Model", "emoji")
    visitor.until("document.querySelector('[aria-label=\"number input for Steps\"]').value == 9")
    visitor.fill("Steps", 40)
    visitor.tab("Trajectory")
    recording(visitor, 40)
    asked: list[str] = []
    visitor.page.on("request", lambda request: asked.append(request.url.partition(",")[0]))
    taken = visitor.page.evaluate(
        """async () => {
            const slider = document.querySelector('#trajectory-stage input[type=range]'), taken = [];
            for (let place = 0; place <= 40; place += 2) {
                const start = performance.now();
                slider.value = place;
                slider.dispatchEvent(new Event('input', { bubbles: true }));
                const images = [...document.querySelectorAll('#trajectory-stage .moment:not([hidden]) img')];
                await Promise.all(images.map(image => image.decode()));
                taken.push(performance.now() - start);
            }
            return taken.sort((one, other) => one - other);
        }"""
    )
    assert taken[len(taken) // 2] < 100
    assert [each for each in asked if not each.startswith("data:")] == []
    visitor.page.keyboard.press("Home")
    visitor.wait("#trajectory-stage .moment figcaption", "x₀ without the text")
    visitor.wait("#trajectory-stage table.settings", "guidance")


@pytest.mark.slow
def test_cancel_and_what_cannot_be_drawn(visitor: Visitor) -> None:
    visitor.choose("Model", "emoji")
    visitor.until("document.querySelector('[aria-label=\"number input for Steps\"]').value == 9")
    visitor.fill("Steps", 100)
    visitor.tab("Trajectory")
    visitor.press("Record")
    visitor.wait("#trajectory-stage .status", "step ")
    visitor.press("Cancel")
    visitor.wait("#trajectory-stage .status", "Cancelled.")
    visitor.tab("Draw")
    visitor.fill("Steps", 7)
    visitor.choose("Spacing", "optimized")
    visitor.fill("η", 0.5)
    visitor.choose("Order", "2: second order")
    visitor.tab("Trajectory")
    visitor.press("Record")
    visitor.wait("#trajectory-stage .wrong", "Order 2 needs an eta of 0")


@pytest.mark.slow
def test_a_picture_to_start_from(visitor: Visitor) -> None:
    pipe = MODELS["emoji-fast"]()
    (start,) = pipe("a red heart", seed=3).images
    file = io.BytesIO()
    start.save(file, "PNG")
    visitor.fill("Prompt", "a blue heart")
    visitor.unfold("Start from a picture")
    visitor.drop("#start-picture", file.getvalue())
    visitor.wait("#start-picture-painter canvas")
    visitor.tab("Trajectory")
    recording(visitor, 3)  # of four, at a strength of 0.8
    assert close(seen(visitor)[0], pipe("a blue heart", image=start, strength=0.8, seed=7).images[0], 0)
    visitor.tab("Compare")
    visitor.fill("Values of the columns", "4")
    visitor.fill("Values of the rows", "7")
    visitor.press("Compare")
    visitor.wait("#compare-stage .status", "1 picture in")
    (cell,) = visitor.pictures("#compare-stage")
    assert close(cell, pipe("a blue heart", image=start, strength=0.8, seed=7).images[0], 1)


@pytest.mark.slow
def test_screenshots_of_a_run(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.choose("Model", "emoji")
    visitor.until("document.querySelector('[aria-label=\"number input for Steps\"]').value == 9")
    visitor.tab("Trajectory")
    recording(visitor, 9)
    for _ in range(4):
        visitor.page.keyboard.press("ArrowLeft")
    visitor.screenshot("trajectory", whole=True)
    dark = visit(dark=True)
    dark.fill("Prompt", "a smiling face, " * 20)
    dark.tab("Trajectory")
    recording(dark)
    dark.page.keyboard.press("Home")
    dark.screenshot("trajectory-dark", whole=True)
    phone = visit(size=PHONE)
    phone.tab("Trajectory")
    recording(phone)
    phone.page.keyboard.press("ArrowLeft")
    assert phone.overflow() == []
    phone.screenshot("trajectory-phone", whole=True)
