"""Compiled networks on disk: bounded in size and age, the least recently used ones going first."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddim.backends import kept

DAY = 24 * 3600


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDIM_CACHE", str(tmp_path))
    for name in ("DDIM_CACHE_SIZE", "DDIM_CACHE_DAYS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "openvino"


def put(folder: Path, name: str, days_ago: float = 0, size: int = 1000) -> Path:
    path = folder / f"{name}.blob"
    kept.keep_whole(path, os.urandom(size - 32))
    used = time.time() - days_ago * DAY
    os.utime(path, (used, used))
    return path


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.blob")}


def test_what_was_used_least_recently_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDIM_CACHE_SIZE", "3KB")
    for name, days in (("a", 4), ("b", 3), ("c", 2)):
        put(folder, name, days)
    assert names(folder) == {"a", "b", "c"}
    assert kept.read_whole(folder / "a.blob") is not None  # it is used now
    put(folder, "d", 1)
    assert names(folder) == {"a", "c", "d"}
    assert [file.path.stem for file in kept.kept_files()] == ["c", "d", "a"]
    assert sum(file.size for file in kept.kept_files()) == 3000


def test_what_nobody_used_for_long_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "old", 61)
    put(folder, "younger", 59)
    put(folder, "new")
    assert names(folder) == {"younger", "new"}
    monkeypatch.setenv("DDIM_CACHE_DAYS", "7")
    put(folder, "newest")
    assert names(folder) == {"new", "newest"}


def test_nothing_is_kept_that_is_larger_than_all_may_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "a", 1)
    for most in ("0", "500", "0.5 kb"):
        monkeypatch.setenv("DDIM_CACHE_SIZE", most)
        kept.keep_whole(folder / "b.blob", bytes(1000))
        assert names(folder) == {"a"}


@pytest.mark.parametrize("said", ["much", "-1", "nan", "5XB", "GB", "1B2"])
def test_nonsense_is_a_warning_that_says_what_is_used(said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDIM_CACHE_SIZE", said)
    with pytest.warns(UserWarning, match=f"DDIM_CACHE_SIZE='{said}' is no number .* 1e"):
        kept.keep_whole(folder / "a.blob", bytes(100))
    assert names(folder) == {"a"}


def test_unfinished_files_of_processes_that_were_killed_go_after_a_day(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, days in ((".x.blob.0123abcd.tmp.blob", 2.0), (".y.blob.0123abcd.tmp.blob", 0.5)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - days * DAY,) * 2)
    put(folder, "a")
    assert {path.name for path in folder.iterdir()} == {".y.blob.0123abcd.tmp.blob", "a.blob"}


def test_all_can_be_forgotten(folder: Path) -> None:
    assert kept.kept_files() == []
    assert kept.forget_kept() == 0
    put(folder, "a")
    put(folder, "b")
    assert kept.forget_kept() == 2000
    assert names(folder) == set()


def test_a_file_that_another_process_deletes_meanwhile_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = put(folder, "gone", 99)
    files = kept.kept_files()
    gone.unlink()
    monkeypatch.setattr(kept, "kept_files", lambda: files)
    put(folder, "a")
    assert names(folder) == {"a"}
    assert kept.read_whole(gone) is None


@pytest.mark.slow  # each process imports PyTorch
def test_several_processes_stay_within_the_bound(folder: Path) -> None:
    script = """
import os, sys
from ddim.backends.kept import cache_folder, keep_whole, read_whole
for number in range(60):
    path = cache_folder() / f"{sys.argv[1]}-{number}.blob"
    keep_whole(path, os.urandom(968))
    content = read_whole(path)
    assert content is None or len(content) == 968
"""
    environment = {**os.environ, "DDIM_CACHE_SIZE": "10KB"}
    running = [subprocess.Popen([sys.executable, "-c", script, str(n)], env=environment) for n in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    put(folder, "last")
    assert 8 <= len(names(folder)) <= 11
    assert not list(folder.glob(".*"))
