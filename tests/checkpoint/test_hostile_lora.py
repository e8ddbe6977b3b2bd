"""Adapters that are broken, of another kind, or meant to break something.

Each case spoils a good adapter. Loading it must raise one exception of ours that names all that is wrong, run nothing,
write nothing, cost little memory and time, and leave the pipeline as it was.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_lora
import torch
from hostile import Canary, Rise, contents
from safetensors.torch import save_file
from tiny_clip import vocabulary
from torch import Tensor

from ddim import lora
from ddim.errors import CheckpointError, ConfigError, WeightsError
from ddim.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines import StableDiffusionPipeline
from ddim.scheduler import DDIMScheduler

MEMORY = 300  # MiB that loading any of these may cost
SECONDS = 20
FILE = "pytorch_lora_weights.safetensors"
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
DOWN, UP = f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"
KOHYA = f"lora_unet_{LAYER.replace('.', '_')}"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    vocab, merges = vocabulary()
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=8),
        text_encoder=CLIPTextModel(
            vocab_size=len(vocab), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ),
        tokenizer=CLIPTokenizer(vocab, merges),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=4,
        ),
        scheduler=DDIMScheduler(),
    )


@pytest.fixture(scope="module")
def good(pipe: StableDiffusionPipeline) -> State:
    return tiny_lora.named(tiny_lora.known(pipe, rank=2, unet=(*tiny_lora.UNET, "conv1")), tiny_lora.present)


def is_refused(pipe: StableDiffusionPipeline, source: Any, error: Any, names: tuple[str, ...], **options: Any) -> None:
    """In a pipeline with another adapter, which stays as it is."""
    networks = (pipe.unet, pipe.text_encoder)
    before = [{name: (tensor.data_ptr(), tensor._version) for name, tensor in n.state_dict().items()} for n in networks]
    states = [lora.state_of(network) for network in networks]
    rise, start = Rise(), time.monotonic()
    with pytest.raises(error) as caught:
        pipe.load_lora_weights(source, **options)
    assert rise.mib() < MEMORY
    assert time.monotonic() - start < SECONDS
    message = str(caught.value)
    for name in names:
        assert name in message
    assert len(message) < 200_000
    after = [{name: (tensor.data_ptr(), tensor._version) for name, tensor in n.state_dict().items()} for n in networks]
    assert after == before
    assert all(lora.state_of(network) is state for network, state in zip(networks, states, strict=True))


# --- tensors ---------------------------------------------------------------------------------------------------------


def spoilt(value: float) -> Callable[[Tensor], Tensor]:
    def spoil(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return spoil


def kohya(**more: Any) -> Callable[[State], State]:
    """One layer, by kohya's names."""
    pair = {f"{KOHYA}.lora_down.weight": torch.ones(2, 32), f"{KOHYA}.lora_up.weight": torch.ones(64, 2)}
    return lambda s: {**pair, **{f"{KOHYA}.{key}": value for key, value in more.items()}}


def without(*keys: str) -> Callable[[State], State]:
    return lambda s: {key: tensor for key, tensor in s.items() if key not in keys}


def plus(**more: Any) -> Callable[[State], State]:
    return lambda s: {**s, **{key.replace("__", "."): value for key, value in more.items()}}


