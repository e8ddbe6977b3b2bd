"""The layout in which Stable Diffusion 1, 2 and XL were first published: one file, with other names and no configs.

The rules below turn its names into those of diffusers' layout; docs/single-file.md shows them as tables. The configs
are worked out by `original_structure`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ddim.checkpoint.original_structure import Shapes, text_config, unet_config, vae_config
from ddim.checkpoint.predicted import V_PREDICTION_MARK, ZERO_SNR_MARK

State = dict[str, Tensor]

TEXT_LAYERS = 23  # Stable Diffusion 2 reads the last but one of OpenCLIP's 24 layers, so the last one is not loaded

# Tensors that are not loaded: the noise schedule, averages, losses, the layers by which CLIP compares texts with
# images (but Stable Diffusion XL's U-Net is told what its second text encoder would compare), and the notes that
# `predicted` reads.
NOT_NEEDED = re.compile(
    r"betas|(sqrt_)?alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_recip(m1)?_alphas_cumprod"
    r"|posterior_\w+|lvlb_weights|logvar|scale_factor|global_step|denoiser\.sigmas"
    rf"|{V_PREDICTION_MARK}|{ZERO_SNR_MARK}"
    r"|(first_stage_model\.)?(loss|model_ema)\..*"
    r"|cond_stage_model\.(transformer\.|model\.)?(text_projection(\.weight)?|logit_scale|attn_mask)"
    r"|conditioner\.embedders\.\d\.(transformer|model)\.(logit_scale|attn_mask)"
    r"|conditioner\.embedders\.\d\.transformer\.text_projection(\.weight)?"
    r"|(cond_stage_model|conditioner\.embedders\.\d)\.(\w+\.)*embeddings\.position_ids"
    rf"|cond_stage_model\.model\.transformer\.resblocks\.{TEXT_LAYERS}\..*"
)


# --- names -----------------------------------------------------------------------------------------------------------

# In each table: the original name -> the name in diffusers' layout.
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
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
# OpenCLIP's last layer: a matrix by which rows are multiplied, or, as some programs write it, a linear layer's weight.
TEXT_PROJECTIONS = ("text_projection", "text_projection.weight")


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
        name: the original name, without `cond_stage_model.model.` and the like in front.

    >>> open_clip_names("transformer.resblocks.7.attn.in_proj_bias")[1]
    'text_model.encoder.layers.7.self_attn.k_proj.bias'
    """
    if name in TEXT_PROJECTIONS:
        return ("text_projection.weight",)
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


