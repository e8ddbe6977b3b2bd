"""ControlNets: the same numbers as diffusers', their files both ways, and errors that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddim.checkpoint.loading import skeleton
from ddim.errors import CheckpointError, ConfigError, DDIMError, WeightsError
from ddim.models import ControlNetModel, UNet2DConditionModel
from ddim.models.blocks import DownBlock2D

torch.set_num_threads(1)

# Two resolutions each, and what is particular to the published ControlNets of the family.
COMMON: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "conditioning_embedding_out_channels": (4, 8),
}
FAMILIES: dict[str, dict[str, Any]] = {
    "SD 1": {"attention_head_dim": 4},
    "SD 2": {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
    "SD XL": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    },
    "classes, pooled, bgr": {
        "num_class_embeds": 3,
        "global_pool_conditions": True,
        "controlnet_conditioning_channel_order": "bgr",
    },
    "heads": {"num_attention_heads": (2, 4), "attention_head_dim": 8, "mid_block_type": "UNetMidBlock2D"},
    "other norms": {
        "resnet_time_scale_shift": "scale_shift",
        "only_cross_attention": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "conditioning_channels": 1,
        "conditioning_embedding_out_channels": (4,),
        "mid_block_scale_factor": 2.0,
    },
    "vectors": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 5},
}


def theirs(family: str) -> Any:
    """diffusers' network with weights everywhere, also where a new one has zeros."""
    torch.manual_seed(0)
    network = diffusers.ControlNetModel(**{**COMMON, **FAMILIES[family]}).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def ours(family: str, reference: Any) -> ControlNetModel:
    network = ControlNetModel(**{**COMMON, **FAMILIES[family]}).eval()
    network.load_state_dict(reference.state_dict())
    return network


def inputs(network: Any, batch: int = 2) -> dict[str, Any]:
    torch.manual_seed(1)
    config = network.config
    side = 8 * 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    given: dict[str, Any] = {
        "sample": torch.randn(batch, 4, 8, 8),
        "encoder_hidden_states": torch.randn(batch, 5, 24),
        "controlnet_cond": torch.rand(batch, config.conditioning_channels, side, side),
    }
    if config.addition_embed_type:
        given["added_cond_kwargs"] = {"text_embeds": torch.randn(batch, 20), "time_ids": 99 * torch.rand(batch, 6)}
    if config.num_class_embeds:
        given["class_labels"] = torch.tensor([2, 0])[:batch]
    if config.class_embed_type == "projection":
        given["class_labels"] = torch.randn(batch, 5)
    return given


def assert_same(mine: Any, reference: Any) -> None:
    pairs = zip(
        (*mine.down_block_res_samples, mine.mid_block_res_sample),
        (*reference.down_block_res_samples, reference.mid_block_res_sample),
        strict=True,
    )
    for own, other in pairs:
        assert own.shape == other.shape
        assert (own - other).abs().max() <= 2e-5 * max(1, other.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guess_mode", [False, True])
@torch.no_grad()
def test_the_numbers_are_those_of_diffusers(family: str, guess_mode: bool) -> None:
    reference = theirs(family)
    mine, given = ours(family, reference), inputs(reference)
    for timestep in (7, torch.tensor([999, 0])):
        options = {"timestep": timestep, "conditioning_scale": 0.7, "guess_mode": guess_mode}
        assert_same(mine(**given, **options), reference(**given, **options))
    down, middle = mine(**given, timestep=3, return_dict=False)
    assert len(down) == len(mine.controlnet_down_blocks)
    assert middle.shape[0] == 2


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_computed_once_gives_the_same(family: str) -> None:
    reference = theirs(family)
    mine, given = ours(family, reference), inputs(reference)
    whole = mine(**given, timestep=7)
    conditions = {name: given.get(name) for name in ("class_labels", "added_cond_kwargs")}
    caches = {
        "features": mine.read(given["controlnet_cond"]),
        "text_cache": mine.project_text(given["encoder_hidden_states"]),
        "time_cache": mine.project_time(torch.tensor([3.0, 7.0]), **conditions),
    }
    assert_same(mine(given["sample"], torch.tensor(7), **caches), whole)


def test_a_new_one_for_a_u_net_has_its_weights_and_changes_nothing() -> None:
    torch.manual_seed(0)
    config = {**COMMON, **FAMILIES["SD XL"]}
    widths = config.pop("conditioning_embedding_out_channels")
    unet = UNet2DConditionModel(**config, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), sample_size=8).eval()
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    own, base = network.state_dict(), unet.state_dict()
    shared = [name for name in own if not name.startswith("controlnet_")]
    assert shared
    assert all(torch.equal(own[name], base[name]) for name in shared)
    assert set(base) - set(own) == {
        name for name in base if name.startswith(("up_blocks", "conv_norm_out", "conv_out"))
    }
    with torch.no_grad():
        result = network(**inputs(network), timestep=5)
    assert not any(each.any() for each in (*result.down_block_res_samples, result.mid_block_res_sample))
    other = diffusers.ControlNetModel.from_unet(
        diffusers.UNet2DConditionModel.from_config(unet.config), conditioning_embedding_out_channels=widths
    )
    assert {n: p.shape for n, p in other.state_dict().items()} == {n: p.shape for n, p in own.items()}
    at_random = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=widths, load_weights_from_unet=False
    )
    assert not torch.equal(at_random.conv_in.weight, unet.conv_in.weight)


