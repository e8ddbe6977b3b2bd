"""The Real pictures tab: a picture to its noise and back by three methods, and edited in two ways."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ddim._version import __version__
from ddim.errors import ConfigError
from ddim.inversion import METHODS
from ddim.pipelines import DiffusionPipeline
from ddim.scheduler.recommended import suitable_guidance
from ddim.serving.futures import Finished
from ddim.serving.logs import tell
from ddim.serving.parameters import SEEDS, Generation
from ddim.serving.pictures import encoded
from ddim.serving.refusal import Refusal
from ddim.studio.clock import Clock, Share, spelt
from ddim.studio.desk import Done, StoppedError, Studio, sentence, together
from ddim.studio.frames import classes_of
from ddim.studio.panel import Panel
from ddim.studio.sessions import Session
from ddim.studio.stage import figure, image_source, message, stage
from ddim.studio.teacher import teacher_of
from ddim.studio.there_and_back import NAMES, Came, Changed, Edits, Failed, Start, come_back, edit_both
from ddim.studio.uploads import dropped_picture, read_dropped

__all__ = ["beside", "build", "conditions", "example"]

_PICTURE, _TARGET, _SEED = "a red heart", "a blue heart", 7
_CLASS, _TARGET_CLASS = 7, 1

_NO_BACK = "Drop a picture, or just press the button: then one of the model's own is led to its noise and back."
_NO_EDIT = "Drop a picture, or just press the button: then one of the model's own is edited."


def example(draws_texts: bool, class_count: int | None) -> tuple[Generation, str, str]:
    """A picture of the model's own: (what to ask for, what it shows, what to edit it to)."""
    if draws_texts:
        return Generation(prompt=_PICTURE, seed=_SEED), _PICTURE, _TARGET
    if class_count is None:
        return Generation(seed=_SEED), "", ""
    one, other = (label % class_count for label in (_CLASS, _TARGET_CLASS))
    return Generation(class_label=one, seed=_SEED), str(one), str(other)


def conditions(shows: str, draws_texts: bool, class_count: int | None) -> dict[str, Any]:
    """What a picture shows, as a field says it, in the words of `pipe.denoiser`.

    >>> conditions("a cat", True, None), conditions("3", False, 10), conditions("", False, 10)
    ({'prompt': 'a cat'}, {'class_labels': [3]}, {})

    Raises:
        ConfigError: it is no class.
    """
    if draws_texts:
        return {"prompt": shows.strip()}
    if class_count is None or not shows.strip():
        return {}
    labels = classes_of(shows, class_count)
    if len(labels) != 1:
        raise ConfigError("a picture shows one class: give one number, or none")
    return {"class_labels": list(labels)}


# --- what the page shows ----------------------------------------------------------------------------------------------


def beside(columns: list[list[str]], status: str, share: float | None = None, note: str = "") -> str:
    """Columns beside each other, whose parts begin at the same heights, in the place where a run shows."""
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}" aria-label="How far it is"></progress>'
    rows = max(map(len, columns), default=1)
    shown = "".join(f'<section class="column" style="--rows: {rows}">{"".join(parts)}</section>' for parts in columns)
    below = f'<p class="number">{escape(note)}</p>' if note else ""
    return (
        f'<div class="stage"><div class="status" role="status" aria-live="polite">{escape(status)}</div>{bar}'
        f'<div class="columns">{shown}</div>{below}</div>'
    )


def _tile(image: Image.Image, about: str, caption: str = "") -> str:
    return figure(image_source(image), image.size, about, caption)


def _named(title: str, said: str = "") -> list[str]:
    return [f"<h3>{escape(title)}</h3>", f'<p class="number">{escape(said)}</p>']


def _waiting(title: str, tiles: int) -> list[str]:
    return [*_named(title), *['<figure class="picture waiting"></figure>'] * tiles]


