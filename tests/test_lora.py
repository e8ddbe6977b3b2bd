"""Low-rank adapters: identities, every layout, agreement with diffusers, training."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_lora
import torch
from fresh import python
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_lora import EVERY, MORE, TEXT, UNET, Known, known, named, scaled, with_alphas
from tiny_sd import tiny_reference
from torch import Tensor, nn

import ddim
from ddim import lora
from ddim.errors import CheckpointError, ConfigError, MissingExtraError, NonFiniteError, WeightsError
from ddim.pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # diffusers, loading a second one
]
CLOSE = 1e-5
STEPS = 5  # divides 1000: here diffusers' previous timestep is the next one
PROMPT = "a photo of a red cat on stars"
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Tiny checkpoints of both versions of Stable Diffusion; nothing writes there."""
    made = {version: tmp_path_factory.mktemp(f"sd{version}") for version in (1, 2)}
    for version, path in made.items():
        tiny_reference(path, version)
    return made


@pytest.fixture(params=[1, 2], ids=["SD 1", "SD 2"])
def folder(request: pytest.FixtureRequest, folders: dict[int, Path]) -> Path:
    return folders[request.param]


@pytest.fixture(scope="module")
def first(folders: dict[int, Path]) -> Path:
    return folders[1]


def ours(folder: Path, **options: Any) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(folder: Path) -> Any:
    diffusers.utils.logging.set_verbosity_error()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(first: Path) -> StableDiffusionPipeline:
    return ours(first)


def picture(pipe: Any, **options: Any) -> Any:
    given = {"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "np", **options}
    return pipe(**given, generator=torch.Generator().manual_seed(1)).images


def weights(pipe: Any) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part in ("unet", "text_encoder")
        for name, tensor in getattr(pipe, part).state_dict().items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def present(adapter: Known) -> dict[str, Tensor]:
    return named(adapter, tiny_lora.present)


def agree(one: Any, other: Any) -> None:
    assert one.shape == other.shape
    assert one.std() > 0.05  # a picture, not a plane
    assert np.abs(one - other).max() < CLOSE


def differ(one: Any, other: Any) -> None:
    assert np.abs(one - other).max() > 0.01


# --- identities ------------------------------------------------------------------------------------------------------


def test_zeros_change_nothing(pipe: StableDiffusionPipeline) -> None:
    before = weights(pipe)
    pipe.load_lora_weights(present(scaled(known(pipe, unet=EVERY), 0.0)))
    assert same(weights(pipe), before)
    assert all(pipe.get_list_adapters().values())


def test_a_merged_layer_is_the_sum_of_both_paths(pipe: StableDiffusionPipeline) -> None:
    """Against the two products beside every layer, in an order that never makes their sum."""
    adapter = known(pipe, unet=EVERY, text=(*TEXT, "fc1", "fc2"))
    beside = copy.deepcopy(pipe.components)
    pipe.load_lora_weights(with_alphas(named(adapter, tiny_lora.kohya), 6.0))  # α/r = 2
    hooked = 0
    for part, pairs in adapter.items():
        for name, (down, up) in pairs.items():
            layer = beside[part].get_submodule(name)

            def add(layer: Any, args: Any, out: Tensor, down: Tensor = down, up: Tensor = up) -> Tensor:
                if isinstance(layer, nn.Linear):
                    return out + 2 * (args[0] @ down.T @ up.T)
                inner = nn.functional.conv2d(args[0], down, stride=layer.stride, padding=layer.padding)
                return out + 2 * nn.functional.conv2d(inner, up)

            layer.register_forward_hook(add)
            hooked += 1
    assert hooked == sum(map(len, adapter.values())) > 70
    ids = torch.randint(0, 500, (2, 77))
    text = pipe.text_encoder(ids).last_hidden_state
    torch.testing.assert_close(text, beside["text_encoder"](ids).last_hidden_state, atol=2e-5, rtol=1e-5)
    x = torch.randn(2, 4, 8, 8)
    out = pipe.unet(x, 500, text).sample
    torch.testing.assert_close(out, beside["unet"](x, 500, text).sample, atol=2e-5, rtol=1e-5)


def test_unloading_restores_bit_for_bit(pipe: StableDiffusionPipeline) -> None:
    before, image = weights(pipe), picture(pipe)
    for seed in range(3):
        pipe.load_lora_weights(present(known(pipe, unet=EVERY, seed=seed)))
    pipe.set_adapters(["default_0", "default_2"], [0.3, -2.0])
    differ(picture(pipe), image)
    pipe.unload_lora_weights()
    assert same(weights(pipe), before)
    assert np.array_equal(picture(pipe), image)
    assert pipe.get_list_adapters() == {}
    assert pipe.get_active_adapters() == []


def test_a_weight_of_zero_is_none(pipe: StableDiffusionPipeline) -> None:
    before = weights(pipe)
    pipe.load_lora_weights(present(known(pipe)), "a")
    pipe.set_adapters("a", 0.0)
    assert same(weights(pipe), before)
    pipe.set_adapters("a", 1.0)
    assert not same(weights(pipe), before)
    pipe.disable_lora()
    assert same(weights(pipe), before)
    pipe.enable_lora()
    assert not same(weights(pipe), before)
    pipe.set_adapters([])
    assert same(weights(pipe), before)


def test_two_adapters_add_up(pipe: StableDiffusionPipeline) -> None:
    before = weights(pipe)
    pipe.load_lora_weights(present(known(pipe, seed=0)), "a")
    one = weights(pipe)
    pipe.load_lora_weights(present(known(pipe, rank=5, unet=MORE, seed=1)), "b")
    other = weights(pipe)  # the last one alone
    pipe.set_adapters(["a", "b"], [0.5, 2.0])
    for name, weight in weights(pipe).items():
        expected = before[name] + 0.5 * (one[name] - before[name]) + 2 * (other[name] - before[name])
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-5)
    both = weights(pipe)
    pipe.set_adapters("a")
    assert same(weights(pipe), one)
    pipe.set_adapters(["a", "b"], [0.5, 2.0])
    assert same(weights(pipe), both)
    pipe.delete_adapters("a")
    assert pipe.get_list_adapters() == {"unet": ["b"], "text_encoder": ["b"]}
    pipe.set_adapters("b")
    assert same(weights(pipe), other)