TENSORS: dict[str, tuple[Callable[[State], Any], tuple[str, ...]]] = {
    "nothing": (lambda s: {}, ("no tensor",)),
    "no down": (without(DOWN), ("missing: the down matrix of unet.mid_block",)),
    "no up": (without(UP), ("missing: the up matrix of unet.mid_block",)),
    "an α alone": (plus(**{f"unet.{LAYER[:-4]}to_q.alpha": torch.tensor(1.0)}), ()),
    "an unknown name": (plus(evil=torch.ones(1)), ("unexpected: evil (1,)",)),
    "a layer that is not there": (plus(**{DOWN.replace("attn2", "attn3"): torch.ones(2, 32)}), ("attn3",)),
    "a norm": (plus(**{"unet.conv_norm_out.lora_A.weight": torch.ones(2, 32)}), ("unexpected: unet.conv_norm_out",)),
    "the autoencoder": (plus(**{"vae.encoder.conv_in.lora_A.weight": torch.ones(2, 3, 3, 3)}), ("vae.encoder",)),
    "a name of 100,000 letters": (plus(**{"x" * 100_000: torch.ones(1)}), ("unexpected: xxx",)),
    "a name of 50,000 endings": (plus(**{"a" + ".lora_A" * 50_000: torch.ones(1)}), ("unexpected: a.lora_A",)),
    "20,000 names": (
        lambda s: {f"unet.{i}.lora_A.weight": torch.ones(0) for i in range(20_000)},
        ("20000 differences",),
    ),
    "a wider down": (plus(**{DOWN: torch.ones(2, 33)}), (DOWN, "(2, 33), needed is (2, 32)")),
    "a wider up": (plus(**{UP: torch.ones(65, 2)}), (UP, "(65, 2), needed is (64, 2)")),
    "transposed": (plus(**{DOWN: torch.ones(32, 2), UP: torch.ones(2, 64)}), (DOWN, UP)),
    "ranks that disagree": (plus(**{DOWN: torch.ones(3, 32)}), (UP, "(64, 2), needed is (64, 3)")),
    "no rank": (plus(**{DOWN: torch.ones(0, 32), UP: torch.ones(64, 0)}), ("no rank",)),
    "a number": (plus(**{DOWN: torch.tensor(1.0)}), ("no rank", DOWN)),
    "a convolution for a linear layer": (plus(**{DOWN: torch.ones(2, 32, 1, 1)}), (DOWN,)),
    "a linear layer for a convolution": (
        plus(**{"unet.conv_in.lora_A.weight": torch.ones(2, 4), "unet.conv_in.lora_B.weight": torch.ones(32, 2)}),
        ("(2, 4), needed is (2, 4, 3, 3)",),
    ),
    "integers": (plus(**{DOWN: torch.ones(2, 32, dtype=torch.int64)}), (f"{DOWN} is torch.int64",)),
    "complex numbers": (plus(**{DOWN: torch.ones(2, 32, dtype=torch.complex64)}), (f"{DOWN} is torch.complex64",)),
    "NaN": (lambda s: {**s, DOWN: spoilt(float("nan"))(s[DOWN])}, (f"not finite: {DOWN}",)),
    "infinity": (lambda s: {**s, UP: spoilt(float("inf"))(s[UP])}, (f"not finite: {UP}",)),
    "numbers whose product is infinite": (
        lambda s: {**s, DOWN: torch.full((2, 32), 1e30), UP: torch.full((64, 2), 1e30)},
        ("not finite in torch.float32", LAYER),
    ),
    "α of NaN": (kohya(alpha=torch.tensor(float("nan"))), (f"not finite: {KOHYA}.alpha",)),
    "α of two": (kohya(alpha=torch.ones(2)), (f"{KOHYA}.alpha is (2,)",)),
    "α of truth": (kohya(alpha=torch.tensor(True)), (f"{KOHYA}.alpha is torch.bool",)),
    "α of 1e300": (kohya(alpha=torch.tensor(1e300, dtype=torch.float64)), ("not finite",)),
    "twice, in two layouts": (
        lambda s: {**s, f"{KOHYA}.lora_down.weight": s[DOWN]},
        ("twice", f"{KOHYA}.lora_down.weight", DOWN),
    ),
    "two adapters": (
        lambda s: {
            DOWN.replace("lora_A", "lora_A.one"): s[DOWN],
            UP.replace("lora_B", "lora_B.two"): s[UP],
        },
        ("more than one adapter: one, two",),
    ),
    "no tensors": (plus(x=[1, 2], y=None), ("no tensor: x is list", "no tensor: y is NoneType")),
    "names that are numbers": (lambda s: {**s, 5: torch.ones(1)}, ("unexpected: 5",)),
    "DoRA": (kohya(dora_scale=torch.ones(64, 1)), ("dora_scale (64, 1), of DoRA",)),
    "DoRA of peft": (plus(**{f"unet.{LAYER}.lora_magnitude_vector.weight": torch.ones(64)}), ("of DoRA",)),
    "LoHa": (kohya(hada_w1_a=torch.ones(64, 2), hada_w2_b=torch.ones(2, 32)), ("hada_w1_a (64, 2), of LoHa", "w2_b")),
    "LoKr": (kohya(lokr_w1=torch.ones(8, 8)), ("of LoKr",)),
    "a middle": (kohya(**{"lora_mid.weight": torch.ones(2, 2, 3, 3)}), ("in three parts",)),
    "a difference": (kohya(diff=torch.ones(64, 32)), ("of a weight's difference",)),
    "a bias": (plus(**{f"unet.{LAYER}.lora_B.bias": torch.ones(64)}), ("of a bias",)),
    "embeddings": (plus(**{"text_encoder.embeddings.token_embedding.lora_embedding_A": torch.ones(2)}), ("embedding",)),
    "Stable Diffusion XL's second text encoder": (
        lambda s: {**kohya()(s), "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 1280)},
        ("it may be for Stable Diffusion XL",),
    ),
    "Stable Diffusion XL's U-Net": (
        plus(**{DOWN: torch.ones(4, 2048), UP: torch.ones(640, 4)}),
        ("it may be for Stable Diffusion XL",),
    ),
    "Stable Diffusion 2": (plus(**{DOWN: torch.ones(2, 1024)}), ("it may be for Stable Diffusion 2",)),
    "Flux": (
        lambda s: {
            "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(4, 3072),
            "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(3072, 4),
        },
        ("it may be for Flux", "single_transformer_blocks"),
    ),
    "Flux, kohya's": (
        lambda s: {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(4, 3072)},
        ("it may be for Flux",),
    ),
    "Flux, ComfyUI's": (
        lambda s: {"diffusion_model.single_blocks.0.linear1.lora_down.weight": torch.ones(4, 3072)},
        ("it may be for Flux",),
    ),
    "Stable Diffusion 3, ComfyUI's": (
        lambda s: {
            "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.lora_down.weight": torch.ones(
                4, 1280
            ),
            "diffusion_model.joint_blocks.0.x_block.attn.proj.lora_down.weight": torch.ones(4, 1536),
        },
        ("it may be for Stable Diffusion 3 ",),
    ),
    "Stable Diffusion 3, kohya's text encoders": (
        lambda s: {
            "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 1280),
            "lora_te3_encoder_block_0_layer_0_SelfAttention_k.lora_down.weight": torch.ones(4, 4096),
        },
        ("it may be for a model that also reads texts by T5",),
    ),
    "a transformer": (
        lambda s: {"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.ones(4, 5120)},
        ("it may be for a model that is a transformer",),
    ),
    "AnimateDiff": (
        plus(
            **{
                "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 320),
                "unet.mid_block.motion_modules.0.proj_in.lora_A.weight": torch.ones(4, 320),
            }
        ),
        ("it may be for AnimateDiff",),
    ),
    "all at once": (
        lambda s: {**without(UP)(s), "evil": s[UP], **kohya(dora_scale=s[UP])({}), DOWN.replace("to_k", "to_v"): s[UP]},
        ("unexpected: evil", "DoRA", "wrong shape"),
    ),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("is_file", [False, True], ids=["given", "file"])
@pytest.mark.thin(every=3)
def test_tensors_that_are_no_adapter(
    name: str, is_file: bool, pipe: StableDiffusionPipeline, good: State, tmp_path: Path
) -> None:
    if not is_file:  # once with another adapter that is loaded, once without
        pipe.load_lora_weights(good, "other")
    make, says = TENSORS[name]
    source = make(good)
    if name == "an α alone":
        source = {key: tensor for key, tensor in source.items() if key.endswith("alpha")}
        says = ("missing: the down matrix", "missing: the up matrix")
    if is_file:
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in source.items()):
            pytest.skip("no file can hold this")
        save_file({key: tensor.clone() for key, tensor in source.items()}, tmp_path / FILE)
        says, source = (*says, str(tmp_path / FILE)) if "not finite in" not in says[0] else says, tmp_path
    try:
        is_refused(pipe, source, WeightsError, says)
    finally:
        pipe.unload_lora_weights()


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_model.input_blocks.99.1.transformer_blocks.0.attn1.to_q",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn3.to_q",
        "model.diffusion_model.label_emb.0.0",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc3",
        "clip_l.text_model.encoder.layers.0.mlp.fc3",
        "unet.down_blocks.9.attentions.0.proj_in",
        "lora_unet_down_blocks_9_attentions_0_proj_in",
        "lora_te1_text_model_encoder_layers_0_mlp_fc3",
        "lora_te_text_model_encoder_layers_0_mlp_fc3",
        "base_model.model.down_blocks.9.attentions.0.proj_in",
        "down_blocks.9.attentions.0.transformer_blocks.0.attn1.to_q",
    ],
)
def test_no_wrong_family_is_named(name: str, pipe: StableDiffusionPipeline) -> None:
    """A name that no layer has, but that is as those of a U-Net of Stable Diffusion and its text encoder."""
    with pytest.raises(WeightsError, match="unexpected") as caught:
        pipe.load_lora_weights({f"{name}.lora_down.weight": torch.ones(2, 32)})
    assert "may be for" not in str(caught.value)