def _came(came: Came, is_latent: bool) -> list[str]:
    """A method's column."""
    name = NAMES[came.method]
    said = f"{came.evaluations} evaluations of the network."
    if is_latent:
        said = f"Against the file: {came.whole}. {said}"
    if came.unsettled:
        said += f" It was not found at {came.unsettled} of the steps: more steps help."
    return [
        *_named(name, sentence(ValueError(str(came.error)))),
        _tile(came.image, f"What came back by {name}", "came back"),
        _tile(came.apart, f"The difference by {name}", f"the difference, {came.times} times"),
        _tile(came.noise, f"The noise by {name}", f"its noise, deviation {came.deviation:.2f}"),
        f'<p class="number">{escape(said)}</p>',
    ]


def _failed(failed: Failed, title: str) -> list[str]:
    wrong = f'<div class="wrong" role="alert">{escape(sentence(ValueError(failed.why)))}</div>'
    return [f"<h3>{escape(title)}</h3>", wrong]


def _start(start: Start, shows_both: bool) -> list[str]:
    """The picture that goes in."""
    width, height = start.image.size
    said = f"{width}x{height} pixels."
    column = [*_named("The picture", said), _tile(start.image, "The picture", "as the model is given it")]
    if start.lost is None:
        return column
    if not shows_both:
        return [*_named("The picture", f"{said} The autoencoder alone: {start.lost}."), column[-1]]
    alone = f"what the autoencoder alone makes of it: {start.lost}"
    return [*column, _tile(start.seen, "The picture as the autoencoder has it", alone)]


class _Shown:
    """What a run has told so far.

    Args:
        titles: of the columns, by their keys.
        tiles: how many pictures each column has.
    """

    def __init__(self, titles: Mapping[str, str], tiles: int) -> None:
        self._titles, self._tiles, self._clock = titles, tiles, Clock()
        self._columns = {"": _waiting("The picture", 1)}
        self._columns |= {key: _waiting(title, tiles) for key, title in titles.items()}
        self._status, self._share, self._note = "Starting …", 0.0, ""
        self._is_latent = False
        self.made: dict[str, Image.Image] = {}  # the edited pictures

    def hear(self, what: Any) -> None:
        if isinstance(what, Share):
            self._share, self._status = what.share, what.doing
        elif isinstance(what, Start):
            self._columns[""] = _start(what, shows_both=self._tiles > 1)
            self._is_latent = what.lost is not None
            if self._tiles > 1:
                self._note = "Errors are those of the way there and back alone. The deviation of true noise is 1."
                self._note += " Of the latents, three channels are shown, as colours." * self._is_latent
        elif isinstance(what, Came):
            self._columns[what.method] = _came(what, self._is_latent)
        elif isinstance(what, Changed):
            title = self._titles[what.by]
            self.made[what.by] = what.image
            self._columns[what.by] = [*_named(title, _HOW[what.by]), _tile(what.image, f"Edited: {title}")]
        elif isinstance(what, Failed):
            self._columns[what.method] = _failed(what, self._titles[what.method])

    def html(self) -> str:
        """All of it."""
        status = f"{self._status}{self._clock.left(self._share)}"
        return beside(list(self._columns.values()), status, self._share, self._note)

    def ended(self) -> str:
        return beside(list(self._columns.values()), f"Done in {spelt(self._clock.seconds)}", None, self._note)


# --- running ----------------------------------------------------------------------------------------------------------


async def _own(studio: Studio, session: Session, tab: str, name: str) -> tuple[Path, Image.Image, str, str]:
    """A picture that the model itself draws: (its file, it, what it shows, what to edit it to)."""
    asked, shows, target = example(*_kind(studio, name))
    async with studio.draw(session, tab, name, asked) as run:
        async for _, event in run.happening():
            if isinstance(event, Finished):
                made = event.picture
                data = await run.file(made.image, 0, made.settings)
                return session.keep(data, "picture.png"), made.image, shows, target
    raise Refusal("the model drew nothing", status=500)


def _kind(studio: Studio, name: str) -> tuple[bool, int | None]:
    """(whether a model draws texts, how many classes it knows)"""
    known = studio.known(name)
    return (True, None) if known is None else (known.draws_texts, known.class_count)


