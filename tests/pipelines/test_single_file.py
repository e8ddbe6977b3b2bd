"""Stable Diffusion's original single files: every name of the full models, values against diffusers' conversion."""

from __future__ import annotations

import shutil
import warnings
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
from safetensors.torch import load_file, save_file
from tiny_clip import vocabulary, write_tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from ddim.checkpoint.original_layout import convert
from ddim.errors import CheckpointError, ConfigError, WeightsError
from ddim.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines import DiffusionPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from ddim.pipelines.single_file import CLASSES, SCHEDULER, load_single_file

UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
SD_PARTS = ("unet", "vae", "text_encoder")
Shapes = dict[str, tuple[int, ...]]

# What the configs of the published models in diffusers' layout say.
SD2_UNET = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
PUBLISHED_UNET = {
    "1.5": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "1.5 inpainting": {"cross_attention_dim": 768, "attention_head_dim": 8, "in_channels": 9},
    "2.1": SD2_UNET,
    "2 inpainting": {**SD2_UNET, "in_channels": 9},
}
PUBLISHED_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
EITHER_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2}
PUBLISHED_CLIP = {
    1: {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    2: {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "hidden_act": "gelu",
    },
}
FULL_TEXT = {
    1: {"width": 768, "layers": 12, "words": 49408, "positions": 77},
    2: {"width": 1024, "layers": 24, "words": 49408, "positions": 77},
}


def in_shape(network: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


# --- every name of the full models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED_UNET)
@pytest.mark.thin(every=2)
def test_every_name_and_shape_of_the_full_models(name: str) -> None:
    version = int(name[0])
    named = original.shapes(
        version,
        9 if "inpainting" in name else 4,
        of_unet=original.FULL,
        of_vae=original.FULL_VAE,
        of_text=FULL_TEXT[version],
        ema=version == 1,
    )
    found, problems = convert({key: torch.empty(shape, device="meta") for key, shape in named.items()})
    assert problems == []
    clip = {**EITHER_CLIP, **PUBLISHED_CLIP[version]}
    with torch.device("meta"):
        networks = {
            "unet": (UNet2DConditionModel(**PUBLISHED_UNET[name]), diffusers.UNet2DConditionModel),
            "vae": (AutoencoderKL(**PUBLISHED_VAE), diffusers.AutoencoderKL),
            "text_encoder": (CLIPTextModel(**clip), transformers.CLIPTextModel),
        }
        for part, (ours, reference) in networks.items():
            got = {key: tuple(tensor.shape) for key, tensor in found[part].state.items()}
            assert got == in_shape(ours)
            # The config that is read off the shapes makes the same network, here and in the reference libraries.
            made = CLASSES[part](**found[part].config)
            assert in_shape(made) == got
            for key, value in ours.config.items():
                if not key.startswith("_") and key not in ("sample_size", "projection_dim", "upcast_attention"):
                    known = made.config[key]
                    per_level = isinstance(known, tuple) and not isinstance(value, tuple)
                    assert set(known if per_level else [known]) == {value}, key
            config = {key: value for key, value in made.config.items() if not key.startswith("_")}
            if part == "text_encoder":
                expected = in_shape(reference(transformers.CLIPTextConfig(**config)))
                assert {key.removeprefix("text_model.") for key in got} == {
                    key.removeprefix("text_model.") for key in expected
                }
            else:
                assert got == in_shape(reference(**config))


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_the_values_go_where_diffusers_puts_them(version: int) -> None:
    tensors = original.tensors(original.shapes(version))
    found, problems = convert(tensors)
    assert problems == []
    unet, vae, text = (found[part] for part in SD_PARTS)
    if version == 1:
        expected_text = theirs.convert_ldm_clip_checkpoint(tensors)
        del expected_text["text_model.embeddings.position_ids"]
    else:
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text.config))
        expected_text = theirs.convert_open_clip_checkpoint(model, tensors)
        expected_text = {key: value for key, value in expected_text.items() if "text_projection" not in key}
    for part, expected in (
        (unet, theirs.convert_ldm_unet_checkpoint(dict(tensors), unet.config)),
        (vae, theirs.convert_ldm_vae_checkpoint(tensors, vae.config)),
        (text, expected_text),
    ):
        assert set(part.state) == set(expected)
        assert all(torch.equal(part.state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("multiples", [(1,), (1, 2), (1, 2, 2), (1, 2, 1, 3)])
@pytest.mark.thin(every=2)
def test_other_structures(multiples: tuple[int, ...], layers: int) -> None:
    """Names as diffusers has them for networks that nobody published, so that the numbers in the rules count."""
    structure = {"width": 32, "multiples": multiples, "layers": layers, "attend": set(range(len(multiples) - 1)) or {0}}
    of_vae = {"width": 32, "multiples": multiples, "layers": layers}
    named = original.shapes(1, of_unet=structure, of_vae=of_vae)
    found, problems = convert({key: torch.empty(shape, device="meta") for key, shape in named.items()})
    assert problems == []
    for part, reference in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        with torch.device("meta"):
            network = reference(**found[part].config)
        assert {key: tuple(tensor.shape) for key, tensor in found[part].state.items()} == in_shape(network)


def test_nothing_is_copied() -> None:
    tensors = original.tensors(original.shapes(2))
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    for part in convert(tensors)[0].values():
        assert {tensor.untyped_storage().data_ptr() for tensor in part.state.values()} <= storages


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("single")
    made = {}
    for name, (version, channels, ema) in {
        "1": (1, 4, True),
        "1 inpainting": (1, 9, False),
        "2": (2, 4, False),
        "2 inpainting": (2, 9, False),
    }.items():
        made[name] = folder / f"{name}.safetensors"
        save_file(original.tensors(original.shapes(version, channels, ema=ema)), made[name])
    return made


@pytest.mark.parametrize("name", ["1", "1 inpainting", "2", "2 inpainting"])
@torch.no_grad()
@pytest.mark.thin(every=2)
def test_a_file_gives_what_the_same_weights_in_diffusers_layout_give(name: str, files: dict[str, Path]) -> None:
    version, channels = int(name[0]), 9 if "inpainting" in name else 4
    tensors = original.tensors(original.shapes(version, channels))
    loaded = load_single_file(files[name], prediction_type="v_prediction")
    assert list(loaded) == ["unet", "vae", "text_encoder", "scheduler"]
    assert not any(loaded[part].training for part in SD_PARTS)

    config = {
        "in_channels": channels,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "attention_head_dim": 8 if version == 1 else (1, 1),
        "use_linear_projection": version == 2,
    }
    unet = diffusers.UNet2DConditionModel(**config)
    unet.load_state_dict(theirs.convert_ldm_unet_checkpoint(dict(tensors), config))
    x, text = torch.randn(2, channels, 8, 8), torch.randn(2, 5, 64)
    expected = unet(x, 501, text).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(loaded["unet"](x, 501, text).sample, expected, atol=1e-5, rtol=1e-4)

    config = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vae = diffusers.AutoencoderKL(**config)
    vae.load_state_dict(theirs.convert_ldm_vae_checkpoint(tensors, vae.config))
    images = torch.rand(2, 3, 16, 16)
    expected = vae.encode(images).latent_dist.parameters
    assert expected.std() > 0.1
    torch.testing.assert_close(loaded["vae"].encode(images).latent_dist.parameters, expected, atol=1e-5, rtol=1e-4)
    expected = vae.decode(x[:, :4]).sample
    torch.testing.assert_close(loaded["vae"].decode(x[:, :4]).sample, expected, atol=1e-5, rtol=1e-4)

    if version == 1:
        tokens = torch.tensor([[97, 5, 17, 3, 98, 98, 98, 98], [97, 44, 2, 61, 7, 98, 98, 98]])
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**loaded["text_encoder"].config))
        model.load_state_dict(
            {
                key.removeprefix("text_model."): value
                for key, value in theirs.convert_ldm_clip_checkpoint(tensors).items()
                if "position_ids" not in key
            }
        )
        expected = model.eval()(tokens).last_hidden_state
        torch.testing.assert_close(loaded["text_encoder"](tokens).last_hidden_state, expected, atol=1e-5, rtol=1e-4)