# --- whole files -----------------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """The models whose files have the same parts.

    Attributes:
        name: what they are called, in errors.
        prefixes: how the names of each network's tensors may begin; the networks by their names in a pipeline.
        size_numbers: how many numbers the U-Net is told that describe a picture.
        scaling_factor: of the autoencoder.
    """

    name: str
    prefixes: dict[str, tuple[str, ...]]
    size_numbers: int = 0
    scaling_factor: float = 0.18215


_IMAGES = {"unet": ("model.diffusion_model.",), "vae": ("first_stage_model.",)}
_OPEN_CLIP_END = ".model."  # of the prefixes of OpenCLIP's text encoders
SD = Family(
    "Stable Diffusion 1 or 2",
    {**_IMAGES, "text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model.")},
)
XL = Family(
    "Stable Diffusion XL",
    {
        **_IMAGES,
        "text_encoder": ("conditioner.embedders.0.transformer.",),
        "text_encoder_2": ("conditioner.embedders.1.model.",),
    },
    size_numbers=6,  # the size it had, where it was cropped, and the size it shall have
    scaling_factor=0.13025,
)
XL_REFINER = Family(
    "Stable Diffusion XL's refiner",
    {**_IMAGES, "text_encoder_2": ("conditioner.embedders.0.model.",)},
    size_numbers=5,  # a score of beauty in the place of the size that it shall have
    scaling_factor=0.13025,
)
# A name by which a file is recognised that holds one network alone, whose names have no prefix.
BARE = {"unet": "input_blocks.0.0.weight", "vae": "encoder.conv_in.weight"}


def family_of(tensors: Mapping[str, Tensor]) -> Family:
    """The family of a file, by the names in it; of a U-Net alone also by the width of the text that it looks at."""
    if any(name.startswith("conditioner.embedders.") for name in tensors):
        is_refiner = any(name.startswith(XL_REFINER.prefixes["text_encoder_2"]) for name in tensors)
        return XL_REFINER if is_refiner else XL
    prefix = "" if BARE["unet"] in tensors else _IMAGES["unet"][0]
    of_others = ("cond_stage_model.", "embedder.", "noise_augmentor.")  # of unCLIP, which is told of pictures
    if f"{prefix}label_emb.0.0.weight" not in tensors or any(name.startswith(of_others) for name in tensors):
        return SD
    looks_at = tensors.get(f"{prefix}middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    return XL_REFINER if looks_at is not None and tuple(looks_at.shape[1:]) == (1280,) else XL


class Part(NamedTuple):
    """One network of a file."""

    config: dict[str, Any]
    state: State  # its tensors, by their names in diffusers' layout
    stored: dict[str, str]  # the name in diffusers' layout -> the name in the file


def convert(tensors: State, use_ema: bool = False, family: Family | None = None) -> tuple[dict[str, Part], list[str]]:
    """Turn a file's tensors into networks' configs and weights. No values are copied.

    Args:
        tensors: the file's tensors by their names, of any type and on any device.
        use_ema: take the averages of the U-Net's weights that the file holds, in place of the weights.
        family: of the file; told by its names unless given.

    Returns:
        The networks of the file's family by their names in a pipeline: "unet", "vae", and those of "text_encoder" and
        "text_encoder_2" that it has; and what is wrong with the names, each in words.
    """
    family = family_of(tensors) if family is None else family
    names, problems = _sort(tensors, family)
    unet, vae = names["unet"], names["vae"]
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

    made: dict[str, Part] = {}
    for name in [name for name in names if name.startswith("text_encoder")]:
        open_clip = any(stored.startswith(family.prefixes[name][-1]) for stored in names[name].values())
        open_clip = open_clip and family.prefixes[name][-1].endswith(_OPEN_CLIP_END)
        state, stored = rename(names[name], open_clip_names if open_clip else lambda name: [clip_name(name)])
        key = "text_projection.weight"
        if stored.get(key, "").endswith("text_projection") and state[key].ndim == 2:
            state[key] = state[key].T
        settings = text_config({key: tuple(tensor.shape) for key, tensor in state.items()}, open_clip)
        made[name] = Part(settings, state, stored)
    pooled = made[name].config["projection_dim"] if (name := "text_encoder_2") in made and made[name].state else None
    settings = unet_config(shapes(unet), family.size_numbers, pooled)
    layers = settings["layers_per_block"]
    images = {"unet": Part(settings, *rename(unet, lambda name: [unet_name(name, layers)]))}
    settings = vae_config(shapes(vae), family.scaling_factor)
    levels = len(settings["block_out_channels"])
    state, stored = rename(vae, lambda name: [vae_name(name, levels)])
    images["vae"] = Part(settings, {key: _as_linear(key, tensor) for key, tensor in state.items()}, stored)
    return {**images, **made}, problems


def _sort(tensors: State, family: Family) -> tuple[dict[str, dict[str, str]], list[str]]:
    """For each network, {name without its prefix: name in the file}; and the names of no network, in words."""
    parts: dict[str, dict[str, str]] = {part: {} for part in family.prefixes}
    if not any(name.startswith(prefixes) for name in tensors for prefixes in family.prefixes.values()):
        for part, mark in BARE.items():
            if mark in tensors:
                parts[part] = {name: name for name in tensors if not NOT_NEEDED.fullmatch(name)}
                return parts, []
    rest = []
    for stored in tensors:
        found = ((part, prefix) for part, prefixes in family.prefixes.items() for prefix in prefixes)
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
