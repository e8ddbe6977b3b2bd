"""The Real pictures tab: errors and edits are the library's, and whatever is dropped, the page goes on."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from browsing import PHONE, Studio, Visitor
from evil_pictures import bomb, chunk, header, png
from PIL import Image

from ddim import DiffusionPipeline
from ddim.editing import decode_cycle, edit, encode_cycle
from ddim.errors import ConfigError
from ddim.inversion import METHODS, keeping, widened
from ddim.models.core import in_pytorch
from ddim.noise import seeded_generators
from ddim.studio.clock import Clock, Share
from ddim.studio.nearness import Nearness, amplification, as_tensor, difference, nearness, noise_picture
from ddim.studio.real import conditions, example
from ddim.studio.teacher import teacher_of
from ddim.studio.there_and_back import Came, Changed, Edits, Start, come_back, edit_both


@cache
def pipe(place: str) -> Any:
    found = DiffusionPipeline.from_pretrained(place)
    found.set_progress_bar_config(disable=True)
    return found


def close(one: Image.Image, other: Image.Image, most: int = 1) -> bool:
    first, second = (np.asarray(each.convert("RGB")).astype(int) for each in (one, other))
    return first.shape == second.shape and bool(np.abs(first - second).max() <= most)


def seven() -> Image.Image:
    """A real picture of 8x8, enlarged."""
    image: Image.Image = pipe("digits")(class_labels=[7], seed=1, num_inference_steps=10).images[0]
    return image.resize((24, 24), Image.Resampling.NEAREST)


@torch.no_grad()
def by_the_library(
    place: str, picture: Image.Image, method: str, steps: int, **shows: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_T, the picture as the model has it, what came back), the latter two (1 c h w) in [0, 1]."""
    own = pipe(place)
    plan, x0 = own.scheduler.plan(steps).unclipped(), widened(own.encode([picture]))
    denoiser = keeping(own.denoiser(plan, 1, **shows), own.dtype)
    states = METHODS[method].encode(denoiser, x0, plan)
    back = METHODS[method].decode(denoiser, states, plan)
    return states[0], *(own.decode(x.to(own.dtype), "pt") for x in (x0, back))


# --- without a browser ------------------------------------------------------------------------------------------------


def test_a_digit_comes_back_by_all_methods_with_the_library_s_errors() -> None:
    told: list[Any] = []
    come_back(pipe("digits"), seven(), 20, {"class_labels": [7]}, told.append)
    (start,) = [each for each in told if isinstance(each, Start)]
    assert start.lost is None
    assert start.image.size == (8, 8)
    assert close(start.image.resize((24, 24), 0), seven(), 0)
    came = [each for each in told if isinstance(each, Came)]
    assert [each.method for each in came] == list(METHODS)
    for each in came:
        noise, seen, back = by_the_library("digits", start.image, each.method, 20, class_labels=[7])
        assert each.error == nearness(seen, back)
        assert each.deviation == pytest.approx(float(noise.std()))
        assert float((as_tensor([each.image]) - back).abs().max()) <= 0.5 / 255 + 1e-6
        assert each.times == came[0].times
    assert came[0].error.mean > 1  # levels
    assert max(each.error.mean for each in came[1:]) < 0.01
    assert (came[0].evaluations, came[2].evaluations) == (40, 39)
    shares = [each.share for each in told if isinstance(each, Share)]
    assert shares == sorted(shares)
    assert shares[-1] < 1


# The fast test beside it is test_a_digit_comes_back_by_all_methods_with_the_library_s_errors.
@pytest.mark.slow
def test_what_the_autoencoder_loses_is_said_apart(texts: str) -> None:
    picture, told = Image.linear_gradient("L").resize((40, 30)), list[Any]()
    with pytest.warns(UserWarning, match="fixed-point"):  # the tiny network knows nothing
        come_back(pipe(texts), picture, 2, {"prompt": "a cat"}, told.append)
    (start,) = [each for each in told if isinstance(each, Start)]
    own = pipe(texts)
    seen = own.decode(own.encode([start.image]), "pt")
    assert start.image.mode == "RGB"
    assert start.lost == nearness(as_tensor([start.image]), seen)
    one = next(each for each in told if isinstance(each, Came))
    _, seen, back = by_the_library(texts, start.image, "ddim", 2, prompt="a cat")
    assert one.error == nearness(seen, back)
    assert one.whole == nearness(as_tensor([start.image]), back)


