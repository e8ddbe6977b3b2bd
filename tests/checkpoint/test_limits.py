"""Every setting of every network's config, with values that nobody means: it loads and works, or is one clear error."""

from __future__ import annotations

import inspect
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import VALUES, limits

from ddim.checkpoint import PretrainedModel
from ddim.errors import CheckpointError, ConfigError, DDIMError
from ddim.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel, UNet2DModel
from ddim.pipelines.latents import usual_size

SHARED: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
# For each network: how it is made, and a call of it.
NETWORKS: dict[str, tuple[Callable[[], PretrainedModel], Callable[[Any], Any]]] = {
    "pixels": (
        lambda: UNet2DModel(
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            **SHARED,
        ),
        lambda network: network(torch.zeros(1, 3, 8, 8), 1),
    ),
    "latents": (
        lambda: UNet2DConditionModel(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=8,
            **SHARED,
        ),
        lambda network: network(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 3, 8)),
    ),
    "autoencoder": (
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **SHARED
        ),
        lambda network: network(torch.zeros(1, 3, 8, 8)),
    ),
    "text": (
        lambda: CLIPTextModel(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=7,
        ),
        lambda network: network(torch.zeros(1, 5, dtype=torch.long)),
    ),
}
TOGETHER: list[tuple[str, dict[str, Any]]] = [
    ("latents", {"layers_per_block": 1000, "transformer_layers_per_block": 1000}),
    ("latents", {"layers_per_block": 50, "transformer_layers_per_block": 50}),
    ("latents", {"layers_per_block": [1, 50], "transformer_layers_per_block": [50, 1]}),
    ("latents", {"transformer_layers_per_block": 100}),
    ("latents", {"transformer_layers_per_block": [[], [[1]]]}),
    ("latents", {"transformer_layers_per_block": [[1, 2, 3], 1], "reverse_transformer_layers_per_block": [1, [1, 0]]}),
    ("latents", {"reverse_transformer_layers_per_block": [[1, 10**6], 1]}),
    ("latents", {"reverse_transformer_layers_per_block": [0]}),
    ("latents", {"layers_per_block": [500, 1]}),
    ("latents", {"block_out_channels": [2**20] * 2, "cross_attention_dim": 2**30}),
    ("latents", {"sample_size": [2, 10**5]}),
    ("pixels", {"sample_size": [8, 65536]}),
    ("pixels", {"sample_size": 2048}),
    ("pixels", {"layers_per_block": 125}),
    ("pixels", {"block_out_channels": [8] * 200, "down_block_types": ["DownBlock2D"] * 200}),
    ("pixels", {"attn_norm_num_groups": 7}),
    ("pixels", {"time_embedding_type": "learned", "num_train_timesteps": 10**5}),
    ("autoencoder", {"layers_per_block": 200}),
    ("autoencoder", {"latents_mean": [0.0] * 4, "latents_std": [0.0] * 4}),
    ("text", {"num_hidden_layers": 501}),
    ("text", {"num_hidden_layers": 400}),
    ("text", {"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 2}),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    made = {name: tmp_path_factory.mktemp(name) for name in NETWORKS}
    for name, (make, _) in NETWORKS.items():
        make().save_pretrained(made[name])
    return made


def loaded(cls: type[PretrainedModel], folder: Path) -> tuple[PretrainedModel | None, str]:
    """A network, or what is said of why there is none."""
    try:
        return cls.from_pretrained(folder), ""
    except (ConfigError, CheckpointError) as error:
        return None, str(error)


def works_or_is_refused(name: str, changes: dict[str, Any], folder: Path) -> bool:
    """Whether a network with these settings is refused, within a second; otherwise, it works as soon as it is called.

    The second is of the least of three tries, as other work on the machine makes any of them longer.
    """
    make, call = NETWORKS[name]
    file = folder / make().config_name
    good = file.read_text()
    file.write_text(json.dumps({**json.loads(good), **changes}))
    try:
        for last in (False, False, True):
            start = time.process_time()
            network, message = loaded(type(make()), folder)
            assert network is not None or (str(folder) in message and len(message) < 100_000)
            taken = time.process_time() - start
            if taken < 1:
                break
            assert not last, f"{changes}: {taken:.1f} s"
        if network is not None:
            with torch.no_grad():
                assert call(network) is not None
    finally:
        file.write_text(good)
    return network is None


def settings(name: str) -> Iterator[str]:
    yield from list(inspect.signature(type(NETWORKS[name][0]()).__init__).parameters)[1:]
    yield from ("_class_name", "_diffusers_version", "_use_default_values", "unknown")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.thin(fast=["pixels", "text"])
def test_a_sample_of_values_of_each_setting(name: str, folders: dict[str, Path]) -> None:
    refused = 0
    with warnings.catch_warnings(), limits(60, 500):
        warnings.simplefilter("ignore")
        for number, key in enumerate(settings(name)):
            for value in VALUES[number % 23 :: 23]:
                refused += works_or_is_refused(name, {key: value}, folders[name])
    assert refused > 9


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_all_values_of_each_setting(name: str, folders: dict[str, Path]) -> None:
    with warnings.catch_warnings(), limits(600, 500):
        warnings.simplefilter("ignore")
        for key in settings(name):
            for value in VALUES:
                works_or_is_refused(name, {key: value}, folders[name])


@pytest.mark.parametrize("number", range(len(TOGETHER)))
def test_what_is_too_much_together_is_refused_within_a_second(number: int, folders: dict[str, Path]) -> None:
    name, changes = TOGETHER[number]
    with limits():
        assert works_or_is_refused(name, changes, folders[name])


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("downsample_padding", 10**6, "downsample_padding must be from 0 to 1, but is 1000000"),
        ("downsample_padding", -1, "downsample_padding must be from 0 to 1, but is -1"),
        ("sample_size", [8, 65536], "sample_size must be from 1 to 8192, but is 65536"),
        ("sample_size", [1024, 2048], r"sample_size=\[1024, 2048\] has more than 1048576 pixels"),
        ("layers_per_block", 1000, "asks for .* residual and transformer blocks"),
    ],
)
def test_the_error_says_the_setting_and_what_it_may_be(
    key: str, value: Any, says: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    content = json.loads((folders["latents"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(ConfigError, match=says):
        UNet2DConditionModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("version", ["0." + "9" * 10**6, "9" * 10**6, "0.²", "0.8" * 10**6, "", ".", None, 8, [0, 8]])
def test_a_version_is_data(version: Any) -> None:
    try:
        assert usual_size({"sample_size": 32, "_diffusers_version": version}) == (32, 32)
    except DDIMError:
        pytest.fail("a version is no reason")
    assert usual_size({"sample_size": 32, "_diffusers_version": "0.8.1"}) == (64, 64)
    assert usual_size({"sample_size": 32, "_diffusers_version": "0.10.0"}) == (32, 32)