class OpenCLIPBlock(nn.Module):
    """OpenCLIP's own block: torch's attention with its joint projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


@torch.no_grad()
def test_openclip_stops_one_layer_early(tmp_path: Path) -> None:
    """24 layers, 128 channels in two heads: the text that Stable Diffusion 2 sees, computed OpenCLIP's way."""
    of_text = {"width": 128, "layers": 24, "words": 99, "positions": 16}
    tensors = original.tensors(original.shapes(2, of_text=of_text))
    path = tmp_path / "two.safetensors"
    save_file(tensors, path)
    ours = load_single_file(path, parts=["text_encoder"])["text_encoder"]
    assert ours.config.num_hidden_layers == 23

    weights = {key.removeprefix(OPEN_CLIP): value for key, value in tensors.items() if key.startswith(OPEN_CLIP)}
    tokens = torch.tensor([[97, 5, 17, 3, 98, 0, 0, 0], [97, 44, 2, 61, 7, 98, 0, 0]])
    x = weights["token_embedding.weight"][tokens] + weights["positional_embedding"][:8]
    mask = torch.full((8, 8), -torch.inf).triu(1)
    for number in range(23):
        block = OpenCLIPBlock(128, 2).eval()
        prefix = f"transformer.resblocks.{number}."
        block.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        x = block(x, mask)
    expected = F.layer_norm(x, (128,), weights["ln_final.weight"], weights["ln_final.bias"])
    torch.testing.assert_close(ours(tokens).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_a_file_that_was_converted_back_has_no_last_layer_to_drop(tmp_path: Path) -> None:
    of_text = {"width": 64, "layers": 23, "words": 99, "positions": 16}
    save_file(original.tensors(original.shapes(2, of_text=of_text)), tmp_path / "x.safetensors")
    ours = load_single_file(tmp_path / "x.safetensors", parts=["text_encoder"])["text_encoder"]
    assert ours.config.num_hidden_layers == 23


def test_text_encoder_names_from_before_they_had_a_prefix(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = original.tensors(original.shapes(1))
    renamed = {name.replace(f"{CLIP}text_model.", CLIP): tensor for name, tensor in tensors.items()}
    assert set(renamed) != set(tensors)
    save_file(renamed, tmp_path / "x.safetensors")
    old = load_single_file(tmp_path / "x.safetensors", parts=["text_encoder"])["text_encoder"]
    new = load_single_file(files["1"], parts=["text_encoder"])["text_encoder"]
    assert all(torch.equal(tensor, new.state_dict()[key]) for key, tensor in old.state_dict().items())


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [None, torch.float16])
@pytest.mark.thin(every=2)
def test_types(stored: torch.dtype, wanted: torch.dtype | None, tmp_path: Path) -> None:
    tensors = original.tensors(original.shapes(2), stored)
    save_file(tensors, tmp_path / "x.safetensors")
    loaded = load_single_file(tmp_path / "x.safetensors", dtype=wanted, prediction_type="epsilon")
    for part in SD_PARTS:
        expected = convert(tensors)[0][part].state
        got = loaded[part].state_dict()
        assert {tensor.dtype for tensor in got.values()} == {wanted or torch.float32}
        assert all(torch.equal(got[key], expected[key].to(wanted or torch.float32)) for key in expected)


def test_averaged_weights(files: dict[str, Path]) -> None:
    tensors = original.tensors(original.shapes(1, ema=True))
    plain = load_single_file(files["1"], parts=["unet"])["unet"]
    averaged = load_single_file(files["1"], parts=["unet"], use_ema=True)["unet"]
    name = "input_blocks.1.0.in_layers.2.weight"
    key = "down_blocks.0.resnets.0.conv1.weight"
    assert torch.equal(plain.state_dict()[key], tensors[UNET + name])
    assert torch.equal(averaged.state_dict()[key], tensors["model_ema.diffusion_modelinput_blocks10in_layers2weight"])
    assert not torch.equal(plain.state_dict()[key], averaged.state_dict()[key])
    with pytest.raises(WeightsError, match=r"missing: model_ema\.diffusion_modelout2bias"):
        load_single_file(files["1 inpainting"], use_ema=True)


@pytest.mark.parametrize(("part", "prefix"), [("unet", UNET), ("vae", VAE)])
def test_one_network_alone(part: str, prefix: str, files: dict[str, Path], tmp_path: Path) -> None:
    tensors = original.tensors(original.shapes(1))
    alone = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    save_file(
        {**alone, "model_ema.decay": torch.tensor(0.9), "loss.logvar": torch.zeros(1)}, tmp_path / "x.safetensors"
    )
    loaded = load_single_file(tmp_path / "x.safetensors", parts=[part])[part].state_dict()
    expected = load_single_file(files["1"], parts=[part])[part].state_dict()
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    with pytest.raises(WeightsError, match=r"the whole text_encoder"):
        load_single_file(tmp_path / "x.safetensors")


# --- the pipeline ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Single files whose text encoders know a tokenizer's tokens; and that, with the padding of either version."""
    folder = tmp_path_factory.mktemp("texts")
    of_text = {"width": 64, "layers": 2, "words": len(vocabulary()[0]), "positions": 77}
    for version, channels in ((1, 4), (2, 4), (1, 9)):
        name = f"{version}{' inpainting' if channels == 9 else ''}.safetensors"
        save_file(original.tensors(original.shapes(version, channels, of_text=of_text)), folder / name)
    write_tokenizer(folder / "tokenizer 1")
    write_tokenizer(folder / "pipeline" / "tokenizer", pad="!")
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_images_are_those_of_the_same_weights_in_diffusers(version: int, with_texts: Path) -> None:
    prediction_type = "epsilon" if version == 1 else "v_prediction"
    # The other version's padding, as when somebody has one tokenizer for all.
    tokenizer = with_texts / ("pipeline" if version == 1 else "tokenizer 1")
    ours = StableDiffusionPipeline.from_single_file(
        with_texts / f"{version}.safetensors", tokenizer=str(tokenizer), prediction_type=prediction_type
    )
    networks = {name: getattr(diffusers, type(ours.components[name]).__name__) for name in ("unet", "vae")}
    theirs_parts: dict[str, Any] = {name: cls(**plain(ours.components[name].config)) for name, cls in networks.items()}
    config = transformers.CLIPTextConfig(**plain(ours.text_encoder.config))  # type: ignore[union-attr]
    theirs_parts["text_encoder"] = transformers.CLIPTextModel(config)
    tensors = load_file(with_texts / f"{version}.safetensors")
    convert_text = (
        theirs.convert_ldm_clip_checkpoint
        if version == 1
        else lambda tensors: theirs.convert_open_clip_checkpoint(theirs_parts["text_encoder"], tensors)
    )
    text = {key.removeprefix("text_model."): value for key, value in convert_text(tensors).items()}
    for name in ("embeddings.position_ids", "text_projection.weight"):
        text.pop(name, None)
    theirs_parts["text_encoder"].load_state_dict(text)
    theirs_parts["unet"].load_state_dict(theirs.convert_ldm_unet_checkpoint(dict(tensors), ours.unet.config))
    theirs_parts["vae"].load_state_dict(theirs.convert_ldm_vae_checkpoint(tensors, ours.vae.config))
    right = with_texts / ("tokenizer 1" if version == 1 else "pipeline/tokenizer")
    reference = diffusers.StableDiffusionPipeline(
        **{name: network.eval() for name, network in theirs_parts.items()},
        tokenizer=transformers.CLIPTokenizer.from_pretrained(right),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    options: dict[str, Any] = {
        "prompt": ["a photo of a red cat", ""],
        "latents": torch.randn(2, 4, 8, 8),
        "num_inference_steps": 4,
        "height": 16,
        "width": 16,
        "output_type": "np",
    }
    for pipe in (ours, reference):
        pipe.set_progress_bar_config(disable=True)
    expected = reference(**options).images
    assert expected.std() > 0.05
    assert abs(ours(**options).images - expected).max() < 1e-4


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def test_parts_of_ones_own_take_the_place_of_the_files(with_texts: Path) -> None:
    file = with_texts / "1.safetensors"
    tokenizer = CLIPTokenizer.from_pretrained(with_texts / "tokenizer 1")
    vae = load_single_file(file, parts=["vae"])["vae"]
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    pipe = StableDiffusionPipeline.from_single_file(
        file, tokenizer=tokenizer, vae=vae, scheduler=scheduler, torch_dtype=torch.float16
    )
    assert pipe.vae is vae
    assert pipe.tokenizer is tokenizer
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert pipe.unet.dtype == torch.float16
    assert StableDiffusionPipeline.from_single_file(file, text_encoder=None).tokenizer is None
    with pytest.raises(TypeError, match="a single file has no tokenizer: give tokenizer="):
        StableDiffusionPipeline.from_single_file(file)
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor"):
        StableDiffusionPipeline.from_single_file(file, tokenizer=with_texts)
    painter = StableDiffusionInpaintPipeline.from_single_file(
        with_texts / "1 inpainting.safetensors", tokenizer=tokenizer
    )
    assert type(painter) is StableDiffusionInpaintPipeline
    painter.set_progress_bar_config(disable=True)
    picture, mask = Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16), 255)
    (image,) = painter(
        prompt="a cat", image=picture, mask_image=mask, num_inference_steps=2, height=16, width=16, seed=0
    ).images
    assert image.size == (16, 16)


