"""The engine draws with Stable Diffusion XL what the pipeline's call draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_xl import tiny_xl
from torch import Tensor

from ddim.errors import ConfigError
from ddim.pipelines import DiffusionPipeline, StableDiffusionXLPipeline
from ddim.serving import Engine
from ddim.serving.probe import probe
from ddim.serving.requests import Request


def loaded(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    folder = tmp_path_factory.mktemp("xl")
    tiny_xl(folder)
    made = loaded(folder)
    assert isinstance(made, StableDiffusionXLPipeline)
    return made


PICTURE = Image.effect_noise((24, 16), 60).convert("RGB")
MASK = Image.linear_gradient("L").resize((16, 16))
ASKED: list[dict[str, Any]] = [
    {"prompt": "a red cat", "seed": 1},
    {"prompt": "a red cat", "seed": 1, "negative_prompt": "bad"},
    {"prompt": "a red cat", "seed": 2, "prompt_2": "a dog", "negative_prompt_2": "blurry", "steps": 5},
    {"prompt": "a red cat", "seed": 3, "guidance_scale": 1.0, "eta": 1.0},
    {"prompt": "a castle", "seed": 4, "width": 24, "height": 32, "guidance_rescale": 0.7},
    {"prompt": "a castle", "seed": 4, "original_size": (99, 77), "crops_coords_top_left": (3, 4)},
    {"prompt": "a castle", "seed": 4, "target_size": (512, 256), "negative_prompt": ""},
    {"prompt": "a castle", "seed": 4, "negative_original_size": (9, 7), "negative_target_size": (8, 9)},
    {"prompt": "a castle", "seed": 4, "negative_prompt": "", "negative_crops_coords_top_left": (5, 6)},
    {"prompt": "a castle", "seed": 4, "denoising_end": 0.5, "eta": 0.5},
    {"prompt": "a castle", "seed": 4, "image": PICTURE, "denoising_start": 0.4, "denoising_end": 0.8, "strength": 0.2},
    {"prompt": "a castle", "seed": 4, "image": PICTURE, "mask": MASK, "denoising_start": 0.4},
    {"prompt": "a castle", "seed": 5, "image": PICTURE, "strength": 0.7},
    {"prompt": "a castle", "seed": 6, "image": PICTURE, "mask": MASK, "strength": 1.0},
]


def called(pipe: Any, asked: dict[str, Any]) -> Tensor:
    """The picture of the pipeline's call."""
    words = {"steps": "num_inference_steps", "mask": "mask_image"}
    given = {words.get(name, name): value for name, value in asked.items()}
    image: Tensor = pipe(**{"num_inference_steps": 4, "output_type": "pt", **given}).images[0]
    return image


@pytest.mark.parametrize("replaced", [False, True])
def test_pictures_are_those_of_the_call(replaced: bool, pipe: StableDiffusionXLPipeline) -> None:
    handle = pipe.unet.mid_block.register_forward_hook(lambda *_: None) if replaced else None  # type: ignore[union-attr]
    try:
        with Engine(pipe) as engine:
            futures = [engine.submit(Request(**{"steps": 4, "output_type": "pt", **asked})) for asked in ASKED]
            for asked, future in zip(ASKED, futures, strict=True):
                picture = future.result()
                torch.testing.assert_close(picture.image, called(pipe, asked), rtol=0, atol=1e-4)
                assert picture.settings["prompt"] == asked["prompt"]
                assert all(
                    picture.settings[name] == asked[name] for name in ("prompt_2", "target_size") if name in asked
                )
    finally:
        if handle is not None:
            handle.remove()


def test_companions_change_no_bit_where_that_is_asked_for(pipe: StableDiffusionXLPipeline) -> None:
    found = probe(pipe)
    with Engine(pipe, slots=found.slots, decoded=found.decoded) as engine:
        alone = [engine.submit(Request(**{"steps": 3, "output_type": "pt", **asked})).result() for asked in ASKED[:6]]
        both = [engine.submit(Request(**{"steps": 3, "output_type": "pt", **asked})) for asked in ASKED[:6]]
        for one, future in zip(alone, both, strict=True):
            assert torch.equal(one.image, future.result().image)


def test_a_refiner_makes_pictures_of_pictures(tmp_path: Path) -> None:
    tiny_xl(tmp_path, "refiner")
    pipe = loaded(tmp_path)
    asked = {"prompt": "a castle", "seed": 5, "image": PICTURE, "strength": 0.7}
    scored = {**asked, "aesthetic_score": 9.5, "negative_aesthetic_score": 0.5}
    pictures = []
    with Engine(pipe) as engine:
        for each in (asked, scored):
            pictures.append(engine.submit(Request(steps=4, output_type="pt", **each)).result().image)
            torch.testing.assert_close(pictures[-1], called(pipe, each), rtol=0, atol=1e-4)
    assert not torch.equal(*pictures)


def test_other_weights_of_the_second_encoder_are_noticed(tmp_path: Path) -> None:
    tiny_xl(tmp_path)
    pipe = loaded(tmp_path)
    with Engine(pipe) as engine:
        before = engine.submit(Request(steps=2, output_type="pt", **ASKED[0])).result().image
        with torch.no_grad():
            pipe.text_encoder_2.text_projection.weight.mul_(-1)
        after = engine.submit(Request(steps=2, output_type="pt", **ASKED[0])).result().image
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, called(pipe, {"num_inference_steps": 2, **ASKED[0]}), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt_2": 5}, "prompt_2 must be a text, not 5"),
        ({"original_size": 5}, "original_size must be two numbers"),
        ({"class_label": 1}, "class_label is not for this model"),
        ({"aesthetic_score": "good"}, "aesthetic_score must be a number"),
        ({"denoising_end": 0.0}, "denoising_end must be a number in"),
        ({"denoising_end": "x"}, "denoising_end must be a number"),
        ({"denoising_start": 0.5}, "denoising_start needs the image"),
        ({"image": PICTURE, "denoising_start": 0.5, "denoising_end": 0.5}, "must be below denoising_end"),
    ],
)
def test_what_cannot_be_drawn(asked: dict[str, Any], message: str, pipe: StableDiffusionXLPipeline) -> None:
    with Engine(pipe) as engine, pytest.raises(ConfigError, match=message):
        engine.submit(Request(prompt="a", **asked))


def test_others_are_not_told_what_only_xl_is_told() -> None:
    with (
        Engine(DiffusionPipeline.from_pretrained("emoji")) as engine,
        pytest.raises(ConfigError, match="denoising_end is not for this model"),
    ):
        engine.submit(Request(prompt="a", denoising_end=0.5))
