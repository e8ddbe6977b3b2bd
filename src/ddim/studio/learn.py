"""The Learn tab: the paper's equations beside the row of the plan that they become."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from ddim.errors import DDIMError
from ddim.serving.logs import tell
from ddim.studio.desk import Studio, sentence
from ddim.studio.equations import equations, markdown
from ddim.studio.panel import Panel
from ddim.studio.planning import ROWS_SCRIPT, own_scheduler, title
from ddim.studio.plans import Choice, as_choice, as_fields
from ddim.studio.stage import message
from ddim.studio.tables import rows_table

__all__ = ["build"]

_COLUMNS = (
    "alpha_bar", "alpha_bar_prev", "a", "b", "sigma", "p", "q", "r", "s", "signal_rate_prev", "direction", "carried",
)  # fmt: skip
_MATH: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "$", "right": "$", "display": False},
]
# Marks the row of the step that the slider is at.
_MARK = """(step, ...more) => {
  for (const row of document.querySelectorAll("#learn-rows tr[data-step]")) {
    const is = Number(row.dataset.step) === step;
    row.setAttribute("aria-selected", String(is));
    row.tabIndex = is ? 0 : -1;
    const box = row.closest(".rows");
    if (is && box) box.scrollTop = Math.max(0, row.offsetTop - box.clientHeight / 2);
  }
  return [step, ...more];
}"""


def build(studio: Studio, panel: Panel) -> None:
    """The tab, inside of which this is called."""
    first = studio.names[0]
    shown = _shown(studio, first, None, 1)
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=2, min_width=300, elem_classes="side learn-rows"):
            said = gr.HTML(shown["said"], elem_id="learn-said")
            step = gr.Slider(
                label="Step",
                minimum=1,
                step=1,
                info="Or point at a row, click it, or go through them with the arrow keys.",
                elem_id="learn-step",
                **shown["step"],
            )
            table = gr.HTML(shown["table"], js_on_load=ROWS_SCRIPT, elem_id="learn-rows")
        with gr.Column(scale=3, min_width=300, elem_classes="side"):
            text = gr.Markdown(
                shown["text"], latex_delimiters=_MATH, elem_id="learn-text", elem_classes="equations", container=False
            )
    # In turn, each a few milliseconds: else what was asked first could come last, and stay.
    quiet: dict[str, Any] = {
        "show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "learn"
    }  # fmt: skip
    every: dict[str, Any] = {"said": said, "step": step, "table": table, "text": text}
    seen = gr.State(shown["seen"])  # what is on the page: a tab that is opened again stays as it was left

    def all_of(made: dict[str, Any]) -> dict[Any, Any]:
        return {
            **{every[key]: made[key] for key in ("said", "table", "text")},
            step: gr.update(**made["step"]),
            seen: made["seen"],
        }

    def show(had: Any, at: int, name: str, *given: Any) -> dict[Any, Any]:
        return {seen: had} if had == [name, *given] else all_of(_shown(studio, name, given, at))

    def slide(at: int, name: str, *given: Any) -> str:
        return str(_shown(studio, name, given, at)["text"])

    def point(event: gr.EventData, name: str, *given: Any) -> tuple[int, str]:
        at = int(event.step)
        return at, slide(at, name, *given)

    inputs = [panel.fields["model"], *panel.plan]
    outputs = [*every.values(), seen]
    panel.selected["Learn"].select(show, [seen, step, *inputs], outputs, trigger_mode="always_last", **quiet)
    panel.planned.then(show, [seen, step, *inputs], outputs, **quiet)
    step.input(slide, [step, *inputs], text, js=_MARK, trigger_mode="always_last", **quiet)
    table.select(point, inputs, [step, text], trigger_mode="always_last", **quiet)


def _shown(studio: Studio, name: str, given: Any, at: Any) -> dict[str, Any]:
    """What the page shows of a step of the plan that is chosen on the Plan tab, or that the model recommends."""
    try:
        own = own_scheduler(studio, name)
        choice = Choice.usual(own) if given is None else as_choice(*given)
        fields = [name, *(as_fields(choice) if given is None else given)]
        plan = choice.plan(own)
        place = min(max(int(at or 1), 1), len(plan)) - 1
        line = title(choice, plan)
        return {
            "said": f'<div class="said"><h2>The plan of the Plan tab</h2><p>{escape(name)}: {escape(line)}</p></div>',
            "step": _range(place + 1, len(plan)),
            "table": rows_table(plan, _COLUMNS, caption="The rows of the plan", chosen=place, picked=True),
            "text": "\n\n".join(markdown(each) for each in equations(plan, place, choice.scheduler(own))),
            "seen": fields,
        }
    except Exception as error:
        if not isinstance(error, DDIMError):
            tell("the equations of the studio failed", error=error)
        said = message(f"{sentence(error)} Choose otherwise on the Plan tab.")
        return {"said": said, "step": _range(1, 1), "table": "", "text": "", "seen": None}


def _range(step: int, steps: int) -> dict[str, Any]:
    """Properties of the slider; of one step it has a second place, at which it cannot be put."""
    return {"value": step, "maximum": max(2, steps), "interactive": steps > 1}