def test_a_pipeline_from_a_single_file_saves_in_diffusers_layout(with_texts: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_single_file(with_texts / "1.safetensors", tokenizer=with_texts / "tokenizer 1")
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    other = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    for pipeline in (pipe, again, other):
        pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 3, "height": 16, "width": 16}
    images = [
        pipeline(**options, latents=torch.ones(1, 4, 8, 8), output_type="np").images
        for pipeline in (pipe, again, other)
    ]
    assert (images[0] == images[1]).all()
    assert abs(images[0] - images[2]).max() < 1e-4


# --- what the weights do not say -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prediction_type", "size"),
    [("1", "epsilon", 64), ("1 inpainting", "epsilon", 64), ("2 inpainting", "epsilon", 64)],
)
def test_what_is_predicted_by_default(name: str, prediction_type: str, size: int, files: dict[str, Path]) -> None:
    loaded = load_single_file(files[name])
    assert loaded["scheduler"].config.prediction_type == prediction_type
    assert loaded["unet"].config.sample_size == size
    assert loaded["vae"].config.sample_size == 8 * size


def test_stable_diffusion_2_may_predict_either(files: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match=r"taken for v_prediction.*prediction_type='epsilon'"):
        loaded = load_single_file(files["2"])
    assert loaded["scheduler"].config.prediction_type == "v_prediction"
    assert loaded["unet"].config.sample_size == 96
    loaded = load_single_file(files["2"], prediction_type="epsilon")
    assert loaded["scheduler"].config.prediction_type == "epsilon"
    assert loaded["unet"].config.sample_size == 64
    load_single_file(files["2"], parts=["vae"])  # does not depend on it: no warning
    with pytest.raises(ConfigError, match="prediction_type='v'"):
        load_single_file(files["2"], prediction_type="v")


