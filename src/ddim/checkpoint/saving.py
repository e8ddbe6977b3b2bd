"""How a network's weights are written: in one file or in several, under the names that diffusers reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddim.checkpoint.files import atomic_write, save_tensors, write_json

_UNITS = {"": 1, **{f"{unit}B": 1000**power for power, unit in enumerate("KMGT", 1)}}
_UNITS |= {"B": 1, **{f"{unit}IB": 1024**power for power, unit in enumerate("KMGT", 1)}}
_SHARD = r"-\d{5}-of-\d{5}"


class Saving(NamedTuple):
    """What the caller of `save_pretrained` said about the files of weights.

    Attributes:
        variant: goes into their names, such as "fp16".
        is_safe: write `.safetensors`; otherwise `.bin`, by `torch.save`.
        max_shard_size: in bytes; more than that is divided into files no larger, where no single tensor is.
    """

    variant: str | None = None
    is_safe: bool = True
    max_shard_size: int = 10 * 1000**3

    def options(self) -> dict[str, Any]:
        """What is said other than by default, as arguments of another `save_pretrained`."""
        names = {"variant": "variant", "is_safe": "safe_serialization", "max_shard_size": "max_shard_size"}
        return {names[field]: value for field, value in self._asdict().items() if value != self._field_defaults[field]}


def size_in_bytes(size: int | str) -> int:
    """A size such as 500_000_000, "500MB" (of 1000) or "5GiB" (of 1024), in bytes.

    Raises:
        ValueError: it is no such size, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", str(size))
    unit = match[2].upper() if match else ""
    if match is None or unit not in _UNITS or not float(match[1]):
        raise ValueError(f"max_shard_size must be a number of bytes or a text such as '5GB', not {size!r:.50}")
    return int(float(match[1]) * _UNITS[unit])


def with_variant(filename: str, variant: str | None) -> str:
    """A file's name with the variant before its last dot: model.fp16.safetensors, model.safetensors.index.fp16.json."""
    stem, _, suffix = filename.rpartition(".")
    return f"{stem}.{variant}.{suffix}" if variant else filename


def bin_name(name: str) -> str:
    """What the `.bin` file of a network is called, whose `.safetensors` file is called `name`."""
    name = name.replace(".safetensors", ".bin")
    return f"pytorch_{name}" if name.startswith("model.") else name  # a text encoder's, as transformers names it


def save_weights(folder: Path, name: str, state: Mapping[str, Tensor], saving: Saving) -> None:
    """Write a network's weights, and remove from the folder what an earlier save left and would be read instead.

    Args:
        folder: the network's folder.
        name: of the `.safetensors` file, without a variant.
        state: the weights by their names.
        saving: what the files are to be.

    Raises:
        CheckpointError: the file system does not allow it.
    """
    kind = name if saving.is_safe else bin_name(name)
    whole, index = with_variant(kind, saving.variant), with_variant(f"{kind}.index.json", saving.variant)
    parts = _divide(state, saving.max_shard_size)
    stem, _, suffix = whole.rpartition(".")
    names = [f"{stem}-{i:05}-of-{len(parts):05}.{suffix}" for i in range(1, len(parts) + 1)]
    names = names if len(parts) > 1 else [whole]
    for file, part in zip(names, parts, strict=True):
        _save(folder / file, part, saving.is_safe)
    if len(parts) > 1:
        places = {key: file for file, part in zip(names, parts, strict=True) for key in part}
        total = sum(tensor.nbytes for tensor in state.values())
        write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": places})
        names.append(index)
    stale = [re.escape(whole), re.escape(index), rf"{re.escape(stem)}{_SHARD}\.{suffix}"]
    if not saving.is_safe:  # readers prefer .safetensors
        safe = with_variant(name, saving.variant)
        stale += [re.escape(safe), re.escape(with_variant(f"{name}.index.json", saving.variant))]
    for path in folder.iterdir():
        if path.name not in names and any(re.fullmatch(pattern, path.name) for pattern in stale):
            path.unlink()


def _divide(state: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """The weights in order, in as few parts as it takes for each to have at most so many bytes, or a single tensor."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in state.items():
        if parts[-1] and size + tensor.nbytes > most:
            parts.append({})
            size = 0
        parts[-1][key] = tensor
        size += tensor.nbytes
    return parts


def _save(path: Path, tensors: dict[str, Tensor], is_safe: bool) -> None:
    if is_safe:
        return save_tensors(path, tensors)
    with atomic_write(path) as temporary:
        torch.save({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, temporary)
    return None
