"""The Compare tab: a table of pictures in which one or two settings differ, drawn a few at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from PIL import Image

from ddim.errors import ConfigError
from ddim.serving.futures import Finished, Started, Step
from ddim.serving.logs import tell
from ddim.serving.parameters import Drawing, Edit, Generation
from ddim.serving.refusal import Refusal
from ddim.studio.axes import AXES, NOTHING, Cell, values_of
from ddim.studio.desk import StoppedError, Studio, sentence, together
from ddim.studio.panel import Panel
from ddim.studio.sessions import Session
from ddim.studio.stage import figure, image_source, message, stage
from ddim.studio.table import Course, Made, Table, labelled

__all__ = ["build", "comparing", "drawn"]

_HERE = Path(__file__).parent
AT_A_TIME = 4  # pictures that are drawn at the same time, so that others are not held up and the queue has room
_PREVIEWS = 4  # of a picture on its way
# What a cell asks for: (name of the model, parameters); or a sentence that says why it cannot be asked for.
Wanted: TypeAlias = tuple[str, Generation | Edit] | str
_EMPTY = "Choose what is to differ, and press Compare."


def build(studio: Studio, panel: Panel) -> None:
    """The tab, inside of which this is called."""
    choices = [(axis.label, name) for name, axis in AXES.items()]
    pairs = []
    with gr.Column(elem_classes="side"):
        for label, usual, more in (
            ("Columns", "steps", []),
            ("Rows", "seed", [("nothing", NOTHING)]),
        ):
            with gr.Row():
                axis = gr.Dropdown(
                    label=f"{label} differ in",
                    choices=[*choices, *more],
                    value=usual,
                    scale=1,
                    min_width=130,
                    elem_id=f"compare-{label.lower()}",
                )
                values = gr.Textbox(
                    label=f"Values of the {label.lower()}",
                    scale=3,
                    min_width=180,
                    max_lines=3,
                    max_length=4000,
                    elem_id=f"compare-{label.lower()}-values",
                    **_usual(studio, usual),
                )
            pairs.append((axis, values))
        summary = gr.Markdown("", elem_classes="hint", container=False, elem_id="compare-summary")
        with gr.Row(elem_classes="buttons"):
            start = gr.Button("Compare", variant="primary", elem_classes="main-button", elem_id="compare-start")
            cancel = gr.Button("Cancel", elem_classes="cancel-button", elem_id="compare-cancel", interactive=False)
            keep = gr.DownloadButton("Download as PNG", elem_id="compare-download", interactive=False)
        shown = gr.HTML(
            stage([], _EMPTY),
            elem_id="compare-stage",
            apply_default_css=False,
            css_template=(_HERE / "compare.css").read_text(encoding="utf-8"),
        )
    (across, over), (down, beside) = pairs
    painted, share = panel.start
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    for axis, values in pairs:
        axis.input(lambda name: gr.update(**_usual(studio, name)), axis, values, **quiet)

    async def run(request: gr.Request, *given: Any) -> AsyncIterator[dict[Any, Any]]:
        *values, picture, painting, strength, columns, over_said, rows, beside_said = given
        session = studio.sessions.of(request.session_hash)
        yield {
            shown: stage([], "Starting …", 0.0),
            cancel: gr.update(interactive=True),
            keep: gr.update(value=None, interactive=False),
        }
        last: dict[Any, Any] = {cancel: gr.update(interactive=False)}
        try:
            table = Table(
                columns, values_of(columns, over_said, studio.names), rows, values_of(rows, beside_said, studio.names)
            )
            start_from = painted.read(session, picture, painting)
            more = {} if start_from is None else {"strength": float(strength)}
            wanted = [_asked(panel, values, more, cell) for cell in table.cells]
            notes = _notes(panel, wanted)
            async for html in comparing(studio, session, table, wanted, *(start_from or ()), notes=notes):
                yield {shown: html}
            if any(isinstance(each, Made) for each in table.found):
                data = await asyncio.to_thread(labelled, table)
                last[keep] = gr.update(value=str(session.keep(data, "compare.png")), interactive=True)
        except Exception as error:
            if not isinstance(error, (Refusal, ConfigError)):
                tell("a comparison of the studio failed", error=error)
            last[shown] = message(sentence(error))
        yield last

    async def stop(request: gr.Request) -> None:
        studio.sessions.of(request.session_hash).cancel("compare")

    async def say(*values: Any) -> str:
        return f"Everything else is as on the Draw tab: {panel.summary(values)}"

    start.click(
        run,
        [*panel.inputs, *painted.inputs, share, across, over, down, beside],
        [shown, cancel, keep],
        concurrency_limit=None,
        trigger_mode="once",
        **quiet,
    )
    cancel.click(stop, None, None, queue=False, **quiet)
    panel.selected["Compare"].select(say, panel.inputs, summary, **quiet)


def _usual(studio: Studio, name: str) -> dict[str, Any]:
    """Properties of the field for an axis's values."""
    if name == NOTHING:
        return {"value": "", "visible": False, "info": ""}
    axis = AXES[name]
    usual = axis.usual or ", ".join(studio.names)
    more = "; 1-4 stands for 1, 2, 3, 4" * axis.spans
    return {"value": usual, "visible": True, "info": f"{axis.takes[0].upper()}{axis.takes[1:]}{more}."}


