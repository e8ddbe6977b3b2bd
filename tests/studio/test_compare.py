"""A comparison: its cells are the library's pictures, whatever cannot be drawn stands beside them, and it can be cut
short."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np
import pytest
from browsing import PHONE, Visitor
from PIL import Image
from serving import quiet

from ddim.images import png_text
from ddim.serving.parameters import Drawing, Generation
from ddim.serving.pool import Pool
from ddim.serving.refusal import Refusal
from ddim.studio.axes import NOTHING, Cell
from ddim.studio.compare import AT_A_TIME, comparing, drawn
from ddim.studio.desk import StoppedError, Studio
from ddim.studio.panel import Panel
from ddim.studio.table import Made, Table, labelled

MODELS = {name: quiet(name) for name in ("digits", "emoji-fast")}


@pytest.fixture
def desk() -> Iterator[Studio]:
    """A studio without a page."""
    found = Studio(Pool(MODELS, lambda name: MODELS[name]()), {name: name for name in MODELS})
    yield found
    found.sessions.close()


def asked(cell: Cell, **more: Any) -> tuple[str, Drawing]:
    changes = dict(cell.changes)
    return changes.pop("model", "digits"), Generation(**{"seed": 3, "steps": 2, **more, **changes})


async def all_of(desk: Studio, table: Table, wanted: list[Any]) -> list[str]:
    try:
        return [html async for html in comparing(desk, desk.sessions.of("me"), table, wanted)]
    finally:
        await desk.pool.close()


def settings_of(data: bytes) -> dict[str, Any]:
    said = png_text(data, "ddim", len(data))
    assert said is not None
    found: dict[str, Any] = json.loads(said)
    return found


def test_cells_are_the_librarys_pictures_also_in_the_picture_to_keep(desk: Studio) -> None:
    table = Table("steps", [2, 4], "seed", [1, 2])
    pages = asyncio.run(all_of(desk, table, [asked(cell, class_label=4) for cell in table.cells]))
    assert pages[0].count("waiting") == 4
    assert re.search(r"4 pictures in \d", pages[-1])
    assert pages[-1].count("<img") == 4
    data = labelled(table)
    whole, said = Image.open(io.BytesIO(data)), settings_of(data)
    pipe = MODELS["digits"]()
    for cell, found, about in zip(table.cells, table.found, said["cells"], strict=True):
        (image,) = pipe(num_inference_steps=cell.changes["steps"], seed=cell.changes["seed"], class_labels=4).images
        assert isinstance(found, Made)
        difference = np.asarray(found.image, int) - np.asarray(image, int)
        assert abs(difference).max() <= 1  # it was drawn in a batch with others
        inside = whole.crop(about["box"]).resize(image.size, Image.Resampling.NEAREST)
        assert np.array_equal(np.asarray(inside.convert("L")), np.asarray(found.image))
        own = {**said["settings"], **about["settings"]}
        assert own == settings_of(found.data)["settings"]
        assert (own["steps"], own["seed"], own["model"]) == (*cell.changes.values(), "digits")
    assert said["command"] == "compare"
    assert said["columns"] == {"setting": "steps", "values": [2, 4]}


def test_what_cannot_be_drawn_stands_in_its_place_and_the_others_go_on(desk: Studio) -> None:
    """Some of it is known before it is asked for, some only the model knows."""
    table = Table("eta", [0.0, 0.5], "order", [1, 2])
    wanted: list[Any] = [asked(cell) for cell in table.cells]
    wanted[3] = "Order 2 needs an eta of 0, not 0.5."
    wanted[1] = "digits", Generation(seed=3, steps=2, eta=0.5, prompt="a <red> heart")
    pages = asyncio.run(all_of(desk, table, wanted))
    assert "2 pictures in" in pages[-1]
    assert "2 cannot be drawn" in pages[-1]
    assert "Order 2 needs an eta of 0, not 0.5." in pages[0]
    assert "Digits draws no texts: let prompt be empty, or ask another model." in pages[-1]
    assert [type(each) for each in table.found] == [Made, str, Made, str]
    said = settings_of(labelled(table))
    assert [cell.get("refused", "")[:5] for cell in said["cells"]] == ["", "Digit", "", "Order"]
    assert said["cells"][3]["settings"] == {"eta": 0.5, "order": 2}


def test_models_beside_each_other(desk: Studio) -> None:
    """Pictures of several sizes are in one table; there is no second axis."""
    table = Table("model", ["emoji-fast", "digits"], NOTHING, [None])
    prompts: dict[str, Any] = {"emoji-fast": {"prompt": "a red heart", "steps": 4}, "digits": {"class_label": 5}}
    pages = asyncio.run(all_of(desk, table, [asked(cell, **prompts[cell.changes["model"]]) for cell in table.cells]))
    assert "2 pictures in" in pages[-1]
    said = settings_of(labelled(table))
    sides = [(right - left) for left, _, right, _ in (cell["box"] for cell in said["cells"])]
    assert sides == [128, 128]  # twice 64, and 16 times 8
    assert [cell["settings"]["model"] for cell in said["cells"]] == ["emoji-fast", "digits"]
    assert "model" not in said["settings"]


def test_no_more_than_some_are_drawn_at_a_time(desk: Studio) -> None:
    """The queue has room for others all along."""
    jobs = {number: asked(Cell(0, number, {"seed": number})) for number in range(12)}
    running: set[int] = set()
    most = 0

    async def watch() -> list[int]:
        nonlocal most
        ended = []
        async for number, event in drawn(desk, desk.sessions.of("me"), jobs):
            running.add(number)
            most = max(most, len(running))
            if isinstance(event, Made):
                running.discard(number)
                ended.append(number)
        stats = desk.pool.loaded[0].engine.stats()
        assert (stats.finished, stats.refused, stats.cancelled) == (12, 0, 0)
        await desk.pool.close()
        return ended

    assert sorted(asyncio.run(watch())) == list(range(12))
    assert 1 < most <= AT_A_TIME


def test_cancelling_keeps_what_is_there(desk: Studio) -> None:
    table = Table("seed", list(range(30)), NOTHING, [None])
    wanted = [asked(cell, steps=20) for cell in table.cells]

    async def run() -> list[str]:
        session, pages, cancelled = desk.sessions.of("me"), [], False
        async for html in comparing(desk, session, table, wanted):
            pages.append(html)
            if not cancelled and sum(isinstance(each, Made) for each in table.found) >= 2:
                cancelled = session.cancel("compare")
        assert cancelled
        assert not session.cancel("compare")  # nothing is left that runs
        engine = desk.pool.loaded[0].engine
        while engine.stats().running or engine.stats().queued:
            await asyncio.sleep(0.01)
        assert 0 < engine.stats().cancelled <= AT_A_TIME
        await desk.pool.close()
        return pages

    pages = asyncio.run(run())
    there = sum(isinstance(each, Made) for each in table.found)
    assert 2 <= there < 30
    assert f"Cancelled: {there} of 30 pictures are there" in pages[-1]
    assert pages[-1].count("Not drawn.") == 30 - there
    assert sum("refused" in cell for cell in settings_of(labelled(table))["cells"]) == 30 - there


def test_a_visitor_who_leaves_takes_all_of_it_along(desk: Studio) -> None:
    jobs = {number: asked(Cell(0, number, {"seed": number}), steps=50) for number in range(8)}

    async def run() -> None:
        async def leave() -> None:
            async for _ in drawn(desk, desk.sessions.of("me"), jobs):
                desk.sessions.leave("me")

        with pytest.raises(StoppedError):
            await leave()
        assert desk.pool.users("digits") == 0
        await desk.pool.close()

    asyncio.run(run())


def test_a_full_queue_is_waited_for(desk: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter([Refusal("as many requests wait as the server takes", status=429)] * 3)
    draw = Studio.draw

    def busy(*args: Any, **more: Any) -> Any:
        refusal = next(refusals, None)
        if refusal is not None:
            raise refusal
        return draw(*args, **more)

    async def soon(seconds: float, wait: Any = asyncio.sleep) -> None:
        await wait(min(seconds, 0.01))

    monkeypatch.setattr(Studio, "draw", busy)
    monkeypatch.setattr("ddim.studio.compare.asyncio.sleep", soon)
    table = Table("seed", [1, 2], NOTHING, [None])
    pages = asyncio.run(all_of(desk, table, [asked(cell) for cell in table.cells]))
    assert "2 pictures in" in pages[-1]


def test_waiting_for_room_can_be_cancelled(desk: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def busy(*args: Any, **more: Any) -> Any:
        tried.append(args)
        raise Refusal("as many requests wait as the server takes", status=429)

    async def soon(seconds: float, wait: Any = asyncio.sleep) -> None:
        await wait(min(seconds, 0.01))
        if len(tried) > 6:
            desk.sessions.of("me").cancel("compare")

    monkeypatch.setattr(Studio, "draw", busy)
    monkeypatch.setattr("ddim.studio.compare.asyncio.sleep", soon)
    table = Table("seed", [1, 2], NOTHING, [None])
    pages = asyncio.run(asyncio.wait_for(all_of(desk, table, [asked(cell) for cell in table.cells]), 30))
    assert "Cancelled: 0 of 2 pictures are there" in pages[-1]


@pytest.fixture
def panel(desk: Studio) -> Panel:
    async def made() -> Panel:  # in a loop, as gradio would make several that it never closes
        with gr.Blocks():
            found = Panel(desk, gr.Dropdown(choices=list(desk.names), value="emoji-fast"))
            found.words()
            found.how()
        return found

    return asyncio.run(made())


def first_values(panel: Panel) -> list[Any]:
    """What a listener is given when nobody has touched the page."""
    given = {name: getattr(field, "value", None) for name, field in panel.fields.items()}
    return list({**given, "class_label": 0}.values())


def test_a_cell_is_asked_for_with_the_pages_settings_but_its_own(panel: Panel) -> None:
    values = panel.changed(first_values(panel), {"prompt": "a blue heart", "seed": 11})
    name, plain = panel.asked(values)
    for changes in (
        {"steps": 7},
        {"eta": 0.25},
        {"guidance_scale": 3.0},
        {"order": 2},
        {"spacing": "quadratic"},
        {"seed": 4},
    ):
        found, cell = panel.asked(panel.changed(values, changes))
        assert found == name == "emoji-fast"
        changed = {key: value for key, value in cell.model_dump().items() if value != plain.model_dump()[key]}
        changed.pop("guidance_rescale", None)  # which goes with guidance
        assert changed == changes
    _, cell = panel.asked(panel.changed(values, {"eta": "sigma_hat"}))
    assert cell.eta == "sigma_hat"
    _, cell = panel.asked(panel.changed(panel.changed(values, {"eta": "sigma_hat"}), {"eta": 0.5}))
    assert cell.eta == 0.5


def test_another_model_draws_as_it_recommends_where_the_page_stood_at_that(panel: Panel) -> None:
    values = first_values(panel)
    name, asked = panel.asked(panel.changed(values, {"model": "digits"}))
    assert (name, asked.steps, asked.guidance_scale) == ("digits", 9, 1.0)
    assert getattr(asked, "prompt", None) is None
    _, asked = panel.asked(panel.changed(panel.changed(values, {"steps": 5}), {"model": "digits"}))
    assert asked.steps == 5


# --- in the browser ---------------------------------------------------------------------------------------------------


def near(one: Image.Image, other: Image.Image) -> bool:
    """Whether pictures are the same but for a level that another batch may round otherwise."""
    first, second = (np.asarray(each.convert("RGB")).astype(int) for each in (one, other))
    return first.shape == second.shape and bool(np.abs(first - second).max() <= 1)


def compared(visitor: Visitor, columns: str, rows: str) -> None:
    """Press Compare for these values, and wait for its end."""
    visitor.fill("Values of the columns", columns)
    visitor.fill("Values of the rows", rows)
    visitor.runs("Compare", "#compare-stage .status", " in ")
    cells = "[...document.querySelectorAll('#compare-stage tbody td')]"
    visitor.until(f"{cells}.length && {cells}.every(cell => cell.querySelector('img[src*=file], .refused'))")


def choose(visitor: Visitor, label: str, choice: str) -> None:
    """Choose an axis, and wait until the list of choices has gone."""
    visitor.choose(label, choice)
    visitor.until("!document.querySelector('[role=option]')")


def kept(visitor: Visitor) -> tuple[Image.Image, dict[str, Any]]:
    """The picture to keep, and what it says."""
    visitor.until("!document.querySelector('#compare-download').disabled")
    with visitor.page.expect_download() as waiting:
        visitor.page.locator("#compare-download").click()
    assert waiting.value.suggested_filename == "compare.png"
    data = waiting.value.path().read_bytes()
    return Image.open(io.BytesIO(data)), settings_of(data)


def test_from_opening_to_the_picture_to_keep(visitor: Visitor) -> None:
    visitor.fill("Prompt", "a red heart")
    visitor.tab("Compare")
    visitor.wait("#compare-summary", "“a red heart” · 4 steps · seed 7")
    visitor.wait("#compare-stage .status", "Choose what is to differ")
    compared(visitor, "2, 4", "3-5")
    assert visitor.page.locator("#compare-stage thead th").all_inner_texts() == ["2 steps", "4 steps"]
    assert visitor.page.locator("#compare-stage tbody th").all_inner_texts() == ["seed 3", "seed 4", "seed 5"]
    shown = visitor.pictures("#compare-stage")
    whole, said = kept(visitor)
    assert len(shown) == len(said["cells"]) == 6
    pipe = MODELS["emoji-fast"]()
    for picture, cell in zip(shown, said["cells"], strict=True):
        inside = whole.crop(cell["box"])
        assert inside.size == (128, 128)
        assert np.array_equal(np.asarray(inside.resize((64, 64), Image.Resampling.NEAREST)), np.asarray(picture))
        settings = {**said["settings"], **cell["settings"]}
        assert (settings["steps"], settings["seed"]) == ([2, 4][cell["column"]], cell["row"] + 3)
        (own,) = pipe("a red heart", num_inference_steps=settings["steps"], seed=settings["seed"]).images
        assert near(picture, own)


@pytest.mark.slow
def test_sentences_in_the_page_and_in_cells(visitor: Visitor) -> None:
    visitor.choose("Model", "digits")
    visitor.until("document.querySelector('[aria-label=\"number input for Steps\"]').value == 9")
    visitor.tab("Compare")
    visitor.fill("Values of the columns", "4, four")
    visitor.press("Compare")
    visitor.wait("#compare-stage .wrong", "Steps takes whole numbers from 1 to 1000")
    assert visitor.page.locator("#compare-download").is_disabled()
    choose(visitor, "Columns differ in", "Seed")
    visitor.press("Compare")
    visitor.wait("#compare-stage .wrong", "Both directions vary Seed")
    choose(visitor, "Columns differ in", "Order")
    visitor.until("document.querySelector('#compare-columns-values textarea').value == '1, 2'")
    choose(visitor, "Rows differ in", "η")
    compared(visitor, "1, 2", "0, 0.5")
    visitor.wait("#compare-stage .status", "3 pictures in")
    visitor.wait("#compare-stage td .refused", "Order 2 needs an eta of 0, not 0.5")
    _, said = kept(visitor)
    assert ["refused" in cell for cell in said["cells"]] == [False, False, False, True]
    choose(visitor, "Rows differ in", "nothing")
    visitor.page.locator("#compare-rows-values").wait_for(state="hidden")
    visitor.runs("Compare", "#compare-stage .status", "2 pictures in")


@pytest.mark.slow
def test_cancel_keeps_what_is_there(visitor: Visitor) -> None:
    visitor.choose("Model", "emoji")
    visitor.until("document.querySelector('[aria-label=\"number input for Steps\"]').value == 9")
    visitor.tab("Compare")
    visitor.fill("Values of the columns", "20")
    visitor.fill("Values of the rows", "1-60")
    visitor.page.keyboard.press("Control+Enter")
    visitor.wait("#compare-stage .status", "left")
    visitor.wait("#compare-stage td img[src*=file]")
    visitor.page.keyboard.press("Escape")
    status = visitor.wait("#compare-stage .status", "Cancelled:").inner_text()
    there = visitor.page.locator("#compare-stage td img").count()
    assert 1 <= there < 60
    assert status == f"Cancelled: {there} of 60 pictures are there"
    assert visitor.page.locator("#compare-stage td .refused").count() == 60 - there
    _, said = kept(visitor)
    assert sum("refused" not in cell for cell in said["cells"]) == there


@pytest.mark.slow
def test_screenshots_of_the_comparison(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.tab("Compare")
    compared(visitor, "1, 2, 4", "1-3")
    visitor.screenshot("compare", whole=True)
    dark = visit(dark=True)
    dark.fill("Prompt", "a smiling face, " * 20)
    dark.tab("Compare")
    choose(dark, "Columns differ in", "Order")
    choose(dark, "Rows differ in", "η")
    compared(dark, "1, 2", "0, 0.5")
    dark.screenshot("compare-dark", whole=True)
    dark.choose("Columns differ in", "Steps")
    dark.until("document.querySelector('#compare-columns-values textarea').value == '1, 2, 4, 8'")
    compared(dark, "1, 2, 4, 8, 16", "0")
    dark.wait("#compare-stage .note", "2 of these ask for steps or guidance that the model was not made for")
    phone = visit(size=PHONE)
    phone.tab("Compare")
    compared(phone, "1, 2, 3, 4, 5, 6", "1-3")
    assert phone.overflow() == []
    phone.screenshot("compare-phone", whole=True)
