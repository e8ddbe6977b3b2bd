"""Errors speak of options as they are typed."""

from __future__ import annotations

import pytest

from ddim.cli.edit import EditSettings
from ddim.cli.invert import InvertSettings
from ddim.cli.sample import SampleSettings
from ddim.cli.typed import given, in_typed_words, typed
from ddim.training.settings import PixelSettings


@pytest.mark.parametrize(
    ("kind", "field", "name"),
    [
        (SampleSettings, "steps", "--steps"),
        (SampleSettings, "guidance_scale", "--guidance-scale"),
        (SampleSettings, "from_image", "--from"),
        (SampleSettings, "prompt", "the prompt"),
        (EditSettings, "images", "the images"),
        (PixelSettings, "output_dir", "--output-dir"),
    ],
)
def test_the_names(kind: type, field: str, name: str) -> None:
    assert typed(kind, field) == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_inference_steps must be a positive int, not 0", "--steps must be a positive int, not 0"),
        ("num_inference_steps=5000 is over num_train_timesteps=10", "--steps 5000 is over num_train_timesteps=10"),
        ("guidance_scale=2.0 cannot be", "--guidance-scale 2.0 cannot be"),
        ("strength must be in [0, 1]", "--strength must be in [0, 1]"),
        ("eta=1.5 is too much", "--eta 1.5 is too much"),
        ("is there one without variant='fp16'?", "is there one without --variant 'fp16'?"),
        ("timestep_spacing='leading' and order=2", "--spacing 'leading' and --order 2"),
        ("a seed must be an int", "a seed must be an int"),
        ("/tmp/guidance_scale/x.png is gone", "/tmp/guidance_scale/x.png is gone"),
        ("guidance_scale.png is gone", "guidance_scale.png is gone"),
        ("the image is dark", "the image is dark"),
        ("x/config.json says prediction_type='epsilon'", "x/config.json says prediction_type='epsilon'"),
    ],
)
def test_the_librarys_words(text: str, said: str) -> None:
    assert in_typed_words(text, SampleSettings(model="x")) == said


def test_words_that_the_command_has_no_option_for() -> None:
    assert in_typed_words("mask_image is black", EditSettings(images=("a",), source="", target="")) == (
        "mask_image is black"
    )
    assert in_typed_words("class_labels must fit", InvertSettings(images=("a",))) == "--class-label must fit"
    assert in_typed_words("guidance_scale=1", None) == "guidance_scale=1"


def test_what_a_single_file_predicts_is_an_option() -> None:
    text = "to be silent, pass prediction_type='epsilon', or prediction_type="
    assert in_typed_words(text, SampleSettings(model="x.safetensors")) == (
        "to be silent, pass --prediction-type 'epsilon', or --prediction-type"
    )


def test_what_was_typed_is_known_also_where_it_is_the_default() -> None:
    arguments = ["a cat", "--strength", "0.8", "--eta=0", "--guidance_scale", "3", "--no-overwrite", "--from", "x.png"]
    assert given(SampleSettings, arguments) == {"strength", "eta", "guidance_scale", "overwrite", "from_image"}
    assert given(SampleSettings, []) == frozenset()
