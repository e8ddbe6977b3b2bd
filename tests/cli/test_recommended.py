"""Commands follow what a model recommends where nothing is typed, and say what they used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddim.checkpoint.known import known
from ddim.cli import main

LISTS = {"4": [980, 700, 400, 90], "5": [980, 700, 400, 200, 90]}
SAID: dict[str, Any] = {
    "optimized_timesteps": LISTS,
    "recommended_steps": 4,
    "recommended_order": 2,
    "recommended_spacing": "optimized",
    "recommended_guidance_scale": 2.0,
    "recommended_guidance_rescale": 0.5,
}
STUDENT: dict[str, Any] = {
    "timestep_spacing": "trailing",
    "recommended_steps": 2,
    "recommended_guidance_scale": 1.0,
    "trained_timesteps": [999, 499],
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saying(model: str, name: str, **said: Any) -> str:
    """A copy of a model whose scheduler's config says more."""
    shutil.copytree(model, name)
    config = Path(name) / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **said}))
    return name


def note(path: str) -> dict[str, Any]:
    with Image.open(path) as image:
        settings: dict[str, Any] = json.loads(image.text["ddim"])["settings"]  # type: ignore[attr-defined]
    return settings


def used(path: str) -> tuple[Any, ...]:
    names = ("steps", "order", "spacing", "guidance_scale", "guidance_rescale")
    return tuple(note(path)[name] for name in names)


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def run(capsys: pytest.CaptureFixture[str], *command: str) -> list[str]:
    """The lines on stderr of a command that works."""
    capsys.readouterr()
    assert main(list(command)) == 0
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("kind", ["classes", "texts"])
@pytest.mark.thin(fast=["texts"])
def test_sample(kind: str, classes: str, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = saying(texts if kind == "texts" else classes, "model", **SAID)
    what = ["sample", *(["a cat"] if kind == "texts" else ["--class-labels", "1"]), "--model", model]
    told = run(capsys, *what, "--out", "a.png")
    assert ": 4 steps of second order at searched timesteps, guidance 2, rescale 0.5, seed 0, " in told[-1]
    assert used("a.png") == (4, 2, "optimized", 2.0, 0.5)
    every = ["--steps", "4", "--order", "2", "--spacing", "optimized", "--guidance-scale", "2"]
    run(capsys, *what, *every, "--guidance-rescale", "0.5", "--out", "b.png")
    assert pixels("a.png") == pixels("b.png")
    told = run(capsys, *what, "--steps", "3", "--guidance-scale", "1", "--out", "c.png")
    assert ": 3 steps of first order at leading timesteps, guidance 1, rescale 0, seed 0, " in told[-1]
    assert used("c.png") == (3, 1, "leading", 1.0, 0.0)
    run(capsys, *what, "--eta", "1", "--out", "d.png")
    assert used("d.png") == (4, 1, "optimized", 2.0, 0.5)
    run(capsys, *what, "--steps", "4", "--order", "1", "--out", "e.png")
    assert used("e.png") == (4, 1, "leading", 2.0, 0.5)
    told = run(capsys, *what, "--spacing", "optimized", "--out", "f.png")
    assert used("f.png") == (4, 2, "optimized", 2.0, 0.5)


def test_a_spacing_is_not_for_the_steps_that_are_recommended_at_another(
    classes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saying(classes, "model", **SAID)
    told = run(capsys, "sample", "--class-labels", "1", "--model", model, "--spacing", "leading", "--out", "a.png")
    assert ": 50 steps of first order at leading timesteps, guidance 2" in told[-1]


# The fast test beside it is test_sample.
@pytest.mark.slow
def test_a_model_that_recommends_nothing(classes: str, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = run(capsys, "sample", "--class-labels", "1", "--model", classes, "--out", "a.png")
    assert ": 50 steps of first order at leading timesteps, guidance 1, rescale 0, seed 0, " in told[-1]
    run(capsys, "sample", "a cat", "--model", texts, "--out", "b.png")
    assert used("b.png") == (50, 1, "leading", 7.5, 0.0)
    zero = saying(texts, "zero", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    run(capsys, "sample", "a cat", "--model", zero, "--steps", "2", "--out", "c.png")
    assert used("c.png") == (2, 1, "trailing", 3.0, 0.7)


# --- made again ------------------------------------------------------------------------------------------------------


def test_a_picture_is_made_again_whatever_is_recommended_by_then(
    classes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saying(classes, "model", **SAID)
    again = ["sample", "--from", "a.png", "--model", model]
    run(capsys, "sample", "--class-labels", "1", "--model", model, "--out", "a.png")
    run(capsys, *again, "--out", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    run(capsys, "sample", "--class-labels", "1", "--model", model, "--out", "many/")
    run(capsys, "sample", "--from", "many/00000.png", "--model", model, "--out", "one/")
    assert Path("many/00000.png").read_bytes() == Path("one/00000.png").read_bytes()
    changed = {**SAID, "recommended_steps": 5, "recommended_order": 1, "recommended_guidance_scale": 3.0}
    shutil.move(model, "before")
    saying("before", model, **changed)
    run(capsys, *again, "--out", "c.png")
    assert Path("a.png").read_bytes() == Path("c.png").read_bytes()


# The fast test beside it is test_a_picture_is_made_again_whatever_is_recommended_by_then.
@pytest.mark.slow
def test_what_is_typed_beside_a_picture_takes_what_does_not_fit_with_it(
    classes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saying(classes, "model", **SAID)
    run(capsys, "sample", "--class-labels", "1", "--model", model, "--out", "a.png")
    again = ["sample", "--from", "a.png", "--model", model]
    told = run(capsys, *again, "--steps", "6", "--out", "b.png")
    assert told[0] == (
        "ddim: a.png has --order 2 and --spacing optimized, which do not go with what is given beside it"
    )
    assert used("b.png") == (6, 1, "leading", 2.0, 0.5)
    told = run(capsys, *again, "--eta", "1", "--out", "c.png")
    assert told[0] == "ddim: a.png has --order 2, which do not go with what is given beside it"
    assert used("c.png") == (4, 1, "optimized", 2.0, 0.5)
    told = run(capsys, "sample", "--from", "a.png", "--model", classes, "--out", "d.png")
    assert told[0].startswith("ddim: a.png has --order 2 and --spacing optimized and --steps 4, which ")
    assert used("d.png") == (50, 1, "leading", 2.0, 0.5)
    told = run(capsys, *again, "--seed", "7", "--out", "e.png")
    assert used("e.png") == (4, 2, "optimized", 2.0, 0.5)
    assert "which do not go" not in "".join(told)


# --- the other commands ----------------------------------------------------------------------------------------------


# The fast test beside it is test_sample.
@pytest.mark.slow
def test_interpolate(classes: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = saying(classes, "model", **SAID)
    path = ["interpolate", "--class-labels", "0", "1", "--frames", "3", "--model", model]
    told = run(capsys, *path, "--out", "a.png")
    assert told[-1].startswith("3 frames by model: 4 steps of second order at searched timesteps, guidance 2, rescale ")
    assert used("a.png") == (4, 2, "optimized", 2.0, 0.5)
    told = run(capsys, *path, "--steps", "3", "--out", "b.png")
    assert told[-1].startswith("3 frames by model: 3 steps of first order at leading timesteps, guidance 2, ")
    Image.new("L", (8, 8)).save("x.png")
    between = ["interpolate", "--images", "x.png", "x.png", "--frames", "2", "--model", model]
    told = run(capsys, *between, "--out", "c.png")
    assert told[-1].startswith("2 frames by model: 50 steps of first order at leading timesteps, guidance 2, ")
    capsys.readouterr()
    assert main([*between, "--order", "2", "--out", "d.png"]) == 1
    assert "--order 2 leads --images to no noise that they come back from" in capsys.readouterr().err


def test_trajectory_is_that_of_sample(
    classes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddim.plots import trajectory

    shown: list[Any] = []

    def keep(found: Any, decode: Any, title: str, out: str) -> Path:
        shown.append((decode(found.image)[0], title))
        return Path(out)

    monkeypatch.setattr(trajectory, "plot_trajectory", keep)
    model = saying(classes, "model", **SAID)
    run(capsys, "plot", "trajectory", "--class-label", "1", "--model", model, "--out", "a.png")
    run(capsys, "sample", "--class-labels", "1", "--model", model, "--scale", "1", "--out", "b.png")
    picture, title = shown[0]
    assert picture.tobytes() == pixels("b.png")
    assert title == "class 1 of model: 4 steps of second order, η = 0, seed 0"
    assert main(["plot", "trajectory", "--model", model, "--order", "2", "--eta", "1", "--out", "c.png"]) == 1
    assert "--order 2 needs an --eta of 0, not 1.0" in capsys.readouterr().err


def test_edit_takes_the_guidance(
    texts: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddim.pipelines import StableDiffusionPipeline

    asked: list[Any] = []
    own = StableDiffusionPipeline.denoiser

    def asking(self: Any, plan: Any, count: int, **options: Any) -> Any:
        asked.append((options["prompt"], len(plan), options["guidance_scale"], options.get("guidance_rescale")))
        return own(self, plan, count, **options)

    monkeypatch.setattr(StableDiffusionPipeline, "denoiser", asking)
    Image.new("RGB", (16, 16)).save("x.png")
    model = saying(texts, "model", **SAID)
    run(capsys, "edit", "x.png", "--source", "a cat", "--target", "a dog", "--model", model, "--steps", "4")
    assert asked == [("a cat", 2, 1.0, None), ("a dog", 2, 2.0, 0.5)]


def test_info(classes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", classes]) == 0
    plain = capsys.readouterr().out
    assert "recommended" not in plain
    assert "\n10 steps of first order at leading timesteps:\nSamplingPlan: 10 steps of 1000, " in plain
    model = saying(classes, "model", **SAID)
    assert main(["info", model]) == 0
    told = capsys.readouterr().out
    assert "\nrecommended: 4 steps of second order at searched timesteps, guidance 2, rescale 0.5\n" in told
    assert "\n4 steps of second order at searched timesteps:\nSamplingPlan: 4 steps of 1000, " in told
    assert "second order\n" in told
    assert "\n  980   700 " in told
    assert main(["info", model, "--steps", "3"]) == 0
    assert "\n3 steps of first order at leading timesteps:\n" in capsys.readouterr().out


# --- students --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default:expect worse pictures")
def test_a_student_is_followed_and_says_once_what_it_was_not_made_for(
    texts: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ddim.cli.drawing.chunk_size", lambda *_: 1)
    model = saying(texts, "student", **STUDENT)
    told = run(capsys, "sample", "a cat", "--model", model, "--out", "a.png")
    assert used("a.png") == (2, 1, "trailing", 1.0, 0.0)
    assert "expect worse" not in "".join(told)
    told = run(capsys, "sample", "a cat", "--model", model, "--steps", "4", "--guidance-scale", "3", "--batch", "3",
               "--out", "b/")  # fmt: skip
    (line,) = [line for line in told if "expect worse" in line]
    assert line == (
        "ddim: expect worse pictures: this model was made for 2 steps of first order at trailing timesteps, guidance "
        "1, and is asked for 4 steps through timesteps that it was not trained at and for guidance 3, which it has "
        "learnt already; what it was made for is used where --steps and --guidance-scale are not given"
    )


@pytest.mark.filterwarnings("default:expect worse pictures")
@pytest.mark.parametrize("option", [["--negative-prompt", "x"], ["--guidance-rescale", "0.5"]])
def test_options_of_guidance_without_any_are_refused_early(
    option: list[str], texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", "a cat", "--out", "a.png", *option, "--model"]
    student = saying(texts, "student", **STUDENT)
    assert main([*command, student]) == 1
    assert f"{option[0]} changes nothing without guidance" in capsys.readouterr().err
    assert main([*command, student, "--guidance-scale", "2", "--steps", "2"]) == 0
    saying(texts, "scaled", **{**STUDENT, "recommended_guidance_scale": 3.0})
    config = Path("scaled") / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "time_cond_proj_dim": 8}))
    found = known("scaled")
    assert found is not None
    assert (found.guidance, found.takes_scale) == (3.0, True)
    capsys.readouterr()
    assert main([*command, "scaled"]) == 1
    assert f"{option[0]} changes nothing here: scaled was distilled under guidance" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"recommended_steps": 0}, "has recommended_steps=0, where a positive int is needed: give --steps"),
        ({"recommended_steps": "many"}, "recommended_steps must be an integer, not 'many'"),
        ({"recommended_guidance_rescale": 2.0}, "2.0, where a number from 0 to 1 is needed: give --guidance-rescale"),
        ({"recommended_guidance_scale": []}, "recommended_guidance_scale must be a number, not []"),
        ({"trained_timesteps": 5}, "trained_timesteps must be "),
        ({"recommended_steps": 2000}, "--steps 2000 must be from 1 to"),
        ({"recommended_steps": 7, "recommended_spacing": "optimized"}, "has no timesteps for --steps 7"),
    ],
)
def test_a_recommendation_that_cannot_be_followed_is_one_line(
    said: dict[str, Any], words: str, classes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saying(classes, "model", **{"recommended_guidance_scale": 2.0, **said})
    assert main(["sample", "--class-labels", "1", "--model", model, "--out", "a.png"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not Path("a.png").exists()
