"""A network run by OpenVINO on the CPU, converted when it is first used and kept on disk.

A network is compiled for the exact shapes of its inputs, because that runs at least a fifth faster than code for any
shape. Only when one picture size has come with `BATCH_SIZES` different batch sizes is it compiled for any batch size.

A batch is split evenly among the processor's threads where its size allows: a thread that works on samples of its own
is up to a third faster than all threads on the same samples.

A converted network is compared with PyTorch on its first inputs, and is not used if their results disagree.
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

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}  # OpenVINO's names of these types
# The largest allowed norm of the difference between OpenVINO's and PyTorch's results, as a share of the norm of
# PyTorch's, for each type that OpenVINO computes in.
TOLERANCES = {"f32": 1e-3, "bf16": 0.1, "f16": 0.05}

BATCH_SIZES = 4  # how many batch sizes of one picture size are each compiled for; further ones share one compilation

Shape = tuple[tuple[int, ...], ...]  # the shape of each input, with -1 for "any batch size"
Key = tuple[Shape, int]  # what is compiled for: the inputs' shapes in a part of a batch, and the number of parts


class OpenVINORunner(Runner):
    """Runs a core on OpenVINO. Several threads may use one runner at the same time.

    Args:
        network: the network, on the CPU.
        dtype: the type to compute in. None leaves it to OpenVINO, which takes bfloat16 where the processor supports it.

    Raises:
        ConfigError: OpenVINO cannot compute in this type.
        MissingExtraError: OpenVINO is not installed.
    """

    name = "OpenVINO"

    def __init__(self, network: HasCore, dtype: torch.dtype | None = None) -> None:
        super().__init__(network)
        if dtype is not None and dtype not in HINTS:
            raise ConfigError(f"OpenVINO computes in {', '.join(map(str, HINTS))}, not in {dtype}: use one of these")
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
            raise ValueError(f"OpenVINO runs on the CPU only here, but the inputs are on {inputs[0].device}")
        dtype = next((x.dtype for x in inputs if x.is_floating_point()), self.parameters[0].dtype)
        parts = shared_out(inputs)
        requests = self._requests(self._model(parts), len(parts))
        return torch.cat(_infer(requests, parts)).to(dtype)

    def __str__(self) -> str:
        return super().__str__() if self.has_failed else f"{self.name}, {self.precision}"

    def _requests(self, model: Any, count: int) -> list[Request]:
        """As many requests to run the model as there are parts; each thread that calls this has its own."""
        kept: dict[int, Any] = self.local.__dict__.setdefault("requests", {})
        if id(model) not in kept or kept[id(model)][0] is not model:
            kept[id(model)] = (model, [Request(model) for _ in range(count)])
        requests: list[Request] = kept[id(model)][1]
        return requests

    def _model(self, parts: list[tuple[Tensor, ...]]) -> Any:
        """The model compiled for the present weights and for parts of these shapes; compiles it if there is none."""
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
        """A compiled model: read from the disk if it was kept there whole, else converted, compared and kept there."""
        import openvino

        shape, count = key
        options: dict[str, Any] = {
            "NUM_STREAMS": count,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # With pinning, all processes would run on the same cores, and this thread would stay on its core for good.
            "ENABLE_CPU_PINNING": False,
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
        """Raise a ValueError unless the model gives for these inputs what the network gives, to within `TOLERANCES`."""
        with torch.no_grad():
            expected = self.network.core(*inputs).float()
        (found,) = _infer([Request(model)], [inputs])
        if found.shape != expected.shape:
            raise ValueError(f"its result has shape {tuple(found.shape)}, but PyTorch's has {tuple(expected.shape)}")
        error = float((found - expected).norm() / expected.norm().clamp_min(1e-20))
        kinds = (precision_of(model), HINTS.get(self.parameters[0].dtype, "f32"))
        if not error < max(TOLERANCES[kind] for kind in kinds):
            raise ValueError(f"its result differs from PyTorch's by {error:.2g} of its norm")


def _any_batch(key: Key) -> Key:
    """The same key for any batch size."""
    shape, count = key
    return tuple((-1, *each[1:]) for each in shape), count


def shared_out(inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """A batch in equal parts: as many as divide it evenly, but at most one for each of PyTorch's threads.

    An input whose first dimension is 1, such as a timestep that all samples share, goes into every part as it is.
    """
    batch = max(x.shape[0] for x in inputs)
    count = max(count for count in range(1, torch.get_num_threads() + 1) if batch % count == 0)
    columns = [x.chunk(count) if x.shape[0] == batch else (x,) * count for x in inputs]
    return list(zip(*columns, strict=True))


def core_of(openvino: Any) -> Any:
    """OpenVINO's Core: one for the whole process, which is kept until the process ends.

    A Core gives the thread that makes it a stack for handling signals and frees that stack when the Core is deleted.
    If a thread makes two and the older is deleted first, the thread keeps a pointer to freed memory, and the next
    signal ends the process with a segmentation fault. With a single Core this cannot happen.
    """
    with _ONE_AT_A_TIME:
        return _core_of(openvino)


_ONE_AT_A_TIME = threading.Lock()
_core_of = functools.cache(lambda openvino: openvino.Core())


def precision_of(model: Any) -> str:
    """The type that a compiled model computes in: a key of `TOLERANCES`."""
    return str(model.get_property("INFERENCE_PRECISION_HINT").to_string())


class Request:
    """One of OpenVINO's infer requests for a compiled model, and the inputs that were handed to it.

    An input that lies at the same place in memory as in the last run, such as a text's keys and values, is not handed
    over again.
    """

    def __init__(self, model: Any) -> None:
        self.own = model.create_infer_request()
        self.given: dict[int, Tensor] = {}  # OpenVINO reads these tensors' own memory, so they are kept alive here

    def start(self, inputs: tuple[Tensor, ...]) -> None:
        """Begin to run the model on these inputs, and return at once."""
        import openvino

        for index, x in enumerate(inputs):
            if index in self.given and _is_same_memory(x, self.given[index]):
                continue
            ready = (x.float() if x.is_floating_point() else x).detach().contiguous()
            self.own.set_input_tensor(index, openvino.Tensor(ready.numpy(), shared_memory=True))
            self.given[index] = ready
        self.own.start_async()

    def result(self) -> Tensor:
        """The model's first output, in float32, copied out of OpenVINO's memory."""
        return torch.from_numpy(self.own.get_output_tensor(0).data.copy())


def _is_same_memory(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.dtype is y.dtype and x.shape == y.shape and x.stride() == y.stride()


def _infer(requests: list[Request], parts: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Run all parts at the same time, each by a request of its own."""
    with contextlib.ExitStack() as running:  # waits for every request that was started, even if another one fails
        for request, inputs in zip(requests, parts, strict=True):
            request.start(inputs)
            running.callback(request.own.wait)
    return [request.result() for request in requests]


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
        return frontend.convert(frontend.load(decoder))


class _Traced(nn.Module):
    """A network's core as a module, which is what `torch.jit.trace` takes."""

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
    """Where compiled networks are kept: the folder "openvino" in $DDIM_CACHE or, without that, in ~/.cache/ddim."""
    chosen = os.environ.get("DDIM_CACHE")
    return (Path(chosen) if chosen else Path.home() / ".cache" / "ddim") / "openvino"


def keep_whole(file: Path, content: bytes) -> None:
    """Write a file that ends in the SHA-256 digest of its content, by which `read_whole` knows that it is not damaged.

    Where the folder cannot be written to, nothing is kept, and the network is compiled again in the next process.
    """
    with contextlib.suppress(CheckpointError), atomic_write(file) as temporary, temporary.open("wb") as stream:
        stream.write(content)
        stream.write(hashlib.sha256(content).digest())


def read_whole(file: Path) -> bytes | None:
    """The content of a file that `keep_whole` wrote; None if there is no such file, or if it is damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    content, found = content[:-32], content[-32:]
    return content if hashlib.sha256(content).digest() == found else None
