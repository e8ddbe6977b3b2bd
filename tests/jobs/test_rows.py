"""What a row asks for: its name, its seed, its settings, and the job's where it says none."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_pipeline

from ddim.jobs.rows import asked_of, file_name, seed_of
from ddim.pipelines import DiffusionPipeline
from ddim.serving import Engine, Request
from ddim.serving.refusal import Refusal

PIPE = tiny_pipeline(num_class_embeds=4)


@pytest.fixture(scope="module")
def emoji() -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained("emoji")


def asked(values: dict[str, Any], pipe: Any = PIPE, number: int = 5, **defaults: Any) -> Request:
    return asked_of(number, {"id": "x", **values}, defaults, "mine", pipe).request


def as_texts(values: dict[str, str], pipe: Any, **defaults: Any) -> Request:
    return asked_of(0, {"id": "x", **values}, defaults, "mine", pipe, are_texts=True).request


# --- names and seeds -------------------------------------------------------------------------------------------------


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_file_name_is_safe_and_belongs_to_one_id(first: str, second: str) -> None:
    try:
        first.encode(), second.encode()
    except UnicodeEncodeError:
        return
    name = file_name(first)
    assert 0 < len(name) <= 80
    assert name.isascii()
    assert not set(name) & set('/\\.:*?"<>| \0\n')
    assert (name == file_name(second)) == (first == second)


def test_long_ids_that_begin_alike_have_other_names() -> None:
    names = {file_name("a" * 500 + str(number)) for number in range(100)}
    assert len(names) == 100
    assert max(map(len, names)) == 80


def test_a_seed_is_that_of_the_id() -> None:
    assert seed_of(0, "7") == int(hashlib.sha256(b"0 7").hexdigest()[:16], 16) // 2
    seeds = [asked({}).seed, asked({"id": "y"}).seed, asked({}, seed=1).seed]
    assert len(set(seeds)) == 3
    assert seeds[0] == asked({}, number=9).seed == seed_of(0, "x")
    assert asked({"seed": 3}).seed == asked({"seed": 3}, seed=1).seed == 3


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_row_goes_before_the_job() -> None:
    defaults = {"steps": 7, "eta": 0.5, "guidance_scale": 2.0}
    assert asked({}, **defaults).steps == 7
    request = asked({"steps": 3, "class_label": 2}, **defaults)
    assert (request.steps, request.eta, request.guidance_scale, request.class_label) == (3, 0.5, 2.0, 2)


def test_classes_have_their_turn_where_nobody_says_one() -> None:
    assert [asked({}, number=number).class_label for number in range(5)] == [0, 1, 2, 0, 1]
    assert asked({}, class_label=1).class_label == 1
    assert asked({"class_label": 0}, class_label=1).class_label == 0


def test_sizes_are_in_pixels(emoji: DiffusionPipeline) -> None:
    request = asked({"prompt": "a", "width": 96}, emoji)
    assert (request.width, request.height) == (96, 64)
    request = asked({"prompt": "a", "width": 96}, emoji, height=32)
    assert (request.width, request.height) == (96, 32)


def test_texts_of_a_csv_are_read_as_what_they_mean(emoji: DiffusionPipeline) -> None:
    request = as_texts(
        {
            "prompt": "a", "negative_prompt": "b", "seed": "9", "steps": "4", "eta": "0", "order": "2",
            "guidance_scale": "3.5", "guidance_interval": "[100, 800]", "width": "32", "spacing": "trailing",
        },
        emoji,
    )  # fmt: skip
    assert (request.seed, request.steps, request.order, request.guidance_scale) == (9, 4, 2, 3.5)
    assert request.guidance_interval == (100, 800)
    assert (request.width, request.height) == (32, 64)
    assert as_texts({"prompt": "a", "eta": "sigma_hat"}, emoji).eta == "sigma_hat"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give a prompt"),
        ({"prompt": 7}, "prompt: input should be a valid string"),
        ({"prompt": "a\0b"}, "prompt has a zero byte"),
        ({"prompt": "\ud800"}, "prompt has half a character"),
        ({"prompt": "a" * 10_000_000}, "prompt: string should have at most 32000 characters"),
        ({"prompt": "a", "steps": 0}, "steps: input should be greater than or equal to 1"),
        ({"prompt": "a", "steps": 1001}, "steps: input should be less than or equal to 1000"),
        ({"prompt": "a", "steps": "five"}, "steps: input should be a valid integer"),
        ({"prompt": "a", "steps": 2.5}, "steps: input should be a valid integer"),
        ({"prompt": "a", "seed": -1}, "seed: input should be greater"),
        ({"prompt": "a", "seed": 2**63}, "seed: input should be less"),
        ({"prompt": "a", "width": 30}, "multiples of 4"),
        ({"prompt": "a", "width": 10**9}, "width: input should be less"),
        ({"prompt": "a", "eta": 1.0, "order": 2}, "order 2 needs an eta of 0"),
        ({"prompt": "a", "guidance_interval": [800, 100]}, "is the wrong way round"),
        ({"prompt": "a", "class_label": 1}, "knows no classes"),
        ({"prompt": "a", "spacing": "wide"}, "spacing: input should be"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused(values: dict[str, Any], message: str, emoji: DiffusionPipeline) -> None:
    with pytest.raises(Refusal, match=re.escape(message)):
        asked(values, emoji)


def test_what_a_row_and_the_job_say_must_go_together(emoji: DiffusionPipeline) -> None:
    with pytest.raises(Refusal, match="order 2 needs an eta of 0"):
        asked({"prompt": "a", "eta": 0.5}, emoji, order=2)


def test_the_request_is_drawn() -> None:
    with Engine(PIPE, max_batch=2) as engine:
        picture = engine.submit(asked({"steps": 2, "seed": 5})).result(60)
    assert picture.seed == 5
    assert picture.settings["class_label"] == 2
