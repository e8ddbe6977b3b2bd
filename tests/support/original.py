"""Stable Diffusion's original layout, 1 and 2 and XL, built up as the programs that trained it build their modules.

Names and shapes only, from the structure of the original networks; nothing here knows how they are called elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


def layer(name: str, *shape: int, bias: bool = True) -> Named:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def norm(name: str, channels: int) -> Named:
    return layer(name, channels)


def conv(name: str, before: int, after: int, kernel: int = 3) -> Named:
    return layer(name, after, before, kernel, kernel)


# --- the U-Net -------------------------------------------------------------------------------------------------------


def residual(name: str, before: int, after: int, time: int) -> Named:
    yield from norm(f"{name}.in_layers.0", before)
    yield from conv(f"{name}.in_layers.2", before, after)
    yield from layer(f"{name}.emb_layers.1", after, time)
    yield from norm(f"{name}.out_layers.0", after)
    yield from conv(f"{name}.out_layers.3", after, after)
    if before != after:
        yield from conv(f"{name}.skip_connection", before, after, 1)


def transformer(name: str, channels: int, context: int, linear: bool, depth: int = 1) -> Named:
    projection = (channels, channels) if linear else (channels, channels, 1, 1)
    yield from norm(f"{name}.norm", channels)
    yield from layer(f"{name}.proj_in", *projection)
    for block in (f"{name}.transformer_blocks.{number}" for number in range(depth)):
        for attention, source in (("attn1", channels), ("attn2", context)):
            yield from layer(f"{block}.{attention}.to_q", channels, channels, bias=False)
            yield from layer(f"{block}.{attention}.to_k", channels, source, bias=False)
            yield from layer(f"{block}.{attention}.to_v", channels, source, bias=False)
            yield from layer(f"{block}.{attention}.to_out.0", channels, channels)
        yield from layer(f"{block}.ff.net.0.proj", 8 * channels, channels)
        yield from layer(f"{block}.ff.net.2", channels, 4 * channels)
        for number in (1, 2, 3):
            yield from norm(f"{block}.norm{number}", channels)
    yield from layer(f"{name}.proj_out", *projection)


def unet(
    width: int,
    multiples: tuple[int, ...],
    layers: int,
    attend: set[int],
    context: int,
    linear: bool,
    channels: int,
    depths: tuple[int | tuple[int, ...], ...] = (),
    told: int = 0,
    depths_up: tuple[int | tuple[int, ...], ...] = (),
    middle: int = 3,
) -> Named:
    """The names in the U-Net.

    Args:
        attend: the levels, from 0, at which there is attention.
        depths: the blocks of the transformers at each level, if there are not one each: of all there, or of one after
            the other; the middle has as many as the last level.
        told: the width of what it is told beside the text, if it is told anything.
        depths_up: the same for the way up, in its order; as on the way down unless told.
        middle: the blocks there: with the attention between two residual blocks 3; one residual block 1; none 0.
    """
    time = 4 * width
    depths = depths or (1,) * len(multiples)
    depths_up = (depths_up or depths[::-1])[::-1]

    def depth(of_level: int | tuple[int, ...], place: int = 0) -> int:
        return of_level if isinstance(of_level, int) else of_level[place]

    yield from layer("time_embed.0", time, width)
    yield from layer("time_embed.2", time, time)
    if told:
        yield from layer("label_emb.0.0", time, told)
        yield from layer("label_emb.0.2", time, time)
    yield from conv("input_blocks.0.0", channels, width)
    skips, now, number = [width], width, 1
    for level, multiple in enumerate(multiples):
        for place in range(layers):
            yield from residual(f"input_blocks.{number}.0", now, multiple * width, time)
            now = multiple * width
            if level in attend:
                yield from transformer(f"input_blocks.{number}.1", now, context, linear, depth(depths[level], place))
            skips.append(now)
            number += 1
        if level < len(multiples) - 1:
            yield from conv(f"input_blocks.{number}.0.op", now, now)
            skips.append(now)
            number += 1
    if middle:
        yield from residual("middle_block.0", now, now, time)
    if middle == 3:
        yield from transformer("middle_block.1", now, context, linear, depth(depths[-1]))
        yield from residual("middle_block.2", now, now, time)
    number = 0
    for level, multiple in reversed(list(enumerate(multiples))):
        for place in range(layers + 1):
            yield from residual(f"output_blocks.{number}.0", now + skips.pop(), multiple * width, time)
            now = multiple * width
            parts = 1
            if level in attend:
                yield from transformer(
                    f"output_blocks.{number}.1", now, context, linear, depth(depths_up[level], place)
                )
                parts = 2
            if level and place == layers:
                yield from conv(f"output_blocks.{number}.{parts}.conv", now, now)
            number += 1
    yield from norm("out.0", now)
    yield from conv("out.2", now, 4)


def control(*, hint: tuple[int, ...] = (16, 32, 96, 256), **of_unet: Any) -> Named:
    """The names in the ControlNet of a U-Net, whose arguments are those of `unet`.

    Args:
        hint: the widths in which it reads a picture.
    """
    width = of_unet["width"]
    named = list(unet(**of_unet, channels=4))
    yield from ((name, shape) for name, shape in named if not name.startswith(("output_blocks.", "out.")))
    skips = {}
    for name, shape in named:
        if name.startswith("input_blocks.") and name.endswith(("0.bias", "op.bias", "out_layers.3.bias")):
            skips[int(name.split(".")[1])] = shape[0]
    for number, channels in skips.items():
        yield from conv(f"zero_convs.{number}.0", channels, channels, 1)
    yield from conv("middle_block_out.0", channels, channels, 1)
    yield from conv("input_hint_block.0", 3, hint[0])
    number = 2
    for before, after in itertools.pairwise(hint):
        yield from conv(f"input_hint_block.{number}", before, before)
        yield from conv(f"input_hint_block.{number + 2}", before, after)
        number += 4
    yield from conv(f"input_hint_block.{number}", hint[-1], width)


# --- the autoencoder -------------------------------------------------------------------------------------------------


def vae_residual(name: str, before: int, after: int) -> Named:
    yield from norm(f"{name}.norm1", before)
    yield from conv(f"{name}.conv1", before, after)
    yield from norm(f"{name}.norm2", after)
    yield from conv(f"{name}.conv2", after, after)
    if before != after:
        yield from conv(f"{name}.nin_shortcut", before, after, 1)


def vae_middle(name: str, channels: int) -> Named:
    yield from vae_residual(f"{name}.block_1", channels, channels)
    yield from norm(f"{name}.attn_1.norm", channels)
    for one in ("q", "k", "v", "proj_out"):
        yield from conv(f"{name}.attn_1.{one}", channels, channels, 1)
    yield from vae_residual(f"{name}.block_2", channels, channels)


def vae(width: int, multiples: tuple[int, ...], layers: int) -> Named:
    yield from conv("encoder.conv_in", 3, width)
    now = width
    for level, multiple in enumerate(multiples):
        for place in range(layers):
            yield from vae_residual(f"encoder.down.{level}.block.{place}", now, multiple * width)
            now = multiple * width
        if level < len(multiples) - 1:
            yield from conv(f"encoder.down.{level}.downsample.conv", now, now)
    yield from vae_middle("encoder.mid", now)
    yield from norm("encoder.norm_out", now)
    yield from conv("encoder.conv_out", now, 8)
    yield from conv("decoder.conv_in", 4, now)
    yield from vae_middle("decoder.mid", now)
    for level, multiple in reversed(list(enumerate(multiples))):
        for place in range(layers + 1):
            yield from vae_residual(f"decoder.up.{level}.block.{place}", now, multiple * width)
            now = multiple * width
        if level:
            yield from conv(f"decoder.up.{level}.upsample.conv", now, now)
    yield from norm("decoder.norm_out", now)
    yield from conv("decoder.conv_out", now, 3)
    yield from conv("quant_conv", 8, 8, 1)
    yield from conv("post_quant_conv", 4, 4, 1)


# --- the text encoders -----------------------------------------------------------------------------------------------


def clip(width: int, layers: int, words: int, positions: int) -> Named:
    """As transformers had it when Stable Diffusion 1 was trained; without the positions' numbers."""
    yield "text_model.embeddings.token_embedding.weight", (words, width)
    yield "text_model.embeddings.position_embedding.weight", (positions, width)
    for number in range(layers):
        name = f"text_model.encoder.layers.{number}"
        for one in ("k", "v", "q", "out"):
            yield from layer(f"{name}.self_attn.{one}_proj", width, width)
        yield from norm(f"{name}.layer_norm1", width)
        yield from layer(f"{name}.mlp.fc1", 4 * width, width)
        yield from layer(f"{name}.mlp.fc2", width, 4 * width)
        yield from norm(f"{name}.layer_norm2", width)
    yield from norm("text_model.final_layer_norm", width)


