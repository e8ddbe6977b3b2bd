"""A network as its difference to that of another model, which takes half of the bytes of weights in half precision.

A student has the weights of its teacher, moved a little. A folder with a `base.json` names a bundled model, such as the
teacher, and has only what it does not share with it: its scheduler, say, and for a network that was trained further a
`difference.safetensors` where its weights would be. A difference is kept with 8 bits a number and a scale for each row
of a matrix or kernel, so it is off by at most 1/254 of the largest in its row. One of low rank, as training of low-rank
matrices leaves it, is kept as the two factors of its singular value decomposition, in the same way.
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
UP, DOWN = ".up", ".down"  # after a weight's name: the factors of a difference of low rank, a row for each of its ranks
NEGLIGIBLE = 1e-4  # singular values below this share of the largest are rounding
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
    tensors: dict[str, Tensor] = {}
    for name, weight in other.items():
        apart = weight.float() - base[name].float()
        if apart.ndim < 2:  # biases and the like, which are few
            tensors[name] = apart.half()
            continue
        rows = apart.flatten(1)
        factors = _factors(rows)
        if factors is None:
            kept = _rounded(name, rows)
            tensors |= {**kept, name: kept[name].view_as(apart)}
        else:
            tensors |= _rounded(name + UP, factors[0]) | _rounded(name + DOWN, factors[1])
    save_tensors(path, tensors, {IDENTITY: _identity(base)})


def _factors(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Matrices (r rows) and (r columns), of which the transposed first times the second is the given (rows columns).

    None if the two would have more numbers than it has.
    """
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    rank = max(1, int((values > NEGLIGIBLE * values[0]).sum()))
    if rank * sum(rows.shape) >= rows.numel():
        return None
    root = values[:rank, None].sqrt()
    return root * left.T[:rank], root * right[:rank]


def _rounded(name: str, rows: Tensor) -> dict[str, Tensor]:
    """A matrix as numbers of 8 bits, and the scales of its rows."""
    scale = (rows.abs().amax(1, keepdim=True) / LEVELS).half()
    # Where the scale is 0 so are the numbers, or as good as that.
    numbers = (rows / scale.float().clamp_min(1e-30)).round().clamp(-LEVELS, LEVELS)
    return {name: numbers.to(torch.int8), name + SCALE: scale.flatten()}


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
    wanted: dict[str, Tensor] = {name: one for name, one in parameters.items() if name not in kernels}
    for name, parameter in kernels.items():
        wanted |= _parts(name, parameter, tensors.get(name + UP))
    check_state(wanted, tensors, f"{path} is no difference of this {type(network).__name__}")
    if read_metadata(path).get(IDENTITY) != _identity(parameters):
        raise WeightsError(
            f"{path} is a difference to other weights than its base has now: make it anew of both models"
        )
    for name, parameter in parameters.items():
        if name not in kernels:
            apart = tensors[name].float()
        elif name in tensors:
            apart = _scaled(tensors, name)
        else:
            apart = (_scaled(tensors, name + UP).T @ _scaled(tensors, name + DOWN)).view_as(parameter)
        parameter.data = apart.add_(parameter).to(dtype or parameter.dtype)


def _parts(name: str, parameter: Tensor, up: Tensor | None) -> dict[str, Tensor]:
    """The tensors, on the meta device, that a difference to a matrix or kernel is kept as."""
    if up is None:
        shapes = {name: tuple(parameter.shape)}
    else:
        rank = len(up) if up.ndim else 0
        shapes = {name + UP: (rank, len(parameter)), name + DOWN: (rank, parameter[0].numel())}
    numbers = {key: torch.empty(shape, device="meta", dtype=torch.int8) for key, shape in shapes.items()}
    scales = {key + SCALE: torch.empty(shape[0], device="meta") for key, shape in shapes.items()}
    return {**numbers, **scales}


def _scaled(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """What `_rounded` made of a matrix or kernel, as float32."""
    numbers = tensors[name].float()
    return numbers.mul_(tensors[name + SCALE].float().view(-1, *[1] * (numbers.ndim - 1)))


def _identity(weights: Mapping[str, Tensor]) -> str:
    """A hash of the weights of one dimension: they are few, and all of them change when a network is trained."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        if weights[name].ndim < 2:
            sha.update(name.encode())
            sha.update(weights[name].detach().float().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
