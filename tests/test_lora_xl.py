"""Low-rank adapters for Stable Diffusion XL: every layout, agreement with diffusers, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_lora
import tiny_lora_xl
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_lora import EVERY, MORE, UNET, Known, known, named, scaled, with_alphas
from tiny_sd import tiny_reference
from tiny_xl import tiny_xl
from torch import Tensor

import ddim
from ddim import lora
from ddim.cli import main
from ddim.errors import WeightsError
from ddim.pipelines import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # diffusers, loading a second one
]
CLOSE = 1e-4
FILE = "pytorch_lora_weights.safetensors"
PROMPT = "a photo of a red cat on stars"
PARTS = ("unet", "text_encoder", "text_encoder_2")
TEXT = (*tiny_lora.TEXT, "fc1", "fc2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("xl")
    tiny_xl(path)
    return path


def ours(folder: Path, **options: Any) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(folder: Path) -> Any:
    diffusers.utils.logging.set_verbosity_error()
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(folder: Path) -> StableDiffusionXLPipeline:
    return ours(folder)


def picture(pipe: Any, **options: Any) -> Any:
    given = {"prompt": PROMPT, "num_inference_steps": 4, "output_type": "np", "height": 16, "width": 16, **options}
    return pipe(**given, generator=torch.Generator().manual_seed(1)).images


def weights(pipe: Any) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part in PARTS
        if getattr(pipe, part) is not None
        for name, tensor in getattr(pipe, part).state_dict().items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def agree(one: Any, other: Any) -> None:
    assert one.shape == other.shape
    assert one.std() > 0.05  # a picture, not a plane
    assert np.abs(one - other).max() < CLOSE


def differ(one: Any, other: Any) -> None:
    assert np.abs(one - other).max() > 0.01


def present(adapter: Known) -> dict[str, Tensor]:
    return named(adapter, tiny_lora.present)


# --- layouts ---------------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[tiny_lora.Names, tuple[str, ...], tuple[str, ...]]] = {
    "without text_model": (tiny_lora.without_text_model, EVERY, TEXT),
    "older": (tiny_lora.older, EVERY, TEXT),
    "oldest": (tiny_lora_xl.oldest, UNET, tiny_lora.TEXT),
    "kohya": (tiny_lora_xl.kohya, EVERY, TEXT),
    "kohya, original names": (tiny_lora_xl.kohya_original, EVERY, TEXT),
    "LyCORIS": (tiny_lora_xl.lycoris, EVERY, TEXT),
    "ComfyUI": (tiny_lora_xl.comfy, EVERY, TEXT),
    "ComfyUI, peft": (tiny_lora_xl.comfy_peft, EVERY, TEXT),
    "OneTrainer": (tiny_lora_xl.one_trainer, EVERY, TEXT),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.thin(every=3)
def test_all_layouts_are_the_same(layout: str, pipe: StableDiffusionXLPipeline) -> None:
    names, unet, text = LAYOUTS[layout]
    adapter = known(pipe, unet=unet, text=text)
    assert set(adapter) == set(PARTS)
    pipe.load_lora_weights(present(adapter), "expected")
    expected = weights(pipe)
    tensors = named(adapter, names)
    assert len(tensors) == len(present(adapter))
    assert tensors.keys() != present(adapter).keys()
    pipe.load_lora_weights(tensors, "given")
    assert pipe.get_list_adapters() == {part: ["expected", "given"] for part in PARTS}
    assert same(weights(pipe), expected)


@pytest.mark.parametrize("part", PARTS)
def test_what_peft_wrote_of_one_network_goes_to_that_one(part: str, pipe: StableDiffusionXLPipeline) -> None:
    """The names are the same for both text encoders: only sizes tell them apart."""
    adapter = {part: known(pipe, rank=4, text=TEXT)[part]}
    before = weights(pipe)
    pipe.load_lora_weights(named(adapter, tiny_lora.present), "expected")
    expected = weights(pipe)
    assert not same(expected, before)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(named(adapter, tiny_lora.peft), "given")
    assert pipe.get_list_adapters() == {part: ["given"]}
    assert same(weights(pipe), expected)


def test_the_names_are_as_published() -> None:
    """Keys of files on the hub, letter by letter, on Stable Diffusion XL's own sizes."""
    with torch.device("meta"):
        unet = ddim.UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        first = ddim.CLIPTextModel(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        second = ddim.models.CLIPTextModelWithProjection(
            hidden_size=1280, intermediate_size=5120, num_attention_heads=20, num_hidden_layers=32, projection_dim=1280
        )
    cases: dict[str, tuple[tuple[int, ...], str]] = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": ((640, 640), "down_blocks.1.attentions.0"),
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k": ((1280, 2048), "down_blocks.2.attentions.1"),
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj": ((10240, 1280), "mid_block.attentions.0"),
        "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_v": ((640, 2048), "up_blocks.1.attentions.2"),
        "lora_unet_output_blocks_2_1_proj_in": ((1280, 1280), "up_blocks.0.attentions.2"),
        "lora_unet_output_blocks_2_2_conv": ((1280, 1280, 3, 3), "up_blocks.0.upsamplers.0.conv"),
        "lora_unet_input_blocks_3_0_op": ((320, 320, 3, 3), "down_blocks.0.downsamplers.0.conv"),
        "lora_unet_input_blocks_7_0_skip_connection": ((1280, 640, 1, 1), "down_blocks.2.resnets.0.conv_shortcut"),
        "lora_unet_label_emb_0_0": ((1280, 2816), "add_embedding.linear_1"),
        "lora_unet_time_embed_2": ((1280, 1280), "time_embedding.linear_2"),
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_out_0": ((640, 640), "down_blocks.1"),
        "lora_unet_up_blocks_0_attentions_2_transformer_blocks_9_attn2_to_q": (
            (1280, 1280),
            "up_blocks.0.attentions.2",
        ),
        "lora_te1_text_model_encoder_layers_11_mlp_fc1": ((3072, 768), "text_model.encoder.layers.11.mlp.fc1"),
        "lora_te2_text_model_encoder_layers_31_self_attn_k_proj": ((1280, 1280), "text_model.encoder.layers.31"),
        "lora_te2_text_projection": ((1280, 1280), "text_projection"),
        "unet.mid_block.attentions.0.transformer_blocks.9.attn2.to_v": ((1280, 2048), "mid_block.attentions.0"),
        "text_encoder_2.text_model.encoder.layers.31.self_attn.q_proj": ((1280, 1280), "text_model.encoder.layers.31"),
        "text_encoders.clip_g.transformer.text_model.encoder.layers.3.mlp.fc2": ((1280, 5120), "text_model.encoder"),
        "diffusion_model.output_blocks.0.1.transformer_blocks.3.attn1.to_q": ((1280, 1280), "up_blocks.0.attentions.0"),
    }
    networks = {"unet": unet, "text_encoder": first, "text_encoder_2": second}
    for name, ((out, *rest), layer) in cases.items():
        tensors = {
            f"{name}.lora_down.weight": torch.ones(4, *rest),
            f"{name}.lora_up.weight": torch.ones(out, 4, *[1] * len(rest[1:])),
            f"{name}.alpha": torch.tensor(2.0),
        }
        ((found, adapter),) = next(iter(lora.read_lora(tensors, networks).values())).items()
        assert found.startswith(layer), name
        assert adapter.scale == 0.5


