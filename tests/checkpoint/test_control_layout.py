"""ControlNets that are one file, in either layout: full sizes by names and shapes, tiny ones to the bit, and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import original
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddim.checkpoint.control_layout import convert_control
from ddim.checkpoint.loading import skeleton
from ddim.checkpoint.original_layout import State
from ddim.errors import CheckpointError, ConfigError, DDIMError, WeightsError
from ddim.models import ControlNetModel
from ddim.pipelines import StableDiffusionPipeline

torch.set_num_threads(1)

XL_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": XL_BLOCKS,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# The published ones: what their configs in diffusers' layout say.
PUBLISHED: dict[str, dict[str, Any]] = {
    "1": {"cross_attention_dim": 768},
    "2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "XL": XL,
    "XL, mid": {**XL, "transformer_layers_per_block": 1},
    "XL, small": {**XL, "transformer_layers_per_block": 1, "down_block_types": ("DownBlock2D",) * 3}
    | {"mid_block_type": "UNetMidBlock2D"},
}
ORIGINAL: dict[str, dict[str, Any]] = {
    "1": {**original.FULL, "context": 768, "linear": False},
    "2": {**original.FULL, "context": 1024, "linear": True},
    "XL": {**original.FULL_XL, "linear": True},
}
TINY_ORIGINAL: dict[str, dict[str, Any]] = {
    "1": {**original.TINY, "context": 24, "linear": False},
    "2": {**original.TINY, "context": 24, "linear": True},
    "XL": {**original.TINY_XL, "linear": True},
}


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def on_meta(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> State:
    return {f"{prefix}{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("family", ORIGINAL)
@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_every_name_of_the_full_models(family: str, prefix: str) -> None:
    part, problems = convert_control(on_meta(dict(original.control(**ORIGINAL[family])), prefix))
    assert problems == []
    with torch.device("meta"):
        theirs = diffusers.ControlNetModel(**PUBLISHED[family])
    with skeleton():
        ours = ControlNetModel(**part.config)
    found = {key: tuple(tensor.shape) for key, tensor in part.state.items()}
    assert found == shapes_of(theirs) == shapes_of(ours)
    for name, value in PUBLISHED[family].items():
        assert _plain(part.config.get(name, ours.config[name])) == _plain(value), name


@pytest.mark.parametrize("family", PUBLISHED)
def test_every_name_of_the_full_models_in_diffusers_layout(family: str) -> None:
    with torch.device("meta"):
        theirs = diffusers.ControlNetModel(**PUBLISHED[family])
    part, problems = convert_control(on_meta(shapes_of(theirs)))
    assert problems == []
    assert {key: tuple(tensor.shape) for key, tensor in part.state.items()} == shapes_of(theirs)
    with skeleton():
        ours = ControlNetModel(**part.config)
    assert shapes_of(ours) == shapes_of(theirs)
    for name in (*PUBLISHED[family], "conditioning_embedding_out_channels", "layers_per_block", "in_channels"):
        assert _plain(ours.config[name]) == _plain(theirs.config[name]), name


def _plain(value: Any) -> Any:
    """A setting as the config may say it: a list of the same means the one."""
    return list(value) if isinstance(value, (list, tuple)) else value


def tiny(family: str, prefix: str = "control_model.") -> State:
    named = {f"{prefix}{name}": shape for name, shape in original.control(**TINY_ORIGINAL[family], hint=(8, 16))}
    return original.tensors(named)


@pytest.fixture
def tiny_file(tmp_path: Path) -> Callable[[State], Path]:
    def write(tensors: State, name: str = "control_v11p_sd15_canny_fp16") -> Path:
        save_file(tensors, tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return write


@pytest.mark.parametrize("family", TINY_ORIGINAL)
@pytest.mark.parametrize("beside", [False, True])
def test_tensors_arrive_bit_for_bit(family: str, beside: bool, tiny_file: Any) -> None:
    """Also where the file has the model beside the ControlNet, as the first ones."""
    tensors = tiny(family)
    network = ControlNetModel.from_single_file(
        tiny_file({**tensors, **(original.tensors(original.shapes(1)) if beside else {})})
    )
    assert not network.training
    state = network.state_dict()
    part, _ = convert_control(tensors)
    assert state.keys() == part.state.keys()
    assert len(part.state) == len(tensors)
    for key, stored in part.stored.items():
        assert torch.equal(state[key], tensors[stored])


def test_the_names_mean_what_diffusers_reads_in_them(tiny_file: Any, tmp_path: Path) -> None:
    """diffusers takes its config from a folder."""
    for prefix in ("control_model.", ""):
        named = dict(original.control(**{**TINY_ORIGINAL["1"], "width": 32}))
        tensors = original.tensors({f"{prefix}{name}": shape for name, shape in named.items()})
        path = tiny_file(tensors)
        ours = ControlNetModel.from_single_file(path)
        ours.save_config(tmp_path / "config")
        theirs = diffusers.ControlNetModel.from_single_file(str(path), config=str(tmp_path / "config"))
        other = theirs.state_dict()
        assert ours.state_dict().keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in ours.state_dict().items())


def test_diffusers_layout_other_types_and_settings(tiny_file: Any, tmp_path: Path) -> None:
    network = ControlNetModel.from_single_file(tiny_file(tiny("XL")), addition_time_embed_dim=8)
    assert network.config["addition_time_embed_dim"] == 8
    network.save_pretrained(tmp_path / "folder")
    renamed = (tmp_path / "folder/diffusion_pytorch_model.safetensors").rename(tmp_path / "canny.safetensors")
    again = ControlNetModel.from_single_file(renamed, dtype=torch.bfloat16)
    assert all(torch.equal(again.state_dict()[k], v.bfloat16()) for k, v in network.state_dict().items())
    assert again.dtype == torch.bfloat16
    assert again.config["addition_time_embed_dim"] == 256  # the published one
    like = ControlNetModel.from_single_file(renamed, torch_dtype=torch.float16, like=network.config)
    assert like.config["addition_time_embed_dim"] == 8
    assert like.dtype == torch.float16
    other = ControlNetModel.from_single_file(renamed, like={**network.config, "block_out_channels": (1, 2)})
    assert other.config["addition_time_embed_dim"] == 256
    with pytest.raises(TypeError, match="are not needed"):
        ControlNetModel.from_single_file(renamed, config="folder")
    with pytest.raises(TypeError, match="has no argument nonsense"):
        ControlNetModel.from_single_file(renamed, nonsense=1)
    with pytest.raises(CheckpointError, match="from_single_file loads a file alone"):
        ControlNetModel.from_pretrained(renamed)


def test_the_shuffle_controlnet_pools(tiny_file: Any) -> None:
    path = tiny_file(tiny("1"), "control_v11e_sd15_shuffle")
    assert ControlNetModel.from_single_file(path).config["global_pool_conditions"]
    assert not ControlNetModel.from_single_file(path, global_pool_conditions=False).config["global_pool_conditions"]
    assert not ControlNetModel.from_single_file(tiny_file(tiny("1"))).config["global_pool_conditions"]


def without(*names: str) -> State:
    return {name: tensor for name, tensor in tiny("1").items() if not any(part in name for part in names)}


def plus(*names: str, **tensors: Tensor) -> State:
    return {**tiny("1"), **{name: torch.zeros(1) for name in names}, **tensors}


def reshaped(name: str, *shape: int) -> State:
    tensors = tiny("1")
    return {**tensors, name: torch.zeros(shape)} if name in tensors else {}


C = "control_model."
HOSTILE: dict[str, tuple[Callable[[], State], type[DDIMError], str]] = {
    "a whole model": (lambda: original.tensors(original.shapes(1)), ConfigError, "is a U-Net, and no ControlNet"),
    "a U-Net": (
        lambda: original.tensors(dict(original.unet(**TINY_ORIGINAL["1"], channels=4))),
        ConfigError,
        "is a U-Net",
    ),
    "a U-Net in diffusers' layout": (
        lambda: {"conv_in.weight": torch.zeros(1), "up_blocks.0.resnets.0.conv1.bias": torch.zeros(1)},
        ConfigError,
        "is a U-Net",
    ),
    "an autoencoder": (lambda: original.tensors(dict(original.vae(**original.TINY_VAE))), ConfigError, "autoencoder"),
    "a LoRA": (
        lambda: {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(1, 2)},
        ConfigError,
        "is a LoRA, which load_lora_weights",
    ),
    "a Control-LoRA": (
        lambda: {"lora_controlnet": torch.zeros(0), "input_blocks.1.0.in_layers.2.up": torch.zeros(1)},
        ConfigError,
        "is a Control-LoRA",
    ),
    "differences": (lambda: plus("difference"), ConfigError, "difference from Stable Diffusion's weights"),
    "LLLite": (lambda: {"lllite_unet_x.down.0.weight": torch.zeros(1)}, ConfigError, "LLLite"),
    "a Union": (lambda: plus("control_add_embedding.linear_1.weight"), ConfigError, "ControlNet Union"),
    "a T2I-Adapter": (lambda: {"adapter.body.0.in_conv.weight": torch.zeros(1)}, ConfigError, "T2I-Adapter"),
    "Flux's": (lambda: {"controlnet_x_embedder.weight": torch.zeros(1)}, ConfigError, "a transformer"),
    "of nothing": (lambda: {"x": torch.zeros(1)}, WeightsError, "is no ControlNet"),
    "without its reading": (lambda: without("input_hint_block"), WeightsError, "missing: controlnet_cond_embedding"),
    "without a zero convolution": (
        lambda: without("zero_convs.1."),
        WeightsError,
        r"missing: controlnet_down_blocks.1.weight \(32, 32, 1, 1\)",
    ),
    "without the middle's end": (lambda: without("middle_block_out"), WeightsError, "missing: controlnet_mid_block"),
    "without the middle": (lambda: without("middle_block."), WeightsError, "missing: mid_block"),
    "without the way down": (lambda: without("input_blocks."), WeightsError, "missing: conv_in"),
    "without the times": (lambda: without("time_embed."), WeightsError, "missing: time_embedding"),
    "more": (lambda: plus(f"{C}x.weight", "y"), WeightsError, rf"unexpected: {C}x\.weight"),
    "a way up": (lambda: plus(f"{C}out.2.weight"), WeightsError, rf"unexpected: {C}out\.2\.weight"),
    "an activation's number": (lambda: plus(f"{C}input_hint_block.1.weight"), WeightsError, "unexpected"),
    "a wrong shape": (lambda: reshaped(f"{C}zero_convs.0.0.weight", 3, 3, 1, 1), WeightsError, "wrong shape"),
    "no dimension": (lambda: reshaped(f"{C}input_blocks.0.0.weight"), DDIMError, ""),
    "no dimension in the reading": (lambda: reshaped(f"{C}input_hint_block.0.weight"), DDIMError, ""),
    "no channels": (lambda: reshaped(f"{C}input_blocks.0.0.weight", 0, 4, 3, 3), DDIMError, ""),
    "a huge width": (lambda: reshaped(f"{C}input_hint_block.0.weight", 99999, 3, 1, 1), DDIMError, ""),
    "many levels": (
        lambda: plus(*(f"{C}input_blocks.{level}.0.op.weight" for level in range(900))),
        DDIMError,
        "",
    ),
    "whole numbers": (
        lambda: {**tiny("1"), f"{C}zero_convs.0.0.weight": torch.zeros(32, 32, 1, 1, dtype=torch.int64)},
        WeightsError,
        "wrong type",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_is_one_clear_error(case: str, tiny_file: Any) -> None:
    make, kind, words = HOSTILE[case]
    path = tiny_file(make(), "x")
    with pytest.raises(kind, match=words or None) as caught:
        ControlNetModel.from_single_file(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 100_000


def test_files_that_are_none(tmp_path: Path) -> None:
    for name in ("control_sd15_canny.pth", "x.ckpt", "x.bin"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CheckpointError, match="is a pickle"):
            ControlNetModel.from_single_file(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a folder"):
        ControlNetModel.from_single_file(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        ControlNetModel.from_single_file(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="there is no file"):
        ControlNetModel.from_single_file(tmp_path / "y.safetensors")


def test_a_pipeline_says_how_it_is_loaded(tiny_file: Any, tmp_path: Path) -> None:
    path = tiny_file(tiny("1"), "x")
    ControlNetModel.from_single_file(path).save_pretrained(tmp_path / "folder")
    for file in (path, tmp_path / "folder/diffusion_pytorch_model.safetensors"):
        assert load_file(file)
        with pytest.raises(WeightsError, match=r"ControlNetModel\.from_single_file loads"):
            StableDiffusionPipeline.from_single_file(file, tokenizer=object())
