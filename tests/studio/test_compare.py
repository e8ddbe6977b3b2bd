"""A comparison: its cells are the library's pictures, whatever cannot be drawn stands beside them, and it can be cut
short."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
import pytest
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