def test_alpha_is_divided_by_the_rank(pipe: StableDiffusionPipeline) -> None:
    adapter = known(pipe, rank=4)
    names = tiny_lora.kohya
    pipe.load_lora_weights(with_alphas(named(adapter, names), 1.0), "quarter")
    quarter = weights(pipe)
    pipe.load_lora_weights(named(scaled(adapter, 0.25), names), "told so")
    assert same(weights(pipe), quarter)
    pipe.load_lora_weights(named(adapter, names), "whole")
    pipe.set_adapters("whole", 0.25)
    assert same(weights(pipe), quarter)


def test_fusing_changes_nothing_and_is_undone(pipe: StableDiffusionPipeline) -> None:
    before = weights(pipe)
    pipe.load_lora_weights(present(known(pipe, unet=EVERY)), "a")
    loaded = weights(pipe)
    pipe.fuse_lora()
    assert same(weights(pipe), loaded)
    pipe.set_adapters("a", 0.1)  # too late
    pipe.disable_lora()
    assert same(weights(pipe), loaded)
    pipe.enable_lora()
    pipe.set_adapters("a")
    pipe.unfuse_lora()
    assert same(weights(pipe), loaded)
    pipe.fuse_lora(lora_scale=0.5)
    half = weights(pipe)
    pipe.unfuse_lora()
    pipe.set_adapters("a", 0.5)
    assert same(weights(pipe), half)
    pipe.unload_lora_weights()
    assert same(weights(pipe), before)


def test_what_is_fused_stays(pipe: StableDiffusionPipeline) -> None:
    pipe.load_lora_weights(present(known(pipe, seed=0)), "a")
    pipe.load_lora_weights(present(known(pipe, seed=1)), "b")
    pipe.fuse_lora(adapter_names=["a"], components=["unet"])
    fused = weights(pipe)  # both in the U-Net, "b" in the text encoder
    with pytest.raises(ValueError, match="a is fused"):
        pipe.delete_adapters("a")
    pipe.set_adapters([])
    only = weights(pipe)
    assert not same(only, fused)
    pipe.set_adapters("b")
    pipe.unload_lora_weights()
    assert same(weights(pipe), only)
    pipe.unfuse_lora()  # there is nothing any more
    assert same(weights(pipe), only)
    pipe.load_lora_weights(present(known(pipe, seed=2)), "a")  # the name is free again
    assert not same(weights(pipe), only)
    pipe.unload_lora_weights()
    assert same(weights(pipe), only)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_rounded_once(dtype: torch.dtype, first: Path) -> None:
    pipe = ours(first, dtype=dtype)
    before = weights(pipe)
    adapter = known(pipe, unet=MORE)
    pipe.load_lora_weights(present(adapter))
    wide = torch.promote_types(dtype, torch.float32)
    for part, pairs in adapter.items():
        for layer, (down, up) in pairs.items():
            name = f"{layer}.weight"
            product = (up.to(wide).flatten(1) @ down.to(wide).flatten(1)).view(before[f"{part}.{name}"].shape)
            expected = (before[f"{part}.{name}"].to(wide) + product).to(dtype)
            torch.testing.assert_close(getattr(pipe, part).state_dict()[name], expected, atol=0, rtol=1e-7)
    pipe.unload_lora_weights()
    assert same(weights(pipe), before)


def test_the_kept_weights_follow_a_conversion(first: Path) -> None:
    pipe = ours(first)
    pipe.load_lora_weights(present(known(pipe)))
    pipe.to(torch.bfloat16)
    pipe.set_adapters("default_0", 0.5)
    pipe.unload_lora_weights()
    assert same(weights(pipe), weights(ours(first, dtype=torch.bfloat16)))


def test_pipelines_that_share_networks_share_adapters(pipe: StableDiffusionPipeline) -> None:
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    before = weights(pipe)
    pipe.load_lora_weights(present(known(pipe)), "a")
    assert other.get_active_adapters() == ["a"]
    other.load_lora_weights(present(known(pipe, seed=1)), "b")
    with pytest.raises(ValueError, match="has an adapter 'a'"):
        other.load_lora_weights(present(known(pipe, seed=1)), "a")
    pipe.unload_lora_weights()
    assert same(weights(other), before)