def test_half_precision_may_be_too_small_for_it(pipe: StableDiffusionPipeline, good: State) -> None:
    pipe.to(torch.float16)
    try:
        is_refused(pipe, {**good, UP: good[UP] * 1e6}, WeightsError, ("not finite in torch.float16", "weaker"))
    finally:
        pipe.to(torch.float32)


def test_a_pipeline_without_a_text_encoder(pipe: StableDiffusionPipeline, good: State) -> None:
    less = StableDiffusionPipeline(pipe.vae, None, None, pipe.unet, pipe.scheduler)
    with pytest.raises(WeightsError, match=r"unexpected: text_encoder\.text_model") as caught:
        less.load_lora_weights(good)
    assert "for the unet of" in str(caught.value)
    less.load_lora_weights({key: tensor for key, tensor in good.items() if key.startswith("unet")})
    less.unload_lora_weights()


# --- settings --------------------------------------------------------------------------------------------------------

MANY = {f"x{i}.to_q": 1 for i in range(100_000)}
SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "another rank": ({"r": 3}, ("rank: unet.", "has 2, but 3 in the settings")),
    "another rank of a layer": ({"r": 2, "rank_pattern": {LAYER: 7}}, (LAYER, "but 7")),
    "α of words": ({"lora_alpha": "8"}, ("lora_alpha is '8', no number",)),
    "α of truth": ({"lora_alpha": True}, ("lora_alpha is True",)),
    "α of lists": ({"lora_alpha": [[[[[8]]]]]}, ("lora_alpha",)),
    "α of 1e300": ({"lora_alpha": 1e300}, ("lora_alpha",)),
    "α of 10**300": ({"lora_alpha": 10**300}, ("lora_alpha",)),
    "α of infinity": ({"lora_alpha": float("inf")}, ("lora_alpha is inf",)),
    "α of NaN": ({"lora_alpha": float("nan")}, ("lora_alpha is nan",)),
    "α of words for a layer": ({"alpha_pattern": {LAYER: "8"}}, ("alpha_pattern[mid_block",)),
    "a pattern that is a list": ({"alpha_pattern": [1]}, ("alpha_pattern is [1], no object",)),
    "a pattern that never ends": ({"alpha_pattern": {"(a+)+$" * 20: 1}}, ("no layer's name",)),
    "a pattern of everything": ({"alpha_pattern": {".*": 1}}, ("'.*', which is no layer's name",)),
    "100,000 ranks": ({"rank_pattern": {**MANY, "to_q": 9}}, ("but 9 in the settings",)),
    "rank as words": ({"r": "2"}, ("r is '2'",)),
    "DoRA": ({"use_dora": True}, ("use_dora is True, not implemented",)),
    "LoHa": ({"peft_type": "LOHA"}, ("peft_type is 'LOHA', not LORA",)),
    "a type of lists": ({"peft_type": [1]}, ("peft_type",)),
    "biases": ({"bias": "all"}, ("bias is 'all'",)),
    "more biases": ({"lora_bias": True}, ("lora_bias",)),
    "whole modules": ({"modules_to_save": ["conv_in"]}, ("modules_to_save",)),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, ("init_lora_weights", "changes the base weights")),
    "a start of lists": ({"init_lora_weights": [[]]}, ("init_lora_weights",)),
    "several": ({"use_dora": True, "r": 5, "bias": "all"}, ("use_dora", "bias", "but 5")),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("where", ["metadata", "config"])