@pytest.mark.parametrize("family", ["SD 1", "SD XL"])
def test_files_go_both_ways(family: str, tmp_path: Path) -> None:
    reference = theirs(family)
    reference.save_pretrained(tmp_path / "theirs")
    reference.save_pretrained(tmp_path / "bin", safe_serialization=False)
    reference.half().save_pretrained(tmp_path / "half", variant="fp16")
    mine = ControlNetModel.from_pretrained(tmp_path / "theirs")
    for folder in ("bin", "half"):
        options = {"variant": "fp16"} if folder == "half" else {}
        other = ControlNetModel.from_pretrained(tmp_path / folder, **options)
        assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(mine.parameters(), other.parameters(), strict=True))
    mine.save_pretrained(tmp_path / "ours")
    back = diffusers.ControlNetModel.from_pretrained(tmp_path / "ours")
    stored = load_file(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in back.state_dict().items())
    told = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert {k: v for k, v in told.items() if k[0] != "_"} == {
        k: v for k, v in json.loads((tmp_path / "theirs" / "config.json").read_text()).items() if k[0] != "_"
    }


# The settings of lllyasviel/sd-controlnet-canny, thibaud/controlnet-sd21-canny-diffusers and
# diffusers/controlnet-canny-sdxl-1.0, with the number of their parameters.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "SD 1": ({"cross_attention_dim": 768}, 361_279_120),
    "SD 2": (
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        364_228_240,
    ),
    "SD XL": (
        {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        1_251_014_160,
    ),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_full_sizes_have_the_tensors_of_diffusers(family: str) -> None:
    config, count = PUBLISHED[family]
    with torch.device("meta"):
        reference = diffusers.ControlNetModel(**config)
    with skeleton():
        mine = ControlNetModel(**config)
    shapes: dict[str, Tensor] = reference.state_dict()
    assert {n: p.shape for n, p in mine.state_dict().items()} == {n: p.shape for n, p in shapes.items()}
    assert sum(p.numel() for p in mine.parameters()) == count


def test_the_way_down_is_the_u_nets() -> None:
    """The parts are shared with the U-Net and not written a second time."""
    network = ControlNetModel(**COMMON)
    assert all(isinstance(block, DownBlock2D) for block in network.down_blocks)
    assert not network.up_blocks


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"controlnet_conditioning_channel_order": "rbg"}, "unknown controlnet_conditioning_channel_order 'rbg'"),
        ({"conditioning_embedding_out_channels": ()}, "must be whole numbers above 0"),
        ({"conditioning_embedding_out_channels": (16, -1)}, "must be whole numbers above 0"),
        ({"conditioning_channels": 0}, "must be whole numbers above 0"),
        ({"mid_block_type": None}, "a ControlNet has a middle"),
        ({"mid_block_type": "Other"}, "unknown mid_block_type"),
        ({"encoder_hid_dim": 8}, "encoder_hid_dim=8 is not implemented"),
        ({"addition_embed_type": "text"}, "unknown addition_embed_type 'text'"),
        ({"down_block_types": ("DownBlock2D",)}, "one entry for each resolution"),
        ({"down_block_types": ("Nonsense", "DownBlock2D")}, "unknown down block type"),
        ({"layers_per_block": 10**9}, ""),
        ({"conditioning_embedding_out_channels": [4] * 100_000}, ""),
        ({"block_out_channels": 7}, ""),
        ({"conditioning_embedding_out_channels": "abc"}, ""),
        ({"global_pool_conditions": "yes"}, ""),
        ({"attention_head_dim": {}}, ""),
    ],
)
def test_a_hostile_config_is_one_error_that_names_the_file(change: dict[str, Any], error: str, tmp_path: Path) -> None:
    ControlNetModel(**COMMON).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DDIMError, match=error or None) as caught:
        ControlNetModel.from_pretrained(tmp_path)
    assert "config.json" in str(caught.value) or isinstance(caught.value, WeightsError)


def test_a_hostile_folder_is_one_error(tmp_path: Path) -> None:
    ControlNetModel(**COMMON).save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = load_file(weights)
    save_file({name: tensor for name, tensor in whole.items() if "mid_block" not in name}, weights)
    with pytest.raises(WeightsError, match="controlnet_mid_block"):
        ControlNetModel.from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError):
        ControlNetModel.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError):
        ControlNetModel.from_pretrained(tmp_path)
    UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8,
    ).save_pretrained(tmp_path / "unet")
    with pytest.raises(CheckpointError, match="describes a 'UNet2DConditionModel', not a ControlNetModel"):
        ControlNetModel.from_pretrained(tmp_path / "unet")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"sample": torch.zeros(2, 3, 8, 8)}, r"sample must have shape \(b, 4, h, w\)"),
        ({"encoder_hidden_states": None}, "the text is missing"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 7)}, "encoder_hidden_states must have shape"),
        ({"controlnet_cond": None}, "the picture is missing"),
        ({"controlnet_cond": torch.zeros(2, 4, 16, 16)}, r"controlnet_cond must have shape \(b, 3, H, W\)"),
        ({"controlnet_cond": torch.zeros(2, 3, 8, 8)}, "controlnet_cond must be 16x16 for a sample of 8x8"),
        ({"controlnet_cond": torch.zeros(3, 3, 16, 16)}, "one or as many as there are samples"),
    ],
)
def test_wrong_inputs_are_errors_that_say_what_is_needed(change: dict[str, Any], error: str) -> None:
    network = ControlNetModel(**COMMON).eval()
    with pytest.raises(ValueError, match=error):
        network(**{**inputs(network), "timestep": 1, **change})


def test_a_u_net_without_a_middle_gets_none() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8,
        mid_block_type=None,
    )
    with pytest.raises(ConfigError, match="a ControlNet has a middle"):
        ControlNetModel.from_unet(unet)
