"""The Draw tab: a picture from words, or from a picture, as it becomes clear."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ddim.errors import ConfigError
from ddim.serving.futures import Event, Finished, Queued, Started, Step
from ddim.serving.logs import tell
from ddim.serving.parameters import Edit, Generation
from ddim.serving.refusal import Refusal
from ddim.studio.clock import Clock, spelt
from ddim.studio.desk import StoppedError, Studio, sentence, together
from ddim.studio.panel import MOST, Panel
from ddim.studio.recipes import settings_of, written
from ddim.studio.sessions import Session
from ddim.studio.stage import figure, image_source, message, stage
from ddim.studio.uploads import PaintedPicture, dropped_file

__all__ = ["Progress", "build"]

_KEPT = 64  # pictures of a session
_EMPTY = "Press Draw, or Ctrl+Enter, and watch the picture become clear."


class Progress:
    """How far the pictures of a run are, in words and as a share.

    Args:
        count: how many pictures there are.
    """

    def __init__(self, count: int) -> None:
        self._waiting = dict.fromkeys(range(count), 0)
        self._steps: dict[int, tuple[int, int]] = {}  # (made, all) of each picture that is being drawn
        self._done: set[int] = set()
        self._count = count
        self._clock: Clock | None = None  # from when the first is being drawn

    def hear(self, number: int, event: Event | None) -> None:
        """Take in what happened to a picture."""
        if isinstance(event, Queued):
            self._waiting[number] = event.position
        elif isinstance(event, Started):
            self._clock = self._clock or Clock()
            self._steps[number] = (0, event.steps)
        elif isinstance(event, Step):
            self._steps[number] = (event.number, event.steps)
        elif isinstance(event, Finished):
            self._done.add(number)

    @property
    def share(self) -> float:
        """Of the work that is done, from 0 to 1."""
        shares = [1.0 if n in self._done else made / most * 0.98 for n, (made, most) in self._steps.items()]
        return sum(shares) / self._count

    def __str__(self) -> str:
        if self._clock is None:
            first = min(self._waiting.values())
            return f"Waiting: {first} {'is' if first == 1 else 'are'} before you." if first else "Starting …"
        made, steps = min((each for n, each in self._steps.items() if n not in self._done), default=(0, 0))
        pictures = f"{len(self._done)} of {self._count} pictures · " if self._count > 1 else ""
        left = self._clock.left(self.share)
        return f"{pictures}step {made} of {steps}{left}" if steps else f"{pictures}decoding …"


@dataclass(frozen=True)
class Drawn:
    """A picture of this session.

    Attributes:
        path: of its file.
        caption: a few words.
        model: that drew it.
        settings: that it was drawn by.
    """

    path: Path
    caption: str
    model: str
    settings: dict[str, Any]


def build(studio: Studio, panel: Panel) -> None:
    """The tab, inside of which this is called."""
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=2, min_width=300, elem_classes="side"):
            panel.words()
            with gr.Row(elem_classes="buttons"):
                draw = gr.Button("Draw", variant="primary", elem_classes="main-button")
                cancel = gr.Button("Cancel", elem_classes="cancel-button", interactive=False)
            panel.how()
            with gr.Accordion("Start from a picture", open=False, elem_classes="group") as start:
                painted = PaintedPicture(studio, "Picture to start from", "start-picture")
                gr.Markdown("Paint over what is to be drawn anew; without paint, all of it is.", elem_classes="hint")
                strength = gr.Slider(
                    label="Strength",
                    minimum=0,
                    maximum=1,
                    step=0.05,
                    value=0.8,
                    info="How much of the picture is lost: 0 is nothing, 1 is all.",
                )
                panel.start = painted, strength
            with gr.Accordion("Settings from a picture", open=False, elem_classes="group"):
                dropped = gr.File(
                    label="Drop a PNG that ddim made: its settings come back",
                    file_types=[".png"],
                    type="filepath",
                    height=110,
                    elem_id="recipe",
                )
                told = gr.Markdown("", elem_classes="hint", container=False)
        with gr.Column(scale=3, min_width=300, elem_classes="side"):
            shown = gr.HTML(stage([""], _EMPTY), elem_id="draw-stage", elem_classes="bare")
            gallery = gr.Gallery(
                label="This session's pictures",
                columns=6,
                height="auto",
                object_fit="contain",
                format="png",
                buttons=["fullscreen"],
                visible=False,
                elem_classes="session",
                elem_id="gallery",
                interactive=False,
                allow_preview=False,
            )
            with gr.Column(visible=False, elem_classes="chosen") as chosen:
                about = gr.HTML("", elem_id="about-picture", elem_classes="bare")
                with gr.Row(elem_classes="buttons"):
                    again = gr.Button("Use its settings", size="md")
                    download = gr.DownloadButton("Download PNG", size="md", elem_id="download")
                    paint = gr.Button("Start from it", size="md")
    drawn, picked = gr.State([]), gr.State(None)
    fields = panel.fields

    async def run(request: gr.Request, *given: Any) -> AsyncIterator[dict[Any, Any]]:
        *values, image, painting, share, had = given
        session = studio.sessions.of(request.session_hash)
        place = list(fields).index("seed")
        changes: dict[Any, Any] = {}
        if not values[list(fields).index("keep_seed")] and had:
            values[place] = secrets.randbelow(2**32)
            changes[fields["seed"]] = values[place]
        yield {shown: stage([""], "Starting …", 0.0), cancel: gr.update(interactive=True), **changes}
        end: dict[Any, Any] = {cancel: gr.update(interactive=False)}
        try:
            picture = painted.read(session, image, painting)
            if picture is None:
                name, asked = panel.asked(values)
            else:
                name, asked = panel.asked(values, edits=True, strength=float(share))
            async for html, pictures in _drawing(studio, panel, session, name, asked, picture):
                if pictures is None:
                    yield {shown: html}
                else:
                    had = [*pictures, *had][:_KEPT]
                    shelf = [(str(each.path), each.caption) for each in had]
                    end |= {shown: html, drawn: had, gallery: gr.update(value=shelf, visible=True, selected_index=None)}
        except StoppedError:
            end[shown] = stage([""], "Cancelled.")
        except Exception as error:
            if not isinstance(error, Refusal):
                tell("a picture of the studio failed", error=error)
            end[shown] = message(sentence(error))
        yield end

    outputs = [shown, gallery, drawn, cancel, fields["seed"]]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    draw.click(
        run,
        [*panel.inputs, *painted.inputs, strength, drawn],
        outputs,
        concurrency_limit=None,
        trigger_mode="once",
        **quiet,
    )

    async def stop(request: gr.Request) -> None:
        studio.sessions.of(request.session_hash).cancel("draw")

    cancel.click(stop, None, None, queue=False, **quiet)

    def pick(had: list[Drawn], event: gr.SelectData) -> dict[Any, Any]:
        one = had[event.index]
        return {
            picked: event.index,
            chosen: gr.update(visible=True),
            about: _about(one),
            download: gr.update(value=str(one.path)),
        }

    gallery.select(pick, drawn, [picked, chosen, about, download], **quiet)

    def use(had: list[Drawn], index: int) -> dict[Any, Any]:
        return _from_recipe(studio, panel, had[index].path.read_bytes())[0]

    again.click(use, [drawn, picked], panel.inputs, **quiet)

    def from_it(had: list[Drawn], index: int) -> tuple[Any, Any]:
        return str(had[index].path), gr.update(open=True)

    paint.click(from_it, [drawn, picked], [painted.picture, start], **quiet)

    def drop(request: gr.Request, path: str | None) -> dict[Any, Any]:
        try:
            data = dropped_file(studio, studio.sessions.of(request.session_hash), path)
            if data is None:
                return {told: ""}
            changes, said = _from_recipe(studio, panel, data)
        except (ConfigError, Refusal) as error:
            return {told: sentence(error)}
        return {**changes, told: said}

    dropped.change(drop, dropped, [*panel.inputs, told], **quiet)


def _from_recipe(studio: Studio, panel: Panel, png: bytes) -> tuple[dict[Any, Any], str]:
    """(what sets the fields to a PNG's settings, what to say of it).

    Raises:
        ConfigError: it says none.
    """
    settings = settings_of(png, MOST)
    number, model = settings.pop("image"), settings.get("model")
    said = "Its settings are in the fields."
    if settings["n"] > 1:
        said += f" It is picture {number + 1} of them."
    if model is not None and model not in studio.names:
        del settings["model"]
        said += f" It was made by the model {model}, which is not here, so that another one draws."
    usual = {"order": None, "spacing": None, "negative_prompt": "", "guidance_interval": None, "size": "auto"}
    return panel.updates({**usual, **settings, "keep_seed": True}), said


async def _drawing(
    studio: Studio,
    panel: Panel,
    session: Session,
    name: str,
    asked: Generation | Edit,
    picture: tuple[Image.Image, Image.Image | None] | None,
) -> AsyncIterator[tuple[str, Sequence[Drawn] | None]]:
    """(what to show, the pictures when they are all there)."""
    image, mask = (None, None) if picture is None else picture
    loading = studio.loaded(name) is None
    if loading:
        yield stage([""] * asked.n, f"Loading {name} …", 0.0), None
    clock = Clock()
    async with studio.draw(session, "draw", name, asked, image, mask, preview_every=1) as run:
        wanted = run.answer.wish
        notes = [sentence(ValueError(note)) for note in wanted.notes]
        warning = panel.warning(name, asked)
        notes += [sentence(ValueError(warning))] if warning else []
        progress, tiles = Progress(asked.n), [""] * asked.n
        drawn: dict[int, Drawn] = {}
        async for heard in together(run.happening()):
            for number, event in heard:
                progress.hear(number, event)
                if isinstance(event, Step) and event.preview is not None:
                    source = image_source(event.preview, exact=False)
                    tiles[number] = figure(source, event.preview.size, f"Picture {number + 1} on its way")
                elif isinstance(event, Finished):
                    made = event.picture
                    data = await run.file(made.image, number, made.settings)
                    path = session.keep(data, _file_name(asked, wanted.seed, number))
                    about = _words(name, asked, wanted.seed, number)
                    tiles[number] = figure(image_source(made.image), made.image.size, about)
                    drawn[number] = Drawn(path, about, name, {**made.settings, "number": number})
            if len(drawn) < asked.n:
                yield stage(tiles, str(progress), progress.share, notes), None
        status = f"{asked.n} pictures" if asked.n > 1 else "Drawn"
        status += f" in {spelt(clock.seconds)}" + " with loading the model" * loading
        yield stage(tiles, f"{status} · seed {wanted.seed}", None, notes), [drawn[n] for n in sorted(drawn)]


def _words(name: str, asked: Generation | Edit, seed: int, number: int) -> str:
    """A picture in a few words."""
    what = " ".join((getattr(asked, "prompt", None) or "").split())
    which = f" no. {number + 1}" if asked.n > 1 else ""
    return f"{what[:80] or name}, seed {seed}{which}"


def _file_name(asked: Generation | Edit, seed: int, number: int) -> str:
    what = "-".join((getattr(asked, "prompt", None) or "picture").lower().split())[:40].strip("-.")
    return f"{what}-{seed}-{number}.png"


def _about(one: Drawn) -> str:
    """A picture's settings, as a table."""
    rows = [("model", one.model), *written(one.settings)]
    cells = "".join(f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table class='settings'><caption>{escape(one.caption)}</caption>{cells}</table>"
