"""Reading and writing one file: JSON or tensors.

A file that is read may come from anyone. Nothing in it is run, the sizes that it claims are checked before memory is
spent on them, and whatever is wrong with it is one `CheckpointError` that names the file. A file is written under a
temporary name and then renamed, so nobody ever reads half a file, and a full disk does not destroy what was there.
PyTorch is imported where tensors are read, so that commands can read descriptions without it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim.errors import CheckpointError, DDIMError

if TYPE_CHECKING:
    from torch import Tensor

# The most bytes of a JSON file, of a safetensors header and of the pickle in a .bin. That is ten times what the largest
# networks need, and takes at worst some 250 MB of memory once parsed.
MAX_DESCRIPTION = 4 * 2**20


# --- writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A context in which a file is written under a temporary name, to be renamed to `path` when all went well.

    Yields:
        The temporary path, in the same folder, which is made if it is not there. After the context the file is flushed
        to disk and renamed; if an error left the context, it is deleted.

    Raises:
        CheckpointError: the file system does not allow it; what was at `path` before is still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(temporary.stat().st_mode)  # the permissions that the user's umask gives to new files
        yield temporary
        os.chmod(temporary, mode)  # some libraries replace the file by one with other permissions
        with open(temporary, "r+b") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, DDIMError):
            raise CheckpointError(f"{path} was not written: {error.strerror or error}") from error
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, in UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with sorted keys and indented by two.

    Raises:
        ValueError: a number in it is not finite, which JSON cannot hold.
        CheckpointError: the file system does not allow it.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically.

    Args:
        path: the file.
        tensors: by their names in the file, on any device. Two that share memory are written as two.
        metadata: further texts for the file's header.

    Raises:
        CheckpointError: the file system does not allow it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    host = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in host.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen:
            host[name] = tensor.clone()
        seen.add(storage)
    with atomic_write(path) as temporary:
        try:
            save_file(host, temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:  # the library's own error, also where the file system refuses
            raise OSError(str(error)) from error


# --- reading descriptions --------------------------------------------------------------------------------------------


def read_description(path: Path, too_large: str) -> bytes:
    """The bytes of a file that describes, and holds no weights.

    Args:
        too_large: what the error says of one that is over 4 MiB, after its size.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it is over 4 MiB.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_DESCRIPTION + 1)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_DESCRIPTION:
        raise CheckpointError(f"{path} is larger than {MAX_DESCRIPTION >> 20} MiB, {too_large}")
    return raw


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: there is no such file, or it is over 4 MiB, not UTF-8, not JSON, nested too deeply, or no
            object.
    """
    path = Path(path)
    raw = read_description(path, "which no config is: give the config's own file")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__} where an object is needed")
    return value


def _constant(name: str) -> float:
    """The value of "NaN", "Infinity" or "-Infinity", which are no JSON.

    Infinities are allowed, because diffusers writes one for the `lambda_min_clipped` of its DPM solvers.
    """
    if name == "NaN":
        raise ValueError("NaN is not a number that a config can have")
    return float(name)


def _finite(digits: str) -> float:
    """The value of a number in JSON; a ValueError if it is too large for a float."""
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:50]} is too large")
    return value


# --- reading tensors -------------------------------------------------------------------------------------------------


def read_tensors(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a `.bin`, which is read with `weights_only=True`.

    They are mapped into memory: a tensor is read from disk when its values are first used.

    Args:
        path: the file.
        names: read only the tensors of these names, all of which are in the file; None reads all.

    Raises:
        CheckpointError: the file is missing or cut off, is not in the format that its name says, or is a pickle of
            anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if path.suffix == ".bin":
        tensors = _read_bin(path)
        return tensors if names is None else {name: tensors[name] for name in names}
    return _read_safetensors(path, names)


def outline(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The shapes and types of a file's tensors, as tensors on the meta device, which take no memory.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    import torch

    return {name: torch.empty_like(tensor, device="meta") for name, tensor in read_tensors(path).items()}


def _read_safetensors(path: Path, names: Collection[str] | None) -> dict[str, Tensor]:
    from safetensors import safe_open

    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start == b"version ":
            raise ValueError("it is Git LFS's note of where the file is; fetch the file itself with `git lfs pull`")
        header = int.from_bytes(start, "little")
        if header > MAX_DESCRIPTION:
            raise ValueError(f"its first bytes claim a header of {header} bytes, over {MAX_DESCRIPTION}")
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except Exception as error:  # the library has errors of its own, and torch raises others for absurd shapes
        raise CheckpointError(f"{path} is not a readable safetensors file: {str(error)[:200]}") from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts in a safetensors file's header, by their names.

    Call `read_tensors` on the file first, which checks the header's size.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {str(error)[:200]}") from error


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote, in its present format or the one before: tensors, in dicts by their names.

    The pickle in it is looked through before it is unpickled, with `weights_only=True`.

    Raises:
        CheckpointError: the file is missing or broken, or a pickle of anything else; or a tensor in it is not dense, or
            shares the memory of another.
    """
    import torch

    from ddim.checkpoint.pickles import check_either

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    value = _unpickled(path, check_either)
    tensors: list[Tensor] = []
    within, seen = [value], set()
    while within:
        one = within.pop()
        if isinstance(one, torch.Tensor):
            tensors.append(one)
        elif isinstance(one, dict) and id(one) not in seen:  # a pickle can have a dict in itself
            seen.add(id(one))
            within += one.values()
    if not all(map(_is_plain, tensors)) or sum(tensor.nbytes for tensor in tensors) > path.stat().st_size:
        raise CheckpointError(
            f"{path} holds tensors that are not plain and dense, or share memory: save a copy of each"
        )
    return value


def _read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote of a state_dict, which is looked through before it is unpickled."""
    import torch

    from ddim.checkpoint.pickles import check_archive

    state = _unpickled(path, check_archive)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} is not a dict of names and tensors: save a network's state_dict() alone")
    for name, tensor in state.items():
        if not _is_plain(tensor):
            raise CheckpointError(f"{path} holds {name[:200]!r}, which is not a plain dense tensor")
    if sum(tensor.nbytes for tensor in state.values()) > path.stat().st_size:
        raise CheckpointError(f"{path} holds tensors that share memory: save a copy of each")
    return {name: tensor.detach() for name, tensor in state.items()}


def _unpickled(path: Path, check: Callable[[Path], object]) -> Any:
    """What `torch.save` wrote into a file, which `check` looks through first.

    Raises:
        CheckpointError: it is not to be unpickled, or cannot be.
    """
    import torch

    try:
        check(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can make torch.load raise an error of any kind
        raise CheckpointError(
            f"{path} cannot be read as plain weights, and nothing else is read from a {path.suffix}: "
            f"ask for safetensors ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, in the host's memory, and stores every element.

    An expanded tensor stores few elements and claims many: converting it to another type could fill the memory.
    """
    import torch

    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
