"""Files written whole, checkpoints found and loaded, and what one class makes of another's files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIG, tiny_unet
from torch import Tensor, nn

from ddim import checkpoint
from ddim.checkpoint import files, hub
from ddim.checkpoint.config import register_to_config
from ddim.errors import CheckpointError, ConfigError, WeightsError
from ddim.models import UNet2DModel
from ddim.scheduler import DDIMInverseScheduler, DDIMScheduler

WEIGHTS = "diffusion_pytorch_model.safetensors"


def same_state(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".tmp" in path.name]


# --- files written whole ---------------------------------------------------------------------------------------------


def test_a_file_is_made_with_its_folders(tmp_path: Path) -> None:
    with files.atomic_write(tmp_path / "a" / "b.txt") as temporary:
        temporary.write_text("x")
        assert temporary.parent == tmp_path / "a"
        assert temporary.suffix == ".txt"
        assert not (tmp_path / "a" / "b.txt").exists()
    assert (tmp_path / "a" / "b.txt").read_text() == "x"
    assert leftovers(tmp_path) == []


def test_what_fails_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})

    def interrupted() -> None:
        with files.atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files.read_json(path) == {"a": 1}
    assert leftovers(tmp_path) == []


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["os.open", "os.fsync", "os.replace", "os.chmod", "pathlib.Path.write_text"])
def test_a_full_disk_leaves_the_old_file(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(CheckpointError, match=r"x\.json was not written: No space left on device"):
            files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    assert leftovers(tmp_path) == []


def test_a_disk_that_fills_up_under_tensors_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does; it cannot be taken back, hence the process."""
    script = f"""
import resource, signal, torch
from ddim.checkpoint.files import save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = {str(tmp_path / "x.safetensors")!r}
save_tensors(path, {{"a": torch.ones(10)}})
try:
    save_tensors(path, {{"a": torch.ones(100_000)}})
except OSError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"CheckpointError {tmp_path}/x.safetensors was not written: ")
    assert torch.equal(files.read_tensors(tmp_path / "x.safetensors")["a"], torch.ones(10))
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_the_old_network(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its config nor its weights are replaced alone."""
    old = tiny_unet(seed=1)
    old.save_pretrained(tmp_path)
    made = os.open
    opened: list[Any] = []

    def fill_up(path: Any, *args: Any) -> int:
        opened.append(path)
        return made(path, *args) if len(opened) < failing else int(full())

    with monkeypatch.context() as patch:
        patch.setattr("ddim.checkpoint.files.os.open", fill_up)
        with pytest.raises(CheckpointError, match="was not written: No space left on device"):
            tiny_unet(seed=2, block_out_channels=(32, 64)).save_pretrained(tmp_path)
    assert len(opened) == failing
    assert same_state(UNet2DModel.from_pretrained(tmp_path), old)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("save", [files.write_json, files.save_tensors])
def test_a_path_that_cannot_be_written_to_is_named(save: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/x\.json was not written: "):
        save(tmp_path / "file" / "x.json", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="folder was not written: "):
        save(tmp_path / "folder", {})
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_what_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "x.txt", "x")
        files.save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    for name in ("x.txt", "x.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


KILLED = """
import itertools, os, random, signal, sys, time, torch
from ddim.checkpoint.files import read_tensors, save_tensors

path = sys.argv[1]
tensors = [torch.full((300_000,), float(value)) for value in (1, 2, 3)]
save_tensors(path, {"a": tensors[0]})
rng = random.Random(0)
for round in range(8):
    child = os.fork()
    if child == 0:
        for tensor in itertools.cycle(tensors):
            save_tensors(path, {"a": tensor})
    for _ in range(3):  # a reader beside the writer, and after its death
        time.sleep(rng.random() * 0.02)
        if _ == 2:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        whole = read_tensors(path)["a"]
        assert whole.shape == (300_000,) and len(whole.unique()) == 1
"""


def test_a_file_whose_writer_is_killed_is_always_whole(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "x.safetensors")], check=True, timeout=100)
    assert leftovers(tmp_path)  # or nothing was interrupted


