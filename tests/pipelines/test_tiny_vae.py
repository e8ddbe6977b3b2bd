"""Pipelines with an `AutoencoderTiny` in the place of their autoencoder, against diffusers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny_sd import tiny_parts
from tiny_xl import tiny_xl_parts

import ddim
from ddim.models import AutoencoderTiny
from ddim.pipelines import DiffusionPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline

PROMPT = "a photo of a red cat on stars"
TINY: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 2),
    "num_decoder_blocks": (2, 1),
}


def picture() -> Image.Image:
    rows = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(rows).resize((16, 16), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    image = Image.new("L", (16, 16))
    ImageDraw.Draw(image).ellipse((4, 2, 12, 12), fill=255)
    return image


FOUR, NINE = (1, 4), (2, 9)  # a version of Stable Diffusion, and how many channels its U-Net takes


@pytest.fixture(scope="module", params=[FOUR, NINE], ids=["four channels", "nine channels"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder that diffusers wrote, whose index names an AutoencoderTiny; and its parts."""
    folder = tmp_path_factory.mktemp("tiny-vae")
    version, channels = request.param
    parts = tiny_parts(folder, version, channels)
    torch.manual_seed(3)
    parts["vae"] = diffusers.AutoencoderTiny(**TINY).eval()
    kind = diffusers.StableDiffusionPipeline if channels == 4 else diffusers.StableDiffusionInpaintPipeline
    kind(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder, parts


@pytest.mark.filterwarnings("ignore:You have passed .* text prompts:FutureWarning")
@pytest.mark.parametrize("generators", [None, 2])
@pytest.mark.parametrize(
    ("checkpoint", "task"),
    [*((FOUR, task) for task in ("text", "picture", "mask", "weak mask")), (NINE, "mask"), (NINE, "weak mask")],
    indirect=["checkpoint"],
)
@pytest.mark.thin(together=1)
def test_pictures_are_those_of_diffusers(
    task: str, generators: int | None, checkpoint: tuple[Path, dict[str, Any]]
) -> None:
    folder, parts = checkpoint
    kind, given = {
        "text": (diffusers.StableDiffusionPipeline, {}),
        "picture": (diffusers.StableDiffusionImg2ImgPipeline, {"image": picture(), "strength": 0.7}),
        "mask": (diffusers.StableDiffusionInpaintPipeline, {"image": picture(), "mask_image": mask(), "strength": 1.0}),
        "weak mask": (
            diffusers.StableDiffusionInpaintPipeline,
            {"image": picture(), "mask_image": mask(), "strength": 0.7},
        ),
    }[task]
    if "mask" in task:
        given |= {"height": 16, "width": 16}
    theirs: Any = kind(**parts, requires_safety_checker=False)
    ours: Any = (StableDiffusionInpaintPipeline if "mask" in task else StableDiffusionPipeline).from_pretrained(folder)
    assert isinstance(ours.vae, AutoencoderTiny)
    made = []
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
        several = [torch.Generator().manual_seed(k) for k in range(generators or 0)]
        made.append(
            pipe(
                [PROMPT] * 2,
                num_inference_steps=4,
                eta=0.5,
                output_type="np",
                generator=several or torch.Generator().manual_seed(7),
                **given,
            ).images
        )
    assert made[0].std() > 0.01
    np.testing.assert_allclose(made[1], made[0], atol=1e-4)


@pytest.mark.parametrize("task", ["text", "picture", "mask"])
def test_pictures_of_xl_are_those_of_diffusers(task: str, tmp_path: Path) -> None:
    kind = {
        "text": "StableDiffusionXLPipeline",
        "picture": "StableDiffusionXLImg2ImgPipeline",
        "mask": "StableDiffusionXLInpaintPipeline",
    }[task]
    parts = tiny_xl_parts(tmp_path)
    torch.manual_seed(3)
    parts["vae"] = diffusers.AutoencoderTiny(**TINY).eval()
    theirs = getattr(diffusers, kind)(**parts, add_watermarker=False)
    theirs.save_pretrained(tmp_path)
    ours: Any = getattr(ddim.pipelines, kind).from_pretrained(tmp_path)
    assert isinstance(ours.vae, AutoencoderTiny)
    given: dict[str, Any] = {"text": {"height": 16, "width": 16}, "picture": {"image": picture(), "strength": 0.7}}.get(
        task, {"image": picture(), "mask_image": mask(), "height": 16, "width": 16}
    )
    made = []
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(7)
        made.append(pipe(PROMPT, num_inference_steps=4, output_type="np", generator=generator, **given).images)
    assert made[0].std() > 0.01
    np.testing.assert_allclose(made[1], made[0], atol=1e-4)


def test_it_is_given_or_stored(checkpoint: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, parts = checkpoint
    alone = AutoencoderTiny.from_pretrained(folder / "vae")
    pipe = DiffusionPipeline.from_pretrained(folder, vae=alone)
    assert pipe.components["vae"] is alone
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderTiny"]
    again: Any = DiffusionPipeline.from_pretrained(tmp_path)
    theirs = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "vae")
    for ours, expected in zip(again.vae.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, expected)
    assert again.vae.config.block_out_channels == (8, 8)
    theirs_in_ours: Any = DiffusionPipeline.from_pretrained(folder, vae=parts["vae"])
    x = again.encode(picture())
    torch.testing.assert_close(theirs_in_ours.encode(picture()), x)
    shown = again.decode(x, "np")
    again.enable_vae_slicing()
    again.enable_vae_tiling()
    np.testing.assert_allclose(again.decode(x, "np"), shown, atol=1e-6)
    again.disable_vae_slicing()
    again.disable_vae_tiling()
    assert "AutoencoderTiny" in str(again.info())
