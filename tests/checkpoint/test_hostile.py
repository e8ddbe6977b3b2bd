"""Checkpoints that are broken, or meant to break something.

Each case takes a good pipeline's folder and spoils one file of it. Loading it must raise one exception of ours that
names the file, run nothing, write nothing, and cost little memory.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import re
import resource
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh import run_file
from hostile import DELETED, INDEX, Canary, Case, contents, edit, gone, limits, link, prepare, raw
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline

from ddim.errors import CheckpointError, ConfigError, NonFiniteError, WeightsError
from ddim.models import UNet2DModel
from ddim.pipelines import DiffusionPipeline
from ddim.scheduler import DDIMScheduler

MEMORY = 250  # MiB that loading any of these may cost
HEAVY = re.compile(
    r"10\*\*|0,000|million|[MG]B|MiB|large|nested|header|shape|expanded|compress|end|timesteps|layers|size"
)

CONFIG = "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
BIN = "unet/diffusion_pytorch_model.bin"
SHARDS = "unet/diffusion_pytorch_model.safetensors.index.json"


CASES: dict[str, Case] = {}


def case(name: str, error: type[Exception], names: str, **options: Any) -> Callable[[Callable[[Path], None]], None]:
    def add(spoil: Callable[[Path], None]) -> None:
        assert name not in CASES
        CASES[name] = Case(spoil, error, names, **options)

    return add


# --- JSON ------------------------------------------------------------------------------------------------------------


def directory(file: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return spoil


SPOILT_JSON = {
    "empty": b"",
    "no JSON": b"<html>404</html>",
    "cut off": b'{"a": [1, 2',
    "a list": b"[{}]",
    "a string": b'"x"',
    "nested": b'{"a":' * 100_000,
    "nested lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "large": b'{"a": [' + b"{}," * (11 * 2**20) + b"{}]}",
    "large but allowed": b'{"_class_name": [' + b"[]," * 1_390_000 + b"[]]}",
    "NaN": b'{"a": NaN}',
    "infinity in digits": b'{"a": 1e999}',
    "a number of 5000 digits": b'{"a": ' + b"1" * 5000 + b"}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "latin-1": '{"a": "é"}'.encode("latin-1"),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NUL bytes": b"\0" * 100,
}
for which in (INDEX, CONFIG, SCHEDULER):
    for what, content in SPOILT_JSON.items():
        case(f"{which}: {what}", (ConfigError, CheckpointError), which)(raw(which, content))  # type: ignore[arg-type]
    case(f"{which}: gone", CheckpointError, which)(gone(which))
    case(f"{which}: a folder", CheckpointError, which)(directory(which))


for what, entry in {
    "os.system": {"_class_name": "os.system"},
    "a dotted class": {"_class_name": "ddim.pipelines.DDIMPipeline"},
    "a list of classes": {"_class_name": ["DDIMPipeline"]},
    "no class": {"_class_name": DELETED},
    "null class": {"_class_name": None},
    "another pipeline": {"_class_name": "FluxPipeline"},
    "a class of 3 MB": {"_class_name": "x" * 3_000_000},
    "U-Net is os.system": {"unet": ["os", "system"]},
    "U-Net is a path": {"unet": ["../../evil", "UNet2DModel"]},
    "U-Net is the repository's code": {"unet": ["my_unet", "UNet2DModel"]},
    "U-Net is diffusers' os.system": {"unet": ["diffusers", "os.system"]},
    "U-Net is nothing": {"unet": [None, None]},
    "U-Net is a string": {"unet": "UNet2DModel"},
    "U-Net is three": {"unet": ["diffusers", "UNet2DModel", "x"]},
    "U-Net is a number": {"unet": 7},
    "U-Net is another network": {"unet": ["diffusers", "AutoencoderTiny"]},
    "no U-Net": {"unet": DELETED},
    "scheduler is os.system": {"scheduler": ["os", "system"]},
    "scheduler is nothing": {"scheduler": [None, None]},
    "no scheduler": {"scheduler": DELETED},
}.items():
    case(f"{INDEX}: {what}", CheckpointError, INDEX)(edit(INDEX, **entry))

for what, entry in {
    "channels of 10**9": {"block_out_channels": [10**9, 10**9]},
    "channels of 10**30": {"block_out_channels": [10**30, 10**30]},
    "negative channels": {"block_out_channels": [-16, 32]},
    "no channels": {"block_out_channels": [0, 32]},
    "channels as strings": {"block_out_channels": ["16", "32"]},
    "channels as floats": {"block_out_channels": [16.0, 32.0]},
    "channels as a string": {"block_out_channels": "16,32"},
    "channels as a number": {"block_out_channels": 16},
    "channels as null": {"block_out_channels": None},
    "channels as an object": {"block_out_channels": {"a": 1}},
    "an empty list of channels": {"block_out_channels": [], "down_block_types": [], "up_block_types": []},
    "100,000 resolutions": {
        "block_out_channels": [16] * 100_000,
        "down_block_types": ["DownBlock2D"] * 100_000,
        "up_block_types": ["UpBlock2D"] * 100_000,
    },
    "10**6 layers": {"layers_per_block": 10**6},
    "10**12 layers": {"layers_per_block": 10**12},
    "negative layers": {"layers_per_block": -1},
    "endless layers": {"layers_per_block": float("inf")},
    "endless channels": {"block_out_channels": [float("inf"), 32]},
    "half a layer": {"layers_per_block": 1.5},
    "layers as a string": {"layers_per_block": "2"},
    "layers as null": {"layers_per_block": None},
    "unknown blocks": {"down_block_types": ["DownBlock2D", "CrossDown"]},
    "blocks named os.system": {"down_block_types": ["os.system", "os.system"]},
    "blocks as numbers": {"down_block_types": [1, 2]},
    "blocks as lists": {"down_block_types": [["DownBlock2D"], []]},
    "blocks as null": {"down_block_types": None},
    "unknown middle": {"mid_block_type": "UNetMidBlock2DCrossAttn"},
    "no groups": {"norm_num_groups": 0},
    "groups as a string": {"norm_num_groups": "8"},
    "activation os.system": {"act_fn": "os.system"},
    "activation as a number": {"act_fn": 5},
    "activation as a list": {"act_fn": ["silu"]},
    "time embedding eval": {"time_embedding_type": "__import__('os')"},
    "time embedding of 10**18": {"time_embedding_dim": 10**18},
    "dropout of 7": {"dropout": 7},
    "heads of no width": {"attention_head_dim": -8},
    "input of no channels": {"in_channels": -3},
    "input of strings": {"in_channels": "3"},
    "a shift of frequencies in words": {"freq_shift": "one"},
    "a norm's epsilon in words": {"norm_eps": "1e-5"},
    "padding as null": {"downsample_padding": None},
    "padding as true": {"downsample_padding": True},
    "half a pixel of padding": {"downsample_padding": 0.5},
    "a norm's epsilon as null": {"norm_eps": None},
    "10**12 classes": {"num_class_embeds": 10**12},
    "negative groups": {"norm_num_groups": -1},
    "a size of 10**9": {"sample_size": 10**9},
    "a size of 8 by 65536": {"sample_size": [8, 65536]},
    "a size of 2048 by 2048": {"sample_size": 2048},
    "padding of 10**6": {"downsample_padding": 10**6},
    "padding of -1": {"downsample_padding": -1},
    "1,000 layers": {"layers_per_block": 1000},
    "one side of 10**9": {"sample_size": [8, 10**9]},
    "a scale of 10**30": {"mid_block_scale_factor": 10**30},
    "padding as a list": {"downsample_padding": [1]},
    "size in words": {"sample_size": "8"},
    "size as an object": {"sample_size": {"height": 8}},
    "classes of a string": {"num_class_embeds": "10"},
    "a key called self": {"self": 1, "dropout": 7},
    "defaults as a number": {"_use_default_values": 5},
    "defaults as lists": {"_use_default_values": [[]]},
}.items():
    case(f"{CONFIG}: {what}", (ConfigError, WeightsError), CONFIG)(edit(CONFIG, **entry))  # type: ignore[arg-type]

for what, entry in {
    "another network": {"_class_name": "AutoencoderKL"},
    "os.system": {"_class_name": "os.system"},
    "a list of classes": {"_class_name": ["UNet2DModel"]},
}.items():
    case(f"{CONFIG}: {what}", CheckpointError, CONFIG)(edit(CONFIG, **entry))

# These make a network, but not that of the weights.
for what, entry in {
    "a million input channels": {"in_channels": 10**6},
    "10**9 classes": {"num_class_embeds": 10**9},
    "attention everywhere": {"down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"]},
    "wider": {"block_out_channels": [32, 64]},
    "30 resolutions": {
        "block_out_channels": [16] * 30,
        "down_block_types": ["DownBlock2D"] * 30,
        "up_block_types": ["UpBlock2D"] * 30,
    },
}.items():
    case(f"{CONFIG}: {what}", WeightsError, WEIGHTS)(edit(CONFIG, **entry))

for what, entry in {
    "10**9 timesteps": {"num_train_timesteps": 10**9},
    "10**30 timesteps": {"num_train_timesteps": 10**30},
    "no timesteps": {"num_train_timesteps": 0},
    "endless timesteps": {"num_train_timesteps": float("inf")},
    "an endless beta": {"beta_end": float("inf")},
    "timesteps as a string": {"num_train_timesteps": "1000"},
    "timesteps as a float": {"num_train_timesteps": 1000.0},
    "beta as a string": {"beta_start": "0.1"},
    "beta as null": {"beta_end": None},
    "negative beta": {"beta_start": -1},
    "unknown schedule": {"beta_schedule": "os.system"},
    "schedule as a list": {"beta_schedule": ["linear"]},
    "schedule of 3 MB": {"beta_schedule": "x" * 3_000_000},
    "betas as strings": {"trained_betas": ["0.1"] * 10},
    "betas as a nest": {"trained_betas": [[0.1]] * 10},
    "too few betas": {"trained_betas": [0.1] * 10},
    "class as a number": {"_class_name": 5},
    "range in words": {"clip_sample_range": "1"},
    "clipping in words": {"clip_sample": "no"},
    "prediction as a number": {"prediction_type": 5},
    "spacing as a list": {"timestep_spacing": ["leading"]},
    "offset in words": {"steps_offset": "1"},
    "ratio as an object": {"dynamic_thresholding_ratio": {}},
}.items():
    case(f"{SCHEDULER}: {what}", ConfigError, SCHEDULER)(edit(SCHEDULER, **entry))

case(f"{SCHEDULER}: not of this kind", ConfigError, SCHEDULER)(
    raw(SCHEDULER, b'{"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}')
)


# --- safetensors -----------------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> Callable[[Path], None]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = struct.pack("<Q", len(text) if length is None else length % 2**64)
    return raw(WEIGHTS, size + text + data)


def tensor(start: int = 0, end: int = 4, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


NONE = json.dumps(tensor(0, 0, [0])).encode()
for what, spoil in {
    "empty": raw(WEIGHTS, b""),
    "seven bytes": raw(WEIGHTS, b"1234567"),
    "a web page": raw(WEIGHTS, b"<!doctype html><html>Access to this model is restricted</html>"),
    "a folder": directory(WEIGHTS),
    "header longer than the file": safetensors({}, length=1000),
    "header of 2**63 bytes": safetensors({}, length=2**63),
    "header of -1 bytes": safetensors({}, length=-1),
    "header of 64 MiB": safetensors(b" " * 2**26),
    "header of 300,000 tensors": safetensors(b"{" + b",".join(b'"%d":%b' % (k, NONE) for k in range(300_000)) + b"}"),
    "header no JSON": safetensors(b"not json"),
    "header not UTF-8": safetensors(b'{"\xff": 1}'),
    "header a list": safetensors([1]),
    "header nested": safetensors(b'{"a":' * 10_000),
    "metadata that is no text": safetensors({"__metadata__": {"a": {}}, "a": tensor()}, bytes(4)),
    "overlapping": safetensors({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6)),
    "the same bytes twice": safetensors({"a": tensor(0, 4), "b": tensor(0, 4)}, bytes(4)),
    "a hole": safetensors({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
    "past the end": safetensors({"a": tensor(0, 2**40, [2**38])}, bytes(4)),
    "backwards": safetensors({"a": tensor(4, 0)}, bytes(4)),
    "negative offsets": safetensors({"a": tensor(-4, 0)}, bytes(4)),
    "more bytes than described": safetensors({"a": tensor()}, bytes(400)),
    "a name twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
    ),
    "unknown type": safetensors({"a": tensor(dtype="F128")}, bytes(4)),
    "type os.system": safetensors({"a": tensor(dtype="os.system")}, bytes(4)),
    "negative shape": safetensors({"a": tensor(shape=[-1])}, bytes(4)),
    "shape of floats": safetensors({"a": tensor(shape=[1.0])}, bytes(4)),
    "shape that overflows": safetensors({"a": tensor(shape=[2**40, 2**40])}, bytes(4)),
    "shape of 0 by 2**63": safetensors({"a": tensor(0, 0, [0, 2**63])}),
}.items():
    case(f"{WEIGHTS}: {what}", CheckpointError, WEIGHTS)(spoil)

case("Git LFS pointer", CheckpointError, "git lfs pull")(
    raw(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
)
case("no weights", CheckpointError, WEIGHTS)(gone(WEIGHTS))


@case("half of the weights", CheckpointError, WEIGHTS)
def _(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@case("a pickle called safetensors", CheckpointError, WEIGHTS)
def _(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"conv_in.weight": Canary()}))


@case("an archive called safetensors", CheckpointError, WEIGHTS)
def _(folder: Path) -> None:
    torch.save({"conv_in.weight": Canary()}, folder / WEIGHTS)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        (folder / WEIGHTS).unlink()
        save_file(state, folder / WEIGHTS)

    return spoil


KEY = "conv_in.weight"
for what, change in {
    "nothing": lambda s: s.clear(),
    "a tensor missing": lambda s: s.pop(KEY),
    "a tensor more": lambda s: s.update(extra=torch.zeros(1)),
    "40,000 tensors more": lambda s: s.update({f"{k:05}": torch.zeros(0) for k in range(40_000)}),
    "a name of 1 MB": lambda s: s.update({"x" * 10**6: torch.zeros(1)}),
    "a wrong shape": lambda s: s.update({KEY: s[KEY][:, :2].contiguous()}),
    "a dimension more": lambda s: s.update({KEY: s[KEY][None]}),
    "integers": lambda s: s.update({KEY: s[KEY].long()}),
    "booleans": lambda s: s.update({KEY: s[KEY] > 0}),
    "complex numbers": lambda s: s.update({KEY: s[KEY].to(torch.complex64)}),
    "4-bit numbers": lambda s: s.update(
        {KEY: torch.zeros(s[KEY].shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    ),
    "an older name beside the new": lambda s: s.update(
        {"mid_block.attentions.0.query.weight": s["mid_block.attentions.0.to_q.weight"].clone()}
    ),
}.items():
    case(f"weights with {what}", WeightsError, WEIGHTS)(weights(change))


# --- .bin ------------------------------------------------------------------------------------------------------------


def bin_file(make: Callable[[dict[str, torch.Tensor], Path], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        made = make(state, folder / BIN)
        if made is not None:
            torch.save(made, folder / BIN)

    return spoil


def _compressed(state: dict[str, torch.Tensor], path: Path) -> None:
    """One of the small entries that torch reads first is 500 MB long, in 2 MB."""
    torch.save(state, path.with_suffix(".tmp"))
    with (
        zipfile.ZipFile(path.with_suffix(".tmp")) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            with new.open(name, "w") as entry:
                entry.write(old.read(name))
                for _ in range(500 * name.endswith("byteorder")):
                    entry.write(bytes(10**6))
    path.with_suffix(".tmp").unlink()


class _Bytes:
    """Unpickled, it takes 4 GiB."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (2**32,)