@pytest.mark.thin(every=2)
def test_settings_that_are_not_implemented(
    name: str, where: str, pipe: StableDiffusionPipeline, good: State, tmp_path: Path
) -> None:
    settings, says = SETTINGS[name]
    own = {key: tensor for key, tensor in good.items() if key.startswith("unet.")}
    error: Any = WeightsError
    if where == "metadata":
        said = json.dumps({f"unet.{key}": value for key, value in settings.items()})
        save_file(own, tmp_path / FILE, metadata={"lora_adapter_metadata": said})
    else:
        if name == "α of NaN":  # no JSON for `read_json`
            says, error = ("adapter_config.json",), CheckpointError
        renamed = {key.replace("unet.", "base_model.model."): tensor for key, tensor in own.items()}
        save_file(renamed, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    is_refused(pipe, tmp_path, error, says)


@pytest.mark.parametrize(
    "said",
    ["", "no JSON", "[1]", "5", '"x"', "[" * 100_000, '{"a":' * 100_000, '{"r": ' + "1" * 5000 + "}"],
    ids=["empty", "words", "a list", "a number", "a string", "nested", "nested objects", "a number of 5000 digits"],
)
def test_metadata_that_is_no_settings(said: str, pipe: StableDiffusionPipeline, good: State, tmp_path: Path) -> None:
    save_file(good, tmp_path / FILE, metadata={"lora_adapter_metadata": said})
    is_refused(pipe, tmp_path, CheckpointError, (FILE, "the lora_adapter_metadata in"))


def test_settings_that_contradict_the_file(pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    said = json.dumps({"unet.r": 2, "unet.lora_alpha": 4})
    save_file(kohya(alpha=torch.tensor(1.0))({}), tmp_path / FILE, metadata={"lora_adapter_metadata": said})
    is_refused(pipe, tmp_path, WeightsError, (f"alpha: unet.{LAYER} has 1, but 4 in the settings",))


# --- files -----------------------------------------------------------------------------------------------------------


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "empty": (FILE, lambda path: path.write_bytes(b"")),
    "a web page": (FILE, lambda path: path.write_bytes(b"<html>log in</html>")),
    "an LFS pointer": (FILE, lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")),
    "a header of 2**62 bytes": (FILE, lambda path: path.write_bytes(struct.pack("<Q", 2**62))),
    "past the end": (
        FILE,
        lambda path: path.write_bytes(header({DOWN: {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}})),
    ),
    "a pickle as safetensors": (FILE, lambda path: path.write_bytes(pickle.dumps(Canary()))),
    "an archive as safetensors": (FILE, lambda path: torch.save(Canary(), path)),
    "a pickle": ("adapter_model.bin", lambda path: path.write_bytes(pickle.dumps(Canary()))),
    "code in an archive": ("adapter_model.bin", lambda path: torch.save({DOWN: Canary()}, path)),
    "code beside tensors": (
        "pytorch_lora_weights.bin",
        lambda path: torch.save({DOWN: torch.ones(2, 32), "x": Canary()}, path),
    ),
    "a network": ("pytorch_lora_weights.bin", lambda path: torch.save(torch.nn.Linear(2, 2), path)),
    "a .pt": ("lora.pt", lambda path: torch.save({DOWN: Canary()}, path)),
    "a .ckpt": ("lora.ckpt", lambda path: torch.save({DOWN: Canary()}, path)),
    "a folder as a file": (FILE, lambda path: path.mkdir()),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_broken(name: str, pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    file, make = FILES[name]
    folder = tmp_path / "adapter"
    folder.mkdir()
    Canary.path = str(tmp_path / "canary")
    make(folder / file)
    before = contents(tmp_path)
    is_refused(pipe, folder, CheckpointError, (file,), **({"weight_name": file} if file.startswith("lora.") else {}))
    if (folder / file).is_file():
        is_refused(pipe, folder / file, CheckpointError, (file,))
    assert not (tmp_path / "canary").exists()
    assert contents(tmp_path) == before


def test_no_path_leads_out(pipe: StableDiffusionPipeline, good: State, tmp_path: Path) -> None:
    (tmp_path / "adapter" / "sub").mkdir(parents=True)
    save_file(good, tmp_path / FILE)
    for options in ({"weight_name": f"../{FILE}"}, {"subfolder": ".."}, {"weight_name": str(tmp_path / FILE)}):
        is_refused(pipe, tmp_path / "adapter", CheckpointError, ("not a path inside",), **options)
    os.symlink(tmp_path / FILE, tmp_path / "adapter" / FILE)
    is_refused(pipe, tmp_path / "adapter", CheckpointError, ("leads out",))


def test_a_full_disk_leaves_what_was_there(good: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {key.removeprefix("unet."): tensor for key, tensor in good.items() if key.startswith("unet.")}
    file = lora.save_lora(tmp_path, {"unet": state}, rank=2)
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        lora.save_lora(tmp_path, {"unet": {key: tensor + 1 for key, tensor in state.items()}}, rank=2)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_the_good_one_works(pipe: StableDiffusionPipeline, good: State, tmp_path: Path) -> None:
    save_file(good, tmp_path / FILE, metadata={"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.bias": "none"})})
    pipe.load_lora_weights(tmp_path)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(kohya(alpha=torch.tensor(1))(good))
    pipe.unload_lora_weights()
    with pytest.raises(ConfigError):
        lora.add_lora(pipe.unet, -1)
