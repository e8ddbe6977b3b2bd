"""What a file of `torch.save` would make in memory, found out before anything of it is made.

`torch.load(weights_only=True)` runs no code of a file's, but makes whatever the pickle in it asks for: byte arrays of
gigabytes, sets of millions, storages that the file does not have. So the pickle is followed here first, with marks in
the place of objects. It may make tensors, dicts by names, and what these are made of; each storage must be in the file.
What is unpickled then is a small multiple of the pickle, and the numbers of the tensors are the file's own bytes.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ddim.checkpoint.files import MAX_DESCRIPTION

MAX_STEPS = 300_000  # of a pickle; a tensor takes about 30
MAX_DIMENSIONS = 64  # of a tensor, as in PyTorch

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of before PyTorch 1.6 begin: a pickled number
LEGACY_PICKLES = 5  # that number, a version, the machine, the state, and the storages' names


@dataclass(frozen=True, eq=False)
class _Global:
    """The name of a class or function."""

    name: str


@dataclass(frozen=True, eq=False)
class _Storage:
    """A tensor's memory, and the bytes of each of its numbers."""

    nbytes: int
    itemsize: int


# They stand for objects of which only the kind matters; the last is where a list of arguments starts.
_DICT, _LIST, _TENSOR, _START = object(), object(), object(), object()

# The bytes of a number in each kind of storage.
_STORAGES = {
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    "torch.storage.UntypedStorage": 1,
}
_CALLS = (
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_DICT": _DICT}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")


def check_either(path: Path) -> None:
    """Look through a file of `torch.save`'s present format or of the one before it: `check_archive`, `check_legacy`.

    Raises:
        ValueError: it is no such file, or would make anything but tensors of its own bytes.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        is_legacy = file.read(len(LEGACY)) == LEGACY
    (check_legacy if is_legacy else check_archive)(path)


def check_archive(path: Path) -> None:
    """Look through a file of `torch.save`'s present format, an archive.

    Raises:
        ValueError: it is no such archive, or would make anything but tensors of its own bytes.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = _check_end(file)
        with zipfile.ZipFile(file) as archive:
            entries: dict[str, zipfile.ZipInfo] = {}
            for entry in archive.infolist():
                name = entry.filename.partition("/")[2].lower()  # PyTorch looks for names in any case
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{entry.filename[:100]} in it is compressed, which torch.save never does")
                if name in entries:
                    raise ValueError(f"{entry.filename[:100]} is in it twice")
                if not name.startswith("data/") and entry.file_size > MAX_DESCRIPTION:
                    raise ValueError(
                        f"{entry.filename[:100]} in it has {entry.file_size} bytes, over {MAX_DESCRIPTION}"
                    )
                entries[name] = entry
            if sum(entry.file_size for entry in entries.values()) > length:
                raise ValueError("what it says it holds is more than it has bytes")
            if "data.pkl" not in entries:
                raise ValueError("there is no data.pkl in it, as in what torch.save writes")
            pickle = archive.read(entries["data.pkl"])

    def find(key: str, nbytes: int) -> None:
        entry = entries.get(f"data/{key}".lower())
        if entry is None or nbytes > entry.file_size:
            raise ValueError(f"it says that the storage {key[:100]!r} has {nbytes} bytes, which are not in it")

    _follow(io.BytesIO(pickle), find)


def _check_end(file: BinaryIO) -> int:
    """The bytes of a file; a ValueError unless it ends as an archive of a small table of contents does."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 98))
    tail = file.read()
    if tail[-22:-18] != b"PK\x05\x06":
        raise ValueError(
            "it is no zip archive, which torch.save has written since PyTorch 1.6: if you trust it, convert it with "
            "torch.save(torch.load(path), path)"
        )
    length, start = struct.unpack("<II", tail[-10:-2])
    end = size - 22
    if tail[-42:-38] == b"PK\x06\x07":  # the same with larger numbers
        length, start = struct.unpack("<QQ", tail[40:56])
        end = size - 98
    if length > MAX_DESCRIPTION:
        raise ValueError(f"its table of contents has {length} bytes, over {MAX_DESCRIPTION}")
    if start + length != end:
        raise ValueError("its table of contents is not where its end says")
    return size


def check_legacy(path: Path) -> None:
    """Look through a file of the format that `torch.save` had before PyTorch 1.6.

    Raises:
        ValueError: it is no such file, or would make anything but tensors no larger than itself.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_DESCRIPTION))  # the storages' bytes come last
        left = file.seek(0, io.SEEK_END)
    if tarfile.is_tarfile(path):  # a format before this one, whose parts may be called anything
        raise ValueError("it is a tar archive, which torch.save has not written since PyTorch 0.1")
    sizes: dict[str, int] = {}

    def find(key: str, nbytes: int) -> None:
        nonlocal left
        if key not in sizes:
            sizes[key] = nbytes
            left -= nbytes
        if left < 0 or sizes[key] != nbytes:
            raise ValueError(f"it says that the storage {key[:100]!r} has {nbytes} bytes, which are not in it")

    for _ in range(LEGACY_PICKLES):
        _follow(stream, find)