def _bytes(state: dict[str, torch.Tensor], path: Path) -> dict[str, Any]:
    return {**state, "extra": _Bytes()}


for what, make in {
    "a raw pickle with code": lambda s, path: path.write_bytes(pickle.dumps(Canary())) and None,
    "code instead of a tensor": lambda s, path: {**s, KEY: Canary()},
    "code as a name": lambda s, path: {**s, 5: Canary()},
    "the format of before 1.6": lambda s, path: torch.save(s, path, _use_new_zipfile_serialization=False),
    "code in the format of before 1.6": lambda s, path: torch.save(
        Canary(), path, _use_new_zipfile_serialization=False
    ),
    "half an archive": lambda s, path: path.write_bytes(b"PK\x03\x04" + bytes(1000)) and None,
    "nothing": lambda s, path: path.write_bytes(b"") and None,
    "compression": _compressed,
    "a pickle of 5 MB": lambda s, path: {**s, "x": list(range(10**6))},
    "a list": lambda s, path: list(s.values()),
    "weights one level down": lambda s, path: {"state_dict": s},
    "a network": lambda s, path: torch.nn.Linear(2, 2),
    "numbers as names": lambda s, path: dict(enumerate(s.values())),
    "4 GiB of bytes beside the weights": _bytes,
    "sets of millions": lambda s, path: {**s, "x": set(range(10**6))},
    "an expanded tensor": lambda s, path: {**s, KEY: torch.zeros(1).expand(s[KEY].shape)},
    "a sparse tensor": lambda s, path: {**s, KEY: s[KEY].to_sparse()},
    "a tensor without memory": lambda s, path: {**s, KEY: s[KEY].to("meta")},
}.items():
    case(f".bin with {what}", CheckpointError, BIN)(bin_file(make))

