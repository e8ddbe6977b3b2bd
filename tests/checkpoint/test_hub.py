"""Checkpoints on the hub: what is asked of it, its cache without a connection, uploads. No test uses the network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from fake_hub import FakeApi
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from tiny import tiny_pipeline, tiny_unet

from ddim.checkpoint import hub
from ddim.errors import CheckpointError
from ddim.models import UNet2DModel
from ddim.pipelines import DDIMPipeline, DiffusionPipeline
from ddim.scheduler import DDIMScheduler

WEIGHTS = "diffusion_pytorch_model.safetensors"
BIN = "diffusion_pytorch_model.bin"
NAME = "owner/name"


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "default-cache"))
    # For its user agent the library asks the hub which agents there are, even where only the cache may be used.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a test went to the network"))
    monkeypatch.chdir(tmp_path)


class FakeHub:
    """Stands for `hf_hub_download`, over a local folder; remembers what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.options: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def __call__(self, repo_id: str, filename: str, **options: Any) -> str:
        assert repo_id == NAME
        if self.error:
            raise self.error
        self.asked.append(filename)
        self.options.append(options)
        if not (self.folder / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(self.folder / filename)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    tiny_pipeline(seed=4, scheduler=DDIMScheduler(num_train_timesteps=60)).save_pretrained(tmp_path / "remote")
    fake = FakeHub(tmp_path / "remote")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    return fake


# --- what is fetched -------------------------------------------------------------------------------------------------


def test_a_pipeline_fetches_its_json_and_safetensors_alone(fake: FakeHub) -> None:
    for name in ("README.md", "unet/diffusion_pytorch_model.bin", "evil.py", "unet/modeling.py"):
        (fake.folder / name).write_text("not for us")
    pipe = DiffusionPipeline.from_pretrained(NAME)
    assert isinstance(pipe, DDIMPipeline)
    assert pipe.scheduler.config.num_train_timesteps == 60
    assert set(fake.asked) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        f"unet/{WEIGHTS}",
    }


def test_bin_is_asked_for_where_there_are_no_safetensors(fake: FakeHub) -> None:
    torch.save(tiny_unet(seed=4).state_dict(), fake.folder / "unet" / BIN)
    (fake.folder / "unet" / WEIGHTS).unlink()
    UNet2DModel.from_pretrained(NAME, subfolder="unet")
    assert fake.asked == ["unet/config.json", f"unet/{WEIGHTS}", f"unet/{WEIGHTS}.index.json", f"unet/{BIN}"]


def test_a_variant_asks_for_its_files(fake: FakeHub) -> None:
    tiny_unet(seed=4).half().save_pretrained(fake.folder / "unet", variant="fp16")
    UNet2DModel.from_pretrained(NAME, subfolder="unet", variant="fp16")
    assert fake.asked == ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]


def test_shards_are_asked_for_by_their_names(fake: FakeHub) -> None:
    folder = fake.folder / "unet"
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"conv_in.bias": "a.safetensors"}}))
    UNet2DModel.from_pretrained(NAME, subfolder="unet")
    assert fake.asked[-1] == "unet/a.safetensors"
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"conv_in.bias": "../../a.safetensors"}}))
    fake.asked.clear()
    with pytest.raises(CheckpointError, match="no weight file beside it"):
        UNet2DModel.from_pretrained(NAME, subfolder="unet")
    assert not any("a.safetensors" in name for name in fake.asked)


def test_a_part_that_is_given_is_not_fetched(fake: FakeHub) -> None:
    unet = tiny_unet()
    pipe = DDIMPipeline.from_pretrained(NAME, unet=unet)
    assert pipe.unet is unet
    assert not any(name.startswith("unet") for name in fake.asked)
    fake.asked.clear()
    DDIMPipeline.from_pretrained(NAME, scheduler=DDIMScheduler(), unet=unet)
    assert fake.asked == ["model_index.json"]


def test_the_first_published_layout_has_all_at_the_root(fake: FakeHub, tmp_path: Path) -> None:
    for part in ("unet", "scheduler"):
        for path in list((fake.folder / part).iterdir()):
            path.rename(fake.folder / path.name)
        (fake.folder / part).rmdir()
    pipe = DiffusionPipeline.from_pretrained(NAME)
    assert pipe.scheduler.config.num_train_timesteps == 60
    DiffusionPipeline.from_pretrained(fake.folder)
    assert DDIMScheduler.from_pretrained(NAME).config.num_train_timesteps == 60
    UNet2DModel.from_pretrained(NAME)


OPTIONS = {
    "revision": "v1",
    "token": "hf_x",
    "cache_dir": "somewhere",
    "local_files_only": False,
    "force_download": True,
}


