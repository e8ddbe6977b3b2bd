"""The Between tab: what lies between seeds, texts, classes or pictures, as a strip and as a film."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from PIL import Image

from ddim.errors import ConfigError
from ddim.serving.logs import tell
from ddim.serving.parameters import Generation
from ddim.serving.refusal import Refusal
from ddim.studio.clock import Clock, Share, spelt
from ddim.studio.desk import Done, StoppedError, Studio, sentence, together
from ddim.studio.frames import (
    MOST_BETWEEN,
    Ends,
    Film,
    Frame,
    Note,
    classes_of,
    draw_frames,
    film,
    seeds_of,
    strip,
    texts_of,
)
from ddim.studio.panel import Panel
from ddim.studio.sessions import Session
from ddim.studio.stage import figure, image_source, message, stage
from ddim.studio.teacher import teacher_of
from ddim.studio.uploads import dropped_picture, read_dropped

__all__ = ["build", "ends_of", "film_html"]

_EMPTY = "Press Draw, or Ctrl+Enter, and watch one picture become another."
_KINDS = {"seeds": "Seeds", "texts": "Texts", "classes": "Classes", "pictures": "Pictures"}


def kinds(draws_texts: bool, class_count: int | None) -> list[tuple[str, str]]:
    """What a model has to go between: (label, value) of each."""
    has = {"seeds": True, "texts": draws_texts, "classes": class_count is not None, "pictures": True}
    return [(label, kind) for kind, label in _KINDS.items() if has[kind]]


def ends_of(kind: str, given: Mapping[str, Any], class_count: int | None = None) -> Ends:
    """What to go between, of what the fields say.

    Args:
        kind: "seeds", "texts", "classes" or "pictures".
        given: the values of the fields by their names.
        class_count: of the model.

    Raises:
        ConfigError: it is too little or too much, or no seed or class.
    """
    between = int(given["between"])
    if kind == "seeds":
        ends = Ends(between, seeds=seeds_of(given["seeds"] or ""))
    elif kind == "texts":
        ends = Ends(between, prompts=texts_of(given["texts"] or ""))
    elif kind == "classes":
        ends = Ends(between, class_labels=classes_of(given["classes"] or "", class_count or 0))
    else:
        pictures = tuple(each for each in (given["first"], given["second"]) if each is not None)
        if len(pictures) < 2:
            raise ConfigError("drop two pictures to go between")
        shows = [str(given[name] or "").strip() for name in ("first_shows", "second_shows")]
        said: dict[str, Any] = {}
        if any(shows):
            said = {"prompts": tuple(shows)}
            if class_count is not None:
                said = {"class_labels": classes_of(" ".join(shows), class_count)}
                if len(said["class_labels"]) != 2:
                    raise ConfigError("say the class of both pictures, or of none")
        ends = Ends(between, pictures=pictures, method=given["method"], steps=int(given["steps"]), **said)
    len(ends.way)  # which refuses too few and too many
    return ends


def film_html(made: Film, path: Path) -> str:
    """A film that plays, with the browser's own controls."""
    source, (width, height) = f"gradio_api/file={quote(str(path))}", made.size
    about = "What lies between, as a film"
    if made.suffix == ".mp4":
        shown = (
            f'<video src="{escape(source)}" width="{width}" height="{height}" aria-label="{about}" controls autoplay '
            "loop muted playsinline></video>"
        )
    else:
        shown = f'<img src="{escape(source)}" width="{width}" height="{height}" alt="{about}">'
    note = f'<p class="note">{escape(made.note)}</p>' if made.note else ""
    return f'<div class="film">{shown}{note}</div>'