for what, make in {
    "a tensor missing": lambda s, path: {k: v for k, v in s.items() if k != KEY},
    "integers": lambda s, path: {**s, KEY: s[KEY].int()},
}.items():
    case(f".bin with {what}", WeightsError, BIN)(bin_file(make))


# --- shards ----------------------------------------------------------------------------------------------------------


def sharded(weight_map: Any, parts: int = 1) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        outside = folder.parent / "outside.safetensors"
        shutil.copy(folder / WEIGHTS, outside)
        for part in range(parts):
            shutil.copy(folder / WEIGHTS, folder / "unet" / f"part{part}.safetensors")
        (folder / WEIGHTS).unlink()
        (folder / SHARDS).write_text(json.dumps({"weight_map": weight_map}))

    return spoil


for what, weight_map in {
    "a file above": {KEY: "../outside.safetensors"},
    "a file far above": {KEY: "../../outside.safetensors"},
    "an absolute path": {KEY: "/etc/passwd"},
    "an absolute weight file": {KEY: "/tmp/x.safetensors"},
    "a path with a backslash": {KEY: "..\\outside.safetensors"},
    "a drive": {KEY: "C:x.safetensors"},
    "a NUL": {KEY: "x\0.safetensors"},
    "a name of 5000 letters": {KEY: "x" * 5000 + ".safetensors"},
    "no weight file": {KEY: "evil.py"},
    "a config": {KEY: "config.json"},
    "a missing file": {KEY: "missing.safetensors"},
    "a number": {KEY: 5},
    "an empty name": {KEY: ""},
    "a list": [KEY],
    "nothing": {},
    "null": None,
}.items():
    case(f"shards: {what}", CheckpointError, SHARDS)(sharded(weight_map))

