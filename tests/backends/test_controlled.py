"""ControlNets and the U-Nets that they steer, run by the backends: the same pictures as PyTorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_control import both
from tiny_sd import tiny_reference
from torch import Tensor

from ddim.backends import accelerate, describe
from ddim.models import ControlNetModel, UNet2DConditionModel
from ddim.models.controlnet import ControlNetOutput
from ddim.pipelines import StableDiffusionPipeline

pytest.importorskip("openvino", reason="the `fast` extra is not installed")

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, and two ControlNets for it."""
    folder = tmp_path_factory.mktemp("controlled")
    reference = tiny_reference(folder / "model", 1)
    for seed in (1, 2):
        both(folder / f"control-{seed}", reference.unet, seed)
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def _kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDIM_CACHE", str(kept))


def networks(folder: Path) -> tuple[UNet2DConditionModel, ControlNetModel]:
    return (
        UNet2DConditionModel.from_pretrained(folder / "model", subfolder="unet"),
        ControlNetModel.from_pretrained(folder / "control-1"),
    )


def inputs(batch: int = 2, side: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "sample": torch.randn(batch, 4, side, side, generator=generator),
        "timestep": 300,
        "encoder_hidden_states": torch.randn(batch, 5, 32, generator=generator),
    }


def picture(side: int = 16) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(
    "shapes", [[(2, 8)], pytest.param([(2, 8), (3, 8), (1, 12)], marks=pytest.mark.slow)], ids=["one", "changing"]
)
@torch.no_grad()
def test_each_of_both_gives_what_pytorch_gives(
    shapes: list[tuple[int, int]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet, control = networks(folder)
    for batch, side in shapes:
        given = inputs(batch, side)
        accelerate([unet, control], "eager")
        expected: ControlNetOutput = control(**given, controlnet_cond=picture(2 * side), conditioning_scale=0.7)
        added = {
            "down_block_additional_residuals": expected.down_block_res_samples,
            "mid_block_additional_residual": expected.mid_block_res_sample,
        }
        steered, alone = unet(**given, **added).sample, unet(**given).sample
        assert (steered - alone).abs().max() > 1e-2
        accelerate([unet, control], "openvino", torch.float32)
        for again in (False, True):
            found = control(**given, controlnet_cond=picture(2 * side), conditioning_scale=0.7)
            assert len(found.down_block_res_samples) == len(expected.down_block_res_samples)
            for mine, right in zip(found.down_block_res_samples, expected.down_block_res_samples, strict=True):
                torch.testing.assert_close(mine, right, **TOLERANCE)
            torch.testing.assert_close(found.mid_block_res_sample, expected.mid_block_res_sample, **TOLERANCE)
            torch.testing.assert_close(unet(**given, **added).sample, steered, **TOLERANCE)
            torch.testing.assert_close(unet(**given).sample, alone, **TOLERANCE)
            if not again:  # PyTorch is no longer asked
                for network in (unet, control):
                    monkeypatch.setattr(type(network), "way_down", None)
        monkeypatch.undo()
        assert describe(unet) == describe(control) == "OpenVINO, f32"


@torch.no_grad()
def test_residuals_that_do_not_fit_are_the_callers_error(folder: Path) -> None:
    unet, _ = networks(folder)
    accelerate([unet], "openvino", torch.float32)
    down = [torch.zeros(2, 32, 8, 8)]
    with pytest.raises(ValueError, match="1 down_block_additional_residuals were given for"):
        unet(**inputs(), down_block_additional_residuals=down, mid_block_additional_residual=torch.zeros(2, 64, 4, 4))
    assert describe(unet) == "OpenVINO, f32"


@torch.no_grad()
def test_one_of_the_two_kinds_alone_is_added_too(folder: Path) -> None:
    unet, _ = networks(folder)
    middle = torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = unet(**inputs(), mid_block_additional_residual=middle).sample
    assert (expected - unet(**inputs()).sample).abs().max() > 1e-2
    accelerate([unet], "openvino", torch.float32)
    found = unet(**inputs(), mid_block_additional_residual=middle).sample
    torch.testing.assert_close(found, expected, **TOLERANCE)


HOW: dict[str, dict[str, Any]] = {
    "one": {},
    "a part of the way": {"control_guidance_start": 0.3, "control_guidance_end": 0.8},
    "guess mode": {"guess_mode": True, "controlnet_conditioning_scale": 0.8},
    "two": {"count": 2, "controlnet_conditioning_scale": [1.0, 0.6]},
}


@pytest.mark.parametrize("name", HOW)
@pytest.mark.thin(fast=["one", "two"])
def test_pictures_are_those_of_pytorch(name: str, folder: Path) -> None:
    options = {**HOW[name]}
    count = options.pop("count", 1)
    pipe = StableDiffusionPipeline.from_pretrained(folder / "model")
    pipe.set_progress_bar_config(disable=True)
    chosen = [ControlNetModel.from_pretrained(folder / f"control-{number + 1}") for number in range(count)]
    pipe.controlnet = chosen if count > 1 else chosen[0]
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    shown = [Image.fromarray(colours)] * count

    def drawn() -> Tensor:
        images = pipe(
            "a red cat", control_image=shown if count > 1 else shown[0], num_inference_steps=4, seed=0,
            output_type="pt", **options,
        ).images  # fmt: skip
        assert isinstance(images, Tensor)
        return images

    expected = drawn()
    pipe.accelerate("openvino", dtype=torch.float32)
    torch.testing.assert_close(drawn(), expected, atol=1e-4, rtol=0)
    assert pipe.backend == "OpenVINO, f32"  # of the ControlNets, too
    assert all(network.runner is not None and network.runner.made is not None for network in chosen)  # type: ignore[attr-defined]