def test_threads_that_write_one_file_leave_one_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    threads = [threading.Thread(target=files.write_json, args=(path, {"a": [k] * 1000})) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(files.read_json(path)["a"])) == 1
    assert leftovers(tmp_path) == []


def test_json_holds_no_number_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_tensors_come_back_as_they_went(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(2, 3, 4)
    tensors = {
        "a": whole,
        "a again": whole,
        "its tail": whole[1],
        "transposed": whole.transpose(0, 2),
        "strided": whole[..., ::2],
        "expanded": torch.ones(1).expand(5),
        "half": whole.half(),
        "bfloat16": whole.bfloat16(),
        "float8": whole.to(torch.float8_e4m3fn),
        "double": whole.double(),
        "int": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 2),
        "parameter": nn.Parameter(torch.ones(2)),
        "with a gradient": torch.ones(2, requires_grad=True) * 2,
    }
    files.save_tensors(tmp_path / "x.safetensors", tensors, {"step": "7"})
    read = files.read_tensors(tmp_path / "x.safetensors")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.detach().float()), name
        assert not read[name].requires_grad


def test_a_loaded_network_can_be_saved_over_its_own_file(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path)
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    loaded.save_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[key], before[key]) for key in before)
    assert same_state(UNet2DModel.from_pretrained(tmp_path), loaded)


def test_a_loaded_network_can_be_trained_without_touching_its_file(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).chmod(0o444)
    before = (tmp_path / WEIGHTS).read_bytes()
    loaded = UNet2DModel.from_pretrained(tmp_path).train()
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(torch.randn(1, 3, 8, 8), 5).sample.square().mean().backward()
    optimizer.step()
    assert (tmp_path / WEIGHTS).read_bytes() == before
    assert not same_state(loaded, UNet2DModel.from_pretrained(tmp_path))


# --- networks --------------------------------------------------------------------------------------------------------


def test_a_network_comes_back_the_same(tmp_path: Path) -> None:
    network = tiny_unet(num_class_embeds=5).train()
    network.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    loaded = UNet2DModel.from_pretrained(str(tmp_path))
    assert same_state(loaded, network)
    assert not loaded.training
    assert not any(module.training for module in loaded.modules())
    for name in CONFIG:
        assert loaded.config[name] == network.config[name]


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", [None, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.thin(every=3)
def test_the_type_is_the_callers_or_float32(
    name: str, stored: torch.dtype, wanted: torch.dtype | None, tmp_path: Path
) -> None:
    network = tiny_unet().to(stored)
    network.save_pretrained(tmp_path)
    assert {value.dtype for value in load_file(tmp_path / WEIGHTS).values()} == {stored}
    loaded = UNet2DModel.from_pretrained(tmp_path, **{name: wanted})
    assert {value.dtype for value in loaded.state_dict().values()} == {wanted or torch.float32}
    assert loaded.dtype == (wanted or torch.float32)
    assert same_state(loaded, network.to(loaded.dtype))


def test_types_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="contradict"):
        UNet2DModel.from_pretrained(tmp_path, dtype=torch.float16, torch_dtype=torch.float32)
    for nonsense in (torch.int8, "float16", torch.complex64):
        with pytest.raises(TypeError, match="floating-point"):
            UNet2DModel.from_pretrained(tmp_path, dtype=nonsense)


def test_a_subfolder_and_overrides(tmp_path: Path) -> None:
    network = tiny_unet()
    network.save_pretrained(tmp_path / "a" / "unet")
    assert same_state(UNet2DModel.from_pretrained(tmp_path, subfolder="a/unet"), network)
    assert same_state(UNet2DModel.from_pretrained(tmp_path / "a", "unet"), network)
    loaded = UNet2DModel.from_pretrained(tmp_path / "a", subfolder="unet", sample_size=16)
    assert loaded.config.sample_size == 16
    with pytest.warns(UserWarning, match="does not know these settings and ignores them: shape"):
        UNet2DModel.from_pretrained(tmp_path / "a", subfolder="unet", shape=16)


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_unet().save_pretrained(tmp_path / "x" / "y")
    monkeypatch.chdir(tmp_path)
    for name in ("x/y", "./x/y", "x/../x/y", Path("x/y"), "x//y/"):
        UNet2DModel.from_pretrained(name)
    monkeypatch.chdir(tmp_path / "x" / "y")
    UNet2DModel.from_pretrained(".")


