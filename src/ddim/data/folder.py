"""A folder of images and captions: with metadata files, as `datasets`' imagefolder has them, or a text by each image.

Files are found by their names in the folder's listing. So a folder means the same on file systems that tell capital
letters from small ones and on those that do not.
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
    """An image and its captions, or something that names an image and is of no use.

    Attributes:
        name: the image's path relative to the folder, or what else to call the entry.
        captions: texts, any of which fits the image; empty if it has none.
        problem: why the entry has no image, in words that read on from a number; None if it has one.
        condition: the path, relative to the folder, of the picture that the image is conditioned on; None without one.
    """

    name: str
    captions: tuple[str, ...] = ()
    problem: str | None = None
    condition: str | None = None


@dataclass
class Contents:
    """What a captioned folder holds.

    Attributes:
        entries: by a key that is the same for two names of one file.
        repeated: the names of images that were added more than once.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)

    def add(self, key: str, entry: Entry) -> None:
        """Add an entry. Where its file has one already, its captions are added to that one's."""
        known = self.entries.setdefault(key, entry)
        if known is not entry:
            self.repeated.add(known.name)
            known.captions = tuple(dict.fromkeys(known.captions + entry.captions))


def read_folder(
    folder: Path, image_column: str, caption_column: str, conditioning_image_column: str | None = None
) -> Contents:
    """Every image in a folder and below it, and every caption.

    If there is a metadata file anywhere, the captions are in the metadata files, whose file names are relative to their
    own folders. Otherwise the captions of `a.png` are the lines of `a.txt`. Files and folders whose names begin with a
    dot are ignored.

    Args:
        folder: the folder.
        image_column, caption_column, conditioning_image_column: see `captions.read_metadata`. What a column of
            conditions names is no image of its own.

    Raises:
        DataError: there is no such folder, or a file of captions is broken or cannot be read; names the line.
        MissingExtraError: there is a parquet file, and pyarrow is not installed.
    """
    listing = Listing(folder)
    metadata = [name for name in listing.visible if posixpath.basename(name) in METADATA]
    for home, count in Counter(map(posixpath.dirname, metadata)).items():
        if count > 1:
            raise DataError(f"{folder / home} has {count} metadata files; keep one of them")
    images = [name for name in listing.visible if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    contents = Contents()
    if not metadata and conditioning_image_column is not None:
        raise DataError(
            f"{folder} has no {METADATA[0]}, whose entries {conditioning_image_column} would say what each picture is "
            "conditioned on: write one, or give conditioning_data_dir"
        )
    if not metadata:
        _beside(listing, images, contents)
        return contents
    named = set()
    for name in metadata:
        try:
            path = listing.inside(name)
        except PictureError as reason:
            raise DataError(f"{folder / name} is a link to a file {reason}: put the file itself there") from reason
        for row in read_metadata(path, str(folder / name), image_column, caption_column, conditioning_image_column):
            if not isinstance(row.file_name, str) or not row.file_name:
                contents.add(row.where, Entry(row.where, problem="without a file name"))
                continue
            try:
                key = listing.find(posixpath.dirname(name), row.file_name)
                named.add(key)
                identity, condition = listing.identity(key), None
                if conditioning_image_column is not None:
                    condition = _condition(listing, posixpath.dirname(name), row.condition)
                    named.add(condition)
                contents.add(identity, Entry(key, row.texts, condition=condition))
            except PictureError as reason:
                hint = listing.similar(posixpath.dirname(name), row.file_name)
                shown = f"{row.file_name}, but there is {hint}" if hint else row.file_name
                contents.add(f"{name}\0{row.file_name}", Entry(shown, problem=str(reason)))
    for name in images:
        if name not in named:
            contents.entries.setdefault(f"{name}\0", Entry(name))
    return contents


def _condition(listing: Listing, home: str, file_name: object) -> str:
    """The file that a metadata file in the folder `home` names as a condition. Raises `PictureError` without one."""
    if not isinstance(file_name, str) or not file_name:
        raise PictureError("without a condition")
    try:
        key = listing.find(home, file_name)
        listing.inside(key)
    except PictureError as reason:
        raise PictureError(f"with a condition {reason}") from reason
    return key


def _beside(listing: Listing, images: list[str], contents: Contents) -> None:
    """Add the images and captions of a folder with `a.txt` beside `a.png`."""
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
    """The files in a folder and below it, by their paths relative to it.

    Links to folders are not followed here, but a path that a metadata file names may go through one, as long as it leads
    to a file in the folder.

    Attributes:
        root: the folder.
        real: the folder's path without links.
        names: all files' paths, sorted, with `/` on every system.
        visible: those of them that are not hidden.
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
                if os.path.isfile(os.path.join(home, file)):  # pipes and links that lead nowhere are left out
                    yield file if prefix == "." else f"{prefix}/{file}"

    def inside(self, name: str) -> Path:
        """The path of a file. Raises `PictureError` if it is a link that leads out of the folder.

        If the folder is a snapshot in the hub's cache, its files are links to the folder "blobs", and are allowed.
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
        """A key that a file and all links to it in this folder have in common. Raises `PictureError` as `inside`."""
        path = self.inside(name)
        if path.is_symlink() and (target := Path(os.path.realpath(path))).is_relative_to(self.real):
            return target.relative_to(self.real).as_posix()
        return name

    def find(self, home: str, file_name: str) -> str:
        """The file that a metadata file in the folder `home` names. Raises `PictureError` if it is missing or outside."""
        name = posixpath.normpath(posixpath.join(home, file_name))
        if PureWindowsPath(file_name).anchor or name == ".." or name.startswith(("../", "/")):
            raise PictureError("outside of the folder")
        if name in self.names:
            return name
        same = [other for other in self._like(name) if _composed(other) == _composed(name)]
        if len(same) == 1:  # archives made on a Mac write é as two characters, e and an accent
            return same[0]
        if "\0" not in name and os.path.isfile(self.root / name):  # the path goes through a link to a folder
            target = Path(os.path.realpath(self.root / name))
            if not target.is_relative_to(self.real):
                raise PictureError("outside of the folder")
            if (real := target.relative_to(self.real).as_posix()) in self.names:
                return real
        raise PictureError("whose file is missing")

    def similar(self, home: str, file_name: str) -> str | None:
        """A file whose name differs from the one given only in capital and small letters; None if there is none."""
        return next(iter(self._like(posixpath.normpath(posixpath.join(home, file_name)))), None)

    def _like(self, name: str) -> list[str]:
        """All files whose names are the same if capitals and the way of writing accents do not count."""
        if self._similar is None:
            self._similar = {}
            for other in self.names:
                self._similar.setdefault(_composed(other).casefold(), []).append(other)
        return self._similar.get(_composed(name).casefold(), [])


def _hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, is hidden or was added by a Mac's archiver."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _composed(name: str) -> str:
    """A name in Unicode's composed form, in which é is one character."""
    return unicodedata.normalize("NFC", name)