case("shards: the same tensors twice", WeightsError, "part0.safetensors")(
    sharded({KEY: "part0.safetensors", "conv_in.bias": "part1.safetensors"}, parts=2)
)


@case("shards: an index that is no JSON", CheckpointError, SHARDS)
def _(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / SHARDS).write_bytes(b"[")


# --- links and paths -------------------------------------------------------------------------------------------------


for file in (INDEX, CONFIG, SCHEDULER, WEIGHTS):
    case(f"{file}: a link out", CheckpointError, file)(link(file, lambda kept: kept))
    case(f"{file}: a relative link out", CheckpointError, file)(link(file, lambda kept: f"../{'../' * 3}etc/hostname"))
    case(f"{file}: a link to nothing", CheckpointError, file)(link(file, lambda kept: "nothing"))
    case(f"{file}: a link to itself", CheckpointError, file)(link(file, lambda kept, name=Path(file).name: name))
case("a folder that is a link out", CheckpointError, CONFIG)(link("unet", lambda kept: kept))


def unet(subfolder: str) -> Callable[[Path], Any]:
    return lambda folder: UNet2DModel.from_pretrained(folder / "unet", subfolder=subfolder)


def untouched(folder: Path) -> None:
    pass


for subfolder in ("..", "../unet", "x/../../unet", "/etc", "..\\unet", "c:unet", "un\0et"):
    case(f"subfolder {subfolder!r}", CheckpointError, "is not a path", load=unet(subfolder))(untouched)
