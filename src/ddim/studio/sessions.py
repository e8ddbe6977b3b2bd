"""The visitors of a studio: what each draws, and the files that are theirs, which go when they go."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

__all__ = ["Session", "Sessions"]

_PREFIX = "ddim-studio-"
_FILES = 512  # of a session; the oldest go
_BYTES = 256 * 2**20  # of these together


class Session:
    """One page in one browser, from its opening to its closing or reloading.

    Attributes:
        folder: of its files, which the page may fetch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, Callable[[], object]] = {}
        self._files: dict[Path, int] = {}  # size of each, the oldest first
        self._numbers = itertools.count(1)
        self._is_over = False

    def keep(self, data: bytes, name: str) -> Path:
        """Write a file for the page, and return its path. The oldest files leave when there are too many.

        Args:
            name: what it is called when somebody saves it, such as "heart.png". Every file has a folder of its own.
        """
        safe = re.sub(r"[^\w.-]+", "-", name)[-80:].strip("-.") or "picture"
        path = self.folder / str(next(self._numbers)) / safe
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        if self._is_over:  # it was closed while this was drawn
            self.end()
        self.own(path)
        return path

    def own(self, path: Path) -> None:
        """Let a file go when the session goes, such as one that was uploaded."""
        with contextlib.suppress(OSError):
            self._files[path] = path.stat().st_size
        while len(self._files) > _FILES or sum(self._files.values()) > _BYTES:
            oldest = next(iter(self._files))
            del self._files[oldest]
            _remove(oldest)

    def begin(self, tab: str, cancel: Callable[[], object]) -> None:
        """Say how to end what a tab draws now. What it drew before is ended.

        Args:
            tab: its name; "tab/1", "tab/2" and so on are drawn at the same time.
        """
        self.cancel(tab)
        self._running[tab] = cancel
        if self._is_over:
            self.cancel(tab)

    def done(self, tab: str, cancel: Callable[[], object]) -> None:
        """Say that a tab draws this no longer."""
        if self._running.get(tab) == cancel:
            del self._running[tab]

    def cancel(self, tab: str) -> bool:
        """End all that a tab draws; whether it drew something."""
        own = [each for each in self._running if each == tab or each.startswith(f"{tab}/")]
        for each in own:
            self._running.pop(each)()
        return bool(own)

    def end(self) -> None:
        """End all that is drawn, and remove all files."""
        self._is_over = True
        while self._running:
            self.cancel(next(iter(self._running)))
        for path in self._files:
            _remove(path)
        self._files.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """All sessions of a studio.

    Attributes:
        root: the folder of all their files, which is removed when the studio ends. What a studio left that was killed,
            the next one removes.
    """

    def __init__(self) -> None:
        _sweep()
        self.root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")).resolve()
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, name: str | None) -> Session:
        """The session of a page, by what the page calls itself."""
        name = name or ""
        if name not in self._sessions:
            self._sessions[name] = Session(self.root / secrets.token_urlsafe(18))
        return self._sessions[name]

    def leave(self, name: str | None) -> None:
        """End a page's session."""
        session = self._sessions.pop(name or "", None)
        if session is not None:
            session.end()

    def keep_only(self, names: Collection[str]) -> None:
        """End the sessions of all pages but these, such as one that a page's last request began after it was closed."""
        for name in [each for each in self._sessions if each not in names]:
            self.leave(name)

    def close(self) -> None:
        """End all sessions."""
        for name in list(self._sessions):
            self.leave(name)
        shutil.rmtree(self.root, ignore_errors=True)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()  # its own, which is empty then


def _sweep() -> None:
    """Remove the files of studios that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        number = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True
