"""What runs the networks: PyTorch as it is, PyTorch compiled, or OpenVINO.

A backend runs the core of each network (`models.core`), which is a function of tensors alone. Everything around it,
such as a text's keys and values and the steps of the sampler, runs in PyTorch whichever backend is chosen.

    pipe.accelerate("openvino")                        # computes in the type that is fastest on this processor
    pipe.accelerate("openvino", dtype=torch.float32)   # slower, but closer to PyTorch's float32
    pipe.accelerate("eager")                           # back to PyTorch
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from ddim.backends.runner import Runner
from ddim.errors import ConfigError
from ddim.models.core import HasCore

__all__ = ["BACKENDS", "BackendName", "Runner", "accelerate", "choose_backend", "describe"]


BackendName: TypeAlias = Literal["eager", "compile", "openvino", "auto"]  # the keys of BACKENDS, and "auto"


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


def choose_backend(device: torch.device) -> Literal["eager", "compile", "openvino"]:
    """The backend that "auto" stands for: the one that was fastest in the measurements of docs/benchmarks.md.

    Args:
        device: where the networks are.

    Returns:
        A key of `BACKENDS`: on a CPU "openvino" if it is installed, on CUDA "compile" (but not on Windows), and "eager"
        everywhere else.
    """
    if device.type == "cpu":
        return "openvino" if importlib.util.find_spec("openvino") else "eager"
    return "compile" if device.type == "cuda" and os.name == "posix" else "eager"


def accelerate(networks: Iterable[Any], backend: BackendName, dtype: torch.dtype | None = None) -> str:
    """Have networks run by a backend from now on. A network without a core is left as it is.

    Args:
        networks: the components of a pipeline; what is no `torch.nn.Module` among them is passed over.
        backend: a key of `BACKENDS`, or "auto", see `choose_backend`.
        dtype: the type to compute in. With None, OpenVINO computes in bfloat16 where the processor supports it and in
            float32 elsewhere; the other backends compute in the type of the networks' weights.

    Returns:
        The name of the backend that runs the networks now, which is never "auto".

    Raises:
        ConfigError: there is no such backend, or it cannot compute in `dtype`.

    Warns:
        UserWarning: the backend's library cannot be imported. PyTorch runs the networks then; the result is "eager".
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
        warnings.warn(f"{backend} cannot be used, so PyTorch runs the networks: {error}", stacklevel=3)
        return accelerate(modules, "eager", dtype)
    for network, runner in runners.items():
        network.runner = runner
    if dtype is not None and backend != "openvino":
        for module in modules:
            module.to(dtype)
    return backend


def describe(network: nn.Module) -> str:
    """What runs a network and in which type, in words: for example "eager, float32" or "OpenVINO, bf16"."""
    runner = getattr(network, "runner", None)
    return f"eager, {next(network.parameters()).dtype}".replace("torch.", "") if runner is None else str(runner)