def test_links_inside_the_checkpoint_are_followed(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "kept")
    (tmp_path / "unet").mkdir()
    for name in ("config.json", WEIGHTS):
        (tmp_path / "unet" / name).symlink_to(f"../kept/{name}")
    UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        UNet2DModel.from_pretrained(tmp_path / "unet")
    (tmp_path / "alias").symlink_to(tmp_path / "kept")
    UNet2DModel.from_pretrained(tmp_path / "alias")


def test_all_differences_are_listed(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    del state["conv_in.bias"]
    state["extra"] = torch.ones(3)
    state["conv_out.bias"] = torch.ones(4)
    state["conv_in.weight"] = state["conv_in.weight"].int()
    (tmp_path / WEIGHTS).unlink()
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(WeightsError) as caught:
        UNet2DModel.from_pretrained(tmp_path)
    assert str(caught.value).splitlines() == [
        f"{tmp_path / WEIGHTS} does not fit UNet2DModel (4 differences):",
        "  missing: conv_in.bias (16,)",
        "  unexpected: extra (3,)",
        "  wrong shape: conv_out.bias is (4,), the config asks for (3,)",
        "  wrong type: conv_in.weight is torch.int32, needed is torch.float32",
    ]


class Buffered(checkpoint.PretrainedModel):
    """A network with an integer buffer and a stored tensor that it has no use for."""

    @register_to_config
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("positions", torch.arange(3))

    @classmethod
    def convert_key(cls, key: str) -> str | None:
        return None if key == "unused" else key.removeprefix("old.")


def test_integers_stay_and_keys_are_converted(tmp_path: Path) -> None:
    network = Buffered()
    network.save_pretrained(tmp_path)
    state: dict[str, Tensor] = {f"old.{key}": value for key, value in network.state_dict().items()}
    files.save_tensors(tmp_path / WEIGHTS, {**state, "unused": torch.ones(1)})
    loaded = Buffered.from_pretrained(tmp_path, dtype=torch.float16)
    assert loaded.positions.dtype == torch.int64
    assert loaded.linear.weight.dtype == torch.float16


# --- variants, shards, .bin ------------------------------------------------------------------------------------------


def test_variants_are_apart(tmp_path: Path) -> None:
    half, full_precision = tiny_unet(seed=1).half(), tiny_unet(seed=2)
    half.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
    full_precision.save_pretrained(tmp_path)
    assert same_state(UNet2DModel.from_pretrained(tmp_path, variant="fp16"), half.float())
    assert same_state(UNet2DModel.from_pretrained(tmp_path), full_precision)
    with pytest.raises(CheckpointError, match=r"looked for .*\.bf16\..* \(there are some for variant='fp16'\)"):
        UNet2DModel.from_pretrained(tmp_path, variant="bf16")


@pytest.mark.parametrize("size", ["10GB", "20KB"])
@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.thin(every=2)
def test_the_only_variant_is_loaded_and_said(safetensors: bool, size: str, tmp_path: Path) -> None:
    half = tiny_unet(seed=1).half()
    options: Any = {"safe_serialization": safetensors, "max_shard_size": size}
    half.save_pretrained(tmp_path, variant="fp16", **options)
    with pytest.warns(UserWarning, match=r"no plain weights but those of the variant fp16.*give variant='fp16'"):
        loaded = UNet2DModel.from_pretrained(tmp_path)
    assert same_state(loaded, half.float())
    assert same_state(UNet2DModel.from_pretrained(tmp_path, variant="fp16"), half.float())  # without a word
    half.save_pretrained(tmp_path, variant="ema", **options)
    with pytest.raises(CheckpointError, match=r"\(there are some for variant='ema' and for variant='fp16'\)"):
        UNet2DModel.from_pretrained(tmp_path)
    half.save_pretrained(tmp_path, **options)
    UNet2DModel.from_pretrained(tmp_path)  # the plain ones, without a word


@pytest.mark.filterwarnings("ignore")  # of diffusers
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safetensors", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("size", ["10GB", "50KB"], ids=["whole", "sharded"])
@pytest.mark.thin(every=2)
def test_everything_diffusers_writes_is_read(variant: str | None, safetensors: bool, size: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = diffusers.UNet2DModel(**CONFIG)
    theirs.save_pretrained(tmp_path, variant=variant, safe_serialization=safetensors, max_shard_size=size)
    names = {path.name for path in tmp_path.iterdir()} - {"config.json"}
    assert (len(names) > 3) == (size == "50KB")
    assert all(name.endswith((".safetensors", ".bin", ".json")) for name in names)
    ours = UNet2DModel.from_pretrained(tmp_path, variant=variant)
    assert len(ours.state_dict()) == len(theirs.state_dict())
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_diffusers_reads_what_we_write(variant: str | None, tmp_path: Path) -> None:
    ours = tiny_unet(num_class_embeds=4)
    ours.save_pretrained(tmp_path, variant=variant)
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path, variant=variant)
    assert all(torch.equal(theirs.state_dict()[key], value) for key, value in ours.state_dict().items())


def test_safetensors_are_preferred_to_bin(tmp_path: Path) -> None:
    network = tiny_unet()
    network.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"a pickle that must not be opened")
    (tmp_path / f"{WEIGHTS}.index.json").write_text("nor is this needed")
    assert same_state(UNet2DModel.from_pretrained(tmp_path), network)