def test_a_copy_has_adapters_of_its_own(pipe: StableDiffusionPipeline) -> None:
    before = weights(pipe)
    pipe.load_lora_weights(present(known(pipe)), "a")
    other = StableDiffusionPipeline(**copy.deepcopy(pipe.components))
    loaded = weights(other)
    pipe.unload_lora_weights()
    assert same(weights(other), loaded)
    other.unload_lora_weights()
    assert same(weights(other), before)


# The fast test beside it is test_compiled_graphs_read_the_weights_anew of backends/test_changes.py.
@pytest.mark.slow
def test_a_compiled_network_takes_adapters(pipe: StableDiffusionPipeline) -> None:
    adapter = present(known(pipe, text=()))
    plain, x, text = pipe.unet, torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    pipe.unet = compiled = torch.compile(plain, backend="eager")
    outputs = []
    for change in (lambda: None, lambda: pipe.load_lora_weights(adapter, "a"), pipe.unload_lora_weights):
        change()
        with torch.no_grad():
            outputs.append(compiled(x, 10, text).sample)
            torch.testing.assert_close(outputs[-1], plain(x, 10, text).sample)
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1], atol=0.01)


def test_without_adapters_nothing_is_there(pipe: StableDiffusionPipeline) -> None:
    for change in (pipe.unload_lora_weights, pipe.fuse_lora, pipe.unfuse_lora, pipe.disable_lora, pipe.enable_lora):
        change()
    assert lora.state_of(pipe.unet) == lora.State()
    assert "_lora" not in vars(pipe.unet)
    keys = set(weights(pipe))
    pipe.load_lora_weights(present(known(pipe)))
    assert set(weights(pipe)) == keys
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_a_pipeline_is_saved_as_it_computes(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    pipe.load_lora_weights(present(known(pipe)))
    pipe.save_pretrained(tmp_path)
    assert same(weights(ours(tmp_path)), weights(pipe))


# --- layouts ---------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[tiny_lora.Names, tuple[str, ...], tuple[str, ...]]] = {
    "present": (tiny_lora.present, EVERY, (*TEXT, "fc1", "fc2")),
    "without text_model": (tiny_lora.without_text_model, EVERY, (*TEXT, "fc1", "fc2")),
    "older": (tiny_lora.older, EVERY, (*TEXT, "fc1", "fc2")),
    "oldest": (tiny_lora.oldest, UNET, TEXT),
    "oldest, without unet": (tiny_lora.oldest_without_part, UNET, ()),
    "peft": (tiny_lora.peft, EVERY, (*TEXT, "fc1", "fc2")),
    "peft, in training": (tiny_lora.peft_in_training, EVERY, (*TEXT, "fc1", "fc2")),
    "kohya": (tiny_lora.kohya, EVERY, (*TEXT, "fc1", "fc2")),
    "kohya, original names": (tiny_lora.kohya_original, EVERY, (*TEXT, "fc1", "fc2")),
    "ComfyUI": (tiny_lora.comfy, EVERY, (*TEXT, "fc1", "fc2")),
    "ComfyUI, peft": (tiny_lora.comfy_peft, EVERY, (*TEXT, "fc1", "fc2")),
    "OneTrainer": (tiny_lora.one_trainer, EVERY, (*TEXT, "fc1", "fc2")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.thin(every=3)
def test_all_layouts_are_the_same(layout: str, folder: Path) -> None:
    pipe = ours(folder)
    names, unet, text = LAYOUTS[layout]
    adapter = known(pipe, unet=unet, text=text)
    pipe.load_lora_weights(present(adapter), "expected")
    expected = weights(pipe)
    tensors = named(adapter, names)
    assert layout == "present" or tensors.keys() != present(adapter).keys()
    pipe.load_lora_weights(tensors, "given")
    assert pipe.get_active_adapters() == ["given"]
    assert same(weights(pipe), expected)


def test_the_names_are_as_published() -> None:
    """Keys of files on the hub, letter by letter, on Stable Diffusion 1's own sizes."""
    with torch.device("meta"):
        unet = ddim.UNet2DConditionModel(cross_attention_dim=768)
        text = ddim.CLIPTextModel(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    cases = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (320, 320),
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj": (2560, 320),
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k": (320, 768),
        "lora_unet_input_blocks_8_1_transformer_blocks_0_attn2_to_k": (1280, 768),
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_out_0": (1280, 1280),
        "lora_unet_output_blocks_11_1_proj_in": (320, 320, 1, 1),
        "lora_unet_mid_block_resnets_1_conv1": (1280, 1280, 3, 3),
        "lora_te_text_model_encoder_layers_11_mlp_fc1": (3072, 768),
        "lora_te_text_model_encoder_layers_0_self_attn_k_proj": (768, 768),
        "lycoris_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj": (2560, 320),
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k": (320, 768),
        "diffusion_model.input_blocks.8.1.transformer_blocks.0.attn1.to_out.0": (1280, 1280),
        "diffusion_model.output_blocks.11.1.proj_in": (320, 320, 1, 1),
        "diffusion_model.middle_block.2.in_layers.2": (1280, 1280, 3, 3),
        "diffusion_model.out.2": (4, 320, 3, 3),
        "model.diffusion_model.time_embed.0": (1280, 320),
        "unet.output_blocks.5.2.conv": (1280, 1280, 3, 3),
        "unet.input_blocks.1.1.transformer_blocks.0.attn1.to_out": (320, 320),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.k_proj": (768, 768),
        "clip_l.transformer.text_model.encoder.layers.0.mlp.fc2": (768, 3072),
        "clip_l.text_model.encoder.layers.11.mlp.fc1": (3072, 768),
    }
    for name, (out, *rest) in cases.items():
        tensors = {
            f"{name}.lora_down.weight": torch.ones(4, *rest),
            f"{name}.lora_up.weight": torch.ones(out, 4, *[1] * len(rest[1:])),
            f"{name}.alpha": torch.tensor(2.0),
        }
        parsed = lora.read_lora(tensors, {"unet": unet, "text_encoder": text})
        ((layer, adapter),) = next(iter(parsed.values())).items()
        assert adapter.scale == 0.5, layer
    old = {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": torch.ones(4, 320),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": torch.ones(320, 4),
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": torch.ones(4, 768),
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.up.weight": torch.ones(1280, 4),
    }
    assert len(lora.read_lora(old, {"unet": unet})["unet"]) == 2


# --- what stands beside the tensors ----------------------------------------------------------------------------------


def stored(path: Path, tensors: dict[str, Tensor], metadata: Any = None, config: Any = None) -> Path:
    """A folder with an adapter in it; metadata in its header, or peft's config beside it."""
    path.mkdir(parents=True, exist_ok=True)
    if config is not None:
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(config))
        return path
    said = {} if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file(tensors, path / FILE, metadata={"format": "pt", **said})
    return path


def factors(pipe: StableDiffusionPipeline) -> dict[str, float]:
    """α/r of every layer that has an adapter, by its last words."""
    return {
        name: layer.scale
        for network in (pipe.unet, pipe.text_encoder)
        for adapter in lora.state_of(network).stored.values()
        for name, layer in adapter.items()
    }


QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SETTINGS: dict[str, tuple[dict[str, Any], float, float]] = {  # α/r of the query above, and of all else; r is 4
    "nothing": ({}, 1.0, 1.0),
    "alpha": ({"r": 4, "lora_alpha": 8}, 2.0, 2.0),
    "a half": ({"r": 4, "lora_alpha": 0.5}, 0.125, 0.125),
    "rslora": ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0, 4.0),
    "a layer": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {QUERY: 2}}, 0.5, 2.0),
    "an end": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"mid_block.attentions.0.to_q": 3, "attn1.to_q": 2}}, 0.5, 2),
    "a start": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"^to_q": 3, f"^{QUERY}": 2}}, 0.5, 2.0),
    "dots": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {QUERY.replace(".", "\\.") + "$": 2}}, 0.5, 2.0),
    "the first": ({"r": 4, "lora_alpha": 4, "alpha_pattern": {QUERY: 2, "attn1.to_q": 4}}, 0.5, 1.0),
    "a rank": ({"r": 9, "lora_alpha": 8, "rank_pattern": {"to_q": 4, "to_k": 4, "to_v": 4, "to_out.0": 4}}, 2.0, 2.0),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("where", ["metadata", "its own metadata", "config"])
