"""A network as an OpenVINO model that is not compiled yet, and that model with other weights."""

from __future__ import annotations

import copy
import gc
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddim.models.core import HasCore

_OWN = "self.network."  # what the names of the network's weights begin with in a model


def convert(network: HasCore, inputs: tuple[Tensor, ...]) -> Any:
    """A network's core as an OpenVINO model, not compiled yet, in float32.

    Args:
        network: the network; its type is not changed.
        inputs: an example of what the core is given; the model takes these shapes, with any batch size.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    if next(network.parameters()).dtype != torch.float32:
        network = copy.deepcopy(network).float()
    given = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns that checks of shapes become constants, as they shall
        traced = torch.jit.trace(_Traced(network), given, check_trace=False)  # type: ignore[no-untyped-call]
        # These are the steps of openvino.convert_model, except that it also reports its use to OpenVINO's makers.
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=given)  # in a variable: it must outlive the conversion
        model = frontend.convert(frontend.load(decoder))
    del traced, decoder
    gc.collect()  # functions within the tracer refer to each other, and so keep the network
    return model


class _Traced(nn.Module):
    """A network's core as a module, which is what `torch.jit.trace` takes."""

    def __init__(self, network: HasCore) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Any:
        return self.network.core(*inputs)


def has_named_weights(model: Any, network: HasCore) -> bool:
    """Whether all that a converted model has of the network's weights are constants with the weights' names.

    So it is unless the conversion computed with them, which it says nowhere: then a constant has a weight's name but
    other numbers, or numbers but no weight's name.
    """
    weights = _weights(network)
    for constant in _constants(model):
        name = constant.get_friendly_name().removeprefix(_OWN)
        if name in weights:
            if not np.array_equal(constant.get_data(), _array(weights[name]), equal_nan=True):
                return False
        elif constant.get_element_type().is_real() and constant.get_byte_size() > 4:
            return False
    return True


def put_weights(model: Any, network: HasCore) -> None:
    """Give a model whose weights have names the weights that the network has now.

    A second conversion would do the same, but PyTorch's tracer never gives back the memory of what it has traced.
    """
    from openvino import op

    weights = _weights(network)
    for constant in _constants(model):
        name = constant.get_friendly_name()
        weight = weights.get(name.removeprefix(_OWN))
        if weight is not None:
            new = op.Constant(_array(weight), shared_memory=True)
            new.set_friendly_name(name)
            constant.output(0).replace(new.output(0))


def _constants(model: Any) -> list[Any]:
    return [each for each in model.get_ops() if each.get_type_name() == "Constant"]


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in [*network.named_parameters(), *network.named_buffers()]}


def _array(tensor: Tensor) -> Any:
    """A tensor's numbers as the conversion takes them: in float32, if they are no integers."""
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()
