"""Checkpoints of a run: folders of safetensors and JSON that are written under another name and renamed when whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim.checkpoint import check_state, read_json, read_tensors, save_tensors, write_json
from ddim.errors import CheckpointError


def checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The whole checkpoints in a folder, oldest first.

    Raises:
        CheckpointError: the file system does not allow such a folder.
    """
    try:
        found = [p.parent for p in Path(output_dir).glob("checkpoint-*/state.json") if p.parent.name[11:].isdigit()]
    except OSError as error:
        raise CheckpointError(f"output_dir={output_dir} cannot be read: {error.strerror or error}") from error
    return sorted(found, key=lambda path: int(path.name[11:]))


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that want a gradient, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def write_checkpoint(output_dir: Path, step: int, files: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Write `checkpoint-{step}` whole, or not at all. `files` are the tensors of each safetensors file."""
    target = output_dir / f"checkpoint-{step}"
    temporary = output_dir / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, tensors in files.items():
        save_tensors(temporary / f"{name}.safetensors", tensors)
    write_json(temporary / "state.json", state)
    discard(target)
    os.replace(temporary, target)


def drop_old(output_dir: Path, limit: int | None) -> None:
    """Delete all checkpoints but the newest; a limit of None keeps all."""
    for old in checkpoints(output_dir)[: -limit if limit else 0]:
        discard(old)
    for unfinished in output_dir.glob(".checkpoint-*"):  # left behind by processes that were killed
        shutil.rmtree(unfinished, ignore_errors=True)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, if it is there. It is renamed first, so that what is half deleted is never taken for one."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    if checkpoint.exists():
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its run.

    Raises:
        CheckpointError: missing, or not written by `write_checkpoint`.
    """
    state = read_json(folder / "state.json")
    if not isinstance(state.get("settings"), dict) or not isinstance(state.get("step"), int):
        raise CheckpointError(f"{folder / 'state.json'} is no state of a training run")
    return state


@torch.no_grad()
def load_trained(module: nn.Module, folder: Path, name: str) -> None:
    """Put a checkpoint's tensors into the parameters of `module` that want a gradient.

    Raises:
        CheckpointError, WeightsError: the file is broken, or of another network.
    """
    tensors = read_tensors(folder / f"{name}.safetensors")
    mine = trained(module)
    check_state(mine, tensors, f"{folder / name}.safetensors does not fit the network")
    for key, parameter in mine.items():
        parameter.copy_(tensors[key])


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimizer's state, by the kind and the parameter's name: "exp_avg:unet.conv_in.weight".

    Bitsandbytes counts steps by an int, which becomes an int64 tensor, and has some tensors in a dictionary of their
    own, whose name and a slash then stand before theirs.
    """
    tensors: dict[str, Tensor] = {}
    for number, values in optimizer.state_dict()["state"].items():
        for kind, value in values.items():
            inner = (
                {f"{kind}/{name}": part for name, part in value.items()} if isinstance(value, dict) else {kind: value}
            )
            tensors |= {f"{key}:{names[number]}": torch.as_tensor(part) for key, part in inner.items()}
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, names: list[str], folder: Path) -> None:
    """Put a checkpoint's state into the optimizer.

    Raises:
        CheckpointError: the file is broken, or of other parameters.
    """
    state: dict[int, dict[str, Any]] = {}
    numbers = {name: number for number, name in enumerate(names)}
    for key, value in read_tensors(folder / "optimizer.safetensors").items():
        kind, _, name = key.partition(":")
        if name not in numbers:
            raise CheckpointError(f"{folder}/optimizer.safetensors is of other parameters: {name[:200]!r}")
        values = state.setdefault(numbers[name], {})
        outer, _, inner = kind.rpartition("/")
        values = values.setdefault(outer, {}) if outer else values
        values[inner] = int(value) if value.dtype == torch.int64 and value.ndim == 0 else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
