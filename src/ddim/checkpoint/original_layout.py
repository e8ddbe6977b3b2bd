"""The layout in which Stable Diffusion 1 and 2 were first published: one file, with other names and without configs.

The rules below turn its names into those of diffusers' layout; docs/single-file.md shows them as tables. The configs
are worked out from names and shapes. Two things cannot be seen in these: the number of heads, for which the published
values are taken, and what the network predicts, which the caller has to know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

# Settings that cannot be seen in names and shapes, as the published models have them.
UNET_HEADS = 8  # heads of every attention layer of Stable Diffusion 1's U-Net
HEAD_WIDTH = 64  # channels of a head in Stable Diffusion 2's U-Net and in both text encoders
TEXT_LAYERS = 23  # Stable Diffusion 2 reads the last but one of OpenCLIP's 24 layers, so the last one is not loaded

# Tensors that are not loaded: the noise schedule, averages, losses, and the layers by which CLIP compares texts with
# images.
NOT_NEEDED = re.compile(
    r"betas|(sqrt_)?alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_recip(m1)?_alphas_cumprod"
    r"|posterior_\w+|lvlb_weights|logvar|scale_factor|global_step|denoiser\.sigmas"
    r"|(first_stage_model\.)?(loss|model_ema)\..*"
    r"|cond_stage_model\.(transformer\.|model\.)?(text_projection(\.weight)?|logit_scale|attn_mask)"
    r"|cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids"
    rf"|cond_stage_model\.model\.transformer\.resblocks\.{TEXT_LAYERS}\..*"
)


# --- names -----------------------------------------------------------------------------------------------------------

# In each table: the original name -> the name in diffusers' layout.
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_LAYERS = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "nin_shortcut": "conv_shortcut",
}
OPEN_CLIP = {
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final": "final_layer_norm",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def unet_name(name: str, layers: int) -> str:
    """The name in diffusers' layout of a weight or bias of the original U-Net; "" if it is unknown.

    The original numbers the blocks of each way from 0 on. On the way down, block 0 is the first convolution, and each
    level has `layers` residual blocks and one that halves the resolution. On the way up, each level has `layers + 1`
    residual blocks, the last of which also doubles the resolution.

    Args:
        name: the original name, without `model.diffusion_model.` in front.
        layers: residual blocks at each level on the way down.

    >>> unet_name("input_blocks.4.0.in_layers.2.weight", layers=2)
    'down_blocks.1.resnets.0.conv1.weight'
    >>> unet_name("output_blocks.2.1.conv.bias", layers=2)
    'up_blocks.0.upsamplers.0.conv.bias'
    """
    stem, _, kind = name.rpartition(".")
    if stem in UNET_ENDS:
        return f"{UNET_ENDS[stem]}.{kind}"
    if match := re.fullmatch(r"middle_block\.([012])\.(.+)", stem):
        block, number, place, rest = "mid_block", int(match[1]) // 2, int(match[1]) % 2, match[2]
    elif match := re.fullmatch(r"(input|output)_blocks\.(\d{1,4})\.([012])\.(.+)", stem):
        down = match[1] == "input"
        level, number = divmod(int(match[2]) - down, layers + 1)
        block, place, rest = f"{'down' if down else 'up'}_blocks.{level}", int(match[3]), match[4]
        if (down, place, rest) == (True, 0, "op"):
            return f"{block}.downsamplers.0.conv.{kind}"
        if not down and place > 0 and rest == "conv":
            return f"{block}.upsamplers.0.conv.{kind}"
    else:
        return ""
    if place == 1:
        return f"{block}.attentions.{number}.{rest}.{kind}"
    return f"{block}.resnets.{number}.{UNET_RESNET[rest]}.{kind}" if place == 0 and rest in UNET_RESNET else ""


def vae_name(name: str, levels: int) -> str:
    """The name in diffusers' layout of a weight or bias of the original autoencoder; "" if it is unknown.

    The original numbers the levels of both ways from the highest resolution on, diffusers in the order of running.

    Args:
        name: the original name, without `first_stage_model.` in front.
        levels: how many resolutions there are.

    >>> vae_name("decoder.up.3.block.0.nin_shortcut.weight", levels=4)
    'decoder.up_blocks.0.resnets.0.conv_shortcut.weight'
    """
    if re.fullmatch(r"((en|de)coder\.conv_(in|out)|(post_)?quant_conv)\.(weight|bias)", name):
        return name
    match = re.fullmatch(r"((?:en|de)coder)\.(.+)\.(weight|bias)", name)
    if match is None:
        return ""
    coder, stem, kind = match.groups()
    if stem == "norm_out":
        return f"{coder}.conv_norm_out.{kind}"
    if match := re.fullmatch(r"mid\.(block|attn)_([12])\.(\w+)", stem):
        what, number, layer = "resnets" if match[1] == "block" else "attentions", int(match[2]) - 1, match[3]
        return f"{coder}.mid_block.{what}.{number}.{VAE_LAYERS.get(layer, layer)}.{kind}"
    if match := re.fullmatch(r"(down|up)\.(\d{1,4})\.(?:block\.(\d{1,4})\.(\w+)|(down|up)sample\.conv)", stem):
        way, level, number_, layer, _ = match.groups()
        block = f"{coder}.{way}_blocks.{level if way == 'down' else levels - 1 - int(level)}"
        if layer is None:
            return f"{block}.{way}samplers.0.conv.{kind}"
        return f"{block}.resnets.{number_}.{VAE_LAYERS.get(layer, layer)}.{kind}"
    return ""


def clip_name(name: str) -> str:
    """The name in diffusers' layout of a tensor of CLIP's text encoder.

    Args:
        name: the original name, without `cond_stage_model.transformer.` in front.
    """
    return name if name.startswith("text_model.") else f"text_model.{name}"


def open_clip_names(name: str) -> tuple[str, ...]:
    """The names in diffusers' layout of a tensor of OpenCLIP's text encoder; none if it is unknown.

    There are three names for a tensor that holds the projections to queries, keys and values, one below the other.

    Args:
        name: the original name, without `cond_stage_model.model.` in front.

    >>> open_clip_names("transformer.resblocks.7.attn.in_proj_bias")[1]
    'text_model.encoder.layers.7.self_attn.k_proj.bias'
    """
    match = re.fullmatch(r"(?:transformer\.resblocks\.(\d{1,4})\.)?(.+?)(?:\.(weight|bias))?", name)
    if match is None:
        return ()
    layer, stem, kind = match.groups()
    prefix = "text_model." if layer is None else f"text_model.encoder.layers.{layer}."
    if joint := re.fullmatch(r"attn\.in_proj_(weight|bias)", stem):
        return tuple(f"{prefix}self_attn.{one}_proj.{joint[1]}" for one in "qkv")
    if stem not in OPEN_CLIP:
        return ()
    return (f"{prefix}{OPEN_CLIP[stem]}" + (f".{kind}" if kind else ""),)


# --- structure -------------------------------------------------------------------------------------------------------


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers the pattern's group matches, over all names that begin as the pattern says."""
    return len({match[1] for match in map(re.compile(pattern).match, shapes) if match})