def _asked(panel: Panel, values: Sequence[Any], more: Mapping[str, Any], cell: Cell) -> Wanted:
    """What a cell asks for.

    Args:
        values: of the panel's inputs.
        more: the strength, where there is a picture to start from.
    """
    changes = {name: value for name, value in cell.changes.items() if name != "model"}
    try:
        return panel.asked(panel.changed(values, cell.changes), edits=bool(more), n=1, **more, **changes)
    except Refusal as refusal:
        return sentence(refusal)


def _notes(panel: Panel, wanted: Sequence[Wanted]) -> list[str]:
    """What of it all the models were not made for."""
    count = sum(not isinstance(each, str) and panel.warning(*each) is not None for each in wanted)
    if not count:
        return []
    which = "One of these asks" if count == 1 else f"{count} of these ask"
    return [f"{which} for steps or guidance that the model was not made for: expect worse pictures there."]


async def comparing(
    studio: Studio,
    session: Session,
    table: Table,
    wanted: Sequence[Wanted],
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
    *,
    notes: Sequence[str] = (),
) -> AsyncIterator[str]:
    """What to show while a table is drawn. At the end the table has all that there is.

    Args:
        wanted: by each cell.
        image, mask: to start from, for all.
        notes: sentences about it.
    """
    jobs = {number: each for number, each in enumerate(wanted) if not isinstance(each, str)}
    tiles = [""] * len(wanted)
    for number, each in enumerate(wanted):
        if isinstance(each, str):
            table.found[number], tiles[number] = each, _refused(each)
    course = Course({number: asked.steps or 1 for number, (_, asked) in jobs.items()})
    status, is_stopped = "Drawn", False
    yield stage([table.html(tiles)], course.said(time.monotonic()), 0.0, notes)
    try:
        async for heard in together(drawn(studio, session, jobs, image, mask), 0.15):
            for number, event in heard:
                course.hear(number, event)
                about = table.cells[number].said
                if isinstance(event, Step):
                    if event.preview is not None:
                        source = image_source(event.preview, exact=False)
                        tiles[number] = figure(source, event.preview.size, f"{about}, on its way")
                elif isinstance(event, Made):
                    table.found[number] = event
                    path = session.keep(event.data, f"{about}.png")
                    tiles[number] = figure(f"gradio_api/file={path}", event.image.size, about)
                elif isinstance(event, str):
                    table.found[number], tiles[number] = event, _refused(event)
            yield stage([table.html(tiles)], course.said(time.monotonic()), course.share, notes)
    except StoppedError:
        is_stopped = True
    count = sum(isinstance(each, Made) for each in table.found)
    if is_stopped:
        tiles = [
            tile if table.found[number] is not None else _refused("Not drawn.") for number, tile in enumerate(tiles)
        ]
        status = f"Cancelled: {count} of {len(tiles)} pictures are there"
    else:
        seconds = time.monotonic() - course.started
        status = f"{count} picture{'s' * (count != 1)} in {seconds:.1f} s"
        status += f"; {len(tiles) - count} cannot be drawn" * (count < len(tiles))
    yield stage([table.html(tiles)], status, None, notes)


def _refused(text: str) -> str:
    return f'<div class="refused">{escape(text)}</div>'


async def drawn(
    studio: Studio,
    session: Session,
    jobs: Mapping[int, tuple[str, Drawing]],
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
) -> AsyncIterator[tuple[int, Started | Step | Made | str]]:
    """Have pictures drawn by the engine, `AT_A_TIME` of them at a time; those of one model together.

    Args:
        jobs: by their numbers, each a model's name and what to draw with it.
        image, mask: to start from, for all.

    Yields:
        (number, what happened): a picture at the end or, for one that cannot be drawn, a sentence.

    Raises:
        StoppedError: it was cancelled, after all that had happened by then.
    """
    heard, is_stopped = asyncio.Queue[tuple[int, Any] | None](), False

    def stop() -> None:
        nonlocal is_stopped
        is_stopped = True

    async def draw(number: int) -> None:
        name, asked = jobs[number]
        every = max(1, -(-(asked.steps or 50) // _PREVIEWS))
        async with studio.draw(session, f"compare/{number}", name, asked, image, mask, preview_every=every) as run:
            async for _, event in run.happening():
                if isinstance(event, Finished):
                    made = event.picture
                    data = await run.file(made.image, 0, made.settings)
                    heard.put_nowait((number, Made(made.image, data)))
                elif isinstance(event, (Started, Step)):
                    heard.put_nowait((number, event))

    async def work() -> None:
        for number in left:
            while not is_stopped:
                try:
                    await draw(number)
                except StoppedError:
                    return
                except Refusal as refusal:
                    if refusal.status == 429:  # there is no room now
                        await asyncio.sleep(1)
                        continue
                    heard.put_nowait((number, sentence(refusal)))
                except Exception as error:
                    tell("a picture of a comparison failed", error=error)
                    heard.put_nowait((number, sentence(error)))
                break

    session.begin("compare", stop)
    left = iter(sorted(jobs, key=lambda number: studio.names.index(jobs[number][0])))
    workers = [asyncio.create_task(work()) for _ in range(min(AT_A_TIME, len(jobs)))]
    all_of_them = asyncio.gather(*workers)
    all_of_them.add_done_callback(lambda _: heard.put_nowait(None))
    try:
        while (what := await heard.get()) is not None:
            yield what
        await all_of_them
        if is_stopped:
            raise StoppedError
    finally:
        stop()
        all_of_them.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        session.done("compare", stop)
