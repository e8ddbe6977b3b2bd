"""Tiny random checkpoints in the layout of Stable Diffusion XL: base, refiner and inpainting; written by diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tiny_clip import vocabulary, write_tokenizer

torch.set_num_threads(1)  # networks this small only lose time with more

Kind = Literal["base", "refiner", "inpaint"]
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLASSES = {
    "base": "StableDiffusionXLPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
    "inpaint": "StableDiffusionXLInpaintPipeline",
}
POOLED = 16  # channels of a text's vector
FEATURES = 8  # of each number

# unet/config.json of the published base model and refiner, less most defaults.
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "reverse_transformer_layers_per_block": None,
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "upcast_attention": None,
    "num_attention_heads": None,
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_REFINER = {
    **SDXL,
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (6, 12, 24, 24),
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
# Smaller models that were distilled from it: SegMind's, whose transformers differ within one resolution, and KOALA.
DISTILLED: dict[str, dict[str, Any]] = {
    "SSD-1B": {
        **SDXL,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "Segmind-Vega": {
        **SDXL,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [1, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
    },
    "KOALA 700M": {
        **SDXL,
        "mid_block_type": None,
        "layers_per_block": 1,
        "transformer_layers_per_block": [0, 2, 5],
    },
    "KOALA 1B": {**SDXL, "layers_per_block": 1, "transformer_layers_per_block": [0, 2, 6]},
}


def tiny_xl_encoder(projects: bool) -> Any:
    """One of the two text encoders."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    size = len(vocabulary()[0])
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=24 if projects else 32,
        intermediate_size=48,
        projection_dim=POOLED if projects else 32,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act="gelu" if projects else "quick_gelu",
        bos_token_id=size - 2,
        eos_token_id=size - 1,
    )
    encoder = (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)
    for name, parameter in encoder.named_parameters():
        if "embedding" in name:
            torch.nn.init.normal_(parameter)  # so that texts differ
        elif "projection" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def tiny_xl_parts(
    folder: Path,
    kind: Kind = "base",
    *,
    force_upcast: bool = True,
    of_unet: dict[str, Any] | None = None,
    **scheduler: Any,
) -> dict[str, Any]:
    """What diffusers' pipeline is made of; the tokenizers' files are written into the folder.

    Args:
        of_unet: settings of the U-Net that replace the usual ones.
    """
    import diffusers
    from transformers import CLIPTokenizer

    torch.manual_seed(len(kind))
    is_refiner = kind == "refiner"
    write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2", pad="!")
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 9 if kind == "inpaint" else 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
        "cross_attention_dim": 24 if is_refiner else 32 + 24,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": 2 if is_refiner else (1, 2),
        "use_linear_projection": True,
        "upcast_attention": None,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": FEATURES,
        "projection_class_embeddings_input_dim": POOLED + (5 if is_refiner else 6) * FEATURES,
    }
    unet = diffusers.UNet2DConditionModel(**{**settings, **(of_unet or {})})
    with torch.no_grad():  # so that what is told beside the timestep matters
        for parameter in unet.add_embedding.parameters():
            parameter.mul_(5)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=8,
        sample_size=16,
        scaling_factor=0.13025,
        force_upcast=force_upcast,
    )
    schedule = {**SCHEDULE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **scheduler}
    return {
        "vae": vae.eval(),
        "text_encoder": None if is_refiner else tiny_xl_encoder(projects=False),
        "text_encoder_2": tiny_xl_encoder(projects=True),
        "tokenizer": None if is_refiner else CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "tokenizer_2": CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        "unet": unet.eval(),
        "scheduler": diffusers.DDIMScheduler(**schedule),
    }


def tiny_xl(folder: Path, kind: Kind = "base", **settings: Any) -> Any:
    """diffusers' pipeline, saved into the folder as the published ones are."""
    import diffusers

    parts = tiny_xl_parts(folder, kind, **settings)
    more = {"requires_aesthetics_score": True} if kind == "refiner" else {}
    pipe = getattr(diffusers, CLASSES[kind])(**parts, **more, add_watermarker=False)
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encoded(model: Path, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """What diffusers' script tells the U-Net of texts, by transformers' encoders; zeros of the empty one."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    states = []
    for kind, end in ((CLIPTextModel, ""), (CLIPTextModelWithProjection, "_2")):
        tokenizer = CLIPTokenizer.from_pretrained(model / f"tokenizer{end}")
        encoder = kind.from_pretrained(model / f"text_encoder{end}").eval()
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            given = encoder(ids, output_hidden_states=True)
        states.append(given.hidden_states[-2])
    said = torch.tensor([float(caption != "") for caption in captions])
    return torch.cat(states, -1) * said[:, None, None], given.text_embeds * said[:, None]
