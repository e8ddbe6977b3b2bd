"""Tiny random checkpoints in the layouts of Stable Diffusion 1 and 2, written by diffusers and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_clip import vocabulary, write_tokenizer

torch.set_num_threads(1)  # networks this small only lose time with more

# Two resolutions; latents of 8x8 for images of 16x16.
UNETS: dict[int, dict[str, Any]] = {
    1: {"attention_head_dim": 4},
    2: {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tiny_parts(folder: Path, version: int, in_channels: int = 4, **scheduler: Any) -> dict[str, Any]:
    """What diffusers' pipeline is made of; the tokenizer's files are written into the folder."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(version)
    write_tokenizer(folder / "tokenizer", **({} if version == 1 else {"pad": "!"}))
    size = len(vocabulary()[0])
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=32,
        **UNETS[version],
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=8,
        sample_size=16,
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            hidden_act="quick_gelu" if version == 1 else "gelu",
            bos_token_id=size - 2,
            eos_token_id=size - 1,
        )
    )
    for name, parameter in encoder.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(parameter)  # so that texts differ
    if not hasattr(encoder, "text_model"):  # transformers 5 has no such part, and diffusers' clip_skip needs it
        object.__setattr__(encoder, "text_model", encoder)
    settings = {**SCHEDULE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **scheduler}
    return {
        "vae": vae.eval(),
        "text_encoder": encoder.eval(),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "unet": unet.eval(),
        "scheduler": diffusers.DDIMScheduler(**settings),
        "safety_checker": None,
        "feature_extractor": None,
    }


def tiny_reference(folder: Path, version: int, in_channels: int = 4, **scheduler: Any) -> Any:
    """diffusers' pipeline, saved into the folder."""
    import diffusers

    kind = diffusers.StableDiffusionPipeline if in_channels == 4 else diffusers.StableDiffusionInpaintPipeline
    pipe = kind(**tiny_parts(folder, version, in_channels, **scheduler), requires_safety_checker=False)
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