# --- against diffusers -----------------------------------------------------------------------------------------------


def both_load(folder: Path, *sources: Any) -> tuple[Any, StableDiffusionXLPipeline]:
    pair = theirs(folder), ours(folder)
    for pipe in pair:
        for number, source in enumerate(sources):
            pipe.load_lora_weights(source, adapter_name=f"number_{number}")
    return pair


@pytest.mark.parametrize(
    "layout",
    [
        "present",
        pytest.param("older", marks=pytest.mark.slow),  # the same weights, by test_all_layouts_are_the_same
        pytest.param("oldest", marks=pytest.mark.slow),
        "kohya",
        "kohya, original names",
    ],
)
@pytest.mark.thin(fast=["kohya"])
def test_images_are_those_of_diffusers(layout: str, folder: Path, tmp_path: Path) -> None:
    names, unet, text = LAYOUTS.get(layout, (tiny_lora.present, EVERY, TEXT))
    if "kohya" in layout:  # diffusers knows no names of some layers there
        unet = MORE if layout == "kohya" else (*UNET, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
    plain = ours(folder)
    tensors = named(known(plain, unet=unet, text=text), names)
    if "kohya" in layout:
        tensors = with_alphas(tensors, 1.5)
    save_file(tensors, tmp_path / FILE)
    their, our = both_load(folder, tmp_path)
    image = picture(our)
    differ(image, picture(plain))
    agree(picture(their), image)
    assert our.get_list_adapters() == their.get_list_adapters() == {part: ["number_0"] for part in PARTS}
    if layout == "present":
        for pipe in (their, our):
            pipe.unload_lora_weights()
        agree(picture(their), picture(our))


# The fast test beside it is test_two_adapters_add_up of test_lora.py.
@pytest.mark.slow
def test_several_at_once_weighted_fused_and_taken_away(folder: Path) -> None:
    plain = ours(folder)
    sources = [present(known(plain, seed=0)), present(known(plain, rank=5, unet=MORE, seed=1))]
    their, our = both_load(folder, *sources)
    images = []
    amounts: list[tuple[Any, Any]] = [
        (["number_0", "number_1"], [0.4, 0.7]),
        ("number_0", -1.0),
        (["number_1"], [{"unet": 0.5, "text_encoder": 0.1, "text_encoder_2": 0.9}]),
        (["number_0", "number_1"], [{"unet": 0.5, "text_encoder_2": 0.0}, {"text_encoder": 0.2}]),
    ]
    for names, given in amounts:
        for pipe in (their, our):
            pipe.set_adapters(names, given)
        images.append(picture(our))
        agree(picture(their), images[-1])
    assert len({image.tobytes() for image in images}) == len(images)
    for pipe in (their, our):
        pipe.set_adapters(["number_0", "number_1"], [0.5, 0.8])
        pipe.fuse_lora(components=["unet", "text_encoder_2"], lora_scale=0.7)
    agree(picture(their), picture(our))
    our.unfuse_lora()
    before = picture(our)
    our.fuse_lora()
    assert np.array_equal(picture(our), before)
    our.unfuse_lora()
    our.delete_adapters("number_0")
    assert our.get_list_adapters() == {part: ["number_1"] for part in PARTS}
    our.disable_lora()
    assert np.array_equal(picture(our), picture(plain))
    our.unload_lora_weights()
    assert same(weights(our), weights(plain))


def test_metadata_of_diffusers_is_read_and_written(folder: Path, tmp_path: Path) -> None:
    import peft
    from peft.utils import get_peft_model_state_dict

    their = theirs(folder)
    first = {"r": 4, "lora_alpha": 6, "alpha_pattern": {"attn2.to_k": 1.5}, "rank_pattern": {"attn1.to_q": 2}}
    configs: dict[str, dict[str, Any]] = {
        "unet": {**first, "target_modules": [*UNET]},
        "text_encoder": {"r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": [*tiny_lora.TEXT]},
        "text_encoder_2": {"r": 3, "lora_alpha": 1, "target_modules": ["q_proj", "fc1"]},
    }
    options: dict[str, Any] = {}
    for part, config in configs.items():
        network = getattr(their, part)
        network.add_adapter(peft.LoraConfig(**config, init_lora_weights=False))
        options[f"{part}_lora_layers"] = get_peft_model_state_dict(network)
        options[f"{part}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
    their.save_lora_weights(tmp_path, **options)
    our = ours(folder)
    our.load_lora_weights(tmp_path)
    differ(picture(our), picture(ours(folder)))
    agree(picture(their), picture(our))
    our.save_lora_weights(tmp_path / "again", **options)
    one, other = load_file(tmp_path / FILE), load_file(tmp_path / "again" / FILE)
    assert same(one, other)
    again = theirs(folder)
    again.load_lora_weights(tmp_path / "again")
    agree(picture(again), picture(our))


def test_what_was_trained_is_the_same_everywhere(folder: Path, tmp_path: Path) -> None:
    pipe = ours(folder)
    networks = {part: getattr(pipe, part) for part in PARTS}
    for part, network in networks.items():
        targets = lora.UNET_TARGETS if part == "unet" else lora.TEXT_TARGETS
        with torch.no_grad():
            for parameter in lora.add_lora(network, 4, 2.0, targets):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    image = picture(pipe)
    lora.save_lora(tmp_path, {part: lora.lora_state(network) for part, network in networks.items()}, 4, 2.0)
    their, our = both_load(folder, tmp_path)
    agree(picture(our), image)
    agree(picture(their), image)


def test_the_refiner_has_one_text_encoder(tmp_path: Path) -> None:
    tiny_xl(tmp_path / "refiner", "refiner")
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(tmp_path / "refiner")
    pipe.set_progress_bar_config(disable=True)
    tensors = named(known(pipe, text=TEXT), tiny_lora_xl.kohya)
    start = Image.new("RGB", (16, 16), "red")
    before = picture(pipe, image=start)
    pipe.load_lora_weights(tensors, "a")
    assert pipe.get_list_adapters() == {"unet": ["a"], "text_encoder_2": ["a"]}
    differ(picture(pipe, image=start), before)
    pipe.unload_lora_weights()
    assert np.array_equal(picture(pipe, image=start), before)


# The fast test beside it is test_every_layout of cli/test_adapters.py.
@pytest.mark.slow
def test_the_command_line_takes_them(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = known(ours(folder), text=TEXT)
    path = tmp_path / "ink.safetensors"
    save_file(with_alphas(named(adapter, tiny_lora_xl.kohya_original), 1.5), path)
    drawn = {}
    for name, given in {"without": [], "with": ["--lora", f"{path}"], "weak": ["--lora", f"{path}:0.01"]}.items():
        out = tmp_path / f"{name}.png"
        arguments = ["sample", PROMPT, "--model", str(folder), "--steps", "2", "--scale", "1", "--out", str(out)]
        main([*arguments, *given])
        drawn[name] = np.asarray(Image.open(out).convert("RGB"), dtype=float)
    assert np.abs(drawn["with"] - drawn["without"]).max() > 5
    assert np.abs(drawn["weak"] - drawn["without"]).max() < np.abs(drawn["with"] - drawn["without"]).max()
    capsys.readouterr()


# --- what does not fit -----------------------------------------------------------------------------------------------


def spoilt(key: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda s: {name: t for name, t in {**s, key: tensor}.items() if t is not None}


Q = "lora_te2_text_model_encoder_layers_1_self_attn_q_proj"
HOSTILE: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no up": (spoilt(f"{Q}.lora_up.weight", None), "missing: the up matrix of text_encoder_2"),
    "no down": (spoilt(f"{Q}.lora_down.weight", None), "missing: the down matrix of text_encoder_2"),
    "rank 0": (spoilt(f"{Q}.lora_down.weight", torch.zeros(0, 24)), "no rank"),
    "no dimension": (spoilt(f"{Q}.lora_down.weight", torch.tensor(1.0)), "no rank"),
    "a huge rank": (spoilt(f"{Q}.lora_down.weight", torch.zeros(1).expand(10**9, 24)), "wrong shape"),
    "another width": (spoilt(f"{Q}.lora_down.weight", torch.zeros(3, 32)), "wrong shape"),
    "NaN": (spoilt(f"{Q}.lora_down.weight", torch.full((3, 24), torch.nan)), "not finite"),
    "infinity": (spoilt(f"{Q}.alpha", torch.tensor(torch.inf)), "not finite"),
    "a layer too many": (spoilt(f"{Q.replace('_1_', '_9_')}.lora_up.weight", torch.zeros(2, 2)), "unexpected"),
    "no such network": (spoilt("lora_te3_x.lora_up.weight", torch.zeros(2, 2)), "unexpected"),
    "DoRA": (spoilt(f"{Q}.dora_scale", torch.ones(24, 1)), "of DoRA"),
    "LoHa": (lambda s: {f"{Q}.hada_w1_a": torch.ones(2, 2)}, "of LoHa"),
    "LoKr": (lambda s: {f"{Q}.lokr_w1": torch.ones(2, 2)}, "of LoKr"),
    "twice": (
        spoilt("text_encoder_2.text_model.encoder.layers.1.self_attn.q_proj.lora_A.weight", torch.ones(3, 24)),
        "twice",
    ),
    "no tensor": (lambda s: {**s, f"{Q}.alpha": "1"}, "no tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.thin(every=3)
def test_what_is_broken_is_one_error_and_changes_nothing(name: str, pipe: StableDiffusionXLPipeline) -> None:
    good = with_alphas(named(known(pipe, text=TEXT), tiny_lora_xl.kohya_original), 1.5)
    pipe.load_lora_weights(present(known(pipe, seed=5)), "before")
    before, states = weights(pipe), [lora.state_of(getattr(pipe, part)) for part in PARTS]
    change, says = HOSTILE[name]
    with pytest.raises(
        WeightsError, match="no LoRA for the unet and the text_encoder and the text_encoder_2"
    ) as caught:
        pipe.load_lora_weights(change(good), "bad")
    assert says in str(caught.value)
    assert same(weights(pipe), before)
    assert all(lora.state_of(getattr(pipe, part)) is state for part, state in zip(PARTS, states, strict=True))
    with pytest.raises(ValueError, match="vae, not for unet and text_encoder and text_encoder_2"):
        pipe.set_adapters("before", {"vae": 1.0})
    with pytest.raises(ValueError, match="components must be a list of unet and text_encoder and text_encoder_2"):
        pipe.fuse_lora(components=["vae"])


def test_a_sum_that_is_not_finite_changes_nothing(pipe: StableDiffusionXLPipeline) -> None:
    adapter = known(pipe, text=TEXT)
    layer = next(reversed(adapter["text_encoder_2"]))
    adapter["text_encoder_2"][layer] = tiny_lora.Pair(*(matrix * 1e25 for matrix in adapter["text_encoder_2"][layer]))
    before = weights(pipe)
    with pytest.raises(WeightsError, match="is not finite"):
        pipe.load_lora_weights(present(adapter))
    assert same(weights(pipe), before)
    assert pipe.get_list_adapters() == {}


@pytest.mark.parametrize(
    ("name", "shape", "family"),
    [
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down", (4, 768), "Stable Diffusion 1"),
        (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v.lora_down",
            (4, 768),
            "Stable Diffusion 1",
        ),
        ("unet.down_blocks.3.attentions.0.transformer_blocks.0.attn2.to_k.lora.down", (4, 1024), "Stable Diffusion 2"),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A",
            (4, 1280),
            "Stable Diffusion XL's refiner",
        ),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down", (4, 768), "Stable Diffusion 1"),
        ("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.lora_down", (4, 768), "Stable Diffusion 1"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down", (4, 768), "Flux"),
        ("transformer.joint_blocks.0.x.lora_A", (4, 768), "Stable Diffusion 3"),
    ],
)
def test_adapters_for_other_models_are_named(
    name: str, shape: tuple[int, ...], family: str, pipe: StableDiffusionXLPipeline
) -> None:
    with pytest.raises(WeightsError, match=f"it may be for {family}"):
        pipe.load_lora_weights({f"{name}.weight": torch.ones(shape)})


def test_stable_diffusion_1_names_what_is_for_xl(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    tiny_reference(tmp_path, 1)
    first = ddim.StableDiffusionPipeline.from_pretrained(tmp_path)
    for names in (tiny_lora_xl.kohya_original, tiny_lora.present, tiny_lora_xl.comfy):
        with pytest.raises(WeightsError, match="it may be for Stable Diffusion XL"):
            first.load_lora_weights(named(known(pipe), names))
    with pytest.raises(WeightsError, match="no LoRA for the unet and the text_encoder of this pipeline"):
        first.load_lora_weights(present(known(pipe, text=())))


def test_settings_of_one_network_are_checked(pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    said = {"text_encoder_2.use_dora": True, "text_encoder_2.r": "big", "unet.lora_alpha": 2}
    metadata = {"lora_adapter_metadata": json.dumps(said)}
    save_file(present(known(pipe)), tmp_path / FILE, metadata=metadata)
    with pytest.raises(WeightsError, match=r"text_encoder_2\.use_dora is True, not implemented") as caught:
        pipe.load_lora_weights(tmp_path)
    assert "text_encoder_2.r is 'big', no number" in str(caught.value)
    assert scaled(known(pipe), 1.0).keys() == set(PARTS)
