"""The configs of networks in the original layout, worked out from the names and shapes of their tensors.

Three things cannot be seen in these. For the number of heads and the widths of what describes a picture's size, the
values of the published models are taken; what the network predicts is for the caller to know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

# Settings that cannot be seen in names and shapes, as the published models have them.
UNET_HEADS = 8  # heads of every attention layer of Stable Diffusion 1's U-Net
HEAD_WIDTH = 64  # channels of a head in the U-Nets of Stable Diffusion 2 and XL, and in all text encoders
SIZE_WIDTH = 256  # channels that Stable Diffusion XL's U-Net is told each of the numbers by that describe a picture


def numbers_in(shapes: Shapes, pattern: str) -> set[int]:
    """The different numbers that the pattern's group matches, over all names that begin as the pattern says."""
    return {int(match[1]) for match in map(re.compile(pattern).match, shapes) if match}


def count(shapes: Shapes, pattern: str) -> int:
    """How many there are of them."""
    return len(numbers_in(shapes, pattern))


def size(shapes: Shapes, name: str, dimension: int, default: int) -> int:
    """The size of a tensor in one dimension. Where there is no such tensor, the default only has to be possible, since
    the tensor will be reported as missing."""
    shape = shapes.get(name, ())
    return shape[dimension] if dimension < len(shape) else default


