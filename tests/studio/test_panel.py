"""The settings of a picture: from the fields of the page to what is asked for, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest

from ddim.serving.parameters import Edit, Generation
from ddim.serving.pool import Pool
from ddim.serving.refusal import Refusal
from ddim.studio.desk import Studio
from ddim.studio.panel import AS_MODEL, MOST, Panel

PLACES = {"emoji-fast": "emoji-fast", "emoji": "emoji", "digits": "digits", "elsewhere": "owner/unknown"}


@pytest.fixture(scope="module")
def panel() -> Iterator[Panel]:
    def never(name: str) -> Any:
        raise AssertionError("nothing is loaded for this")

    studio = Studio(Pool(PLACES, never), PLACES)

    async def build() -> Panel:  # within a loop, as gradio would leave one open that it makes itself
        with gr.Blocks(analytics_enabled=False):
            made = Panel(studio, gr.Dropdown(choices=list(PLACES), value="emoji-fast"))
            made.words()
            made.how()
            made.wire()
        return made

    yield asyncio.run(build())
    studio.sessions.close()


def values(panel: Panel, **changes: Any) -> list[Any]:
    """The values of the fields as they are at first, but for some."""
    first: dict[str, Any] = {name: getattr(field, "value", None) for name, field in panel.fields.items()}
    first["class_label"] = 0  # its listener gets the place of the choice
    return list({**first, **changes}.values())


def test_at_first_they_are_what_the_model_recommends(panel: Panel) -> None:
    name, asked = panel.asked(values(panel))
    assert name == "emoji-fast"
    assert asked.model_dump(exclude_defaults=True) == {
        "prompt": "a sunflower",
        "seed": 7,
        "steps": 4,
        "guidance_scale": 1.0,
    }
    assert panel.warning(name, asked) is None


def test_every_field_is_asked_for(panel: Panel) -> None:
    given = {"model": "emoji", "prompt": "a tree", "negative_prompt": "a car", "steps": 12, "eta": 0.3,
             "spacing": "linspace", "order": 1, "guidance_scale": 4.5, "guidance_rescale": 0.2,
             "guidance_interval": "100 – 800", "seed": 12, "size": "96 × 64", "n": 5}  # fmt: skip
    name, asked = panel.asked(values(panel, **given))
    assert name == "emoji"
    assert asked.model_dump(exclude_defaults=True) == {
        **{key: given[key] for key in given if key not in ("model", "guidance_interval", "size")},
        "guidance_interval": [100, 800],
        "size": "96x64",
    }
    _, again = panel.asked(values(panel, **given, sigma_hat=True))
    assert again.eta == "sigma_hat"
    _, edit = panel.asked(values(panel, **given), edits=True, strength=0.4)
    assert isinstance(edit, Edit)
    assert edit.strength == 0.4
    assert panel.asked(values(panel, n=MOST))[1].n == MOST


def test_a_model_of_classes_is_asked_for_classes(panel: Panel) -> None:
    _, asked = panel.asked(values(panel, model="digits", class_label=8, prompt="left over", negative_prompt="too"))
    assert isinstance(asked, Generation)
    assert (asked.class_label, asked.prompt, asked.negative_prompt) == (7, None, None)
    assert panel.asked(values(panel, model="digits", class_label=0))[1].class_label is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guidance_interval": "100"}, "two numbers"),
        ({"guidance_interval": "900-100"}, "wrong way round"),
        ({"order": 2, "eta": 0.5}, "order 2 needs an eta of 0"),
        ({"size": "large"}, "size"),
        ({"n": 17}, "n: "),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str, panel: Panel) -> None:
    with pytest.raises(Refusal, match=words):
        panel.asked(values(panel, **changes))


def test_updates_set_what_is_named_and_what_the_model_says(panel: Panel) -> None:
    fields = panel.fields
    set_ = panel.updates({"steps": 30, "eta": "sigma_hat", "spacing": None, "order": None, "guidance_interval": [1, 9]})
    assert set_ == {
        fields["steps"]: 30,
        fields["sigma_hat"]: True,
        fields["eta"]: 0,
        fields["spacing"]: AS_MODEL,
        fields["order"]: 0,
        fields["guidance_interval"]: "1-9",
    }
    set_ = panel.updates({"model": "digits", "class_label": 4, "steps": 20, "unknown": 1})
    assert set_[fields["model"]] == "digits"
    assert set_[fields["prompt"]]["visible"] is False
    assert set_[fields["class_label"]]["value"] == "4"
    assert set_[fields["class_label"]]["visible"] is True
    assert set_[fields["steps"]]["value"] == 20


def test_a_summary_says_it_in_a_line(panel: Panel) -> None:
    assert panel.summary(values(panel)) == "emoji-fast · “a sunflower” · 4 steps · seed 7"
    said = panel.summary(
        values(panel, model="digits", steps=1, eta=0.5, order=1, spacing="leading", guidance_scale=2.0, seed=3)
    )
    assert said == "digits · 1 step · leading timesteps · order 1 · η 0.5 · guidance 2 · seed 3"
    assert "…" in panel.summary(values(panel, prompt="word " * 50))


def test_a_student_that_is_asked_for_more_is_warned_of(panel: Panel) -> None:
    name, asked = panel.asked(values(panel, steps=10, guidance_scale=3.0))
    said = panel.warning(name, asked)
    assert said is not None
    assert "10 steps" in said
    assert panel.warning(*panel.asked(values(panel, model="emoji", steps=10))) is None
    assert panel.warning(*panel.asked(values(panel, model="elsewhere"))) is None
