"""Pipelines whose networks `torch.compile` runs: PyTorch's pictures, without a graph break, compiled once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_control import both
from tiny_sd import tiny_reference
from tiny_xl import tiny_xl
from torch import Tensor
from torch._dynamo.utils import counters

import ddim
from ddim.models import ControlNetModel

# Each network is compiled, which takes a minute together; what it draws and how it is called is tested elsewhere.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def drawn(pipe: Any, **options: Any) -> Tensor:
    given = {"prompt": "a red cat", "num_inference_steps": 3, "seed": 0, "output_type": "pt", **options}
    images: Tensor = pipe(**given).images
    return images


def graphs() -> int:
    assert not counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


def compiles_once(pipe: Any, **options: Any) -> int:
    """Draw before and after `accelerate`, and in other ways that need no further graph; of how many there are."""
    pipe.set_progress_bar_config(disable=True)
    others = ({"prompt": "smoke"}, {"num_inference_steps": 5, "seed": 3}, {"guidance_scale": 3.0, "eta": 0.5})
    ways = [{**options, **other} for other in ({}, *others)]
    right = [drawn(pipe, **way) for way in ways]
    pipe.accelerate("compile")
    counts = []
    for way, picture in zip(ways, right, strict=True):
        torch.testing.assert_close(drawn(pipe, **way), picture, atol=1e-4, rtol=0)
        counts.append(graphs())
    assert len({*counts}) == 1, counts
    assert pipe.backend == "torch.compile"
    return counts[0]


def test_stable_diffusion_xl(tmp_path: Path) -> None:
    tiny_xl(tmp_path)
    found = compiles_once(ddim.DiffusionPipeline.from_pretrained(tmp_path))
    assert found == 2  # the U-Net and the decoder; of the text encoders all layers' results are wanted


def test_a_controlnet_and_the_unet_that_it_steers(tmp_path: Path) -> None:
    """Two graphs of the U-Net: with what the ControlNet adds, and at the last step without."""
    both(tmp_path / "control", tiny_reference(tmp_path / "model", 1).unet)
    pipe = ddim.DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.controlnet = ControlNetModel.from_pretrained(tmp_path / "control")
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = compiles_once(pipe, control_image=Image.fromarray(colours), control_guidance_end=0.8)
    assert found == 5  # the text encoder, the ControlNet, the U-Net twice and the decoder


def test_a_network_that_somebody_compiled(tmp_path: Path) -> None:
    tiny_xl(tmp_path)
    pipe = ddim.DiffusionPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    right = {steps: drawn(pipe, num_inference_steps=steps) for steps in (3, 5)}
    pipe.unet = torch.compile(pipe.unet, fullgraph=True)
    counts = []
    for steps in (3, 5, 5):
        torch.testing.assert_close(drawn(pipe, num_inference_steps=steps), right[steps], atol=1e-4, rtol=0)
        counts.append(graphs())
    assert counts[1] == counts[2] <= counts[0] + 1
