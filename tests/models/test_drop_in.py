"""Our networks inside diffusers' pipelines, and what diffusers' pipelines and scripts give a network."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import tiny_reference
from torch import Tensor, nn

from ddim.models import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from ddim.models.freeu import scale_low_frequencies

Written = Callable[..., nn.Module]

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
}


def picture() -> Image.Image:
    numbers = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(numbers)


def mask() -> Image.Image:
    numbers = np.zeros((16, 16), dtype=np.uint8)
    numbers[:, 8:] = 255
    return Image.fromarray(numbers)


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (diffusers.StableDiffusionPipeline, {"height": 16, "width": 16}),
    "text with arguments for processors": (
        diffusers.StableDiffusionPipeline,
        {"height": 16, "width": 16, "cross_attention_kwargs": {}},
    ),
    "image": (diffusers.StableDiffusionImg2ImgPipeline, {"image": picture(), "strength": 0.75}),
    "inpainting": (
        diffusers.StableDiffusionInpaintPipeline,
        {"image": picture(), "mask_image": mask(), "height": 16, "width": 16},
    ),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", list(CALLS))
@pytest.mark.thin(every=2)
def test_diffusers_pipelines_draw_the_same_with_our_networks(kind: str, version: int, tmp_path: Path) -> None:
    cls, options = CALLS[kind]
    theirs = cls(**tiny_reference(tmp_path, version).components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    ours = cls(
        **{
            **theirs.components,
            "unet": UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet"),
            "vae": AutoencoderKL.from_pretrained(tmp_path, subfolder="vae"),
        },
        requires_safety_checker=False,
    )
    ours.set_progress_bar_config(disable=True)

    def draw(pipe: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipe("a cat", num_inference_steps=3, generator=generator, output_type="np", **options).images

    expected = draw(theirs)
    assert expected.std() > 0.01
    np.testing.assert_allclose(draw(ours), expected, rtol=0, atol=1e-4)


def test_diffusers_pipeline_on_pixels_draws_the_same_with_our_network(written: Written, tmp_path: Path) -> None:
    written(
        diffusers.UNet2DModel,
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )

    def draw(unet: Any) -> Any:
        pipe = diffusers.DDIMPipeline(unet=unet, scheduler=diffusers.DDIMScheduler())
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe(batch_size=2, num_inference_steps=3, generator=generator, output_type="np").images

    expected = draw(diffusers.UNet2DModel.from_pretrained(tmp_path))
    np.testing.assert_allclose(draw(UNet2DModel.from_pretrained(tmp_path)), expected, rtol=0, atol=1e-4)


# --- what a network is given -----------------------------------------------------------------------------------------


@pytest.fixture
def pair(written: Written, tmp_path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Our U-Net, diffusers', and what both are called with."""
    theirs = written(diffusers.UNet2DConditionModel, **SMALL)
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": 321,
        "encoder_hidden_states": torch.randn(2, 5, 24, generator=generator),
    }
    return UNet2DConditionModel.from_pretrained(tmp_path), theirs, inputs


@torch.no_grad()
def agree(pair: tuple[Any, Any, dict[str, Any]], make: Callable[[], dict[str, Any]] = dict) -> Tensor:
    """Both networks' result with further arguments, made anew for each, as diffusers empties lists."""
    ours, theirs, inputs = pair
    out: Tensor = ours(**inputs, **make()).sample
    torch.testing.assert_close(out, theirs(**inputs, **make()).sample, rtol=1e-4, atol=1e-5)
    return out


def test_a_controlnet_adds_to_the_outputs_of_the_way_down_and_of_the_middle(pair: Any) -> None:
    theirs = pair[1]
    torch.manual_seed(0)
    control = diffusers.ControlNetModel.from_unet(theirs, conditioning_channels=3).eval()
    for parameter in control.parameters():
        nn.init.normal_(parameter, std=0.05)  # it begins with zeros
    inputs = dict(pair[2])
    sample, timestep, text = inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]
    with torch.no_grad():
        down, middle = control(sample, timestep, text, torch.rand(2, 3, 64, 64), return_dict=False)
    before = agree(pair)
    after = agree(
        pair, lambda: {"down_block_additional_residuals": list(down), "mid_block_additional_residual": middle}
    )
    assert not torch.allclose(before, after, atol=1e-3)
    with pytest.raises(ValueError, match="3 down_block_additional_residuals were given for 4 outputs"):
        pair[0](**inputs, down_block_additional_residuals=down[:-1], mid_block_additional_residual=middle)


def test_an_adapter_adds_within_the_blocks_of_the_way_down(pair: Any) -> None:
    residuals = [torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)]
    before = agree(pair)
    after = agree(pair, lambda: {"down_intrablock_additional_residuals": [residual.clone() for residual in residuals]})
    assert not torch.allclose(before, after, atol=1e-3)