def open_clip(width: int, layers: int, words: int, positions: int, projection: int = 0) -> Named:
    yield "positional_embedding", (positions, width)
    yield "text_projection", (width, projection or width)
    yield "logit_scale", ()
    for number in range(layers):
        name = f"transformer.resblocks.{number}"
        yield from norm(f"{name}.ln_1", width)
        yield f"{name}.attn.in_proj_weight", (3 * width, width)
        yield f"{name}.attn.in_proj_bias", (3 * width,)
        yield from layer(f"{name}.attn.out_proj", width, width)
        yield from norm(f"{name}.ln_2", width)
        yield from layer(f"{name}.mlp.c_fc", 4 * width, width)
        yield from layer(f"{name}.mlp.c_proj", width, 4 * width)
    yield "token_embedding.weight", (words, width)
    yield from norm("ln_final", width)


# --- whole files -----------------------------------------------------------------------------------------------------

SCHEDULE = """
betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 lvlb_weights logvar
""".split()

FULL: dict[str, Any] = {"width": 320, "multiples": (1, 2, 4, 4), "layers": 2, "attend": {0, 1, 2}}
FULL_VAE: dict[str, Any] = {"width": 128, "multiples": (1, 2, 4, 4), "layers": 2}
TINY: dict[str, Any] = {"width": 32, "multiples": (1, 2), "layers": 1, "attend": {0}}
TINY_VAE: dict[str, Any] = {"width": 32, "multiples": (1, 2), "layers": 1}
TINY_TEXT: dict[str, Any] = {"width": 64, "layers": 3, "words": 99, "positions": 16}


