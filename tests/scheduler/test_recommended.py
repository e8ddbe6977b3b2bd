"""What a scheduler's config recommends: where it is kept, when it is used, and what of it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ddim import DDIMInverseScheduler, DDIMScheduler
from ddim.errors import ConfigError
from ddim.scheduler.recommended import (
    KEYS,
    Steps,
    choose_guidance,
    choose_steps,
    not_trained_for,
    recommendation,
)

LISTS = {"8": [990, 800, 700, 540, 400, 240, 100, 20]}
SAID: dict[str, Any] = {
    "recommended_steps": 8,
    "recommended_order": 2,
    "recommended_spacing": "optimized",
    "recommended_guidance_scale": 3.0,
    "recommended_guidance_rescale": 0.7,
    "trained_timesteps": (999, 499),
}


def said(scheduler: Any) -> dict[str, Any]:
    return {key: scheduler.config[key] for key in sorted(KEYS)}


def recommending(**changed: Any) -> Any:
    return DDIMScheduler(timestep_spacing="trailing", optimized_timesteps=LISTS, **{**SAID, **changed})


# --- where it is kept ------------------------------------------------------------------------------------------------


def test_it_survives_configs_files_and_other_classes(tmp_path: Path) -> None:
    made = recommending()
    assert said(made) == SAID == said(DDIMScheduler.from_config(made.config))
    assert said(DDIMScheduler.from_config(made.config, clip_sample=False, timestep_spacing="optimized")) == SAID
    made.save_pretrained(tmp_path)
    assert said(DDIMScheduler.from_pretrained(tmp_path)) == SAID
    inverse = DDIMInverseScheduler.from_config(made.config)
    assert said(inverse) == SAID
    assert inverse.plan(4).timesteps == DDIMScheduler(timestep_spacing="trailing").plan(4).timesteps[::-1]
    assert said(DDIMScheduler.from_config(inverse.config)) == SAID


@pytest.mark.parametrize("way", ["register", "assign"])
def test_it_can_be_told_to_a_scheduler_that_there_is(way: str, tmp_path: Path) -> None:
    scheduler = DDIMScheduler()
    if way == "register":
        scheduler.register_to_config(**SAID)
    else:
        for key, value in SAID.items():
            setattr(scheduler.config, key, value)
    assert said(DDIMScheduler.from_config(scheduler.config)) == SAID  # they are no defaults any more
    scheduler.save_pretrained(tmp_path)
    assert said(DDIMScheduler.from_pretrained(tmp_path)) == SAID
    assert DDIMScheduler.from_config(scheduler.config).config["_use_default_values"]


@pytest.mark.parametrize("cls", [DDIMScheduler, DDIMInverseScheduler])
def test_nothing_is_written_where_nothing_is_recommended(cls: Any) -> None:
    for scheduler in (cls(), cls.from_config(DDIMScheduler().config), cls.from_config(dict.fromkeys(KEYS))):
        assert not KEYS & set(json.loads(scheduler.to_json_string()))


def test_diffusers_loads_it_and_samples_as_if_it_were_not_there(tmp_path: Path) -> None:
    recommending().save_pretrained(tmp_path)
    theirs = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    theirs.set_timesteps(8)
    assert theirs.timesteps.tolist() == list(DDIMScheduler(timestep_spacing="trailing").plan(8).timesteps)
    assert said(DDIMScheduler.from_config(theirs.config)) == SAID


def test_another_spacing_takes_the_steps_away_that_were_recommended_for_the_old_one() -> None:
    for spacing in ("trailing", "leading"):
        changed = DDIMScheduler.from_config(recommending().config, timestep_spacing=spacing)
        assert choose_steps(changed.config) == Steps(50, 1, spacing)
        assert choose_guidance(changed.config, None, None, usual=1.0) == (3.0, 0.7)
    kept = DDIMScheduler.from_config(recommending().config, timestep_spacing="leading", recommended_steps=4)
    assert choose_steps(kept.config) == Steps(4, 2, "optimized")


# --- when it is used -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Steps(8, 2, "optimized")),
        ({"number": 8}, Steps(8, 2, "optimized")),
        ({"number": 8, "order": 1}, Steps(8, 1, "trailing")),
        ({"number": 8, "order": 2}, Steps(8, 2, "trailing")),
        ({"number": 9}, Steps(9, 1, "trailing")),
        ({"order": 2}, Steps(50, 2, "trailing")),
        ({"eta": 1.0}, Steps(8, 1, "optimized")),
        ({"eta": "sigma_hat"}, Steps(8, 1, "optimized")),
        ({"eta": torch.tensor(0.0)}, Steps(8, 2, "optimized")),
        ({"eta": np.float32(0.5)}, Steps(8, 1, "optimized")),
        ({"eta": 0}, Steps(8, 2, "optimized")),
    ],
)
def test_steps_order_and_spacing_belong_together(given: dict[str, Any], expected: Steps) -> None:
    assert choose_steps(recommending().config, **given) == expected


def test_without_a_recommendation_all_is_as_usual() -> None:
    config = DDIMScheduler().config
    assert choose_steps(config) == Steps(50, 1, "leading") == choose_steps({"timestep_spacing": "leading"})
    assert choose_steps(config, 10, 2) == Steps(10, 2, "leading")
    assert choose_guidance(config, None, None, usual=7.5) == (7.5, 0.0)
    assert choose_guidance(config, 3.0, 0.5, usual=7.5) == (3.0, 0.5)
    assert recommendation(config) == ""
    assert not_trained_for(config, range(1000), 7.5, takes_scale=False) is None


def test_a_part_of_a_recommendation() -> None:
    assert choose_steps(DDIMScheduler(recommended_steps=20).config) == Steps(20, 1, "leading")
    assert choose_steps(DDIMScheduler(recommended_order=2).config) == Steps(50, 2, "leading")
    assert choose_steps(DDIMScheduler(recommended_order=2).config, 50) == Steps(50, 1, "leading")


@pytest.mark.parametrize("given", ["7", [7.0], {}])
def test_guidance_that_is_no_number(given: Any) -> None:
    with pytest.raises(ConfigError, match="guidance_scale must be a number, not"):
        choose_guidance({}, given, None, 7.5)
    with pytest.raises(ConfigError, match="guidance_rescale must be a number, not"):
        choose_guidance({}, 7.5, given, 7.5)


def test_guidance() -> None:
    config = recommending().config
    assert choose_guidance(config, None, None, usual=7.5) == (3.0, 0.7)
    assert choose_guidance(config, 5.0, None, usual=7.5) == (5.0, 0.7)
    assert choose_guidance(config, None, 0.0, usual=7.5) == (3.0, 0.0)
    assert choose_guidance(config, 1.0, None, usual=7.5) == (1.0, 0.0)  # of no guidance there is nothing to take back
    assert recommendation(config) == "8 steps of second order at searched timesteps, guidance 3, rescale 0.7"


def test_a_plan_takes_a_spacing_and_leaves_the_scheduler_alone() -> None:
    scheduler = recommending()
    before = dict(scheduler.config)
    assert scheduler.plan(8, spacing="optimized").timesteps == tuple(LISTS["8"])
    assert (
        scheduler.plan(8, spacing="linspace").timesteps == DDIMScheduler(timestep_spacing="linspace").plan(8).timesteps
    )
    assert scheduler.plan(8, spacing="trailing") == scheduler.plan(8)
    assert dict(scheduler.config) == before
    scheduler.alphas_cumprod = scheduler.alphas_cumprod * 0.5  # whatever was assigned is followed there, too
    assert scheduler.plan(8, spacing="optimized").alphas_cumprod == scheduler.plan(8).alphas_cumprod


# --- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("recommended_steps", "eight", "a positive int is needed: give num_inference_steps"),
        ("recommended_steps", 0, "a positive int"),
        ("recommended_steps", True, "a positive int"),
        ("recommended_order", 3, "1 or 2 is needed: give num_inference_steps and order"),
        ("recommended_order", [2], "1 or 2"),
        ("recommended_spacing", 7, "a text is needed"),
    ],
)
def test_steps_that_cannot_be_recommended(key: str, value: Any, words: str) -> None:
    config = recommending(**{key: value}).config
    with pytest.raises(ConfigError, match=f"{key}.*{words}"):
        choose_steps(config)
    assert choose_steps(config, 20) == Steps(20, 1, "trailing")  # whoever says what to do is not in the way of it


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("guidance_scale", "much", "a finite number is needed: give guidance_scale"),
        ("guidance_scale", float("inf"), "a finite number"),
        ("guidance_scale", True, "a finite number"),
        ("guidance_rescale", 2, "a number from 0 to 1 is needed: give guidance_rescale"),
        ("guidance_rescale", float("nan"), "a number from 0 to 1"),
    ],
)
def test_guidance_that_cannot_be_recommended(key: str, value: Any, words: str) -> None:
    config = recommending(**{f"recommended_{key}": value}).config
    with pytest.raises(ConfigError, match=f"recommended_{key}.*{words}"):
        choose_guidance(config, None, None, usual=7.5)
    assert choose_guidance(config, 2.0, 0.5, usual=7.5) == (2.0, 0.5)


# --- what a distilled model was not trained for ----------------------------------------------------------------------


def test_what_a_student_was_not_trained_for() -> None:
    student = DDIMScheduler(
        timestep_spacing="trailing",
        recommended_steps=4,
        recommended_guidance_scale=1.0,
        trained_timesteps=[999, 749, 499, 249],
    )
    config = student.config

    def told(steps: int, scale: float = 1.0, *, takes_scale: bool = False) -> str:
        return not_trained_for(config, student.plan(steps).timesteps, scale, takes_scale=takes_scale) or ""

    assert [told(steps) for steps in (1, 2, 4)] == ["", "", ""]
    assert told(4, 0.5) == told(4, 3.0, takes_scale=True) == ""
    made_for = "this model was made for 4 steps of first order at trailing timesteps, guidance 1, and is asked for "
    assert f"{made_for}8 steps through timesteps that it was not trained at; " in told(8)
    assert f"{made_for}guidance 3, which it has learnt already; " in told(4, 3.0)
    assert "8 steps through timesteps that it was not trained at and for guidance 3, " in told(8, 3.0)
    bare = DDIMScheduler(trained_timesteps=[999, 499]).config
    assert "was made for the timesteps 999, 499, and" in str(not_trained_for(bare, [1], 1.0, takes_scale=False))
