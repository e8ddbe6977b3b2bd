"""Names that are slips, and a hub that does not answer: one clear error at once, and the cache is used."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fresh import python
from huggingface_hub import constants
from tiny import tiny_pipeline

from ddim.checkpoint import Repository, hub
from ddim.errors import CheckpointError
from ddim.pipelines import DiffusionPipeline

reachable = hub.reachable  # as it is, before conftest.py replaces it


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A hub that takes a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(hub, "reachable", reachable)
        monkeypatch.setattr(hub, "PATIENCE", 0.2)
        monkeypatch.setattr(hub, "_reached", {})
        yield


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["emojo", "Emoji", "emojis", "emoj"])
def test_a_slip_in_a_bundled_models_name_asks_nobody(name: str, no_hub: None) -> None:
    with pytest.raises(CheckpointError, match=f"^there is no model {name}: did you mean emoji"):
        DiffusionPipeline.from_pretrained(name)


def test_a_slip_in_a_folders_name(no_hub: None, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "models" / "emoji2")
    with pytest.raises(
        CheckpointError, match=r"there is no folder '\./models/emojo2': did you mean \./models/emoji2\?"
    ):
        DiffusionPipeline.from_pretrained("./models/emojo2")
    with pytest.raises(CheckpointError, match=r"no model emoji2: did you mean emoji or \./models/emoji2\?"):
        DiffusionPipeline.from_pretrained("emoji2")
    with pytest.raises(CheckpointError, match="nor can a repository of the hub be called so"):
        DiffusionPipeline.from_pretrained("./nothing-of-the-kind")


def test_names_that_the_hub_may_have_are_asked_for() -> None:
    for name in ("owner/emojo", "gpt2", "google/ddpm-cifar10-32"):
        Repository(name).check_name()


def test_a_silent_hub_is_asked_once_and_given_up(silent: None) -> None:
    began = time.monotonic()
    for _ in range(3):
        assert not reachable()
    assert time.monotonic() - began < 1.5
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="is not in the cache, and the hub cannot be reached"):
        DiffusionPipeline.from_pretrained("owner/name")
    assert time.monotonic() - began < 2
    with pytest.raises(CheckpointError, match="cannot be downloaded: the hub cannot be reached"):
        DiffusionPipeline.from_pretrained("owner/name", force_download=True)


def test_no_connection_at_all(silent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not reachable()


def test_an_address_that_is_looked_up_for_long(silent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: time.sleep(5))
    began = time.monotonic()
    assert not reachable()
    assert time.monotonic() - began < 2


def test_any_answer_will_do(silent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Session:
        def head(self, address: str, **options: Any) -> str:
            asked.append((address, options))
            return "503"

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    assert reachable()
    assert reachable()
    assert asked == [(constants.ENDPOINT, {"timeout": 0.2})]


@pytest.mark.parametrize("how", ["silent", "HF_HUB_OFFLINE"])
def test_what_is_in_the_cache_is_used(how: str, silent: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "cache" / "models--owner--name"
    tiny_pipeline().save_pretrained(home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("the hub was asked"))
    DiffusionPipeline.from_pretrained("owner/name")
    (home / "snapshots" / ("0" * 40) / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    why = "the hub cannot be reached" if how == "silent" else "HF_HUB_OFFLINE is set"
    with pytest.raises(CheckpointError, match=rf"no weights in owner/name \(in the cache; {why}\)"):
        DiffusionPipeline.from_pretrained("owner/name")


def test_names_are_checked_without_pytorch() -> None:
    said = python(
        "import sys\nfrom ddim.checkpoint.hub import Repository\nfrom ddim.errors import CheckpointError\n"
        "try: Repository('emojo').check_name()\nexcept CheckpointError as error: print(error)\n"
        "assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules"
    )
    assert said == "there is no model emojo: did you mean emoji?"