@torch.no_grad()
def edited(
    place: str, picture: Image.Image, how: Edits, scale: float, rescale: float
) -> tuple[Image.Image, Image.Image]:
    """(by CycleDiffusion, through inversion), by the library's own functions."""
    own, guidance = pipe(place), {"guidance_scale": scale, "guidance_rescale": rescale}
    x0 = own.encode([picture])
    random, plan = (own.scheduler.plan(how.steps, eta=eta).unclipped().shortened(how.strength) for eta in (1.0, 0.0))
    cycle = encode_cycle(own.denoiser(random, 1, **how.source), x0, random, seeded_generators(how.seed, 1))
    for step in decode_cycle(own.denoiser(random, 1, **how.target, **guidance), cycle, random):
        x = step.sample
    through = edit(
        own.denoiser(plan, 1, **how.source), own.denoiser(plan, 1, **how.target, **guidance), x0, plan, how.method
    )
    return own.decode(x)[0], own.decode(through)[0]


@pytest.mark.parametrize("method", ["ddim", "bidirectional"])
def test_edits_are_the_library_s(texts: str, method: Any) -> None:
    picture = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    how = Edits({"prompt": "a cat"}, {"prompt": "a dog"}, 0.5, 6, 2.0, 5, method)
    told: list[Any] = []
    edit_both(pipe(texts), picture, how, told.append)
    changed = {each.by: each.image for each in told if isinstance(each, Changed)}
    start = next(each for each in told if isinstance(each, Start))
    cycle, through = edited(texts, start.image, how, 2.0, 0.0)
    assert close(changed["cycle"], cycle, 0)
    assert close(changed["inversion"], through, 0)
    assert not close(changed["cycle"], changed["inversion"], 0)


def test_a_class_is_edited_to_another() -> None:
    how = Edits({"class_labels": [7]}, {"class_labels": [1]}, 0.7, 10, None, 3)
    told: list[Any] = []
    edit_both(pipe("digits"), seven(), how, told.append)
    changed = {each.by: each.image for each in told if isinstance(each, Changed)}
    start = next(each for each in told if isinstance(each, Start))
    cycle, through = edited("digits", start.image, how, 1.0, 0.0)
    assert close(changed["cycle"], cycle, 0)
    assert close(changed["inversion"], through, 0)


def test_each_evaluation_can_end_it(classes: str) -> None:
    class EnoughError(Exception):
        pass

    how = Edits({}, {}, 1.0, 5)
    for work in (
        lambda tell: come_back(pipe(classes), Image.new("L", (8, 8)), 50, {}, tell),
        lambda tell: edit_both(pipe(classes), Image.new("L", (8, 8)), how, tell),
    ):
        calls = 0

        def stop(told: Any) -> None:
            nonlocal calls
            calls += isinstance(told, Share)
            if calls == 7:
                raise EnoughError

        with pytest.raises(EnoughError):
            work(stop)


def test_another_backend_does_not_compute_what_is_to_come_back(classes: str) -> None:
    own = DiffusionPipeline.from_pretrained(classes)
    network: Any = own.components["unet"]

    class Broken:
        """A backend whose every answer is nonsense."""

        def begin(self) -> None:
            pass

        def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
            return torch.full_like(inputs[0], 3.0)

    plan, x = own.scheduler.plan(2), torch.zeros(1, 1, 8, 8)
    with torch.no_grad():
        right = own.denoiser(plan, 1)(x, torch.tensor(plan.timesteps[0]))
        network.runner = Broken()
        wrong = own.denoiser(plan, 1)(x, torch.tensor(plan.timesteps[0]))
        with in_pytorch(own.components.values()):
            again = own.denoiser(plan, 1)(x, torch.tensor(plan.timesteps[0]))
        after = own.denoiser(plan, 1)(x, torch.tensor(plan.timesteps[0]))
    assert torch.equal(right, again)
    assert bool((wrong == 3).all())
    assert torch.equal(wrong, after)


def test_nearness() -> None:
    one = as_tensor([Image.new("RGB", (4, 4), (10, 20, 30))])
    other = as_tensor([Image.new("RGB", (4, 4), (13, 20, 30))])
    near = nearness(one, other)
    assert (near.mean, near.largest) == pytest.approx((1.0, 3.0))
    assert near.square == pytest.approx(3 / 255**2)
    assert near.psnr == pytest.approx(-10 * math.log10(3 / 255**2))
    assert str(near) == "PSNR 43.4 dB, mean error 1 levels of 255"
    assert nearness(one, one) == Nearness(0.0, 0.0, 0.0)
    assert nearness(one, one).psnr == math.inf
    assert str(nearness(one, one)) == "the same to the last bit"