def shapes(
    version: int,
    channels: int = 4,
    *,
    of_unet: dict[str, Any] = TINY,
    of_vae: dict[str, Any] = TINY_VAE,
    of_text: dict[str, Any] = TINY_TEXT,
    ema: bool = False,
) -> dict[str, Shape]:
    """All of a file: what is in it beside the networks, too."""
    second = version == 2
    network = dict(unet(**of_unet, context=of_text["width"], linear=second, channels=channels))
    text = (
        {f"cond_stage_model.model.{name}": shape for name, shape in open_clip(**of_text)}
        if second
        else {f"cond_stage_model.transformer.{name}": shape for name, shape in clip(**of_text)}
        | {"cond_stage_model.transformer.text_model.embeddings.position_ids": (1, of_text["positions"])}
    )
    averages: dict[str, Shape] = {"model_ema.decay": (), "model_ema.num_updates": ()}
    averages |= {f"model_ema.diffusion_model{name.replace('.', '')}": shape for name, shape in network.items()}
    return {
        **dict.fromkeys(SCHEDULE, (1000,)),
        **{f"model.diffusion_model.{name}": shape for name, shape in network.items()},
        **{f"first_stage_model.{name}": shape for name, shape in vae(**of_vae)},
        **text,
        **(averages if ema else {}),
    }


