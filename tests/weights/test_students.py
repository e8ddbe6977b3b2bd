"""The bundled students: that they are whole and small, follow their few steps, and draw what their teachers draw."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ddim import DiffusionPipeline
from ddim.checkpoint import read_json, read_tensors
from ddim.checkpoint.hub import BUNDLED, bundled_models
from ddim.cli import main
from ddim.evaluation.features import load_digits_classifier
from ddim.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from ddim.scheduler import DDIMScheduler

DATA = Path(__file__).parent.parent.parent / "data"
TEXTS = ["a red heart", "an owl", "a grinning face", "a slice of pizza, noto style"]


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def emoji() -> Any:
    return quiet(DiffusionPipeline.from_pretrained("emoji-fast"))


@pytest.fixture(scope="module")
def saved(emoji: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students") / "saved"
    emoji.save_pretrained(folder)
    return folder


def rms(images: torch.Tensor, others: torch.Tensor) -> float:
    return float((images - others).square().mean().sqrt())


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_all_that_is_bundled_is_small() -> None:
    assert {"emoji-fast", "digits-fast"} <= set(bundled_models())
    assert size(BUNDLED / "emoji-fast") < 12e6
    assert size(BUNDLED / "digits-fast") < 2e6
    assert size(BUNDLED) + size(DATA) < 60e6


@pytest.mark.parametrize(("name", "teacher"), [("emoji-fast", "emoji"), ("digits-fast", "digits")])
def test_they_say_how_they_were_made(name: str, teacher: str) -> None:
    record = read_json(BUNDLED / name / "training.json")
    assert record["settings"]["model"] == teacher
    text = (BUNDLED / name / "README.md").read_text(encoding="utf-8")
    for said in ("Apache-2.0", f"ddim distill {teacher} ", f"python scripts/ship_student.py runs/{name} {name}"):
        assert said in text
    (command,) = re.findall(rf"ddim distill {teacher} ((?:\\\n|[^\n])*)", text)
    options = dict(re.findall(r"--([a-z-]+) (\S+(?: \d+)*)", command))
    assert len(options) > 5
    for option, value in options.items():
        if option != "output-dir":
            stored = record["settings"][option.replace("-", "_")]
            said = [int(each) for each in value.split()] if isinstance(stored, list) else type(stored)(value)
            assert said == stored, option


def test_nothing_is_stored_twice() -> None:
    """What the student shares with its teacher is the teacher's file, and the numbers are of 8 bits."""
    there = {str(path.relative_to(BUNDLED / "emoji-fast")) for path in (BUNDLED / "emoji-fast").rglob("*.*")}
    assert there == {
        *("README.md", "base.json", "model_index.json", "training.json"),
        *("scheduler/scheduler_config.json", "unet/difference.safetensors"),
    }
    tensors = read_tensors(BUNDLED / "emoji-fast" / "unet" / "difference.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.int8, torch.float16}


# --- steps and guidance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked", "steps"),
    [("emoji-fast", {"prompt": "a red heart"}, 4), ("digits-fast", {"class_labels": [3]}, 3)],
)
@pytest.mark.thin(every=2)
def test_a_call_that_says_nothing_takes_their_steps(name: str, asked: dict[str, Any], steps: int) -> None:
    pipe: Any = quiet(DiffusionPipeline.from_pretrained(name))
    asked = {**asked, "seed": [0], "output_type": "pt"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_itself = pipe(**asked).images
        assert torch.equal(by_itself, pipe(**asked, num_inference_steps=steps, guidance_scale=1.0).images)
        for fewer in range(1, steps):
            if set(pipe.scheduler.plan(fewer).timesteps) <= set(pipe.scheduler.config.trained_timesteps):
                pipe(**asked, num_inference_steps=fewer)
        pipe(**asked, num_inference_steps=1)
    with pytest.warns(UserWarning, match="expect worse pictures: this model was made for"):
        pipe(**asked, num_inference_steps=7)
    with pytest.warns(UserWarning, match="guidance 3, which it has learnt already"):
        pipe(**asked, guidance_scale=3.0)


def test_two_steps_of_the_emoji_are_no_reason_to_warn(emoji: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        emoji("a red heart", num_inference_steps=2)
    assert emoji.num_timesteps == 2


def test_the_command_says_what_it_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.png")
    assert main(["sample", "a red heart", "--model", "emoji-fast", "--out", out]) == 0
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(
        "1 image of 'a red heart' by emoji-fast: 4 steps of first order at trailing timesteps, guidance 1, "
    )
    assert main(["info", "emoji-fast"]) == 0
    assert "recommended: 4 steps of first order at trailing timesteps, guidance 1" in capsys.readouterr().out


# --- what they draw --------------------------------------------------------------------------------------------------


# The fast test beside it is test_a_call_that_says_nothing_takes_their_steps.
@pytest.mark.slow
def test_the_emoji_are_those_of_the_teacher(emoji: Any) -> None:
    teacher = quiet(DiffusionPipeline.from_pretrained("emoji"))
    asked: dict[str, Any] = {"prompt": TEXTS, "seed": [0, 1, 2, 3], "output_type": "pt"}
    wanted = teacher(**asked, num_inference_steps=25).images
    found, two = emoji(**asked).images, emoji(**asked, num_inference_steps=2).images
    other = emoji(**{**asked, "seed": [4, 5, 6, 7]}).images
    assert rms(found, wanted) < 0.09
    assert rms(found, wanted) < rms(two, wanted) < rms(other, wanted)


def test_the_digits_are_the_classes_that_are_asked_for() -> None:
    pipe: Any = quiet(DiffusionPipeline.from_pretrained("digits-fast"))
    asked = torch.arange(200) % 10
    drawn = pipe(class_labels=asked, seed=1, output_type="pt").images * 2 - 1
    with torch.no_grad():
        right = (load_digits_classifier()(drawn).argmax(1) == asked).float().mean()
    assert right > 0.95


# --- every way to load one -------------------------------------------------------------------------------------------


def test_single_parts(emoji: Any) -> None:
    unet = UNet2DConditionModel.from_pretrained("emoji-fast", subfolder="unet")
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), emoji.unet.parameters(), strict=True))
    assert AutoencoderKL.from_pretrained("emoji-fast", subfolder="vae").config == emoji.vae.config
    assert CLIPTextModel.from_pretrained("emoji-fast", subfolder="text_encoder").config == emoji.text_encoder.config
    assert CLIPTokenizer.from_pretrained("emoji-fast", subfolder="tokenizer")("a heart") == emoji.tokenizer("a heart")
    assert DDIMScheduler.from_pretrained("emoji-fast", subfolder="scheduler").config.recommended_steps == 4
    assert list(emoji.unknown_words("a cup of coffee")) == ["cup", "coffee"]


