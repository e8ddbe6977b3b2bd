"""`AutoencoderTiny` against diffusers', alone and in the place of a pipeline's autoencoder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import ddim
from ddim.errors import ConfigError, WeightsError
from ddim.models import AutoencoderTiny

Written = Callable[..., nn.Module]

SMALL: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 2),
    "num_decoder_blocks": (2, 1),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "latents": {"latent_channels": 16, "scaling_factor": 0.5, "shift_factor": 0.1},
    "activation": {"act_fn": "silu", "upsample_fn": "bilinear"},
    "channels": {"in_channels": 1, "out_channels": 2},
    "scale": {"latent_magnitude": 2, "latent_shift": 0.25},
    "widths": {"encoder_block_out_channels": (4, 4, 4), "num_encoder_blocks": (0, 1, 2)},
}


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def assert_same(ours: AutoencoderTiny, theirs: Any, x: Tensor) -> None:
    latents = theirs.encode(x).latents
    torch.testing.assert_close(ours.encode(x).latents, latents, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.encode(x, return_dict=False)[0], ours.encode(x).latents)
    decoded = theirs.decode(5 * latents).sample
    assert decoded.std() > 1e-2
    torch.testing.assert_close(ours.decode(5 * latents).sample, decoded, atol=1e-5, rtol=1e-5)


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


# --- the same network as diffusers' ----------------------------------------------------------------------------------


def test_keys_and_shapes_of_taesd() -> None:
    with torch.device("meta"):
        ours, theirs = AutoencoderTiny(), diffusers.AutoencoderTiny()
    assert shapes(ours) == shapes(theirs)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 2_445_063


@pytest.mark.parametrize("name", OPTIONS)
def test_output_with_every_option(name: str, written: Written, tmp_path: Path) -> None:
    config = {**SMALL, **OPTIONS[name]}
    theirs = written(diffusers.AutoencoderTiny, **config)
    ours = AutoencoderTiny.from_pretrained(tmp_path)
    x = images(2, config.get("in_channels", 3), 16, 24)
    assert_same(ours, theirs, x)
    if config.get("in_channels") is None and name != "widths":  # where the result is as large as what comes in
        with torch.no_grad():
            torch.testing.assert_close(ours(x).sample, theirs(x).sample, atol=1e-5, rtol=1e-5)
    latents = ours.encode(x).latents
    torch.testing.assert_close(ours.scale_latents(latents), theirs.scale_latents(latents))  # type: ignore[operator]


def test_the_constructor_is_diffusers() -> None:
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (AutoencoderTiny, diffusers.AutoencoderTiny))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]
    for method in ("encode", "decode", "forward"):
        ours, theirs = (
            inspect.signature(getattr(cls, method)).parameters for cls in (AutoencoderTiny, diffusers.AutoencoderTiny)
        )
        assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


def test_configs_and_weights_go_both_ways(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.manual_seed(2)
    ours = AutoencoderTiny(**SMALL).eval()
    assert ours.config.block_out_channels == (8, 8)
    ours.save_pretrained(tmp_path)
    theirs, report = diffusers.AutoencoderTiny.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same(ours, theirs, images(1, 3, 16, 16))
    written = json.loads((tmp_path / "config.json").read_text())
    theirs.save_pretrained(tmp_path / "theirs")
    again = json.loads((tmp_path / "theirs" / "config.json").read_text())
    different = {"_diffusers_version", "_name_or_path"}
    assert {k: v for k, v in written.items() if k not in different} == {
        k: v for k, v in again.items() if k not in different
    }
    back = AutoencoderTiny.from_pretrained(tmp_path / "theirs")
    assert not [str(w.message) for w in recwarn if "settings" in str(w.message)]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), back.parameters(), strict=True))


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(200, 128), (128, 240), (96, 112), (232, 232)])
def test_tiling_is_diffusers(size: tuple[int, int], written: Written, tmp_path: Path) -> None:
    config = {
        "encoder_block_out_channels": (4,) * 4,
        "decoder_block_out_channels": (4,) * 4,
        "num_encoder_blocks": (1,) * 4,
        "num_decoder_blocks": (1,) * 4,
    }
    theirs: Any = written(diffusers.AutoencoderTiny, **config)
    ours = AutoencoderTiny.from_pretrained(tmp_path)
    x = images(2, 3, *size)
    whole = ours.encode(x).latents
    for model in (ours, theirs):
        model.enable_tiling()
        model.tile_sample_min_size, model.tile_latent_min_size = 128, 16  # 512 and 64, in less time
    assert_same(ours, theirs, x)
    if max(size) > 128:
        assert (ours.encode(x).latents - whole).abs().max() > 1e-4  # it does happen
    ours.disable_tiling()
    assert torch.equal(ours.encode(x).latents, whole)


@torch.no_grad()
def test_slicing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = AutoencoderTiny(**SMALL).eval()
    x = images(3, 3, 16, 16)
    latents = model.encode(x).latents
    decoded = model.decode(latents).sample
    model.enable_slicing()
    batches = []
    model.decoder.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    torch.testing.assert_close(model.encode(x).latents, latents)
    torch.testing.assert_close(model.decode(latents).sample, decoded)
    model.disable_slicing()
    model.decode(latents)
    assert batches == [1, 1, 1, 3]


def test_gradient_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model = AutoencoderTiny(**SMALL)
    x = images(2, 3, 16, 16)

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        model.decode(model.encode(x).latents).sample.square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    plain = gradients()
    assert all(gradient is not None for gradient in plain)
    model.enable_gradient_checkpointing()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_encoder_blocks": (1,)}, "one entry for each resolution, not 2 and 1"),
        ({"decoder_block_out_channels": (8, 4)}, r"one positive number at all resolutions, not \[8, 4\]"),
        ({"num_decoder_blocks": (1, -1)}, r"whole numbers of 0 or more, not \[1, -1\]"),
        ({"upsample_fn": "sinc"}, "unknown way to enlarge 'sinc'; known are bicubic"),
        ({"act_fn": "sin"}, "unknown activation 'sin'"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencoderTiny(**{**SMALL, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_encoder_blocks": [10**9, 1]}, "residual and transformer blocks"),
        ({"upsampling_scaling_factor": 10**6}, "upsampling_scaling_factor must be from 1 to 16"),
        ({"latent_channels": 0}, "latent_channels must be from 1"),
        ({"scaling_factor": 0}, "scaling_factor must be from 1e-06"),
        ({"encoder_block_out_channels": ["a", "b"]}, "one positive number at all resolutions"),
        ({"num_decoder_blocks": 3}, "num_decoder_blocks must be a list"),
        ({"decoder_block_out_channels": [16, 16]}, "wrong shape"),
    ],
)
def test_configs_of_strangers(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    AutoencoderTiny(**SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises((ConfigError, WeightsError), match=message):
        AutoencoderTiny.from_pretrained(tmp_path)


def test_shapes_that_do_not_fit() -> None:
    model = AutoencoderTiny(**SMALL)
    with pytest.raises(ValueError, match=r"images must have shape \(b, 3, h, w\), not \(1, 4, 8, 8\)"):
        model.encode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"latents must have shape \(b, 4, h, w\), not \(4, 8, 8\)"):
        model.decode(torch.zeros(4, 8, 8))


def test_its_name_in_the_package() -> None:
    assert ddim.AutoencoderTiny is AutoencoderTiny
