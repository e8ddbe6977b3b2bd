"""Files of `torch.save` that would make more in memory than they hold, and the formats that are read.

Each case is a pickle, written step by step, in an archive as torch makes it. Reading it must be one error that names
the file, within the limits of `hostile`, and before anything is unpickled.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Canary, Case, refuses
from torch import Tensor

from ddim.checkpoint import read_tensors
from ddim.checkpoint.pickles import LEGACY, check_either, check_legacy
from ddim.errors import CheckpointError

# --- steps of a pickle -----------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, what: str) -> bytes:
    return f"c{module}\n{what}\n".encode()


def together(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(module: str, what: str, *arguments: bytes) -> bytes:
    return name(module, what) + together(*arguments) + b"R"


def named(*values: bytes) -> bytes:
    """A pickle of a dict with these values."""
    return b"\x80\x02}(" + b"".join(text(f"name{i}") + value for i, value in enumerate(values)) + b"u."


def storage(numel: int = 4, key: str = "0", kind: str = "FloatStorage", word: str = "storage") -> bytes:
    return together(text(word), name("torch", kind), text(key), text("cpu"), number(numel)) + b"Q"


HOOKS = call("collections", "OrderedDict")
FLAG = b"\x89"


def tensor(
    memory: bytes | None = None, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0
) -> bytes:
    shape = (together(*map(number, size)), together(*map(number, stride)))
    return call("torch._utils", "_rebuild_tensor_v2", memory or storage(), number(offset), *shape, FLAG, HOOKS)


def archive(path: Path, content: bytes, data: dict[str, bytes] | None = None, **more: bytes) -> None:
    """A file as torch writes it, with this pickle and these storages."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")
        for key, raw in (data or {"0": bytes(16)}).items():
            file.writestr(f"archive/data/{key}", raw)
        for key, raw in more.items():
            file.writestr(key, raw)


# --- pickles ---------------------------------------------------------------------------------------------------------