def _usual_guidance(studio: Studio, name: str) -> float:
    """The guidance of the model that edits where another is chosen."""
    name = teacher_of(studio, name)[0]
    scheduler, (draws_texts, _) = studio.scheduler(name), _kind(studio, name)
    if scheduler is None:
        return 7.5 if draws_texts else 1.0
    return suitable_guidance(scheduler.config, draws_texts, None, None)[0]


def build(studio: Studio, panel: Panel) -> None:
    """The tab, inside of which this is called."""
    usual = studio.names[0]
    labels = _kind(studio, usual)[1]
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=1, min_width=260, elem_classes="side"):
            picture = dropped_picture(label="Real picture", elem_id="real-picture")
            shows = gr.Textbox(elem_id="real-shows", **_field("What it shows", labels, "a red heart; or nothing"))
            own = gr.Button("Use a picture of the model's own", size="md", elem_id="real-own")
            about = gr.HTML(_about(studio, usual), elem_id="real-about")
        with gr.Column(scale=3, min_width=300, elem_classes="side"):
            task = gr.Radio(
                label="What to do with it",
                choices=[("Lead it to its noise and back", "back"), ("Edit it", "edit")],
                value="back",
            )
            with gr.Column(elem_classes="side") as going_back:
                steps = gr.Slider(
                    label="Steps each way",
                    minimum=2,
                    maximum=200,
                    step=1,
                    value=50,
                    info="More steps bring DDIM nearer to the picture.",
                )
                with gr.Row(elem_classes="buttons"):
                    lead = gr.Button("Lead it there and back", variant="primary", elem_classes="main-button")
                    stop_lead = gr.Button("Cancel", elem_classes="cancel-button", interactive=False)
                led = gr.HTML(stage([], _NO_BACK), elem_id="real-back-stage")
            with gr.Column(visible=False, elem_classes="side") as editing:
                target = gr.Textbox(elem_id="real-target", **_field("What it is to show", labels, "a blue heart"))
                with gr.Row(elem_classes="fields"):
                    strength = gr.Slider(
                        label="Strength",
                        minimum=0.05,
                        maximum=1,
                        step=0.05,
                        value=0.7,
                        info="How far up to the noise to go; less keeps more of the picture.",
                    )
                    guidance = gr.Slider(
                        label="Guidance",
                        minimum=0,
                        maximum=20,
                        step=0.1,
                        value=_usual_guidance(studio, usual),
                        info="How strongly to follow what it is to show; 1 is none.",
                    )
                with gr.Row(elem_classes="fields"):
                    edit_steps = gr.Slider(label="Steps of the whole way", minimum=4, maximum=200, step=1, value=50)
                    method = gr.Dropdown(
                        label="Inversion by", choices=[(NAMES[name], name) for name in METHODS], value="ddim"
                    )
                    seed = gr.Number(
                        label="Seed of CycleDiffusion",
                        precision=0,
                        minimum=0,
                        maximum=2**53 - 1,
                        value=0,
                        min_width=120,
                    )
                with gr.Row(elem_classes="buttons"):
                    go = gr.Button("Edit", variant="primary", elem_classes="main-button")
                    stop_go = gr.Button("Cancel", elem_classes="cancel-button", interactive=False)
                edited = gr.HTML(stage([], _NO_EDIT), elem_id="real-edit-stage")
                with gr.Row(elem_classes="buttons", visible=False) as keeping:
                    keep = {
                        by: gr.DownloadButton(f"Download: {title}", size="md", elem_id=f"real-download-{by}")
                        for by, title in _EDITS.items()
                    }

    model = panel.inputs[0]
    assert isinstance(model, gr.Dropdown)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    task.change(
        lambda chosen: [gr.update(visible=chosen == each) for each in ("back", "edit")],
        task,
        [going_back, editing],
        **quiet,
    )

    def follow(name: str, said: str, aim: str) -> dict[Any, Any]:
        count = _kind(studio, name)[1]
        # What fits is not told again: meanwhile the field may say something else.
        one, other = (_emptied(text or "", count) for text in (said, aim))
        return {
            shows: gr.update(**_field("What it shows", count, "a red heart; or nothing"), **one),
            target: gr.update(**_field("What it is to show", count, "a blue heart"), **other),
            guidance: _usual_guidance(studio, name),
            about: _about(studio, name),
        }

    model.change(follow, [model, shows, target], [shows, target, guidance, about], **quiet)

    def drawn(path: Path, said: str, aim: str) -> dict[Any, Any]:
        return {picture: str(path), shows: said, target: aim}

    async def use_own(name: str, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        yield {own: gr.update(interactive=False)}
        try:
            path, _, said, aim = await _own(studio, studio.sessions.of(request.session_hash), "real-own", name)
            yield {**drawn(path, said, aim), own: gr.update(interactive=True)}
        except Exception as error:
            yield {own: gr.update(interactive=True), led: _wrong(error)}

    own.click(use_own, model, [own, picture, shows, target, led], concurrency_limit=None, **quiet)

    async def running(
        session: Session,
        tab: str,
        name: str,
        titles: Mapping[str, str],
        tiles: int,
        work: Callable[[DiffusionPipeline, Callable[[Any], None]], None],
    ) -> AsyncIterator[tuple[_Shown, bool]]:
        """(what to show, whether it is the end)."""
        name = teacher_of(studio, name)[0]  # which the page says below the picture
        shown = _Shown(titles, tiles)
        loading = studio.loaded(name) is None
        shown.hear(Share(0.0, f"Loading {name} …" if loading else "Starting …"))
        yield shown, False
        async for heard in together(studio.aside(session, tab, name, work)):
            for what in heard:
                shown.hear(what)
            yield shown, any(isinstance(what, Done) for what in heard)

    # A picture of the model's own is put in place by a listener that ends with it: gradio's page changes what it was
    # given, if a listener goes on to tell it of other things.
    failed = gr.State("")

    def first(tab: str, stage_of: gr.HTML, cancel: gr.Button) -> Callable[..., AsyncIterator[dict[Any, Any]]]:
        async def ready(request: gr.Request, dropped: str | None, name: str) -> AsyncIterator[dict[Any, Any]]:
            yield {stage_of: beside([], "Starting …", 0.0), cancel: gr.update(interactive=True), failed: ""}
            if dropped is None:
                try:
                    path, _, said, aim = await _own(studio, studio.sessions.of(request.session_hash), tab, name)
                    yield drawn(path, said, aim)
                except Exception as error:
                    yield {failed: _wrong(error)}

        return ready

    async def there(
        dropped: str | None, said: str, number: int, name: str, wrong: str, request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        session = studio.sessions.of(request.session_hash)
        last: dict[Any, Any] = {led: wrong} if wrong else {}
        try:
            image = None if wrong else read_dropped(studio, session, dropped)
            shown_as = conditions(said or "", *_kind(studio, name)) if image else {}

            def work(pipe: DiffusionPipeline, say: Callable[[Any], None]) -> None:
                assert image is not None
                come_back(pipe, image, int(number), shown_as, say)

            if image is not None:
                async for shown, is_end in running(session, "real-back", name, NAMES, 3, work):
                    yield {led: shown.ended() if is_end else shown.html()}
        except Exception as error:
            last = {led: _wrong(error)}
        yield {stop_lead: gr.update(interactive=False), **last}

    once: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "once", **quiet}
    lead.click(
        first("real-back", led, stop_lead),
        [picture, model],
        [led, stop_lead, failed, picture, shows, target],
        **once,
    ).then(there, [picture, shows, steps, model, failed], [led, stop_lead], concurrency_limit=None, **quiet)

    async def change(
        dropped: str | None,
        said: str,
        aim: str,
        share: float,
        scale: float,
        number: int,
        way: str,
        drawn_seed: float | None,
        name: str,
        wrong: str,
        request: gr.Request,
    ) -> AsyncIterator[dict[Any, Any]]:
        session = studio.sessions.of(request.session_hash)
        yield {keeping: gr.update(visible=False)}
        last: dict[Any, Any] = {edited: wrong} if wrong else {}
        try:
            given = None if wrong else read_dropped(studio, session, dropped)
            if given is None:
                yield {stop_go: gr.update(interactive=False), **last}
                return
            kind = _kind(studio, name)
            if not (aim or "").strip() and (kind[0] or kind[1] is not None):
                raise ConfigError("say what it is to show")
            how = Edits(
                conditions(said or "", *kind),
                conditions(aim or "", *kind),
                float(share),
                int(number),
                float(scale) if kind[0] or kind[1] is not None else None,
                min(max(int(drawn_seed or 0), 0), SEEDS),
                way,  # type: ignore[arg-type]  # one of the choices, which Gradio checks
            )
            image = given

            def work(pipe: DiffusionPipeline, say: Callable[[Any], None]) -> None:
                edit_both(pipe, image, how, say)

            async for shown, is_end in running(session, "real-edit", name, _EDITS, 1, work):
                if not is_end:
                    yield {edited: shown.html()}
                    continue
                files = _files(session, teacher_of(studio, name)[0], how, shown.made)
                last = {  # told last of all, as gradio's page may lose what a listener goes on after
                    edited: shown.ended(),
                    keeping: gr.update(visible=bool(files)),
                    **{keep[by]: gr.update(value=str(path), visible=True) for by, path in files.items()},
                    **{keep[by]: gr.update(visible=False) for by in keep if by not in files},
                }
        except Exception as error:
            last = {edited: _wrong(error)}
        yield {stop_go: gr.update(interactive=False), **last}

    go.click(
        first("real-edit", edited, stop_go),
        [picture, model],
        [edited, stop_go, failed, picture, shows, target],
        **once,
    ).then(
        change,
        [picture, shows, target, strength, guidance, edit_steps, method, seed, model, failed],
        [edited, stop_go, keeping, *keep.values()],
        concurrency_limit=None,
        **quiet,
    )

    def stopping(tab: str) -> Callable[[gr.Request], None]:
        def stop(request: gr.Request) -> None:
            studio.sessions.of(request.session_hash).cancel(tab)

        return stop

    stop_lead.click(stopping("real-back"), None, None, queue=False, **quiet)
    stop_go.click(stopping("real-edit"), None, None, queue=False, **quiet)


_EDITS = {"cycle": "CycleDiffusion", "inversion": "Through inversion"}
_HOW = {
    "cycle": "The noise of every step of a random sampler is kept.",
    "inversion": "The noise that the sampler backwards leads to is kept.",
}


def _field(label: str, class_count: int | None, example: str) -> dict[str, Any]:
    """A field that says what a picture shows, for a model of texts or of classes."""
    if class_count is None:
        return {"label": label, "placeholder": example}
    return {"label": f"{label}: its class", "placeholder": f"0 to {class_count - 1}"}


def _emptied(text: str, class_count: int | None) -> dict[str, Any]:
    """What empties a field that says this, unless it may be said of the model: a text is no class, a number no text."""
    fits = not text.strip() or text.strip().isdigit() == (class_count is not None)
    return {} if fits else {"value": ""}


def _about(studio: Studio, name: str) -> str:
    said = teacher_of(studio, name)[1]
    return f'<p class="hint">{escape(said)}</p>' if said else ""


def _wrong(error: Exception) -> str:
    """What the page says of an error."""
    if isinstance(error, StoppedError):
        return stage([], "Cancelled.")
    if not isinstance(error, (Refusal, ConfigError)):
        tell("a real picture of the studio failed", error=error)
    return message(sentence(error))


def _files(session: Session, name: str, how: Edits, made: Mapping[str, Image.Image]) -> dict[str, Path]:
    """The edited pictures as files, which say how they were made."""
    files = {}
    for by, image in made.items():
        method = "cycle" if by == "cycle" else how.method
        settings: dict[str, Any] = {"model": name, "method": method, "strength": how.strength, "steps": how.steps}
        settings |= {"source": dict(how.source), "target": dict(how.target), "guidance_scale": how.guidance_scale}
        settings |= {"seed": how.seed, "eta": 1.0} if by == "cycle" else {}
        recipe = {"version": __version__, "command": "edit", "settings": settings}
        files[by] = session.keep(encoded(image, "png", recipe=recipe), f"edited-{method}.png")
    return files
