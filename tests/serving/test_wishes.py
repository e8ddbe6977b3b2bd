"""What a model has to say of what a client asks for."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from tiny_sd import tiny_reference
from tiny_xl import tiny_xl

from ddim import DiffusionPipeline
from ddim.serving.limits import Limits
from ddim.serving.parameters import OTHER_NAMES, Drawing, Edit, Generation, Variation, from_json
from ddim.serving.refusal import Refusal
from ddim.serving.wishes import refusal_of, wish

PICTURE = Image.new("RGB", (16, 16), "red")
MASK = Image.new("L", (16, 16), 255)


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose network is given a picture and its mask."""
    folder = tmp_path_factory.mktemp("painter")
    tiny_reference(folder, 1, in_channels=9)
    return DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("asked", "image", "param"),
    [
        (Generation(prompt="x"), None, "model"),
        (Edit(prompt="x"), PICTURE, "mask"),
        (Variation(), PICTURE, "model"),
        (Variation(method="inversion"), PICTURE, "model"),
    ],
)
def test_a_model_for_masks_wants_one(painter: Any, asked: Drawing, image: Any, param: str) -> None:
    with pytest.raises(Refusal, match="paints parts of pictures anew") as raised:
        wish("mine", painter, asked, Limits(), image)
    assert raised.value.param == param
    found = wish("mine", painter, Edit(prompt="x", seed=3), Limits(), PICTURE, MASK)
    assert (found.seed, found.size) == (3, (16, 16))


def test_bounds_of_the_server(painter: Any) -> None:
    limits = Limits(n=2, side=24, prompt_letters=5)
    for asked, param in (
        (Edit(prompt="x", n=3), "n"),
        (Edit(prompt="x", size="32x16"), "size"),
        (Edit(prompt="x" * 6), "prompt"),
        (Edit(prompt="x", negative_prompt="x" * 6), "negative_prompt"),
    ):
        with pytest.raises(Refusal) as raised:
            wish("mine", painter, asked, limits, PICTURE, MASK)
        assert raised.value.param == param
        assert param in raised.value.message
    assert wish("mine", painter, Edit(prompt="x" * 5, n=2, size="24x16"), limits, PICTURE, MASK).size == (24, 16)


def test_an_image_whose_proportions_are_too_much(painter: Any) -> None:
    long = Image.new("RGB", (1000, 4))
    with pytest.raises(Refusal, match="proportions") as raised:
        wish("mine", painter, Edit(prompt="x"), Limits(), long, long.convert("L"))
    assert raised.value.param == "image"


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        ("num_inference_steps must be 3", "steps", "steps must be 3"),
        ("strength=0.1 leaves none of 2 steps", "strength", "strength=0.1 leaves none of 2 steps"),
        ("height must be a multiple of 8", "size", "height must be a multiple of 8"),
        ("nothing that is known", None, "nothing that is known"),
    ],
)
def test_what_the_engine_refuses_names_the_parameter(message: str, param: str | None, said: str) -> None:
    refusal = refusal_of(ValueError(message), Edit())
    assert (refusal.param, refusal.message) == (param, said)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stable Diffusion XL, and its refiner."""
    folder = tmp_path_factory.mktemp("xl")
    for kind in ("base", "refiner"):
        tiny_xl(folder / kind, kind)  # type: ignore[arg-type]
    return {kind: DiffusionPipeline.from_pretrained(folder / kind) for kind in ("base", "refiner")}


def test_all_that_xl_is_told_reaches_the_engine(xl: Any) -> None:
    said = {
        "prompt_2": "b", "negative_prompt_2": "c", "original_size": [9, 8], "crop": [1, 2], "target_size": [7, 6],
        "negative_original_size": [5, 4], "negative_crop": [3, 2], "negative_target_size": [1, 1], "denoising_end": 0.5,
    }  # fmt: skip
    asked = from_json(Edit, {"prompt": "a", **said, "denoising_start": 0.25})
    (request,) = wish("mine", xl["base"], asked, Limits(), PICTURE).requests(True, None)
    for name, value in said.items():
        name = {ours: theirs for theirs, ours in OTHER_NAMES.items()}.get(name, name)
        assert getattr(request, name) == (tuple(value) if isinstance(value, list) else value)
    assert (request.denoising_start, request.strength) == (0.25, None)
    scored = from_json(Edit, {"prompt": "a", "aesthetic_score": 7, "negative_aesthetic_score": 1})
    (request,) = wish("mine", xl["refiner"], scored, Limits(), PICTURE).requests(True, None)
    assert (request.aesthetic_score, request.negative_aesthetic_score, request.strength) == (7, 1, 0.8)


@pytest.mark.parametrize(
    ("kind", "values", "param", "message"),
    [
        ("emoji", {"crop": [1, 2]}, "crop", "is for Stable Diffusion XL, which mine is not"),
        ("emoji", {"denoising_end": 0.5}, "denoising_end", "is for Stable Diffusion XL, which mine is not"),
        ("base", {"aesthetic_score": 5}, "aesthetic_score", "changes nothing: mine is told the size"),
        ("refiner", {"target_size": [9, 9]}, "target_size", "changes nothing"),
        ("refiner", {"prompt_2": "b"}, "prompt_2", "the prompt alone"),
        ("base", {"negative_crop": [9, 9], "guidance_scale": 1}, "negative_crop", "changes nothing without guidance"),
        ("base", {"prompt_2": "b" * 32_000}, "prompt_2", "letters, and 9 are the most"),
    ],
)
def test_what_changes_nothing_is_refused(xl: Any, kind: str, values: dict[str, Any], param: str, message: str) -> None:
    pipe = xl.get(kind) or DiffusionPipeline.from_pretrained(kind)
    with pytest.raises(Refusal, match=message) as raised:
        wish("mine", pipe, from_json(Edit, {"prompt": "a", **values}), Limits(prompt_letters=9), PICTURE)
    assert raised.value.param == param
