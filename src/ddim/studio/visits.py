"""Who is at the studio: browsers, the pages that are open in each, and the files that were uploaded from there."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ddim.serving.limits import MIB, Limits
from ddim.serving.refusal import Refusal
from ddim.studio.sessions import Sessions

__all__ = ["Visit", "Visits"]

_UNSEEN = 60.0  # seconds in which a page that asks for something has to open its heartbeat
_IDLE = 3600.0  # seconds after which a browser without an open page is forgotten
_CACHED = 3600.0  # seconds that Gradio's files are kept while any page is open
_BROWSERS = 10_000  # at a time
_PAGES = 64  # of a browser
_FILES = 64  # that a browser has uploaded; the oldest go
_ALL = 2048 * MIB  # bytes of all uploads together
_PAGE = re.compile(r"[A-Za-z0-9_-]{6,64}")  # how pages may call themselves


@dataclass
class Visit:
    """A browser.

    Attributes:
        folder: of what it uploads.
        pages: of each page, by what it calls itself: how many connections say that it is open, and since when there has
            been none.
        files: that it uploaded, with their sizes, the oldest first.
        seen: when it last asked for something.
    """

    folder: Path
    pages: dict[str, tuple[int, float]] = field(default_factory=dict)
    files: dict[Path, int] = field(default_factory=dict)
    seen: float = 0.0


class Visits:
    """All browsers that have the studio open. Each is known by a token, which its cookie has.

    A page belongs to the browser that named it first, and so do its files: no other can ask for anything in its name.
    What was uploaded goes when the browser has no page open any more, whether anything was done with it or not.

    Args:
        sessions: of all pages; a page's ends with it.
        root: the folder of all uploads.
        cache: a folder in which Gradio's components leave files, which go after a while.
        limits: of a file.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        sessions: Sessions,
        root: Path,
        cache: Path,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions, self._root, self._cache = sessions, root, cache
        self._limits, self._clock = limits, clock
        self._visits: dict[str, Visit] = {}
        self._owners: dict[str, Visit] = {}  # of each page

    def of(self, token: str) -> Visit | None:
        """The browser of a token; None if there is none, as after the studio was started anew."""
        visit = self._visits.get(token)
        if visit is not None:
            visit.seen = self._clock()
        return visit

    def begin(self) -> str:
        """A new browser's token. If there are too many browsers, one without an open page is forgotten.

        Raises:
            Refusal: there is none.
        """
        if len(self._visits) >= _BROWSERS:
            gone = min((each for each in self._visits.items() if not each[1].pages), key=_seen, default=None)
            if gone is None:
                raise Refusal("too many visitors are here: try again later", status=503)
            self._forget(gone[0])
        token = secrets.token_urlsafe(24)
        self._visits[token] = Visit(self._root / secrets.token_urlsafe(18), seen=self._clock())
        return token

    def claim(self, visit: Visit, page: object) -> str:
        """Say that a page is this browser's, and return what it calls itself.

        Raises:
            Refusal: it is another one's, or no such name.
        """
        if not isinstance(page, str) or not _PAGE.fullmatch(page):
            raise Refusal("a request has to say which page it is of: open the studio anew", status=403)
        if self._owners.setdefault(page, visit) is not visit:
            raise Refusal("this is another visitor's page", status=403)
        if page not in visit.pages:
            if len(visit.pages) >= _PAGES:
                self.sweep()
            if len(visit.pages) >= _PAGES:
                del self._owners[page]
                raise Refusal(f"this browser has {_PAGES} pages open: close some", status=429)
            visit.pages[page] = (0, self._clock())
        return page

    def opened(self, visit: Visit, page: str) -> None:
        """Say that a connection tells, as long as it lasts, that a page is open."""
        visit.pages[page] = (visit.pages[page][0] + 1, 0.0)

    def closed(self, visit: Visit, page: str) -> None:
        """Say that such a connection is gone. With a page's last one, all that is its goes."""
        count = visit.pages.get(page, (1, 0.0))[0] - 1
        if count > 0:
            visit.pages[page] = (count, 0.0)
        else:
            self._leave(visit, page)

    def _leave(self, visit: Visit, page: str) -> None:
        visit.pages.pop(page, None)
        self._owners.pop(page, None)
        self._sessions.leave(page)
        if not visit.pages:
            _empty(visit)

    def keep(self, visit: Visit, data: bytes, name: str) -> Path:
        """Write what was uploaded, and return its path. A browser's oldest files go when it has too many.

        Raises:
            Refusal: there is no room for it.
        """
        while visit.files and (
            len(visit.files) >= _FILES or sum(visit.files.values()) + len(data) > 4 * self._limits.image_bytes
        ):
            self._remove(visit, next(iter(visit.files)))
        if sum(sum(each.files.values()) for each in self._visits.values()) + len(data) > _ALL:
            raise Refusal("too many files are here: upload it again later", status=429)
        stem, dot, ending = re.sub(r"[^\w.-]+", "-", name)[-80:].strip("-.").rpartition(".")
        safe = f"{stem or 'file'}{dot}{ending.lower()}" if dot else ending or "file"
        path = visit.folder / secrets.token_hex(8) / safe
        path.parent.mkdir(parents=True, mode=0o700)
        path.write_bytes(data)
        visit.files[path] = len(data)
        return path

    def _remove(self, visit: Visit, path: Path) -> None:
        del visit.files[path]
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()

    def may_have(self, visit: Visit, path: str) -> bool:
        """Whether a file is this browser's: one that it uploaded, or one that was made for one of its pages.

        Also one that Gradio made for a page, whose name nobody knows who does not know what is in it.
        """
        real = Path(path)
        if not real.is_absolute() or ".." in real.parts:
            return False
        folders = [visit.folder, *(self._sessions.of(page).folder for page in visit.pages)]
        return any(folder in real.parents for folder in (*folders, self._cache)) and not real.is_symlink()

    def sweep(self) -> None:
        """End what is not open any more, and forget browsers that have gone."""
        now = self._clock()
        for token, visit in list(self._visits.items()):
            for page, (count, since) in list(visit.pages.items()):
                if not count and now - since > _UNSEEN:
                    self._leave(visit, page)
            if not visit.pages and now - visit.seen > _UNSEEN:
                _empty(visit)
            if not visit.pages and now - visit.seen > _IDLE:
                self._forget(token)
        self._sessions.keep_only(self._owners)
        old = time.time() - (_CACHED if self._owners else _UNSEEN)
        for path in self._cache.rglob("*"):
            with contextlib.suppress(OSError):  # folders go when they are empty
                if path.stat().st_mtime < old:
                    path.rmdir() if path.is_dir() else path.unlink()

    def _forget(self, token: str) -> None:
        _empty(self._visits.pop(token))


def _seen(each: tuple[str, Visit]) -> float:
    return each[1].seen


def _empty(visit: Visit) -> None:
    """Remove all that was uploaded."""
    visit.files.clear()
    shutil.rmtree(visit.folder, ignore_errors=True)
