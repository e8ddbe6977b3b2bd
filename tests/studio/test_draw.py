"""The Draw tab: what a visitor does there, and that the pictures are the library's."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from browsing import PHONE, Studio, Visitor
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddim import DiffusionPipeline

PROMPT = "a sunflower"


@cache
def pipe(name: str) -> Any:
    found = DiffusionPipeline.from_pretrained(name)
    found.set_progress_bar_config(disable=True)
    return found


def same(one: Image.Image, other: Image.Image) -> bool:
    """Whether pictures are the same but for a level that another batch may round otherwise."""
    first, second = (np.asarray(each.convert("RGB")).astype(int) for each in (one, other))
    return first.shape == second.shape and bool(np.abs(first - second).max() <= 1)


def choose_model(visitor: Visitor, name: str, steps: int) -> None:
    """Choose a model, and wait until the fields have what suits it."""
    visitor.choose("Model", name)
    visitor.until("steps => document.querySelector('[aria-label=\"number input for Steps\"]').value == steps", steps)


def test_from_opening_to_the_library_s_picture_and_its_file(visitor: Visitor) -> None:
    (shown,) = visitor.draws()
    (own,) = pipe("emoji-fast")(PROMPT, seed=7).images
    assert same(shown, own)
    visitor.wait("#gallery img")
    visitor.page.locator("#gallery button:has(img)").first.click()
    visitor.wait("#about-picture", "trailing")
    with visitor.page.expect_download() as waiting:
        visitor.page.locator("#download").locator("visible=true").first.click()
    file = waiting.value
    assert file.suggested_filename == "a-sunflower-7-0.png"
    picture = Image.open(file.path())
    assert same(picture, own)
    said = json.loads(picture.text["ddim"])  # type: ignore[attr-defined]
    assert said["command"] == "sample"
    assert {**said["settings"], "class_labels": 0} | {
        "prompt": PROMPT,
        "seed": 7,
        "steps": 4,
        "model": "emoji-fast",
    } == {
        **said["settings"],
        "class_labels": 0,
    }


# The fast test beside it is test_the_picture_is_that_of_the_pipelines_call of test_recording.py.
@pytest.mark.slow
def test_every_setting_of_the_fields_is_followed(visitor: Visitor) -> None:
    choose_model(visitor, "emoji", 9)
    visitor.fill("Prompt", "a red heart")
    visitor.fill("Steps", 6)
    visitor.fill("η", 0.5)
    visitor.choose("Spacing", "leading")
    visitor.unfold("Guidance")
    visitor.fill("Negative prompt", "a green tree")
    visitor.fill("Guidance", 2.5)
    visitor.fill("Rescale", 0.3)
    visitor.fill("Guide at timesteps", "100-900")
    visitor.unfold("Seed, size and number")
    visitor.fill("Seed", 11)
    visitor.page.get_by_label("Keep the seed").check()
    visitor.fill("Pictures", 2)
    visitor.page.get_by_label("Size").fill("96x64")
    visitor.page.get_by_label("Size").press("Enter")
    shown = visitor.draws()
    emoji = pipe("emoji")
    scheduler = emoji.scheduler.from_config(emoji.scheduler.config, timestep_spacing="leading")
    own = type(emoji)(**{**emoji.components, "scheduler": scheduler})
    own.set_progress_bar_config(disable=True)
    wanted = own(
        "a red heart",
        negative_prompt="a green tree",
        num_inference_steps=6,
        eta=0.5,
        guidance_scale=2.5,
        guidance_rescale=0.3,
        guidance_interval=(100, 900),
        seed=11,
        num_images_per_prompt=2,
        width=96,
        height=64,
    ).images
    assert len(shown) == 2
    visitor.page.locator("#gallery button:has(img)").first.click()
    visitor.wait("#about-picture", "leading")
    assert all(map(same, shown, wanted)), visitor.page.inner_text("#about-picture")


@pytest.mark.slow
def test_a_class_of_a_model_that_draws_no_texts(visitor: Visitor) -> None:
    choose_model(visitor, "digits-fast", 3)
    visitor.page.get_by_label("Prompt", exact=True).wait_for(state="hidden")
    visitor.choose("Class", "7")
    (shown,) = visitor.draws()
    assert same(shown, pipe("digits-fast")(batch_size=1, class_labels=[7], seed=7).images[0])


# The fast test beside it is test_a_picture_of_the_command of test_recipes.py.
@pytest.mark.slow
def test_a_dropped_picture_gives_its_settings_back(visitor: Visitor) -> None:
    visitor.unfold("Settings from a picture")
    said = {"prompt": "a blue star", "model": "emoji", "steps": 8, "order": 2, "spacing": "trailing", "seed": 99,
            "eta": 0.0, "guidance_scale": 4.0, "guidance_interval": [0, 700], "batch": 2, "width": 64, "height": 64,
            "class_labels": []}  # fmt: skip
    visitor.drop("#recipe", png({"version": "0", "command": "sample", "settings": said, "image": 1}))
    visitor.page.get_by_text("Its settings are in the fields. It is picture 2 of them.").wait_for()
    assert visitor.field("Prompt").input_value() == "a blue star"
    assert visitor.field("Model").input_value() == "emoji"
    assert visitor.field("Steps").input_value() == "8"
    assert visitor.field("Spacing").input_value() == "trailing"
    (first, second) = visitor.draws()
    emoji = pipe("emoji")
    wanted = emoji(
        "a blue star", num_inference_steps=8, order=2, seed=99, guidance_scale=4.0, guidance_interval=(0, 700),
        num_images_per_prompt=2,
    ).images  # fmt: skip
    assert same(first, wanted[0])
    assert same(second, wanted[1])


def png(said: Any) -> bytes:
    """A picture that says this of how it was made; None says nothing."""
    note, file = PngInfo(), io.BytesIO()
    if said is not None:
        note.add_text("ddim", said if isinstance(said, str) else json.dumps(said))
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=note)
    return file.getvalue()


@pytest.mark.slow
def test_pictures_that_say_nothing_good(visitor: Visitor) -> None:
    visitor.unfold("Settings from a picture")
    for file, words in (
        (png(None), "does not say how it was made"),
        (b"no picture", "is no PNG"),
        (png({"settings": {"steps": -3}}), "cannot be followed"),
        (png("{" * 10_000), "cannot be read"),
        (png({"command": "edit", "settings": {}}), "another command"),
    ):
        visitor.drop("#recipe", file)
        visitor.page.get_by_text(words).wait_for()
        visitor.page.locator("#recipe").get_by_label("Clear").or_(
            visitor.page.locator("#recipe").get_by_role("button", name="Remove this file")
        ).first.click()
        visitor.page.locator("#recipe input[type=file]").wait_for(state="attached")
    assert len(visitor.draws()) == 1


# The fast test beside it is test_from_opening_to_the_library_s_picture_and_its_file.
@pytest.mark.slow
def test_a_picture_to_start_from_and_where_to_paint(visitor: Visitor) -> None:
    (start,) = pipe("emoji")("a red heart", seed=3).images
    file = io.BytesIO()
    start.save(file, "PNG")
    choose_model(visitor, "emoji", 9)
    visitor.fill("Prompt", "a blue heart")
    visitor.unfold("Start from a picture")
    visitor.wait("#start-picture")
    visitor.drop("#start-picture", file.getvalue())
    canvas = visitor.wait("#start-picture-painter canvas")
    (shown,) = visitor.draws()
    assert same(shown, pipe("emoji")("a blue heart", image=start, strength=0.8, seed=7).images[0])

    visitor.unfold("Seed, size and number")
    visitor.fill("Seed", 5)
    visitor.page.get_by_label("Keep the seed").check()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    mouse = visitor.page.mouse
    mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.4, steps=4)
    mouse.up()
    canvas.focus()
    for key in ("ArrowDown", "ArrowDown", " "):
        visitor.page.keyboard.press(key)
    with visitor.page.expect_request(lambda request: "queue/join" in request.url) as sent:
        (painted,) = visitor.draws()
    said = next(one["mask"] for one in sent.value.post_data_json["data"] if isinstance(one, dict) and one.get("mask"))
    mask = (
        Image.open(io.BytesIO(base64.b64decode(said.partition(",")[2]))).getchannel("A").point([0] * 128 + [255] * 128)
    )
    assert mask.getpixel((32, 26)) == mask.getpixel((32, 36)) == 255
    assert 0.05 < np.asarray(mask).mean() / 255 < 0.3
    assert same(painted, pipe("emoji")("a blue heart", image=start, mask_image=mask, strength=0.8, seed=5).images[0])


# The fast test beside it is test_cancelling_ends_it_within_a_step of test_trajectory.py.
@pytest.mark.slow
def test_it_is_cancelled_within_a_step_and_goes_on_drawing(visitor: Visitor, studio: Studio) -> None:
    choose_model(visitor, "emoji", 9)
    visitor.fill("Steps", 100)
    visitor.unfold("Seed, size and number")
    visitor.fill("Pictures", 16)
    visitor.press("Draw")
    visitor.wait("#draw-stage .status", "step")
    visitor.wait("#draw-stage figure.picture img")
    visitor.press("Cancel")
    visitor.wait("#draw-stage .status", "Cancelled.")
    visitor.fill("Pictures", 1)
    visitor.fill("Steps", 2)
    started = time.monotonic()
    assert len(visitor.draws()) == 1
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_keys_draw_and_cancel(visitor: Visitor) -> None:
    visitor.field("Prompt").fill("a red heart")
    visitor.page.keyboard.press("Control+Enter")
    visitor.wait("#draw-stage .status", "seed 7")
    assert same(visitor.pictures("#draw-stage")[0], pipe("emoji-fast")("a red heart", seed=7).images[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("Spacing", "optimized", "optimized"),
        ("Guide at timesteps", "8", "two numbers"),
        ("Negative prompt", "a tree", "Negative prompt changes nothing without guidance"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(field: str, value: str, words: str, visitor: Visitor) -> None:
    visitor.unfold("Guidance")
    if field == "Spacing":
        visitor.choose(field, value)
    else:
        visitor.fill(field, value)
    visitor.press("Draw")
    wrong = visitor.wait("#draw-stage .wrong", words)
    assert wrong.get_attribute("role") == "alert"
    assert "Error" not in wrong.inner_text()


@pytest.mark.slow
def test_screenshots(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.unfold("Seed, size and number")
    visitor.page.get_by_label("Keep the seed").check()
    visitor.press("Seed, size and number ▼")
    visitor.draws()
    visitor.fill("Prompt", "a butterfly")
    visitor.draws()
    visitor.page.locator("#gallery button:has(img)").first.click()
    visitor.wait("#about-picture", "trailing")
    visitor.screenshot("draw", whole=True)
    dark = visit(dark=True)
    dark.unfold("Seed, size and number")
    dark.fill("Pictures", 16)
    dark.fill("Prompt", "a smiling face, " * 20)
    assert len(dark.draws()) == 16
    dark.screenshot("draw-dark", whole=True)
    phone = visit(size=PHONE)
    phone.draws()
    assert phone.overflow() == []
    phone.screenshot("draw-phone")
