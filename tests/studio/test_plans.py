"""What is chosen on the Plan tab is the library's plan, and so are its JSON and its Python."""

from __future__ import annotations

import itertools
import json
import warnings
from typing import Any

import pytest

from ddim import DDIMScheduler, SamplingPlan
from ddim.errors import ConfigError
from ddim.process import SIGMA_HAT
from ddim.schedule import SPACINGS
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

MODELS = ("digits", "emoji", "emoji-fast")


def own(name: str) -> DDIMScheduler:
    return DDIMScheduler.from_pretrained(name, subfolder="scheduler")


def run(program: str) -> SamplingPlan:
    """The plan that a program makes."""
    names: dict[str, Any] = {"print": lambda _: None}
    exec(program, names)
    return names["plan"]


@pytest.mark.parametrize("model", MODELS)
def test_what_a_model_recommends_is_chosen_first(model: str) -> None:
    choice = Choice.usual(own(model))
    assert choice.steps == {"digits": 9, "emoji": 9, "emoji-fast": 4}[model]
    assert choice.plan(own(model)) == own(model).plan(choice.steps, order=choice.order, spacing=choice.spacing)
    assert notes(own(model), choice, choice.plan(own(model)), model) == []


def choices() -> list[Choice]:
    found = [
        Choice(steps, spacing, eta, 1, zero, schedule, kind)
        for steps, spacing, eta, zero, schedule, kind in itertools.product(
            (4, 50), SPACINGS, (0.0, 0.35, SIGMA_HAT), (False, True), (OWN, *SCHEDULES), (OWN, "v_prediction", "sample")
        )
    ]
    return [*found[::7], *(Choice(n, "optimized", order=order) for n in (4, 8) for order in (1, 2))]


@pytest.mark.parametrize("model", ["digits", "emoji"])
@pytest.mark.thin(every=2)
def test_the_python_makes_exactly_the_plan_and_so_does_the_json(model: str) -> None:
    made = refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # quadratic: repeats dropped
        for choice in choices():
            scheduler = own(model)
            try:
                plan = choice.plan(scheduler)
            except ConfigError:
                refused += 1
                continue
            assert run(as_python(scheduler, choice)) == plan, choice
            assert SamplingPlan.from_dict(json.loads(as_json(plan))) == plan, choice
            made += 1
    assert made > 30
    assert refused < made


@pytest.mark.parametrize(
    "settings",
    [
        {"trained_betas": [0.001 * (1 + t) for t in range(100)], "num_train_timesteps": 100},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0},
        {"clip_sample": False, "legacy_previous_timestep": True, "steps_offset": 1},
        {"clip_sample_range": 2.0, "set_alpha_to_one": False, "beta_end": 0.015},
    ],
)
def test_the_python_has_all_settings_that_a_plan_depends_on(settings: dict[str, Any]) -> None:
    scheduler = DDIMScheduler(**settings)
    for choice in (Choice(7), Choice(7, "trailing", 0.5), Choice(7, "linspace", schedule="linear", zero_snr=False)):
        program = as_python(scheduler, choice)
        assert run(program) == choice.plan(scheduler)
        assert max(map(len, program.splitlines())) <= 120


def test_another_schedule_is_that_of_a_scheduler_with_it() -> None:
    plan = Choice(5, "trailing", 0.2, 1, False, "linear", "epsilon").plan(own("emoji"))
    theirs = DDIMScheduler(beta_start=1e-4, beta_end=0.02, set_alpha_to_one=False, clip_sample=False, steps_offset=1)
    assert plan == theirs.plan(5, spacing="trailing", eta=0.2)
    zero = Choice(5, "trailing", zero_snr=True, schedule="squaredcos_cap_v2", prediction_type="sample").plan(
        own("digits")
    )
    assert zero.alphas_cumprod[-1] == 0
    assert zero.prediction_type == "sample"


