"""The routes, as OpenAI's own client uses them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from serving import Served, eventually, exchange, file_of, opened, quiet, serving
from tiny import tiny_pipeline
from tiny_xl import tiny_xl

from ddim import DiffusionPipeline
from ddim.cli import main
from ddim.serving.api import Options
from ddim.serving.keys import Keys
from ddim.serving.limits import Limits

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's, of variations

KEY = "a key that nobody guesses".replace(" ", "-")


def array(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB"), float) / 255


def read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


@pytest.fixture(scope="module")
def emoji(models: dict[str, Callable[[], DiffusionPipeline]]) -> Any:
    return models["emoji"]()


@pytest.fixture(scope="module")
def heart(served: Served) -> Image.Image:
    answer = served.client().images.generate(prompt="a red heart", extra_body={"seed": 7, "steps": 4})
    return opened(answer.data[0])


def refused(call: Callable[..., Any], kind: type[openai.APIStatusError] = openai.BadRequestError, **given: Any) -> Any:
    """The error in the answer to a call that is refused."""
    with pytest.raises(kind) as raised:
        call(**given)
    error = raised.value
    assert error.request_id is not None
    assert error.request_id.startswith("req_")
    body: Any = error.body
    assert set(body) == {"message", "type", "param", "code", "request_id"}
    return error


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_a_picture_is_the_pipelines(served: Served, emoji: Any) -> None:
    settings = {"seed": 7, "steps": 5, "eta": 0.5, "guidance_scale": 2.5, "guidance_rescale": 0.3}
    more = {"negative_prompt": "blue", "guidance_interval": [100, 900]}
    answer = served.client().images.generate(prompt="a red heart", n=2, extra_body={**settings, **more})
    drawn = emoji(
        "a red heart",
        num_images_per_prompt=2,
        num_inference_steps=5,
        negative_prompt="blue",
        guidance_interval=(100, 900),
        **{name: value for name, value in settings.items() if name != "steps"},
    ).images
    assert len(answer.data) == 2
    for one, other in zip(answer.data, drawn, strict=True):
        assert np.abs(array(opened(one)) - array(other)).max() < 1 / 250
    said: Any = answer.ddim  # type: ignore[attr-defined]
    assert said["model"] == "emoji"
    assert {name: said[name] for name in settings} == settings
    assert said["negative_prompt"] == "blue"
    assert answer.size == "64x64"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_a_seed_is_chosen_and_said(served: Served) -> None:
    images = served.client().images.with_raw_response
    raw = images.generate(model="digits", prompt="", extra_body={"steps": 3})
    seed = json.loads(raw.content)["ddim"]["seed"]
    assert raw.headers["x-ddim-seed"] == str(seed)
    again = served.client().images.generate(model="digits", prompt="", extra_body={"steps": 3, "seed": seed})
    assert again.data[0].b64_json == raw.parse().data[0].b64_json
    other = served.client().images.generate(model="digits", prompt="", extra_body={"steps": 3})
    assert other.ddim["seed"] != seed  # type: ignore[attr-defined]


def test_classes_come_in_turn_or_as_asked(served: Served, models: dict[str, Callable[[], Any]]) -> None:
    digits = models["digits"]()
    for asked, labels in ((None, [0, 1, 2]), (7, [7, 7, 7])):
        answer = served.client().images.generate(
            model="digits", prompt="", n=3, extra_body={"steps": 4, "seed": 1, "class_label": asked}
        )
        drawn = digits(class_labels=labels, seed=1, num_inference_steps=4).images
        for one, other in zip(answer.data, drawn, strict=True):
            assert np.abs(array(opened(one)) - array(other)).max() < 1 / 250


@pytest.mark.parametrize(("kind", "compression"), [("png", None), ("webp", 100), ("webp", 50), ("jpeg", 80)])
@pytest.mark.thin(every=2)
def test_formats(served: Served, heart: Image.Image, kind: Any, compression: int | None) -> None:
    answer = served.client().images.generate(
        prompt="a red heart",
        output_format=kind,
        extra_body={"seed": 7, "steps": 4, "output_compression": compression},
    )
    picture = opened(answer.data[0])
    assert picture.format == kind.upper()
    assert answer.output_format == kind
    worst = np.abs(array(picture) - array(heart)).mean()
    assert worst == 0 if kind == "png" or compression == 100 else 0 < worst < 0.1


# The fast test beside it is test_a_digit_says_how_it_is_made_again.
@pytest.mark.slow
def test_a_png_says_how_ddim_sample_makes_it_again(served: Served, tmp_path: Path) -> None:
    answer = served.client().images.generate(
        prompt="a red heart", n=2, size="64x48", extra_body={"steps": 4, "guidance_scale": 2, "seed": 3}
    )
    for number, image in enumerate(answer.data):
        path = tmp_path / f"{number}.png"
        picture = opened(image)
        path.write_bytes(file_of(picture))
        assert main(["sample", "--from", str(path), "--out", str(tmp_path / "x.png")]) == 1  # it was saved anew
        path.write_bytes(_bytes(image))
        out = tmp_path / f"again-{number}.png"
        assert main(["sample", "--from", str(path), "--out", str(out)]) == 0
        assert np.abs(array(read(out)) - array(picture)).max() < 1 / 250
        assert picture.size == (64, 48)


def test_what_xl_is_told_and_how_it_is_made_again(tmp_path: Path) -> None:
    tiny_xl(tmp_path / "xl")
    told = {"prompt_2": "a dog", "original_size": [99, 77], "crops_coords_top_left": [3, 4], "negative_crop": [5, 6]}
    with serving({"xl": quiet(str(tmp_path / "xl"))}) as xl:
        answer = xl.client().images.generate(prompt="a cat", extra_body={**told, "seed": 4, "steps": 4})
        assert answer.ddim["crops_coords_top_left"] == [3, 4]
        (image,) = answer.data
        with pytest.raises(openai.BadRequestError, match="aesthetic_score changes nothing"):
            xl.client().images.generate(prompt="a cat", extra_body={"aesthetic_score": 5})
    (tmp_path / "a.png").write_bytes(_bytes(image))
    pipe = quiet(str(tmp_path / "xl"))()
    told["negative_crops_coords_top_left"] = told.pop("negative_crop")
    expected = pipe("a cat", **told, seed=4, num_inference_steps=4).images[0]
    assert np.abs(array(opened(image)) - array(expected)).max() < 1 / 250
    again = ["sample", "--from", str(tmp_path / "a.png"), "--model", str(tmp_path / "xl")]
    assert main([*again, "--out", str(tmp_path / "b.png")]) == 0
    assert np.abs(array(read(tmp_path / "b.png")) - array(expected)).max() < 1 / 250


def test_a_digit_says_how_it_is_made_again(served: Served, tmp_path: Path) -> None:
    answer = served.client().images.generate(model="digits", prompt="", n=3, extra_body={"seed": 5})
    path, out = tmp_path / "two.png", tmp_path / "again.png"
    path.write_bytes(_bytes(answer.data[2]))
    assert main(["sample", "--from", str(path), "--out", str(out)]) == 0
    assert np.abs(array(read(out)) - array(opened(answer.data[2]))).max() < 1 / 250


def test_what_a_picture_calls_its_model(models: dict[str, Callable[[], Any]]) -> None:
    """A bundled model by its own name, whatever it is served as; and no other by the name of a bundled one."""
    served_as = {"mine": models["digits"], "digits": lambda: tiny_pipeline(1), "other": lambda: tiny_pipeline(1)}
    with serving(served_as) as served:
        for name, said in (("mine", "digits"), ("digits", "./digits"), ("other", "other")):
            answer = served.client().images.generate(model=name, prompt="", extra_body={"steps": 1})
            text: Any = opened(answer.data[0]).info["ddim"]
            assert json.loads(text)["settings"]["model"] == said


@pytest.mark.filterwarnings("ignore:the text encoder reads")
def test_what_is_not_followed_of_a_prompt_is_said(served: Served) -> None:
    answer = served.client().images.generate(prompt="a blyu dog " * 60, extra_body={"steps": 1})
    read, unknown = answer.ddim["notes"]  # type: ignore[attr-defined]
    assert "only the beginning of the prompt is read" in read
    assert "never seen 'blyu'" in unknown
    assert "notes" not in served.client().images.generate(prompt="a dog", extra_body={"steps": 1}).ddim  # type: ignore[attr-defined]


def _bytes(image: Any) -> bytes:
    import base64

    return base64.b64decode(image.b64_json)


def test_an_address_has_the_picture_for_a_while(models: dict[str, Callable[[], Any]]) -> None:
    with serving(models, Options(store_bytes=2000, store_seconds=600)) as served:
        client = served.client()
        ask: dict[str, Any] = {"model": "digits", "prompt": "", "response_format": "url"}
        ask["extra_body"] = {"steps": 2, "seed": 1}
        first = client.images.generate(**ask).data[0]
        assert first.b64_json is None
        assert first.url is not None
        with urllib.request.urlopen(first.url) as answer:
            assert answer.headers["Content-Type"] == "image/png"
            picture = Image.open(io.BytesIO(answer.read()))
        assert picture.size == (8, 8)
        assert len(first.url.rsplit("/", 1)[1]) > 40
        for _ in range(8):
            client.images.generate(**ask)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(first.url)
        ask["model"], ask["prompt"] = "emoji", "a dog"  # larger than the store
        assert refused(client.images.generate, **ask).param == "response_format"


# --- from pictures ---------------------------------------------------------------------------------------------------


def test_an_edit_is_the_pipelines(served: Served, emoji: Any, heart: Image.Image, tmp_path: Path) -> None:
    answer = served.client().images.edit(
        image=("../../etc/passwd", file_of(heart)), prompt="a blue heart", extra_body={"seed": 2, "steps": 6}
    )
    drawn = emoji("a blue heart", image=heart, seed=2, num_inference_steps=6, strength=0.8).images[0]
    assert np.abs(array(opened(answer.data[0])) - array(drawn)).max() < 1 / 250
    path, source, out = (tmp_path / name for name in ("edit.png", "heart.png", "again.png"))
    path.write_bytes(_bytes(answer.data[0]))
    heart.save(source)
    assert main(["sample", "--from", str(path), "--out", str(out)]) == 1  # which picture it was is the client's
    assert main(["sample", "--from", str(path), "--image", str(source), "--out", str(out)]) == 0
    assert np.abs(array(read(out)) - array(drawn)).max() < 1 / 250
    weak = served.client().images.edit(
        image=file_of(heart), prompt="a blue heart", extra_body={"seed": 2, "steps": 6, "strength": 0.2}
    )
    near, far = (np.abs(array(opened(one.data[0])) - array(heart)).mean() for one in (weak, answer))
    assert near < far


def test_a_mask_is_painted_where_its_alpha_is_nothing(served: Served, emoji: Any, heart: Image.Image) -> None:
    mask = Image.new("RGBA", heart.size, (200, 10, 10, 255))
    mask.paste((255, 255, 255, 0), (0, 0, 32, 64))
    answer = served.client().images.edit(
        image=file_of(heart), mask=file_of(mask), prompt="a dog", extra_body={"seed": 2, "steps": 6, "strength": 1}
    )
    white = Image.new("L", heart.size, 0)
    white.paste(255, (0, 0, 32, 64))
    drawn = emoji("a dog", image=heart, mask_image=white, seed=2, num_inference_steps=6, strength=1.0).images[0]
    picture = array(opened(answer.data[0]))
    assert np.abs(picture - array(drawn)).max() < 1 / 250
    changed = np.abs(picture - array(heart)).mean(axis=(0, 2))
    assert changed[:28].mean() > 4 * changed[36:].mean()


def test_an_edit_of_another_size_keeps_its_proportions(served: Served, heart: Image.Image) -> None:
    wide = heart.resize((200, 100))
    client = served.client()
    assert client.images.edit(image=file_of(wide), prompt="x", extra_body={"steps": 2}).size == "88x48"
    answer = client.images.edit(image=file_of(wide, "JPEG"), prompt="x", size="64x32", extra_body={"steps": 2})
    assert opened(answer.data[0]).size == (64, 32)


@pytest.mark.parametrize("model", ["emoji", "digits"])
@pytest.mark.parametrize("method", ["noise", "inversion"])
@pytest.mark.thin(fast=["noise-emoji", "noise-digits", "inversion-digits"])
def test_variations_go_as_far_as_told(served: Served, heart: Image.Image, model: str, method: str) -> None:
    source = heart if model == "emoji" else heart.convert("L").resize((8, 8))

    def difference(strength: float) -> float:
        answer = served.client().images.create_variation(
            model=model,
            image=file_of(source),
            n=2,
            extra_body={"steps": 12, "seed": 1, "method": method, "strength": strength},
        )
        one, other = (array(opened(image)) for image in answer.data)
        assert np.abs(one - other).max() > 0.01
        assert answer.ddim["strength"] == strength  # type: ignore[attr-defined]
        return float(np.abs(one - array(source)).mean())

    assert difference(0.1) < 0.7 * difference(1.0)


def test_a_variation_is_the_same_for_the_same_seed(served: Served, heart: Image.Image) -> None:
    given: dict[str, Any] = {"image": file_of(heart), "extra_body": {"steps": 4, "seed": 1, "method": "inversion"}}
    three, one = (served.client().images.create_variation(n=n, **given) for n in (3, 1))
    assert np.abs(array(opened(three.data[0])) - array(opened(one.data[0]))).max() < 1 / 250


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"eta": 1}, "eta"),
        ({"order": 2}, "order"),
        ({"spacing": "optimized"}, "spacing"),
        ({"guidance_scale": 3}, "guidance_scale"),
        ({"class_label": 1}, "class_label"),
        ({"method": "magic"}, "method"),
        ({"mask": "x"}, "mask"),
        ({"partial_images": 1}, "partial_images"),
    ],
)
def test_what_a_variation_cannot_follow(served: Served, heart: Image.Image, given: Any, param: str) -> None:
    extra = {"method": "inversion", **given}
    error = refused(served.client().images.create_variation, image=file_of(heart), extra_body=extra)
    assert error.param == param


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_shows_pictures_on_their_way(served: Served, heart: Image.Image) -> None:
    events = list(
        served.client().images.generate(
            prompt="a red heart", stream=True, partial_images=3, extra_body={"seed": 7, "steps": 4}
        )
    )
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]  # type: ignore[union-attr]
    pictures = [array(opened(event)) for event in events]
    assert np.abs(pictures[-1] - array(heart)).max() == 0
    away = [float(np.abs(picture - pictures[-1]).mean()) for picture in pictures[:3]]
    assert away[0] > away[2] > 0  # they come nearer to the picture
    last: Any = events[-1]
    assert last.usage.output_tokens == 256
    assert last.ddim["seed"] == 7


def test_a_stream_of_several_says_which_is_which(served: Served, heart: Image.Image) -> None:
    mask = Image.new("RGBA", heart.size, (0, 0, 0, 0))
    events: list[Any] = list(
        served.client().images.edit(
            image=file_of(heart), mask=file_of(mask), prompt="x", n=2, stream=True, partial_images=1,
            extra_body={"steps": 3},
        )
    )  # fmt: skip
    for number in (0, 1):
        own = [event.type for event in events if event.ddim["number"] == number]
        assert own == ["image_edit.partial_image", "image_edit.completed"]


def test_a_stream_without_partial_pictures(served: Served) -> None:
    events = list(served.client().images.generate(prompt="x", stream=True, extra_body={"steps": 2}))
    assert [event.type for event in events] == ["image_generation.completed"]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 11}, "n"),
        ({"n": 0}, "n"),
        ({"size": "1x1"}, "size"),
        ({"size": "66x64"}, "size"),
        ({"size": "1024x1024"}, "size"),
        ({"size": "64"}, "size"),
        ({"style": "vivid"}, "style"),
        ({"quality": "hd"}, "quality"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"moderation": "auto"}, "moderation"),
        ({"partial_images": 2}, "partial_images"),
        ({"stream": True, "response_format": "url"}, "response_format"),
        ({"extra_body": {"steps": 0}}, "steps"),
        ({"extra_body": {"steps": 1001}}, "steps"),
        ({"extra_body": {"steps": "4"}}, "steps"),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"extra_body": {"seed": 2**63}}, "seed"),
        ({"extra_body": {"eta": -0.5}}, "eta"),
        ({"extra_body": {"eta": "some"}}, "eta"),
        ({"extra_body": {"order": 3}}, "order"),
        ({"extra_body": {"order": 2, "eta": 1}}, "order"),
        ({"extra_body": {"spacing": "even"}}, "spacing"),
        ({"extra_body": {"guidance_rescale": 2}}, "guidance_rescale"),
        ({"extra_body": {"guidance_interval": [5]}}, "guidance_interval"),
        ({"extra_body": {"guidance_interval": [9, 3]}}, "guidance_interval"),
        ({"extra_body": {"guidance_scale": 1, "negative_prompt": "x"}}, "negative_prompt"),
        ({"extra_body": {"strength": 0.5}}, "strength"),
        ({"extra_body": {"class_label": 3}}, "class_label"),
        ({"extra_body": {"complexity": "high"}}, "complexity"),
        ({"extra_body": {"frame_count": 4}}, "frame_count"),
        ({"extra_body": {"svg": {"indent": 2}}}, "svg"),
        ({"extra_body": {"image": "https://example.org/x.png"}}, "image"),
        ({"extra_body": {"stepz": 4}}, "stepz"),
        ({"model": "digits", "prompt": "", "extra_body": {"class_label": 10}}, "class_label"),
        ({"model": "digits"}, "prompt"),
        ({"model": "digits", "prompt": "", "size": "64x64"}, "size"),
        ({"prompt": "x" * 32_001}, "prompt"),
    ],
)
def test_what_cannot_be_drawn_names_the_parameter(served: Served, given: dict[str, Any], param: str) -> None:
    error = refused(served.client().images.generate, **{"prompt": "a dog", **given})
    assert error.param == param
    assert error.type == "invalid_request_error"
    assert param in error.body["message"]


def test_what_openai_takes_and_means_nothing_more_is_taken(served: Served) -> None:
    answer = served.client().images.generate(
        prompt="x", quality="auto", background="opaque", moderation="low", size="auto", user="me",
        extra_body={"steps": 1, "seed": None},
    )  # fmt: skip
    assert answer.safety_identifier == "me"


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (Image.new("RGBA", (32, 32)), "give one of its size"),
        (Image.new("RGB", (64, 64)), "no transparency"),
        (Image.new("RGBA", (64, 64), (0, 0, 0, 255)), "transparent nowhere"),
        (Image.new("RGBA", (64, 64), (0, 0, 0, 1)), "transparent nowhere"),
    ],
)
def test_masks_that_are_none(served: Served, heart: Image.Image, mask: Image.Image, said: str) -> None:
    error = refused(served.client().images.edit, image=file_of(heart), mask=file_of(mask), prompt="x")
    assert error.param == "mask"
    assert said in error.body["message"]


def test_files_that_cannot_be_used(served: Served, heart: Image.Image) -> None:
    edit, png = served.client().images.edit, file_of(heart)
    assert refused(edit, image=b"no picture", prompt="x").param == "image"
    assert refused(edit, image=[png, png], prompt="x").param == "image"
    assert refused(edit, image=png, mask=file_of(heart, "JPEG"), prompt="x").param == "mask"
    assert refused(edit, image=png, model="digits", prompt="x").param == "model"
    assert refused(edit, image=png, prompt="x", input_fidelity="high").param == "input_fidelity"
    assert refused(edit, image=png, prompt="x", extra_body={"markup": "x"}).param == "markup"
    assert refused(edit, image=png, prompt="x", extra_body={"weights": "a1111"}).param == "weights"
    assert refused(edit, image=file_of(heart.resize((3000, 10))), prompt="x").param == "image"
    assert edit(image=[png], prompt="x", extra_body={"steps": 2, "guidance_interval": [0, 500]}).ddim["steps"] == 2


def test_errors_of_each_class(served: Served, heart: Image.Image, models: dict[str, Callable[[], Any]]) -> None:
    client = served.client()
    missing = refused(client.images.generate, openai.NotFoundError, model="gpt-image-1", prompt="x")
    assert (missing.param, missing.code) == ("model", "model_not_found")
    refused(client.models.retrieve, openai.NotFoundError, model="nothing")
    keys = Options(keys=Keys([KEY]), limits=Limits(image_pixels=1000, image_bytes=20_000))
    with serving(models, keys) as other:
        wrong = refused(other.client().images.generate, openai.AuthenticationError, prompt="x")
        assert wrong.code == "invalid_api_key"
        refused(other.client().models.list, openai.AuthenticationError)
        right = other.client(api_key=KEY)
        assert right.models.list().data[0].id == "emoji"
        assert refused(right.images.edit, image=file_of(heart), prompt="x").param == "image"
        noisy = Image.effect_noise((200, 200), 200)
        assert refused(right.images.edit, image=file_of(noisy), prompt="x").param == "image"
        large = refused(right.images.edit, openai.APIStatusError, image=b"x" * 6_000_000, prompt="x")
        assert large.status_code == 413


def test_a_deadline(models: dict[str, Callable[[], Any]]) -> None:
    with serving(models) as served:
        served.client().images.generate(prompt="x", extra_body={"steps": 1})
        served.running.app.state.server.limits = Limits(deadline=0.4)
        error = refused(
            served.client(max_retries=2).images.generate,
            openai.InternalServerError,
            prompt="x",
            n=10,
            extra_body={"steps": 900},
        )
        assert error.status_code == 504
        assert error.code == "deadline"
        assert error.response.headers["x-should-retry"] == "false"
        stream = served.client().images.generate(prompt="x", stream=True, extra_body={"steps": 900})
        with pytest.raises(openai.APIError, match="deadline"):
            list(stream)


# The fast test beside it is test_a_full_queue_is_answered_with_429_and_when_to_come_again of test_front.py.
@pytest.mark.slow
def test_a_full_queue_is_told_and_tried_again(models: dict[str, Callable[[], Any]]) -> None:
    with serving(models, max_batch=1, max_queue=1) as served:
        client = served.client()
        client.images.generate(prompt="x", extra_body={"steps": 1})
        error = refused(client.images.generate, openai.RateLimitError, prompt="x", n=8, extra_body={"steps": 300})
        assert error.code == "queue_full"
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
        stats = served.pool.loaded[0].engine.stats
        eventually(lambda: stats().running == stats().queued == 0)  # none of the eight stays behind
        runs = client.images.generate(prompt="x", stream=True, extra_body={"steps": 60})
        eventually(lambda: stats().running == 1)
        waits = client.images.generate(prompt="x", stream=True, extra_body={"steps": 1})
        refused(client.images.generate, openai.RateLimitError, prompt="x")
        assert served.client(max_retries=8).images.generate(prompt="x", extra_body={"steps": 1}).data
        assert [len(list(stream)) for stream in (runs, waits)] == [1, 1]


# --- life ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "stream", "aside"])
@pytest.mark.thin(fast=["plain", "stream"])
def test_a_client_that_goes_away_frees_its_place(
    models: dict[str, Callable[[], Any]], heart: Image.Image, kind: str
) -> None:
    with serving(models, max_batch=2) as served:
        served.client().images.generate(prompt="x", extra_body={"steps": 1})
        model = served.pool.loaded[0]
        if kind == "aside":
            call: Callable[..., Any] = served.client(timeout=0.5).images.create_variation
            given: dict[str, Any] = {"image": file_of(heart), "extra_body": {"steps": 900, "method": "inversion"}}
            with pytest.raises(openai.APITimeoutError):
                call(**given)
            eventually(lambda: model.waiting == 0)
        else:
            body: dict[str, Any] = {"prompt": "x", "steps": 900, "n": 3, "stream": kind == "stream"}
            with served.connect() as sock:
                sock.sendall(_post("/v1/images/generations", json.dumps(body).encode()))
                eventually(lambda: model.engine.stats().running > 0)
        eventually(lambda: model.engine.stats().running == model.engine.stats().queued == 0)
        eventually(lambda: not served.pool.users("emoji"))
        assert model.engine.stats().steps < 500
        assert served.client().images.generate(prompt="x", extra_body={"steps": 1}).data


def _post(path: str, body: bytes, kind: str = "application/json", **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


# The fast test beside it is test_a_deadline.
@pytest.mark.slow
def test_what_takes_longer_than_the_grace_is_given_up(models: dict[str, Callable[[], Any]]) -> None:
    with serving(models, grace=1) as served:
        served.client().images.generate(prompt="x", extra_body={"steps": 1})
        client = served.client()
        served.clients.remove(client)  # which goes on after the server's end
        stream = client.images.generate(prompt="x", n=10, stream=True, extra_body={"steps": 900})
    with contextlib.suppress(openai.APIError):
        assert not list(stream)
    client.close()


def test_models(served: Served) -> None:
    client = served.client()
    assert [model.id for model in client.models.list()] == ["emoji", "digits"]
    model = client.models.retrieve("digits")
    assert (model.id, model.object, model.owned_by) == ("digits", "model", "ddim")


def test_health_ready_and_metrics(models: dict[str, Callable[[], Any]]) -> None:
    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(served.url + path) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with serving(models) as served:
        assert get("/health") == (200, '{"status":"alive"}')
        assert get("/ready")[0] == 503  # which loads the first model
        eventually(lambda: get("/ready")[0] == 200)
        assert "emoji" in get("/ready")[1]
        served.client().images.generate(prompt="x", n=2, extra_body={"steps": 3})
        told = get("/metrics")[1]
        assert 'ddim_images_total{model="emoji"} 2.0' in told
        assert 'ddim_steps_total{model="emoji"} 6.0' in told
        assert 'ddim_request_seconds_count{model="emoji",route="generations"} 1.0' in told
        assert 'ddim_requests_total{model="emoji",route="generations",status="200"} 1.0' in told
        for name in ("ddim_queued", "ddim_running", "ddim_batch_size_bucket", "ddim_max_batch"):
            assert f"{name}{{" in told
        assert get("/docs")[0] == 200
        assert get("/nothing")[0] == 404
        served.running.app.state.server.is_closing = True
        assert get("/ready")[0] == 503
        refused(served.client().models.list, openai.InternalServerError)


def test_a_model_that_cannot_be_loaded_is_the_servers_fault(models: dict[str, Callable[[], Any]]) -> None:
    def broken() -> Any:
        raise OSError("no such disk: /secret/place")

    with serving({**models, "broken": broken}) as served:
        error = refused(served.client().images.generate, openai.InternalServerError, model="broken", prompt="x")
        assert error.status_code == 503
        assert "secret" not in str(error)
        assert served.client().images.generate(prompt="x", extra_body={"steps": 1}).data


def test_a_fault_of_the_server_itself_is_told_without_details(models: dict[str, Callable[[], Any]]) -> None:
    with serving(models) as served:
        given: dict[str, Any] = {"model": "digits", "prompt": "", "extra_body": {"steps": 1}}
        served.client().images.generate(**given)
        served.running.app.state.server.store = "no store"
        error = refused(served.client().images.generate, openai.InternalServerError, response_format="url", **given)
        assert error.status_code == 500
        assert error.type == "server_error"
        assert "str" not in str(error)
        assert served.client().images.generate(**given).data


@pytest.mark.slow
def test_what_the_documentation_shows_runs(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    page = page.replace("http://127.0.0.1:8000", served.url)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    drawing, library = (text for kind, text in blocks if kind == "python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # short examples close no files
        exec(drawing + "\nclient.close()", {})
    told = capsys.readouterr().out
    assert "'steps': 12" in told
    assert told.count("image_generation.partial_image") == 3
    exec(library, {})
    with Image.open(tmp_path / "heart.png") as heart:
        assert heart.size == (64, 64)
    (curl,) = (text for kind, text in blocks if text.startswith("curl"))
    if shutil.which("curl"):
        done = subprocess.run(["bash", "-ec", curl], capture_output=True, text=True, check=True)
        assert done.stdout.count('"usage"') == 2


# --- pages of browsers -----------------------------------------------------------------------------------------------


def test_pages_of_other_sites_may_not_draw(served: Served, models: dict[str, Callable[[], Any]]) -> None:
    body = json.dumps({"model": "digits", "steps": 1}).encode()

    def answer(server: Served, **headers: str) -> str:
        return exchange(server, _post("/v1/images/generations", body, Connection="close", **headers)).decode()

    assert answer(served).startswith("HTTP/1.1 200")
    assert answer(served, Origin="http://localhost:3000").startswith("HTTP/1.1 200")
    for origin in ("https://evil.example", "null", "http://[", "http://127.0.0.1.evil.example"):
        assert answer(served, Origin=origin).startswith("HTTP/1.1 403")
    assert "access-control" not in answer(served, Origin="http://localhost:3000").lower()
    with serving(models, Options(origins=("https://good.example",))) as open_server:
        told = answer(open_server, Origin="https://good.example").lower()
        assert told.startswith("http/1.1 200")
        assert "access-control-allow-origin: https://good.example" in told
        assert answer(open_server, Origin="https://evil.example").startswith("HTTP/1.1 403")
        asks = "OPTIONS /v1/images/generations HTTP/1.1\r\nHost: x\r\nOrigin: https://good.example\r\n"
        asks += "Connection: close\r\nAccess-Control-Request-Method: POST\r\n"
        asks += "Access-Control-Request-Headers: authorization,x-stainless-os\r\n\r\n"
        told = exchange(open_server, asks.encode()).decode().lower()
        assert told.startswith("http/1.1 200")
        assert "x-stainless-os" in told