@pytest.mark.parametrize(("levels", "times"), [(0, 64), (1, 64), (4, 32), (20, 8), (200, 4)])
def test_a_difference_is_amplified_so_that_it_is_seen(levels: int, times: int) -> None:
    one, other = (as_tensor([Image.new("L", (4, 4), shade)]) for shade in (0, levels))
    assert amplification(one, other) == times
    assert difference(one, other, times).getpixel((0, 0)) == min(255, levels * times)


def test_noise_as_a_picture() -> None:
    x = torch.tensor([-3.0, 0.0, 3.0, 9.0]).view(1, 4, 1, 1)
    assert noise_picture(x).getpixel((0, 0)) == (0, 128, 255)
    assert noise_picture(x[:, 2:3]).getpixel((0, 0)) == 255


def test_what_a_picture_shows() -> None:
    assert conditions(" a cat ", True, None) == {"prompt": "a cat"}
    assert conditions("", True, None) == {"prompt": ""}
    assert conditions("4", False, 10) == {"class_labels": [4]}
    assert conditions("", False, 10) == conditions("4", False, None) == {}
    for wrong in ("10", "a cat", "1 2"):
        with pytest.raises(ConfigError, match="class"):
            conditions(wrong, False, 10)


def test_a_picture_of_the_model_s_own() -> None:
    assert example(True, None)[0].prompt == example(True, None)[1] == "a red heart"
    assert (example(False, 10)[0].class_label, *example(False, 10)[1:]) == (7, "7", "1")
    assert example(False, 3)[0].class_label == 1
    assert (example(False, None)[0].class_label, *example(False, None)[1:]) == (None, "", "")


def test_a_student_leaves_it_to_its_teacher() -> None:
    from ddim.serving.pool import Pool
    from ddim.studio.desk import Studio as Desk

    def desk(*places: str) -> Desk:
        return Desk(Pool(places, lambda name: pipe(name)), {place: place for place in places})

    both, alone = desk("emoji-fast", "emoji", "digits"), desk("emoji-fast", "digits")
    try:
        name, said = teacher_of(both, "emoji-fast")
        assert name == "emoji"
        assert said is not None
        assert said.startswith("emoji finds the noise")
        assert teacher_of(both, "digits") == ("digits", None)
        name, said = teacher_of(alone, "emoji-fast")
        assert name == "emoji-fast"
        assert said is not None
        assert "with its teacher emoji" in said
    finally:
        for each in (both, alone):
            each.sessions.close()


def test_how_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = Clock()
    assert clock.left(0.5) == ""
    now = 104.0
    assert clock.left(0.25) == " · 12 s left"
    assert clock.left(0.01) == ""


# --- in a browser -----------------------------------------------------------------------------------------------------


def settle(visitor: Visitor, button: str, stage: str) -> list[Image.Image]:
    """Press a button, and wait for what it does."""
    visitor.page.evaluate(f"document.querySelectorAll('{stage} .status').forEach(each => each.textContent = '')")
    visitor.press(button)
    visitor.wait(f"{stage} .status", "Done in")
    return visitor.pictures(stage)


# The fast test beside it is test_a_digit_comes_back_by_all_methods_with_the_library_s_errors.
@pytest.mark.slow
def test_from_opening_to_a_picture_that_came_back_by_three_methods(visitor: Visitor) -> None:
    visitor.tab("Real pictures")
    visitor.wait("#real-about", "emoji finds the noise")
    visitor.fill("Steps each way", 20)
    shown = settle(visitor, "Lead it there and back", "#real-back-stage")
    own = pipe("emoji-fast")("a red heart", seed=7).images[0]
    assert len(shown) == 2 + 3 * 3
    assert close(shown[0], own)
    assert visitor.field("What it shows").input_value() == "a red heart"
    columns = visitor.page.locator("#real-back-stage .column")
    _, seen, back = by_the_library("emoji", shown[0], "ddim", 20, prompt="a red heart")
    assert str(nearness(seen, back)) in columns.nth(1).inner_text()
    assert close(shown[2], Image.fromarray((back[0].movedim(0, -1) * 255).round().byte().numpy()))
    for number in (2, 3):
        said = columns.nth(number).inner_text()
        assert "under 0.01 levels" in said or "same to the last bit" in said
    assert "Against the file" in columns.nth(1).inner_text()


