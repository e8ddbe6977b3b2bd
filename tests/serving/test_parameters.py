"""What a client may ask for: as JSON, as a form, and as the settings that `ddim sample` and the scheduler know."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddim.cli.options import ChosenSpacing
from ddim.serving.parameters import Edit, Generation, Spacing, Variation, from_form, from_json
from ddim.serving.refusal import Refusal


def test_spacings_are_those_of_the_commands() -> None:
    assert set(get_args(Spacing)) == set(get_args(ChosenSpacing))


def test_all_that_a_request_of_the_engine_takes_can_be_asked_for() -> None:
    wanted = {"seed", "steps", "eta", "order", "spacing", "guidance_scale", "guidance_rescale", "guidance_interval"}
    wanted |= {"negative_prompt", "class_label"}
    for kind in (Generation, Edit, Variation):
        assert wanted <= set(kind.model_fields)
    assert "strength" in Edit.model_fields
    assert "strength" in Variation.model_fields


VALUES: dict[str, Any] = {
    "n": 3,
    "size": "64x32",
    "response_format": "url",
    "seed": 5,
    "steps": 7,
    "eta": 0.5,
    "spacing": "trailing",
    "guidance_scale": 2.0,
    "guidance_rescale": 0.5,
    "guidance_interval": [0, 500],
    "negative_prompt": "",
    "strength": 0.25,
    "prompt": "a dog, 3 \u00b5m",
    "output_format": "webp",
    "output_compression": 20,
}


def test_a_form_is_read_as_json_is() -> None:
    plain = from_json(Edit, VALUES)
    for interval in (["0", "500"], ["[0, 500]"], ["0,500"]):
        fields = {name: [str(value)] for name, value in VALUES.items()} | {"guidance_interval": interval}
        assert from_form(Edit, fields) == plain
    brackets = {name: [str(value)] for name, value in VALUES.items() if name != "guidance_interval"}
    assert from_form(Edit, {**brackets, "guidance_interval[]": ["0", "500"]}) == plain
    assert from_form(Edit, {"eta": ["sigma_hat"], "steps": [""], "stream": ["true"]}).eta == "sigma_hat"
    with pytest.raises(Refusal, match="given 2 times"):
        from_form(Edit, {"n": ["1", "2"]})


@pytest.mark.parametrize("kind", [Edit, Variation])
def test_every_parameter_can_be_said_in_a_form(kind: Any) -> None:
    """Also those that take one of some numbers, of which a form has the text."""
    usual = {
        "model": "emoji", "user": "me", "order": 2, "eta": 0, "class_label": 3, "stream": True, "partial_images": 2,
        "safety_identifier": "you", "background": "opaque", "quality": "auto", "method": "inversion",
    }  # fmt: skip
    for name in kind.model_fields:
        value = {**VALUES, **usual}[name]
        others = {"output_compression": {"output_format": "webp"}, "partial_images": {"stream": True}}.get(name, {})
        plain = from_json(kind, {name: value, **others})
        told = {each: [json.dumps(v) if not isinstance(v, str) else v] for each, v in {name: value, **others}.items()}
        assert getattr(from_form(kind, told), name) == getattr(plain, name) == value
    for wrong in ("0", "3", "1.5", "x"):
        with pytest.raises(Refusal) as raised:
            from_form(kind, {"order": [wrong]})
        assert raised.value.param == "order"


def test_null_stands_for_what_is_left_out() -> None:
    assert from_json(Generation, dict.fromkeys(Generation.model_fields)) == Generation()
    assert from_json(Generation, {"style": None, "svg": None}) == Generation()


@pytest.mark.parametrize("value", ["3", 3.0, True, [3]])
def test_json_is_taken_at_its_word(value: Any) -> None:
    with pytest.raises(Refusal) as raised:
        from_json(Generation, {"n": value})
    assert raised.value.param == "n"


def test_a_name_that_is_nearly_right_is_guessed() -> None:
    with pytest.raises(Refusal, match="did you mean guidance_scale") as raised:
        from_json(Generation, {"guidance": 3, "guidance_scal": 2})
    assert raised.value.param == "guidance"
    with pytest.raises(Refusal, match=r"there is no parameter \d here$"):
        from_json(Generation, {"7": 1})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*Generation.model_fields, "style", "x"]), JSON, max_size=5))
def test_whatever_is_sent_is_followed_or_refused_by_its_name(values: dict[str, Any]) -> None:
    asked, refusal = asked_or_refused(values)
    if refusal is not None:
        assert refusal.param in values
        assert refusal.status == 400
        json.dumps(refusal.body("req_x"))
    for name, value in values.items():
        assert refusal is not None or value is None or getattr(asked, name) == value


def asked_or_refused(values: dict[str, Any]) -> tuple[Generation | None, Refusal | None]:
    try:
        return from_json(Generation, values), None
    except Refusal as refusal:
        return None, refusal