@pytest.mark.parametrize("cls", [DiffusionPipeline, UNet2DModel, DDIMScheduler])
def test_the_hubs_options_reach_it_with_every_file(cls: Any, fake: FakeHub) -> None:
    subfolder = {UNet2DModel: {"subfolder": "unet"}, DDIMScheduler: {"subfolder": "scheduler"}}.get(cls, {})
    cls.from_pretrained(NAME, **subfolder, **OPTIONS)
    assert all(options == OPTIONS for options in fake.options)
    fake.options.clear()
    cls.from_pretrained(NAME, **subfolder)
    assert all(options["revision"] is None and options["token"] is None for options in fake.options)


def test_options_of_the_hub_are_harmless_for_a_folder(fake: FakeHub) -> None:
    DiffusionPipeline.from_pretrained(fake.folder, **OPTIONS)
    DDIMScheduler.from_pretrained(fake.folder, subfolder="scheduler", **OPTIONS)
    assert fake.asked == []


@pytest.mark.parametrize("name", ["a/b/c", "a b", "-x/..", "../x", "/abs/olute", "a//b", "http://x.y/z", ".hidden"])
def test_what_can_be_no_repository_is_not_asked_for(name: str, fake: FakeHub) -> None:
    with pytest.raises(CheckpointError, match="nor can a repository of the hub be called so"):
        DiffusionPipeline.from_pretrained(name)
    assert fake.asked == []


def response(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RepositoryNotFoundError("no such repository", response=response(404)), "RepositoryNotFoundError: no such"),
        (GatedRepoError("ask for access", response=response(403)), "GatedRepoError: ask for access"),
        (HFValidationError("bad id"), "HFValidationError: bad id"),
        (ConnectionError("no route"), "ConnectionError: no route"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (LocalEntryNotFoundError("offline"), "not in the cache, and the hub cannot be reached"),
    ],
)
def test_what_the_hub_says_is_one_clear_error(error: Exception, says: str, fake: FakeHub) -> None:
    fake.error = error
    with pytest.raises(CheckpointError) as caught:
        DiffusionPipeline.from_pretrained(NAME)
    assert says in str(caught.value)
    assert f"{NAME} is no local folder or bundled model" in str(caught.value)


def test_a_repository_without_what_is_needed_is_named(fake: FakeHub) -> None:
    with pytest.raises(CheckpointError, match=rf"there is no scheduler_config\.json in {NAME}"):
        DDIMScheduler.from_pretrained(NAME)
    (fake.folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=rf"no weights in {NAME}: looked for unet/{WEIGHTS}, .*unet/{BIN}, "):
        DiffusionPipeline.from_pretrained(NAME)


# --- the cache, without a connection ---------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(cache: Path, folder: Path, *, shared: bool = False) -> Path:
    """Lay a folder out as the hub's client does: links in snapshots/ to files in blobs/, a branch in refs/."""
    home = cache / "models--owner--name"
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        blob = home / "blobs" / digest
        blob.parent.mkdir(parents=True, exist_ok=True)
        if shared:  # newer clients keep one copy for all repositories
            store = cache / "blobs" / digest[:2] / digest
            store.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, store)
            if not blob.is_symlink():
                blob.symlink_to(os.path.relpath(store, blob.parent))
        else:
            shutil.copy(path, blob)
        pointer = home / "snapshots" / COMMIT / path.relative_to(folder)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return home


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    tiny_pipeline(seed=4, scheduler=DDIMScheduler(num_train_timesteps=60)).save_pretrained(tmp_path / "remote")
    return tmp_path / "remote"


@pytest.mark.parametrize("shared", [False, True])
def test_everything_loads_from_the_cache(shared: bool, remote: Path, tmp_path: Path) -> None:
    home = fill_cache(tmp_path / "cache", remote, shared=shared)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    for revision in (None, "main", COMMIT):
        pipe = DiffusionPipeline.from_pretrained(NAME, revision=revision, **options)
        assert pipe.scheduler.config.num_train_timesteps == 60
    DDIMScheduler.from_pretrained(NAME, subfolder="scheduler", **options)
    UNet2DModel.from_pretrained(NAME, subfolder="unet", **options)
    # The snapshot as a local folder: its links lead out of it, but into the cache's own blobs.
    DiffusionPipeline.from_pretrained(home / "snapshots" / COMMIT)
    UNet2DModel.from_pretrained(home / "snapshots" / COMMIT, subfolder="unet")


def test_the_default_cache(remote: Path, tmp_path: Path) -> None:
    fill_cache(tmp_path / "default-cache", remote)
    DiffusionPipeline.from_pretrained(NAME, local_files_only=True)


def test_a_snapshot_links_to_nothing_but_its_blobs(remote: Path, tmp_path: Path) -> None:
    home = fill_cache(tmp_path / "cache", remote)
    snapshot = home / "snapshots" / COMMIT
    (tmp_path / "secret.json").write_text("{}")
    (home / "secret.json").write_text("{}")
    for target in (tmp_path / "secret.json", Path("../../secret.json"), Path("../../../../secret.json")):
        (snapshot / "model_index.json").unlink()
        (snapshot / "model_index.json").symlink_to(target)
        with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
            DiffusionPipeline.from_pretrained(snapshot)


