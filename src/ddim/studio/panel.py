"""The settings of a picture: what stands on the Draw tab, and what other tabs draw with but for what they vary."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency
from pydantic import Field

from ddim.errors import DDIMError
from ddim.pipelines.recommended import plan_of_call
from ddim.scheduler.recommended import choose_steps, not_trained_for, suitable_guidance
from ddim.serving.parameters import Edit, Generation, from_json
from ddim.serving.refusal import Refusal
from ddim.studio.desk import Studio
from ddim.studio.uploads import PaintedPicture

__all__ = ["MOST", "Panel"]

MOST = 16  # pictures at a time
AS_MODEL = "model's own"
IN_TURN = "each in turn"
SPACINGS = (AS_MODEL, "leading", "trailing", "linspace", "quadratic", "optimized")
PROMPT = "a sunflower"  # what the bundled models draw well


class _Generations(Generation):
    n: Annotated[int, Field(ge=1, le=MOST)] = 1


class _Edits(Edit):
    n: Annotated[int, Field(ge=1, le=MOST)] = 1


class Panel:
    """The components of all settings, in the two groups that `words` and `how` make.

    Args:
        model: the choice of the model, which stands above all tabs.

    Attributes:
        fields: by the names of `serving.parameters.Generation`, and some of the page's own.
        start: the picture to start from, and the strength, which are not among the inputs.
        tabs: of the page; a listener that has it among its outputs opens a tab by `gr.Tabs(selected="Draw")`.
        selected: the tabs by their names, whose `select` tells that one was opened.
        plan: the fields of the Plan tab, of whose values `plans.as_choice` makes a choice.
        planned: when these were set to what another model recommends.
    """

    start: tuple[PaintedPicture, Component]
    tabs: gr.Tabs
    planned: Dependency

    def __init__(self, studio: Studio, model: gr.Dropdown) -> None:
        self._studio, self._model = studio, model
        self.fields: dict[str, Component] = {"model": model}
        self.selected: dict[str, gr.Tab] = {}
        self.plan: list[Component] = []

    # --- the components ----------------------------------------------------------------------------------------------

    def words(self) -> None:
        """What to draw: texts, or a class."""
        about = self._of_model(self._studio.names[0])
        self.fields |= {
            "prompt": gr.Textbox(
                label="Prompt",
                value=PROMPT,
                lines=2,
                max_lines=6,
                placeholder="What to draw, such as: a red heart",
                max_length=self._studio.limits.prompt_letters,
                elem_classes="prompt",
                **about["prompt"],
            ),
            "class_label": gr.Dropdown(label="Class", type="index", **about["class_label"]),
        }

    def how(self) -> None:
        """How to draw it."""
        about = self._of_model(self._studio.names[0])
        with gr.Accordion("Sampler", open=True, elem_classes="group"):
            steps = gr.Slider(label="Steps", minimum=1, step=1, **about["steps"])
            eta = gr.Slider(
                label="η", minimum=0, maximum=1, step=0.05, value=0, info="Noise of each step: 0 is DDIM, 1 is DDPM."
            )
            with gr.Row(elem_classes="fields"):
                spacing = gr.Dropdown(label="Spacing", choices=list(SPACINGS), value=AS_MODEL)
                order = gr.Dropdown(
                    label="Order", choices=[(AS_MODEL, 0), ("1: DDIM", 1), ("2: second order", 2)], value=0
                )
            sigma_hat = gr.Checkbox(
                label="σ̂ instead of η", value=False, info="The larger noise of the paper's CIFAR-10 runs."
            )
        with gr.Accordion("Guidance", open=False, elem_classes="group") as self._guidance:
            negative = gr.Textbox(
                label="Negative prompt",
                lines=1,
                max_lines=4,
                placeholder="What to keep away from",
                max_length=self._studio.limits.prompt_letters,
                **about["negative_prompt"],
            )
            scale = gr.Slider(
                label="Guidance",
                minimum=0,
                maximum=20,
                step=0.1,
                info="How strongly to follow the text or class; 1 is none.",
                **about["guidance_scale"],
            )
            rescale = gr.Slider(
                label="Rescale",
                minimum=0,
                maximum=1,
                step=0.05,
                info="How much of the added contrast to take back.",
                **about["guidance_rescale"],
            )
            interval = gr.Textbox(
                label="Guide at timesteps",
                value="",
                placeholder="all, or such as 100-800",
                max_length=50,
                info="Other timesteps take half the work.",
            )
        with gr.Accordion("Seed, size and number", open=False, elem_classes="group"):
            with gr.Row(elem_classes="fields"):
                seed = gr.Number(label="Seed", precision=0, minimum=0, maximum=2**53 - 1, value=7, min_width=120)
                keep = gr.Checkbox(label="Keep the seed", value=False, info="Otherwise each drawing gets a new one.")
                dice = gr.Button("⚄ New seed", size="md", min_width=120, elem_classes="dice")
            with gr.Row(elem_classes="fields"):
                size = gr.Dropdown(label="Size", allow_custom_value=True, **about["size"])
                count = gr.Slider(label="Pictures", minimum=1, maximum=MOST, step=1, value=1)
        dice.click(lambda: secrets.randbelow(2**32), None, seed, show_progress="hidden", api_visibility="private")
        self.fields |= {
            "steps": steps,
            "eta": eta,
            "sigma_hat": sigma_hat,
            "spacing": spacing,
            "order": order,
            "negative_prompt": negative,
            "guidance_scale": scale,
            "guidance_rescale": rescale,
            "guidance_interval": interval,
            "seed": seed,
            "keep_seed": keep,
            "size": size,
            "n": count,
        }

    def wire(self) -> None:
        """Let the fields follow the choice of the model; called when all are there."""
        names = ("prompt", "class_label", "steps", "spacing", "order", "negative_prompt", "guidance_scale",
                 "guidance_rescale", "size")  # fmt: skip

        def follow(name: str) -> list[Any]:
            about = self._of_model(name)
            return [gr.update(**about[each]) for each in names]

        self._model.input(
            follow, self._model, [self.fields[name] for name in names], show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip

    @property
    def inputs(self) -> list[Component]:
        """All fields, the model first: the inputs of a listener, whose values `asked` takes."""
        return list(self.fields.values())

    # --- their values ------------------------------------------------------------------------------------------------

    def asked(self, values: Sequence[Any], *, edits: bool = False, **more: Any) -> tuple[str, Generation | Edit]:
        """What the values of `inputs` ask for: (name of the model, parameters).

        Args:
            edits: for a picture that is painted anew.
            more: further parameters, such as strength, that go before those of the fields.

        Raises:
            Refusal: they cannot be; a sentence.
        """
        given = dict(zip(self.fields, values, strict=True))
        name = str(given["model"])
        known = self._studio.known(name)
        scale = given["guidance_scale"]
        asked: dict[str, Any] = {
            "n": int(given["n"]),
            "seed": int(given["seed"] or 0),
            "steps": int(given["steps"]),
            "eta": "sigma_hat" if given["sigma_hat"] else float(given["eta"]),
            "order": int(given["order"]) or None,
            "spacing": None if given["spacing"] == AS_MODEL else given["spacing"],
            "guidance_scale": None if scale is None else float(scale),
        }
        if scale is not None and float(scale) != 1:
            asked["guidance_rescale"] = given["guidance_rescale"]
        if (given["guidance_interval"] or "").strip():
            asked["guidance_interval"] = _interval(given["guidance_interval"])
        if known is None or known.draws_texts:
            size = str(given["size"] or "auto").strip().lower().replace("×", "x").replace(" ", "")
            asked |= {"prompt": given["prompt"] or "", "size": size}
            asked["negative_prompt"] = given["negative_prompt"] or None
        elif known.class_count is not None:
            label = given["class_label"]
            asked["class_label"] = None if not label else int(label) - 1
        if known is not None and not known.draws_texts and known.class_count is None:
            asked["guidance_scale"] = None
        kind: type[Edit] | type[Generation] = _Edits if edits else _Generations
        return name, from_json(kind, {**asked, **more})

    def changed(self, values: Sequence[Any], changes: Mapping[str, Any]) -> list[Any]:
        """The values of `inputs` with others for some of the settings.

        What stands at what its model recommends is, for another model, at what that one recommends.

        Args:
            changes: values by the names of `Generation`, and "model".
        """
        given = dict(zip(self.fields, values, strict=True))
        if changes.get("model", given["model"]) != given["model"]:
            before, after = (self._of_model(str(name)) for name in (given["model"], changes["model"]))
            for name, about in after.items():
                if "value" in about and given[name] == before[name]["value"]:
                    given[name] = about["value"]
        for name, value in changes.items():
            if name == "eta":
                given["sigma_hat"], given["eta"] = value == "sigma_hat", 0 if value == "sigma_hat" else value
            else:
                given[name] = value
        return list(given.values())

    def summary(self, values: Sequence[Any]) -> str:
        """The settings in a line, for tabs that draw with them."""
        given = dict(zip(self.fields, values, strict=True))
        known = self._studio.known(str(given["model"]))
        steps = int(given["steps"])
        said = [str(given["model"]), f"{steps} step{'s' * (steps != 1)}"]
        if known is None or known.draws_texts:
            prompt = " ".join(str(given["prompt"] or "").split())
            said.insert(1, f"“{prompt[:60]}{'…' * (len(prompt) > 60)}”" if prompt else "no text")
        said += [f"{given['spacing']} timesteps"] * (given["spacing"] != AS_MODEL)
        said += [f"order {given['order']}"] * bool(given["order"])
        said += ["σ̂"] if given["sigma_hat"] else [f"η {given['eta']:g}"] * bool(given["eta"])
        if given["guidance_scale"] not in (None, 1):
            said.append(f"guidance {given['guidance_scale']:g}")
        return " · ".join([*said, f"seed {int(given['seed'] or 0)}"])

    def updates(self, changes: Mapping[str, Any]) -> dict[Component, Any]:
        """What sets fields, for a listener that returns a dict of components.

        Args:
            changes: values by the names of `Generation`, and "model". What is left out stays as it is, and None is what
                the model says.
        """
        set_: dict[Component, Any] = {}
        if "model" in changes:
            set_ = {self.fields[name]: gr.update(**how) for name, how in self._of_model(changes["model"]).items()}
            set_[self.fields["model"]] = changes["model"]
        for name, value in changes.items():
            if name == "eta":
                set_[self.fields["sigma_hat"]] = value == "sigma_hat"
                set_[self.fields["eta"]] = 0 if value == "sigma_hat" else value
            elif name == "guidance_interval":
                set_[self.fields[name]] = "" if value is None else f"{value[0]}-{value[1]}"
            elif name == "class_label":
                how = set_.get(self.fields[name], gr.update())
                set_[self.fields[name]] = {**how, "value": IN_TURN if value is None else str(value)}
            elif name == "spacing":
                set_[self.fields[name]] = AS_MODEL if value is None else value
            elif name == "order":
                set_[self.fields[name]] = value or 0
            elif name != "model" and name in self.fields:
                how = set_.get(self.fields[name])
                set_[self.fields[name]] = {**how, "value": value} if isinstance(how, dict) else value
        return set_

    def warning(self, name: str, asked: Generation | Edit) -> str | None:
        """A sentence that says what of this a model was not trained for; None where it was trained for all of it."""
        scheduler, known = self._studio.scheduler(name), self._studio.known(name)
        if scheduler is None or known is None:
            return None
        try:
            if asked.spacing is not None and asked.spacing != "optimized":
                scheduler = scheduler.from_config(scheduler.config, timestep_spacing=asked.spacing)
            plan = plan_of_call(scheduler, asked.steps, asked.eta, None, asked.order, getattr(asked, "strength", 1.0))
        except (DDIMError, ValueError):
            return None  # which the engine will say
        scale = 1.0 if asked.guidance_scale is None else asked.guidance_scale
        return not_trained_for(scheduler.config, plan.timesteps, scale, takes_scale=known.takes_scale)

    # --- what depends on the model -----------------------------------------------------------------------------------

    def _of_model(self, name: str) -> dict[str, dict[str, Any]]:
        """Properties of the fields that depend on the model, by their names."""
        known, scheduler = self._studio.known(name), self._studio.scheduler(name)
        texts = known is None or known.draws_texts
        classes = None if known is None else known.class_count
        steps, scale, rescale = 50, 7.5 if texts else 1.0, 0.0
        if scheduler is not None:
            steps = choose_steps(scheduler.config).number
            usual = 5.0 if known is not None and known.is_xl else 7.5
            scale, rescale = suitable_guidance(scheduler.config, texts, None, None, usual)
        side = None if known is None else known.side
        sizes = [("as trained" if side is None else f"{side}x{side}, as trained", "auto")]
        if side is not None and known is not None and known.factor is not None:
            unit = known.factor * 8
            for width, height in ((1, 0.75), (0.75, 1), (1.5, 1), (1, 1.5)):
                pair = [max(unit, round(side * part / unit) * unit) for part in (width, height)]
                sizes.append((f"{pair[0]}x{pair[1]}",) * 2)
        return {
            "prompt": {"visible": texts},
            "negative_prompt": {"visible": texts},
            "class_label": {
                "visible": classes is not None,
                "choices": [IN_TURN, *map(str, range(classes or 0))],
                "value": IN_TURN,
            },
            "steps": {"value": steps, "maximum": max(100, steps)},
            "spacing": {"value": AS_MODEL},
            "order": {"value": 0},
            "guidance_scale": {"value": scale},
            "guidance_rescale": {"value": rescale},
            "size": {"choices": sizes, "value": "auto", "visible": texts},
        }


def _interval(text: str) -> list[int]:
    """The timesteps between which to guide.

    Raises:
        Refusal: it is no interval.

    >>> _interval("100-800"), _interval(" 0 – 500 ")
    ([100, 800], [0, 500])
    """
    found = re.fullmatch(r"\s*(\d{1,6})\s*(?:-|–|to|,)\s*(\d{1,6})\s*", text)
    if found is None:
        raise Refusal(
            "the timesteps to guide at are two numbers, the lower one first, such as 100-800", "guidance_interval"
        )
    return [int(number) for number in found.groups()]