@pytest.mark.parametrize(
    ("model", "choice", "said"),
    [
        ("emoji", Choice(9, "trailing", 0.5, 2), "order=2 is for a plan from noise to image with eta=0"),
        ("emoji", Choice(9, "trailing", SIGMA_HAT, 2), "order=2 is for a plan from noise to image with eta=0"),
        ("digits", Choice(9, "trailing", zero_snr=True), "a predicted epsilon tells nothing of the image"),
        ("emoji", Choice(9, "linspace", prediction_type="epsilon"), "a predicted epsilon tells nothing of the image"),
        ("emoji", Choice(7, "optimized"), "has no timesteps for num_inference_steps=7"),
        ("emoji-fast", Choice(4, "optimized"), "there are none yet"),
        ("digits", Choice(1001), "must be from 1 to num_train_timesteps=1000"),
        ("digits", Choice(0), "must be from 1 to num_train_timesteps=1000"),
    ],
)
def test_what_cannot_be_is_said_by_the_library(model: str, choice: Choice, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choice.plan(own(model))


def test_what_the_draw_tab_cannot_follow_is_said() -> None:
    scheduler = own("emoji")
    choice = Choice(9, "trailing", 0.0, 1, False, "linear", "sample")
    (said,) = notes(scheduler, choice, choice.plan(scheduler), "emoji")
    assert said == (
        "emoji has learnt its own schedule and prediction and can follow no other: “Draw with this” leaves out the "
        "schedule linear, a schedule without zero SNR, the prediction sample."
    )
    assert choice.drawn_by() == {"steps": 9, "spacing": "trailing", "eta": 0.0, "order": 1}
    same = Choice(9, "trailing", 0.0, 1, True, "scaled_linear", "v_prediction")
    assert notes(scheduler, same, same.plan(scheduler), "emoji") == []
    with pytest.warns(UserWarning, match="quadratic spacing has only"):
        many = Choice(50, "quadratic").plan(scheduler)
    (said,) = notes(scheduler, Choice(50, "quadratic"), many, "emoji")
    assert said.startswith(f"Quadratic spacing has only {len(many)} different timesteps for 50 steps")
    (said,) = notes(own("emoji-fast"), Choice(9), Choice(9).plan(own("emoji-fast")), "emoji-fast")
    assert said.startswith("Expect worse pictures: this model was made for 4 steps")


def test_the_timesteps_of_each_spacing_are_the_librarys() -> None:
    scheduler = own("emoji")
    for steps in (1, 9, 60):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a page that moves a slider fills no log
            found = spaced(scheduler, steps)
        assert list(found) == [*SPACINGS, *["optimized"] * (steps == 9)]
        for name, timesteps in found.items():
            if (steps, name) != (60, "quadratic"):
                assert timesteps == scheduler.plan(steps, spacing=name).timesteps  # type: ignore[arg-type]
    assert searched(scheduler) == (4, 5, 6, 8, 9, 10, 12)
    assert searched(own("emoji-fast")) == ()
    assert spaced(scheduler, 1001) == {}


def test_a_choice_is_made_of_the_fields_of_the_page() -> None:
    assert as_choice(9, "trailing", 0.5, False, 1, True, OWN, "sample") == Choice(
        9, "trailing", 0.5, 1, True, OWN, "sample"
    )
    assert as_choice(9.0, "trailing", 0, True, 2, False, "linear", OWN).eta == SIGMA_HAT
    for choice in (Choice(9, "trailing", 0.5, 1, True, OWN, "sample"), Choice(4, "optimized", SIGMA_HAT, 2, False)):
        assert as_choice(*as_fields(choice)) == choice
    for empty in ((None, "trailing", 0), (9, "trailing", None), (9, None, 0)):
        with pytest.raises(ConfigError, match="is empty: give"):
            as_choice(*empty, False, 1, True, OWN, OWN)
    assert set(PREDICTIONS) == {"epsilon", "v_prediction", "sample"}