@pytest.mark.thin(every=3)
def test_settings_say_how_strong(name: str, where: str, pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    settings, query, others = SETTINGS[name]
    adapter = known(pipe, rank=4, text=())
    if where == "config":
        source = stored(tmp_path, named(adapter, tiny_lora.peft), config={**settings, "peft_type": "LORA"})
    else:
        prefix = "unet." if where == "metadata" else ""
        source = stored(tmp_path, present(adapter), {f"{prefix}{key}": value for key, value in settings.items()})
    pipe.load_lora_weights(source)
    found = factors(pipe)
    assert found.pop(QUERY) == query
    if name in ("an end", "the first"):  # also others
        assert {layer for layer, scale in found.items() if scale != others} <= {n for n in found if "attn1.to_q" in n}
    else:
        assert set(found.values()) == {others}


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_mean_what_they_mean_in_peft(rslora: bool, pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    import peft

    rank_pattern = {"attn2.to_k": 2, "mid_block.attentions.0.transformer_blocks.0.attn1.to_v": 5}
    alpha_pattern = {"attn2.to_k": 7, "to_q": 3, "^mid_block.attentions.0.transformer_blocks.0.attn1.to_v": 1}
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=[*UNET, "conv1"],
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        use_rslora=rslora,
        init_lora_weights=False,
    )
    beside = peft.get_peft_model(copy.deepcopy(pipe.unet), config)
    beside.save_pretrained(tmp_path)
    pipe.load_lora_weights(tmp_path)
    expected = {
        name.removeprefix("base_model.model."): module.scaling["default"]
        for name, module in beside.named_modules()
        if hasattr(module, "scaling")
    }
    assert factors(pipe) == expected
    assert len(set(expected.values())) >= 4
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    out = beside(x, 5, text).sample
    torch.testing.assert_close(pipe.unet(x, 5, text).sample, out, atol=2e-5, rtol=1e-5)


def test_each_part_has_settings_of_its_own(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    said = {"unet.lora_alpha": 8, "text_encoder.lora_alpha": 2, "text_encoder.alpha_pattern": {"encoder.layers.0": 1}}
    pipe.load_lora_weights(stored(tmp_path / "both", present(known(pipe, rank=4)), said), "both")
    assert {(s, "text_model" in n) for n, s in factors(pipe).items()} == {(2.0, False), (0.5, True)}
    pipe.unload_lora_weights()
    pipe.load_lora_weights(stored(tmp_path / "one", present(known(pipe, rank=4)), {"unet.lora_alpha": 8}), "one")
    assert {(s, "text_model" in n) for n, s in factors(pipe).items()} == {(2.0, False), (1.0, True)}


# --- where files are -------------------------------------------------------------------------------------------------


def test_files_are_found(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tensors = present(known(pipe))
    pipe.load_lora_weights(tensors)
    expected = weights(pipe)
    save_file(tensors, stored(tmp_path / "named", {"x": torch.zeros(1)}) / "mine.safetensors")
    (tmp_path / "only").mkdir()
    save_file(tensors, tmp_path / "only" / "whatever.safetensors")
    (tmp_path / "bin").mkdir()
    torch.save(tensors, tmp_path / "bin" / "pytorch_lora_weights.bin")
    ways: list[tuple[Any, dict[str, Any]]] = [
        (stored(tmp_path / "usual", tensors), {}),
        (str(tmp_path / "usual" / FILE), {"use_safetensors": True}),
        (tmp_path, {"subfolder": "usual"}),
        (tmp_path / "named", {"weight_name": "mine.safetensors"}),
        (tmp_path, {"subfolder": "named", "weight_name": "mine.safetensors"}),
        (tmp_path / "only", {}),
        (tmp_path / "bin", {}),
        (tmp_path / "bin" / "pytorch_lora_weights.bin", {}),
    ]
    for source, options in ways:
        pipe.unload_lora_weights()
        pipe.load_lora_weights(source, **options)
        assert same(weights(pipe), expected), source


def test_peft_keeps_networks_apart(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    adapter = known(pipe, rank=2)
    pipe.load_lora_weights(present(adapter))
    expected = weights(pipe)
    pipe.unload_lora_weights()
    for part, pairs in adapter.items():
        stored(tmp_path / part, named({part: pairs}, tiny_lora.peft), config={"r": 2, "lora_alpha": 2})
        pipe.load_lora_weights(tmp_path, "style", subfolder=part)
    assert pipe.get_list_adapters() == {"unet": ["style"], "text_encoder": ["style"]}
    assert same(weights(pipe), expected)
    pipe.unload_lora_weights()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        pipe.load_lora_weights(stored(tmp_path / "without", named({"unet": adapter["unet"]}, tiny_lora.peft)))


def test_the_file_may_go_when_it_is_loaded(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tensors = present(known(pipe))
    source = stored(tmp_path / "x", tensors) / FILE
    pipe.load_lora_weights(source, "a")
    expected = weights(pipe)
    source.write_bytes(b"\0" * source.stat().st_size)  # in place
    pipe.set_adapters([])
    pipe.set_adapters("a")
    assert same(weights(pipe), expected)


def test_wrong_arguments_are_refused(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tensors = present(known(pipe))
    pipe.load_lora_weights(tensors, "a")
    before = weights(pipe)
    cases: list[tuple[Any, str, Callable[[], Any]]] = [
        (ValueError, "there is no adapter 'b'; loaded are a", lambda: pipe.set_adapters("b")),
        (ValueError, "2 weights were given for 1", lambda: pipe.set_adapters(["a"], [1.0, 2.0])),
        (ValueError, "twice", lambda: pipe.set_adapters(["a", "a"])),
        (ValueError, "finite", lambda: pipe.set_adapters("a", float("nan"))),
        (ValueError, "finite", lambda: pipe.set_adapters("a", True)),
        (ValueError, "finite", lambda: pipe.set_adapters("a", {"unet": {"down": 1.0}})),
        (ValueError, "vae", lambda: pipe.set_adapters("a", {"vae": 1.0})),
        (ValueError, "finite", lambda: pipe.fuse_lora(lora_scale="1")),
        (ValueError, "components", lambda: pipe.fuse_lora(0.7)),
        (ValueError, "components", lambda: pipe.fuse_lora([])),
        (ValueError, "components", lambda: pipe.unfuse_lora(["vae"])),
        (ValueError, "no adapter", lambda: pipe.fuse_lora(adapter_names=["b"])),
        (ValueError, "no adapter", lambda: pipe.delete_adapters("b")),
        (ValueError, "has an adapter 'a'", lambda: pipe.load_lora_weights(tensors, "a")),
        (TypeError, "adapter_name", lambda: pipe.load_lora_weights(tensors, "")),
        (TypeError, "hotswap", lambda: pipe.load_lora_weights(tmp_path, hotswap=True)),
        (TypeError, "no file to name", lambda: pipe.load_lora_weights(tensors, weight_name="x.safetensors")),
        (CheckpointError, "weight_name=", lambda: pipe.load_lora_weights(tmp_path)),
        (CheckpointError, "x.safetensors", lambda: pipe.load_lora_weights(tmp_path, weight_name="x.safetensors")),
        (CheckpointError, "no folder", lambda: pipe.load_lora_weights("/not/there")),
        (WeightsError, "not finite in torch.float32", lambda: pipe.set_adapters("a", 1e300)),
        (ValueError, "set_adapters", lambda: picture(pipe, cross_attention_kwargs={"scale": 0.5})),
        (ValueError, "set_adapters", lambda: pipe.encode_prompt("a", lora_scale=0.5)),
        (ValueError, "nothing", lambda: pipe.save_lora_weights(tmp_path)),
        (ValueError, "plain name", lambda: pipe.save_lora_weights(tmp_path, tensors, weight_name="../x.safetensors")),
        (NonFiniteError, "x has", lambda: pipe.save_lora_weights(tmp_path, {"x": torch.tensor([torch.nan])})),
    ]
    for error, says, call in cases:
        with pytest.raises(error, match=says):
            call()
        assert same(weights(pipe), before), says
    assert pipe.get_active_adapters() == ["a"]
    assert list(tmp_path.iterdir()) == []


# --- against diffusers -----------------------------------------------------------------------------------------------


def both_load(folder: Path, *sources: Any, **options: Any) -> tuple[Any, StableDiffusionPipeline]:
    pair = theirs(folder), ours(folder)
    for pipe in pair:
        for i, source in enumerate(sources):
            pipe.load_lora_weights(source, adapter_name=f"number_{i}", **options)
    return pair


ALL_TEXT = (*TEXT, "fc1", "fc2")


def on_both(cases: dict[str, tuple[Any, ...]], widest: str, parts: tuple[str, ...] = ()) -> list[Any]:
    """All cases on Stable Diffusion 1; on 2 the one that has most in it, and the others among the slow tests.

    So are those on 1 that are named as parts of others.
    """
    return [
        pytest.param(
            version,
            *values,
            id=f"SD {version}-{name}",
            marks=[pytest.mark.slow] if (version == 2 and name != widest) or name in parts else [],
        )
        for version in (1, 2)
        for name, values in cases.items()
    ]


LAYERS: dict[str, tuple[Any, ...]] = {
    "attention-U-Net": (UNET, ()),
    "attention-text": (UNET, TEXT),
    "attention-all text": (UNET, ALL_TEXT),
    "every layer-U-Net": (EVERY, ()),
    "every layer-text": (EVERY, TEXT),
    "every layer-all text": (EVERY, ALL_TEXT),
}


@pytest.mark.parametrize(
    ("folder", "unet", "text"),
    on_both(LAYERS, "every layer-all text", ("attention-text", "attention-all text", "every layer-U-Net")),
    indirect=["folder"],
)
@pytest.mark.thin(every=2)
def test_images_are_those_of_diffusers(
    unet: tuple[str, ...], text: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    plain = ours(folder)
    adapter = known(plain, unet=unet, text=text)
    their, our = both_load(folder, stored(tmp_path, present(adapter)))
    image = picture(our)
    differ(image, picture(plain))
    agree(picture(their), image)
    their.unload_lora_weights()
    our.unload_lora_weights()
    agree(picture(their), picture(our))


@pytest.mark.parametrize("layout", ["without text_model", "older", "oldest", "kohya"])
@pytest.mark.thin(fast=["older", "kohya"])
def test_older_layouts_are_read_as_diffusers_reads_them(layout: str, first: Path) -> None:
    names, unet, text = LAYOUTS[layout]
    if layout == "kohya":  # diffusers renames no time_embedding, and no conv_in where there is a time embedding
        unet = MORE
    adapter = known(ours(first), unet=unet, text=text)
    tensors = named(adapter, names)
    tensors = with_alphas(tensors, 1.5) if layout == "kohya" else tensors
    their, our = both_load(first, tensors)
    differ(picture(our), picture(ours(first)))
    agree(picture(their), picture(our))


@pytest.mark.parametrize("folder", on_both({"two": ()}, ""), indirect=True)
# The fast test beside it is test_two_adapters_add_up.
@pytest.mark.slow
def test_several_at_once(folder: Path) -> None:
    plain = ours(folder)
    sources = [present(known(plain, seed=0)), present(known(plain, rank=5, unet=MORE, seed=1))]
    their, our = both_load(folder, *sources)
    assert our.get_active_adapters() == their.get_active_adapters() == ["number_1"]
    assert our.get_list_adapters() == their.get_list_adapters()
    agree(picture(their), picture(our))
    images = []
    for names, amounts in [
        (["number_0", "number_1"], [0.4, 0.7]),
        ("number_0", -1.0),
        (["number_1", "number_0"], 0.5),
        (["number_0", "number_1"], [{"unet": 0.5, "text_encoder": 0.1}, {"unet": 0.2}]),
        (["number_0", "number_1"], None),
    ]:
        their.set_adapters(names, amounts)
        our.set_adapters(names, amounts)
        images.append(picture(our))
        agree(picture(their), images[-1])
    their.disable_lora()
    our.disable_lora()
    agree(picture(their), picture(our))
    assert len({image.tobytes() for image in images}) == len(images)


def test_an_adapter_for_one_part_leaves_the_other(first: Path) -> None:
    plain = ours(first)
    sources = [present(known(plain, seed=0)), present(known(plain, seed=1, text=()))]
    their, our = both_load(first, *sources)  # the second is for the U-Net alone: the text encoder keeps the first
    agree(picture(their), picture(our))
    assert lora.state_of(our.text_encoder).active == {"number_0": 1.0}


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.thin(fast=["0.3"])
def test_fused_is_as_diffusers_fuses(scale: float, first: Path) -> None:
    plain = ours(first)
    their, our = both_load(first, present(known(plain, seed=0)), present(known(plain, seed=1)))
    for pipe in (their, our):
        pipe.set_adapters(["number_0", "number_1"], [0.5, 0.8])
        pipe.fuse_lora(lora_scale=scale)
    agree(picture(their), picture(our))
    for pipe in (their, our):
        pipe.unload_lora_weights()
    image = picture(our)
    agree(picture(their), image)
    differ(image, picture(plain))
    for pipe in (their, our):  # on top of what is fused
        pipe.load_lora_weights(present(known(plain, seed=2)))
    agree(picture(their), picture(our))


def test_a_change_on_the_way_is_seen(first: Path) -> None:
    """In a callback: what was computed once for the whole run, of text and time, is computed anew."""
    ends = ("to_k", "to_v", "time_emb_proj", "linear_1", "conv1")
    their, our = both_load(first, *(present(known(ours(first), unet=ends, text=(), seed=seed)) for seed in range(2)))

    def change(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.set_adapters(f"number_{index % 2}", 1.0 - 0.2 * index)
        return {}

    images = []
    for pipe in (their, our):
        pipe.set_adapters("number_0")
        images.append(picture(pipe, callback_on_step_end=change))
    agree(*images)
    our.set_adapters("number_0")
    differ(picture(our), images[1])


def test_metadata_of_diffusers_is_read(first: Path, tmp_path: Path) -> None:
    import peft
    from peft.utils import get_peft_model_state_dict

    their = theirs(first)
    configs = {
        "unet": peft.LoraConfig(
            r=4, lora_alpha=6, target_modules=[*UNET], init_lora_weights=False, alpha_pattern={"attn2.to_k": 1.5}
        ),
        "text_encoder": peft.LoraConfig(
            r=2, lora_alpha=3, target_modules=[*TEXT], init_lora_weights=False, use_rslora=True
        ),
    }
    options: dict[str, Any] = {}
    for part, config in configs.items():
        network = getattr(their, part)
        network.add_adapter(config)
        options[f"{part}_lora_layers"] = get_peft_model_state_dict(network)
        options[f"{part}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
    their.save_lora_weights(tmp_path, **options)
    our = ours(first)
    our.load_lora_weights(tmp_path)
    differ(picture(our), picture(ours(first)))
    agree(picture(their), picture(our))
    found = factors(our)
    assert set(found.values()) == {1.5, 1.5 / 4, 3 / 2**0.5}
    our.save_lora_weights(tmp_path / "again", **options)
    with safe_open(tmp_path / FILE, "pt") as one, safe_open(tmp_path / "again" / FILE, "pt") as other:
        said = [json.loads(file.metadata()["lora_adapter_metadata"]) for file in (one, other)]
        for each in said:
            for part in configs:
                each[f"{part}.target_modules"].sort()  # a set there
        assert said[0] == said[1]
        assert set(one.keys()) == set(other.keys())


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def unet(pipe: StableDiffusionPipeline) -> Iterator[Any]:
    return pipe.unet


def trained(network: Any, **options: Any) -> list[nn.Parameter]:
    """Matrices that are no longer at their start."""
    parameters = lora.add_lora(network, **options)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return parameters


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_matrices_change_nothing_and_are_all_that_is_trained(init: str, dtype: torch.dtype, first: Path) -> None:
    unet = ours(first, dtype=dtype).unet.train()
    x, text = torch.randn(2, 4, 8, 8, dtype=dtype), torch.randn(2, 77, 32, dtype=dtype)
    before = unet(x, 10, text).sample
    layers = tiny_lora.layers(unet, (*UNET, "conv1"))
    sizes = sum(4 * (m.weight.shape[0] + m.weight[0].numel()) for m in layers.values())
    parameters = lora.add_lora(unet, 4, targets=(*UNET, "conv1"), init=init)
    assert torch.equal(unet(x, 10, text).sample, before)
    assert sum(parameter.numel() for parameter in parameters) == sizes
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in parameters}
    assert {p.dtype for p in unet.parameters() if not p.requires_grad} == {dtype}
    unet(x, 10, text).sample.float().square().mean().backward()
    state = lora.lora_state(unet)
    grads = {name: parameter.grad for name, parameter in lora._matrices(unet, "default").items()}
    assert all((grad != 0).any() == name.endswith("lora_B.weight") for name, grad in grads.items() if grad is not None)
    assert len(grads) == len(state) == 2 * len(layers)


def test_training_learns(unet: Any) -> None:
    x, text = torch.randn(4, 4, 8, 8), torch.randn(4, 77, 32)
    goal = torch.randn(4, 4, 8, 8)
    frozen = {name: p.clone() for name, p in unet.named_parameters()}
    optimizer = torch.optim.Adam(lora.add_lora(unet.train(), 4, targets=(*UNET, "conv_out")), lr=0.01)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (unet(x, 10, text).sample - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    now = {name.replace(".base_layer", ""): p for name, p in unet.named_parameters() if ".lora_" not in name}
    assert same(now, frozen)


TRAINED = {"U-Net": (False, None), "both": (True, None), "U-Net, alpha": (False, 2.0), "both, alpha": (True, 2.0)}


@pytest.mark.parametrize(("folder", "text", "alpha"), on_both(TRAINED, "both, alpha"), indirect=["folder"])
@pytest.mark.thin(fast=["SD 1-both, alpha", "SD 2-both, alpha"])
def test_what_was_trained_is_the_same_everywhere(text: bool, alpha: float | None, folder: Path, tmp_path: Path) -> None:
    """In the pipeline that was trained, in a new one of ours, and in diffusers'."""
    pipe = ours(folder)
    plain = picture(pipe)
    networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder} if text else {"unet": pipe.unet}
    targets = {"unet": (*UNET, "conv1", "proj_in"), "text_encoder": (*lora.TEXT_TARGETS, "fc1")}
    for name, network in networks.items():
        trained(network, rank=4, alpha=alpha, targets=targets[name])
    image = picture(pipe)
    differ(image, plain)
    states = {name: lora.lora_state(network) for name, network in networks.items()}
    file = lora.save_lora(tmp_path / "made", states, rank=4, alpha=alpha)
    assert file == tmp_path / "made" / FILE
    assert list((tmp_path / "made").iterdir()) == [file]
    their, our = both_load(folder, tmp_path / "made")
    agree(picture(our), image)
    agree(picture(their), image)
    assert set(factors(our).values()) == {1.0 if alpha is None else alpha / 4}


def test_a_state_is_put_back(unet: Any) -> None:
    trained(unet, rank=2)
    state = {name: tensor.clone() for name, tensor in lora.lora_state(unet).items()}
    for tensor in lora.lora_state(unet).values():
        tensor.zero_()
    lora.load_lora_state(unet, state)
    assert same(lora.lora_state(unet), state)
    key = next(iter(state))
    with pytest.raises(WeightsError, match="wrong shape") as caught:
        lora.load_lora_state(unet, {**state, key: torch.zeros(1, 1), "x": torch.zeros(1)})
    assert "unexpected: x" in str(caught.value)
    assert same(lora.lora_state(unet), state)


def test_several_are_told_apart(unet: Any) -> None:
    trained(unet, rank=2, adapter_name="one")
    lora.add_lora(unet, 3, targets=("to_q",), adapter_name="other")
    assert {len(tensor) for key, tensor in lora.lora_state(unet, "one").items() if "lora_A" in key} == {2}
    assert {len(tensor) for key, tensor in lora.lora_state(unet, "other").items() if "lora_A" in key} == {3}
    assert all("to_q" in key for key in lora.lora_state(unet, "other"))
    assert {n.split(".")[-2] for n, p in unet.named_parameters() if p.requires_grad} == {"other"}


def test_wrong_settings_of_training(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    unet = pipe.unet
    for says, options in {
        "rank": {"rank": 0},
        "rank must be an int": {"rank": 2.0},
        "alpha": {"rank": 2, "alpha": 0.0},
        "alpha must": {"rank": 2, "alpha": float("nan")},
        "init='pissa'": {"rank": 2, "init": "pissa"},
        "called 'q_proj'": {"rank": 2, "targets": ("to_q", "q_proj")},
        "called 'o_q'": {"rank": 2, "targets": ("o_q",)},
        "adapter_name": {"rank": 2, "adapter_name": "a.b"},
    }.items():
        with pytest.raises(ConfigError, match=says):
            lora.add_lora(unet, **options)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="add_lora makes one"):
            lora.lora_state(unet)
    pipe.load_lora_weights(present(known(pipe)))
    with pytest.raises(ConfigError, match="unload_lora_weights"):
        lora.add_lora(unet, 2)
    pipe.unload_lora_weights()
    lora.add_lora(unet, 2)
    with pytest.raises(ConfigError, match="taken"):
        lora.add_lora(unet, 2)
    with pytest.raises(ValueError, match="peft's"):
        pipe.load_lora_weights(present(known(pipe, unet=())))
    state = lora.lora_state(unet)
    with pytest.raises(ValueError, match="another rank than 3"):
        lora.save_lora(tmp_path, {"unet": state}, rank=3)
    with pytest.raises(ValueError, match="vae"):
        lora.save_lora(tmp_path, {"vae": state}, rank=2)
    assert list(tmp_path.iterdir()) == []


# --- what it costs to import -----------------------------------------------------------------------------------------


def test_loading_needs_no_peft(first: Path, tmp_path: Path) -> None:
    file = stored(tmp_path, present(known(ours(first)))) / FILE
    loaded = python(
        "import sys, torch, ddim; sys.modules['peft'] = None\n"
        f"pipe = ddim.StableDiffusionPipeline.from_pretrained({str(first)!r})\n"
        "pipe.set_progress_bar_config(disable=True)\n"
        f"pipe.load_lora_weights({str(file)!r}); pipe.fuse_lora()\n"
        "pipe('a cat', num_inference_steps=1, output_type='latent')\n"
        "print(*sys.modules)"
    ).split()
    assert not {"transformers", "diffusers", "accelerate", "peft.utils"} & set(loaded)


def test_training_without_peft_is_the_pip_command(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str) -> Any:
        raise MissingExtraError(f"pip install 'ddim[{extra}]'")

    monkeypatch.setattr(lora, "require", missing)
    with pytest.raises(MissingExtraError, match=r"ddim\[train\]"):
        lora.add_lora(unet, 2)
