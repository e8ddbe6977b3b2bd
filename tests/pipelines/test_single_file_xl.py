"""Stable Diffusion XL's single files: every name of the full models, values against diffusers' conversion, notes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import original
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as theirs
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import write_tokenizer
from tiny_xl import DISTILLED
from torch import Tensor, nn

from ddim.checkpoint.original_layout import XL, XL_REFINER, convert, family_of
from ddim.cli import main
from ddim.errors import ConfigError, WeightsError
from ddim.models import AutoencoderKL, AutoencoderTiny, CLIPTextModel, CLIPTextModelWithProjection, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines import DDIMPipeline, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from ddim.pipelines.single_file import CLASSES, load_single_file

UNET, VAE, FIRST, SECOND = (
    "model.diffusion_model.",
    "first_stage_model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
)
NOTHING = torch.tensor([])
FULL = {
    "base": {"of_unet": original.FULL_XL},
    "inpainting": {"of_unet": original.FULL_XL, "channels": 9},
    "refiner": {"of_unet": original.FULL_REFINER, "refiner": True},
}
TINY: dict[str, dict[str, Any]] = {
    "base": {"ema": True},
    "refiner": {"refiner": True},
    "inpainting": {"channels": 9},
    "SSD-1B": {"of_unet": original.TINY_SSD},
    "KOALA": {"of_unet": original.TINY_KOALA},
}
# What the configs of the published models in diffusers' layout say.
PUBLISHED_BASE: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
PUBLISHED_UNET: dict[str, dict[str, Any]] = {
    "base": PUBLISHED_BASE,
    "inpainting": {**PUBLISHED_BASE, "in_channels": 9},
    "refiner": {
        **PUBLISHED_BASE,
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
}
PUBLISHED_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
TEXT = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2}
PUBLISHED_FIRST = {
    **TEXT,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
}
PUBLISHED_SECOND = {
    **TEXT,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}


def in_shape(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix("text_model."): tuple(value.shape) for key, value in network.state_dict().items()}


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


# --- every name of the full models -----------------------------------------------------------------------------------


# The inpainting model differs from the base in one convolution.
@pytest.mark.parametrize("name", ["base", "refiner", pytest.param("inpainting", marks=pytest.mark.slow)])
def test_every_name_and_shape_of_the_full_models(name: str) -> None:
    named = original.xl_shapes(
        **FULL[name],  # type: ignore[arg-type]
        of_vae=original.FULL_VAE,
        of_text=original.FULL_CLIP,
        of_text_2=original.FULL_BIG_G,
        ema=True,
    )
    tensors = {key: torch.empty(shape, device="meta") for key, shape in named.items()}
    found, problems = convert(tensors)
    assert problems == []
    assert family_of(tensors) is (XL_REFINER if name == "refiner" else XL)
    with torch.device("meta"):
        ours = {
            "unet": UNet2DConditionModel(**PUBLISHED_UNET[name]),
            "vae": AutoencoderKL(**PUBLISHED_VAE),
            "text_encoder": CLIPTextModel(**PUBLISHED_FIRST),
            "text_encoder_2": CLIPTextModelWithProjection(**PUBLISHED_SECOND),
        }
        references: dict[str, Any] = {
            "unet": diffusers.UNet2DConditionModel,
            "vae": diffusers.AutoencoderKL,
            "text_encoder": lambda **config: transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)),
            "text_encoder_2": lambda **config: transformers.CLIPTextModelWithProjection(
                transformers.CLIPTextConfig(**config)
            ),
        }
        assert set(found) == (set(ours) - {"text_encoder"} if name == "refiner" else set(ours))
        for part in found:
            got = {key.removeprefix("text_model."): tuple(tensor.shape) for key, tensor in found[part].state.items()}
            assert got == in_shape(ours[part])
            made = CLASSES[part](**found[part].config)
            for key, value in plain(ours[part].config).items():
                if key not in ("sample_size", "projection_dim") or part == "text_encoder_2":
                    assert made.config[key] == value, key
            assert got == in_shape(references[part](**plain(made.config)))


@pytest.mark.parametrize("name", original.FULL_DISTILLED)
def test_every_name_and_shape_of_the_distilled_unets(name: str) -> None:
    named = original.unet(**original.FULL_DISTILLED[name], linear=True, channels=4)
    tensors = {f"{UNET}{key}": torch.empty(shape, device="meta") for key, shape in named}
    found, problems = convert(tensors)
    assert problems == []
    assert family_of(tensors) is XL
    got = {key: tuple(tensor.shape) for key, tensor in found["unet"].state.items()}
    with torch.device("meta"):
        made = UNet2DConditionModel(**found["unet"].config)
        assert got == in_shape(made) == in_shape(diffusers.UNet2DConditionModel(**DISTILLED[name]))
        assert got == in_shape(diffusers.UNet2DConditionModel(**plain(made.config)))
    for key, value in DISTILLED[name].items():
        if key not in ("sample_size", "upcast_attention") and "transformer" not in key:  # depths have several spellings
            assert made.config[key] == value, key


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refiner", [False, True])
def test_the_values_go_where_diffusers_puts_them(refiner: bool) -> None:
    tensors = original.tensors(original.xl_shapes(refiner=refiner))
    found, problems = convert(tensors)
    assert problems == []
    prefix = "conditioner.embedders.0.model." if refiner else SECOND
    # diffusers takes the width of the projection for that of the encoder, as they are alike in the published models.
    square = {**original.TINY_BIG_G, "projection": 128}
    told = {**(original.TINY_REFINER if refiner else original.TINY_XL), "told": 128 + (40 if refiner else 48)}
    tensors = original.tensors(original.xl_shapes(refiner=refiner, of_text_2=square, of_unet=told))
    found, problems = convert(tensors)
    assert problems == []
    assert found["unet"].config["addition_time_embed_dim"] == 8
    second = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**found["text_encoder_2"].config))
    expected: dict[str, Any] = {
        "unet": theirs.convert_ldm_unet_checkpoint(dict(tensors), found["unet"].config),
        "vae": theirs.convert_ldm_vae_checkpoint(tensors, found["vae"].config),
        "text_encoder_2": theirs.convert_open_clip_checkpoint(second, tensors, prefix=prefix),
    }
    if not refiner:
        expected["text_encoder"] = theirs.convert_ldm_clip_checkpoint(tensors, remove_prefix=FIRST)
        del expected["text_encoder"]["text_model.embeddings.position_ids"]
    assert set(found) == set(expected)
    for part, state in expected.items():
        assert set(found[part].state) == set(state)
        assert all(torch.equal(found[part].state[key], value) for key, value in state.items()), part


def test_nothing_is_copied() -> None:
    tensors = original.tensors(original.xl_shapes())
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    for part in convert(tensors)[0].values():
        assert {tensor.untyped_storage().data_ptr() for tensor in part.state.values()} <= storages


def test_a_projection_that_was_written_as_a_linear_layer() -> None:
    tensors = original.tensors(original.xl_shapes())
    right = convert(tensors)[0]["text_encoder_2"].state
    tensors[f"{SECOND}text_projection.weight"] = tensors.pop(f"{SECOND}text_projection").T.contiguous()
    found = convert(tensors)[0]["text_encoder_2"]
    assert torch.equal(found.state["text_projection.weight"], right["text_projection.weight"])
    assert found.config["projection_dim"] == 48


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("xl")
    made = {}
    for name, options in TINY.items():
        made[name] = folder / f"{name}.safetensors"
        save_file(original.tensors(original.xl_shapes(**options)), made[name])
    return made


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_file_gives_networks_that_compute_what_diffusers_compute(name: str, files: dict[str, Path]) -> None:
    loaded = load_single_file(files[name])
    texts = ["text_encoder_2"] if name == "refiner" else ["text_encoder", "text_encoder_2"]
    assert list(loaded) == ["unet", "vae", *texts, "scheduler"]
    assert not any(loaded[part].training for part in ("unet", "vae", *texts))
    assert (loaded["unet"].config.sample_size, loaded["vae"].config.sample_size) == (128, 1024)
    assert (loaded["vae"].config.scaling_factor, loaded["vae"].config.force_upcast) == (0.13025, True)
    scheduler = loaded["scheduler"].config
    assert (scheduler.prediction_type, scheduler.beta_schedule, scheduler.steps_offset) == (
        "epsilon",
        "scaled_linear",
        1,
    )

    config = plain(loaded["unet"].config)
    unet = diffusers.UNet2DConditionModel(**config).eval()
    tensors = original.tensors(original.xl_shapes(**TINY[name]))
    unet.load_state_dict(theirs.convert_ldm_unet_checkpoint(dict(tensors), config))
    x, text = torch.randn(2, config["in_channels"], 8, 8), torch.randn(2, 5, config["cross_attention_dim"])
    count = 5 if name == "refiner" else 6
    told = {"text_embeds": torch.randn(2, 48), "time_ids": torch.tensor([[1024.0, 900, 0, 3, 800, 700][:count]] * 2)}
    expected = unet(x, 501, text, added_cond_kwargs=told).sample
    assert expected.std() > 0.1
    got = loaded["unet"](x, 501, text, added_cond_kwargs=told).sample
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)

    second = loaded["text_encoder_2"]
    reference = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**plain(second.config))).eval()
    state = {key.removeprefix("text_model."): value for key, value in second.state_dict().items()}
    own = {key.removeprefix("text_model."): key for key in reference.state_dict()}
    reference.load_state_dict({own[key]: value for key, value in state.items()})
    tokens = torch.tensor([[97, 5, 17, 3, 98, 0, 0, 0], [97, 44, 2, 61, 7, 98, 0, 0]])
    torch.testing.assert_close(second(tokens).text_embeds, reference(tokens).text_embeds, atol=1e-5, rtol=1e-4)
    weight = tensors[f"conditioner.embedders.{int(name != 'refiner')}.model.text_projection"]
    assert torch.equal(second.text_projection.weight, weight.T)
    assert second.text_projection.weight.is_contiguous()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [None, torch.float16])
@pytest.mark.thin(every=2)
def test_types(stored: torch.dtype, wanted: torch.dtype | None, tmp_path: Path) -> None:
    tensors = original.tensors(original.xl_shapes(), stored)
    save_file(tensors, tmp_path / "x.safetensors")
    loaded = load_single_file(tmp_path / "x.safetensors", dtype=wanted)
    for part, found in convert(tensors)[0].items():
        got = loaded[part].state_dict()
        assert {tensor.dtype for tensor in got.values()} == {wanted or torch.float32}
        assert all(torch.equal(got[key], found.state[key].to(wanted or torch.float32)) for key in found.state)


def test_auto_is_the_type_that_each_network_is_stored_in(tmp_path: Path) -> None:
    """Of 8 bits, in which nothing can be computed, it is bfloat16, which has all of their numbers."""
    types = {UNET: torch.float8_e4m3fn, VAE: torch.float32, FIRST: torch.float16, SECOND: torch.bfloat16}
    tensors = original.tensors(original.xl_shapes())
    small = {f"{UNET}out.2.bias"}  # some programs leave small tensors as they were
    for prefix, dtype in types.items():
        names = [name for name in tensors if name.startswith(prefix) and name not in small and "_ids" not in name]
        tensors |= {name: tensors[name].to(dtype) for name in names}
    save_file(tensors, tmp_path / "x.safetensors")
    loaded = load_single_file(tmp_path / "x.safetensors", dtype="auto")
    got = {name: loaded[name].dtype for name in ("unet", "vae", "text_encoder", "text_encoder_2")}
    assert [*got.values()] == [torch.bfloat16, torch.float32, torch.float16, torch.bfloat16]
    own = tensors[f"{UNET}time_embed.0.weight"]
    assert torch.equal(loaded["unet"].time_embedding.linear_1.weight, own.to(torch.bfloat16))


def test_averaged_weights(files: dict[str, Path]) -> None:
    tensors = original.tensors(original.xl_shapes(ema=True))
    averaged = load_single_file(files["base"], parts=["unet"], use_ema=True)["unet"]
    stored = tensors["model_ema.diffusion_modellabel_emb00weight"]
    assert torch.equal(averaged.state_dict()["add_embedding.linear_1.weight"], stored)
    with pytest.raises(WeightsError, match=r"missing: model_ema\.diffusion_model"):
        load_single_file(files["inpainting"], use_ema=True)


@pytest.mark.parametrize("prefix", [UNET, ""])
def test_a_network_alone(prefix: str, files: dict[str, Path], tmp_path: Path) -> None:
    tensors = original.tensors(original.xl_shapes())
    alone = {prefix + key.removeprefix(UNET): value for key, value in tensors.items() if key.startswith(UNET)}
    save_file({**alone, "v_pred": NOTHING, "ztsnr": NOTHING}, tmp_path / "x.safetensors")
    loaded = load_single_file(tmp_path / "x.safetensors", parts=["unet", "scheduler"])
    expected = load_single_file(files["base"], parts=["unet"])["unet"].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded["unet"].state_dict().items())
    # How wide each number is cannot be seen without the text encoder: as in the published models.
    assert loaded["unet"].config.addition_time_embed_dim == 256
    assert loaded["scheduler"].config.prediction_type == "v_prediction"
    with pytest.raises(WeightsError, match=r"conditioner\.embedders\.1\.model\.…, the whole text_encoder_2"):
        load_single_file(tmp_path / "x.safetensors")


def test_an_autoencoder_without_the_rest(files: dict[str, Path], tmp_path: Path) -> None:
    """Its scale is that of Stable Diffusion 1, as nothing in it says that it is another one's."""
    tensors = original.tensors(original.xl_shapes())
    alone = {key.removeprefix(VAE): value for key, value in tensors.items() if key.startswith(VAE)}
    save_file(alone, tmp_path / "x.safetensors")
    vae = load_single_file(tmp_path / "x.safetensors", parts=["vae"])["vae"]
    expected = load_single_file(files["base"], parts=["vae"])["vae"].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in vae.state_dict().items())
    assert vae.config.scaling_factor == 0.18215
    save_file(alone, tmp_path / "x.safetensors", {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"})
    assert load_single_file(tmp_path / "x.safetensors", parts=["vae"])["vae"].config.scaling_factor == 0.13025


def test_tokenizers_of_one_place_differ_in_what_fills_texts_up(files: dict[str, Path], tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "one")
    size = len(CLIPTokenizer.from_pretrained(tmp_path / "one"))
    of_text, of_text_2 = ({**each, "words": size} for each in (original.TINY_TEXT, original.TINY_BIG_G))
    path = tmp_path / "x.safetensors"
    save_file(original.tensors(original.xl_shapes(of_text=of_text, of_text_2=of_text_2)), path)
    given = CLIPTokenizer.from_pretrained(tmp_path / "one")
    theirs_tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "one")
    for tokenizer in (tmp_path / "one", given, theirs_tokenizer):
        loaded = load_single_file(path, parts=["scheduler"], tokenizer=tokenizer)
        assert loaded["tokenizer"].pad_token == "<|endoftext|>"
        assert loaded["tokenizer_2"].pad_token == "!"
        assert loaded["tokenizer_2"].pad_token_id == given.convert_tokens_to_ids("!")
    assert given.pad_token == "<|endoftext|>"
    mine = load_single_file(path, parts=["scheduler"], tokenizer_2=given)
    assert mine["tokenizer_2"] is given
    assert mine["tokenizer"].pad_token == "<|endoftext|>"
    with pytest.raises(ConfigError, match="the text encoder knows 99: give another tokenizer"):
        load_single_file(files["base"], tokenizer=tmp_path / "one")


# --- pipelines -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files whose text encoders know the tokens of the tokenizer in the folder "tokenizer"."""
    folder = tmp_path_factory.mktemp("texts")
    write_tokenizer(folder / "tokenizer")
    size = len(CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    first = {**original.TINY_TEXT, "words": size, "positions": 77}
    # Ten layers, as diffusers knows the family by the ninth, and it takes the projection to be square.
    second = {"width": 128, "layers": 10, "words": size, "positions": 77, "projection": 128}
    base, refiner = {**original.TINY_XL, "told": 128 + 48}, {**original.TINY_REFINER, "told": 128 + 40}
    for name, options in {
        "base": {"of_unet": base},
        "inpainting": {"of_unet": base, "channels": 9},
        "refiner": {"of_unet": refiner, "refiner": True},
    }.items():
        shapes = original.xl_shapes(**options, of_text=first, of_text_2=second)  # type: ignore[arg-type]
        save_file(original.tensors(shapes), folder / f"{name}.safetensors")
    for channels in (4, 9):
        save_file(original.tensors(original.shapes(1, channels, of_text=first)), folder / f"1 {channels}.safetensors")
    return folder


REFERENCES = {
    "base": "StableDiffusionXLPipeline",
    "inpainting": "StableDiffusionXLInpaintPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.thin(fast=["base"])
def test_the_same_file_in_diffusers(name: str, with_texts: Path, tmp_path: Path) -> None:
    """By its own `from_single_file`, which takes the configs from the folder that we save."""
    file = with_texts / f"{name}.safetensors"
    ours = DiffusionPipeline.from_single_file(file, tokenizer=with_texts / "tokenizer")
    assert type(ours).__name__ == REFERENCES[name]
    ours.save_pretrained(tmp_path)
    reference = getattr(diffusers, REFERENCES[name])
    more = {"text_encoder": None, "tokenizer": None} if name == "refiner" else {}
    loaded = reference.from_single_file(str(file), config=str(tmp_path), local_files_only=True, **more)
    for part in ("unet", "vae", *[each for each in ("text_encoder", "text_encoder_2") if ours.components[each]]):
        got, expected = in_shape(ours.components[part]), loaded.components[part].state_dict()
        assert len(got) == len(expected)
        state = {k.removeprefix("text_model."): v for k, v in ours.components[part].state_dict().items()}
        assert all(torch.equal(state[k.removeprefix("text_model.")], v) for k, v in expected.items()), part
    assert (ours.components["text_encoder"] is None) == (name == "refiner")
    assert ours.force_zeros_for_empty_prompt is (name != "refiner")
    assert ours.requires_aesthetics_score is (name == "refiner")
    again = reference.from_pretrained(tmp_path)  # with a scheduler, and both tokenizers
    start = Image.new("RGB", (16, 16), "red")
    given: dict[str, Any] = {
        "base": {"height": 16, "width": 16},
        "inpainting": {"image": start, "mask_image": Image.new("L", (16, 16), 255), "height": 16, "width": 16},
        "refiner": {"image": start, "strength": 0.7},
    }[name]
    drawn = []
    for pipe in (again, ours):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        given |= {"num_inference_steps": 3, "guidance_scale": 1.5, "generator": generator, "output_type": "np"}
        drawn.append(pipe("a photo of a red cat", **given).images)
    assert drawn[0].std() > 0.05
    assert abs(drawn[0] - drawn[1]).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "kind"),
    [("1 4", "StableDiffusionPipeline"), ("1 9", "StableDiffusionInpaintPipeline"), *REFERENCES.items()],
)
@pytest.mark.thin(every=2)
def test_the_pipeline_that_a_file_is_for(name: str, kind: str, with_texts: Path) -> None:
    file = with_texts / f"{name}.safetensors"
    pipe: Any = DiffusionPipeline.from_single_file(file, tokenizer=with_texts / "tokenizer", dtype=torch.float16)
    assert type(pipe).__name__ == kind
    assert pipe.dtype == torch.float16


def test_parts_of_ones_own_take_the_place_of_the_files(with_texts: Path) -> None:
    file = with_texts / "base.safetensors"
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    kind = StableDiffusionXLPipeline
    pipe = kind.from_single_file(file, tokenizer=with_texts / "tokenizer", vae=tiny, force_zeros_for_empty_prompt=False)
    assert pipe.vae is tiny
    assert pipe.force_zeros_for_empty_prompt is False
    mute = kind.from_single_file(file, text_encoder=None, text_encoder_2=None)
    assert (mute.tokenizer, mute.tokenizer_2, mute.text_encoder, mute.text_encoder_2) == (None,) * 4
    half = kind.from_single_file(file, text_encoder=None, tokenizer_2=with_texts / "tokenizer")
    assert half.tokenizer_2 is not None
    for more in ({}, {"text_encoder": None}):
        with pytest.raises(TypeError, match="a single file has no tokenizer: give tokenizer="):
            kind.from_single_file(file, **more)
    first = with_texts / "1 4.safetensors"
    with pytest.raises(
        ConfigError, match="is Stable Diffusion 1 or 2, not Stable Diffusion XL: load it with StableDiffu"
    ):
        kind.from_single_file(first, tokenizer=with_texts / "tokenizer")
    with pytest.raises(TypeError, match="no DDIMPipeline was published as a single file"):
        DDIMPipeline.from_single_file(first)
    kind.from_single_file(file, text_encoder=None, text_encoder_2=None, use_safetensors=True, low_cpu_mem_usage=True)
    with pytest.raises(TypeError, match=r"config= is not needed: .* is given by tokenizer="):
        kind.from_single_file(file, config="somebody/sdxl")
    with pytest.raises(TypeError, match="no argument varient"):
        kind.from_single_file(file, tokenizer=with_texts / "tokenizer", varient="x")


def test_the_command_line(with_texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--steps 2 --scale 1 --height 16 --width 16".split()
    given = ["--tokenizer", str(with_texts / "tokenizer"), *sizes]
    model = str(with_texts / "base.safetensors")
    assert main(["sample", "a red cat", "--model", model, *given, "--out", str(tmp_path / "x.png")]) == 0
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (16, 16)
    (tmp_path / "x vpred.safetensors").write_bytes(Path(model).read_bytes())
    named = ["sample", "a", "--model", str(tmp_path / "x vpred.safetensors"), *given, "--out", str(tmp_path / "y.png")]
    assert main(named) == 1
    assert "pass --prediction-type 'v_prediction' if that is right" in capsys.readouterr().err
    assert main([*named, "--prediction-type", "v_prediction"]) == 0
    capsys.readouterr()


# --- what the weights do not say -------------------------------------------------------------------------------------


def scheduler_of(
    folder: Path, metadata: dict[str, str], *marks: str, name: str = "x", refiner: bool = False, **options: Any
) -> Any:
    tensors = {**original.tensors(original.xl_shapes(refiner=refiner)), **dict.fromkeys(marks, NOTHING)}
    save_file(tensors, folder / f"{name}.safetensors", metadata or None)
    return load_single_file(folder / f"{name}.safetensors", parts=["scheduler"], **options)["scheduler"].config


@pytest.mark.parametrize(
    ("metadata", "marks", "expected"),
    [
        ({}, ["v_pred", "ztsnr"], ("v_prediction", True, "trailing")),
        ({}, ["v_pred"], ("v_prediction", False, "leading")),
        ({"modelspec.prediction_type": "v"}, ["ztsnr"], ("v_prediction", True, "trailing")),
        ({"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, [], ("v_prediction", True, "trailing")),
        ({"modelspec.prediction_type": "epsilon"}, [], ("epsilon", False, "leading")),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, [], ("epsilon", False, "leading")),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, [], ("epsilon", False, "leading")),
    ],
)
def test_what_a_file_says(
    metadata: dict[str, str], marks: list[str], expected: tuple[str, bool, str], tmp_path: Path
) -> None:
    config = scheduler_of(tmp_path, metadata, *marks)
    assert (config.prediction_type, config.rescale_betas_zero_snr, config.timestep_spacing) == expected


@pytest.mark.parametrize(
    "name",
    ["noobaiXL_vPred10", "model-v-pred", "Model_V-Prediction_fp16", "x.v_pred", "illustrious_v_param", "noobaiXLVPred"],
)
@pytest.mark.thin(every=2)
def test_a_name_alone_says_too_little(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing in it does: pass prediction_type='v_prediction'"):
        scheduler_of(tmp_path, {}, name=name)
    assert scheduler_of(tmp_path, {}, name=name, prediction_type="epsilon").prediction_type == "epsilon"
    assert scheduler_of(tmp_path, {"modelspec.prediction_type": "epsilon"}, name=name).prediction_type == "epsilon"
    assert scheduler_of(tmp_path, {}, "v_pred", name=name).prediction_type == "v_prediction"


@pytest.mark.parametrize("name", ["sdxl_v1-preview", "improved", "av_predator", "v10prime", "epred"])
def test_other_names_say_nothing(name: str, tmp_path: Path) -> None:
    assert scheduler_of(tmp_path, {}, name=name).prediction_type == "epsilon"


def test_notes_that_contradict_each_other_are_asked_about(tmp_path: Path) -> None:
    metadata = {"modelspec.prediction_type": "epsilon"}
    with pytest.raises(ConfigError, match=r"contradicts itself.*Pass prediction_type="):
        scheduler_of(tmp_path, metadata, "v_pred", "ztsnr")
    config = scheduler_of(tmp_path, metadata, "v_pred", "ztsnr", prediction_type="v_prediction")
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)


@pytest.mark.parametrize("mark", ["edm_mean", "edm_vpred.sigma_max", "edm_std"])
def test_noise_levels_of_edm_are_refused_with_the_reason(mark: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"EDM's noise levels.*has no schedule for"):
        scheduler_of(tmp_path, {}, mark)


# --- what is wrong with a file ---------------------------------------------------------------------------------------


def changed(folder: Path, change: Callable[[dict[str, Tensor]], Any], **options: Any) -> Path:
    tensors = original.tensors(original.xl_shapes(**options))
    change(tensors)
    save_file(tensors, folder / "x.safetensors")
    return folder / "x.safetensors"


def test_all_that_is_wrong_is_one_error(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{UNET}label_emb.0.0.bias"]
        del tensors[f"{SECOND}text_projection"]
        tensors[f"{UNET}label_emb.0.2.weight"] = torch.zeros(3, 3)
        tensors[f"{UNET}label_emb.0.4.weight"] = torch.zeros(3)
        tensors[f"{FIRST}text_model.encoder.layers.1.mlp.fc1.bias"] = torch.zeros(7)
        tensors[f"{SECOND}transformer.resblocks.1.attn.in_proj_bias"] = torch.zeros(191)
        tensors["conditioner.embedders.2.x"] = torch.zeros(2)

    with pytest.raises(WeightsError) as caught:
        load_single_file(changed(tmp_path, change))
    message = str(caught.value)
    assert "x.safetensors is no Stable Diffusion XL (" in message
    for line in (
        "missing: unet.add_embedding.linear_1.bias (128,)",
        "missing: text_encoder_2.text_projection.weight (128, 128)",
        "wrong shape: unet.add_embedding.linear_2.weight is (3, 3)",
        f"unexpected: {UNET}label_emb.0.4.weight (3,)",
        "wrong shape: text_encoder.text_model.encoder.layers.1.mlp.fc1.bias is (7,)",
        "wrong shape: text_encoder_2.text_model.encoder.layers.1.self_attn.q_proj.bias is (64,)",
        "unexpected: conditioner.embedders.2.x (2,)",
    ):
        assert line in message


@pytest.mark.parametrize("shape", [(), (3,), (3, 3, 3), (0, 128), (128, 0)])
@pytest.mark.thin(every=2)
def test_a_projection_of_no_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = changed(tmp_path, lambda tensors: tensors.update({f"{SECOND}text_projection": torch.zeros(shape)}))
    with pytest.raises((WeightsError, ConfigError)):
        load_single_file(path)


@pytest.mark.parametrize("shape", [(), (128,), (0, 0), (128, 0), (7, 96)])
@pytest.mark.thin(every=2)
def test_what_the_network_is_told_has_no_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.zeros(1).expand(shape) if shape else torch.zeros(())
    tensors = original.tensors(original.xl_shapes())
    tensors[f"{UNET}label_emb.0.0.weight"] = tensor.to(torch.float16).contiguous()
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises((WeightsError, ConfigError)):
        load_single_file(tmp_path / "x.safetensors")


def test_a_whole_network_missing_is_one_line(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(FIRST)]:
            del tensors[name]

    with pytest.raises(WeightsError, match=r"\(1 differences\):\n  missing: conditioner\.embedders\.0\.transformer\.…"):
        load_single_file(changed(tmp_path, change))


@pytest.mark.parametrize("number", [10, 9999, 10**30])
def test_absurd_numbers_cost_nothing(number: int, tmp_path: Path) -> None:
    names = (
        f"{UNET}input_blocks.2.1.transformer_blocks.{number}.norm1.weight",
        f"{UNET}middle_block.1.transformer_blocks.{number}.norm1.weight",
        f"{SECOND}transformer.resblocks.{number}.ln_1.weight",
    )
    for name in names:
        path = changed(tmp_path, lambda tensors, name=name: tensors.update({name: torch.zeros(1)}))  # type: ignore[misc]
        with pytest.raises((WeightsError, ConfigError)):
            load_single_file(path)


def test_what_belongs_to_another_family(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is Stable Diffusion XL, not .*: load it with StableDiffusionXLPipeline\."):
        StableDiffusionPipeline.from_single_file(files["base"], tokenizer=tmp_path)
    with pytest.raises(ValueError, match="is Stable Diffusion XL's refiner, which has no text_encoder"):
        load_single_file(files["refiner"], parts=["text_encoder"])
    save_file(original.tensors(original.shapes(1)), tmp_path / "1.safetensors")
    with pytest.raises(ValueError, match="is Stable Diffusion 1 or 2, which has no text_encoder_2"):
        load_single_file(tmp_path / "1.safetensors", parts=["text_encoder_2"])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight", "a LoRA"),
        ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_up.weight", "a LoRA"),
        ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.lora_A.weight", "a LoRA"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "a LoRA"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("down_blocks.0.resnets.0.conv1.weight", "a U-Net in diffusers' layout"),
        ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", "Flux"),
        ("edm_mean", "a model of EDM's noise levels"),
        ("scaled_fp8", "one whose weights of 8 bits need scales"),
    ],
)
def test_other_kinds_of_file_are_named(name: str, what: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "x.safetensors")
    for kind in (StableDiffusionXLPipeline, DiffusionPipeline):
        with pytest.raises(WeightsError, match=f"it may be {what}"):
            kind.from_single_file(tmp_path / "x.safetensors", tokenizer=tmp_path)


def test_what_is_loaded_saves_and_loads_again(files: dict[str, Path], tmp_path: Path) -> None:
    for part, network in load_single_file(files["base"]).items():
        network.save_pretrained(tmp_path / part)
        again = type(network).from_pretrained(tmp_path / part)
        if part != "scheduler":
            state = network.state_dict()
            assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
