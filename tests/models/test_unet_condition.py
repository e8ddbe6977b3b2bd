"""`UNet2DConditionModel` against diffusers': the layouts of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny_xl import DISTILLED, SDXL, SDXL_REFINER
from torch import Tensor, nn

from ddim.errors import ConfigError
from ddim.models import UNet2DConditionModel
from ddim.models.unet_condition import NOT_IMPLEMENTED

Written = Callable[..., nn.Module]

# unet/config.json of the published models, less the defaults.
SD15 = {"sample_size": 64, "cross_attention_dim": 768}
SD21 = {
    "sample_size": 96,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
UPSCALER = {
    "sample_size": 128,
    "in_channels": 7,
    "block_out_channels": (256, 512, 512, 1024),
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
    "cross_attention_dim": 1024,
    "only_cross_attention": (True, True, True, False),
    "num_class_embeds": 1000,
    "use_linear_projection": True,
}
UNCLIP = {
    **SD21,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 2048,
}
PUBLISHED = {
    "sd15": SD15,
    "sd21": SD21,
    "upscaler": UPSCALER,
    "unclip": UNCLIP,
    "inpainting": {**SD15, "in_channels": 9},
    "sdxl": SDXL,
    "sdxl refiner": SDXL_REFINER,
    "sdxl inpainting": {**SDXL, "in_channels": 9},
    **DISTILLED,
    "LCM of SSD-1B": {**DISTILLED["SSD-1B"], "time_cond_proj_dim": 256},
    "BK-SDM tiny": {
        **SD15,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 1,
    },
}

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
CROSS_EVERYWHERE = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}
ONE_LEVEL = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
TEXT_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 10 + 6 * 8,
}
# The distilled models, with two blocks where they have more.
SMALL_DISTILLED: dict[str, dict[str, Any]] = {
    name: {
        **{key: value for key, value in DISTILLED[name].items() if "block" in key and "channels" not in key},
        "block_out_channels": (8, 16, 24),
        "attention_head_dim": (1, 2, 4),
        "use_linear_projection": True,
        "upcast_attention": None,
    }
    for name in DISTILLED
}
OPTIONS: dict[str, dict[str, Any]] = {
    "stable diffusion 1": {},
    "stable diffusion 2": {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
    "stable diffusion xl": {
        **CROSS_EVERYWHERE,
        **TEXT_TIME,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "upcast_attention": None,
    },
    "beside a class": {**TEXT_TIME, "num_class_embeds": 7, "act_fn": "gelu", "time_embedding_dim": 20},
    "heads that do not divide": {"attention_head_dim": 3},
    "list of heads": {**CROSS_EVERYWHERE, "attention_head_dim": [2, 8]},
    "only_cross_attention": {**CROSS_EVERYWHERE, "only_cross_attention": (True, False), "num_class_embeds": 7},
    "only_cross_attention everywhere": {"only_cross_attention": True, "use_linear_projection": True},
    "depths": {**CROSS_EVERYWHERE, "transformer_layers_per_block": (1, 2)},
    "depth": {"transformer_layers_per_block": 2},
    "depth 0": {**CROSS_EVERYWHERE, "transformer_layers_per_block": (0, 1)},
    "depths of each transformer": {
        **CROSS_EVERYWHERE,
        "layers_per_block": 2,
        "transformer_layers_per_block": [[1, 2], [2, 1]],
        "reverse_transformer_layers_per_block": [[1, 3, 1], [2, 1, 1]],
        "only_cross_attention": (True, False),
    },
    "depths of the way up": {"transformer_layers_per_block": 1, "reverse_transformer_layers_per_block": [1, [3, 2]]},
    "a middle as the last level": {**CROSS_EVERYWHERE, "transformer_layers_per_block": [1, [3]]}
    | {"reverse_transformer_layers_per_block": [1, 1]},
    **{name: {**TEXT_TIME, **each} for name, each in SMALL_DISTILLED.items()},
    "layers": {"layers_per_block": (1, 2)},
    "text dims": {"cross_attention_dim": (24, 24)},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "gelu": {"act_fn": "gelu"},
    "sines first": {"flip_sin_to_cos": False, "freq_shift": 1},
    "centred": {"center_input_sample": True},
    "padding 0": {"downsample_padding": 0},
    "mid scale": {"mid_block_scale_factor": 1.7},
    "plain mid block": {"mid_block_type": "UNetMidBlock2D"},
    "no mid block": {"mid_block_type": None},
    "kernels": {"conv_in_kernel": 1, "conv_out_kernel": 5},
    "channels": {"in_channels": 9, "out_channels": 3},
    "eps": {"norm_eps": 1e-3, "dropout": 0.2},
    "time_embedding_dim": {"time_embedding_dim": 20},
    "time_cond_proj_dim": {"time_cond_proj_dim": 12},
    "class table": {"num_class_embeds": 7},
    "class timestep": {"class_embed_type": "timestep", "act_fn": "mish"},
    "class identity": {"class_embed_type": "identity"},
    "class beside the timestep": {"num_class_embeds": 7, "class_embeddings_concat": True},
    "class projection": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10},
    "class simple_projection": {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 10},
}


def inputs(config: dict[str, Any], batch: int = 2, size: int | tuple[int, int] = 8) -> dict[str, Any]:
    """All that the config wants as input, but the timestep."""
    generator = torch.Generator().manual_seed(1)
    height, width = (size, size) if isinstance(size, int) else size

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    text_dim = config["cross_attention_dim"]
    given: dict[str, Any] = {
        "sample": draw(config.get("in_channels", 4), height, width),
        "encoder_hidden_states": draw(5, text_dim if isinstance(text_dim, int) else text_dim[0]),
    }
    if "time_cond_proj_dim" in config:
        given["timestep_cond"] = draw(config["time_cond_proj_dim"])
    kind = config.get("class_embed_type")
    if kind == "identity":
        given["class_labels"] = draw(4 * config["block_out_channels"][0])
    elif kind in ("projection", "simple_projection"):
        given["class_labels"] = draw(config["projection_class_embeddings_input_dim"])
    elif kind == "timestep" or "num_class_embeds" in config:
        given["class_labels"] = torch.arange(batch) + 3
    if "addition_embed_type" in config:
        numbers = torch.tensor([[1024.0, 768, 0, 16, 1000, 999], [512, 33, 7, 0, 1, 2]])
        given["added_cond_kwargs"] = {"text_embeds": draw(10), "time_ids": numbers[:batch]}
    return given


@torch.no_grad()
def assert_same_output(ours: nn.Module, theirs: nn.Module, given: dict[str, Any]) -> None:
    for timestep in (torch.tensor([1, 987]), 500, 0.5):
        expected = theirs(timestep=timestep, **given).sample
        assert expected.std() > 1e-2
        assert (ours(timestep=timestep, **given).sample - expected).abs().max() < 1e-5 * max(1.0, expected.std())


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


# --- the same network as diffusers' ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.thin(every=2)
def test_keys_and_shapes_of_published_checkpoints(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = UNet2DConditionModel(**PUBLISHED[name]), diffusers.UNet2DConditionModel(**PUBLISHED[name])
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize(("name", "count"), [("sd15", 859_520_964), ("sd21", 865_910_724), ("sdxl", 2_567_463_684)])
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel(**PUBLISHED[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.thin(every=2)
def test_output_with_every_option(name: str, written: Written, tmp_path: Path) -> None:
    config = {**SMALL, **OPTIONS[name]}
    theirs = written(diffusers.UNet2DConditionModel, **config)
    assert_same_output(UNet2DConditionModel.from_pretrained(tmp_path), theirs, inputs(config))


@pytest.mark.parametrize("size", [(7, 9), (1, 3), (2, 5)])
def test_sizes_that_cannot_be_halved(size: tuple[int, int], written: Written, tmp_path: Path) -> None:
    theirs = written(diffusers.UNet2DConditionModel, **SMALL)
    assert_same_output(UNet2DConditionModel.from_pretrained(tmp_path), theirs, inputs(SMALL, size=size))


def test_masks(written: Written, tmp_path: Path) -> None:
    config = {**SMALL, **ONE_LEVEL}
    theirs = written(diffusers.UNet2DConditionModel, **config)
    ours = UNet2DConditionModel.from_pretrained(tmp_path)
    given = inputs(config, size=2)
    unmasked = ours(timestep=1, **given).sample
    for name, mask in {
        "encoder_attention_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 0, 1]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]]),
    }.items():
        assert_same_output(ours, theirs, {**given, name: mask})
        assert (ours(timestep=1, **given, **{name: mask}).sample - unmasked).abs().max() > 1e-3


def test_the_constructor_is_diffusers() -> None:
    classes = (UNet2DConditionModel, diffusers.UNet2DConditionModel)
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in classes)
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize("name", ["stable diffusion 1", "stable diffusion 2", "stable diffusion xl"])
def test_what_we_save_loads_in_diffusers(name: str, tmp_path: Path) -> None:
    config = {**SMALL, **OPTIONS[name]}
    torch.manual_seed(2)
    ours = UNet2DConditionModel(**config).eval()
    ours.save_pretrained(tmp_path)
    theirs, report = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same_output(ours, theirs, inputs(config))


def test_lists_of_a_config_survive_a_round_trip(tmp_path: Path) -> None:
    config = {**SMALL, **OPTIONS["list of heads"]}
    UNet2DConditionModel(**config).save_pretrained(tmp_path)
    assert UNet2DConditionModel.from_pretrained(tmp_path).config.attention_head_dim == (2, 8)


def test_a_published_config_loads_without_a_warning() -> None:
    config = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.8.0",
        "_name_or_path": "somewhere",
        "act_fn": "silu",
        "attention_head_dim": [5, 10, 20, 20],
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 1024,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "out_channels": 4,
        "sample_size": 96,
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "upcast_attention": True,
        "use_linear_projection": True,
    }
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config)
        assert shapes(model) == shapes(UNet2DConditionModel(**SD21))


# --- what does not change between steps is computed once -------------------------------------------------------------


@pytest.mark.parametrize("name", ["stable diffusion 1", "only_cross_attention", "time_cond_proj_dim", "depths"])
def test_text_and_time_computed_beforehand(name: str) -> None:
    torch.manual_seed(0)
    config = {**SMALL, **OPTIONS[name]}
    model = UNet2DConditionModel(**config).eval()
    given = inputs(config)
    sample, text = given.pop("sample"), given.pop("encoder_hidden_states")
    text_cache = model.project_text(text)
    time_cache = model.project_time(torch.tensor([900, 500, 1]), **given)
    for timestep in (500, torch.tensor(1), torch.tensor([1, 900])):
        expected = model(sample, timestep, text, **given).sample
        cached = model(sample, timestep, text_cache=text_cache, time_cache=time_cache).sample
        torch.testing.assert_close(cached, expected, atol=3e-6, rtol=0)


def test_beforehand_means_that_nothing_is_projected_again() -> None:
    model = UNet2DConditionModel(**SMALL).eval()
    given = inputs(SMALL)
    text_cache = model.project_text(given["encoder_hidden_states"])
    time_cache = model.project_time(torch.tensor([500]))
    beforehand = (".attn2.to_k", ".attn2.to_v", "time_emb_proj", "time_embedding")
    called = []
    for name, module in model.named_modules():
        if name.endswith(beforehand):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(given["sample"], 500, text_cache=text_cache, time_cache=time_cache)
    assert called == []
    model(given["sample"], 500, given["encoder_hidden_states"])
    assert len(called) == len(text_cache) * 2 + len(model.time_widths) + 1


def test_the_text_may_have_another_type() -> None:
    model = UNet2DConditionModel(**SMALL).eval()
    given = inputs(SMALL)
    given["encoder_hidden_states"] = given["encoder_hidden_states"].half()
    assert model(timestep=1, **given).sample.dtype == torch.float32


# --- training and memory -------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    config = {**SMALL, **OPTIONS["only_cross_attention"]}
    model = UNet2DConditionModel(**config)
    given = inputs(config)

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        model(timestep=torch.tensor([3, 700]), **given).sample.square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    plain = gradients()
    assert all(gradient is not None for gradient in plain)
    model.enable_gradient_checkpointing()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["stable diffusion 1", "stable diffusion 2"])
def test_channels_last_gives_the_same_and_stays_so(name: str) -> None:
    torch.manual_seed(0)
    config = {**SMALL, **OPTIONS[name]}
    model = UNet2DConditionModel(**config).eval()
    given = inputs(config)
    with torch.no_grad():
        expected = model(timestep=5, **given).sample
        model.to(memory_format=torch.channels_last)
        given["sample"] = given["sample"].to(memory_format=torch.channels_last)
        last = model(timestep=5, **given).sample
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=0)
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stable diffusion 1", "stable diffusion 2", "only_cross_attention"])
def test_compiles_without_a_graph_break(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = {**SMALL, **OPTIONS[name]}
    model = UNet2DConditionModel(**config).eval()
    given = inputs(config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = model(timestep=torch.tensor(7), **given).sample
        torch.testing.assert_close(compiled(timestep=torch.tensor(7), **given).sample, expected, atol=2e-5, rtol=0)
        caches = {
            "text_cache": model.project_text(given["encoder_hidden_states"]),
            "time_cache": model.project_time(torch.tensor([9, 7]), given.get("class_labels")),
        }
        cached = compiled(given["sample"], torch.tensor(7), **caches).sample
        torch.testing.assert_close(cached, expected, atol=2e-5, rtol=0)


# The fast test beside it is test_parts_give_what_the_whole_gives of backends/test_backends.py.
@pytest.mark.slow
def test_exports_for_any_batch_and_text_length() -> None:
    torch.manual_seed(0)
    model = UNet2DConditionModel(**SMALL).eval()

    def given(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.randn(batch, 4, 8, 8), torch.rand(batch) * 999, torch.randn(batch, length, 24)

    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=2)
    shapes = {"sample": {0: batch}, "timestep": {0: batch}, "encoder_hidden_states": {0: batch, 1: length}}
    with torch.no_grad():
        exported = torch.export.export(model, given(2, 5), dynamic_shapes=shapes).module()
        for other in (given(2, 5), given(5, 9)):
            torch.testing.assert_close(exported(*other).sample, model(*other).sample, atol=1e-5, rtol=0)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_IMPLEMENTED)
def test_what_is_not_implemented_is_refused_by_name(name: str) -> None:
    other = {False: True, None: 2, 1.0: 2.0}.get(NOT_IMPLEMENTED[name], "other")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=f"{name}={other!r} is not implemented"):
        UNet2DConditionModel(**{**SMALL, name: other})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, "unknown down block type 'AttnDownBlock2D'; known"),
        ({"up_block_types": ("UpBlock2D", "UpBlock")}, "unknown up block type 'UpBlock'; known are CrossAttnUpBlock2D"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "unknown mid_block_type 'UNetMidBlock2DSimpleCrossAttn'"),
        ({"attention_head_dim": (2, 2, 2)}, "attention_head_dim has 3"),
        ({"attention_head_dim": 64}, "attention_head_dim, the number of heads, cannot be 64 for 32 channels"),
        ({"layers_per_block": (1, 1, 1)}, "layers_per_block has 3"),
        ({"transformer_layers_per_block": ((1,), ("2",))}, r"whole numbers, .* or lists of them .*, not \('2',\)"),
        ({"transformer_layers_per_block": (1.5, 1)}, "transformer_layers_per_block must hold whole numbers"),
        ({"transformer_layers_per_block": (1, -1)}, "transformer_layers_per_block must hold whole numbers"),
        ({"transformer_layers_per_block": ((True,), 1)}, "transformer_layers_per_block must hold whole numbers"),
        (
            {"transformer_layers_per_block": ((1,), (1,))},
            r"\[1\] in .*for 1 transformers, but there are 2",
        ),
        ({"transformer_layers_per_block": (1, ())}, r"\[\] in .*for 0 transformers, but there are 1"),
        ({"reverse_transformer_layers_per_block": (1, 1, 1)}, "reverse_transformer_layers_per_block has 3"),
        ({"reverse_transformer_layers_per_block": (1, "x")}, "reverse_transformer_layers_per_block must hold whole"),
        ({"class_embed_type": "projection"}, "'projection' needs projection_class_embeddings_input_dim"),
        ({"class_embed_type": "text"}, "unknown class_embed_type 'text'; known are identity, projection"),
        ({"addition_embed_type": "text"}, "unknown addition_embed_type 'text'; known are text_time"),
        ({"addition_embed_type": "text_time"}, "'text_time' needs addition_time_embed_dim and projection_class_emb"),
        ({"norm_num_groups": 5}, "multiples of norm_num_groups=5, not 16"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        UNet2DConditionModel(**{**SMALL, **change})


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({}, {"encoder_hidden_states": None}, "give encoder_hidden_states or text_cache"),
        ({}, {"encoder_hidden_states": torch.zeros(2, 5, 23)}, r"shape \(b, s, 24\), not \(2, 5, 23\)"),
        ({}, {"encoder_hidden_states": torch.zeros(1, 5, 24)}, "1 texts were given for 2 samples"),
        ({}, {"sample": torch.zeros(2, 3, 8, 8)}, r"shape \(b, 4, h, w\), not \(2, 3, 8, 8\)"),
        ({}, {"class_labels": torch.tensor([1, 2])}, "without classes"),
        ({}, {"timestep_cond": torch.zeros(2, 3)}, "without time_cond_proj_dim"),
        ({"num_class_embeds": 7}, {"class_labels": None}, "class_labels are needed"),
        ({"num_class_embeds": 7}, {"class_labels": torch.tensor([1, 7])}, r"must be in 0\.\.6"),
        ({"class_embed_type": "identity"}, {"class_labels": torch.zeros(2, 1)}, r"make \(2, 1\) where \(2, 64\)"),
    ],
)
def test_inputs_that_do_not_fit(config: dict[str, Any], change: dict[str, Any], message: str) -> None:
    config = {**SMALL, **config}
    with pytest.raises(ValueError, match=message):
        UNet2DConditionModel(**config)(timestep=1, **{**inputs(config), **change})


# --- what Stable Diffusion XL is told beside the timestep -------------------------------------------------------------

XL: dict[str, Any] = {**SMALL, **TEXT_TIME}


@torch.no_grad()
def test_what_is_told_is_computed_once_for_a_run() -> None:
    torch.manual_seed(0)
    model = UNet2DConditionModel(**XL).eval()
    given = inputs(XL)
    added = given.pop("added_cond_kwargs")
    cache = model.project_time(torch.tensor([900, 3]), added_cond_kwargs=added)
    assert cache.table.shape[:2] == (2, 2)
    for timestep in (900, 3):
        plain = model(timestep=timestep, **given, added_cond_kwargs=added).sample
        torch.testing.assert_close(model(timestep=timestep, **given, time_cache=cache).sample, plain)
    one = {"text_embeds": added["text_embeds"], "time_ids": added["time_ids"][:1]}  # the same numbers for both
    both = {**one, "time_ids": one["time_ids"].expand(2, -1)}
    tables = [model.project_time(torch.tensor([5]), added_cond_kwargs=each).table for each in (one, both)]
    assert torch.equal(*tables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "added_cond_kwargs needs text_embeds"),
        ({}, "added_cond_kwargs needs text_embeds"),
        ({"time_ids": None}, "added_cond_kwargs needs time_ids"),
        ({"image_embeds": torch.zeros(2, 4)}, "has image_embeds; this model is told text_embeds and time_ids"),
        ({"time_ids": torch.zeros(1, 6)}, r"time_ids must have shape \(2, n\), not \(1, 6\)"),
        ({"time_ids": torch.zeros(2, 5)}, "text_embeds of 10 channels and 5 time_ids are 50 features, and this model"),
        ({"text_embeds": torch.zeros(2, 11)}, "text_embeds of 11 channels and 6 time_ids are 59 features, and this"),
        ({"text_embeds": torch.zeros(2, 1, 10)}, r"text_embeds must have shape \(2, n\), not \(2, 1, 10\)"),
    ],
)
def test_what_is_told_must_fit(change: dict[str, Any] | None, message: str) -> None:
    model, given = UNet2DConditionModel(**XL), inputs(XL)
    given["added_cond_kwargs"] = {**given["added_cond_kwargs"], **change} if change else change
    with pytest.raises(ValueError, match=message):
        model(timestep=1, **given)


def test_others_are_told_nothing() -> None:
    with pytest.raises(ValueError, match="not told time_ids: leave added_cond_kwargs out"):
        UNet2DConditionModel(**SMALL)(timestep=1, **inputs(SMALL), added_cond_kwargs={"time_ids": torch.zeros(2, 6)})
