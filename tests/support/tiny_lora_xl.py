"""The names of adapters for the tiny Stable Diffusion XL of `tiny_xl` in every layout, written out by hand."""

from __future__ import annotations

from tiny_lora import OLDEST, RESNET

# The tiny U-Net's blocks by their names in the original layout: one residual block a level on the way down.
BLOCKS = {
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
DOTTED_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
assert {key: name.replace(".", "_") for key, name in DOTTED_RESNET.items()} == RESNET
TEXT = {"text_encoder": "te1", "text_encoder_2": "te2"}
OPENED = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def original(layer: str) -> str:
    """A layer of the U-Net by its name in the original layout."""
    block = next(block for block in BLOCKS if layer == block or layer.startswith(f"{block}."))
    rest = layer.removeprefix(block).removeprefix(".")
    rest = DOTTED_RESNET[rest] if "resnets" in block else rest
    return f"{BLOCKS[block]}.{rest}" if rest else BLOCKS[block]


def kohya(part: str, layer: str, way: str) -> str:
    """With the names that diffusers gives the U-Net's blocks."""
    return f"lora_{TEXT.get(part, 'unet')}_{layer.replace('.', '_')}.lora_{way}.weight"


def kohya_original(part: str, layer: str, way: str) -> str:
    """As kohya's scripts write what they train: with the names that the original layout gives the U-Net's blocks."""
    return kohya(part, original(layer) if part == "unet" else layer, way)


def lycoris(part: str, layer: str, way: str) -> str:
    return kohya_original(part, layer, way).replace("lora_unet_", "lycoris_")


def comfy(part: str, layer: str, way: str) -> str:
    if part == "unet":
        return f"diffusion_model.{original(layer)}.lora_{way}.weight"
    return f"text_encoders.{OPENED[part]}.transformer.{layer}.lora_{way}.weight"


def comfy_peft(part: str, layer: str, way: str) -> str:
    letter = "A" if way == "down" else "B"
    if part == "unet":
        return f"model.diffusion_model.{original(layer)}.lora_{letter}.weight"
    return f"{OPENED[part]}.transformer.{layer}.lora_{letter}.weight"


def one_trainer(part: str, layer: str, way: str) -> str:
    return f"{f'unet.{original(layer)}' if part == 'unet' else f'{OPENED[part]}.{layer}'}.lora_{way}.weight"


def oldest(part: str, layer: str, way: str) -> str:
    """For attention layers alone."""
    stem, leaf = layer.removesuffix(".to_out.0").rpartition(".")[::2]
    if layer.endswith(".to_out.0"):
        stem, leaf = layer.removesuffix(".to_out.0"), "to_out"
    processor = ".processor" if part == "unet" else ""
    return f"{part}.{stem}{processor}.{OLDEST.get(leaf, leaf)}_lora.{way}.weight"