def test_half_precision_is_rounded_once(emoji: Any) -> None:
    half = DiffusionPipeline.from_pretrained("emoji-fast", dtype=torch.float16)
    for mine, theirs in zip(emoji.unet.parameters(), half.unet.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(mine.half(), theirs)


def test_other_pipelines_of_it(emoji: Any) -> None:
    heart = emoji("a red heart", seed=0).images[0]
    from_picture: Any = quiet(StableDiffusionImg2ImgPipeline.from_pretrained("emoji-fast"))
    assert from_picture("a blue heart", image=heart, seed=0).images[0].size == (64, 64)
    assert from_picture.num_timesteps == 3
    painting: Any = quiet(StableDiffusionInpaintPipeline.from_pipe(emoji))
    everything = Image.new("L", (64, 64), 255)
    assert painting("a blue heart", image=heart, mask_image=everything, seed=0).images[0].size == (64, 64)
    assert painting.unknown_words("a heart") == {}


@pytest.mark.filterwarnings("ignore")  # diffusers' and transformers'
def test_what_it_saves_is_drawn_by_diffusers(emoji: Any, saved: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    assert not list(saved.rglob("difference.safetensors"))
    assert not (saved / "base.json").exists()
    theirs = quiet(diffusers.StableDiffusionPipeline.from_pretrained(saved))
    asked = {"latents": torch.randn(2, 4, 16, 16), "num_inference_steps": 4, "guidance_scale": 1.0}
    apart = theirs(TEXTS[:2], **asked, output_type="np").images - emoji(TEXTS[:2], **asked, output_type="np").images
    assert abs(apart).max() < 2e-3


def test_what_it_saves_is_the_same_model_here(emoji: Any, saved: Path) -> None:
    again = quiet(DiffusionPipeline.from_pretrained(saved))
    asked: dict[str, Any] = {"prompt": "an owl", "seed": 0, "output_type": "pt"}
    assert torch.equal(again(**asked).images, emoji(**asked).images)
    assert again.unknown_words("coffee") == emoji.unknown_words("coffee")
