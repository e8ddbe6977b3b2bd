"""Pictures for ControlNets over HTTP: as base64 in JSON and as files in forms, drawn as the pipeline's call draws."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from evil_pictures import header, png
from PIL import Image
from serving import Served, file_of, opened, quiet, serving

from ddim.cli import main
from ddim.cli.serve import ServeSettings, open_pool
from ddim.models import ControlNetModel
from ddim.noise import seeded_generators
from ddim.serving.api import Options
from ddim.serving.limits import Limits

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's, of variations

PIXELS = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
SHOWN = [Image.fromarray(pixels) for pixels in PIXELS]


def text(image: Image.Image) -> str:
    return base64.b64encode(file_of(image)).decode()


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two ControlNets for the emoji model, in folders."""
    folders = []
    for number in range(2):
        unet = quiet("emoji")().components["unet"]
        network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16))
        for name, parameter in network.named_parameters():
            if name.startswith("controlnet"):
                (generator,) = seeded_generators(number, 1)
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        folders.append(tmp_path_factory.mktemp("networks") / str(number))
        network.save_pretrained(folders[-1])
    return folders


def loading(networks: list[Path]) -> Callable[[], Any]:
    def load() -> Any:
        pipe: Any = quiet("emoji")()
        nets = [ControlNetModel.from_pretrained(folder) for folder in networks]
        pipe.controlnet = nets if len(nets) > 1 else nets[0]
        return pipe

    return load


@pytest.fixture(scope="module")
def steered(networks: list[Path], models: dict[str, Callable[[], Any]]) -> Iterator[Served]:
    """A server of one ControlNet, of two, and of none."""
    found = {
        "one": loading(networks[:1]),
        "two": loading(networks),
        "emoji": models["emoji"],
        "digits": models["digits"],
    }
    with serving(found, control_scales={"one": [0.5]}) as served:
        yield served


def called(pipe: Any, **given: Any) -> Any:
    usual = {"prompt": "a cat", "num_inference_steps": 3, "seed": 4}
    return np.asarray(pipe(**{**usual, **given}).images[0], float)


def close(image: Any, expected: Any) -> bool:
    return bool(np.abs(np.asarray(opened(image), float) - expected).max() <= 1)


def post(served: Served, path: str, fields: dict[str, Any], files: list[tuple[str, bytes]]) -> Any:
    """The answer to a form, or the error in it."""
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    for name, data in files:
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="x.png"\r\n\r\n'
        parts.append(head.encode() + data + b"\r\n")
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    request = urllib.request.Request(f"{served.url}{path}", b"".join([*parts, b"--b--\r\n"]), kind)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)["error"]}


class Image64:
    def __init__(self, answer: Any) -> None:
        self.b64_json = answer["data"][0]["b64_json"]


def test_a_picture_is_that_of_the_call_however_it_is_sent(steered: Served, networks: list[Path]) -> None:
    pipe = loading(networks[:1])()
    plain = quiet("emoji")()
    generate = steered.client().images.generate
    usual = {"model": "one", "prompt": "a cat"}
    how = {"seed": 4, "steps": 3}
    first = called(pipe, control_image=SHOWN[0], controlnet_conditioning_scale=0.5)
    assert np.abs(first - called(plain)).max() > 20
    for given in (text(SHOWN[0]), [text(SHOWN[0])], f"data:image/png;base64,{text(SHOWN[0])}"):
        answer = generate(**usual, extra_body={**how, "control_image": given})
        assert close(answer.data[0], first)
    assert answer.ddim["controlnet_conditioning_scale"] == [0.5]  # what the server was started with
    assert answer.usage.input_tokens_details.image_tokens == 256
    fields = {**usual, **how}
    for name in ("control_image", "control_image[]"):
        assert close(Image64(post(steered, "/v1/images/generations", fields, [(name, file_of(SHOWN[0]))])), first)
    assert close(
        Image64(post(steered, "/v1/images/generations", {**fields, "control_image": text(SHOWN[0])}, [])), first
    )
    assert close(generate(**usual, extra_body=how).data[0], called(plain))  # and without, it is not steered
    said = {"controlnet_conditioning_scale": 1.5, "guess_mode": True, "control_guidance_end": 0.7}
    answer = generate(**usual, extra_body={**how, "control_image": text(SHOWN[1]), **said})
    assert close(answer.data[0], called(pipe, control_image=SHOWN[1], **said))


