"""The bundled digits model: it is there, small, loads everywhere, and draws digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from program import script

from ddim import DDIMPipeline, DiffusionPipeline
from ddim.checkpoint import bundled_models, read_tensors
from ddim.checkpoint.hub import BUNDLED
from ddim.data import digits
from ddim.evaluation import nearest_distances
from ddim.evaluation.features import load_digits_classifier

WEIGHTS = BUNDLED / "digits"


@pytest.fixture(scope="module")
def pipe() -> DDIMPipeline:
    pipe = DiffusionPipeline.from_pretrained("digits")
    assert isinstance(pipe, DDIMPipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_bundled_in_float16_under_2_megabytes() -> None:
    assert "digits" in bundled_models()
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 2_000_000
    tensors = read_tensors(WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


# The fast test beside it is test_what_it_recommends_looks_like_many_steps.
@pytest.mark.slow
def test_each_class_looks_like_its_own_mean(pipe: DDIMPipeline) -> None:
    source = digits("all")
    images = torch.stack([source.load(i) for i in range(source.count)])  # type: ignore[arg-type]
    labels = torch.tensor(source.labels)
    means = torch.stack([images[labels == digit].mean(0) for digit in range(10)])
    asked = torch.arange(100) % 10
    drawn = pipe(class_labels=asked, num_inference_steps=20, seed=1, output_type="pt").images * 2 - 1
    nearest = torch.cdist(drawn.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == asked).float().mean() > 0.8  # real digits: 0.9
    assert nearest_distances(drawn, images).min() > 0.5


# The fast test beside it is test_what_it_recommends_looks_like_many_steps.
@pytest.mark.slow
def test_more_steps_come_nearer_to_the_limit(pipe: DDIMPipeline) -> None:
    """The paper's consistency: one x_T, much the same picture whatever the number of steps."""
    reference, fine, coarse = (
        pipe(class_labels=[3, 7], num_inference_steps=steps, seed=2, output_type="np").images for steps in (200, 50, 5)
    )
    errors = [float(np.abs(images - reference).mean()) for images in (fine, coarse)]
    assert errors[0] < 0.7 * errors[1]
    assert errors[0] < 0.1


def test_what_it_recommends_looks_like_many_steps(pipe: DDIMPipeline) -> None:
    asked: dict[str, Any] = {"class_labels": list(range(10)), "seed": 0, "output_type": "pt"}
    by_itself, many = pipe(**asked).images, pipe(**asked, num_inference_steps=50).images
    assert torch.equal(by_itself, pipe(**asked, num_inference_steps=9, order=2).images)
    first = pipe(**asked, num_inference_steps=9, order=1).images
    near, far = (float((images - many).abs().median()) for images in (by_itself, first))
    assert near < 0.8 * far


def test_guidance_and_no_class_work(pipe: DDIMPipeline) -> None:
    plain = pipe(batch_size=2, num_inference_steps=5, seed=0, output_type="pt").images
    guided = pipe(class_labels=[1, 1], guidance_scale=3.0, num_inference_steps=5, seed=0, output_type="pt").images
    assert plain.shape == guided.shape == (2, 1, 8, 8)
    assert (plain - guided).abs().max() > 0.1


def test_diffusers_loads_the_folder() -> None:
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel.from_pretrained(WEIGHTS / "unet")
    ours = DDIMPipeline.from_pretrained("digits").unet
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([10, 500]), torch.tensor([3, 10])
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t, labels).sample, unet(x, t, labels).sample, rtol=0, atol=1e-5)
    scheduler = diffusers.DDIMScheduler.from_pretrained(WEIGHTS / "scheduler")
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.slow
def test_its_samples_are_digits_spread_like_the_real_ones_and_no_copies() -> None:
    judge = script("digits/judge")
    classifier = load_digits_classifier()
    images, labels = judge.tensors(digits("held-out"))
    with torch.no_grad():
        assert (classifier(images).argmax(1) == labels).float().mean() > 0.97
    figures = judge.judge("digits", classifier, steps=50, count=1000)
    assert figures["recognised_of_1000"] >= 0.95
    assert figures["frechet_ratio"] <= 1.5
    assert figures["nearest_training_digit_samples"] >= figures["nearest_training_digit_held_out"]
    assert figures["exact_copies"] == 0
