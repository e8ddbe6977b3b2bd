"""Text-to-image checkpoints that are broken, or meant to break something; `test_hostile` has the ways to spoil a file.

Each case takes a good folder (or a good single file) and spoils it. Loading it must raise one exception of ours that
names what is wrong, run nothing, write nothing, and cost little memory.
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original
import pytest
import torch
from hostile import DELETED, INDEX, MEBIBYTES, Canary, Case, Rise, contents, edit, gone, limits, link, prepare, raw
from safetensors.torch import load_file, save_file
from tiny_clip import vocabulary

from ddim.errors import CheckpointError, ConfigError, NonFiniteError, WeightsError
from ddim.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines import DiffusionPipeline, StableDiffusionPipeline
from ddim.scheduler import DDIMScheduler

UNET, UNET_CONFIG = "unet/diffusion_pytorch_model.safetensors", "unet/config.json"
VAE, VAE_CONFIG = "vae/diffusion_pytorch_model.safetensors", "vae/config.json"
TEXT, TEXT_CONFIG = "text_encoder/model.safetensors", "text_encoder/config.json"
VOCAB, MERGES, TOKENIZER = "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"
ONE_FILE = "tokenizer/tokenizer.json"
SINGLE = "single.safetensors"

CASES: dict[str, Case] = {}
Spoil = Callable[[Path], None]


def case(name: str, error: Any, names: str, spoil: Spoil, **options: Any) -> None:
    assert name not in CASES
    CASES[name] = Case(spoil, error, names, **options)


def both(*spoils: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil


# --- code and classes ------------------------------------------------------------------------------------------------


def with_code(name: str) -> Spoil:
    """A module of the repository's own, as remote code comes."""

    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"import os\nos.mkdir({Canary.path!r})\nclass Evil: pass\n")

    return spoil


CODE = both(with_code("pipeline.py"), with_code("unet/my_unet.py"), with_code("text_encoder/modeling.py"))

for what, entry in {
    "remote code as a class": {"_class_name": ["pipeline", "Evil"]},
    "a file as a class": {"_class_name": "pipeline.Evil"},
    "a custom pipeline": {"_class_name": "Evil", "custom_pipeline": "./pipeline.py"},
    "another pipeline": {"_class_name": "StableDiffusion3Pipeline"},
    "a pipeline of more parts": {"_class_name": "StableDiffusionXLPipeline"},
    "U-Net of the repository": {"unet": ["my_unet", "Evil"]},
    "U-Net of the package": {"unet": ["ddim.models", "UNet2DConditionModel"]},
    "U-Net is an autoencoder": {"unet": ["diffusers", "AutoencoderKL"]},
    "U-Net of pixels": {"unet": ["diffusers", "UNet2DModel"]},
    "U-Net is null": {"unet": [None, None]},
    "U-Net is gone": {"unet": DELETED},
    "text encoder is os.system": {"text_encoder": ["os", "system"]},
    "text encoder of the repository": {"text_encoder": ["modeling", "Evil"]},
    "text encoder is T5": {"text_encoder": ["transformers", "T5EncoderModel"]},
    "text encoder is any": {"text_encoder": ["transformers", "AutoModel"]},
    "text encoder is a U-Net": {"text_encoder": ["diffusers", "UNet2DConditionModel"]},
    "text encoder is a tokenizer": {"text_encoder": ["transformers", "CLIPTokenizer"]},
    "text encoder is a number": {"text_encoder": 7},
    "tokenizer is any": {"tokenizer": ["transformers", "AutoTokenizer"]},
    "tokenizer is T5's": {"tokenizer": ["transformers", "T5Tokenizer"]},
    "tokenizer is eval": {"tokenizer": ["builtins", "eval"]},
    "tokenizer is a network": {"tokenizer": ["transformers", "CLIPTextModel"]},
    "tokenizer is nested": {"tokenizer": [["transformers"], ["CLIPTokenizer"]]},
    "autoencoder is another": {"vae": ["diffusers", "AsymmetricAutoencoderKL"]},
    "autoencoder is null": {"vae": [None, None]},
    "autoencoder is a path": {"vae": ["../../evil", "AutoencoderKL"]},
    "scheduler is subprocess": {"scheduler": ["subprocess", "run"]},
}.items():
    case(f"{INDEX}: {what}", CheckpointError, INDEX, both(CODE, edit(INDEX, **entry)))