def test_a_folder_that_is_only_called_snapshots_is_no_cache(remote: Path, tmp_path: Path) -> None:
    shutil.move(remote, tmp_path / "mine" / "snapshots" / "x")
    (tmp_path / "mine" / "blobs").mkdir()
    index = tmp_path / "mine" / "snapshots" / "x" / "model_index.json"
    index.rename(tmp_path / "mine" / "blobs" / "x")
    index.symlink_to("../../blobs/x")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        DiffusionPipeline.from_pretrained(index.parent)


def test_bin_and_shards_load_from_the_cache(remote: Path, tmp_path: Path) -> None:
    """What a cached revision lacks, such as safetensors, is not there: no reason to give up."""
    torch.save(tiny_unet(seed=4).state_dict(), remote / "unet" / BIN)
    (remote / "unet" / WEIGHTS).unlink()
    fill_cache(tmp_path / "cache", remote)
    DiffusionPipeline.from_pretrained(NAME, cache_dir=tmp_path / "cache", local_files_only=True)


def test_a_lost_connection_is_no_reason_to_give_up_either(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tiny_unet(seed=4).state_dict(), remote / "unet" / BIN)
    (remote / "unet" / WEIGHTS).unlink()
    home = fill_cache(tmp_path / "cache", remote)
    download = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *a, **k: download(*a, **{**k, "local_files_only": True})
    )
    with pytest.raises(CheckpointError, match=f"unet/{WEIGHTS} is not in the cache, and the hub cannot be reached"):
        DiffusionPipeline.from_pretrained(NAME, cache_dir=tmp_path / "cache")
    for name in (WEIGHTS, f"{WEIGHTS}.index.json"):  # the client notes what the hub has said is not there
        note = home / ".no_exist" / COMMIT / "unet" / name
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    DiffusionPipeline.from_pretrained(NAME, cache_dir=tmp_path / "cache")


def test_an_empty_cache_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not in the cache, and local_files_only is set"):
        DiffusionPipeline.from_pretrained(NAME, cache_dir=tmp_path / "cache", local_files_only=True)


def test_a_cache_that_lacks_a_part_is_a_clear_error(remote: Path, tmp_path: Path) -> None:
    (remote / "unet" / WEIGHTS).unlink()
    fill_cache(tmp_path / "cache", remote)
    with pytest.raises(CheckpointError, match=r"no weights in owner/name \(in the cache; local_files_only is set\)"):
        DiffusionPipeline.from_pretrained(NAME, cache_dir=tmp_path / "cache", local_files_only=True)


# --- uploading -------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    fake = type("Api", (FakeApi,), {})
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    return fake


PIPELINE = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json", f"unet/{WEIGHTS}"}


def test_a_pipeline_is_pushed(api: type[FakeApi]) -> None:
    url = tiny_pipeline().push_to_hub("name", private=True, token="hf_x", commit_message="First", create_pr=True)
    assert url == "https://hub/me/name/commit/1"
    assert api.token == "hf_x"
    assert api.created == ("name", {"private": True, "exist_ok": True})
    assert api.files == PIPELINE
    assert api.uploaded == {
        "repo_id": "me/name",
        "path_in_repo": None,
        "commit_message": "First",
        "revision": None,
        "create_pr": True,
    }


def test_a_network_and_a_scheduler_are_pushed(api: type[FakeApi]) -> None:
    tiny_unet().push_to_hub("me/unet", variant="fp16", subfolder="unet")
    assert api.files == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}
    assert api.uploaded["path_in_repo"] == "unet"
    DDIMScheduler().push_to_hub("me/scheduler", revision="next")
    assert api.files == {"scheduler_config.json"}
    assert api.uploaded["revision"] == "next"


def test_saving_can_push_too(api: type[FakeApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / ".config.json.1a2b3c4d.tmp.json").write_text("what a killed run left")
    (folder / "README.md").write_text("# Mine")
    tiny_pipeline().save_pretrained(folder, push_to_hub=True)
    assert api.created[0] == "my-model"
    assert api.files == {*PIPELINE, "README.md"}
    DDIMScheduler().save_pretrained(folder / "scheduler", push_to_hub=True, repo_id="me/other", commit_message="m")
    assert api.created[0] == "me/other"
    assert api.uploaded["commit_message"] == "m"
    monkeypatch.chdir(folder)
    tiny_unet().save_pretrained(".", push_to_hub=True)
    assert api.created[0] == "my-model"


def test_what_the_hub_refuses_is_one_clear_error(api: type[FakeApi]) -> None:
    api.error = ConnectionError("no route")
    with pytest.raises(CheckpointError, match="was not uploaded to me/x: the hub gave ConnectionError: no route"):
        DDIMScheduler().push_to_hub("me/x")


def test_the_package_has_only_whole_models() -> None:
    for name in hub.bundled_models():
        DiffusionPipeline.from_pretrained(name)
