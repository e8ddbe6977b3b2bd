"""The Between tab: its frames are the library's, its film plays, and pictures come back to its ends."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from browsing import PHONE, Visitor
from evil_pictures import png
from PIL import Image

from ddim import DiffusionPipeline
from ddim.errors import ConfigError, MissingExtraError
from ddim.images import enlarge
from ddim.interpolation import INVERSIONS, lerp, seed_noise, slerp
from ddim.inversion import METHODS
from ddim.serving.limits import Limits
from ddim.serving.parameters import Generation
from ddim.serving.refusal import Refusal
from ddim.studio import frames as module
from ddim.studio.between import ends_of, film_html, kinds
from ddim.studio.clock import Share
from ddim.studio.frames import Ends, Film, Frame, Note, draw_frames, film, strip
from ddim.studio.nearness import as_tensor, nearness
from ddim.studio.panel import PROMPT

GIVEN: dict[str, Any] = {
    "between": 2,
    "seeds": "7, 8",
    "texts": "a cat\na dog",
    "classes": "0 2",
    "first": None,
    "second": None,
    "first_shows": "",
    "second_shows": "",
    "method": "ddim",
    "steps": 5,
}


@cache
def pipe(place: str) -> Any:
    found = DiffusionPipeline.from_pretrained(place)
    found.set_progress_bar_config(disable=True)
    return found


def close(one: Image.Image, other: Image.Image, most: int = 1) -> bool:
    """Whether pictures are the same, but for what another batch rounds otherwise."""
    first, second = (np.asarray(each.convert("RGB")).astype(int) for each in (one, other))
    return first.shape == second.shape and bool(np.abs(first - second).max() <= most)


def drawn(place: str, asked: Generation, ends: Ends) -> tuple[list[Image.Image], list[Any]]:
    """(the frames, all that was told)"""
    told: list[Any] = []
    return draw_frames(pipe(place), "it", asked, ends, Limits(), told.append), told


# --- without a browser ------------------------------------------------------------------------------------------------


def test_between_seeds_it_begins_and_ends_with_the_pipeline_s_own_pictures(texts: str) -> None:
    asked = Generation(prompt="a cat", seed=1, steps=3, guidance_scale=2.0, guidance_rescale=0.5, negative_prompt="x")
    made, told = drawn(texts, asked, Ends(2, seeds=(7, 8, 9)))
    wanted = {"num_inference_steps": 3, "guidance_scale": 2.0, "guidance_rescale": 0.5, "negative_prompt": "x"}
    assert len(made) == 7
    for index, seed in ((0, 7), (3, 8), (6, 9)):
        assert close(made[index], pipe(texts)("a cat", seed=seed, **wanted).images[0])
    third = slerp(seed_noise(pipe(texts), [7]), seed_noise(pipe(texts), [8]), 1 / 3)
    assert close(made[1], pipe(texts)("a cat", latents=third, **wanted).images[0])
    assert [each.number for each in told if isinstance(each, Frame)] == list(range(7))
    shares = [each.share for each in told if isinstance(each, Share)]
    assert shares == sorted(shares)
    assert len(shares) == 3 * 2  # two batches
    assert shares[-1] == 1.0


def test_between_seeds_in_another_size_and_order(texts: str) -> None:
    asked = Generation(prompt="a cat", steps=3, order=2, size="24x16", spacing="trailing", guidance_scale=1.0)
    made, _ = drawn(texts, asked, Ends(1, seeds=(7, 8)))
    scheduler = pipe(texts).scheduler.from_config(pipe(texts).scheduler.config, timestep_spacing="trailing")
    own = type(pipe(texts))(**{**pipe(texts).components, "scheduler": scheduler})
    own.set_progress_bar_config(disable=True)
    wanted = {"num_inference_steps": 3, "order": 2, "width": 24, "height": 16, "guidance_scale": 1.0}
    assert made[0].size == (24, 16)
    assert close(made[-1], own("a cat", seed=8, **wanted).images[0])


def test_between_texts(texts: str) -> None:
    asked = Generation(prompt="not this", seed=4, steps=2, guidance_scale=1.5)
    made, told = drawn(texts, asked, Ends(1, prompts=("a cat", "a dog")))
    wanted = {"seed": 4, "num_inference_steps": 2, "guidance_scale": 1.5}
    assert close(made[0], pipe(texts)("a cat", **wanted).images[0])
    assert close(made[2], pipe(texts)("a dog", **wanted).images[0])
    embeds = [pipe(texts).embed([text]) for text in ("a cat", "a dog")]
    assert close(made[1], pipe(texts)(prompt_embeds=lerp(*embeds, 0.5), **wanted).images[0])
    assert not [each for each in told if isinstance(each, Note)]


def test_between_classes_and_seeds_of_a_model_of_pixels(classes: str) -> None:
    asked = Generation(seed=4, steps=2, class_label=1)
    made, _ = drawn(classes, asked, Ends(1, class_labels=(0, 2)))
    for index, label in ((0, 0), (2, 2)):
        assert close(made[index], pipe(classes)(class_labels=[label], seed=4, num_inference_steps=2).images[0])
    made, _ = drawn(classes, asked, Ends(1, seeds=(5, 6)))
    for index, start in ((0, {"seed": 5}), (2, {"seed": 6})):
        assert close(made[index], pipe(classes)(class_labels=[1], num_inference_steps=2, **start).images[0])


def test_noise_at_each_step_is_left_out_and_said_so(classes: str) -> None:
    plain, _ = drawn(classes, Generation(steps=3), Ends(1, seeds=(1, 2)))
    made, told = drawn(classes, Generation(steps=3, eta=0.5), Ends(1, seeds=(1, 2)))
    assert all(map(close, made, plain))
    (note,) = [each.text for each in told if isinstance(each, Note)]
    assert note.startswith("η is 0 here")


@pytest.mark.parametrize("method", ["ddim", "fixed-point"])
@pytest.mark.thin(fast=["ddim"])
def test_pictures_are_led_to_their_noise_and_the_error_is_the_library_s(method: Any) -> None:
    digits = pipe("digits")
    own = [digits(class_labels=[label], seed=label).images[0] for label in (3, 8)]
    ends = Ends(
        2, class_labels=(3, 8), pictures=tuple(each.resize((16, 16), 0) for each in own), method=method, steps=20
    )
    made, told = drawn("digits", Generation(), ends)
    plan = digits.scheduler.plan(20).unclipped()
    x0, denoiser = digits.encode(own), digits.denoiser(plan, 2, class_labels=[3, 8])
    with torch.no_grad():
        (noise,) = INVERSIONS[method].encode(denoiser, x0, plan)
        back = digits.decode(METHODS[method].decode(denoiser, (noise,), plan))
    assert close(made[0], back[0])
    assert close(made[3], back[1])
    (note,) = [each.text for each in told if isinstance(each, Note)]
    assert "in 20 steps" in note
    assert "autoencoder" not in note
    for one, other in zip(own, back, strict=True):
        assert str(nearness(as_tensor([one]), as_tensor([other]))) in note
    assert ("same to the last bit" in note) == (method == "fixed-point")


def test_what_the_autoencoder_loses_of_pictures_is_said(texts: str) -> None:
    shown = tuple(Image.new("RGB", (20, 30), colour) for colour in ("red", "blue"))
    made, told = drawn(texts, Generation(steps=1), Ends(1, pictures=shown, method="ddim", steps=3))
    (note,) = [each.text for each in told if isinstance(each, Note)]
    assert "autoencoder" in note
    assert len(made) == 3


def test_it_ends_when_told(classes: str) -> None:
    class EnoughError(Exception):
        pass

    for ends in (
        Ends(5, seeds=(1, 2)),
        Ends(1, pictures=(Image.new("L", (8, 8)), Image.new("L", (8, 8), 255)), method="ddim"),
    ):
        calls = 0

        def stop(_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise EnoughError

        with pytest.raises(EnoughError):
            draw_frames(pipe(classes), "it", Generation(steps=9), ends, Limits(), stop)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("seeds", {"seeds": "7"}, "one point leads nowhere"),
        ("seeds", {"seeds": ""}, "one point leads nowhere"),
        ("seeds", {"seeds": "7, x"}, "'x' is no seed"),
        ("seeds", {"seeds": "7, -1"}, "'-1' is no seed"),
        ("seeds", {"seeds": f"7, {2**63}"}, "is no seed"),
        ("seeds", {"seeds": "7, ²"}, "is no seed"),
        ("seeds", {"seeds": " ".join(map(str, range(9)))}, "8 points"),
        ("seeds", {"seeds": "1 2 3 4 5", "between": 30}, "96 pictures"),
        ("texts", {"texts": "a cat\n\n"}, "one point leads nowhere"),
        ("classes", {"classes": "0, 3"}, "'3' is no class: give whole numbers from 0 to 2"),
        ("pictures", {}, "drop two pictures"),
        ("pictures", {"first": Image.new("L", (8, 8))}, "drop two pictures"),
        ("pictures", {"first": GIVEN, "second": GIVEN, "first_shows": "1"}, "the class of both"),
    ],
)
def test_what_leads_nowhere_is_a_sentence(kind: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        ends_of(kind, {**GIVEN, **given}, 3)


def test_what_is_given_is_gone_between() -> None:
    assert ends_of("seeds", {**GIVEN, "seeds": " 7;8, 9 "}) == Ends(2, seeds=(7, 8, 9))
    assert ends_of("texts", {**GIVEN, "texts": " a cat \n\na dog"}) == Ends(2, prompts=("a cat", "a dog"))
    assert ends_of("classes", GIVEN, 3) == Ends(2, class_labels=(0, 2))
    pictures = (Image.new("L", (8, 8)), Image.new("L", (8, 8)))
    both = {**GIVEN, "first": pictures[0], "second": pictures[1]}
    plain = Ends(2, pictures=pictures, method="ddim", steps=5)
    assert ends_of("pictures", both) == plain
    assert ends_of("pictures", {**both, "first_shows": "a cat"}).prompts == ("a cat", "")
    assert ends_of("pictures", {**both, "first_shows": "1", "second_shows": "2"}, 3).class_labels == (1, 2)


def test_a_model_has_what_it_knows_to_go_between() -> None:
    assert [value for _, value in kinds(True, None)] == ["seeds", "texts", "pictures"]
    assert [value for _, value in kinds(False, 10)] == ["seeds", "classes", "pictures"]
    assert [value for _, value in kinds(False, None)] == ["seeds", "pictures"]


def test_settings_that_the_model_has_not_are_refused(texts: str, classes: str) -> None:
    with pytest.raises(Refusal, match="size"):
        drawn(texts, Generation(prompt="a cat", size="10000x8"), Ends(1, seeds=(1, 2)))
    with pytest.raises(Refusal, match="draws no texts"):
        drawn(classes, Generation(), Ends(1, prompts=("a cat", "a dog")))


def shades(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (15, 15), (40 * number, 255 - 40 * number, 90)) for number in range(count)]


def video(data: bytes) -> list[np.ndarray[Any, Any]]:
    with av.open(io.BytesIO(data)) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)]


@pytest.mark.parametrize(("returns", "order"), [(False, [0, 1, 2, 3]), (True, [0, 1, 2, 3, 2, 1])])
def test_a_film_of_the_frames(returns: bool, order: list[int]) -> None:
    made = film(shades(4), 8, returns=returns, about={"seeds": [1, 2]})
    assert (made.suffix, made.note, made.seconds) == (".mp4", None, len(order) / 8)
    assert made.size == (255, 255)
    shown = video(made.data)
    assert len(shown) == len(order)
    for frame, number in zip(shown, order, strict=True):
        wanted = np.asarray(enlarge(shades(4)[number], least=256)).astype(int)
        assert np.abs(frame[:255, :255] - wanted).max() < 8


def test_without_the_library_of_videos_it_is_a_webp_and_says_what_would_give_an_mp4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = module.write_animation

    def without(path: Path, *given: Any, **more: Any) -> None:
        if path.suffix == ".mp4":
            raise MissingExtraError("this needs av, which is not installed: pip install 'ddim[video]'")
        write(path, *given, **more)

    monkeypatch.setattr(module, "write_animation", without)
    made = film(shades(3), 8, returns=False, about={})
    assert made.suffix == ".webp"
    assert made.note is not None
    assert "ddim[video]" in made.note
    with Image.open(io.BytesIO(made.data)) as image:
        assert image.format == "WEBP"
        assert image.n_frames == 3  # type: ignore[attr-defined]
    html = film_html(made, Path("/a/b c.webp"))
    assert "<img" in html
    assert "ddim[video]" in html
    assert "gradio_api/file=/a/b%20c.webp" in html


def test_a_strip_has_all_frames_and_says_its_settings() -> None:
    data = strip(shades(3), {"seeds": [1, 2]})
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (3 * 60 + 4, 60)
        assert '"seeds": [1, 2]' in image.text["ddim"]  # type: ignore[attr-defined]
        assert image.getpixel((10, 10)) == (0, 255, 90)


def test_a_film_s_address_is_quoted() -> None:
    assert 'onerror="' not in film_html(Film(b"", ".mp4", (8, 8), 1.0), Path('/a/" onerror="x.mp4'))


# --- in a browser -----------------------------------------------------------------------------------------------------


def draw(visitor: Visitor, words: str = "pictures in") -> list[Image.Image]:
    visitor.page.evaluate("document.querySelectorAll('#between-stage .status').forEach(each => each.textContent = '')")
    visitor.press("Draw")
    visitor.wait("#between-stage .status", words)
    return visitor.pictures("#between-stage")


def film_of(visitor: Visitor) -> list[np.ndarray[Any, Any]]:
    """The film, once it plays."""
    visitor.wait("#between-film video")
    plays = "film.readyState >= 2 && film.videoWidth > 0 && !film.error && film.currentTime > 0"
    visitor.until(f"(() => {{ const film = document.querySelector('#between-film video'); return {plays}; }})()")
    address = visitor.page.locator("#between-film video").evaluate("film => film.src")
    answer = visitor.page.request.get(address)
    assert answer.headers["content-type"] == "video/mp4"
    return video(answer.body())


def test_from_opening_to_a_strip_and_a_film_that_plays(visitor: Visitor) -> None:
    visitor.tab("Between")
    visitor.wait("#between-rest", "All else is as on the Draw tab: emoji-fast")
    shown = draw(visitor)
    fast = pipe("emoji-fast")
    first, last = (fast(PROMPT, seed=seed).images[0] for seed in (7, 8))
    assert len(shown) == 8
    assert close(shown[0], first)
    assert close(shown[-1], last)
    assert not close(shown[3], first, 30)
    played = film_of(visitor)
    assert len(played) == 14  # there and back
    for frame, picture in ((played[0], first), (played[7], last)):
        wanted = np.asarray(enlarge(picture, least=256)).astype(int)
        assert np.abs(frame - wanted).mean() < 4
    with visitor.page.expect_download() as waiting:
        visitor.page.locator("#between-download-film").locator("visible=true").first.click()
    assert waiting.value.suggested_filename == "between.mp4"
    assert len(video(Path(waiting.value.path()).read_bytes())) == 14
    with visitor.page.expect_download() as waiting:
        visitor.page.locator("#between-download-strip").locator("visible=true").first.click()
    with Image.open(waiting.value.path()) as picture:
        assert picture.width == 8 * 66 - 2


@pytest.mark.slow
def test_between_texts_by_the_keyboard_and_then_between_classes(visitor: Visitor) -> None:
    visitor.tab("Between")
    visitor.page.get_by_label("Texts", exact=True).check()
    visitor.fill("These texts", "a red heart\na blue heart")
    visitor.fill("Pictures between", 1)
    visitor.page.keyboard.press("Control+Enter")
    visitor.wait("#between-stage .status", "3 pictures in")
    shown = visitor.pictures("#between-stage")
    for picture, text in ((shown[0], "a red heart"), (shown[-1], "a blue heart")):
        assert close(picture, pipe("emoji-fast")(text, seed=7).images[0])
    visitor.choose("Model", "digits-fast")
    visitor.page.get_by_label("Classes", exact=True).check()
    visitor.fill("These classes", "3, 8")
    shown = draw(visitor, "3 pictures in")
    for picture, label in ((shown[0], 3), (shown[-1], 8)):
        assert close(picture, pipe("digits-fast")(class_labels=[label], seed=7).images[0])


@pytest.mark.slow
def test_two_dropped_pictures(visitor: Visitor) -> None:
    visitor.tab("Between")
    visitor.page.get_by_label("Pictures", exact=True).check()
    own = [pipe("emoji-fast")(text, seed=3).images[0] for text in ("a red heart", "a star")]
    for number, place in enumerate(("#between-first", "#between-second")):
        file = io.BytesIO()
        own[number].save(file, "PNG")
        visitor.drop(place, file.getvalue())
        visitor.wait(f"{place} img")
    visitor.choose("How their noise is found", "DDIM backwards")
    visitor.fill("Steps there and back", 6)
    visitor.fill("Pictures between", 1)
    shown = draw(visitor, "3 pictures in")
    emoji = pipe("emoji")
    plan = emoji.scheduler.plan(6).unclipped()
    with torch.no_grad():
        x0, denoiser = emoji.encode(own), emoji.denoiser(plan, 2, prompt="")
        back = emoji.decode(METHODS["ddim"].decode(denoiser, METHODS["ddim"].encode(denoiser, x0, plan), plan))
        seen = emoji.decode(x0)
    assert close(shown[0], back[0], 2)
    assert close(shown[-1], back[1], 2)
    said = visitor.page.locator("#between-stage").inner_text()
    assert "emoji finds the noise" in said
    assert "in 6 steps by DDIM backwards" in said
    errors = [nearness(as_tensor([one]), as_tensor([other])) for one, other in zip(seen, back, strict=True)]
    found = [float(each) for each in re.findall(r"PSNR ([\d.]+) dB", said)[:2]]
    assert found == pytest.approx([each.psnr for each in errors], abs=0.2)


@pytest.mark.slow
def test_it_is_cancelled_and_what_leads_nowhere_is_a_sentence(visitor: Visitor) -> None:
    visitor.choose("Model", "emoji")
    visitor.fill("Steps", 100)
    visitor.tab("Between")
    visitor.fill("Pictures between", 30)
    visitor.press("Draw")
    visitor.wait("#between-stage .status", "of 32 pictures")
    visitor.press("Cancel")
    visitor.wait("#between-stage .status", "Cancelled.")
    visitor.fill("These seeds", "7, mouse")
    visitor.press("Draw")
    visitor.wait("#between-stage [role=alert]", "'mouse' is no seed")
    visitor.page.get_by_label("Pictures", exact=True).check()
    with visitor.page.expect_response(lambda answer: "/upload" in answer.url):
        visitor.drop("#between-first", png()[:60])
    visitor.page.locator("#between-first button[aria-label]").first.wait_for()
    visitor.press("Draw")
    visitor.wait("#between-stage [role=alert]", "cut off")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["between", "between-dark", "between-phone"])
def test_how_it_looks(name: str, visit: Callable[..., Visitor]) -> None:
    visitor = visit(dark=name.endswith("dark"), **({"size": PHONE} if name.endswith("phone") else {}))
    visitor.tab("Between")
    draw(visitor)
    visitor.wait("#between-film video")
    assert visitor.overflow() == []
    visitor.screenshot(name, whole=True)