def _size(shapes: Shapes, name: str, dimension: int, default: int) -> int:
    """The size of a tensor in one dimension. Where there is no such tensor, the default only has to be possible, since
    the tensor will be reported as missing."""
    shape = shapes.get(name, ())
    return shape[dimension] if dimension < len(shape) else default


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """The config of a U-Net.

    Args:
        shapes: its tensors' shapes by their original names, without `model.diffusion_model.` in front.
    """
    levels = _count(shapes, r"input_blocks\.(\d{1,4})\.0\.op\.") + 1
    # The first convolution, and on each level the residual blocks and, except on the last level, the resampling `op`.
    blocks = _count(shapes, r"input_blocks\.(\d{1,4})\.")
    layers = max(1, blocks // levels - 1)
    starts = [f"input_blocks.{1 + level * (layers + 1)}" for level in range(levels)]
    width = _size(shapes, "input_blocks.0.0.weight", 0, 320)
    widths = [_size(shapes, f"{start}.0.out_layers.3.weight", 0, width) for start in starts]
    attends = [f"{start}.1.norm.weight" in shapes for start in starts]
    linear = len(shapes.get("middle_block.1.proj_in.weight", ())) == 2
    return {
        "in_channels": _size(shapes, "input_blocks.0.0.weight", 1, 4),
        "out_channels": _size(shapes, "out.2.weight", 0, 4),
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "layers_per_block": layers,
        "cross_attention_dim": _size(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1, 768),
        "attention_head_dim": [max(1, channels // HEAD_WIDTH) for channels in widths] if linear else UNET_HEADS,
        "use_linear_projection": linear,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """The config of an autoencoder.

    Args:
        shapes: its tensors' shapes by their original names, without `first_stage_model.` in front.
    """
    levels = max(1, _count(shapes, r"encoder\.down\.(\d{1,4})\."))
    width = _size(shapes, "encoder.conv_in.weight", 0, 128)
    return {
        "in_channels": _size(shapes, "encoder.conv_in.weight", 1, 3),
        "out_channels": _size(shapes, "decoder.conv_out.weight", 0, 3),
        "block_out_channels": [
            _size(shapes, f"encoder.down.{level}.block.0.conv2.weight", 0, width) for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": max(1, _count(shapes, r"encoder\.down\.0\.block\.(\d{1,4})\.")),
        "latent_channels": _size(shapes, "decoder.conv_in.weight", 1, 4),
        "scaling_factor": 0.18215,
    }


def text_config(shapes: Shapes, open_clip: bool) -> dict[str, Any]:
    """The config of a text encoder.

    Args:
        shapes: its tensors' shapes by their names in diffusers' layout.
        open_clip: whether it is OpenCLIP's, which has another activation than CLIP's.
    """
    width = _size(shapes, "text_model.embeddings.token_embedding.weight", 1, 768)
    return {
        "vocab_size": _size(shapes, "text_model.embeddings.token_embedding.weight", 0, 49408),
        "hidden_size": width,
        "intermediate_size": _size(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 0, 4 * width),
        "num_hidden_layers": max(1, _count(shapes, r"text_model\.encoder\.layers\.(\d{1,4})\.")),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": _size(shapes, "text_model.embeddings.position_embedding.weight", 0, 77),
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "projection_dim": width,
        "bos_token_id": 0,  # this and the next are not the tokenizer's ids, but what the published configs say
        "eos_token_id": 2,
    }


# --- both ------------------------------------------------------------------------------------------------------------

# How the names of each network's tensors begin.
PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model."),
}
# A name by which a file is recognised that holds one network alone, whose names have no prefix.
BARE = {"unet": "input_blocks.0.0.weight", "vae": "encoder.conv_in.weight"}


class Part(NamedTuple):
    """One network of a file."""

    config: dict[str, Any]
    state: State  # its tensors, by their names in diffusers' layout
    stored: dict[str, str]  # the name in diffusers' layout -> the name in the file


def convert(tensors: State, use_ema: bool = False) -> tuple[dict[str, Part], list[str]]:
    """Turn a file's tensors into networks' configs and weights. No values are copied.

    Args:
        tensors: the file's tensors by their names, of any type and on any device.
        use_ema: take the averages of the U-Net's weights that the file holds, in place of the weights.

    Returns:
        The networks by their names in a pipeline, "unet", "vae" and "text_encoder"; and what is wrong with the names,
        each in words.
    """
    names, problems = _sort(tensors)
    unet, vae, text = names.values()
    if use_ema:
        unet = {name: f"model_ema.diffusion_model{name.replace('.', '')}" for name in unet}
        problems += [f"missing: {stored[:200]}" for stored in unet.values() if stored not in tensors]
        unet = {name: stored for name, stored in unet.items() if stored in tensors}

    def rename(part: Mapping[str, str], rule: Callable[[str], Sequence[str]]) -> tuple[State, dict[str, str]]:
        state: State = {}
        origin: dict[str, str] = {}
        for name, stored in part.items():
            tensor = tensors[stored]
            keys = [key for key in rule(name) if key]
            pieces = tensor.chunk(len(keys)) if len(keys) > 1 and tensor.ndim else (tensor,)
            if not keys:
                problems.append(f"unexpected: {stored[:200]} {tuple(tensor.shape)}")
            for key, piece in zip(keys, pieces, strict=False):
                if key in state:
                    problems.append(f"twice: {stored[:200]} means the same weight as {origin[key][:200]}")
                else:
                    state[key], origin[key] = piece, stored
        return state, origin

    def shapes(part: Mapping[str, str]) -> Shapes:
        return {name: tuple(tensors[stored].shape) for name, stored in part.items()}

    settings = unet_config(shapes(unet))
    made = {"unet": Part(settings, *rename(unet, lambda name: [unet_name(name, settings["layers_per_block"])]))}
    settings = vae_config(shapes(vae))
    state, stored = rename(vae, lambda name: [vae_name(name, len(settings["block_out_channels"]))])
    made["vae"] = Part(settings, {key: _as_linear(key, tensor) for key, tensor in state.items()}, stored)
    open_clip = any(stored.startswith(PREFIXES["text_encoder"][1]) for stored in text.values())
    state, stored = rename(text, open_clip_names if open_clip else lambda name: [clip_name(name)])
    settings = text_config({key: tuple(tensor.shape) for key, tensor in state.items()}, open_clip)
    made["text_encoder"] = Part(settings, state, stored)
    return made, problems


def _sort(tensors: State) -> tuple[dict[str, dict[str, str]], list[str]]:
    """For each network, {name without its prefix: name in the file}; and the names of no network, in words."""
    parts: dict[str, dict[str, str]] = {part: {} for part in PREFIXES}
    if not any(name.startswith(prefixes) for name in tensors for prefixes in PREFIXES.values()):
        for part, mark in BARE.items():
            if mark in tensors:
                parts[part] = {name: name for name in tensors if not NOT_NEEDED.fullmatch(name)}
                return parts, []
    rest = []
    for stored in tensors:
        found = ((part, prefix) for part, prefixes in PREFIXES.items() for prefix in prefixes)
        part, prefix = next((pair for pair in found if stored.startswith(pair[1])), ("", ""))
        if NOT_NEEDED.fullmatch(stored):
            continue
        if part:
            parts[part][stored.removeprefix(prefix)] = stored
        else:
            rest.append(f"unexpected: {stored[:200]} {tuple(tensors[stored].shape)}")
    return parts, rest


def _as_linear(key: str, tensor: Tensor) -> Tensor:
    """A tensor of the autoencoder, in the shape that diffusers' layout has for it.

    The original stores the linear layers of its attention as 1x1 convolutions, with two further dimensions.
    """
    is_linear = ".attentions." in key and set(tensor.shape[2:]) == {1}
    return tensor.flatten(1) if is_linear else tensor