MANY = 1_000_000
GIB = 2**32
PUT, GET = b"q\x05", b"h\x05"
PICKLES: dict[str, bytes] = {
    "4 GiB of bytes": named(call("builtins", "bytearray", number(GIB))),
    "4 GiB of bytes beside a tensor": named(tensor(), call("__builtin__", "bytearray", number(GIB))),
    "4 GiB of bytes, a MB at a time": named(*[call("builtins", "bytearray", number(2**20))] * 4096),
    "a set of a million": named(call("builtins", "set", b"](" + b"K\x01" * MANY + b"e")),
    "a set": named(b"\x8f(K\x01\x90"),
    "a dict of a million numbers": b"\x80\x02}(" + b"K\x01N" * MANY + b"u.",
    "a list of a million": b"\x80\x02](" + b"N" * MANY + b"e.",
    "a million steps": b"\x80\x02" + b"N0" * MANY + b"}.",
    "a million lists": named(b"](" + b"]" * MANY + b"e"),
    "copies of copies": named(b"}" + PUT, *[call("collections", "OrderedDict", GET) + PUT] * 20),
    "a list that doubles": named(b"]" + PUT + (b"(" + GET * 2 + b"e") * 40, b"2" * 40),
    "doubled by DUP": named(b"]" + (b"22\x86") * 60),
    "nested tuples": named(b")" + b"\x85" * MANY),
    "nested tuples as a name": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
    "nested lists": named(b"]" * 100_000 + b"a" * 99_999),
    "nested dicts": named((b"}" + text("a")) * 100_000 + b"N" + b"s" * 100_000),
    "a dict in itself": b"\x80\x02}" + PUT + text("a") + GET + b"s.",
    "a number of 3 MB": named(b"\x8b" + struct.pack("<I", 3 * 10**6) + b"\xff" * 3 * 10**6),
    "a number in 3 million digits": named(b"I" + b"9" * 3 * 10**6 + b"\n"),
    "a text that claims 4 GB": named(b"X\xff\xff\xff\xff"),
    "a place of the memo of 2**32": b"\x80\x02}r\xff\xff\xff\xffh\x07.",
    "an empty stack": b"\x80\x02R.",
    "no mark": b"\x80\x02}u.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "code": named(call("os", "system", text("true"))),
    "code by another way": named(call("torch.serialization", "_get_layout", text("torch.strided"))),
    "an encoding": named(call("_codecs", "encode", text("x" * 1000), text("latin1"))),
    "a counter": named(call("collections", "Counter", text("x" * 1000))),
    "a size": named(call("torch", "Size", b"(K\x01K\x02t")),
    "a tensor by its class": named(call("torch", "Tensor", number(2**32))),
    "a tensor made new": named(name("torch", "FloatTensor") + together(number(2**32)) + b"\x81"),
    "a device": named(call("torch", "device", text("cuda"))),
    "a sparse tensor": named(call("torch._utils", "_rebuild_sparse_tensor", name("torch", "strided"), b")")),
    "a quantized tensor": named(call("torch._utils", "_rebuild_qtensor", storage(), number(0), b")", b")", b")", FLAG)),
    "a tensor of a type": named(
        call("torch._tensor", "_rebuild_from_type_v2", name("torch", "Tensor"), b")", b")", b"N")
    ),
    "a tensor without memory": named(call("torch._utils", "_rebuild_meta_tensor_no_storage", b")", b")", b")", FLAG)),
    "a parameter of a text": named(call("torch._utils", "_rebuild_parameter", text("x"), FLAG, HOOKS)),
    "a function as a tensor": named(name("torch._utils", "_rebuild_tensor_v2")),
    "a type as a function": named(call("torch", "float32", number(GIB))),
    "an attribute of torch": named(name("torch", "hub")),
    "a storage as a function": named(call("torch", "FloatStorage", number(GIB))),
    "a storage larger than its bytes": named(tensor(storage(5))),
    "a storage of 2**40": named(tensor(storage(2**40))),
    "a storage of 2**62": named(tensor(storage(2**62))),
    "a storage of -1": named(tensor(storage(-1))),
    "a storage that is not there": named(tensor(storage(1, "7"))),
    "a storage of a path": named(tensor(storage(1, "../../etc/passwd"))),
    "a storage of text": named(tensor(storage(4, "0", "float32"))),
    "a module": named(tensor(storage(word="module"))),
    "a storage that is a number": named(b"K\x01Q"),
    "a tensor past its end": named(tensor(size=(5,))),
    "a tensor that begins past its end": named(tensor(offset=2**40)),
    "a tensor before its start": named(tensor(offset=-1)),
    "steps past its end": named(tensor(stride=(2,))),
    "steps backwards": named(tensor(stride=(-1,))),
    "2**40 times the same": named(tensor(size=(2**40,), stride=(0,))),
    "a shape that overflows": named(tensor(size=(2**62, 2**62), stride=(0, 0))),
    "a shape of another length": named(tensor(stride=(1, 1))),
    "65 dimensions": named(tensor(size=(1,) * 65, stride=(1,) * 65)),
    "a shape of texts": named(
        call("torch._utils", "_rebuild_tensor_v2", storage(), number(0), together(text("a")), b")", FLAG, HOOKS)
    ),
    "more about a tensor": named(
        call("torch._utils", "_rebuild_tensor_v2", storage(), number(0), b")", b")", FLAG, HOOKS, b"](NNe")
    ),
    "20,000 tensors of the same memory": named(storage() + PUT, *[tensor(GET)] * 20_000),
}


def is_refused(path: Path) -> str:
    Canary.path = str(path.parent / "canary")
    return refuses(Case(lambda folder: None, CheckpointError, str(path), load=read_tensors), path, seconds=5)


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_of_more_than_tensors_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    archive(path, PICKLES[what])
    is_refused(path)


@pytest.mark.parametrize("what", ["4 GiB of bytes", "copies of copies", "a storage of 2**40", "a set of a million"])
def test_it_is_refused_before_anything_is_unpickled(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "weights.bin", PICKLES[what])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    is_refused(tmp_path / "weights.bin")


