"""`ddim sample --from`: what a picture or noise says is the data of a stranger, and what is typed goes before it."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from evil_pictures import broken, chunk, nothings, png
from hostile import Rise, contents
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from ddim.backends import openvino
from ddim.checkpoint.files import read_metadata
from ddim.cli import main, recipe, typed
from ddim.cli.invert import InvertSettings
from ddim.cli.sample import SampleSettings, run_sample
from ddim.errors import ConfigError, DDIMError
from ddim.pipelines import DiffusionPipeline

SECONDS, MEBIBYTES = 10, 476  # 500 MB


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No model is loaded, nothing is run, written, or fetched, and it takes neither time nor memory."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a picture was followed: {args}")

    for owner, name in ((DiffusionPipeline, "from_pretrained"), (subprocess, "Popen"), (os, "system"),
                        (socket.socket, "connect"), (torch, "compile"), (openvino, "__getattr__")):  # fmt: skip
        monkeypatch.setattr(owner, name, refuse, raising=False)
    os.mkfifo("pipe.png")
    rise, start, before = Rise(), time.process_time(), contents(tmp_path)
    yield
    assert time.process_time() - start < SECONDS
    assert rise.mib() < MEBIBYTES
    assert {path for path in contents(tmp_path) if not path.endswith(("evil.png", "evil.safetensors"))} == set(before)


GOOD: dict[str, Any] = {"prompt": "a red cat", "model": "emoji", "steps": 2, "seed": 0, "batch": 1}


def evil(settings: Any = None, image: Any = None, text: str | None = None, **more: Any) -> str:
    """A PNG that says it was made so."""
    note = PngInfo()
    made = {"version": "0", "command": "sample", "settings": settings, "image": image, **more}
    note.add_text("ddim", json.dumps(made) if text is None else text)
    Image.new("RGB", (8, 8)).save("evil.png", pnginfo=note)
    return "evil.png"


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "".join(lines)
    return [line for line in lines if line.startswith("ddim: ") and "was made by version" not in line]


def test_every_setting_has_a_rule() -> None:
    """A new setting is followed from pictures only when somebody has said within what bounds."""
    for kind in (SampleSettings, InvertSettings):
        for field in dataclasses.fields(kind):
            rules = [field.name in group for group in (recipe.FOLLOWED, recipe.FILES, recipe.OWN, ("model",))]
            assert sum(rules) == 1, f"{field.name} needs a rule in ddim/cli/recipe.py"
    for name, rule in recipe.FOLLOWED.items():
        if rule is recipe.one_of:
            kind = SampleSettings if name in SampleSettings.__dataclass_fields__ else InvertSettings
            rule = recipe._choices(kind, name)
        for value in (
            float("nan"),
            float("inf"),
            10**300,
            -(10**300),
            [[]],
            {},
            {"a": 1},
            "x\0" * 200_000,
            [None] * 5000,
        ):
            with pytest.raises(ValueError):  # noqa: PT011 - the words are of each rule
                rule(value)
        if name not in ("labels", "zero_snr", "guess_mode"):
            with pytest.raises(ValueError):  # noqa: PT011 - true is no number
                rule(True)


FIELDS: list[tuple[dict[str, Any], str]] = [
    *(({"batch": value}, "--batch") for value in (10**8, 0, -1, 1.5, "2", True, [1], 10**300, 1e9, {})),
    *(({"height": value}, "--height") for value in (10**6, 0, -8, 64.0, "64", True, 4096)),
    *(({"width": value}, "--width") for value in (10**6, 10**18, [])),
    *(({"steps": value}, "--steps") for value in (10**6, 0, -1, 2.5, "2", None, True)),
    *(({"seed": value}, "--seed") for value in (-1, 2**64, 10**19, 0.5, "0", None, [0])),
    *(({"eta": value}, "--eta") for value in (1e308, -1, "much", None, True, [0])),
    *(({"strength": value}, "--strength") for value in (2, -0.1, "1", None)),
    *(({"guidance_scale": value}, "--guidance-scale") for value in (1e300, "3", True, [])),
    *(({"guidance_rescale": value}, "--guidance-rescale") for value in (2, -1, "0")),
    *(({"guidance_interval": value}, "--guidance-interval") for value in ([1], [1, 2, 3], "01", [0, 10**9], [0.5, 1])),
    *(({"class_labels": value}, "--class-labels") for value in ([-1], ["0"], [True], [0] * 5000, "0", 3, [[0]], {})),
    *(({"order": value}, "--order") for value in (3, 1.0, "1", True, [])),
    *(({"spacing": value}, "--spacing") for value in ("wide", 1, ["leading"], "__class__")),
    *(({"zero_snr": value}, "--zero-snr") for value in ("yes", 1, [])),
    *(({"dtype": value}, "--dtype") for value in ("float64", "Tensor", "load", 1)),
    *(({"prompt": value}, "the prompt") for value in (7, ["a"], "x" * 200_000, {"a": "b"})),
    *(({"negative_prompt": value}, "--negative-prompt") for value in (7, "x" * 200_000)),
    *(({"variant": value}, "--variant") for value in ("../../x", "a/b", 5, "x" * 60)),
    *(({"prediction_type": value}, "--prediction-type") for value in ("noise", 1)),
    *(({"scale": value}, "--scale") for value in (10**6, 0, 1.5, "2")),
    *(({"labels": value}, "--labels") for value in (1, "yes", None)),
    *(({"model": value}, "--model") for value in (
        "/etc", "../x", "owner/name", "http://127.0.0.1/x", "stranger/model", "x.ckpt", "evil.safetensors", 7, [], "",
        {}, "\x1b[2J", "m" * 5000, "emoji/../digits",
    )),
    *(({name: value}, f"--{name.replace('_', '-')}") for name in ("image", "mask_image", "tokenizer") for value in (
        "pipe.png", "/etc/passwd", "/dev/zero", "x.eps", 7, ["a"], "\x1b[2J",
    )),
    *(({"lora": value}, "--lora") for value in (["/etc/passwd"], ["owner/name:0.5"], "x", [7], {"a": 1})),
]  # fmt: skip


# Each option's first value, and every fourth of all: so a few of each kind. The slow tests try them all.
SOME = [case for place, case in enumerate(FIELDS) if place % 4 == 0 or case[1] != FIELDS[place - 1][1]]


@pytest.mark.parametrize(
    ("image", "cases"),
    [(None, SOME), (0, FIELDS[::13]), pytest.param(None, FIELDS, marks=pytest.mark.slow)],
    ids=["grid", "single", "all"],
)
def test_a_setting_beyond_its_bounds_is_one_line(
    image: int | None,
    cases: list[tuple[dict[str, Any], str]],
    nothing_happens: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for changed, option in cases:
        assert main(["sample", "--from", evil({**GOOD, **changed}, image), "--out", "out.png"]) == 1, changed
        (line,) = said(capsys)
        assert option in line, line
        assert "yourself" in line
        assert line.isprintable()
        assert len(line) < 400


@pytest.mark.parametrize(
    "number",
    [10**300, 10**18, -1, 1, 1000, "0", "x", True, 0.0, [0], {}, "9" * 5000],
    ids=lambda number: str(number)[:9],
)
def test_a_number_of_no_picture_is_one_line(
    number: Any, nothing_happens: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--from", evil(GOOD, number), "--out", "out.png"]) == 1
    (line,) = said(capsys)
    assert "says how ddim made it" in line or "says that it is number" in line
    assert len(line) < 400


TEXTS = {
    "deep lists": '{"version": "0", "settings": {"prompt": ' + "[" * 100_000 + "]" * 100_000 + '}, "image": null}',
    "rather deep": '{"version": "0", "settings": {"x": ' + "[" * 200 + "]" * 200 + '}, "image": null}',
    "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "open": "[" * 500_000,
    "NaN": '{"settings": {"eta": NaN}, "image": null}',
    "infinity": '{"settings": {"eta": -Infinity}, "image": null}',
    "1e999": '{"settings": {"eta": 1e999}, "image": null}',
    "a million digits": '{"settings": {"seed": ' + "9" * 900_000 + '}, "image": null}',
    "300 digits": '{"settings": {"seed": ' + "9" * 300 + '}, "image": null}',
    "a million decimals": '{"settings": {"eta": 0.' + "9" * 900_000 + '}, "image": null}',
    "over a mebibyte": json.dumps({"settings": {"prompt": "x" * (2 << 20)}, "image": None}),
    "no object": "[1, 2]",
    "settings of a list": '{"settings": [], "image": null}',
    "no settings": '{"image": null}',
    "no number": '{"settings": {}}',
    "another command": '{"settings": {}, "image": null, "command": "interpolate"}',
    "a command of a list": '{"settings": {}, "image": null, "command": [[]]}',
    "text": "a red cat",
    "nothing": "",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_no_recipe_is_one_line(
    kind: str, nothing_happens: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--from", evil(text=TEXTS[kind]), "--out", "out.png"]) == 1
    (line,) = said(capsys)
    assert "evil.png" in line
    assert len(line) < 500


def test_a_text_that_is_a_bomb_or_of_another_kind(nothing_happens: None, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = zlib.compress(b'{"settings": {"prompt": "' + bytes(100_000_000) + b'"}, "image": null}', 9)
    for more in (
        chunk(b"zTXt", b"ddim\0\0" + bomb),
        chunk(b"iTXt", b"ddim\0\1\0\0\0" + bomb),
        chunk(b"iTXt", b"ddim\0\1"),
        chunk(b"iTXt", b"ddim\0"),
        chunk(b"zTXt", b"ddim\0\0rubbish"),
        chunk(b"iTXt", b"ddim\0\0\0\0\0\xff\xff"),
        chunk(b"tEXt", b"ddim\0" + b"x" * (5 << 20)),
        chunk(b"tEXt", b"other\0" + b"x" * (5 << 20)),
        chunk(b"tEXt", b"ddim") * 60_000,
        b"\xff\xff\xff\xfftEXtddim\0",
    ):
        Path("evil.png").write_bytes(png(more))
        assert main(["sample", "--from", "evil.png", "--out", "out.png"]) == 1
        (line,) = said(capsys)
        assert "evil.png" in line
    os.unlink("evil.png")


def test_broken_pictures_and_no_files_say_nothing(nothing_happens: None, capsys: pytest.CaptureFixture[str]) -> None:
    for content in list(broken().values())[::3]:
        Path("evil.png").write_bytes(content)
        assert main(["sample", "--from", "evil.png", "--out", "out.png"]) == 1
        (line,) = said(capsys)
        assert "evil.png" in line
    os.unlink("evil.png")


def test_files_that_are_none_are_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in nothings(tmp_path):
        if path and "\0" not in path:
            assert main(["sample", "--from", path, "--out", "out.png"]) == 1
            assert len(said(capsys)) == 1


def test_what_a_picture_packs_is_read(classes: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs that save a picture again may pack its texts, or write them in UTF-8."""
    assert main(["sample", "--model", classes, "--steps", "2", "--out", "a.png"]) == 0
    with Image.open("a.png") as image:
        text, pixels = image.info["ddim"].encode(), image.tobytes()
    for kind, more in (("z", chunk(b"zTXt", b"ddim\0\0" + zlib.compress(text))),
                       ("i", chunk(b"iTXt", b"ddim\0\0\0en\0ddim\0" + text)),
                       ("p", chunk(b"iTXt", b"ddim\0\1\0\0\0" + zlib.compress(text)))):  # fmt: skip
        Path(f"{kind}.png").write_bytes(png(more))
        assert main(["sample", "--from", f"{kind}.png", "--trust", "--out", f"{kind}-again.png"]) == 0
        with Image.open(f"{kind}-again.png") as image:
            assert image.tobytes() == pixels


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_model_is_the_users_or_a_bundled_one(
    classes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    load = DiffusionPipeline.from_pretrained

    def note(model: str, **options: Any) -> Any:
        asked.append(model)
        return load(classes, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", note)
    settings = {"model": classes, "steps": 1, "batch": 1, "class_labels": [1]}
    assert main(["sample", "--from", evil(settings), "--out", "a.png"]) == 1
    (line,) = said(capsys)
    assert "does not come with ddim: give --model yourself, or --trust if you know who made this picture" in line
    assert not asked
    assert main(["sample", "--from", evil(settings), "--trust", "--out", "a.png"]) == 0
    assert main(["sample", "--from", evil(settings), "--model", classes, "--out", "b.png"]) == 0
    assert main(["sample", "--from", evil({**settings, "model": "digits"}), "--out", "c.png"]) == 0
    assert asked == [classes, classes, "digits"]
    capsys.readouterr()
    Path("digits").mkdir()  # which came with the picture
    assert main(["sample", "--from", evil({**settings, "model": "digits"}), "--out", "d.png"]) == 1
    assert "a folder here is called like it" in said(capsys)[0]


def test_a_backend_and_a_device_are_the_users(
    classes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        DiffusionPipeline, "accelerate", lambda *args: pytest.fail("the picture's backend was followed")
    )
    for backend in ("compile", "openvino", "auto", "\x1b[2J", 7, ["compile"]):
        settings = {"model": classes, "steps": 1, "batch": 1, "backend": backend, "device": "cuda:99", "out": "/x.png"}
        assert main(["sample", "--from", evil({**settings, "overwrite": True, "trust": True, "from_image": "x"}),
                     "--model", classes, "--out", "a.png", "--overwrite"]) == 0  # fmt: skip
        lines = said(capsys)
        assert all(line.isprintable() for line in lines)
        assert any("which is yours to choose" in line for line in lines) == isinstance(backend, str)


def test_a_picture_asks_for_no_more_than_twice_what_a_model_draws(
    texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", texts, "--out", "a.png", "--overwrite"]
    for name in ("height", "width"):
        settings = {**GOOD, name: 64}
        assert main(["sample", "--from", evil(settings), *command]) == 1
        assert f"give --{name} yourself" in said(capsys)[-1]
        assert main(["sample", "--from", evil(settings), *command, f"--{name}", "64"]) == 0
        assert main(["sample", "--from", evil({**GOOD, name: 32}), *command]) == 0
        capsys.readouterr()
    settings = {**GOOD, "batch": None}
    assert main(["sample", "--from", evil(settings, 7), *command]) == 1
    assert "number 7 of 1" in said(capsys)[-1]


# --- what is typed ----------------------------------------------------------------------------------------------------


def note(path: str) -> dict[str, Any]:
    with Image.open(path) as image:
        made: dict[str, Any] = json.loads(image.info["ddim"])
    return made


def test_what_is_typed_goes_before_the_picture_and_is_said(texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = ["sample", "a red cat", "--model", texts, "--steps", "4", "--seed", "3", "--guidance-scale", "2"]
    assert main([*first, "--out", "a.png"]) == 0
    capsys.readouterr()
    again = ["sample", "--from", "a.png", "--model", texts, "--overwrite"]
    assert main([*again, "--steps", "2", "--out", "b.png"]) == 0
    assert "ddim: --steps 2 instead of the picture's 4" in said(capsys)
    made = note("b.png")["settings"]
    assert (made["steps"], made["seed"], made["prompt"], made["guidance_scale"]) == (2, 3, "a red cat", 2)
    direct = ["sample", "a red cat", "--model", texts, "--steps", "2", "--seed", "3", "--guidance-scale", "2"]
    assert main([*direct, "--out", "c.png"]) == 0
    assert Path("c.png").read_bytes() == Path("b.png").read_bytes()
    capsys.readouterr()
    # defaults that are typed count, and what is the same is not worth a word
    assert main([*again, "--steps", "50", "--seed=3", "--eta", "0", "--out", "d.png"]) == 0
    assert [line for line in said(capsys) if "instead" in line] == ["ddim: --steps 50 instead of the picture's 4"]
    assert note("d.png")["settings"]["steps"] == 50
    assert main(["sample", "a blue dog", *again[1:], "--steps", "2", "--seed", "0", "--out", "e.png"]) == 0
    (line,) = [line for line in said(capsys) if "instead" in line]
    assert line == (
        "ddim: the prompt a blue dog instead of the picture's a red cat, --steps 2 instead of the picture's 4, "
        "--seed 0 instead of the picture's 3"
    )
    assert main([*again, "--strength", "0.5", "--out", "f.png"]) == 1
    assert "--strength says how much of --image is lost" in said(capsys)[-1]


def test_more_than_one_is_drawn_of_one_if_it_is_typed(classes: str) -> None:
    assert main(["sample", "--model", classes, "--steps", "2", "--batch", "3", "--out", "many/"]) == 0
    again = ["sample", "--from", "many/00002.png", "--model", classes]
    assert main([*again, "--out", "one.png"]) == 0
    assert note("one.png")["image"] == 2
    assert main([*again, "--batch", "2", "--out", "two/"]) == 0
    assert len(list(Path("two").iterdir())) == 2
    assert main([*again, "--seed", "9", "--out", "nine.png"]) == 0
    assert note("nine.png")["image"] == 2


def test_a_file_that_a_picture_was_made_of_is_given_again(texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (16, 16), "red").save("red.png")
    options = ["--model", texts, "--steps", "4", "--strength", "0.5"]
    assert main(["sample", "a red cat", *options, "--image", "red.png", "--out", "a.png"]) == 0
    assert main(["sample", "--from", "a.png", "--model", texts, "--out", "b.png"]) == 1
    assert "made with --image red.png, which names a file: as it may be from anyone, give --image" in said(capsys)[-1]
    assert main(["sample", "--from", "a.png", "--model", texts, "--image", "red.png", "--out", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_from_python_what_differs_from_the_defaults_goes_before(classes: str) -> None:
    assert main(["sample", "--model", classes, "--steps", "4", "--seed", "2", "--out", "a.png"]) == 0
    typed.NOW.set(None)
    run_sample(SampleSettings(from_image="a.png", model=classes, steps=3, out="b.png"))
    assert (note("b.png")["settings"]["steps"], note("b.png")["settings"]["seed"]) == (3, 2)
    with pytest.raises(DDIMError):
        run_sample(SampleSettings(from_image="a.png", out="c.png"))


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def noise(classes: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the texts of a file of noise."""
    Image.new("L", (8, 8), 200).save("gray.png")
    command = ["invert", "gray.png", "--model", classes, "--class-label", "1", "--steps", "3", "--no-check"]
    assert main([*command, "--out", "noise.safetensors"]) == 0
    return load_file("noise.safetensors"), read_metadata("noise.safetensors")


NOISE_SETTINGS: list[dict[str, Any]] = [
    {"model": "/etc"},
    {"model": "owner/name"},
    {"model": 7},
    {"model": "x.ckpt"},
    {"method": "magic"},
    {"method": 1},
    {"method": "__class__"},
    {"steps": 10**9},
    {"class_label": 10**300},
    {"class_label": -1},
    {"class_label": "1"},
    {"guidance_scale": 1e300},
    {"guidance_scale": "2"},
    {"guidance_rescale": -3},
    {"prompt": 7},
    {"prompt": "x" * 200_000},
    {"dtype": "float64"},
    {"dtype": 1},
    {"lora": ["/etc/passwd"]},
    {"lora": "x"},
    {"tokenizer": "/etc"},
    {"variant": "../x"},
    {"spacing": "wide"},
    {"prediction_type": 5},
]
PLANS: list[dict[str, Any]] = [
    {"timesteps": list(range(5000))},
    {"timesteps": [10**18]},
    {"timesteps": [-1]},
    {"timesteps": ["a"]},
    {"timesteps": []},
    {"timesteps": None},
    {"timesteps": [1, 1]},
    {"alphas_cumprod": [0.5] * 200_000},
    {"alphas_cumprod": ["x"]},
    {"alphas_cumprod": [10**15]},
    {"alphas_cumprod": {}},
    {"eta": 1e308},
    {"eta": []},
    {"prediction_type": "magic"},
    {"prediction_type": 7},
    {"order": 9},
    {"order": []},
    {"unknown": 1},
    {"clip_range": -1},
    {"clip_range": "x"},
    {"thresholding": [1]},
    {"thresholding": [2, 3]},
    {"legacy_stride": 0},
    {"final_alpha_cumprod": 1e300},
    {"final_alpha_cumprod": "x"},
]


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_noise_is_followed_within_bounds(
    every: int,
    classes: str,
    noise: tuple[dict[str, torch.Tensor], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors, texts = noise
    stored, plan = json.loads(texts["ddim"]), json.loads(texts["plan"])
    bundled = {**stored["settings"], "model": "digits"}
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    rise, start = Rise(), time.process_time()
    evils = [
        {"ddim": json.dumps({"settings": {**bundled, **changed}}), "plan": texts["plan"]} for changed in NOISE_SETTINGS
    ]
    evils += [{"ddim": json.dumps({"settings": bundled}), "plan": json.dumps({**plan, **changed})} for changed in PLANS]
    harmless = ("300 digits", "no number")  # to noise, which has no seed and no number
    evils += [{"ddim": text, "plan": texts["plan"]} for kind, text in TEXTS.items() if kind not in harmless]
    evils += [{"ddim": json.dumps({"settings": bundled}), "plan": text} for text in TEXTS.values()]
    for metadata in evils[::every]:
        save_file(tensors, "evil.safetensors", metadata)
        assert main(["sample", "--from", "evil.safetensors", "--out", "out.png"]) == 1, str(metadata)[:300]
        (line,) = said(capsys)
        assert "evil.safetensors" in line
        assert line.isprintable()
        assert len(line) < 500
    assert time.process_time() - start < SECONDS
    assert rise.mib() < MEBIBYTES
    assert not Path("out.png").exists()


def test_noise_of_absurd_tensors_is_refused(
    classes: str, noise: tuple[dict[str, torch.Tensor], dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (state,) = noise[0].values()
    for bad in (
        state[:0], state[0], state[..., :4], torch.zeros(()), state.expand(2000, -1, -1, -1).contiguous(),
        state.int(), state.bool(), state * float("nan"), state / 0, torch.zeros(1, 1, 8, 8, 1),
        torch.zeros(1, 3, 512, 512),
    ):  # fmt: skip
        save_file({"state.0": bad.contiguous()}, "evil.safetensors", noise[1])
        assert main(["sample", "--from", "evil.safetensors", "--model", classes, "--out", "out.png"]) == 1
        assert "evil.safetensors holds noise" in said(capsys)[-1]
    save_file({"other": state}, "evil.safetensors", noise[1])
    assert main(["sample", "--from", "evil.safetensors", "--model", classes, "--out", "out.png"]) == 1
    Path("evil.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert main(["sample", "--from", "evil.safetensors", "--model", classes, "--out", "out.png"]) == 1
    assert not Path("out.png").exists()


def test_what_is_typed_beside_noise(
    classes: str, noise: tuple[dict[str, torch.Tensor], dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "--from", "noise.safetensors", "--out", "a.png", "--overwrite"]
    assert main(command) == 1
    assert "--trust if you know who made this noise" in said(capsys)[-1]
    assert main([*command, "--trust"]) == 0
    assert main([*command, "--model", classes, "--guidance-scale", "2"]) == 0
    assert "ddim: --guidance-scale 2.0 instead of the noise's 1.0" in said(capsys)
    for option in (["--steps", "9"], ["--seed", "1"], ["--eta", "0.5"], ["--batch", "2"], ["--image", "gray.png"],
                   ["--class-labels", "2"], ["--height", "8"], ["--order", "1"], ["--spacing", "leading"]):  # fmt: skip
        assert main([*command, "--trust", *option]) == 1
        assert f"{option[0]} has no meaning beside the noise of noise.safetensors" in said(capsys)[-1]


def test_errors_are_of_this_package() -> None:
    with pytest.raises(ConfigError):
        recipe.read_picture_recipe(SampleSettings(from_image=evil({**GOOD, "batch": 10**8})))
