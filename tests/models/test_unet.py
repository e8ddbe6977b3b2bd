"""`UNet2DModel` against diffusers': same keys, same numbers, and errors that say what is wrong."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddim.errors import CheckpointError, ConfigError, WeightsError
from ddim.models import UNet2DModel

Written = Callable[..., nn.Module]

# config.json of google/ddpm-cifar10-32 and of google/ddpm-{celebahq,church,bedroom,cat}-256, less the defaults.
_DDPM = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
CIFAR10 = {
    **_DDPM,
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
CELEBAHQ = {
    **_DDPM,
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
}
# The unconditional tutorial's network, whose structure most community checkpoints share.
BUTTERFLIES = {
    "sample_size": 128,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
}
# The class-conditional U-Net of the consistency-models release (64 x 64 ImageNet).
IMAGENET64 = {
    "sample_size": 64,
    "attention_head_dim": 64,
    "attn_norm_num_groups": 32,
    "block_out_channels": (192, 384, 576, 768),
    "down_block_types": ("ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3),
    "up_block_types": (*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "layers_per_block": 3,
    "num_class_embeds": 1000,
    "resnet_time_scale_shift": "scale_shift",
}
PUBLISHED = {"cifar10": CIFAR10, "celebahq": CELEBAHQ, "butterflies": BUTTERFLIES, "imagenet64": IMAGENET64}

SMALL: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
RESNET_RESAMPLING = {
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head": {"attention_head_dim": None},
    "head_dim": {"attention_head_dim": 4},
    "groups": {"norm_num_groups": 4, "norm_eps": 1e-3},
    "attn_groups": {"attn_norm_num_groups": 2},
    "sines first": {"flip_sin_to_cos": False, "freq_shift": 1},
    "centred": {"center_input_sample": True},
    "padding 0": {"downsample_padding": 0},
    "resnet resampling": {**RESNET_RESAMPLING, "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    "resnet blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
    },
    "old block names": {
        "down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D"),
        "up_block_types": ("UNetResAttnUpBlock2D", "UNetResUpBlock2D"),
    },
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift, attn_groups": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "scale_shift, resnet resampling": {**RESNET_RESAMPLING, "resnet_time_scale_shift": "scale_shift"},
    "mid scale": {"mid_block_scale_factor": 2**0.5},
    "no mid attention": {"add_attention": False},
    "no mid block": {"mid_block_type": None},
    "dropout": {"dropout": 0.3},
    "swish": {"act_fn": "swish"},
    "mish": {"act_fn": "mish"},
    "gelu": {"act_fn": "gelu"},
    "relu": {"act_fn": "relu"},
    "fourier": {"time_embedding_type": "fourier"},
    "learned": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "time_embedding_dim": {"time_embedding_dim": 24},
    "class table": {"num_class_embeds": 10},
    "class timestep": {"class_embed_type": "timestep"},
    "class identity": {"class_embed_type": "identity"},
    "channels": {"in_channels": 6, "out_channels": 2},
    "layers": {"layers_per_block": 3},
    "one level": {
        "block_out_channels": (16,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",),
    },
}


def inputs(config: dict[str, Any], batch: int = 2) -> tuple[Tensor, Tensor | None]:
    """A sample and what the config wants as class labels."""
    generator = torch.Generator().manual_seed(1)
    size = config["sample_size"]
    sample = torch.randn(batch, config.get("in_channels", 3), size, size, generator=generator)
    if config.get("class_embed_type") == "identity":
        return sample, torch.randn(batch, 4 * config["block_out_channels"][0], generator=generator)
    wants_labels = "num_class_embeds" in config or "class_embed_type" in config
    return sample, torch.arange(batch) + 3 if wants_labels else None


def scaled_down(config: dict[str, Any]) -> dict[str, Any]:
    """The same structure with few channels."""
    widths = tuple(width // 16 for width in config["block_out_channels"])
    small = {**config, "block_out_channels": widths, "norm_num_groups": 4, "sample_size": 32, "layers_per_block": 1}
    for name in ("attention_head_dim", "attn_norm_num_groups"):
        if small.get(name):
            small[name] = 4
    return small


@torch.no_grad()
def assert_same_output(ours: nn.Module, theirs: nn.Module, config: dict[str, Any]) -> None:
    sample, labels = inputs(config)
    for timestep in (torch.tensor([1, 987]), 500, torch.tensor(3)):
        expected = theirs(sample, timestep, labels).sample
        assert expected.std() > 1e-4
        assert (ours(sample, timestep, labels).sample - expected).abs().max() < 1e-5 * max(1.0, expected.std())


# --- the same network as diffusers' ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_of_published_checkpoints(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = UNet2DModel(**PUBLISHED[name]), diffusers.UNet2DModel(**PUBLISHED[name])
    assert _shapes(ours) == _shapes(theirs)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def test_parameter_count_of_the_cifar10_model() -> None:
    with torch.device("meta"):
        model = UNet2DModel(**CIFAR10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_746_307  # the paper's "35.7 M"


@pytest.mark.parametrize("name", PUBLISHED)
def test_output_of_published_structures(name: str, written: Written, tmp_path: Path) -> None:
    config = scaled_down(PUBLISHED[name])
    theirs = written(diffusers.UNet2DModel, **config)
    assert_same_output(UNet2DModel.from_pretrained(tmp_path), theirs, config)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.thin(every=2)
def test_output_with_every_option(name: str, written: Written, tmp_path: Path) -> None:
    config = {**SMALL, **OPTIONS[name]}
    theirs = written(diffusers.UNet2DModel, **config)
    assert_same_output(UNet2DModel.from_pretrained(tmp_path), theirs, config)


def test_the_constructor_is_diffusers() -> None:
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (UNet2DModel, diffusers.UNet2DModel))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize("name", ["plain", "class table", "fourier", "scale_shift, resnet resampling"])
def test_what_we_save_loads_in_diffusers(name: str, tmp_path: Path) -> None:
    config = {**SMALL, **OPTIONS[name]}
    torch.manual_seed(2)
    ours = UNet2DModel(**config).eval()
    ours.save_pretrained(tmp_path)
    theirs, report = diffusers.UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same_output(ours, theirs, config)


def test_dropout_is_active_in_training_only() -> None:
    torch.manual_seed(0)
    model = UNet2DModel(**{**SMALL, "dropout": 0.5})
    sample, _ = inputs(SMALL)
    assert not torch.equal(model(sample, 1).sample, model(sample, 1).sample)
    model.eval()
    assert torch.equal(model(sample, 1).sample, model(sample, 1).sample)


# --- weight files ----------------------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(change(load_file(file)), file)


def test_the_attention_names_of_the_first_checkpoints(written: Written, tmp_path: Path) -> None:
    theirs = written(diffusers.UNet2DModel, **SMALL)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(key: str) -> str:
        for new_name, old_name in old.items():
            key = key.replace(new_name, old_name)
        return key

    rewrite(tmp_path, lambda state: {rename(key): value for key, value in state.items()})
    assert any("proj_attn" in key for key in load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
    assert_same_output(UNet2DModel.from_pretrained(tmp_path), theirs, SMALL)


def test_everything_wrong_with_the_keys_is_one_error(written: Written, tmp_path: Path) -> None:
    written(diffusers.UNet2DModel, **SMALL)

    def spoil(state: dict[str, Tensor]) -> dict[str, Tensor]:
        del state["conv_in.bias"]
        return {**state, "conv_extra.bias": torch.zeros(1), "conv_out.bias": torch.zeros(7)}

    rewrite(tmp_path, spoil)
    with pytest.raises(WeightsError) as caught:
        UNet2DModel.from_pretrained(tmp_path)
    message = str(caught.value)
    assert "missing: conv_in.bias (16,)" in message
    assert "unexpected: conv_extra.bias (1,)" in message
    assert "wrong shape: conv_out.bias is (7,), the config asks for (3,)" in message


def test_a_truncated_file_is_a_checkpoint_error(written: Written, tmp_path: Path) -> None:
    written(diffusers.UNet2DModel, **SMALL)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors is not a readable safetensors"):
        UNet2DModel.from_pretrained(tmp_path)


def test_a_pickle_that_is_called_safetensors_is_not_unpickled(written: Written, tmp_path: Path) -> None:
    written(diffusers.UNet2DModel, **SMALL)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps({"conv_in.bias": [1.0]}))
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        UNet2DModel.from_pretrained(tmp_path)


def test_a_bin_file_loads(written: Written, tmp_path: Path) -> None:
    theirs = written(diffusers.UNet2DModel, **SMALL)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    assert_same_output(UNet2DModel.from_pretrained(tmp_path), theirs, SMALL)


def test_half_precision_files(written: Written, tmp_path: Path) -> None:
    theirs = written(diffusers.UNet2DModel, **SMALL).half()
    theirs.save_pretrained(tmp_path)
    model = UNet2DModel.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert_same_output(model, theirs.float(), SMALL)
    assert UNet2DModel.from_pretrained(tmp_path, torch_dtype=torch.float16).dtype == torch.float16
    assert UNet2DModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_bfloat16_is_near_float32() -> None:
    torch.manual_seed(0)
    model = UNet2DModel(**SMALL).eval()
    sample, _ = inputs(SMALL)
    with torch.no_grad():
        full = model(sample, 999).sample
        half = model.to(torch.bfloat16)(sample.bfloat16(), 999).sample
    assert half.dtype == torch.bfloat16
    assert (half - full).abs().max() < 0.05 * full.abs().max()


# --- timesteps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timestep", [7, 7.0, torch.tensor(7), torch.tensor([7]), torch.tensor([7.0, 7.0]).double()])
def test_every_way_to_give_a_timestep(timestep: Any) -> None:
    torch.manual_seed(0)
    model = UNet2DModel(**SMALL).eval()
    sample, _ = inputs(SMALL)
    expected = model(sample, torch.tensor([7, 7])).sample
    torch.testing.assert_close(model(sample, timestep).sample, expected)
    assert model(sample, timestep)[0].shape == sample.shape
    (only,) = model(sample, timestep, return_dict=False)
    torch.testing.assert_close(only, expected)


def test_fractions_of_timesteps_count() -> None:
    torch.manual_seed(0)
    model = UNet2DModel(**SMALL).eval()
    sample, _ = inputs(SMALL)
    assert not torch.allclose(model(sample, 7.5).sample, model(sample, 7).sample, atol=1e-6)


def test_the_result_for_a_sample_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    model = UNet2DModel(**SMALL).eval()
    sample, _ = inputs(SMALL, batch=3)
    together = model(sample, torch.tensor([1, 2, 3])).sample
    alone = model(sample[1:2], 2).sample
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "name", ["plain", "scale_shift, resnet resampling", "class table", "class identity", "fourier"]
)
def test_projections_of_time_computed_beforehand(name: str) -> None:
    torch.manual_seed(0)
    config = {**SMALL, **OPTIONS[name]}
    model = UNet2DModel(**config).eval()
    sample, labels = inputs(config)
    cache = model.project_time(torch.tensor([900, 500, 1]), labels)
    for timestep in (500, torch.tensor(1), torch.tensor([1, 900])):
        plain = model(sample, timestep, labels).sample
        torch.testing.assert_close(model(sample, timestep, labels, time_cache=cache).sample, plain, atol=3e-6, rtol=0)


def test_a_timestep_that_was_not_computed_beforehand_is_nan_not_another() -> None:
    model = UNet2DModel(**SMALL).eval()
    sample, _ = inputs(SMALL)
    cache = model.project_time(torch.tensor([900, 500]))
    out = model(sample, torch.tensor([500, 499]), time_cache=cache).sample
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


# --- training and memory ---------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model = UNet2DModel(**{**SMALL, **RESNET_RESAMPLING})
    sample, _ = inputs(SMALL)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(sample, torch.tensor([3, 700])).sample.square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients()
    model.enable_gradient_checkpointing()
    recomputed = gradients()
    assert len(plain) == len(list(model.parameters()))
    for a, b in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(a, b)
    model.disable_gradient_checkpointing()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_channels_last_gives_the_same_and_stays_so() -> None:
    torch.manual_seed(0)
    model = UNet2DModel(**SMALL).eval()
    sample, _ = inputs(SMALL)
    with torch.no_grad():
        expected = model(sample, 5).sample
        last = model.to(memory_format=torch.channels_last)(sample.to(memory_format=torch.channels_last), 5).sample
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=0)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_copies_and_pickles_are_whole() -> None:
    torch.manual_seed(0)
    model = UNet2DModel(**SMALL).eval()
    sample, _ = inputs(SMALL)
    expected = model(sample, 5).sample
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        model.conv_in.weight.detach().zero_()  # a copy has weights of its own
        assert torch.equal(other(sample, 5).sample, expected)
        assert other.config == model.config
        model = other


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # of inductor
@pytest.mark.parametrize(
    ("name", "backend"),
    [("plain", "inductor"), ("plain", "aot_eager"), ("class table", "aot_eager"), ("fourier", "aot_eager")],
)
def test_compiles_without_a_graph_break(name: str, backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = {**SMALL, **OPTIONS[name]}
    model = UNet2DModel(**config).eval()
    sample, labels = inputs(config)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    cache = model.project_time(torch.tensor([7, 9]), labels)
    with torch.no_grad():
        plain = model(sample, torch.tensor(7), labels).sample
        torch.testing.assert_close(compiled(sample, torch.tensor(7), labels).sample, plain, atol=2e-5, rtol=0)
        if backend == "aot_eager":
            plain = model(sample, torch.tensor([7, 9]), labels).sample
            cached = compiled(sample, torch.tensor([7, 9]), labels, time_cache=cache).sample
            torch.testing.assert_close(cached, plain, atol=2e-5, rtol=0)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("DownBlock", "DownBlock2D")}, "unknown down block type 'DownBlock'; known are Attn"),
        ({"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}, "unknown up block type 'CrossAttnUpBlock2D'; known"),
        ({"mid_block_type": "MidBlock"}, "unknown mid_block_type 'MidBlock'"),
        ({"act_fn": "silly"}, "unknown activation 'silly'; known are gelu"),
        ({"time_embedding_type": "linear"}, "unknown time_embedding_type 'linear'"),
        ({"time_embedding_type": "learned"}, "needs num_train_timesteps"),
        ({"class_embed_type": "projection"}, "unknown class_embed_type 'projection'; known are identity, timestep"),
        ({"resnet_time_scale_shift": "ada_group"}, "unknown resnet_time_scale_shift 'ada_group'; known are default"),
        ({"downsample_type": "pool", "down_block_types": ("AttnDownBlock2D",) * 2}, "unknown downsample_type 'pool'"),
        ({"upsample_type": "bilinear"}, "unknown upsample_type 'bilinear'; known are conv, resnet"),
        ({"block_out_channels": (16, 32, 64)}, "block_out_channels has 3, down_block_types has 2"),
        ({"norm_num_groups": 7}, "multiples of norm_num_groups=7, not 16"),
        ({"attention_head_dim": 64}, "attention_head_dim=64 leaves no head for a layer of 32 channels"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")), torch.device("meta"):
        UNet2DModel(**{**SMALL, **change})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "class_labels are needed"),
        (torch.tensor([1]), r"one entry for each of 2 samples; their shape is \(1,\)"),
        (torch.tensor(1), r"one entry for each of 2 samples; their shape is \(\)"),
        (torch.tensor([[1, 2], [1, 2]]), r"integers of shape \(b,\), not torch.int64 \(2, 2\)"),
        (torch.tensor([1.0, 2.0]), "integers of shape"),
        (torch.tensor([1, 10]), r"must be in 0\.\.9"),
        (torch.tensor([-1, 1]), r"must be in 0\.\.9"),
    ],
)
def test_class_labels_that_do_not_fit(labels: Tensor | None, message: str) -> None:
    model = UNet2DModel(**SMALL, num_class_embeds=10)
    with pytest.raises(ValueError, match=message):
        model(inputs(SMALL)[0], 1, labels)


def test_class_labels_for_a_model_without_classes() -> None:
    with pytest.raises(ValueError, match="without classes"):
        UNet2DModel(**SMALL)(inputs(SMALL)[0], 1, torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 15), r"multiples of 2, not \(16, 15\)"),
        ((1, 4, 16, 16), r"shape \(b, 3, h, w\), not \(1, 4, 16, 16\)"),
        ((3, 16, 16), "must have shape"),
    ],
)
def test_samples_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet2DModel(**SMALL)(torch.zeros(shape), 1)


def test_timesteps_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"shape \(\) or \(2,\), not \(3,\)"):
        UNet2DModel(**SMALL)(inputs(SMALL)[0], torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("groups", [None, 0, -1, 2.0])
def test_a_number_of_groups_that_cannot_be_is_named(groups: Any) -> None:
    blocks: dict[str, Any] = {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2}
    with pytest.raises(ConfigError, match=f"norm_num_groups must be a whole number of 1 or more, not {groups}"):
        UNet2DModel(block_out_channels=(32, 64), norm_num_groups=groups, **blocks)