case(
    f"{INDEX}: autoencoder is small",
    CheckpointError,
    "not a AutoencoderTiny",
    edit(INDEX, vae=["diffusers", "AutoencoderTiny"]),
)

for argument, given in {"custom_pipeline": "./pipeline.py", "trust_remote_code": True}.items():
    case(
        f"asked for with {argument}",
        TypeError,
        argument,
        CODE,
        load=lambda folder, options={argument: given}: DiffusionPipeline.from_pretrained(folder, **options),  # type: ignore[misc]
    )


# --- what is not there -----------------------------------------------------------------------------------------------


def no_folder(name: str) -> Spoil:
    return lambda folder: shutil.rmtree(folder / name)


for name, says in {
    "vae": VAE_CONFIG,
    "text_encoder": TEXT_CONFIG,
    "tokenizer": "tokenizer",
    "unet": UNET_CONFIG,
    "scheduler": "scheduler/scheduler_config.json",
}.items():
    case(f"no folder {name}", CheckpointError, says, no_folder(name))
for file in (VAE, VAE_CONFIG, TEXT, TEXT_CONFIG, UNET, UNET_CONFIG):
    case(f"no {file}", CheckpointError, file, gone(file))
case("no vocabulary", CheckpointError, "vocab.json", gone(VOCAB))
case("no merges", CheckpointError, "merges.txt", gone(MERGES))


# --- configs ---------------------------------------------------------------------------------------------------------

for what, entry in {
    "channels of 10**9": {"block_out_channels": [10**9, 10**9]},
    "10**9 layers": {"layers_per_block": 10**9},
    "no latents": {"latent_channels": 0},
    "negative latents": {"latent_channels": -4},
    "latents as a string": {"latent_channels": "4"},
    "unknown blocks": {"down_block_types": ["os.system"] * 2},
    "size as a string": {"sample_size": "16"},
    "activation eval": {"act_fn": "eval"},
    "scale as a string": {"scaling_factor": "0.18"},
    "statistics as strings": {"latents_mean": "zero"},
    "groups that do not divide": {"norm_num_groups": 7},
}.items():
    case(f"{VAE_CONFIG}: {what}", (ConfigError, WeightsError), "vae", edit(VAE_CONFIG, **entry))

for what, entry in {
    "width of 10**9": {"hidden_size": 10**9},
    "width of 10**30": {"hidden_size": 10**30},
    "negative width": {"hidden_size": -32},
    "width as a string": {"hidden_size": "32"},
    "10**9 layers": {"num_hidden_layers": 10**9},
    "negative layers": {"num_hidden_layers": -1},
    "no heads": {"num_attention_heads": 0},
    "heads that do not divide": {"num_attention_heads": 5},
    "10**12 words": {"vocab_size": 10**12},
    "negative words": {"vocab_size": -1},
    "activation os.system": {"hidden_act": "os.system"},
    "activation as a list": {"hidden_act": ["gelu"]},
    "inner width of 10**18": {"intermediate_size": 10**18},
    "10**12 positions": {"max_position_embeddings": 10**12},
    "norm as a string": {"layer_norm_eps": "small"},
    "weights of another scale": {"initializer_factor": "1"},
    "class of another library": {"_class_name": "os.system"},
    "T5's": {"model_type": "t5", "architectures": ["T5EncoderModel"], "hidden_size": 64},
}.items():
    case(f"{TEXT_CONFIG}: {what}", (ConfigError, CheckpointError), "text_encoder", edit(TEXT_CONFIG, **entry))