def test_bin_keeps_what_is_odd_but_harmless(tmp_path: Path) -> None:
    network = tiny_unet()
    network.save_config(tmp_path)
    state: dict[str, Any] = {key: nn.Parameter(value) for key, value in network.state_dict().items()}
    state["conv_in.weight"] = state["conv_in.weight"].detach().to(memory_format=torch.channels_last)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    assert same_state(UNet2DModel.from_pretrained(tmp_path), network)


# --- configs ---------------------------------------------------------------------------------------------------------


def test_a_scheduler_from_a_file_a_folder_or_a_subfolder(tmp_path: Path) -> None:
    DDIMScheduler(num_train_timesteps=50, steps_offset=1).save_pretrained(tmp_path / "scheduler")
    for name, options in (
        (tmp_path / "scheduler" / "scheduler_config.json", {}),
        (tmp_path / "scheduler", {}),
        (str(tmp_path), {"subfolder": "scheduler"}),
        (tmp_path / "scheduler", {"subfolder": "scheduler"}),  # as in diffusers
    ):
        loaded = DDIMScheduler.from_pretrained(name, **options)
        assert (loaded.config.num_train_timesteps, loaded.config.steps_offset) == (50, 1)
    loaded, unused = DDIMScheduler.from_pretrained(
        tmp_path, subfolder="scheduler", return_unused_kwargs=True, steps_offset=0, bogus=7
    )
    assert loaded.config.steps_offset == 0
    assert unused["bogus"] == 7
    assert DDIMInverseScheduler.from_pretrained(tmp_path, "scheduler").config.num_train_timesteps == 50
    config, rest = DDIMScheduler.load_config(
        tmp_path, subfolder="scheduler", return_unused_kwargs=True, revision="x", bogus=7
    )
    assert config["steps_offset"] == 1
    assert rest == {"bogus": 7}


def test_a_bad_override_names_the_file_and_the_value(tmp_path: Path) -> None:
    DDIMScheduler().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"scheduler_config\.json makes no DDIMScheduler: beta_start must be"):
        DDIMScheduler.from_pretrained(tmp_path, beta_start=-1)