def test_several_controlnets(steered: Served, networks: list[Path]) -> None:
    pipe = loading(networks)()
    expected = called(pipe, control_image=SHOWN, controlnet_conditioning_scale=[0.5, 1.5])
    fields = {"model": "two", "prompt": "a cat", "seed": 4, "steps": 3, "control_scale": "[0.5, 1.5]"}
    files = [("control_image[]", file_of(image)) for image in SHOWN]
    assert close(Image64(post(steered, "/v1/images/generations", fields, files)), expected)


def test_edits_and_variations_are_steered_too(steered: Served, networks: list[Path]) -> None:
    pipe, start = loading(networks[:1])(), SHOWN[1]
    how = {"seed": 4, "steps": 3, "control_image": text(SHOWN[0]), "control_scale": 1}
    edited = steered.client().images.edit(image=file_of(start), prompt="a cat", model="one", extra_body=how)
    assert close(edited.data[0], called(pipe, image=start, strength=0.8, control_image=SHOWN[0]))
    vary = steered.client().images.create_variation
    expected = called(pipe, prompt="", image=start, strength=0.5, guidance_scale=1.0, control_image=SHOWN[0])
    assert close(vary(image=file_of(start), model="one", extra_body=how).data[0], expected)
    inverted = {"method": "inversion", "steps": 2}
    assert vary(image=file_of(start), model="one", extra_body=inverted).data  # which nothing steers
    with pytest.raises(openai.BadRequestError, match="without ControlNets"):
        vary(image=file_of(start), model="one", extra_body={**inverted, "control_image": text(SHOWN[0])})


def test_the_size_is_that_of_what_is_shown_and_a_stream_shows_it(steered: Served) -> None:
    wide = Image.fromarray(PIXELS[0][:32]).resize((400, 200))
    stream = steered.client().images.generate(
        model="one", prompt="a cat", stream=True, partial_images=1,
        extra_body={"control_image": text(wide), "steps": 3},
    )  # fmt: skip
    *partial, last = list(stream)
    assert len(partial) == 1
    assert opened(last).size == (88, 48)
    assert "X" not in opened(last).mode


def test_a_png_says_what_it_takes_to_make_it_again(
    steered: Served, networks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"seed": 4, "steps": 3, "control_image": text(SHOWN[0]), "control_guidance_start": 0.3}
    answer = steered.client().images.generate(model="one", prompt="a cat", extra_body=how)
    out, shown, again = tmp_path / "a.png", tmp_path / "shown.png", tmp_path / "b.png"
    out.write_bytes(base64.b64decode(answer.data[0].b64_json))
    SHOWN[0].save(shown)
    command = ["sample", "--from", str(out), "--out", str(again), "--model", "emoji"]
    assert main(command) == 1
    assert "--controlnet" in capsys.readouterr().err
    assert main([*command, "--controlnet", f"{networks[0]}=0.5", "--control-image", str(shown)]) == 0
    with Image.open(again) as picture:
        assert close(answer.data[0], np.asarray(picture, float))