for what, entry in {
    "10**9 heads": {"attention_head_dim": 10**9},
    "no heads": {"attention_head_dim": 0},
    "heads as a string": {"attention_head_dim": "8"},
    "one head count for two levels": {"attention_head_dim": [8]},
    "text of 10**12": {"cross_attention_dim": 10**12},
    "text as a string": {"cross_attention_dim": "32"},
    "text as an object": {"cross_attention_dim": {"a": 32}},
    "1,000 layers of depth 1,000": {"layers_per_block": 1000, "transformer_layers_per_block": 1000},
    "depth of 1,000": {"transformer_layers_per_block": 1000},
    "a size of 8 by 65536": {"sample_size": [8, 65536]},
    "padding of 10**6": {"downsample_padding": 10**6},
    "depth of 10**9": {"transformer_layers_per_block": 10**9},
    "depths of lists": {"transformer_layers_per_block": [[10**6]] * 2},
    "an encoder that is not there": {"encoder_hid_dim": 10**9, "encoder_hid_dim_type": "text_proj"},
    "addition embeddings": {"addition_embed_type": "text_time"},
    "class embeddings eval": {"class_embed_type": "eval"},
    "10**12 classes": {"num_class_embeds": 10**12},
    "projection from 10**12": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10**12},
    "kernel of 10**9": {"conv_in_kernel": 10**9},
    "middle eval": {"mid_block_type": "eval"},
}.items():
    case(f"{UNET_CONFIG}: {what}", (ConfigError, WeightsError), "unet", edit(UNET_CONFIG, **entry))

