"""A bundled model as its difference to another one, which takes half of the bytes of its weights.

Such a model's folder has what it does not share with the other: its index, its scheduler, a `base.json` that names the
other, and for a network that was trained further a `difference.safetensors`. Each weight's difference is kept with 8
bits a number and a scale for each row, of which the error is at most 1/254 of the largest difference in the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ddim.checkpoint.files import read_tensors
from ddim.errors import WeightsError

DIFFERENCE = "difference.safetensors"
LEVELS = 127  # the largest number that is kept
SCALE = ".scale"  # at the end of a scales' name; the weight's own name is that of the numbers


def difference(base: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file of the difference between two networks' weights.

    Args:
        base: weights, as they are in the base's file.
        other: weights of the same names and shapes.
    """
    tensors = {}
    for name, weight in other.items():
        apart = weight.float() - base[name].float()
        if apart.ndim < 2:
            tensors[name] = apart.half()  # biases and the like, which are few
            continue
        rows = apart.flatten(1)
        scale = (rows.abs().amax(1, keepdim=True) / LEVELS).half().float()
        tensors[name] = (rows / scale.clamp_min(1e-30)).round().clamp(-LEVELS, LEVELS).to(torch.int8).view_as(apart)
        tensors[name + SCALE] = scale.flatten().half()
    return tensors


@torch.no_grad()
def add_difference(network: nn.Module, path: Path) -> None:
    """Add a file's difference to the weights of the base, which a network has.

    Raises:
        WeightsError: it is of another network.
    """
    tensors = read_tensors(path)
    parameters = dict(network.named_parameters())
    strangers = {name.removesuffix(SCALE) for name in tensors} ^ parameters.keys()
    if strangers:
        raise WeightsError(f"{path} is no difference of this network: {sorted(strangers)[0]} is in one of them alone")
    for name, parameter in parameters.items():
        apart, scale = tensors[name].float(), tensors.get(name + SCALE)
        if scale is not None:
            apart *= scale.float().view(-1, *[1] * (apart.ndim - 1))
        # A new tensor, as the base's weights may be a mapped file.
        parameter.data = (parameter.float() + apart).to(parameter.dtype)