# --- archives --------------------------------------------------------------------------------------------------------

GOOD = named(tensor())


def many_entries(path: Path) -> None:
    """A table of contents of a million entries, which all lead to the same bytes."""
    archive(path, GOOD)
    content = path.read_bytes()
    length, start = struct.unpack("<II", content[-10:-2])
    table = content[start : start + length] + content[start : start + 70] * MANY
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(table), start, 0)
    path.write_bytes(content[:start] + table + tail)


def overlapping(path: Path) -> None:
    """A hundred storages of the same megabyte."""
    archive(path, GOOD, {"0": bytes(10**6)})
    content = path.read_bytes()
    length, start = struct.unpack("<II", content[-10:-2])
    table = content[start : start + length]
    last = table[table.rindex(b"PK\1\2") :]
    assert last.endswith(b"data/0")
    table += b"".join(last[:-1] + bytes([48 + i]) for i in range(1, 10))
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 12, 12, len(table), start, 0)
    path.write_bytes(content[:start] + table + tail)


def preceded(path: Path) -> None:
    archive(path, GOOD)
    path.write_bytes(b"x" * 100 + path.read_bytes())


def followed(path: Path) -> None:
    archive(path, GOOD)
    path.write_bytes(path.read_bytes() + b"x" * 100)


def cut_off(path: Path) -> None:
    archive(path, GOOD)
    path.write_bytes(path.read_bytes()[:-1])


def no_archive(path: Path) -> None:
    path.write_bytes(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, 2**32 - 2, 2**32 - 2, 0))


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", GOOD)
        file.writestr("archive/data/0", bytes(10**8))


ARCHIVES: dict[str, Callable[[Path], Any]] = {
    "a million entries": many_entries,
    "storages that overlap": overlapping,
    "a hundred tensors of the same megabyte": lambda path: archive(
        path, named(*[tensor(storage(250_000), size=(250_000,))] * 100), {"0": bytes(10**6)}
    ),
    "something before it": preceded,
    "something after it": followed,
    "cut off": cut_off,
    "a table of 4 GB": no_archive,
    "compressed": compressed,
    "a pickle of 5 MB": lambda path: archive(path, named(text("x" * 5 * 2**20))),
    "a byte order of 5 MB": lambda path: archive(path, GOOD, **{"archive/byteorder": b"little" * 10**6}),
    "a second pickle in capitals": lambda path: archive(path, GOOD, **{"ARCHIVE/DATA.PKL": PICKLES["code"]}),
    "a second pickle elsewhere": lambda path: archive(path, GOOD, **{"other/data.pkl": PICKLES["code"]}),
    "a pickle elsewhere": lambda path: archive(path, GOOD[:0], **{"archive/x/data.pkl": PICKLES["code"]}),
    "a program of TorchScript": lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(str(path)),  # type: ignore[no-untyped-call]
    "the format of before 1.6": lambda path: torch.save({}, path, _use_new_zipfile_serialization=False),
    "a tar": lambda path: tarfile.open(path, "w").close(),
    "a folder": Path.mkdir,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_that_torch_does_not_write_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    ARCHIVES[what](path)
    message = is_refused(path)
    if "1.6" in what:
        assert "convert it with torch.save(torch.load(path), path)" in message


# --- the format of before PyTorch 1.6 --------------------------------------------------------------------------------


def old(path: Path, content: bytes, storages: bytes = b"") -> None:
    parts = (pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2), content, pickle.dumps(["0"], 2))
    path.write_bytes(LEGACY + b"".join(parts) + storages)


def old_storage(numel: int, key: str = "0", view: bytes = b"N") -> bytes:
    return together(text("storage"), name("torch", "FloatStorage"), text(key), text("cpu"), number(numel), view) + b"Q"


