"""A network run by OpenVINO on the CPU, converted when it is first used and kept on disk.

What is compiled is for the very shapes of the run, as that is a fifth faster and more; after some batch sizes of one
picture size, one that takes any. A batch is shared out evenly among the processors' threads where it can be: each then
works on its own samples, up to a third faster than all of them on the same. Where PyTorch and OpenVINO disagree about a
converted network, it is not used.
"""

from __future__ import annotations

import contextlib
import copy
import functools
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
from ddim.checkpoint import fingerprint
from ddim.checkpoint.files import atomic_write
from ddim.errors import CheckpointError, ConfigError, require
from ddim.models.core import HasCore

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}  # OpenVINO's names
# How far OpenVINO's result may be from PyTorch's, relative to its norm, by what it computes in.
TOLERANCES = {"f32": 1e-3, "bf16": 0.1, "f16": 0.05}

BATCH_SIZES = 4  # of one picture size that get a compilation of their own

Shape = tuple[tuple[int, ...], ...]  # of each input; -1 for any batch size
Key = tuple[Shape, int]  # of a part of a batch, and how many parts are run at once


class OpenVINORunner(Runner):
    """Runs a core on OpenVINO, from any number of threads.

    Args:
        network: on the CPU.
        dtype: to compute in; None is OpenVINO's choice, bfloat16 where the processor has it.

    Raises:
        ConfigError: a type that it cannot compute in.
        MissingExtraError: it is not installed.
    """

    name = "OpenVINO"

    def __init__(self, network: HasCore, dtype: torch.dtype | None = None) -> None:
        super().__init__(network)
        if dtype is not None and dtype not in HINTS:
            raise ConfigError(f"OpenVINO computes in {', '.join(map(str, HINTS))}, not {dtype}")
        self.core = core_of(require("openvino", "fast"))
        own = self.core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
        self.precision = own if dtype is None else HINTS[dtype]
        self.parameters = list(network.parameters())
        self.stamp = stamp(self.parameters)
        self.content = ""
        self.compiled: dict[Key, Any] = {}
        self.converted: dict[Shape, Any] = {}
        self.local = threading.local()

    def run(self, *inputs: Tensor) -> Tensor:
        if any(x.device.type != "cpu" for x in inputs):
            raise ValueError(f"it runs on the CPU alone, not on {inputs[0].device}")
        dtype = next((x.dtype for x in inputs if x.is_floating_point()), self.parameters[0].dtype)
        parts = shared_out(inputs)
        requests = self._requests(self._model(parts), len(parts))
        return torch.cat(_infer(requests, parts)).to(dtype)

    def __str__(self) -> str:
        return super().__str__() if self.has_failed else f"{self.name}, {self.precision}"

    def _requests(self, model: Any, count: int) -> list[Request]:
        """This thread's own."""
        kept: dict[int, Any] = self.local.__dict__.setdefault("requests", {})
        if id(model) not in kept or kept[id(model)][0] is not model:
            kept[id(model)] = (model, [Request(model) for _ in range(count)])
        requests: list[Request] = kept[id(model)][1]
        return requests

    def _model(self, parts: list[tuple[Tensor, ...]]) -> Any:
        """What was compiled for the weights as they are and for these parts, compiled now if need be."""
        now, exact = stamp(self.parameters), (tuple(tuple(x.shape) for x in parts[0]), len(parts))
        model = self.compiled.get(exact) if now == self.stamp else None
        if model is not None:
            return model
        with self.lock:
            if now != self.stamp:
                self.parameters = list(self.network.parameters())
                self.stamp, self.content = stamp(self.parameters), ""
                self.compiled, self.converted, self.local = {}, {}, threading.local()
            if exact not in self.compiled:
                self.content = self.content or identity(self.network)
                alike = [key for key in self.compiled if _any_batch(key) == _any_batch(exact)]
                key = exact if len(alike) < BATCH_SIZES else _any_batch(exact)
                if key not in self.compiled:
                    self.compiled[key] = self._compile(key, parts[0])
                self.compiled[exact] = self.compiled[key]
            return self.compiled[exact]

    def _compile(self, key: Key, inputs: tuple[Tensor, ...]) -> Any:
        """From the disk if it is there and whole, else by conversion, which is compared with PyTorch and kept."""
        import openvino

        shape, count = key
        options: dict[str, Any] = {
            "NUM_STREAMS": count,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # else all processes run on the same cores, and this thread ever after
            "INFERENCE_PRECISION_HINT": self.precision,
        }
        what = (self.content, shape, [x.dtype for x in inputs], sorted(options.items()))
        where = (
            openvino.__version__,
            self.core.get_property("CPU", "FULL_DEVICE_NAME"),
            torch.__version__,
            __version__,
        )
        file = cache_folder() / f"{hashlib.sha256(repr((what, where)).encode()).hexdigest()}.blob"
        blob = read_whole(file)
        if blob is not None:
            return self.core.import_model(blob, "CPU", options)
        general, _ = _any_batch(key)
        if general not in self.converted:
            self.converted[general] = convert(self.network, inputs)
        model = self.converted[general].clone()
        model.reshape({index: openvino.PartialShape(list(each)) for index, each in enumerate(shape)})
        compiled = self.core.compile_model(model, "CPU", options)
        self._compare(compiled, inputs)
        keep_whole(file, compiled.export_model().getvalue())
        return compiled

    def _compare(self, model: Any, inputs: tuple[Tensor, ...]) -> None:
        """Raise a ValueError unless the model does as the network does."""
        with torch.no_grad():
            expected = self.network.core(*inputs).float()
        (found,) = _infer([Request(model)], [inputs])
        if found.shape != expected.shape:
            raise ValueError(f"its result has shape {tuple(found.shape)}, PyTorch's {tuple(expected.shape)}")
        error = float((found - expected).norm() / expected.norm().clamp_min(1e-20))
        kinds = (precision_of(model), HINTS.get(self.parameters[0].dtype, "f32"))
        if not error < max(TOLERANCES[kind] for kind in kinds):
            raise ValueError(f"its result differs from PyTorch's by {error:.2g} of its norm")