case("subfolder of 5000 letters", CheckpointError, "looked for x", load=unet("x" * 5000))(untouched)
case(
    "subfolder that is not there", CheckpointError, "nothing/diffusion_pytorch_model.safetensors", load=unet("nothing")
)(untouched)
case(
    "scheduler from above",
    CheckpointError,
    "is not a path",
    load=lambda folder: DDIMScheduler.from_pretrained(folder / "unet", subfolder="../scheduler"),
)(untouched)
case(
    "no such folder", CheckpointError, "no folder", load=lambda folder: DiffusionPipeline.from_pretrained(folder / "x")
)(untouched)
case("an empty name", CheckpointError, "no folder", load=lambda folder: DiffusionPipeline.from_pretrained(""))(
    untouched
)
case("a name with NUL", CheckpointError, "no folder", load=lambda folder: DiffusionPipeline.from_pretrained("a\0b"))(
    untouched
)
case(
    "a name of 5000 letters",
    CheckpointError,
    "no folder",
    load=lambda folder: DiffusionPipeline.from_pretrained("x/" * 2500),
)(untouched)
case(
    "the weights instead of their folder",
    CheckpointError,
    "folder",
    load=lambda folder: UNet2DModel.from_pretrained(folder / WEIGHTS),
)(untouched)
case(
    "the config instead of its folder",
    CheckpointError,
    "folder",
    load=lambda folder: UNet2DModel.from_pretrained(folder / CONFIG),
)(untouched)
case(
    "a network's folder as a pipeline",
    CheckpointError,
    INDEX,
    load=lambda folder: DiffusionPipeline.from_pretrained(folder / "unet"),
)(untouched)
case("a pipeline's folder as a network", CheckpointError, "config.json", load=UNet2DModel.from_pretrained)(untouched)


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*does not know these settings:UserWarning")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.thin(every=4)
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


