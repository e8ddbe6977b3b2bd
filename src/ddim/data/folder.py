"""A folder of images and captions, in the layout of `datasets`' imagefolder or with a text beside each image.

What belongs to what is decided by names as they are in the folder's listing, so it is the same on file systems that
ignore case and on those that do not.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from ddim.errors import DataError
from ddim.data.captions import read_lines, read_metadata
from ddim.data.usable import IMAGE_SUFFIXES, PictureError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
NO_CAPTION = "without a caption"


@dataclass
class Entry:
    """An image, or what should be one, and its captions.

    Attributes:
        name: relative to the folder.
        captions: one or more texts that fit it.
        problem: why there is no such image, if there is none.
    """

    name: str
    captions: tuple[str, ...] = ()
    problem: str | None = None


@dataclass
class Contents:
    """What there is in a captioned folder: its entries by file, and the names that are listed more than once."""

    entries: dict[str, Entry] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)

    def add(self, key: str, entry: Entry) -> None:
        """Another caption for a file that has one is an alternative to it."""
        known = self.entries.setdefault(key, entry)
        if known is not entry:
            self.repeated.add(known.name)
            known.captions = tuple(dict.fromkeys(known.captions + entry.captions))


def read_folder(folder: Path, image_column: str, caption_column: str) -> Contents:
    """Every image in a folder and below, and every caption.

    If there is a metadata file anywhere, the metadata files say which images there are, each for the paths relative to
    its own folder. Otherwise the captions of `a.png` are the lines of `a.txt`. Files and folders whose names start with
    a dot are ignored.

    Raises:
        DataError: no folder, or a metadata file or text that cannot be read; names the line.
    """
    listing = Listing(folder)
    metadata = [name for name in listing.visible if posixpath.basename(name) in METADATA]
    for home, count in Counter(map(posixpath.dirname, metadata)).items():
        if count > 1:
            raise DataError(f"{folder / home} has {count} metadata files; keep one of them")
    images = [name for name in listing.visible if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    contents = Contents()
    if not metadata:
        _beside(listing, images, contents)
        return contents
    named = set()
    for name in metadata:
        try:
            path = listing.inside(name)
        except PictureError as reason:
            raise DataError(f"{folder / name} is a link to a file {reason}") from reason
        for row in read_metadata(path, str(folder / name), image_column, caption_column):
            if not isinstance(row.file_name, str) or not row.file_name:
                contents.add(row.where, Entry(row.where, problem="without a file name"))
                continue
            try:
                key = listing.find(posixpath.dirname(name), row.file_name)
                named.add(key)
                contents.add(listing.identity(key), Entry(key, row.texts))
            except PictureError as reason:
                hint = listing.similar(posixpath.dirname(name), row.file_name)
                shown = f"{row.file_name}, but there is {hint}" if hint else row.file_name
                contents.add(f"{name}\0{row.file_name}", Entry(shown, problem=str(reason)))
    for name in images:
        if name not in named:
            contents.entries.setdefault(f"{name}\0", Entry(name))
    return contents


def _beside(listing: Listing, images: list[str], contents: Contents) -> None:
    """The layout with `a.txt` beside `a.png`."""
    stems = set()
    for name in images:
        stem = posixpath.splitext(name)[0]
        stems.add(stem)
        try:
            text = f"{stem}.txt"
            texts = read_lines(listing.inside(text), str(listing.root / text)) if text in listing.names else ()
            contents.add(listing.identity(name), Entry(name, texts))
        except PictureError as reason:
            contents.add(f"{name}\0", Entry(name, problem=str(reason)))
    for name in listing.visible:
        stem, suffix = posixpath.splitext(name)
        if suffix == ".txt" and stem not in stems:
            contents.add(f"{name}\0", Entry(name, problem="without an image of its name"))


class Listing:
    """The files in a folder and below, by their paths relative to it, with `/`, sorted. Links to folders count for
    nothing, but what a path through one leads to may be a file of the folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"there is no folder {root}")
        self.root = root
        self.real = Path(os.path.realpath(root))
        self.names = dict.fromkeys(sorted(self._walk()))
        self.visible = [name for name in self.names if not _hidden(name)]
        self._similar: dict[str, list[str]] | None = None

    def _walk(self) -> Iterator[str]:
        def fail(error: OSError) -> None:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

        for home, _, files in os.walk(self.root, onerror=fail):
            prefix = os.path.relpath(home, self.root).replace(os.sep, "/")
            for file in files:
                if os.path.isfile(os.path.join(home, file)):  # neither a pipe nor a link to nothing
                    yield file if prefix == "." else f"{prefix}/{file}"

    def inside(self, name: str) -> Path:
        """The path of a file; PictureError if it is a link that leads out of the folder.

        In the hub's cache, a file of a snapshot is a link to a blob; this is allowed.
        """
        path = self.root / name
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            blobs = [
                parent.parent / "blobs" for parent in (self.real, *self.real.parents) if parent.name == "snapshots"
            ]
            if not any(target.is_relative_to(home) for home in (self.real, *blobs)):
                raise PictureError("outside of the folder")
        return path

    def identity(self, name: str) -> str:
        """The same for a file and the links to it in this folder; PictureError as `inside`."""
        path = self.inside(name)
        if path.is_symlink() and (target := Path(os.path.realpath(path))).is_relative_to(self.real):
            return target.relative_to(self.real).as_posix()
        return name

    def find(self, home: str, file_name: str) -> str:
        """The file that a metadata file in `home` means; PictureError if it is missing or outside."""
        name = posixpath.normpath(posixpath.join(home, file_name))
        if PureWindowsPath(file_name).anchor or name == ".." or name.startswith(("../", "/")):
            raise PictureError("outside of the folder")
        if name in self.names:
            return name
        same = [other for other in self._like(name) if _composed(other) == _composed(name)]
        if len(same) == 1:  # an archive made on a Mac spells é with two characters
            return same[0]
        if "\0" not in name and os.path.isfile(self.root / name):  # through a link to a folder
            target = Path(os.path.realpath(self.root / name))
            if not target.is_relative_to(self.real):
                raise PictureError("outside of the folder")
            if (real := target.relative_to(self.real).as_posix()) in self.names:
                return real
        raise PictureError("whose file is missing")

    def similar(self, home: str, file_name: str) -> str | None:
        """A file whose name differs in upper and lower case only."""
        return next(iter(self._like(posixpath.normpath(posixpath.join(home, file_name)))), None)

    def _like(self, name: str) -> list[str]:
        if self._similar is None:
            self._similar = {}
            for other in self.names:
                self._similar.setdefault(_composed(other).casefold(), []).append(other)
        return self._similar.get(_composed(name).casefold(), [])


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