# The fast test beside it is test_edits_are_the_library_s.
@pytest.mark.slow
def test_a_dropped_picture_is_edited_in_both_ways(visitor: Visitor) -> None:
    visitor.choose("Model", "digits")
    visitor.tab("Real pictures")
    file = io.BytesIO()
    seven().save(file, "PNG")
    visitor.drop("#real-picture", file.getvalue())
    visitor.wait("#real-picture img")
    visitor.page.get_by_label("Edit it").check()
    visitor.page.locator("#real-shows input, #real-shows textarea").fill("7")
    visitor.page.locator("#real-target input, #real-target textarea").fill("1")
    visitor.fill("Strength", 0.8)
    visitor.fill("Guidance", 1.5)
    visitor.fill("Steps of the whole way", 20)
    visitor.fill("Seed of CycleDiffusion", 5)
    visitor.choose("Inversion by", "Reversible sampler")
    shown = settle(visitor, "Edit", "#real-edit-stage")
    how = Edits({"class_labels": [7]}, {"class_labels": [1]}, 0.8, 20, 1.5, 5, "bidirectional")
    cycle, through = edited("digits", shown[0], how, 1.5, 0.0)
    assert len(shown) == 3
    assert close(shown[1], cycle)
    assert close(shown[2], through)
    with visitor.page.expect_download() as waiting:
        visitor.page.locator("#real-download-cycle").locator("visible=true").first.click()
    with Image.open(waiting.value.path()) as picture:
        assert close(picture, cycle)
        assert '"strength": 0.8' in picture.text["ddim"]  # type: ignore[attr-defined]


# The fast test beside it is test_a_picture_of_the_model_s_own.
@pytest.mark.slow
def test_a_model_s_own_picture_at_a_press(visitor: Visitor) -> None:
    visitor.choose("Model", "digits-fast")
    visitor.tab("Real pictures")
    visitor.press("Use a picture of the model's own")
    visitor.wait("#real-picture img")
    (shown,) = visitor.pictures("#real-picture")
    assert close(shown, pipe("digits-fast")(class_labels=[7], seed=7).images[0])
    visitor.page.wait_for_function("document.querySelector('#real-shows input, #real-shows textarea').value === '7'")


@pytest.mark.slow
def test_it_is_cancelled_by_a_key_and_goes_on(visitor: Visitor) -> None:
    visitor.tab("Real pictures")
    visitor.fill("Steps each way", 200)
    visitor.page.keyboard.press("Control+Enter")
    visitor.wait("#real-back-stage .status", "DDIM backwards")
    visitor.page.keyboard.press("Escape")
    visitor.wait("#real-back-stage .status", "Cancelled.")
    visitor.choose("Model", "digits")
    visitor.wait("#real-shows", "its class")
    assert visitor.page.locator("#real-shows input, #real-shows textarea").input_value() == ""
    visitor.page.locator("#real-shows input, #real-shows textarea").fill("a cat")
    visitor.press("Lead it there and back")
    visitor.wait("#real-back-stage [role=alert]", "is no class")


HOSTILE = {
    "a bomb": png(head=header(9_000, 9_000), data=chunk(b"IDAT", bomb())),
    "a text that is named like a picture": b"not a picture at all",
    "one that is too large": png(head=header(20_000, 20_000)),
    "one that is cut off": png()[:60],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "a bomb" else []) for name in HOSTILE]
)
def test_a_hostile_picture_is_a_sentence_and_the_tab_goes_on(name: str, visitor: Visitor, studio: Studio) -> None:
    visitor.choose("Model", "digits")
    visitor.tab("Real pictures")
    visitor.fill("Steps each way", 2)
    with visitor.page.expect_response(lambda answer: "/upload" in answer.url):
        visitor.drop("#real-picture", HOSTILE[name])
    visitor.page.locator("#real-picture button[aria-label]").first.wait_for()  # that which takes it away
    visitor.press("Lead it there and back")
    said = visitor.wait("#real-back-stage [role=alert]").inner_text()
    assert said.startswith("The image ")
    assert said.endswith(".")
    visitor.page.locator("#real-picture button[aria-label]").first.click()
    settle(visitor, "Lead it there and back", "#real-back-stage")
    assert "Traceback" not in studio.log


@pytest.mark.slow
@pytest.mark.parametrize("name", ["real", "real-dark", "real-phone"])
def test_how_it_looks(name: str, visit: Callable[..., Visitor]) -> None:
    visitor = visit(dark=name.endswith("dark"), **({"size": PHONE} if name.endswith("phone") else {}))
    visitor.tab("Real pictures")
    visitor.fill("Steps each way", 20)
    settle(visitor, "Lead it there and back", "#real-back-stage")
    assert visitor.overflow() == []
    visitor.screenshot(name, whole=True)
    visitor.page.get_by_label("Edit it").check()
    visitor.fill("Steps of the whole way", 20)
    settle(visitor, "Edit", "#real-edit-stage")
    assert visitor.overflow() == []
    visitor.screenshot(f"{name}-edit", whole=True)