def _any_batch(key: Key) -> Key:
    shape, count = key
    return tuple((-1, *each[1:]) for each in shape), count


def shared_out(inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """A batch as equal parts, as many as there are threads or fewer; what is the same for all samples is in each."""
    batch = max(x.shape[0] for x in inputs)
    count = max(count for count in range(1, torch.get_num_threads() + 1) if batch % count == 0)
    columns = [x.chunk(count) if x.shape[0] == batch else (x,) * count for x in inputs]
    return list(zip(*columns, strict=True))


def core_of(openvino: Any) -> Any:
    """Its Core: one for the process, never let go of.

    Each Core gives its thread a stack for signals and takes it away at its end; where an older one ends before a newer
    one, the thread is left with a stack that was freed, and the next signal is a segmentation fault.
    """
    with _ONE_AT_A_TIME:
        return _core_of(openvino)


_ONE_AT_A_TIME = threading.Lock()
_core_of = functools.cache(lambda openvino: openvino.Core())


def precision_of(model: Any) -> str:
    """What a compiled model computes in: a key of `TOLERANCES`."""
    return str(model.get_property("INFERENCE_PRECISION_HINT").to_string())


class Request:
    """An infer request of a compiled model, and what it was given.

    What lies in memory where it did at the last run, such as a text's keys and values, is not given again.
    """

    def __init__(self, model: Any) -> None:
        self.own = model.create_infer_request()
        self.given: dict[int, Tensor] = {}  # in its memory, which must outlive every run

    def start(self, inputs: tuple[Tensor, ...]) -> None:
        import openvino

        for index, x in enumerate(inputs):
            if index in self.given and _is_same_memory(x, self.given[index]):
                continue
            ready = (x.float() if x.is_floating_point() else x).detach().contiguous()
            self.own.set_input_tensor(index, openvino.Tensor(ready.numpy(), shared_memory=True))
            self.given[index] = ready
        self.own.start_async()

    def result(self) -> Tensor:
        """The first one, in float32, in memory of its own."""
        return torch.from_numpy(self.own.get_output_tensor(0).data.copy())


def _is_same_memory(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.dtype is y.dtype and x.shape == y.shape and x.stride() == y.stride()


def _infer(requests: list[Request], parts: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Run parts at once, each by a request of its own."""
    with contextlib.ExitStack() as running:  # waits for all that was started, whatever happens
        for request, inputs in zip(requests, parts, strict=True):
            request.start(inputs)
            running.callback(request.own.wait)
    return [request.result() for request in requests]


def convert(network: HasCore, inputs: tuple[Tensor, ...]) -> Any:
    """The core as an OpenVINO model in float32, for inputs of these shapes but any batch size."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    if next(network.parameters()).dtype != torch.float32:
        network = copy.deepcopy(network).float()
    given = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, about checks of shapes
        traced = torch.jit.trace(_Traced(network), given, check_trace=False)  # type: ignore[no-untyped-call]
        # What openvino.convert_model does, but for telling its makers about it.
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=given)  # must live until the end
        return frontend.convert(frontend.load(decoder))


class _Traced(nn.Module):
    def __init__(self, network: HasCore) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network.core(*inputs)


# --- what is kept on disk --------------------------------------------------------------------------------------------


def identity(network: nn.Module) -> str:
    """What a network computes, as a text for the name of a file: its class, config and weights, and their types."""
    kinds = [(tensor.dtype, tuple(tensor.shape)) for tensor in network.state_dict().values()]
    return repr((type(network).__name__, getattr(network, "config", None), kinds, fingerprint(network)))


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
