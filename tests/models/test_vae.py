"""`AutoencoderKL` against diffusers'."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as TheirDistribution
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddim.errors import ConfigError
from ddim.models import AutoencoderKL, DiagonalGaussianDistribution

Written = Callable[..., nn.Module]

# vae/config.json of Stable Diffusion 1.5 and 2.1, less the defaults.
STABLE_DIFFUSION = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
SMALL: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "defaults": {
        "block_out_channels": (64,),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "norm_num_groups": 32,
    },
    "layers": {"layers_per_block": 2},
    "latents": {"latent_channels": 16, "shift_factor": 0.1, "scaling_factor": 0.3},
    "no quant convs": {"use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False},
    "gelu": {"act_fn": "gelu"},
    "channels": {"in_channels": 1, "out_channels": 2},
    "statistics": {"latents_mean": [0.0, 1.0, 2.0, 3.0], "latents_std": [1.0] * 4, "force_upcast": False},
}


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def assert_same(ours: AutoencoderKL, theirs: Any, x: Tensor) -> None:
    expected = theirs.encode(x).latent_dist
    got = ours.encode(x).latent_dist
    for name in ("parameters", "mean", "logvar", "std", "var"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    decoded = theirs.decode(expected.mean).sample
    assert decoded.std() > 1e-2
    torch.testing.assert_close(ours.decode(expected.mean).sample, decoded, atol=1e-5, rtol=0)


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


# --- the same network as diffusers' ----------------------------------------------------------------------------------


def test_keys_and_shapes_of_stable_diffusion() -> None:
    with torch.device("meta"):
        ours, theirs = AutoencoderKL(**STABLE_DIFFUSION), diffusers.AutoencoderKL(**STABLE_DIFFUSION)
    assert shapes(ours) == shapes(theirs)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 83_653_863


@pytest.mark.parametrize("name", OPTIONS)
def test_output_with_every_option(name: str, written: Written, tmp_path: Path) -> None:
    config = {**SMALL, **OPTIONS[name]}
    theirs = written(diffusers.AutoencoderKL, **config)
    ours = AutoencoderKL.from_pretrained(tmp_path)
    assert_same(ours, theirs, images(2, config.get("in_channels", 3), 16, 16))
    assert ours.config.scaling_factor == config.get("scaling_factor", 0.18215)


def test_the_constructor_is_diffusers() -> None:
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (AutoencoderKL, diffusers.AutoencoderKL))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


def test_what_we_save_loads_in_diffusers(tmp_path: Path) -> None:
    torch.manual_seed(2)
    ours = AutoencoderKL(**SMALL).eval()
    ours.save_pretrained(tmp_path)
    theirs, report = diffusers.AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same(ours, theirs, images(1, 3, 16, 16))


def test_the_attention_names_of_stable_diffusion_1(written: Written, tmp_path: Path) -> None:
    theirs = written(diffusers.AutoencoderKL, **SMALL)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        for coder in ("encoder", "decoder"):
            for kind in ("weight", "bias"):
                name = f"{coder}.mid_block.attentions.0."
                state[f"{name}{old}.{kind}"] = state.pop(f"{name}{new}.{kind}")
    save_file(state, file)
    assert_same(AutoencoderKL.from_pretrained(tmp_path), theirs, images(1, 3, 16, 16))


def test_reconstruction_in_one_call(written: Written, tmp_path: Path) -> None:
    theirs = written(diffusers.AutoencoderKL, **SMALL)
    ours = AutoencoderKL.from_pretrained(tmp_path)
    x = images(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).sample, theirs(x).sample, atol=1e-5, rtol=0)
        drawn = ours(x, sample_posterior=True, generator=torch.Generator().manual_seed(5)).sample
        expected = theirs(x, sample_posterior=True, generator=torch.Generator().manual_seed(5)).sample
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)


# --- the distribution ------------------------------------------------------------------------------------------------


def parameters(seed: int = 3) -> Tensor:
    return torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(seed)) * 3


def test_the_distribution_is_diffusers() -> None:
    ours, theirs = DiagonalGaussianDistribution(parameters()), TheirDistribution(parameters())
    torch.testing.assert_close(ours.mode(), theirs.mode())
    torch.testing.assert_close(ours.kl(), theirs.kl())
    others = DiagonalGaussianDistribution(parameters(4)), TheirDistribution(parameters(4))
    torch.testing.assert_close(ours.kl(others[0]), theirs.kl(others[1]))
    torch.testing.assert_close(ours.nll(theirs.mean + 1), theirs.nll(theirs.mean + 1))
    drawn = ours.sample(torch.Generator().manual_seed(7))
    assert torch.equal(drawn, theirs.sample(torch.Generator().manual_seed(7)))


def test_a_divergence_from_itself_is_zero() -> None:
    ours = DiagonalGaussianDistribution(parameters())
    torch.testing.assert_close(ours.kl(ours), torch.zeros(3), atol=1e-5, rtol=0)
    assert torch.equal(DiagonalGaussianDistribution(torch.zeros(2, 8, 2, 2)).kl(), torch.zeros(2))


def test_one_generator_for_each_image() -> None:
    ours = DiagonalGaussianDistribution(parameters())
    drawn = ours.sample([torch.Generator().manual_seed(i) for i in range(3)])
    alone = DiagonalGaussianDistribution(parameters()[1:2]).sample(torch.Generator().manual_seed(1))
    assert torch.equal(drawn[1:2], alone)
    with pytest.raises(ValueError, match="2 generators were given for 3 images"):
        ours.sample([torch.Generator()] * 2)


# --- memory ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_slicing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(**SMALL).eval()
    x = images(3, 3, 16, 16)
    latents = model.encode(x).latent_dist.mean
    decoded = model.decode(latents).sample
    model.enable_slicing()
    batches = []
    model.decoder.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    torch.testing.assert_close(model.encode(x).latent_dist.mean, latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.decode(latents).sample, decoded, atol=1e-5, rtol=0)
    model.disable_slicing()
    model.decode(latents)
    assert batches == [1, 1, 1, 3]


@pytest.mark.parametrize("size", [(40, 24), (16, 64), (28, 36), (24, 16)])
def test_tiling_is_diffusers(size: tuple[int, int], written: Written, tmp_path: Path) -> None:
    theirs = written(diffusers.AutoencoderKL, **SMALL)
    ours = AutoencoderKL.from_pretrained(tmp_path)
    x = images(2, 3, *size)
    whole = ours.encode(x).latent_dist.mean
    for model in (ours, theirs):
        model.enable_tiling()
    assert_same(ours, theirs, x)
    assert (ours.encode(x).latent_dist.mean - whole).abs().max() > 1e-4  # it does happen
    ours.disable_tiling()
    assert torch.equal(ours.encode(x).latent_dist.mean, whole)


def test_tiles_of_a_local_function_fade_without_a_seam() -> None:
    model = AutoencoderKL(**SMALL).eval()
    model.enable_tiling()
    model.encoder = nn.AvgPool2d(2)  # type: ignore[assignment]
    model.quant_conv = nn.Identity()
    x = images(1, 8, 40, 56)
    torch.testing.assert_close(model._encode(x), nn.functional.avg_pool2d(x, 2))


def test_small_images_are_not_tiled() -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(**SMALL).eval()
    x = images(1, 3, 16, 16)
    whole = model.encode(x).latent_dist.mean
    model.enable_tiling()
    assert torch.equal(model.encode(x).latent_dist.mean, whole)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(**SMALL)
    x = images(2, 3, 16, 16)

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        distribution = model.encode(x).latent_dist
        decoded = model.decode(distribution.sample(torch.Generator().manual_seed(1))).sample
        (decoded.square().mean() + distribution.kl().mean()).backward()
        return [parameter.grad for parameter in model.parameters()]

    plain = gradients()
    assert all(gradient is not None for gradient in plain)
    model.enable_gradient_checkpointing()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_channels_last_gives_the_same() -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(**SMALL).eval()
    x = images(2, 3, 16, 16)
    expected = model(x).sample
    last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).sample
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=0)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("DownBlock2D",) * 2}, "unknown down block type 'DownBlock2D'; known are DownEncoderBl"),
        ({"up_block_types": ("UpBlock2D",) * 2}, "unknown up block type 'UpBlock2D'; known are UpDecoderBlock2D"),
        ({"block_out_channels": (8,)}, "block_out_channels has 1, down_block_types has 2"),
        ({"norm_num_groups": 3}, "multiples of norm_num_groups=3, not 8"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencoderKL(**{**SMALL, **change})


def test_shapes_that_do_not_fit() -> None:
    model = AutoencoderKL(**SMALL)
    with pytest.raises(ValueError, match=r"images must have shape \(b, 3, h, w\), not \(1, 4, 8, 8\)"):
        model.encode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"latents must have shape \(b, 4, h, w\), not \(4, 8, 8\)"):
        model.decode(torch.zeros(4, 8, 8))