def build(studio: Studio, panel: Panel) -> None:
    """The tab, inside of which this is called."""
    known = studio.known(studio.names[0])
    draws_texts, class_count = known is None or known.draws_texts, None if known is None else known.class_count
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=2, min_width=300, elem_classes="side"):
            kind = gr.Radio(label="Go between", choices=kinds(draws_texts, class_count), value="seeds")
            seeds = gr.Textbox(label="These seeds", value="7, 8", info="Two or more, with commas between.")
            texts = gr.Textbox(
                label="These texts",
                value="a red heart\na blue heart",
                lines=3,
                max_lines=8,
                info="Two or more, a line each.",
                max_length=studio.limits.prompt_letters,
                visible=False,
            )
            classes = gr.Textbox(
                label="These classes", value="3, 8", info="Two or more, with commas between.", visible=False
            )
            with gr.Column(visible=False, elem_classes="side") as dropping:
                with gr.Row(elem_classes="fields"):
                    with gr.Column(min_width=130):
                        first = dropped_picture(label="From this picture", height=160, elem_id="between-first")
                        first_shows = gr.Textbox(**_shows(class_count))
                    with gr.Column(min_width=130):
                        second = dropped_picture(label="to this picture", height=160, elem_id="between-second")
                        second_shows = gr.Textbox(**_shows(class_count))
                with gr.Row(elem_classes="fields"):
                    method = gr.Dropdown(
                        label="How their noise is found",
                        choices=[("Fixed point: they come back exactly", "fixed-point"), ("DDIM backwards", "ddim")],
                        value="fixed-point",
                    )
                    steps = gr.Slider(label="Steps there and back", minimum=2, maximum=200, step=1, value=50)
            with gr.Row(elem_classes="buttons"):
                go = gr.Button("Draw", variant="primary", elem_classes="main-button")
                cancel = gr.Button("Cancel", elem_classes="cancel-button", interactive=False)
            with gr.Accordion("Frames and film", open=True, elem_classes="group"):
                with gr.Row(elem_classes="fields"):
                    between = gr.Slider(label="Pictures between", minimum=1, maximum=MOST_BETWEEN, step=1, value=6)
                    fps = gr.Slider(label="Frames a second", minimum=1, maximum=30, step=1, value=8)
                returns = gr.Checkbox(label="There and back", value=True, info="The film ends where it began.")
            rest = gr.HTML("", elem_id="between-rest")
        with gr.Column(scale=3, min_width=300, elem_classes="side"):
            shown = gr.HTML(_strip([""] * 8, _EMPTY), elem_id="between-stage")
            playing = gr.HTML("", visible=False, elem_id="between-film")
            with gr.Row(elem_classes="buttons", visible=False) as keeping:
                keep_film = gr.DownloadButton("Download film", size="md", elem_id="between-download-film")
                keep_strip = gr.DownloadButton("Download strip", size="md", elem_id="between-download-strip")

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    groups = {"seeds": seeds, "texts": texts, "classes": classes, "pictures": dropping}
    kind.change(
        lambda chosen: [gr.update(visible=chosen == each) for each in groups], kind, list(groups.values()), **quiet
    )

    def follow(name: str, chosen: str) -> list[Any]:
        about = studio.known(name)
        labels = None if about is None else about.class_count
        choices = kinds(about is None or about.draws_texts, labels)
        # A choice that is still there is not told again: meanwhile the field may have another.
        chosen_anew: dict[str, Any] = {} if chosen in [value for _, value in choices] else {"value": "seeds"}
        return [gr.update(choices=choices, **chosen_anew), *[gr.update(**_shows(labels))] * 2]

    model = panel.inputs[0]
    assert isinstance(model, gr.Dropdown)
    model.change(follow, [model, kind], [kind, first_shows, second_shows], **quiet)

    def settings(*values: Any) -> str:
        return f'<p class="hint">All else is as on the Draw tab: {escape(panel.summary(values))}</p>'

    fields = {
        "seeds": seeds,
        "texts": texts,
        "classes": classes,
        "first": first,
        "second": second,
        "first_shows": first_shows,
        "second_shows": second_shows,
        "method": method,
        "steps": steps,
        "between": between,
        "fps": fps,
        "returns": returns,
    }

    async def run(request: gr.Request, chosen: str, *given: Any) -> AsyncIterator[dict[Any, Any]]:
        values, own = given[len(fields) :], dict(zip(fields, given, strict=False))
        session = studio.sessions.of(request.session_hash)
        yield {
            shown: _strip([""] * (int(own["between"]) + 2), "Starting …", 0.0),
            cancel: gr.update(interactive=True),
            playing: gr.update(value="", visible=False),
            keeping: gr.update(visible=False),
        }
        last: dict[Any, Any] = {}
        try:
            name, asked = panel.asked(values)
            assert isinstance(asked, Generation)
            about = studio.known(name)
            if chosen == "pictures":
                for each in ("first", "second"):
                    own[each] = read_dropped(studio, session, own[each])
            ends = ends_of(chosen, own, None if about is None else about.class_count)
            async for html, made in _drawing(studio, panel, session, name, asked, ends):
                if made is None:
                    yield {shown: html}
                    continue
                told = _about(name, asked, ends)
                reel, sheet = await asyncio.to_thread(_kept, session, made, own, told)
                last = {  # told last of all, as gradio's page may lose what a listener goes on after
                    shown: html,
                    playing: gr.update(value=film_html(*reel), visible=True),
                    keeping: gr.update(visible=True),
                    keep_film: gr.update(value=str(reel[1])),
                    keep_strip: gr.update(value=str(sheet)),
                }
        except StoppedError:
            last = {shown: _strip([""] * 8, "Cancelled.")}
        except Exception as error:
            if not isinstance(error, (Refusal, ConfigError)):
                tell("frames of the studio failed", error=error)
            last = {shown: message(sentence(error))}
        yield {cancel: gr.update(interactive=False), **last}

    go.click(
        run,
        [kind, *fields.values(), *panel.inputs],
        [shown, playing, keeping, keep_film, keep_strip, cancel],
        concurrency_limit=None,
        trigger_mode="once",
        **quiet,
    )

    def stop(request: gr.Request) -> None:
        studio.sessions.of(request.session_hash).cancel("between")

    cancel.click(stop, None, None, queue=False, **quiet)
    panel.selected["Between"].select(settings, panel.inputs, rest, **quiet)