def test_the_good_one_loads(good: Path) -> None:
    DiffusionPipeline.from_pretrained(good)


def test_a_canary_would_be_seen(tmp_path: Path) -> None:
    Canary.path = str(tmp_path / "canary")
    pickle.loads(pickle.dumps(Canary()))
    assert (tmp_path / "canary").exists()


# The fast test beside it is test_is_one_clear_error.
@pytest.mark.slow
def test_none_costs_much_memory(good: Path, tmp_path: Path) -> None:
    """In a process of its own, since a process's peak only rises."""
    peaks = json.loads(run_file(__file__, str(good), str(tmp_path)))
    assert 30 < len(peaks) < 100
    assert max(peaks.values()) < MEMORY, max(peaks.items(), key=lambda item: item[1])


def measure(good: Path, place: Path) -> dict[str, float]:
    """MiB by which the peak had risen after each case; files are made in a child, whose memory does not count."""
    DiffusionPipeline.from_pretrained(good)
    gc.freeze()  # as in conftest.py: searching for garbage while millions of values are read took half of the time
    gc.set_threshold(100_000, 50, 50)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = {}
    for index, (name, case) in enumerate(CASES.items()):
        if not HEAVY.search(name):
            continue
        folder = place / str(index)
        folder.mkdir()
        child = os.fork()
        if child == 0:
            prepare(case, good, folder)
            os._exit(0)
        os.waitpid(child, 0)
        with contextlib.suppress(Exception):
            case.load(folder / "pipeline")
        shutil.rmtree(folder)
        peaks[name] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
    return peaks


NONSENSE: list[Any] = [None, True, -1, 0, 3, 0.5, 10**9, 10**30, float("inf"), "x", [], [[1]], [-1, 0], {}]


@pytest.mark.filterwarnings("ignore:.*does not know these settings:UserWarning")
@pytest.mark.parametrize(
    ("file", "load"),
    [
        (INDEX, DiffusionPipeline.from_pretrained),
        (CONFIG, lambda folder: UNet2DModel.from_pretrained(folder, subfolder="unet")),
        (SCHEDULER, lambda folder: DDIMScheduler.from_pretrained(folder, subfolder="scheduler")),
    ],
    ids=["index", "network", "scheduler"],
)
@pytest.mark.thin(fast=["index", "scheduler"])
def test_any_value_of_any_setting_loads_or_is_one_clear_error(
    file: str, load: Callable[[Path], Any], good: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(good, folder)
    settings = json.loads((folder / file).read_text())
    for name in [*settings, "_use_default_values", "unknown"]:
        for value in NONSENSE:
            (folder / file).write_text(json.dumps({**settings, name: value}))
            message = complaint(load, folder)
            assert message is None or str(folder) in message, (name, value)


def complaint(load: Callable[[Path], Any], folder: Path) -> str | None:
    try:
        load(folder)
    except (CheckpointError, ConfigError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_stop_the_run(value: float, good: Path, tmp_path: Path) -> None:
    folder = prepare(Case(weights(lambda s: s[KEY].view(-1)[0].fill_(value)), ValueError, ""), good, tmp_path)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(NonFiniteError, match=r"step 1 of 4 \(timestep 750\)"):
        pipe(num_inference_steps=4)


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))))
