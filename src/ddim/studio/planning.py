"""The Plan tab: the sampler itself, as a table and as curves that follow what one chooses."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ddim.errors import ConfigError, DDIMError
from ddim.plan import SamplingPlan
from ddim.schedule import SPACINGS
from ddim.scheduler import DDIMScheduler
from ddim.scheduler.recommended import Steps
from ddim.serving.logs import tell
from ddim.studio.curves import curves
from ddim.studio.desk import Studio, sentence
from ddim.studio.panel import Panel
from ddim.studio.plans import (
    OWN,
    PREDICTIONS,
    SCHEDULES,
    Choice,
    as_choice,
    as_fields,
    as_json,
    as_python,
    notes,
    searched,
    spaced,
)
from ddim.studio.stage import message
from ddim.studio.tables import rows_table

__all__ = ["ROWS_SCRIPT", "build", "own_scheduler", "title"]

# Keeps a table where it was scrolled to while its numbers change, and lets rows be picked.
ROWS_SCRIPT = (Path(__file__).parent / "rows.js").read_text(encoding="utf-8")


def build(studio: Studio, panel: Panel) -> None:
    """The tab, inside of which this is called."""
    first = studio.names[0]
    about, shown = _of_model(studio, first), _shown(studio, first, None)
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=1, min_width=270, elem_classes="side"):
            with gr.Group():
                steps = gr.Slider(label="Steps", minimum=1, step=1, elem_id="plan-steps", **about["steps"])
                spacing = gr.Dropdown(label="Spacing", elem_id="plan-spacing", **about["spacing"])
                eta = gr.Slider(
                    label="η",
                    minimum=0,
                    maximum=1,
                    step=0.05,
                    info="Noise of each step: 0 is DDIM, 1 DDPM.",
                    elem_id="plan-eta",
                    **about["eta"],
                )
                sigma_hat = gr.Checkbox(
                    label="σ̂ instead of η",
                    info="The larger noise of the paper's CIFAR-10 runs.",
                    elem_id="plan-sigma-hat",
                    **about["sigma_hat"],
                )
                order = gr.Radio(
                    label="Order",
                    choices=[("1: DDIM", 1), ("2: second order", 2)],
                    elem_id="plan-order",
                    **about["order"],
                )
            with gr.Group():
                schedule = gr.Dropdown(
                    label="Schedule",
                    choices=[("the model's own", OWN), *((name, name) for name in SCHEDULES)],
                    elem_id="plan-schedule",
                    **about["schedule"],
                )
                zero_snr = gr.Checkbox(
                    label="Zero SNR",
                    info="Nothing is left of the image at the last timestep.",
                    elem_id="plan-zero-snr",
                    **about["zero_snr"],
                )
                predicts = gr.Dropdown(label="What the network predicts", elem_id="plan-predicts", **about["predicts"])
            with gr.Row(elem_classes="buttons"):
                draw = gr.Button(
                    "Draw with this",
                    variant="primary",
                    elem_classes="main-button",
                    elem_id="plan-draw",
                    scale=3,
                    min_width=110,
                )
                reset = gr.Button("Reset", elem_id="plan-reset", min_width=80)
        with gr.Column(scale=3, min_width=300, elem_classes="side"):
            said = gr.HTML(shown["said"], elem_id="plan-said")
            table = gr.HTML(shown["table"], js_on_load=ROWS_SCRIPT, elem_id="plan-table")
            drawn = gr.HTML(shown["curves"], elem_id="plan-curves")
            with gr.Accordion("To copy: the plan as Python and as JSON", open=False, elem_classes="group") as to_copy:
                python = gr.Code(
                    shown["python"],
                    language="python",
                    label="Python that makes this plan",
                    interactive=False,
                    buttons=["copy"],
                    max_lines=24,
                    elem_id="plan-python",
                )
                json = gr.Code(
                    shown["json"],
                    language="json",
                    label="The plan as JSON: SamplingPlan.from_dict reads it",
                    interactive=False,
                    buttons=["copy", "download"],
                    max_lines=24,
                    elem_id="plan-json",
                )
    fields: dict[str, Any] = {
        "steps": steps,
        "spacing": spacing,
        "eta": eta,
        "sigma_hat": sigma_hat,
        "order": order,
        "zero_snr": zero_snr,
        "schedule": schedule,
        "predicts": predicts,
    }
    model: Any = panel.fields["model"]
    panel.plan = list(fields.values())
    outputs = {"said": said, "table": table, "curves": drawn, "python": python, "json": json}
    # In turn, each a few milliseconds: else what was asked first could come last, and stay.
    quiet: dict[str, Any] = {
        "show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "plan"
    }  # fmt: skip

    def set_to(made: dict[str, str]) -> dict[Any, Any]:
        there = bool(made["json"])
        return {
            **{outputs[key]: made[key] for key in outputs},
            draw: gr.update(interactive=there),
            to_copy: gr.update(visible=there),
        }

    def show(name: str, *given: Any) -> dict[Any, Any]:
        return set_to(_shown(studio, name, given))

    gr.on(
        [field.input for field in fields.values()],
        show,
        [model, *fields.values()],
        [*outputs.values(), draw, to_copy],
        trigger_mode="always_last",
        **quiet,
    )

    def follow(name: str) -> dict[Any, Any]:
        made, usual = _shown(studio, name, None), _of_model(studio, name)
        return {
            **{fields[key]: gr.update(**usual[key]) for key in fields},
            **set_to(made),
        }

    everything = [*fields.values(), *outputs.values(), draw, to_copy]
    panel.planned = model.change(follow, model, everything, trigger_mode="always_last", **quiet)
    reset.click(follow, model, everything, **quiet)

    def draw_with(*given: Any) -> dict[Any, Any]:
        return {**panel.updates(as_choice(*given).drawn_by()), panel.tabs: gr.Tabs(selected="Draw")}

    draw.click(draw_with, panel.plan, [*panel.inputs, panel.tabs], **quiet)


def own_scheduler(studio: Studio, name: str) -> DDIMScheduler:
    """A model's scheduler.

    Raises:
        ConfigError: it is not known before the model was loaded.
    """
    own = studio.scheduler(name)
    if own is None:
        raise ConfigError(f"the schedule of {name} is not at hand before it has drawn: draw with it once")
    return own


def title(choice: Choice, plan: SamplingPlan) -> str:
    """A plan in a line.

    >>> from ddim import DDIMScheduler
    >>> choice = Choice(4, "trailing", 0.5)
    >>> title(choice, choice.plan(DDIMScheduler()))
    '4 steps of first order at trailing timesteps · η 0.5 · epsilon'
    """
    eta = "σ̂" if choice.eta == "sigma_hat" else f"η {choice.eta:g}"
    zero = ["zero SNR"] * (plan.alphas_cumprod[-1] == 0)
    schedule = [f"{choice.schedule} schedule"] * (choice.schedule != OWN)
    steps = str(Steps(len(plan), choice.order, choice.spacing))
    return " · ".join([steps, eta, plan.prediction_type, *schedule, *zero])


def _shown(studio: Studio, name: str, given: Any) -> dict[str, str]:
    """What the page shows of a choice, or of what the model recommends; where that makes no plan, why not, and nothing
    else.
    """
    try:
        own = own_scheduler(studio, name)
        choice = Choice.usual(own) if given is None else as_choice(*given)
        plan = choice.plan(own)
        warned = "".join(f'<p class="note">{escape(note)}</p>' for note in notes(own, choice, plan, name))
        line = title(choice, plan)
        return {
            "said": f'<div class="said"><h2>{escape(line)}</h2>{warned}</div>',
            "table": rows_table(plan, caption=f"The plan: {escape(line)}"),
            "curves": curves(plan, spaced(own, choice.steps), choice.spacing),
            "python": as_python(own, choice),
            "json": as_json(plan),
        }
    except Exception as error:
        if not isinstance(error, DDIMError):
            tell("a plan of the studio failed", error=error)
        return {"said": message(sentence(error)), "table": "", "curves": "", "python": "", "json": ""}


def _of_model(studio: Studio, name: str) -> dict[str, dict[str, Any]]:
    """Properties of the fields, as the model recommends."""
    own = studio.scheduler(name) or DDIMScheduler()
    try:
        usual = Choice.usual(own)
    except ConfigError:  # of its recommendation, which `_shown` says
        usual = Choice(50, own.config.timestep_spacing)
    ways: list[tuple[str, str]] = [(way, way) for way in SPACINGS]
    found = searched(own)
    known = None
    if found:
        ways.append(("searched", "optimized"))
        known = f"This model has searched ones for {', '.join(map(str, found[:-1]))} and {found[-1]} steps."
    kinds = [(f"the model's own: {own.config.prediction_type}", OWN), *((kind, kind) for kind in PREDICTIONS)]
    names = ("steps", "spacing", "eta", "sigma_hat", "order", "zero_snr", "schedule", "predicts")
    about: dict[str, dict[str, Any]] = {
        "steps": {"maximum": max(100, usual.steps)},
        "spacing": {"choices": ways, "info": known},
        "predicts": {"choices": kinds},
    }
    return {name: {"value": value, **about.get(name, {})} for name, value in zip(names, as_fields(usual), strict=True)}