def _shows(class_count: int | None) -> dict[str, Any]:
    """The field that says what a picture shows, for a model of texts or of classes."""
    if class_count is None:
        return {"label": "What it shows", "placeholder": "a red heart, or nothing"}
    return {"label": "Its class", "placeholder": f"0 to {class_count - 1}, or nothing"}


def _strip(tiles: list[str], status: str, share: float | None = None, notes: list[str] | None = None) -> str:
    return f'<div class="strip">{stage(tiles, status, share, notes or [])}</div>'


async def _drawing(
    studio: Studio, panel: Panel, session: Session, name: str, asked: Generation, ends: Ends
) -> AsyncIterator[tuple[str, list[Image.Image] | None]]:
    """(what to show, the frames when they are all there)."""
    count, notes = len(ends.way), list[str]()
    if ends.pictures:
        name, said = teacher_of(studio, name)
        notes += [said] if said else []
    else:
        warning = panel.warning(name, asked)
        notes += [sentence(ValueError(warning))] if warning else []
    tiles, status, share, clock = [""] * count, "Starting …", 0.0, Clock()
    if studio.loaded(name) is None:
        yield _strip(tiles, f"Loading {name} …", 0.0, notes), None
    events = studio.aside(
        session, "between", name, lambda pipe, say: draw_frames(pipe, name, asked, ends, studio.limits, say)
    )
    async for heard in together(events):
        frames: list[Image.Image] | None = None
        for what in heard:
            if isinstance(what, Share):
                share, status = what.share, what.doing
            elif isinstance(what, Frame):
                caption = f"Picture {what.number + 1} of {count}"
                tiles[what.number] = figure(image_source(what.image), what.image.size, caption)
            elif isinstance(what, Note):
                notes.append(what.text)
            elif isinstance(what, Done):
                frames = what.result
        if frames is None:
            yield _strip(tiles, f"{status}{clock.left(share)}", share, notes), None
        else:
            yield _strip(tiles, f"{count} pictures in {spelt(clock.seconds)}", None, notes), frames


def _kept(
    session: Session, frames: list[Image.Image], own: Mapping[str, Any], about: Mapping[str, Any]
) -> tuple[tuple[Film, Path], Path]:
    """The film and its file, and the file of the strip."""
    made = film(frames, float(own["fps"]), returns=bool(own["returns"]), about=about)
    path = session.keep(made.data, f"between{made.suffix}")
    return (made, path), session.keep(strip(frames, about), "between.png")


def _about(name: str, asked: Generation, ends: Ends) -> dict[str, Any]:
    """The settings, which the files say."""
    told: dict[str, Any] = {"model": name, "frames": ends.between + 2}
    for each in ("seeds", "prompts", "class_labels"):
        if getattr(ends, each):
            told[each] = list(getattr(ends, each))
    if ends.pictures:
        return {**told, "images": [f"picture {n + 1}" for n in range(2)], "method": ends.method, "steps": ends.steps}
    same = ("prompt", "negative_prompt", "steps", "order", "spacing", "guidance_scale", "guidance_rescale", "seed")
    return {**{each: getattr(asked, each, None) for each in same}, **told}