def test_what_is_not_implemented_is_named(pair: Any) -> None:
    ours, _, inputs = pair
    assert torch.equal(ours(**inputs, added_cond_kwargs={}).sample, ours(**inputs).sample)
    with pytest.raises(ValueError, match="this model is not told image_embeds: leave added_cond_kwargs out"):
        ours(**inputs, added_cond_kwargs={"image_embeds": torch.zeros(1)})


def test_a_plain_tuple_can_be_asked_for(pair: Any) -> None:
    ours, _, inputs = pair
    plain = ours(**inputs, return_dict=False)
    assert type(plain) is tuple
    assert torch.equal(plain[0], ours(**inputs).sample)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()
    images = torch.randn(1, 3, 8, 8)
    (posterior,) = vae.encode(images, return_dict=False)
    assert torch.equal(posterior.mean, vae.encode(images).latent_dist.mean)
    (decoded,) = vae.decode(posterior.mean, return_dict=False, generator=torch.Generator())
    assert torch.equal(decoded, vae.decode(posterior.mean)["sample"])
    assert torch.equal(vae(images, return_dict=False)[0], decoded)


# --- FreeU -----------------------------------------------------------------------------------------------------------


def test_freeu_changes_the_result_as_it_changes_diffusers(pair: Any) -> None:
    before = agree(pair)
    for network in pair[:2]:
        network.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
        assert [network.up_blocks[i].b2 for i in range(2)] == [1.6, 1.6]
    after = agree(pair)
    assert not torch.allclose(before, after, atol=1e-3)
    pair[0].runner = lambda *_: pytest.fail("a runner knows nothing of it")
    with torch.no_grad():
        assert torch.equal(pair[0](**pair[2]).sample, after)
    pair[0].runner = None
    for network in pair[:2]:
        network.disable_freeu()
        assert network.up_blocks[0].s1 is None
    assert torch.equal(agree(pair), before)


def test_low_frequencies_are_scaled_and_high_ones_are_not() -> None:
    constant, checkers = torch.ones(1, 1, 8, 8), torch.ones(8, 8)
    checkers[::2, ::2] = checkers[1::2, 1::2] = -1
    x = constant + checkers
    torch.testing.assert_close(scale_low_frequencies(x, 0.25), 0.25 * constant + checkers)
    half = scale_low_frequencies(torch.ones(1, 1, 6, 10, dtype=torch.bfloat16), 0.5)  # sizes that are no powers of two
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, torch.full_like(half, 0.5))


# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UNet2DConditionModel, AutoencoderKL])
def test_what_has_no_effect_is_there(kind: Any) -> None:
    config = SMALL if kind is UNet2DConditionModel else {"block_out_channels": (8,), "norm_num_groups": 4}
    network = kind(**config)
    keys = list(network.state_dict())
    network.set_attention_slice("auto")
    network.enable_forward_chunking(2, dim=1)
    network.disable_forward_chunking()
    network.enable_xformers_memory_efficient_attention()
    network.disable_xformers_memory_efficient_attention()
    network.fuse_qkv_projections()
    network.unfuse_qkv_projections()
    assert list(network.state_dict()) == keys
    assert network.active_runner() is None
    assert not network.is_altered()
    assert not network.is_gradient_checkpointing
    network.enable_gradient_checkpointing()
    assert network.is_gradient_checkpointing
    network.disable_gradient_checkpointing()
    assert not network.is_gradient_checkpointing


def test_parameters_are_counted_as_diffusers_counts_them() -> None:
    ours = UNet2DConditionModel(**SMALL, num_class_embeds=5)
    theirs = diffusers.UNet2DConditionModel(**SMALL, num_class_embeds=5)
    for network in (ours, theirs):
        network.conv_in.requires_grad_(False)
    for options in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**options) == theirs.num_parameters(**options)


def test_older_code_may_ask_the_network_for_its_settings() -> None:
    network = UNet2DConditionModel(**SMALL)
    with pytest.warns(FutureWarning, match=r"UNet2DConditionModel\.config\.sample_size"):
        assert network.sample_size == 8
    with pytest.raises(AttributeError, match="no attribute 'sample_sise'"):
        _ = network.sample_sise
    assert network.in_channels == 4


def test_an_output_is_a_dict_of_its_attributes(pair: Any) -> None:
    ours, _, inputs = pair
    out = ours(**inputs)
    assert isinstance(out, dict)
    assert dict(out) == {**out} == {"sample": out.sample}
    again = out.copy()
    assert again.sample is out.sample
    assert again != out
    out["sample"] = torch.zeros(1)
    assert torch.equal(out.sample, torch.zeros(1))
    assert pickle.loads(pickle.dumps(out)).sample.shape == (1,)
    for change in (lambda: out.pop("sample"), lambda: out.update(sample=1), out.clear, out.popitem):
        with pytest.raises(TypeError, match=r"fixed keys: assign to them, out\[key\] = value"):
            change()