# --- the pickle ------------------------------------------------------------------------------------------------------


def _follow(stream: io.BytesIO, find: Callable[[str, int], None]) -> None:
    """Do what a pickle says, with marks in the place of objects.

    Args:
        stream: begins at the pickle, and is behind it afterwards.
        find: called with the key and the bytes of each storage; raises a ValueError if the file does not have it.

    Raises:
        ValueError: it says something else than a pickle of tensors by their names does.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_STEPS:
                raise ValueError(f"its pickle has more than {MAX_STEPS} steps")
            _step(opcode.name, argument, stack, memo, find)
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"its pickle is broken ({type(error).__name__})") from error


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any], find: Callable[[str, int], None]) -> None:
    """One step of `_follow`."""
    if name in ("PROTO", "STOP"):
        return
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _LITERALS:
        stack.append(argument)
    elif name == "EMPTY_LIST":
        stack.append(_LIST)
    elif name == "MARK":
        stack.append(_START)
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "GLOBAL":
        stack.append(_known(argument.replace(" ", ".")))
    elif name in _TUPLES:
        stack[-_TUPLES[name] :] = [_tuple(stack[-_TUPLES[name] :])]
    elif name == "TUPLE":
        stack.append(_tuple(_since_mark(stack)))
    elif name in ("SETITEM", "SETITEMS"):
        items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else _since_mark(stack)
        _expect(stack[-1] is _DICT and all(isinstance(key, (str, int)) for key in items[::2]), "a dict of names")
    elif name in ("APPEND", "APPENDS"):
        if name == "APPEND":
            stack.pop()
        else:
            _since_mark(stack)
        _expect(stack[-1] is _LIST, "a list")
    elif name == "BUILD":
        _expect(stack.pop() is _DICT and stack[-1] is _DICT, "a dict with attributes")
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop(), find))
    elif name == "REDUCE":
        arguments = stack.pop()
        stack[-1] = _call(stack[-1], arguments)
    else:
        raise ValueError(f"its pickle has a step {name}, which no file of weights needs")


def _known(name: str) -> _Global:
    if name not in _CALLS and name not in _STORAGES and not _itemsize(name):
        raise ValueError(f"its pickle names {name[:200]}, which no file of weights needs")
    return _Global(name)


def _itemsize(name: str) -> int:
    """The bytes of a number of the type that is called so; 0 if there is no such type."""
    if not re.fullmatch(r"torch\.(bool|(bfloat|float|u?int|complex)\d\w*)", name):
        return 0
    import torch

    found = getattr(torch, name.removeprefix("torch."), None)
    return found.itemsize if isinstance(found, torch.dtype) else 0


def _since_mark(stack: list[Any]) -> list[Any]:
    start = len(stack) - 1
    while stack[start] is not _START:
        start -= 1
        _expect(start >= 0, "a mark")
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    """A tuple; one in another is of whole numbers, so that none is nested deeply."""
    _expect(
        all(isinstance(number, int) for item in items if isinstance(item, tuple) for number in item),
        "a tuple of numbers in a tuple",
    )
    return tuple(items)


def _storage(identifier: Any, find: Callable[[str, int], None]) -> _Storage:
    _expect(isinstance(identifier, tuple) and len(identifier) in (5, 6), "a storage")
    kind, cls, key, location, numel, *view = identifier
    _expect(kind == "storage" and isinstance(location, str) and view in ([], [None]), "a storage")
    _expect(isinstance(key, str) and _is_size(numel) and cls.name in _STORAGES, "a storage of some numbers")
    itemsize = _STORAGES[cls.name]
    find(key, numel * itemsize)
    return _Storage(numel * itemsize, itemsize)


def _call(function: Any, arguments: Any) -> object:
    name = function.name
    _expect(isinstance(function, _Global) and name in _CALLS and isinstance(arguments, tuple), "a function")
    if name == "collections.OrderedDict":
        _expect(arguments == (), "an empty dict")
        return _DICT
    if name == "torch._utils._rebuild_parameter":
        tensor, wants_gradient, hooks = arguments
        _expect(tensor is _TENSOR and hooks is _DICT and isinstance(wants_gradient, bool), "a parameter")
        return _TENSOR
    storage, offset, size, stride, *rest = arguments
    _expect(isinstance(storage, _Storage), "a tensor of a storage")
    itemsize = storage.itemsize
    if name.endswith("v3"):
        itemsize = _itemsize(rest.pop().name)
        _expect(itemsize > 0, "a type of numbers")
    plain = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= MAX_DIMENSIONS
    _expect(plain and all(map(_is_size, (offset, *size, *stride))), "a tensor's shape")
    _expect(all(isinstance(x, bool) or x is _DICT for x in rest), "a tensor without more")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    _expect(0 in size or (last + 1) * itemsize <= storage.nbytes, "a tensor inside its storage")
    return _TENSOR


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _expect(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"its pickle does not have {what} where files of weights do")
