"""Known adapters for the tiny Stable Diffusion of `tiny_sd`, and their names in every layout, written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

UNET = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
# Of every kind of layer that a U-Net has.
MORE = (*UNET, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut", "time_emb_proj")
EVERY = (*MORE, "conv_in", "conv_out", "linear_1", "linear_2", "conv")

# The tiny U-Net's blocks by their names in the original layout: one residual block a level on the way down.
BLOCKS = {
    "down_blocks.0.resnets.0": "input_blocks_1_0",
    "down_blocks.0.attentions.0": "input_blocks_1_1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_2_0_op",
    "down_blocks.1.resnets.0": "input_blocks_3_0",
    "mid_block.resnets.0": "middle_block_0",
    "mid_block.attentions.0": "middle_block_1",
    "mid_block.resnets.1": "middle_block_2",
    "up_blocks.0.resnets.0": "output_blocks_0_0",
    "up_blocks.0.resnets.1": "output_blocks_1_0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_1_1_conv",
    "up_blocks.1.resnets.0": "output_blocks_2_0",
    "up_blocks.1.attentions.0": "output_blocks_2_1",
    "up_blocks.1.resnets.1": "output_blocks_3_0",
    "up_blocks.1.attentions.1": "output_blocks_3_1",
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
}
DOTTED = {
    "input_blocks_0_0": "input_blocks.0.0",
    "input_blocks_1_0": "input_blocks.1.0",
    "input_blocks_1_1": "input_blocks.1.1",
    "input_blocks_2_0_op": "input_blocks.2.0.op",
    "input_blocks_3_0": "input_blocks.3.0",
    "middle_block_0": "middle_block.0",
    "middle_block_1": "middle_block.1",
    "middle_block_2": "middle_block.2",
    "output_blocks_0_0": "output_blocks.0.0",
    "output_blocks_1_0": "output_blocks.1.0",
    "output_blocks_1_1_conv": "output_blocks.1.1.conv",
    "output_blocks_2_0": "output_blocks.2.0",
    "output_blocks_2_1": "output_blocks.2.1",
    "output_blocks_3_0": "output_blocks.3.0",
    "output_blocks_3_1": "output_blocks.3.1",
    "out_2": "out.2",
    "time_embed_0": "time_embed.0",
    "time_embed_2": "time_embed.2",
}
RESNET = {
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
OLDEST = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out", "to_out.0": "to_out"}


class Pair(NamedTuple):
    """An adapter's two matrices for one layer."""

    down: Tensor
    up: Tensor


Known = dict[str, dict[str, Pair]]  # network -> layer -> matrices
Names = Callable[[str, str, str], str]  # (network, layer, "down" or "up") -> a key


def layers(network: nn.Module, ends: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and f".{name}".endswith(tuple(f".{end}" for end in ends))
    }


def known(pipe: Any, rank: int = 3, unet: tuple[str, ...] = UNET, text: tuple[str, ...] = TEXT, seed: int = 0) -> Known:
    """Random matrices for the layers with these ends of names; strong enough to change a picture."""
    generator = torch.Generator().manual_seed(seed)
    made: Known = {}
    for part, ends in (("unet", unet), ("text_encoder", text), ("text_encoder_2", text)):
        network = getattr(
            pipe, part, None
        )  # Stable Diffusion 1 and 2 have no second text encoder, the refiner no first
        for name, layer in layers(network, ends).items() if ends and network is not None else ():
            out, *rest = layer.weight.shape
            down = torch.randn(rank, *rest, generator=generator) * rest[0] ** -0.5
            up = torch.randn(out, rank, *(1 for _ in rest[1:]), generator=generator) * 0.3
            made.setdefault(part, {})[name] = Pair(down, up)
    return made


def named(adapter: Known, names: Names) -> dict[str, Tensor]:
    """The matrices by the names of a layout."""
    return {
        names(part, layer, way): matrix.clone()
        for part, pairs in adapter.items()
        for layer, pair in pairs.items()
        for way, matrix in pair._asdict().items()
    }