def file_that_says(
    tmp_path: Path, metadata: dict[str, str], marks: dict[str, Tensor] | None = None, version: int = 1
) -> Path:
    tensors = {**original.tensors(original.shapes(version)), **(marks or {})}
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    return tmp_path / "x.safetensors"


def scheduler_of(path: Path, **options: Any) -> Any:
    """The scheduler's config of a file, which must load without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_single_file(path, **options)["scheduler"].config


NOTHING = torch.tensor([])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("key", "said", "expected"),
    [
        ("modelspec.prediction_type", "v", "v_prediction"),
        ("modelspec.prediction_type", "epsilon", "epsilon"),
        ("modelspec.prediction_type", "V-Prediction", "v_prediction"),
        ("modelspec.prediction_type", "sample", "sample"),
        ("modelspec.predict_key", "v", "v_prediction"),
        ("modelspec.predict_key", "epsilon", "epsilon"),
        ("ss_v_parameterization", "True", "v_prediction"),
        ("ss_v_parameterization", "true", "v_prediction"),
        ("ss_v_parameterization", "False", "epsilon"),
        ("ss_base_model_version", "sd_v2_v", "v_prediction"),
        ("ss_base_model_version", "sd_v1_v", "v_prediction"),
        ("modelspec.architecture", "stable-diffusion-v2-768-v", "v_prediction"),
        ("modelspec.architecture", "stable-diffusion-v2-512", "epsilon"),
    ],
)
@pytest.mark.thin(every=3)
def test_the_metadata_may_say_it(key: str, said: str, expected: str, version: int, tmp_path: Path) -> None:
    path = file_that_says(tmp_path, {key: said}, version=version)
    config = scheduler_of(path)
    assert (config.prediction_type, config.rescale_betas_zero_snr) == (expected, False)
    assert config.timestep_spacing == "leading"


@pytest.mark.parametrize("value", [NOTHING, torch.zeros(1), torch.tensor(1.0), torch.tensor([True])])
@pytest.mark.thin(every=2)
def test_a_tensor_may_say_it(value: Tensor, tmp_path: Path) -> None:
    config = scheduler_of(file_that_says(tmp_path, {}, {"v_pred": value}))
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", False)
    config = scheduler_of(file_that_says(tmp_path, {}, {"v_pred": value, "ztsnr": value.clone()}))
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert config.timestep_spacing == "trailing"


def test_a_file_that_says_zero_snr_samples(tmp_path: Path) -> None:
    scheduler = load_single_file(file_that_says(tmp_path, {}, {"v_pred": NOTHING, "ztsnr": NOTHING}))["scheduler"]
    assert float(scheduler.alphas_cumprod[-1]) == 0
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    x = torch.ones(1, 4, 8, 8)
    # At zero SNR v is -x0, whatever x is.
    assert scheduler.step(-0.5 * x, 999, x).pred_original_sample.allclose(0.5 * x)


def test_zero_snr_in_the_settings_of_training(tmp_path: Path) -> None:
    config = scheduler_of(file_that_says(tmp_path, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}))
    assert (config.rescale_betas_zero_snr, config.timestep_spacing) == (True, "trailing")
    config = scheduler_of(file_that_says(tmp_path, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "False"}))
    assert not config.rescale_betas_zero_snr


def test_a_network_alone_may_say_it(tmp_path: Path) -> None:
    """As ComfyUI saves a U-Net without the rest, and as others do without the prefix."""
    whole = original.tensors(original.shapes(1))
    unet = {key: tensor for key, tensor in whole.items() if key.startswith(UNET)}
    for tensors in (unet, {key.removeprefix(UNET): tensor for key, tensor in unet.items()}):
        save_file({**tensors, "v_pred": NOTHING, "ztsnr": NOTHING}, tmp_path / "x.safetensors")
        config = scheduler_of(tmp_path / "x.safetensors", parts=["unet", "scheduler"])
        assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)


def test_the_user_knows_better_than_the_file(tmp_path: Path) -> None:
    marked = file_that_says(tmp_path, {"modelspec.prediction_type": "v"}, {"v_pred": NOTHING})
    assert scheduler_of(marked, prediction_type="epsilon").prediction_type == "epsilon"
    both = file_that_says(tmp_path, {"modelspec.prediction_type": "epsilon"}, {"v_pred": NOTHING, "ztsnr": NOTHING})
    config = scheduler_of(both, prediction_type="v_prediction")
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    with pytest.warns(UserWarning, match="no signal.*prediction_type='v_prediction'"):
        config = load_single_file(both, prediction_type="epsilon")["scheduler"].config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("epsilon", False)


@pytest.mark.parametrize(
    ("metadata", "marks"),
    [
        ({"modelspec.prediction_type": "epsilon"}, ["v_pred"]),
        ({"modelspec.prediction_type": "v", "ss_v_parameterization": "False"}, []),
        ({"modelspec.predict_key": "v", "modelspec.prediction_type": "sample"}, []),
    ],
)
def test_a_file_that_contradicts_itself(metadata: dict[str, str], marks: list[str], tmp_path: Path) -> None:
    path = file_that_says(tmp_path, metadata, dict.fromkeys(marks, NOTHING))
    with pytest.raises(ConfigError, match=r"contradicts itself.*prediction_type="):
        load_single_file(path)
    load_single_file(path, parts=["vae"])  # which does not depend on it


@pytest.mark.parametrize("key", ["modelspec.prediction_type", "modelspec.predict_key"])
def test_a_word_that_is_not_known(key: str, tmp_path: Path) -> None:
    path = file_that_says(tmp_path, {key: "rectified flow"})
    with pytest.raises(ConfigError, match=r"'rectified flow'.*prediction_type="):
        load_single_file(path)
    assert scheduler_of(path, prediction_type="epsilon").prediction_type == "epsilon"


def test_what_says_nothing(tmp_path: Path) -> None:
    metadata = {
        "modelspec.prediction_type": "None",
        "modelspec.predict_key": "",
        "modelspec.architecture": "stable-diffusion-v1",
        "ss_v2": "False",
        "ss_v_parameterization": "None",
        "ss_v_pred_like_loss": "0.5",  # the weight of a loss by which models of epsilon are trained, too
        "ss_base_model_version": "sd_v1",
    }
    assert scheduler_of(file_that_says(tmp_path, metadata)).prediction_type == "epsilon"
    with pytest.warns(UserWarning, match="taken for v_prediction"):
        load_single_file(
            file_that_says(tmp_path, {"ss_v2": "True", "ss_base_model_version": "sd_v2"}, version=2),
            parts=["scheduler"],
        )


def test_zero_snr_without_a_prediction_is_never_epsilon(tmp_path: Path) -> None:
    path = file_that_says(tmp_path, {}, {"ztsnr": NOTHING})
    with pytest.warns(UserWarning, match="taken for v_prediction.*prediction_type="):
        config = load_single_file(path)["scheduler"].config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert scheduler_of(file_that_says(tmp_path, {}, {"ztsnr": NOTHING}, version=2)).rescale_betas_zero_snr


def test_the_step_of_training_tells_the_base_model(tmp_path: Path) -> None:
    """diffusers takes a Stable Diffusion 2 that was trained for 875000 steps for the one that predicts epsilon."""
    path = file_that_says(tmp_path, {}, {"global_step": torch.tensor(875_000)}, version=2)
    assert scheduler_of(path).prediction_type == "epsilon"
    assert (
        theirs._legacy_load_scheduler(
            diffusers.DDIMScheduler, {**load_file(path), "global_step": 875_000}, "scheduler"
        ).config.prediction_type
        == "epsilon"
    )
    for step in (torch.tensor(140_000), torch.tensor(float("nan")), torch.zeros(2)):
        path = file_that_says(tmp_path, {}, {"global_step": step}, version=2)
        with pytest.warns(UserWarning, match="taken for v_prediction"):
            assert load_single_file(path)["scheduler"].config.prediction_type == "v_prediction"
    first = file_that_says(tmp_path, {}, {"global_step": torch.tensor(875_000), "v_pred": NOTHING})
    assert scheduler_of(first).prediction_type == "v_prediction"


def test_noise_levels_of_edm_are_named(tmp_path: Path) -> None:
    path = file_that_says(tmp_path, {}, {"edm_vpred.sigma_max": torch.tensor(80.0)})
    with pytest.raises(WeightsError, match="EDM's noise levels"):
        load_single_file(path)


def test_the_scheduler_is_that_of_the_published_models(files: dict[str, Path]) -> None:
    config = load_single_file(files["1"], parts=["scheduler"])["scheduler"].config
    published = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
    }
    assert {key: config[key] for key in published} == published


# --- what is wrong with a file ---------------------------------------------------------------------------------------


def changed(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], version: int = 1) -> Path:
    tensors = original.tensors(original.shapes(version))
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_all_that_is_wrong_is_one_error(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{UNET}time_embed.0.bias"]
        del tensors[f"{VAE}decoder.conv_in.bias"]
        del tensors[f"{CLIP}text_model.final_layer_norm.weight"]
        tensors["somebody.else"] = torch.zeros(3)
        tensors[f"{UNET}label_emb.0.0.weight"] = torch.zeros(2, 2)
        tensors[f"{UNET}middle_block.1.transformer_blocks.0.norm9.weight"] = torch.zeros(2)
        tensors[f"{VAE}encoder.mid.attn_1.q.weight"] = torch.zeros(64, 64, 3, 3)
        tensors[f"{CLIP}text_model.encoder.layers.1.mlp.fc1.bias"] = torch.zeros(7)
        tensors[f"{CLIP}text_model.encoder.layers.2.mlp.fc1.bias"] = torch.zeros(256, dtype=torch.int64)

    with pytest.raises(WeightsError) as caught:
        load_single_file(changed(tmp_path, change))
    message = str(caught.value)
    assert "x.safetensors is no Stable Diffusion 1 or 2 (9 differences)" in message
    for line in (
        "missing: unet.time_embedding.linear_1.bias (128,)",
        "missing: vae.decoder.conv_in.bias (64,)",
        "missing: text_encoder.text_model.final_layer_norm.weight (64,)",
        "unexpected: somebody.else (3,)",
        f"unexpected: {UNET}label_emb.0.0.weight (2, 2)",
        f"unexpected: {UNET}middle_block.1.transformer_blocks.0.norm9.weight (2,)",
        "wrong shape: vae.encoder.mid_block.attentions.0.to_q.weight is (64, 64, 3, 3)",
        "wrong shape: text_encoder.text_model.encoder.layers.1.mlp.fc1.bias is (7,)",
        "wrong type: text_encoder.text_model.encoder.layers.2.mlp.fc1.bias is torch.int64",
    ):
        assert line in message


def test_a_whole_network_missing_is_one_line(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(VAE)]:
            del tensors[name]

    path = changed(tmp_path, change)
    with pytest.raises(WeightsError, match=r"\(1 differences\):\n  missing: first_stage_model\.…, the whole vae"):
        load_single_file(path)
    assert set(load_single_file(path, parts=["unet", "scheduler"])) == {"unet", "scheduler"}


def test_a_joint_projection_that_cannot_be_split(tmp_path: Path) -> None:
    name = f"{OPEN_CLIP}transformer.resblocks.1.attn.in_proj_bias"
    for wrong in (torch.zeros(191), torch.zeros(()), torch.zeros(1)):
        path = changed(tmp_path, lambda tensors, wrong=wrong: tensors.update({name: wrong}), 2)
        with pytest.raises(WeightsError, match=r"layers\.1\.self_attn\.\w_proj\.bias"):
            load_single_file(path, prediction_type="epsilon")


def test_a_name_twice(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{CLIP}final_layer_norm.bias"] = tensors[f"{CLIP}text_model.final_layer_norm.bias"].clone()

    with pytest.raises(WeightsError, match=r"twice: cond_stage_model\.transformer\.(text_model\.)?final_layer_norm"):
        load_single_file(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("text_encoders.t5xxl.transformer.shared.weight", "Stable Diffusion 3 or later"),
        ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", "Flux"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.alpha", "a LoRA"),
        ("diffusion_model.input_blocks.1.1.proj_in.lora_down.weight", "a LoRA"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "a LoRA"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers' layout"),
    ],
)
def test_other_kinds_of_file_are_named(name: str, what: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=f"may be {what}|{what}"):
        load_single_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".CKPT"])
def test_pickles_are_refused_unread(suffix: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / f"x{suffix}")
    with pytest.raises(CheckpointError, match=r"is a pickle, which can run code.*\.safetensors"):
        load_single_file(tmp_path / f"x{suffix}")


def test_what_is_no_such_file(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        load_single_file(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="no file of the hub"):
        load_single_file("https://example.com/model.safetensors")
    with pytest.raises(CheckpointError, match="is a folder: from_pretrained"):
        load_single_file(tmp_path)
    shutil.copy(files["1"], tmp_path / "x.safetensors")
    with open(tmp_path / "x.safetensors", "r+b") as file:
        file.truncate(100_000)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_single_file(tmp_path / "x.safetensors")


def test_wrong_arguments(files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="no part tokenizer"):
        load_single_file(files["1"], parts=["unet", "tokenizer"])
    with pytest.raises(TypeError, match="no argument varient"):
        load_single_file(files["1"], varient="fp16")
    with pytest.raises(TypeError, match="floating-point"):
        load_single_file(files["1"], dtype=torch.int8)


@pytest.mark.parametrize("number", [10, 9999, 10**30])
def test_absurd_numbers_cost_nothing(number: int, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for prefix, name in (
            (UNET, f"input_blocks.{number}.0.op.weight"),
            (VAE, f"encoder.down.{number}.block.0.conv1.weight"),
            (CLIP, f"text_model.encoder.layers.{number}.mlp.fc1.weight"),
        ):
            tensors[prefix + name] = torch.zeros(1)

    with pytest.raises((WeightsError, ConfigError)):
        load_single_file(changed(tmp_path, change))


def test_a_file_of_the_hub(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(repo: str, name: str, **options: Any) -> str:
        asked.append((repo, name, options["revision"], options["token"]))
        return str(files["1"])

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    url = "https://huggingface.co/owner/name/blob/main/sub/model.safetensors"
    assert set(load_single_file(url, parts=["scheduler"], token="t")) == {"scheduler"}
    load_single_file(url.replace("blob", "resolve") + "?download=true", parts=["scheduler"], revision="v2")
    assert asked == [
        ("owner/name", "sub/model.safetensors", "main", "t"),
        ("owner/name", "sub/model.safetensors", "v2", None),
    ]


def test_what_is_loaded_saves_and_loads_again(files: dict[str, Path], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part, network in load_single_file(files["1"]).items():
            network.save_pretrained(tmp_path / part)
            again = type(network).from_pretrained(tmp_path / part)
            if part != "scheduler":
                state = network.state_dict()
                assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
            assert {k: v for k, v in again.config.items() if not k.startswith("_")}.items() >= {
                k: v for k, v in network.config.items() if not k.startswith("_")
            }.items()
