"""Compiled networks that are kept on disk: found again by other processes, and bounded in size and age.

They lie in the folder "openvino" of `$DDIM_CACHE`, or of `~/.cache/ddim` without that. When one is written, those that
were used least recently go until all together are within `$DDIM_CACHE_SIZE` (10 GB unless told; 0 keeps nothing), and
so does whatever nobody has used for `$DDIM_CACHE_DAYS` (60 unless told). Several processes may do all this at once: a
file appears and disappears whole, and one that is gone is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
import warnings
from pathlib import Path
from typing import NamedTuple

from ddim.checkpoint.files import atomic_write
from ddim.errors import CheckpointError

__all__ = ["KeptFile", "cache_folder", "forget_kept", "keep_whole", "kept_files", "read_whole"]

SIZE = 10e9  # bytes
DAYS = 60.0
UNFINISHED = 24 * 3600  # seconds, after which a temporary file is of a process that was killed


class KeptFile(NamedTuple):
    """A compiled network on disk.

    Attributes:
        path: where it is.
        size: in bytes.
        used: when it was last read or written, in seconds since 1970.
    """

    path: Path
    size: int
    used: float


def cache_folder() -> Path:
    """Where compiled networks are kept: the folder "openvino" in $DDIM_CACHE or, without that, in ~/.cache/ddim."""
    chosen = os.environ.get("DDIM_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "ddim") / "openvino"


def kept_files() -> list[KeptFile]:
    """All compiled networks on disk, the one that was used least recently first."""
    return sorted(_listed("*.blob"), key=lambda file: file.used)


def forget_kept() -> int:
    """Delete all compiled networks from the disk, and say how many bytes that were. Running ones go on."""
    return sum(file.size for file in [*kept_files(), *_listed(".*.tmp.blob")] if _delete(file))


def keep_whole(file: Path, content: bytes) -> None:
    """Write a file that ends in the SHA-256 digest of its content, by which `read_whole` knows that it is not damaged.

    Where the folder cannot be written to, or the content is larger than all together may be, nothing is kept, and the
    network is compiled again in the next process.
    """
    most = _bound("DDIM_CACHE_SIZE", SIZE)
    if len(content) > most:
        return
    with contextlib.suppress(CheckpointError), atomic_write(file) as temporary, temporary.open("wb") as stream:
        stream.write(content)
        stream.write(hashlib.sha256(content).digest())
    _make_room(most, _bound("DDIM_CACHE_DAYS", DAYS), file)


def read_whole(file: Path) -> bytes | None:
    """The content of a file that `keep_whole` wrote; None if there is no such file, or if it is damaged."""
    try:
        content = file.read_bytes()
        os.utime(file)  # it was used now
    except OSError:
        return None
    content, found = content[:-32], content[-32:]
    return content if hashlib.sha256(content).digest() == found else None


def _make_room(most: float, days: float, newest: Path) -> None:
    """Delete what is too old and, from the least recently used on, what is too much; never the file that is new."""
    now = time.time()
    for unfinished in _listed(".*.tmp.blob"):
        if now - unfinished.used > UNFINISHED:
            _delete(unfinished)
    files = kept_files()
    total = sum(file.size for file in files)
    for file in files:
        if file.path != newest and (total > most or now - file.used > days * 24 * 3600) and _delete(file):
            total -= file.size


def _listed(pattern: str) -> list[KeptFile]:
    files = []
    with contextlib.suppress(OSError):
        for path in cache_folder().glob(pattern):
            with contextlib.suppress(OSError):  # another process has deleted it
                about = path.stat()
                files.append(KeptFile(path, about.st_size, about.st_mtime))
    return files


def _delete(file: KeptFile) -> bool:
    """Whether the file could be deleted, by this process or another one."""
    with contextlib.suppress(OSError):
        file.path.unlink(missing_ok=True)
        return True
    return False


_UNITS = {"": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def _bound(variable: str, usual: float) -> float:
    """What an environment variable says, such as "5GB" or "30"; the usual value, with a warning, for nonsense."""
    said = os.environ.get(variable, "").strip()
    if not said:
        return usual
    number = said.upper().rstrip("BKMGT")
    with contextlib.suppress(ValueError, KeyError):
        value = float(number) * _UNITS[said.upper()[len(number) :].strip()]
        if value >= 0 and not math.isnan(value):
            return value
    warnings.warn(
        f"{variable}={said!r:.50} is no number of 0 or more, such as 30 or 5GB: {usual:g} is used", stacklevel=2
    )
    return usual