def test_names_that_are_no_paths_are_type_errors() -> None:
    for nonsense in (None, 5, {"a": 1}):
        with pytest.raises(TypeError, match="a path or a hub id"):
            DDIMScheduler.from_pretrained(nonsense)


def test_saving_takes_no_argument_that_it_ignores(tmp_path: Path) -> None:
    for thing in (DDIMScheduler(), tiny_unet()):
        with pytest.raises(TypeError, match="no argument commit_message, varaint"):
            thing.save_pretrained(tmp_path / "x", varaint="fp16", commit_message="m")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/scheduler_config\.json was not written"):
        DDIMScheduler().save_pretrained(tmp_path / "file")


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_hash_of_names_and_bytes() -> None:
    """Of the bytes as they lie in memory, spelt out here: what training.json files recorded must stay true."""
    network = nn.Linear(2, 1)
    network.load_state_dict({"weight": torch.tensor([[1.0, -2.0]]), "bias": torch.tensor([0.5])})
    network.register_buffer("count", torch.tensor(3))  # no dimensions, as BatchNorm's count of batches
    stored = b"weight" + struct.pack("<ff", 1, -2) + b"bias" + struct.pack("<f", 0.5) + b"count" + struct.pack("<q", 3)
    assert checkpoint.fingerprint(network) == hashlib.sha256(stored).hexdigest()
    halved = b"weight" + struct.pack("<HH", 0x3F80, 0xC000) + b"bias" + struct.pack("<H", 0x3F00) + b"count"
    halved += struct.pack("<q", 3)
    assert checkpoint.fingerprint(network.to(torch.bfloat16)) == hashlib.sha256(halved).hexdigest()


def test_a_fingerprint_sees_every_number() -> None:
    network = tiny_unet()
    before = checkpoint.fingerprint(network)
    assert before == checkpoint.fingerprint(tiny_unet())
    with torch.no_grad():
        next(iter(network.parameters())).view(-1)[3] += 1
    assert checkpoint.fingerprint(network) != before


# --- bundled models --------------------------------------------------------------------------------------------------


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    weights = tmp_path / "weights"
    tiny_unet(seed=1).save_pretrained(weights / "digits" / "unet")
    DDIMScheduler(num_train_timesteps=77).save_pretrained(weights / "digits" / "scheduler")
    (weights / "digits" / "model_index.json").write_text(json.dumps({"_class_name": "DDIMPipeline"}))
    (weights / "no-model").mkdir()
    monkeypatch.setattr(hub, "BUNDLED", weights)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return weights


def test_a_bundled_model_is_found_by_its_name(bundled: Path) -> None:
    assert checkpoint.bundled_models() == ["digits"]
    assert DDIMScheduler.from_pretrained("digits", subfolder="scheduler").config.num_train_timesteps == 77
    assert same_state(UNet2DModel.from_pretrained("digits", subfolder="unet"), tiny_unet(seed=1))


def test_a_folder_of_that_name_wins_only_if_it_is_a_checkpoint(bundled: Path) -> None:
    Path("digits").mkdir()
    Path("digits/0001.png").write_text("somebody's training data")
    assert same_state(UNet2DModel.from_pretrained("digits", subfolder="unet"), tiny_unet(seed=1))
    tiny_unet(seed=2).save_pretrained("digits")
    assert same_state(UNet2DModel.from_pretrained("digits"), tiny_unet(seed=2))
    shutil.rmtree("digits")
    DDIMScheduler(num_train_timesteps=88).save_pretrained("digits")
    assert DDIMScheduler.from_pretrained("digits").config.num_train_timesteps == 88


def test_the_names_that_others_import_are_here() -> None:
    names = """Repository read_json write_json write_text atomic_write save_tensors read_tensors check_state
        bundled_models upload PretrainedMixin PretrainedModel find_weights load_weights fingerprint""".split()
    assert all(hasattr(checkpoint, name) for name in names)
