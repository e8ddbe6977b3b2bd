"""A network run by OpenVINO on the CPU, converted when it is first used and kept on disk.

What is compiled has the height, width and number of tokens of the run, and any batch size; another size is another
compilation. Where PyTorch and OpenVINO disagree about a converted network, it is not used.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim._version import __version__
from ddim.backends.runner import Runner, stamp
from ddim.errors import CheckpointError, ConfigError
from ddim.files import atomic_write
from ddim.models.core import HasCore

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}  # OpenVINO's names
# How far OpenVINO's result may be from PyTorch's, relative to its norm, by what it computes in.
TOLERANCES = {"f32": 1e-3, "bf16": 0.1, "f16": 0.05}

Shape = tuple[tuple[int, ...], ...]  # all dimensions of each input but the first


class OpenVINORunner(Runner):
    """Runs a core on OpenVINO, from any number of threads.

    Args:
        network: on the CPU.
        dtype: to compute in; None is OpenVINO's choice, bfloat16 where the processor has it.

    Raises:
        ConfigError: a type that it cannot compute in.
    """

    name = "OpenVINO"

    def __init__(self, network: HasCore, dtype: torch.dtype | None = None) -> None:
        super().__init__(network)
        if dtype is not None and dtype not in HINTS:
            raise ConfigError(f"OpenVINO computes in {', '.join(map(str, HINTS))}, not {dtype}")
        self.hint = None if dtype is None else HINTS[dtype]
        self.precision = self.hint
        self.parameters = list(network.parameters())
        self.stamp = stamp(self.parameters)
        self.content = ""
        self.compiled: dict[Shape, Any] = {}
        self.local = threading.local()

    def run(self, *inputs: Tensor) -> Tensor:
        if any(x.device.type != "cpu" for x in inputs):
            raise ValueError(f"it runs on the CPU alone, not on {inputs[0].device}")
        shape = tuple(tuple(x.shape[1:]) for x in inputs)
        dtype = next((x.dtype for x in inputs if x.is_floating_point()), self.parameters[0].dtype)
        model = self._model(shape, inputs)
        result = _infer(self._request(model), inputs)
        return result.to(dtype)

    def __str__(self) -> str:
        return super().__str__() if self.has_failed else f"{self.name}, {self.precision or 'its own precision'}"

    def _request(self, model: Any) -> Any:
        """This thread's own."""
        requests: dict[int, Any] = self.local.__dict__.setdefault("requests", {})
        kept = requests.get(id(model))
        if kept is None or kept[0] is not model:
            kept = requests[id(model)] = (model, model.create_infer_request())
        return kept[1]

    def _model(self, shape: Shape, inputs: tuple[Tensor, ...]) -> Any:
        now = stamp(self.parameters)
        if now == self.stamp and shape in self.compiled:
            return self.compiled[shape]
        with self.lock:
            if now != self.stamp:
                self.parameters = list(self.network.parameters())
                self.stamp, self.content, self.compiled = stamp(self.parameters), "", {}
                self.local = threading.local()
            if shape not in self.compiled:
                self.content = self.content or digest(self.network)
                self.compiled[shape] = self._compile(shape, inputs)
            return self.compiled[shape]

    def _compile(self, shape: Shape, inputs: tuple[Tensor, ...]) -> Any:
        """From the disk if it is there and whole, else by conversion, which is compared with PyTorch and kept."""
        import openvino

        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        if self.hint is not None:
            options["INFERENCE_PRECISION_HINT"] = self.hint
        core = openvino.Core()
        key = repr((self.content, shape, [x.dtype for x in inputs], sorted(options.items())))
        key += repr((openvino.__version__, core.get_property("CPU", "FULL_DEVICE_NAME"), torch.__version__))
        key += __version__
        file = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.blob"
        blob = read_whole(file)
        if blob is not None:
            model = core.import_model(blob, "CPU", options)
        else:
            model = core.compile_model(convert(self.network, inputs), "CPU", options)
            self._compare(model, inputs)
            keep_whole(file, model.export_model())
        self.precision = precision_of(model)
        return model

    def _compare(self, model: Any, inputs: tuple[Tensor, ...]) -> None:
        """Raise a ValueError unless the model does as the network does, for one sample more than was asked for."""
        batch = max(len(x) for x in inputs)
        more = tuple(torch.cat([x, x[:1]]) if len(x) == batch and batch > 1 else x for x in inputs)
        with torch.no_grad():
            expected = self.network.core(*more).float()
        found = _infer(model.create_infer_request(), more)
        if found.shape != expected.shape:
            raise ValueError(f"its result has shape {tuple(found.shape)}, PyTorch's {tuple(expected.shape)}")
        error = float((found - expected).norm() / expected.norm().clamp_min(1e-20))
        if not error < TOLERANCES[precision_of(model)]:
            raise ValueError(f"its result differs from PyTorch's by {error:.2g} of its norm")


def precision_of(model: Any) -> str:
    """What a compiled model computes in: a key of `TOLERANCES`."""
    return str(model.get_property("INFERENCE_PRECISION_HINT").to_string())


def _infer(request: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """The first result, in float32; memory of its own."""
    import openvino

    arrays = [(x.float() if x.is_floating_point() else x).detach().contiguous().numpy() for x in inputs]
    for index, array in enumerate(arrays):
        request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
    request.infer()
    return torch.from_numpy(request.get_output_tensor(0).data.copy())


def convert(network: HasCore, inputs: tuple[Tensor, ...]) -> Any:
    """The core as an OpenVINO model in float32, for any batch size and otherwise for the shapes of these inputs."""
    import openvino

    if next(network.parameters()).dtype != torch.float32:
        network = copy.deepcopy(network).float()
    given = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, about checks of shapes
        traced = torch.jit.trace(_Traced(network), given, check_trace=False)
        model = openvino.convert_model(traced, example_input=given)
    model.reshape({index: openvino.PartialShape([-1, *x.shape[1:]]) for index, x in enumerate(inputs)})
    return model


class _Traced(nn.Module):
    def __init__(self, network: HasCore) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network.core(*inputs)


# --- what is kept on disk --------------------------------------------------------------------------------------------


def digest(network: nn.Module) -> str:
    """Of a network's class, config and weights."""
    sha = hashlib.sha256(repr((type(network).__name__, getattr(network, "config", None))).encode())
    for name, tensor in network.state_dict().items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def cache_folder() -> Path:
    """Where compiled networks are kept: $DDIM_CACHE, else ~/.cache/ddim."""
    chosen = os.environ.get("DDIM_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "ddim") / "openvino"


def keep_whole(file: Path, content: bytes) -> None:
    """Write a file that ends in the digest of the rest; a folder that cannot be written to is no error."""
    with contextlib.suppress(CheckpointError), atomic_write(file) as temporary, temporary.open("wb") as stream:
        stream.write(content)
        stream.write(hashlib.sha256(content).digest())


def read_whole(file: Path) -> bytes | None:
    """What `keep_whole` wrote; None if it is not there, or not whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    content, found = content[:-32], content[-32:]
    return content if hashlib.sha256(content).digest() == found else None
