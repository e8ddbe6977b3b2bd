"""ControlNets that are one file without a config, in the layout in which they were first published or in diffusers'.

The names of the first layout are turned into diffusers', by the U-Net's rules and those below; the config is worked out
from the shapes of the tensors by these.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ddim.checkpoint.lora_layout import LORA
from ddim.checkpoint.original_layout import NOT_NEEDED, SD, Part, State, unet_name
from ddim.checkpoint.original_structure import HEAD_WIDTH, SIZE_WIDTH, UNET_HEADS, Shapes, count, depths_at, size
from ddim.errors import ConfigError

PREFIX = "control_model."  # of all names in the original layout; some files leave it out
# The names by which a ControlNet is told: of its reading of a picture, which nothing else has.
MARKS = ("input_hint_block.", "controlnet_cond_embedding.")
SD_PREFIXES = tuple(prefix for prefixes in SD.prefixes.values() for prefix in prefixes)
# Settings that are the U-Net's too, and that names and shapes do not say.
UNSEEN = ("attention_head_dim", "num_attention_heads", "addition_time_embed_dim", "upcast_attention", "norm_num_groups")
TOLD = {"addition_embed_type": "text_time", "addition_time_embed_dim": SIZE_WIDTH}  # as Stable Diffusion XL is
# What names in files of other kinds begin with -> what these hold, and what loads them if anything does.
OTHERS = {
    r"(.*\.)?lllite_": "ControlNet-LLLite, which is another kind of network",
    r"(control_add_embedding|task_embedding|transformer_layes)\b": "a ControlNet Union, another kind of network",
    r"(.*\.)?motion_modules\.": "SparseCtrl, a ControlNet for videos",
    r"ip_adapter\.|image_proj\.": "an IP-Adapter",
    r"(adapter\.)?body\.\d": "a T2I-Adapter",
    r"(.*\.)?(single_transformer_blocks|double_blocks|controlnet_x_embedder|controlnet_blocks)\b": (
        "a ControlNet for a transformer, such as Stable Diffusion 3 or Flux"
    ),
}
# The same, of names that files with a ControlNet may have as well.
OTHERS_BESIDE = {
    r"model\.diffusion_model\.|output_blocks\.|up_blocks\.": (
        "a U-Net, and no ControlNet: from_single_file of a pipeline loads a whole Stable Diffusion in one file"
    ),
    r"first_stage_model\.|(en|de)coder\.": "an autoencoder",
}


def refuse_others(names: State, file: Path) -> None:
    """Raise a ConfigError that says what a file holds, if its names tell that it is no ControlNet of these layouts."""
    is_control = any(name.removeprefix(PREFIX).startswith(MARKS) for name in names)
    if any(LORA.search(name) for name in names):
        is_control = is_control or "lora_controlnet" in names
        what: str | None = "a LoRA, which load_lora_weights of a pipeline loads, and --lora on the command line"
        if is_control:
            what = "a Control-LoRA, a ControlNet's difference from a U-Net: get the file of the ControlNet itself"
    elif "difference" in names:
        what = "a ControlNet's difference from Stable Diffusion's weights: get the file of the ControlNet itself"
    else:
        kinds = OTHERS if is_control else OTHERS | OTHERS_BESIDE
        what = next((kind for pattern, kind in kinds.items() if any(re.match(pattern, name) for name in names)), None)
    if what is not None:
        raise ConfigError(f"{file} is {what}")


def control_name(name: str, layers: int, last_hint: int) -> str:
    """The name in diffusers' layout of a weight or bias of the original ControlNet; "" if it is unknown.

    Args:
        name: the original name, without `control_model.` in front.
        layers: residual blocks at each level.
        last_hint: the number of the last convolution that reads the picture. Between two there is an activation, which
            has a number too.

    >>> control_name("input_hint_block.4.weight", layers=2, last_hint=14)
    'controlnet_cond_embedding.blocks.1.weight'
    >>> control_name("zero_convs.3.0.bias", layers=2, last_hint=14)
    'controlnet_down_blocks.3.bias'
    """
    stem, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"input_hint_block\.(\d{1,4})", stem):
        number = int(match[1])
        ends = {0: "conv_in", last_hint: "conv_out"}
        if number % 2:
            return ""
        return f"controlnet_cond_embedding.{ends.get(number, f'blocks.{number // 2 - 1}')}.{kind}"
    if match := re.fullmatch(r"zero_convs\.(\d{1,4})\.0", stem):
        return f"controlnet_down_blocks.{int(match[1])}.{kind}"
    if stem == "middle_block_out.0":
        return f"controlnet_mid_block.{kind}"
    return "" if stem.startswith("out") else unet_name(name, layers)


def convert_control(tensors: State) -> tuple[Part, list[str]]:
    """Turn a file's tensors into a ControlNet's config and weights. No values are copied.

    Args:
        tensors: the file's tensors by their names, of any type and on any device. If the file holds the model beside
            the ControlNet, as the first ones do, that model is left out.

    Returns:
        The network; and what is wrong with the names, each in words.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
    beside = [name for name in tensors if not name.startswith(prefix)]
    problems = [
        _unexpected(name, tensors[name])
        for name in beside
        if not name.startswith(SD_PREFIXES) and not NOT_NEEDED.fullmatch(name)
    ]
    names = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    names = {name: stored for name, stored in names.items() if not NOT_NEEDED.fullmatch(name)}
    is_original = any(name.startswith(("input_hint_block.", "input_blocks.", "time_embed.")) for name in names)
    state: State = {}
    origin: dict[str, str] = {}
    if is_original:
        shapes: Shapes = dict.fromkeys(names, ())
        levels = count(shapes, r"input_blocks\.(\d{1,4})\.0\.op\.") + 1
        layers = max(1, count(shapes, r"input_blocks\.(\d{1,4})\.") // levels - 1)
        hints = [int(match[1]) for name in names if (match := re.match(r"input_hint_block\.(\d{1,4})\.", name))]
    for name, stored in names.items():
        key = control_name(name, layers, max(hints, default=14)) if is_original else name
        if not key:
            problems.append(_unexpected(stored, tensors[stored]))
        elif key in state:
            problems.append(f"twice: {stored[:200]} means the same weight as {origin[key][:200]}")
        else:
            state[key], origin[key] = tensors[stored], stored
    config = control_config({key: tuple(tensor.shape) for key, tensor in state.items()})
    return Part(config, state, origin), problems


def control_config(shapes: Shapes) -> dict[str, Any]:
    """The config of a ControlNet, as far as its tensors' shapes, by their names in diffusers' layout, say it.

    What they do not say is as the published models have it, and the picture's channels are in the order RGB.
    """
    levels = max(1, count(shapes, r"down_blocks\.(\d{1,4})\."))
    width = size(shapes, "conv_in.weight", 0, 320)
    starts = [f"down_blocks.{level}" for level in range(levels)]
    widths = [size(shapes, f"{start}.resnets.0.conv2.weight", 0, width) for start in starts]
    attends = [any(name.startswith(f"{start}.attentions.") for name in shapes) for start in starts]
    has_middle = any(name.startswith("mid_block.attentions.") for name in shapes)
    told = size(shapes, "add_embedding.linear_1.weight", 1, 0)
    projections = [shape for name, shape in shapes.items() if name.endswith(".proj_in.weight")]
    linear = any(len(shape) == 2 for shape in projections) if projections else told > 0
    texts = (shape[1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight") and len(shape) == 2)
    reading = "controlnet_cond_embedding"
    blocks = count(shapes, rf"{reading}\.blocks\.(\d{{1,4}})\.")
    first = size(shapes, f"{reading}.conv_in.weight", 0, 16)

    layers = max(1, count(shapes, r"down_blocks\.0\.resnets\.(\d{1,4})\."))
    depths = depths_at(shapes, ([f"{start}.attentions.{number}" for number in range(layers)] for start in starts))
    depths[-1] = depths[-1] or depths_at(shapes, [["mid_block.attentions.0"]])[0]  # as the config says it there
    depths = [depth or 1 for depth in depths]
    return {
        "in_channels": size(shapes, "conv_in.weight", 1, 4),
        "conditioning_channels": size(shapes, f"{reading}.conv_in.weight", 1, 3),
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if has_middle else "UNetMidBlock2D",
        "layers_per_block": layers,
        "transformer_layers_per_block": 1 if all(depth == 1 for depth in depths) else depths,
        "cross_attention_dim": next(texts, 2048 if told else 768),
        "attention_head_dim": [max(1, channels // HEAD_WIDTH) for channels in widths] if linear else UNET_HEADS,
        "use_linear_projection": linear,
        "conditioning_embedding_out_channels": [
            first,
            *(size(shapes, f"{reading}.blocks.{block}.weight", 0, first) for block in range(1, blocks, 2)),
        ],
        **({"projection_class_embeddings_input_dim": told} | TOLD if told else {}),
    }


def _unexpected(name: str, tensor: Tensor) -> str:
    return f"unexpected: {name[:200]} {tuple(tensor.shape)}"