def present(part: str, layer: str, way: str) -> str:
    return f"{part}.{layer}.lora_{'A' if way == 'down' else 'B'}.weight"


def without_text_model(part: str, layer: str, way: str) -> str:
    return present(part, layer.removeprefix("text_model."), way)


def older(part: str, layer: str, way: str) -> str:
    return f"{part}.{layer}.{'lora' if part == 'unet' else 'lora_linear_layer'}.{way}.weight"


def oldest(part: str, layer: str, way: str) -> str:
    """For attention layers alone."""
    stem, leaf = layer.removesuffix(".to_out.0").rpartition(".")[::2]
    if layer.endswith(".to_out.0"):
        stem, leaf = layer.removesuffix(".to_out.0"), "to_out"
    processor = ".processor" if part == "unet" else ""
    return f"{part}.{stem}{processor}.{OLDEST.get(leaf, leaf)}_lora.{way}.weight"


def oldest_without_part(part: str, layer: str, way: str) -> str:
    return oldest(part, layer, way).removeprefix("unet.")


def peft(part: str, layer: str, way: str) -> str:
    return f"base_model.model.{layer}.lora_{'A' if way == 'down' else 'B'}.weight"


def peft_in_training(part: str, layer: str, way: str) -> str:
    return f"base_model.model.{layer}.lora_{'A' if way == 'down' else 'B'}.default.weight"


def kohya(part: str, layer: str, way: str) -> str:
    return f"lora_{'unet' if part == 'unet' else 'te'}_{layer.replace('.', '_')}.lora_{way}.weight"


def kohya_original(part: str, layer: str, way: str) -> str:
    """With the original layout's names for the U-Net's blocks."""
    if part != "unet":
        return kohya(part, layer, way).replace("lora_te_", "lora_te1_")
    block = next(block for block in BLOCKS if layer == block or layer.startswith(f"{block}."))
    rest = layer.removeprefix(block).removeprefix(".")
    rest = RESNET[rest] if "resnets" in block else rest.replace(".", "_")
    return f"lora_unet_{BLOCKS[block]}{'_' if rest else ''}{rest}.lora_{way}.weight"


def _original(layer: str) -> str:
    """A layer's name in the original layout, with dots."""
    block = next(block for block in BLOCKS if layer == block or layer.startswith(f"{block}."))
    rest = layer.removeprefix(block).removeprefix(".")
    if "resnets" in block:
        rest = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3"}.get(
            rest, "skip_connection"
        )
    start = DOTTED[BLOCKS[block]]
    return f"{start}.{rest}" if rest else start


def comfy(part: str, layer: str, way: str) -> str:
    """As ComfyUI names layers: by the names of its own networks, which are the original ones."""
    if part == "unet":
        return f"diffusion_model.{_original(layer)}.lora_{way}.weight"
    return f"text_encoders.clip_l.transformer.{layer}.lora_{way}.weight"


def comfy_peft(part: str, layer: str, way: str) -> str:
    """The same with peft's names for the matrices, and with the whole file's prefixes."""
    letter = "A" if way == "down" else "B"
    if part == "unet":
        return f"model.diffusion_model.{_original(layer)}.lora_{letter}.weight"
    return f"text_encoders.clip_h.transformer.{layer}.lora_{letter}.weight"


def one_trainer(part: str, layer: str, way: str) -> str:
    """With one dotted prefix a network, and the original names."""
    name = f"unet.{_original(layer)}" if part == "unet" else f"clip_l.{layer}"
    return f"{name}.lora_{way}.weight"


def with_alphas(tensors: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """kohya's: an α for each layer."""
    names = {key.partition(".lora_")[0] for key in tensors}
    return {**tensors, **{f"{name}.alpha": torch.tensor(alpha) for name in sorted(names)}}


def scaled(adapter: Known, factor: float) -> Known:
    """What the same matrices are with another α/r."""
    return {
        part: {layer: Pair(pair.down, pair.up * factor) for layer, pair in pairs.items()}
        for part, pairs in adapter.items()
    }
