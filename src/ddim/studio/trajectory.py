"""The Trajectory tab: a run with all of its steps, to go through by a slider, and what the network saw at each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ddim.pipelines import DiffusionPipeline
from ddim.serving.logs import tell
from ddim.serving.parameters import Drawing
from ddim.serving.refusal import Refusal
from ddim.serving.wishes import wish
from ddim.studio.desk import Done, StoppedError, Studio, sentence, together
from ddim.studio.panel import Panel
from ddim.studio.recording import MOST, Moment, Recording, record
from ddim.studio.sessions import Session
from ddim.studio.stage import figure, image_source, message, stage

__all__ = ["build", "scrubber"]

_HERE = Path(__file__).parent
_EMPTY = "Press Record to draw once more, and then go through the steps with the slider."

SMALL = 128  # pixels of the longer side, up to which a step's pictures are shown as they are

# What a network predicts, in words.
_PREDICTED = {"epsilon": "the noise ε", "v_prediction": "the velocity v", "sample": "the image x₀"}


def build(studio: Studio, panel: Panel) -> None:
    """The tab, inside of which this is called."""
    with gr.Column(elem_classes="side"):
        summary = gr.Markdown("", elem_classes="hint", container=False, elem_id="trajectory-summary")
        with gr.Row(elem_classes="buttons"):
            start = gr.Button("Record", variant="primary", elem_classes="main-button", elem_id="trajectory-record")
            cancel = gr.Button("Cancel", elem_classes="cancel-button", elem_id="trajectory-cancel", interactive=False)
        shown = gr.HTML(
            stage(["", ""], _EMPTY),
            elem_id="trajectory-stage",
            apply_default_css=False,
            css_template=(_HERE / "trajectory.css").read_text(encoding="utf-8"),
            js_on_load=(_HERE / "trajectory.js").read_text(encoding="utf-8"),
        )

    painted, share = panel.start

    async def run(request: gr.Request, *given: Any) -> AsyncIterator[dict[Any, Any]]:
        *values, image, painting, strength = given
        session = studio.sessions.of(request.session_hash)
        yield {shown: stage(["", ""], "Starting …", 0.0), cancel: gr.update(interactive=True)}
        last: dict[Any, Any] = {cancel: gr.update(interactive=False)}
        try:
            picture = painted.read(session, image, painting)
            more = {} if picture is None else {"strength": float(strength)}
            name, asked = panel.asked(values, edits=picture is not None, n=1, **more)
            warning = panel.warning(name, asked)
            notes = [sentence(ValueError(warning))] if warning else []
            async for html in recorded(studio, session, name, asked, notes, *(picture or ())):
                yield {shown: html}
        except StoppedError:
            last[shown] = stage(["", ""], "Cancelled.")
        except Exception as error:
            if not isinstance(error, Refusal):
                tell("a run of the studio could not be recorded", error=error)
            last[shown] = message(sentence(error))
        yield last

    async def stop(request: gr.Request) -> None:
        studio.sessions.of(request.session_hash).cancel("trajectory")

    async def say(*values: Any) -> str:
        return f"With the settings of the Draw tab: {panel.summary(values)}"

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    start.click(
        run,
        [*panel.inputs, *painted.inputs, share],
        [shown, cancel],
        concurrency_limit=None,
        trigger_mode="once",
        **quiet,
    )
    cancel.click(stop, None, None, queue=False, **quiet)
    panel.selected["Trajectory"].select(say, panel.inputs, summary, **quiet)


async def recorded(
    studio: Studio,
    session: Session,
    name: str,
    asked: Drawing,
    notes: Sequence[str] = (),
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
) -> AsyncIterator[str]:
    """What to show while a run is recorded, and at the end the scrubber.

    Args:
        name: of the model.
        asked: of which the first picture is drawn.
        notes: sentences about it.
        image, mask: to start from.

    Raises:
        Refusal, DDIMError: it cannot be drawn.
        StoppedError: it was cancelled.
    """
    if studio.loaded(name) is None:
        yield stage(["", ""], f"Loading {name} …", 0.0)

    def work(pipe: DiffusionPipeline, tell: Callable[[Any], None]) -> Recording:
        return record(pipe, wish(name, pipe, asked, studio.limits, image, mask), tell)

    started, figures = time.monotonic(), ["", ""]
    async for heard in together(studio.aside(session, "trajectory", name, work)):
        told = heard[-1]
        if isinstance(told, Done):
            yield scrubber(told.result, notes)
            return
        made, steps, _ = told
        latest = next((moment for *_, moment in reversed(heard) if moment is not None), None)
        if latest is not None:
            figures = _pair(latest)
        spent = time.monotonic() - started
        left = f" · {spent / made * (steps - made):.0f} s left" if spent > 1 and made < steps else ""
        yield stage(figures, f"step {made} of {steps}{left}", made / steps)


# --- the page's part --------------------------------------------------------------------------------------------------


def scrubber(recording: Recording, notes: Sequence[str] = ()) -> str:
    """All steps of a run in HTML, of which one is seen; which one, the slider's script says.

    The last place is the finished picture, without loss and in full size.

    Args:
        notes: sentences about the run, beside the recording's own.
    """
    steps, kept = len(recording.plan), len(recording.moments)
    said = [*notes, *(sentence(ValueError(note)) for note in recording.notes)]
    if kept < steps:
        said.append(f"Of the {steps} steps {kept} are kept, evenly apart: {MOST} are the most.")
    if max(recording.image.size) > SMALL:
        said.append("The steps' pictures are made coarser, to fit into the page; the finished one is as it is.")
    last = f"The picture, after {steps} step{'s' * (steps != 1)}"
    sections = [_section(recording, moment, place) for place, moment in enumerate(recording.moments)]
    about = f"Drawn in {steps} steps, seed {recording.settings.get('seed')}"
    end = figure(image_source(recording.image), recording.image.size, about, "the picture")
    sections.append(
        f'<section class="moment" data-place="{kept}" data-said="{escape(last)}"><div class="pictures of-1">{end}</div>'
        f"<p>{escape(_ending(recording))}</p></section>"
    )
    lines = "".join(f'<p class="note">{escape(line)}</p>' for line in said)
    return (
        '<div class="stage scrubber" tabindex="-1"><div class="bar">'
        '<button type="button" class="play" aria-label="Play the steps">▶</button>'
        f'<input type="range" min="0" max="{kept}" step="1" value="{kept}" aria-label="Step of the run" '
        f'aria-valuetext="{escape(last)}"></div>'
        f'<div class="status where" aria-hidden="true">{escape(last)}</div>{lines}'
        f"{''.join(sections)}{_always(recording)}</div>"
    )


def _pair(moment: Moment) -> list[str]:
    """The sample and what the step takes for the image."""
    return [
        figure(image_source(image, exact=False, small=SMALL), image.size, f"{name} of step {moment.index + 1}", caption)
        for image, name, caption in (
            (moment.x_t, "The sample", "xₜ: the sample"),
            (moment.x0, "The predicted image", "predicted x₀: the picture seen in it"),
        )
    ]


def _section(recording: Recording, moment: Moment, place: int) -> str:
    row, plan = moment.row, recording.plan
    said = f"Step {moment.index + 1} of {len(plan)}, at timestep {row.timestep}"
    after = "the picture" if row.previous_timestep < 0 else str(row.previous_timestep)
    snr = row.alpha_bar / (1 - row.alpha_bar) if row.alpha_bar < 1 else float("inf")
    numbers = [
        ("timestep t", str(row.timestep)),
        ("next t", after),
        ("ᾱ", f"{row.alpha_bar:.5g}"),
        ("SNR", f"{snr:.4g}"),
        ("σ", f"{row.sigma:.4g}"),
    ]
    if plan.order == 2:
        numbers.append(("2nd order", f"{row.carried:.4g}"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in numbers)
    is_latent = moment.given.mode == "L" and moment.x_t.mode != "L"
    saw = _tile(moment.given, "What the network was given", "xₜ, its numbers" + " in latent space" * is_latent)
    predicted = _PREDICTED.get(plan.prediction_type, plan.prediction_type)
    answers = _tile(moment.output, "What the network answered", f"its answer, {predicted}")
    text = "text" if "prompt" in recording.settings else "class"
    if moment.without is not None and moment.within is not None:
        other = "with the negative text" if recording.settings.get("negative_prompt") else f"without the {text}"
        answers += _tile(moment.without, f"The image predicted {other}", f"x₀ {other}")
        answers += _tile(moment.within, f"The image predicted with the {text}", f"x₀ with the {text}")
    return (
        f'<section class="moment" data-place="{place}" data-said="{escape(said)}" hidden>'
        f'<div class="pictures of-2">{"".join(_pair(moment))}</div><dl class="numbers">{cells}</dl>'
        f'<div class="looks"><div><h3>What the network saw</h3><div class="tiles">{saw}</div></div>'
        f'<div><h3>What it answered</h3><div class="tiles">{answers}</div></div></div></section>'
    )


def _always(recording: Recording) -> str:
    """What the network was given at every step alike."""
    settings = recording.settings
    rows: list[tuple[str, str]] = []
    if "prompt" in settings:
        rows.append(("text", settings["prompt"] or "none"))
        if settings.get("negative_prompt") is not None:
            rows.append(("negative text", settings["negative_prompt"] or "none"))
    elif "class_label" in settings:
        label = settings["class_label"]
        rows.append(("class", "none in particular" if label is None else str(label)))
    scale = settings.get("guidance_scale")
    if scale is not None and scale != 1:
        interval = settings.get("guidance_interval")
        where = "" if interval is None else f", at timesteps {interval[0]} to {interval[1]}"
        rows.append(("guidance", f"{scale:g}, rescale {settings.get('guidance_rescale') or 0:g}{where}"))
    tiles = ""
    if recording.mask is not None and recording.masked is not None:
        tiles += _tile(recording.mask, "The mask: white where it paints", "mask: white where it paints")
        tiles += _tile(recording.masked, "The masked picture", "the picture without it")
    if not rows and not tiles:
        return ""
    cells = "".join(f"<tr><th scope='row'>{name}</th><td><div>{escape(value)}</div></td></tr>" for name, value in rows)
    return (
        f"<table class='settings'><caption>At every step alike</caption>{cells}</table>"
        + f'<div class="tiles">{tiles}</div>' * bool(tiles)
    )


def _ending(recording: Recording) -> str:
    last = recording.plan[-1]
    if last.alpha_bar_prev == 1:
        return "The last step leads to the image that was predicted in it."
    return (
        f"The last step leads to ᾱ = {last.alpha_bar_prev:.4f}, as the model was trained, so that the picture is "
        "nearly the image that was predicted in it."
    )


def _tile(image: Image.Image, about: str, caption: str) -> str:
    return figure(image_source(image, exact=False, small=SMALL), image.size, about, caption)