@pytest.mark.parametrize(
    ("model", "given", "param", "message"),
    [
        ("emoji", {"control_image": text(SHOWN[0])}, "control_image", "emoji has no ControlNet here: .*--controlnet"),
        ("digits", {"control_image": text(SHOWN[0])}, "control_image", "digits has no ControlNet"),
        ("one", {"control_image": [text(SHOWN[0])] * 2}, "control_image", "2 pictures were sent for one, and its"),
        ("two", {"control_image": text(SHOWN[0])}, "control_image", "its 2 ControlNets are shown one each"),
        ("one", {"control_scale": 2}, "control_scale", "is for a ControlNet: send control_image"),
        ("one", {"guess_mode": True}, "guess_mode", "is for a ControlNet"),
        ("one", {"control_image": "/etc/passwd"}, "control_image", "no base64 of a picture's file: no path"),
        ("one", {"control_image": "https://example.org/x.png"}, "control_image", "no base64"),
        ("one", {"control_image": base64.b64encode(b"no picture").decode()}, "control_image", "formats that are read"),
        ("one", {"control_image": ""}, "control_image", "the control_image"),
        ("one", {"control_image": [text(SHOWN[0])] * 9}, "control_image", "at most 8"),
        ("one", {"control_image": text(SHOWN[0]), "control_scale": [1, 2]}, "control_scale", "2 numbers for 1"),
        ("one", {"control_image": text(SHOWN[0]), "control_scale": 1e9}, "control_scale", "less than or equal"),
        (
            "one", {"control_image": text(SHOWN[0]), "control_guidance_start": 0.9, "control_guidance_end": 0.2},
            "control_guidance_start", "the first below the second",
        ),
        ("one", {"control_image": text(Image.new("L", (3000, 8)))}, "control_image", "its proportions make it"),
    ],
)  # fmt: skip
def test_what_is_refused(steered: Served, model: str, given: dict[str, Any], param: str, message: str) -> None:
    body = {**({} if model == "digits" else {"prompt": "a"}), "model": model, **given}
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        steered.client().post("/images/generations", body=body, cast_to=object)
    assert raised.value.param == param


def test_hostile_pictures_are_no_fault(steered: Served) -> None:
    fields = {"model": "one", "prompt": "a"}
    bomb = png(head=header(60_000, 60_000))
    files: list[list[tuple[str, bytes]]] = [
        [("control_image", bomb)],
        [("control_image", b"")],
        [("control_image", file_of(SHOWN[0])[:60])],
        [("control_image", file_of(SHOWN[0]))] * 9,
        [("control", file_of(SHOWN[0]))],
        [("image", file_of(SHOWN[0]))],
    ]
    for each in files:
        error = post(steered, "/v1/images/generations", fields, each)
        assert (error["status"], error["param"]) == (400, each[0][0]), error
    both = post(steered, "/v1/images/generations", {**fields, "control_image": text(SHOWN[0])}, files[3][:1])
    assert "as files and as base64" in both["message"]


def test_the_bounds_are_of_all_that_is_shown_together(networks: list[Path]) -> None:
    limits = Limits(image_pixels=6000, image_bytes=30_000)
    with serving({"two": loading(networks)}, Options(limits=limits)) as served:
        each = ("control_image[]", file_of(SHOWN[0]))
        error = post(served, "/v1/images/generations", {"prompt": "a"}, [each, each])
        assert "are the most" in error["message"] or "fewer than" in error["message"]


def test_the_command_serves_a_controlnet(networks: list[Path]) -> None:
    settings = ServeSettings(model=("emoji", "digits"), controlnet=((f"{networks[0]}=0.5",),), backend="eager")
    settings.check_together(())
    pool = open_pool(settings, {"emoji": "emoji", "digits": "digits"})
    loaded = pool._opened("emoji")
    with loaded.engine:
        assert loaded.control_scales == [0.5]
        assert loaded.pipe.components["controlnet"] is not None
    other = pool._opened("digits")
    with other.engine:
        assert other.control_scales == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "digits"], "digits takes no ControlNet"),
        (["--studio"], "the studio draws without ControlNets"),
    ],
)
def test_what_a_controlnet_cannot_steer(
    options: list[str], message: str, networks: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options, "--controlnet", str(networks[0])]) == 1
    assert message in capsys.readouterr().err
