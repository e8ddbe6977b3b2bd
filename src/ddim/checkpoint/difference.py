"""A network as its difference to that of another model, which takes half of the bytes of weights in half precision.

A student has the weights of its teacher, moved a little. A folder with a `base.json` names a bundled model, such as the
teacher, and has only what it does not share with it: its scheduler, say, and for a network that was trained further a
`difference.safetensors` where its weights would be. A difference is kept with 8 bits a number and a scale for each row
of a matrix or kernel, so it is off by at most 1/254 of the largest in its row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ddim.checkpoint.files import read_metadata, read_tensors, save_tensors
from ddim.checkpoint.loading import check_state
from ddim.errors import WeightsError

DIFFERENCE = "difference.safetensors"
LEVELS = 127  # the largest number that is kept
SCALE = ".scale"  # after a weight's name: the scales of its rows
IDENTITY = "base"  # the entry of the file's metadata that says which weights it is a difference to


def save_difference(path: Path, base: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Write the difference between two networks' weights.

    Args:
        path: the file.
        base: the weights of the base, in the type that its own file has them in.
        other: weights of the same names and shapes.

    Raises:
        WeightsError: the names or shapes differ.
        CheckpointError: the file system refuses.
    """
    check_state(base, other, f"no difference is written to {path}: the two networks are not alike")
    tensors = {}
    for name, weight in other.items():
        apart = weight.float() - base[name].float()
        if apart.ndim < 2:  # biases and the like, which are few
            tensors[name] = apart.half()
            continue
        rows = apart.flatten(1)
        scale = (rows.abs().amax(1, keepdim=True) / LEVELS).half()
        # Where the scale is 0 so are the numbers, or as good as that.
        numbers = (rows / scale.float().clamp_min(1e-30)).round().clamp(-LEVELS, LEVELS)
        tensors[name], tensors[name + SCALE] = numbers.to(torch.int8).view_as(apart), scale.flatten()
    save_tensors(path, tensors, {IDENTITY: _identity(base)})


@torch.no_grad()
def add_difference(network: nn.Module, path: Path, dtype: torch.dtype | None) -> None:
    """Add a difference to a network that has the weights of the base, in the type that they are stored in.

    Args:
        network: its parameters are replaced.
        path: what `save_difference` wrote.
        dtype: the type that the parameters get; None leaves it as it is.

    Raises:
        CheckpointError: the file is broken.
        WeightsError: it is a difference of another network, or to other weights than these.
    """
    tensors = read_tensors(path)
    parameters = dict(network.named_parameters())
    kernels = {name: parameter for name, parameter in parameters.items() if parameter.ndim > 1}
    wanted = {name: torch.empty_like(p, device="meta", dtype=torch.int8) for name, p in kernels.items()}
    wanted |= {name + SCALE: torch.empty(len(p), device="meta") for name, p in kernels.items()}
    check_state({**parameters, **wanted}, tensors, f"{path} is no difference of this {type(network).__name__}")
    if read_metadata(path).get(IDENTITY) != _identity(parameters):
        raise WeightsError(
            f"{path} is a difference to other weights than its base has now: make it anew of both models"
        )
    for name, parameter in parameters.items():
        apart, kind = tensors[name].float(), dtype or parameter.dtype
        if name in kernels:
            apart.mul_(tensors[name + SCALE].float().view(-1, *[1] * (apart.ndim - 1)))
        parameter.data = apart.add_(parameter).to(kind)


def _identity(weights: Mapping[str, Tensor]) -> str:
    """A hash of the weights of one dimension: they are few, and all of them change when a network is trained."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        if weights[name].ndim < 2:
            sha.update(name.encode())
            sha.update(weights[name].detach().float().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