def unet_config(shapes: Shapes, numbers: int = 0, pooled: int | None = None) -> dict[str, Any]:
    """The config of a U-Net.

    Args:
        shapes: its tensors' shapes by their original names, without `model.diffusion_model.` in front.
        numbers: how many numbers that describe a picture it is told, if any.
        pooled: the width of the text's summary, which it is told then as well, if that is known.
    """
    levels = count(shapes, r"input_blocks\.(\d{1,4})\.0\.op\.") + 1
    # The first convolution, and on each level the residual blocks and, except on the last level, the resampling `op`.
    blocks = count(shapes, r"input_blocks\.(\d{1,4})\.")
    layers = max(1, blocks // levels - 1)
    starts = [f"input_blocks.{1 + level * (layers + 1)}" for level in range(levels)]
    width = size(shapes, "input_blocks.0.0.weight", 0, 320)
    widths = [size(shapes, f"{start}.0.out_layers.3.weight", 0, width) for start in starts]
    attends = [f"{start}.1.norm.weight" in shapes for start in starts]
    projections = [shape for name, shape in shapes.items() if name.endswith(".1.proj_in.weight")]
    linear = any(len(shape) == 2 for shape in projections)
    looks_at = (name for name in shapes if name.endswith(".attn2.to_k.weight"))
    return {
        "in_channels": size(shapes, "input_blocks.0.0.weight", 1, 4),
        "out_channels": size(shapes, "out.2.weight", 0, 4),
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "layers_per_block": layers,
        "cross_attention_dim": size(shapes, next(looks_at, ""), 1, 768),
        "attention_head_dim": [max(1, channels // HEAD_WIDTH) for channels in widths] if linear else UNET_HEADS,
        "use_linear_projection": linear,
        "mid_block_type": _middle(shapes),
        **_depths(shapes, levels, layers),
        **(_told(shapes, numbers, pooled) if numbers else {}),
    }


def _middle(shapes: Shapes) -> str | None:
    """The block between the two ways: with a transformer and residual blocks around it, one of these alone, or none."""
    if any(name.startswith(("middle_block.1.", "middle_block.2.")) for name in shapes):
        return "UNetMidBlock2DCrossAttn"
    return "UNetMidBlock2D" if any(name.startswith("middle_block.0.") for name in shapes) else None


def _depths(shapes: Shapes, levels: int, layers: int) -> dict[str, Any]:
    """The settings of how many blocks transformers have: nothing, where each has one.

    Args:
        levels: how many resolutions there are.
        layers: residual blocks at each of them on the way down.
    """
    downwards, upwards = (
        depths_at(
            shapes,
            (
                [f"{way}_blocks.{first + level * (layers + 1) + number}.1" for number in range(layers + 1 - first)]
                for level in range(levels)
            ),
        )
        for way, first in (("input", 1), ("output", 0))
    )
    (middle,) = depths_at(shapes, [["middle_block.1"]])
    if middle and not downwards[-1]:
        downwards[-1] = middle  # as that is where the config says it
    upwards = [own or other for own, other in zip(upwards, reversed(downwards), strict=True)]
    if upwards != downwards[::-1] or any(isinstance(depth, list) for depth in downwards):
        return {
            "transformer_layers_per_block": [depth or 1 for depth in downwards],
            "reverse_transformer_layers_per_block": [depth or 1 for depth in upwards],
        }
    found = {depth for depth in (middle, *downwards) if depth}
    if len(found) <= 1:
        return {} if found <= {1} else {"transformer_layers_per_block": found.pop()}
    return {"transformer_layers_per_block": [depth or 1 for depth in downwards]}


def depths_at(shapes: Shapes, levels: Iterable[list[str]]) -> list[int | list[int]]:
    """How many blocks the transformers have at each level: one number, if all have as many; 0 where there are none.

    Args:
        levels: for each level, how the names in the transformers begin that may be there.
    """
    blocks: dict[str, set[str]] = {}
    for name in shapes:
        start, separator, rest = name.partition(".transformer_blocks.")
        if separator:
            blocks.setdefault(start, set()).add(rest.partition(".")[0])
    found: list[int | list[int]] = []
    for names in levels:
        counts = [len(blocks.get(name, ())) for name in names]
        found.append(counts[0] if len({*counts}) == 1 else counts)
    return found


def _told(shapes: Shapes, numbers: int, pooled: int | None) -> dict[str, Any]:
    """The settings of what a U-Net is told beside the text; the arguments are those of `unet_config`."""
    width = size(shapes, "label_emb.0.0.weight", 1, (pooled or 1280) + numbers * SIZE_WIDTH)
    left = 0 if pooled is None else width - pooled
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": left // numbers if left > 0 and left % numbers == 0 else SIZE_WIDTH,
        "projection_class_embeddings_input_dim": width,
    }


def vae_config(shapes: Shapes, scaling_factor: float) -> dict[str, Any]:
    """The config of an autoencoder.

    Args:
        shapes: its tensors' shapes by their original names, without `first_stage_model.` in front.
        scaling_factor: what its latents are multiplied by.
    """
    levels = max(1, count(shapes, r"encoder\.down\.(\d{1,4})\."))
    width = size(shapes, "encoder.conv_in.weight", 0, 128)
    return {
        "in_channels": size(shapes, "encoder.conv_in.weight", 1, 3),
        "out_channels": size(shapes, "decoder.conv_out.weight", 0, 3),
        "block_out_channels": [
            size(shapes, f"encoder.down.{level}.block.0.conv2.weight", 0, width) for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": max(1, count(shapes, r"encoder\.down\.0\.block\.(\d{1,4})\.")),
        "latent_channels": size(shapes, "decoder.conv_in.weight", 1, 4),
        "scaling_factor": scaling_factor,
    }


def text_config(shapes: Shapes, open_clip: bool) -> dict[str, Any]:
    """The config of a text encoder.

    Args:
        shapes: its tensors' shapes by their names in diffusers' layout.
        open_clip: whether it is OpenCLIP's, which has another activation than CLIP's.
    """
    width = size(shapes, "text_model.embeddings.token_embedding.weight", 1, 768)
    return {
        "vocab_size": size(shapes, "text_model.embeddings.token_embedding.weight", 0, 49408),
        "hidden_size": width,
        "intermediate_size": size(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 0, 4 * width),
        "num_hidden_layers": max(1, count(shapes, r"text_model\.encoder\.layers\.(\d{1,4})\.")),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": size(shapes, "text_model.embeddings.position_embedding.weight", 0, 77),
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "projection_dim": size(shapes, "text_projection.weight", 0, width),
        "bos_token_id": 0,  # this and the next are not the tokenizer's ids, but what the published configs say
        "eos_token_id": 2,
    }
