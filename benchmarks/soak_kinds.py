"""The requests of the soak, each with its pictures, which are drawn beforehand and one after another."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageChops
from serving import PROMPTS

from ddim.pipelines.fitting import resized, start_size
from ddim.serving.limits import Limits
from ddim.serving.parameters import Variation, from_json
from ddim.serving.variations import vary
from ddim.serving.wishes import wish

ROUTES = ("generations", "edits", "variations")
SIZES = ((64, 64), (64, 64), (32, 32), (96, 64), (48, 80))


@dataclass(frozen=True)
class Kind:
    """A request, and the pictures that the pipeline makes of it.

    Attributes:
        route: one of `ROUTES`.
        asked: the parameters.
        files: of a form, by the names of its fields; without any, the parameters are sent as JSON.
    """

    route: str
    asked: dict[str, Any]
    pictures: list[np.ndarray]
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def may_stream(self) -> bool:
        return self.route != "variations"


def draw_kinds(chance: random.Random, name: str, pipe: Any, count: int) -> list[Kind]:
    """So many requests of a model at random; of every ten, six are new pictures."""
    return [_draw(chance, name, pipe, number % 10) for number in range(count)]


def _draw(chance: random.Random, name: str, pipe: Any, place: int) -> Kind:
    if place < 6:
        return _generation(chance, name, pipe)
    if name == "digits":  # it edits nothing
        return _beside(chance, name, pipe, "noise" if place < 8 else "inversion")
    if place < 8:
        return _edit(chance, name, pipe, is_masked=place == 7)
    if place == 8 or name == "emoji-fast":
        return _variation(chance, name, pipe)
    return _beside(chance, name, pipe, "inversion")


def _generation(chance: random.Random, name: str, pipe: Any) -> Kind:
    asked, call = _settings(chance, name)
    if name == "digits":
        asked["class_label"] = chance.randrange(10)
        call |= {"batch_size": asked["n"], "class_labels": [asked["class_label"]] * asked["n"]}
    else:
        width, height = chance.choice(SIZES)
        asked |= {"prompt": chance.choice(PROMPTS), "size": f"{width}x{height}"}
        call |= {"prompt": asked["prompt"], "width": width, "height": height, "num_images_per_prompt": asked["n"]}
        if asked.get("guidance_scale", 1) != 1 and chance.random() < 0.3:
            asked["negative_prompt"] = call["negative_prompt"] = "a green tree"
    return Kind("generations", asked, _arrays(pipe(**call).images))


def _edit(chance: random.Random, name: str, pipe: Any, *, is_masked: bool) -> Kind:
    """A picture painted anew, as a whole or where a mask is transparent."""
    asked, call = _settings(chance, name, least=2)
    sent = _sent(chance, pipe)
    size = start_size(sent.size, pipe, None, None)
    asked |= {"prompt": chance.choice(PROMPTS), "strength": chance.choice((0.5, 0.8, 1.0))}
    call |= {"prompt": asked["prompt"], "strength": asked["strength"], "num_images_per_prompt": asked["n"]}
    call["image"] = resized(sent, size, 3)
    files = {"image": _file(sent)}
    if is_masked:
        left, top = chance.randrange(sent.width // 2), chance.randrange(sent.height // 2)
        hole = Image.new("L", sent.size, 0)
        hole.paste(255, (left, top, left + sent.width // 2, top + sent.height // 2))
        mask = sent.copy()
        mask.putalpha(ImageChops.invert(hole))
        files["mask"] = _file(mask)
        call |= {"mask_image": resized(hole, size, 1), "width": size[0], "height": size[1]}
    return Kind("edits", asked, _arrays(pipe(**call).images), files)


def _variation(chance: random.Random, name: str, pipe: Any) -> Kind:
    """A picture like another one, through a part of noise, by a model of texts: without guidance and without a text."""
    asked, call = _settings(chance, name, least=2, is_guided=False)
    sent = _sent(chance, pipe)
    asked["strength"] = chance.choice((0.5, 0.8))
    call |= {"prompt": "", "guidance_scale": 1.0, "strength": asked["strength"], "num_images_per_prompt": asked["n"]}
    call["image"] = resized(sent, start_size(sent.size, pipe, None, None), 3)
    return Kind("variations", asked, _arrays(pipe(**call).images), {"image": _file(sent)})


def _beside(chance: random.Random, name: str, pipe: Any, method: str) -> Kind:
    """A variation that no call of a pipeline draws, and which the server draws beside its engine: by that function."""
    sent = _sent(chance, pipe)
    asked = {
        "model": name,
        "seed": chance.randrange(2**32),
        "n": chance.choice((1, 2)),
        "method": method,
        "steps": chance.choice((4, 8)),
        "strength": chance.choice((0.3, 0.6)),
    }
    if name == "digits":
        asked["class_label"] = chance.randrange(10)
    wanted = wish(name, pipe, from_json(Variation, asked), Limits(), sent)
    return Kind("variations", asked, _arrays(vary(pipe, wanted)[0]), {"image": _file(sent)})


def _settings(
    chance: random.Random, name: str, *, least: int = 1, is_guided: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How a picture is drawn, as a client and as the caller of a pipeline say it.

    Args:
        least: steps; of one step, half of a picture's strength would leave none.
    """
    steps = max(least, chance.choice((2, 4, 5, 8) if name != "emoji-fast" else (1, 2, 4)))
    asked: dict[str, Any] = {"model": name, "seed": chance.randrange(2**32), "n": chance.choice((1, 1, 1, 2))}
    asked |= {"steps": steps, "eta": chance.choice((0.0, 0.0, 0.5, 1.0, "sigma_hat"))}
    if name != "emoji-fast":
        asked["order"] = chance.choice((1, 2)) if asked["eta"] == 0 else 1
        if is_guided:
            asked["guidance_scale"] = chance.choice((1.0, 2.0, 3.0))
        if asked.get("guidance_scale", 1) != 1:
            asked["guidance_rescale"] = chance.choice((0.0, 0.7))
            if chance.random() < 0.3:
                asked["guidance_interval"] = [100, 800]
    call = {"num_inference_steps": steps, "seed": asked["seed"]}
    call |= {key: asked[key] for key in ("eta", "order", "guidance_scale", "guidance_rescale") if key in asked}
    if "guidance_interval" in asked:
        call["guidance_interval"] = tuple(asked["guidance_interval"])
    return asked, call


def _sent(chance: random.Random, pipe: Any) -> Image.Image:
    """A picture that a client may send: one that the model drew, in its own size or another one."""
    call: dict[str, Any] = {"num_inference_steps": 2, "seed": chance.randrange(2**32)}
    if pipe.draws_texts:
        call["prompt"] = chance.choice(PROMPTS)
    drawn: Image.Image = pipe(**call).images[0]
    width, height = chance.choice(SIZES)
    return drawn.resize((drawn.width * width // 64, drawn.height * height // 64))


def _file(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _arrays(images: list[Image.Image]) -> list[np.ndarray]:
    return [np.asarray(image) for image in images]
