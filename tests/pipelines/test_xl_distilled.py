"""Models distilled from Stable Diffusion XL, whose U-Nets are made otherwise: what diffusers draws with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_control import both
from tiny_xl import DISTILLED, tiny_xl

import ddim
from ddim.errors import ConfigError
from ddim.pipelines import StableDiffusionXLPipeline

torch.set_num_threads(1)

PROMPT = "a photo of a red cat on stars"
# Where their U-Nets differ from Stable Diffusion XL's, at three resolutions with few channels.
TINY: dict[str, dict[str, Any]] = {
    name: {
        **{key: value for key, value in config.items() if "block" in key},
        "layers_per_block": config.get("layers_per_block", 2),
        "block_out_channels": (8, 16, 24),
        "attention_head_dim": (1, 2, 4),
    }
    for name, config in DISTILLED.items()
}
TINY["LCM of SSD-1B"] = {**TINY["SSD-1B"], "time_cond_proj_dim": 16}


def draw(pipe: Any, **options: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    given = {"prompt": PROMPT, "num_inference_steps": 3, "output_type": "np", "generator": generator, **options}
    return pipe(**given).images


def agree(theirs: Any, ours: Any) -> None:
    assert theirs.std() > 0.02  # a picture, not a plane
    assert np.abs(theirs - ours).max() < 1e-4


@pytest.mark.parametrize("name", TINY)
def test_a_folder_draws_what_diffusers_draws(name: str, tmp_path: Path) -> None:
    theirs = tiny_xl(tmp_path / "theirs", of_unet=TINY[name])
    ours = ddim.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(ours) is StableDiffusionXLPipeline
    expected = draw(theirs)
    agree(expected, draw(ours))
    ours.save_pretrained(tmp_path / "ours")
    saved, stored = (json.loads((tmp_path / each / "unet" / "config.json").read_text()) for each in ("ours", "theirs"))
    for key in ("transformer_layers_per_block", "reverse_transformer_layers_per_block", "mid_block_type"):
        assert saved[key] == stored[key]
    agree(expected, draw(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")))


def test_a_controlnet_made_of_such_a_unet(tmp_path: Path) -> None:
    pipe = tiny_xl(tmp_path / "model", of_unet=TINY["SSD-1B"])
    theirs, ours = both(tmp_path / "control", pipe.unet)
    assert ours.config.transformer_layers_per_block == (1, (2, 2), (4, 4))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    reference = diffusers.StableDiffusionXLControlNetPipeline(
        **pipe.components, controlnet=theirs, add_watermarker=False
    )
    expected = draw(reference, image=picture)
    own = ddim.DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert np.abs(draw(own) - expected).max() > 1e-2
    own.controlnet = ours
    agree(expected, draw(own, control_image=picture))
    made = type(ours).from_unet(own.unet)
    assert made.config.mid_block_type == "UNetMidBlock2D"


def test_a_unet_without_a_middle_has_no_controlnet(tmp_path: Path) -> None:
    tiny_xl(tmp_path, of_unet=TINY["KOALA 700M"])
    unet = ddim.DiffusionPipeline.from_pretrained(tmp_path).unet
    with pytest.raises(ConfigError, match="mid_block_type must name a block"):
        ddim.ControlNetModel.from_unet(unet)