def as_tar(path: Path) -> None:
    """An archive whose first file's name is what the other format begins with."""
    with tarfile.open(path, "w") as file:
        entry = tarfile.TarInfo("x" * len(LEGACY))
        file.addfile(entry)
    content = bytearray(path.read_bytes())
    content[: len(LEGACY)] = LEGACY
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    assert tarfile.is_tarfile(path)


OLD: dict[str, Callable[[Path], None]] = {
    **{
        what: lambda path, what=what: old(path, PICKLES[what])  # type: ignore[misc]
        for what in ("4 GiB of bytes", "a set of a million", "nested tuples", "code", "no end", "a million steps")
    },
    "a storage of 2**40": lambda path: old(path, named(tensor(old_storage(2**40)))),
    "storages of more than the file": lambda path: old(
        path, named(*[tensor(old_storage(100, str(i))) for i in range(100)])
    ),
    "a storage of two sizes": lambda path: old(path, named(tensor(old_storage(4)), tensor(old_storage(8))), bytes(99)),
    "a view": lambda path: old(path, named(tensor(old_storage(4, view=together(text("1"), number(0), number(4)))))),
    "a module": lambda path: old(
        path, named(together(text("module"), name("torch", "FloatStorage"), text("/etc/passwd"), text("x")) + b"Q")
    ),
    "a tar": as_tar,
    "cut off": lambda path: path.write_bytes(LEGACY) and None,
}


@pytest.mark.parametrize("what", OLD)
def test_the_older_format_is_looked_through_as_well(what: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    OLD[what](path)
    with pytest.raises(ValueError, match=r"its pickle|it says|it is a tar|pickle exhausted"):
        check_either(path)


# --- what is read ----------------------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 5)
        self.norm = torch.nn.BatchNorm2d(4)
        self.scale = torch.nn.Parameter(torch.randn(2, 3, 4).transpose(0, 2))


STATES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "a network's": lambda: Network().state_dict(),
    "a network's in half precision": lambda: Network().half().state_dict(),
    "parameters": lambda: dict(Network().named_parameters()),
    "views": lambda: OrderedDict(
        whole=torch.arange(100.0), part=torch.arange(40)[::2].view(4, 5)[1:, 2:4].contiguous()
    ),
    "a slice": lambda: {"x": torch.arange(12.0).view(3, 4)[1], "scalar": torch.tensor(3.5), "empty": torch.empty(0, 7)},
    "many types": lambda: {
        str(dtype): torch.ones(3).to(dtype)
        for dtype in (
            *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
            *(torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16),
        )
    },
    "a hundred": lambda: {f"layer.{i}": torch.randn(i % 5, 3) for i in range(100)},
}


@pytest.mark.parametrize("what", STATES)
def test_what_networks_store_is_read(what: str, tmp_path: Path) -> None:
    state = STATES[what]()
    torch.save(state, tmp_path / "weights.bin")
    read = read_tensors(tmp_path / "weights.bin")
    assert list(read) == list(state)
    for name_, value in state.items():
        numbers = torch.complex128 if value.is_complex() else torch.float64
        assert torch.equal(read[name_].to(numbers), value.detach().to(numbers)), name_
        assert (read[name_].dtype, read[name_].shape) == (value.dtype, value.shape)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    check_legacy(tmp_path / "old.pth")
    check_either(tmp_path / "old.pth")
    check_either(tmp_path / "weights.bin")


def test_the_steps_of_this_file_make_a_tensor(tmp_path: Path) -> None:
    """So the cases fail for what is wrong with each, and not for how all of them are written."""
    values = struct.pack("<4f", 1, 2, 3, 4)
    archive(tmp_path / "weights.bin", GOOD, {"0": values})
    assert read_tensors(tmp_path / "weights.bin")["name0"].tolist() == [1, 2, 3, 4]
    old(tmp_path / "old.pth", named(tensor(old_storage(4))), struct.pack("<q", 4) + values)
    check_legacy(tmp_path / "old.pth")
    assert torch.load(tmp_path / "old.pth", weights_only=True)["name0"].tolist() == [1, 2, 3, 4]
    assert io.BytesIO(GOOD).read(2) == b"\x80\x02"
