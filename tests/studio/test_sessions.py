"""What a visitor has: files and running work, which go with the visitor."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddim.studio import sessions as module
from ddim.studio.sessions import Session, Sessions


@pytest.fixture
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sessions]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = Sessions()
    yield found
    found.close()


def test_files_go_with_their_session(sessions: Sessions, tmp_path: Path) -> None:
    one, other = sessions.of("one"), sessions.of("other")
    kept, uploaded = one.keep(b"abc", "a heart.png"), tmp_path / "uploaded.png"
    uploaded.write_bytes(b"x")
    one.own(uploaded)
    stays = other.keep(b"def", "b.png")
    assert kept.read_bytes() == b"abc"
    assert kept.name == "a-heart.png"
    assert sessions.of("one") is one
    sessions.leave("one")
    sessions.leave("nobody")
    assert not kept.exists()
    assert not one.folder.exists()
    assert not uploaded.exists()
    assert stays.read_bytes() == b"def"
    sessions.close()
    assert not sessions.root.exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "…", "a/b\\c", "x" * 500, ".hidden", "\0"])
def test_a_name_leads_nowhere_else(name: str, sessions: Sessions) -> None:
    path = sessions.of("one").keep(b"", name)
    assert path.parent.parent == sessions.of("one").folder
    assert 0 < len(path.name) <= 80


def test_of_many_files_the_oldest_leave(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FILES", 3)
    monkeypatch.setattr(module, "_BYTES", 100)
    session = sessions.of("one")
    paths = [session.keep(b"x" * 10, "a.png") for _ in range(5)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]
    large = session.keep(b"x" * 95, "a.png")
    assert large.exists()
    assert not any(path.exists() for path in paths)


def test_what_a_session_draws_ends_with_it(sessions: Sessions) -> None:
    session, ended = sessions.of("one"), list[str]()

    def ends(name: str) -> None:
        session.begin(name, lambda: ended.append(name))

    ends("draw")
    ends("compare/1")
    ends("compare/2")
    ends("draw")  # a second drawing of one tab ends the first
    assert ended == ["draw"]
    assert session.cancel("compare")
    assert not session.cancel("compare")
    assert sorted(ended) == ["compare/1", "compare/2", "draw"]
    sessions.leave("one")
    assert ended.count("draw") == 2
    ends("draw")  # begun by a listener that did not know
    assert ended.count("draw") == 3


def test_what_is_done_is_not_cancelled(sessions: Sessions) -> None:
    session, ended = sessions.of("one"), list[int]()

    def cancel() -> None:
        ended.append(1)

    session.begin("draw", cancel)
    session.done("draw", print)  # somebody else's
    session.done("draw", cancel)
    assert not session.cancel("draw")
    assert ended == []


def test_a_picture_that_comes_too_late_leaves_nothing(sessions: Sessions) -> None:
    session = sessions.of("one")
    sessions.leave("one")
    assert isinstance(session, Session)
    session.keep(b"late", "late.png")
    assert not session.folder.exists()


def test_what_a_killed_studio_left_is_removed(sessions: Sessions, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, other = tmp_path / f"ddim-studio-{gone.pid}-abc", tmp_path / f"ddim-studio-{os.getppid()}-abc"
    strange = tmp_path / "ddim-studio-notes"
    for folder in (left, other, strange):
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
    Sessions().close()
    assert not left.exists()
    assert other.exists()
    assert strange.exists()
    assert sessions.root.exists()
