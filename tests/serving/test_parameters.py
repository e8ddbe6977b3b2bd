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
    "prompt_2": "a cat",
    "negative_prompt_2": "",
    "original_size": [96, 64],
    "crop": [0, 5],
    "target_size": [64, 64],
    "negative_original_size": [32, 32],
    "negative_crop": [1, 2],
    "negative_target_size": [8, 9],
    "aesthetic_score": 6.5,
    "negative_aesthetic_score": 2.0,
    "denoising_end": 0.75,
    "control_image": ["aGVhcnQ=", "Y2F0"],
    "control_scale": [0.5, 1.5],
    "guess_mode": True,
    "control_guidance_start": 0.25,
    "control_guidance_end": [0.5, 1.0],
    "strength": 0.25,
    "prompt": "a dog, 3 \u00b5m",
    "output_format": "webp",
    "output_compression": 20,
}


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def test_a_form_is_read_as_json_is() -> None:
    plain = from_json(Edit, VALUES)
    for interval in (["0", "500"], ["[0, 500]"], ["0,500"]):
        fields = {name: [_text(value)] for name, value in VALUES.items()} | {"guidance_interval": interval}
        assert from_form(Edit, fields) == plain
    brackets = {name: [_text(value)] for name, value in VALUES.items() if name != "guidance_interval"}
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
        "denoising_start": 0.5,
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


def test_a_name_of_diffusers_is_taken_as_well_and_stays_in_what_is_said() -> None:
    assert from_json(Generation, {"crops_coords_top_left": [1, 2]}).crop == [1, 2]
    for name in ("negative_crops_coords_top_left", "negative_crop[]"):
        assert from_form(Edit, {name: ["1", "2"]}).negative_crop == [1, 2]
    for values in ({"crops_coords_top_left": [1]}, {"crops_coords_top_left": [1, -2]}):
        with pytest.raises(Refusal, match=r"^crops_coords_top_left: .*; it is a list of two numbers, top") as raised:
            from_json(Generation, values)
        assert raised.value.param == "crops_coords_top_left"
    with pytest.raises(Refusal, match="crop is there by two names"):
        from_json(Generation, {"crop": [1, 2], "crops_coords_top_left": [1, 2]})


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"strength": 0.5, "denoising_start": 0.5}, "strength"),
        ({"denoising_start": 0.5, "denoising_end": 0.5}, "denoising_start"),
        ({"denoising_start": 1.0}, "denoising_start"),
        ({"denoising_end": 0.0}, "denoising_end"),
        ({"original_size": [8]}, "original_size"),
        ({"target_size": "8"}, "target_size"),
        ({"aesthetic_score": 1e9}, "aesthetic_score"),
    ],
)
def test_what_xl_is_not_told(values: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as raised:
        from_json(Edit, values)
    assert raised.value.param == param
    with pytest.raises(Refusal, match="the image of an edit"):
        from_json(Generation, {"denoising_start": 0.5})


def test_what_is_one_for_all_controlnets_or_one_for_each() -> None:
    assert from_form(Edit, {"control_scale": ["0.5"], "control_image": ["Y2F0"]}).control_scale == 0.5
    for fields in (
        {"control_scale[]": ["0.5"]},
        {"control_scale": ["[0.5]"]},
        {"controlnet_conditioning_scale[]": ["0.5"]},
    ):
        assert from_form(Edit, fields).control_scale == [0.5]
    assert from_json(Generation, {"control_guidance_end": 1}).control_guidance_end == 1
    assert from_form(Edit, {"control_image[]": ["YQ==", ""]}).control_image == ["YQ=="]
    for values in (
        {"control_scale": "x"},
        {"control_guidance_start": [0.5, 2]},
        {"control_image": []},
        {"guess_mode": 1},
    ):
        with pytest.raises(Refusal) as raised:
            from_json(Generation, values)
        assert raised.value.param in values


def test_a_refiner_is_refused_by_name() -> None:
    for name, value in (("refiner", "other"), ("refiner_start", 0.8)):
        with pytest.raises(Refusal, match="ddim sample --refiner has two go the way in turn") as raised:
            from_json(Generation, {name: value})
        assert raised.value.param == name


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