for file in (VAE_CONFIG, TEXT_CONFIG, UNET_CONFIG, TOKENIZER, VOCAB):
    for what, content in {
        "empty": b"",
        "cut off": b'{"a": [1, 2',
        "a list": b"[{}]",
        "nested": b'{"a":' * 100_000,
        "large": b'{"a": [' + b"{}," * (3 * 2**20) + b"{}]}",
        "UTF-16": '{"a": 1}'.encode("utf-16"),
    }.items():
        case(f"{file}: {what}", (ConfigError, CheckpointError), file, raw(file, content))


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def words(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        vocab = json.loads((folder / VOCAB).read_text(encoding="utf-8"))
        change(vocab)
        (folder / VOCAB).write_text(json.dumps(vocab), encoding="utf-8")

    return spoil


for what, change in {
    "ids as strings": lambda v: v.update(cat="7"),
    "ids as floats": lambda v: v.update(cat=7.0),
    "ids as lists": lambda v: v.update(cat=[7]),
    "ids as booleans": lambda v: v.update(cat=True),
    "a negative id": lambda v: v.update(cat=-1),
    "an id of 10**30": lambda v: v.update(cat=10**30),
    "no end token": lambda v: v.pop("<|endoftext|>"),
    "no tokens": lambda v: v.clear(),
    "no token that a merge makes": lambda v: v.pop("cat</w>"),
}.items():
    case(f"{VOCAB}: {what}", CheckpointError, "tokenizer", words(change))

for what, content in {
    "one word a line": b"#version: 0.2\nca\n",
    "three words a line": b"#version: 0.2\nc a t\n",
    "unknown words": b"#version: 0.2\nqqq zzz\n",
    "Latin-1": "#version: 0.2\né à\n".encode("latin-1"),
    "NUL bytes": b"#version: 0.2\n\0 \0\n",
    "5 MB of merges": b"#version: 0.2\n" + b"c a\n" * 1_300_000,
    "a line of 3 MB": b"#version: 0.2\n" + b"c" * 3_000_000 + b"\n",
    "half a pair": b"#version: 0.2\nc \n",
    "a pickle": pickle.dumps(list(range(300))),
}.items():
    case(f"{MERGES}: {what}", CheckpointError, "tokenizer", raw(MERGES, content))

for what, entry in {
    "added tokens as a list": {"added_tokens_decoder": [1, 2]},
    "added tokens without an id": {"added_tokens_decoder": {"x": {"content": "y"}}},
    "added tokens as numbers": {"added_tokens_decoder": {"5": 5}},
    "added tokens without text": {"added_tokens_decoder": {"5": {}}},
    "an added token of another id": {"added_tokens_decoder": {"1000000000": {"content": "y"}}},
    "a start token of a number": {"bos_token": 5},
    "an end token without text": {"eos_token": {"lstrip": True}},
    "an unknown token that is not there": {"unk_token": "nothing", "added_tokens_decoder": {}},
    "a length of -1": {"model_max_length": -1},
    "padding on the left": {"padding_side": "left"},
    "extra tokens as a number": {"extra_special_tokens": 7},
    "extra tokens of numbers": {"additional_special_tokens": [7, 8]},
    "100,000 added tokens": {
        "added_tokens_decoder": {str(10**6 + i): {"content": f"{i}"} for i in range(100_000)},
    },
    "20,000 extra tokens": {"extra_special_tokens": [f"<{i}>" for i in range(20_000)]},
    "100,000 times the same extra token": {"additional_special_tokens": ["<x>"] * 100_000},
    "an added token of 3 MB without end": {"added_tokens_decoder": {"9" * 10**6: {"content": "x" * 3_000_000}}},
    "an added token of no text": {"added_tokens_decoder": {"1000000": {"content": ""}}},
    "an added token of lone surrogates": {"added_tokens_decoder": {"1000000": {"content": "\ud800"}}},
    "an id of -1": {"added_tokens_decoder": {"-1": {"content": "y"}}},
}.items():
    case(f"{TOKENIZER}: {what}", CheckpointError, "tokenizer", edit(TOKENIZER, **entry))
case(
    "100,000 added tokens in a file of their own",
    CheckpointError,
    "tokenizer",
    both(
        raw(TOKENIZER, b"{}"),
        raw("tokenizer/added_tokens.json", json.dumps({f"<{i}>": i for i in range(10**5)}).encode()),
    ),
)


def in_one_file(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """The tokenizer as tokenizer.json alone."""

    def spoil(folder: Path) -> None:
        vocab, merges = vocabulary()
        listed: dict[str, Any] = {"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "added_tokens": []}
        changed = change(listed)
        for name in (VOCAB, MERGES):
            (folder / name).unlink()
        (folder / ONE_FILE).write_text(json.dumps(listed if changed is None else changed), encoding="utf-8")

    return spoil


for what, change in {
    "no model": lambda t: t.pop("model") and None,
    "a model of null": lambda t: t.update(model=None),
    "a model of a string": lambda t: t.update(model="BPE"),
    "words, not pairs": lambda t: t["model"].update(type="WordPiece"),
    "another kind": lambda t: t["model"].update(type=["BPE"]),
    "no vocabulary": lambda t: t["model"].pop("vocab") and None,
    "a vocabulary as a list": lambda t: t["model"].update(vocab=[["a", 0.5]]),
    "no merges": lambda t: t["model"].pop("merges") and None,
    "merges as numbers": lambda t: t["model"].update(merges=[1, 2]),
    "merges as an object": lambda t: t["model"].update(merges={"c a": 1}),
    "merges of three": lambda t: t["model"].update(merges=[["c", "a", "t"]]),
    "merges of numbers": lambda t: t["model"].update(merges=[[1, 2]]),
    "merges of nothing": lambda t: t["model"].update(merges=[["", ""]]),
    "an empty object": lambda t: {},
}.items():
    case(f"{ONE_FILE}: {what}", CheckpointError, "tokenizer.json", in_one_file(change))
for what, change in {
    "added tokens as numbers": lambda t: t.update(added_tokens=[1]),
    "added tokens without an id": lambda t: t.update(added_tokens=[{"content": "x"}]),
    "added tokens of a wrong id": lambda t: t.update(added_tokens=[{"content": "x", "id": 10**9}]),
    "added tokens as a string": lambda t: t.update(added_tokens="abc"),
    "added tokens with an id of text": lambda t: t.update(added_tokens=[{"content": "x", "id": "y"}]),
    "added tokens of lists": lambda t: t.update(added_tokens=[[], []]),
    "100,000 added tokens": lambda t: t.update(added_tokens=[{"content": f"{i}", "id": i} for i in range(10**5)]),
}.items():
    case(
        f"{ONE_FILE}: {what}",
        CheckpointError,
        "tokenizer.json",
        both(in_one_file(change), raw(TOKENIZER, b"{}")),
    )
for what, content in {
    "empty": b"",
    "nested": b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested objects": b'{"model":' * 100_000,
    "large": b'{"model": {"vocab": {' + b",".join(b'"%d": %d' % (i, i) for i in range(500_000)) + b"}}}",
    "cut off": b'{"model": {"type": "BPE", "vocab": {"a": 0',
}.items():
    case(f"{ONE_FILE}: {what}", CheckpointError, ONE_FILE, raw(ONE_FILE, content))


case(
    f"{ONE_FILE}: large but allowed",
    CheckpointError,
    ONE_FILE,
    raw(ONE_FILE, b'{"model": {"vocab": {"a": 0, "<|endoftext|>": 1}, "merges": [' + b"[]," * 1_390_000 + b"[]]}}"),
)
case(
    f"{VOCAB}: large but allowed",
    CheckpointError,
    VOCAB,
    raw(VOCAB, b"{" + b",".join(b'"%x":%d' % (i, i) for i in range(280_000)) + b"}"),
)


# --- weights ---------------------------------------------------------------------------------------------------------


def weights(file: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        state = load_file(folder / file)
        change(state)
        (folder / file).unlink()
        save_file(state, folder / file)

    return spoil


KEYS = {
    VAE: "decoder.mid_block.attentions.0.to_q.weight",
    TEXT: "text_model.encoder.layers.0.self_attn.q_proj.weight",
    UNET: "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
}
for file, key in KEYS.items():
    for what, change in {
        "nothing": lambda s, key: s.clear(),
        "a tensor missing": lambda s, key: s.pop(key),
        "a tensor more": lambda s, key: s.update({"evil": torch.zeros(1)}),
        "a wrong shape": lambda s, key: s.update({key: s[key][:, 1:].contiguous()}),
        "a convolution of three pixels": lambda s, key: s.update({key: torch.zeros(*s[key].shape, 3, 3)}),
        "integers": lambda s, key: s.update({key: s[key].long()}),
    }.items():
        case(
            f"{file}: {what}",
            WeightsError,
            file,
            weights(file, lambda s, key=key, change=change: change(s, key)),  # type: ignore[misc]
        )
    for what, spoil in {
        "a folder": lambda path: both(Path.unlink, Path.mkdir)(path),
        "a pickle": lambda path: path.write_bytes(pickle.dumps(Canary())),
        "an archive": lambda path: torch.save({"x": Canary()}, path),
    }.items():
        case(
            f"{file}: {what}",
            CheckpointError,
            file,
            lambda folder, file=file, spoil=spoil: spoil(folder / file),  # type: ignore[misc]
        )

BINS = {
    VAE: "vae/diffusion_pytorch_model.bin",
    TEXT: "text_encoder/pytorch_model.bin",
    UNET: "unet/diffusion_pytorch_model.bin",
}
for file, name in BINS.items():
    key = KEYS[file]
    for what, make in {
        "a raw pickle with code": lambda s, path, key: path.write_bytes(pickle.dumps(Canary())),
        "code instead of a tensor": lambda s, path, key: torch.save({**s, key: Canary()}, path),
        "code beside the tensors": lambda s, path, key: torch.save({**s, "optimizer": Canary()}, path),
        "a network": lambda s, path, key: torch.save(torch.nn.Linear(2, 2), path),
        "code in the format of before 1.6": lambda s, path, key: torch.save(
            Canary(), path, _use_new_zipfile_serialization=False
        ),
    }.items():

        def as_bin(folder: Path, file: str = file, name: str = name, key: str = key, make: Any = make) -> None:
            state = load_file(folder / file)
            (folder / file).unlink()
            make(state, folder / name, key)

        case(f"{name}: {what}", CheckpointError, name, as_bin)


def sharded(file: str, target: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        shutil.copy(folder / file, folder.parent / "outside.safetensors")
        (folder / file).unlink()
        index = {"metadata": {"total_size": 1}, "weight_map": {KEYS[file]: target}}
        (folder / f"{file}.index.json").write_text(json.dumps(index))

    return spoil


for file in KEYS:
    for what, target in {
        "a file above": "../../outside.safetensors",
        "a file far above": "../../../../../../etc/passwd",
        "an absolute path": "/etc/passwd",
        "a file of another part": "../vae/diffusion_pytorch_model.safetensors",
        "a pickle": "evil.pkl",
        "a missing file": "missing-00001-of-00002.safetensors",
        "a list": ["a.safetensors"],
    }.items():
        case(f"{file}.index.json: {what}", CheckpointError, f"{file}.index.json", sharded(file, target))

for file in (VAE, VAE_CONFIG, TEXT, TEXT_CONFIG, UNET, VOCAB, MERGES, TOKENIZER):
    case(f"{file}: a link out", CheckpointError, file, link(file, lambda kept: kept))
for folder_, says in {"vae": VAE_CONFIG, "text_encoder": TEXT_CONFIG, "tokenizer": "tokenizer"}.items():
    case(f"{folder_}: a folder that is a link out", CheckpointError, says, link(folder_, lambda kept: kept))


# --- single files ----------------------------------------------------------------------------------------------------


def from_single_file(folder: Path) -> Any:
    return StableDiffusionPipeline.from_single_file(folder / SINGLE, tokenizer=folder / "tokenizer")


def header(entries: dict[str, Any], data: bytes = b"") -> Spoil:
    text = json.dumps(entries).encode()
    return raw(SINGLE, struct.pack("<Q", len(text)) + text + data)


Q = "first_stage_model.decoder.mid.attn_1.q.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def absurd(*patterns: str, count: int = 9999) -> Spoil:
    """So many names more of each kind, with a number each."""
    return weights(
        SINGLE, lambda s: s.update({one.format(i): torch.zeros(0) for one in patterns for i in range(count)})
    )


U, V = "model.diffusion_model", "first_stage_model"


for what, spoil in {
    "empty": raw(SINGLE, b""),
    "a web page": raw(SINGLE, b"<html>log in</html>"),
    "a header of 2**62 bytes": raw(SINGLE, struct.pack("<Q", 2**62)),
    "past the end": header({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}),
    "a pickle": lambda folder: (folder / SINGLE).write_bytes(pickle.dumps(Canary())),
    "an archive": lambda folder: torch.save({"state_dict": Canary()}, folder / SINGLE),
    "a folder": both(gone(SINGLE), lambda folder: (folder / SINGLE).mkdir()),
    "gone": gone(SINGLE),
}.items():
    case(f"single file: {what}", CheckpointError, SINGLE, spoil, load=from_single_file)
for what, spoil in {
    "no tensors": header({}),
    "a tensor missing": weights(SINGLE, lambda s: s.pop(Q)),
    "a wrong shape": weights(SINGLE, lambda s: s.update({Q: s[Q][:, 1:].contiguous()})),
    "a number for a tensor": weights(SINGLE, lambda s: s.update({Q: torch.zeros(())})),
    "names of nothing": absurd("{}"),
    "9,999 levels": absurd("model.diffusion_model.input_blocks.{}.0.op.weight"),
    "9,999 layers of text": absurd("cond_stage_model.transformer.text_model.encoder.layers.{}.x"),
    "900 levels": absurd(f"{U}.input_blocks.{{}}.0.op.weight", count=900),
    "900 levels with layers": absurd(
        *(f"{U}.input_blocks.{{}}.{name}" for name in ("0.op.weight", "0.out_layers.3.weight", "1.norm.weight")),
        count=900,
    ),
    "900 layers": absurd(f"{U}.input_blocks.{{}}.0.in_layers.2.weight", count=900),
    "900 levels of pictures": absurd(f"{V}.encoder.down.{{}}.block.0.conv2.weight", count=900),
    "900 layers of pictures": absurd(f"{V}.encoder.down.0.block.{{}}.conv2.weight", count=900),
    "900 layers of text": absurd("cond_stage_model.transformer.text_model.encoder.layers.{}.x", count=900),
    "levels of 10**9": absurd(f"{U}.input_blocks.{{}}000000000.0.op.weight", count=9),
    "levels of a million digits": weights(
        SINGLE, lambda s: s.update({f"{U}.input_blocks.{'9' * 10**6}.0.op.weight": torch.zeros(0)})
    ),
    "a name of a million dots": weights(SINGLE, lambda s: s.update({f"{U}{'.' * 10**6}weight": torch.zeros(0)})),
    "a name of a million layers": weights(
        SINGLE, lambda s: s.update({f"{V}.encoder{'.mid' * 250_000}.weight": torch.zeros(0)})
    ),
    "texts of a million dots": weights(
        SINGLE, lambda s: s.update({f"cond_stage_model.model{'.weight' * 150_000}": torch.zeros(0)})
    ),
    "levels of other shapes": weights(
        SINGLE, lambda s: s.update({f"{U}.input_blocks.1.0.out_layers.3.weight": torch.zeros(7, 7, 3, 3)})
    ),
    "a text of another width": weights(
        SINGLE, lambda s: s.update({f"{U}.middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(64, 5)})
    ),
    "no width": weights(SINGLE, lambda s: s.update({FIRST: torch.zeros(0, 4, 3, 3)})),
    "a width of 2**40": header({FIRST: {"dtype": "F32", "shape": [2**40, 0, 3, 3], "data_offsets": [0, 0]}}),
}.items():
    case(f"single file: {what}", (ConfigError, WeightsError), SINGLE, spoil, load=from_single_file)
case(
    "single file: a million names",
    CheckpointError,
    SINGLE,
    raw(SINGLE, struct.pack("<Q", 60 * 10**6) + b'{"a":' + b" " * (60 * 10**6)),
    load=from_single_file,
)
case(
    "single file: a .ckpt",
    CheckpointError,
    "is a pickle",
    lambda folder: torch.save({"state_dict": Canary()}, folder / "model.ckpt"),
    load=lambda folder: StableDiffusionPipeline.from_single_file(folder / "model.ckpt", tokenizer=folder / "tokenizer"),
)
case("single file: no tokenizer", CheckpointError, "tokenizer", no_folder("tokenizer"), load=from_single_file)


# --- the tests -------------------------------------------------------------------------------------------------------


def test_a_rise_would_be_seen() -> None:
    rise = Rise()
    if not rise.measured:
        pytest.skip("needs Linux's /proc")
    bytearray(100 * 2**20)
    assert 95 < rise.mib() < 200


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image folder, and a single file in it."""
    torch.manual_seed(0)
    vocab, merges = vocabulary()
    network = {"block_out_channels": (32, 64), "layers_per_block": 1}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            sample_size=16,
        ),
        text_encoder=CLIPTextModel(
            vocab_size=len(vocab), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        ),
        tokenizer=CLIPTokenizer(vocab, merges),
        unet=UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=4,
            **network,
        ),
        scheduler=DDIMScheduler(),
    )
    folder = tmp_path_factory.mktemp("good") / "pipeline"
    pipe.save_pretrained(folder)
    of_text = {"width": 64, "layers": 2, "words": len(vocab), "positions": 77}
    save_file(original.tensors(original.shapes(1, of_text=of_text)), folder / SINGLE)
    return folder


@pytest.mark.filterwarnings("ignore:.*does not know these settings:UserWarning")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.thin(every=5)
def test_is_one_clear_error(name: str, good: Path, tmp_path: Path) -> None:
    case = CASES[name]
    folder = prepare(case, good, tmp_path)
    before = contents(tmp_path)
    with limits(), pytest.raises(case.error) as caught:
        case.load(folder)
    message = str(caught.value)
    assert case.names in message
    assert len(message) < 100_000
    assert not (tmp_path / "canary").exists()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("load", [DiffusionPipeline.from_pretrained, from_single_file])
def test_the_good_one_works(load: Callable[[Path], Any], good: Path) -> None:
    pipe = load(good)
    pipe.set_progress_bar_config(disable=True)
    pipe("a cat", num_inference_steps=2, height=16, width=16)


@pytest.mark.filterwarnings("ignore:.*does not know these settings:UserWarning")
def test_remote_code_that_nothing_needs_is_not_run(good: Path, tmp_path: Path) -> None:
    """Transformers' and diffusers' ways to name code, in a checkpoint that is complete without it."""
    spoil = both(
        CODE,
        edit(INDEX, custom_pipeline="pipeline.py", _module="pipeline"),
        edit(TEXT_CONFIG, auto_map={"AutoModel": "modeling.Evil"}, architectures=["Evil"]),
        edit(UNET_CONFIG, auto_map={"UNet2DConditionModel": "my_unet.Evil"}, _module="my_unet"),
        edit(TOKENIZER, auto_map={"AutoTokenizer": ["modeling.Evil", None]}, tokenizer_class="Evil"),
    )
    folder = prepare(Case(spoil, ValueError, ""), good, tmp_path)
    before = contents(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe("a cat", num_inference_steps=1, height=16, width=16)
    assert not (tmp_path / "canary").exists()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("file", KEYS)
def test_weights_that_are_not_finite_make_no_image(file: str, value: float, good: Path, tmp_path: Path) -> None:
    spoil = weights(file, lambda state: state[KEYS[file]].view(-1)[0].fill_(value))
    pipe = DiffusionPipeline.from_pretrained(prepare(Case(spoil, ValueError, ""), good, tmp_path))
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(NonFiniteError):
        pipe("a cat", num_inference_steps=2, height=16, width=16)


@pytest.mark.parametrize(
    ("file", "entry", "error", "says"),
    [
        (VAE_CONFIG, {"scaling_factor": 0}, (ConfigError, ValueError, NonFiniteError), None),
        (UNET_CONFIG, {"sample_size": "8"}, ConfigError, "sample_size"),
        (UNET_CONFIG, {"sample_size": 10**9}, (ConfigError, ValueError), None),
    ],
)
def test_settings_that_show_when_it_runs(
    file: str, entry: dict[str, Any], error: Any, says: str | None, good: Path, tmp_path: Path
) -> None:
    folder = prepare(Case(edit(file, **entry), ValueError, ""), good, tmp_path)
    with pytest.raises(error, match=says):
        DiffusionPipeline.from_pretrained(folder)("a cat", num_inference_steps=2)


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        (UNET_CONFIG, {"_diffusers_version": "0." + "9" * 10**6}),
        ("scheduler/scheduler_config.json", {"thresholding": True, "sample_max_value": 1e308}),
        ("scheduler/scheduler_config.json", {"clip_sample": True, "clip_sample_range": 1e308}),
    ],
)
def test_settings_that_are_odd_and_work(file: str, entry: dict[str, Any], good: Path, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(prepare(Case(edit(file, **entry), ValueError, ""), good, tmp_path))
    pipe.set_progress_bar_config(disable=True)
    with limits():
        pipe("a cat", num_inference_steps=2, height=16, width=16)


def test_a_prompt_of_10_mb(good: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(good)
    pipe.set_progress_bar_config(disable=True)
    with limits(), pytest.warns(UserWarning, match="this was cut"):
        long = pipe("a cat " * 1_700_000, num_inference_steps=1, height=16, width=16, seed=0, output_type="pt")
    with pytest.warns(UserWarning, match="this was cut"):
        short = pipe("a cat " * 1000, num_inference_steps=1, height=16, width=16, seed=0, output_type="pt")
    assert torch.equal(torch.as_tensor(long.images), torch.as_tensor(short.images))


def test_a_million_merges_of_the_same_are_read_in_bounded_memory(good: Path, tmp_path: Path) -> None:
    folder = prepare(Case(raw(MERGES, b"#version: 0.2\n" + b"c a\n" * 1_040_000), ValueError, ""), good, tmp_path)
    rise = Rise()
    CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert rise.mib() < MEBIBYTES


def test_a_token_that_the_text_encoder_does_not_have(good: Path, tmp_path: Path) -> None:
    folder = prepare(Case(words(lambda v: v.update(zebra=2**31 - 1)), ValueError, ""), good, tmp_path)
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert len(pipe.tokenizer.ids("zebra")) == 1
    pipe.set_progress_bar_config(disable=True)
    pipe("a cat", num_inference_steps=1, height=16, width=16)
