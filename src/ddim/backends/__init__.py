"""What runs the networks: PyTorch as it is, PyTorch compiled, or OpenVINO.

A backend runs the cores of networks (`models.core`), which are functions of tensors alone; everything else, from the
texts' keys and values to the steps, is the same with all of them.

    pipe.accelerate("openvino")                        # in the type that suits the processor
    pipe.accelerate("openvino", dtype=torch.float32)   # near to PyTorch's float32
    pipe.accelerate("eager")                           # back to PyTorch
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ddim.backends.runner import Runner
from ddim.errors import ConfigError
from ddim.models.core import HasCore

__all__ = ["BACKENDS", "Runner", "accelerate", "choose_backend", "describe"]


def _openvino(network: HasCore, dtype: torch.dtype | None) -> Runner:
    from ddim.backends.openvino import OpenVINORunner

    return OpenVINORunner(network, dtype)


def _compile(network: HasCore, dtype: torch.dtype | None) -> Runner:
    from ddim.backends.compiled import CompiledRunner

    return CompiledRunner(network)


def _eager(network: HasCore, dtype: torch.dtype | None) -> None:
    return None


BACKENDS: dict[str, Callable[[HasCore, torch.dtype | None], Runner | None]] = {
    "eager": _eager,
    "compile": _compile,
    "openvino": _openvino,
}


def choose_backend(device: torch.device) -> str:
    """What "auto" stands for on a device: OpenVINO on a CPU if it is installed, a compiled network on CUDA, else eager.

    Measured on two cores: see docs/benchmarks.md.
    """
    if device.type == "cpu":
        return "openvino" if importlib.util.find_spec("openvino") else "eager"
    return "compile" if device.type == "cuda" and os.name == "posix" else "eager"


def accelerate(networks: Iterable[Any], backend: str, dtype: torch.dtype | None = None) -> str:
    """Have networks run by a backend from now on; those without a core stay as they are.

    Args:
        networks: of a pipeline.
        backend: a key of `BACKENDS`, or "auto".
        dtype: to compute in. None is the backend's choice: OpenVINO's is bfloat16 where the processor has it, the
            others' is the networks' own.

    Returns:
        The backend: what "auto" chose.

    Raises:
        ConfigError: no such backend, or a type that is not for it.

    Warns:
        UserWarning: its library cannot be imported; the result is "eager" then.
    """
    if backend not in (*BACKENDS, "auto"):
        raise ConfigError(f"backend={backend!r} is none of auto, {', '.join(BACKENDS)}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype must be a floating-point type such as torch.bfloat16, not {dtype!r:.100}")
    modules = [network for network in networks if isinstance(network, nn.Module)]
    if backend == "auto":
        backend = choose_backend(next(modules[0].parameters()).device) if modules else "eager"
    try:
        runners = {network: BACKENDS[backend](network, dtype) for network in modules if isinstance(network, HasCore)}
    except ImportError as error:
        warnings.warn(f"{backend} cannot be used, PyTorch runs instead: {error}", stacklevel=3)
        return accelerate(modules, "eager", dtype)
    for network, runner in runners.items():
        network.runner = runner
    if dtype is not None and backend != "openvino":
        for module in modules:
            module.to(dtype)
    return backend


def describe(network: nn.Module) -> str:
    """What runs a network, in words."""
    runner = getattr(network, "runner", None)
    return f"eager, {next(network.parameters()).dtype}".replace("torch.", "") if runner is None else str(runner)