FULL_XL: dict[str, Any] = {
    "width": 320,
    "multiples": (1, 2, 4),
    "layers": 2,
    "attend": {1, 2},
    "depths": (0, 2, 10),
    "context": 2048,
    "told": 2816,
}
FULL_REFINER: dict[str, Any] = {
    "width": 384,
    "multiples": (1, 2, 4, 4),
    "layers": 2,
    "attend": {1, 2},
    "depths": (4, 4, 4, 4),
    "context": 1280,
    "told": 2560,
}
# Smaller ones, distilled from it.
FULL_DISTILLED: dict[str, dict[str, Any]] = {
    "SSD-1B": {**FULL_XL, "depths": (0, 2, 4), "depths_up": ((4, 4, 10), (2, 1, 1), 0), "middle": 1},
    "Segmind-Vega": {**FULL_XL, "depths": (0, 1, 2), "middle": 1},
    "KOALA 700M": {**FULL_XL, "layers": 1, "depths": (0, 2, 5), "middle": 0},
    "KOALA 1B": {**FULL_XL, "layers": 1, "depths": (0, 2, 6)},
}
FULL_CLIP: dict[str, Any] = {"width": 768, "layers": 12, "words": 49408, "positions": 77}
FULL_BIG_G: dict[str, Any] = {"width": 1280, "layers": 32, "words": 49408, "positions": 77}
# 6 or 5 numbers of 8 channels each, and the summary of the second text.
TINY_XL: dict[str, Any] = {
    "width": 32,
    "multiples": (1, 2),
    "layers": 1,
    "attend": {1},
    "depths": (0, 2),
    "context": 192,
    "told": 48 + 48,
}
TINY_SSD: dict[str, Any] = {**TINY_XL, "layers": 2, "depths_up": ((2, 1, 3), 0), "middle": 1}
TINY_KOALA: dict[str, Any] = {**TINY_XL, "middle": 0}
TINY_REFINER: dict[str, Any] = {
    "width": 32,
    "multiples": (1, 2, 2),
    "layers": 1,
    "attend": {1},
    "depths": (2, 2, 2),
    "context": 128,
    "told": 40 + 48,
}
TINY_BIG_G: dict[str, Any] = {"width": 128, "layers": 3, "words": 99, "positions": 16, "projection": 48}


def xl_shapes(
    channels: int = 4,
    *,
    refiner: bool = False,
    of_unet: dict[str, Any] | None = None,
    of_vae: dict[str, Any] = TINY_VAE,
    of_text: dict[str, Any] = TINY_TEXT,
    of_text_2: dict[str, Any] = TINY_BIG_G,
    ema: bool = False,
) -> dict[str, Shape]:
    """All of a file of Stable Diffusion XL or of its refiner, which has the larger one of the text encoders alone."""
    network = dict(unet(**(of_unet or (TINY_REFINER if refiner else TINY_XL)), linear=True, channels=channels))
    first = {
        f"conditioner.embedders.0.transformer.{name}": shape
        for name, shape in [*clip(**of_text), ("text_model.embeddings.position_ids", (1, of_text["positions"]))]
    }
    averages: dict[str, Shape] = {"model_ema.decay": (), "model_ema.num_updates": ()}
    averages |= {f"model_ema.diffusion_model{name.replace('.', '')}": shape for name, shape in network.items()}
    return {
        "denoiser.sigmas": (1000,),
        **{f"model.diffusion_model.{name}": shape for name, shape in network.items()},
        **{f"first_stage_model.{name}": shape for name, shape in vae(**of_vae)},
        **({} if refiner else first),
        **{f"conditioner.embedders.{int(not refiner)}.model.{name}": s for name, s in open_clip(**of_text_2)},
        **(averages if ema else {}),
    }


def tensors(named: dict[str, Shape], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random ones: scales about 1, the rest small enough that signals stay near 1 through all layers."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in named.items():
        fan_in = max(1, torch.Size(shape[1:]).numel())
        tensor = torch.randn(shape, generator=generator) * (fan_in**-0.5 if len(shape) > 1 else 0.1)
        made[name] = (tensor + (len(shape) == 1 and name.endswith("weight"))).to(dtype)
        if name.endswith("position_ids"):
            made[name] = torch.arange(shape[1])[None]
        if name.endswith("num_updates"):
            made[name] = torch.tensor(7)
    return made
