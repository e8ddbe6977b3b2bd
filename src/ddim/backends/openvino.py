"""A network run by OpenVINO on the CPU, converted when it is first used and kept on disk.

A network is compiled for the exact shapes of its inputs, because that runs at least a fifth faster than code for any
shape. Only when one picture size has come with `BATCH_SIZES` different batch sizes is it compiled for any batch size.

A batch is split evenly among the processor's threads where its size allows: a thread that works on samples of its own
is up to a third faster than all threads on the same samples.

A converted network is compared with PyTorch on its first inputs, and is not used if their results disagree. Whatever
was made of weights belongs to a snapshot of them (`models.snapshot`), and ends when they have changed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ddim.models
from ddim._version import __version__
from ddim.backends.conversion import convert, has_named_weights, put_weights
from ddim.backends.kept import cache_folder, keep_whole, read_whole
from ddim.backends.runner import Runner
from ddim.checkpoint import fingerprint
from ddim.errors import ConfigError, require
from ddim.models.core import HasCore
from ddim.models.snapshot import Snapshot, settings

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}  # OpenVINO's names of these types
# The largest allowed norm of the difference between OpenVINO's and PyTorch's results, as a share of the norm of
# PyTorch's, for each type that OpenVINO computes in.
TOLERANCES = {"f32": 1e-3, "bf16": 0.1, "f16": 0.05}

BATCH_SIZES = 5  # how many batch sizes of one picture size are each compiled for; further ones share one compilation
ATTEMPTS = 5  # how often a network is compiled anew when another thread changes its weights meanwhile
SHARE = 0.01  # of the time, at most, goes into looking at all weights in the middle of runs

Shape = tuple[tuple[int, ...], ...]  # the shape of each input, with -1 for "any batch size"
Key = tuple[Shape, int]  # what is compiled for: the inputs' shapes in a part of a batch, and the number of parts


class Made:
    """All that was made of a network's weights as they were at one moment.

    Attributes:
        weights: as they were.
        compiled: models for the shapes of the inputs of a part, and the number of parts.
        local: of each thread, its infer requests.
        is_first: whether these are the first weights that the runner has met.
        unkept: files that are written only if a second run uses these weights.
    """

    def __init__(self, weights: Snapshot, is_first: bool) -> None:
        weights.memorize()
        self.weights, self.is_first = weights, is_first
        self.compiled: dict[Key, Any] = {}
        self.local = threading.local()
        self.unkept: list[tuple[Path, Any]] = []
        self.identity = ""

    def requests(self, model: Any, count: int) -> list[Request]:
        """As many requests to run the model as there are parts; each thread that calls this has its own."""
        kept: dict[int, Any] = self.local.__dict__.setdefault("requests", {})
        if id(model) not in kept or kept[id(model)][0] is not model:
            kept[id(model)] = (model, [Request(model) for _ in range(count)])
        requests: list[Request] = kept[id(model)][1]
        return requests


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
        self.made: Made | None = None
        self.converted: dict[Shape, Any] = {}
        self.next_look = 0.0  # when all weights are looked at again, by the clock of `time.perf_counter`

    @property
    def compiled(self) -> dict[Key, Any]:
        """The models of the present weights."""
        return {} if self.made is None else self.made.compiled

    @property
    def local(self) -> threading.local:
        """The infer requests of each thread."""
        return threading.local() if self.made is None else self.made.local

    def begin(self) -> None:
        """Look at all weights, as some writes to them leave no other trace than the new numbers."""
        made = self.made
        if made is None or self.has_failed:
            return
        if self._look_at_all(made):
            while made.unkept:  # these weights are here to stay, and not one of many strengths of an adapter
                file, model = made.unkept.pop()
                keep_whole(file, model.export_model().getvalue())

    def _look_at_all(self, made: Made) -> bool:
        """Whether the weights are the same to the last number; if not, the next step will know."""
        start = time.perf_counter()
        is_same = made.weights.is_unchanged()
        if not is_same:
            self.network.weights_changed()
        end = time.perf_counter()
        self.next_look = end + (end - start) / SHARE
        return is_same

    def rounded(self, batch: int) -> int:
        """The next power of two: of a picture size, a new one is met a few times at most, and each is compiled for."""
        return batch if self.has_failed else 1 << (batch - 1).bit_length()

    def run(self, *inputs: Tensor) -> Any:
        if any(x.device.type != "cpu" for x in inputs):
            raise ValueError(f"OpenVINO runs on the CPU only here, but the inputs are on {inputs[0].device}")
        parts = shared_out(inputs)
        found = self._model(parts)
        if found is None:
            return self.network.core(*inputs)
        made, model = found
        dtype = next((x.dtype for x in inputs if x.is_floating_point()), None)
        dtype = next(self.network.parameters()).dtype if dtype is None else dtype
        results = [torch.cat(each).to(dtype) for each in _infer(made.requests(model, len(parts)), parts)]
        return results[0] if len(results) == 1 else tuple(results)

    def __str__(self) -> str:
        return super().__str__() if self.has_failed else f"{self.name}, {self.precision}"

    def _model(self, parts: list[tuple[Tensor, ...]]) -> tuple[Made, Any] | None:
        """The model compiled for the present weights and for parts of these shapes; compiles it if there is none.

        None if another thread goes on changing the weights, so that nothing can be made of them.
        """
        exact: Key = (tuple(tuple(x.shape) for x in parts[0]), len(parts))
        made = self.made
        if made is not None and time.perf_counter() > self.next_look:
            self._look_at_all(made)
        weights = self.network.look()
        model = made.compiled.get(exact) if made is not None and made.weights is weights else None
        if made is not None and model is not None:
            return made, model
        with self.lock:
            for _ in range(ATTEMPTS):
                weights, made = self.network.look(), self.made
                if made is None or made.weights is not weights:
                    is_first = made is None
                    made = self.made = None  # gives back the memory before more is asked for
                    made = self.made = Made(weights, is_first)
                if exact in made.compiled:
                    return made, made.compiled[exact]
                alike = [key for key in made.compiled if _any_batch(key) == _any_batch(exact)]
                key = exact if len(alike) < BATCH_SIZES else _any_batch(exact)
                model = made.compiled.get(key) or self._compile(made, key, parts[0])
                if model is not None:
                    made.compiled[key] = made.compiled[exact] = model
                    return made, model
                self.network.weights_changed()
        return None

    def _compile(self, made: Made, key: Key, inputs: tuple[Tensor, ...]) -> Any:
        """A compiled model: read from the disk if it was kept there whole, else converted, compared and kept there.

        None if the weights changed meanwhile.
        """
        import openvino

        shape, count = key
        options: dict[str, Any] = {
            "NUM_STREAMS": count,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # With pinning, all processes would run on the same cores, and this thread would stay on its core for good.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": self.precision,
        }
        network = self.network
        made.identity = made.identity or identity(network)
        what = (made.identity, shape, [x.dtype for x in inputs], sorted(options.items()))
        where = (
            openvino.__version__,
            self.core.get_property("CPU", "FULL_DEVICE_NAME"),
            torch.__version__,
            __version__,
            _code_of_networks(),
        )
        file = cache_folder() / f"{hashlib.sha256(repr((what, where)).encode()).hexdigest()}.blob"
        is_ours = type(network).__module__.partition(".")[0] == "ddim"  # the code of others' classes may change
        blob = read_whole(file) if is_ours else None
        if blob is not None:
            model = self.core.import_model(blob, "CPU", options)
            return model if made.weights.is_unchanged() else None
        model = self._converted(inputs, _any_batch(key)[0]).clone()
        model.reshape({index: openvino.PartialShape(list(each)) for index, each in enumerate(shape)})
        compiled = self.core.compile_model(model, "CPU", options)
        if not made.weights.is_unchanged():
            return None
        self._compare(compiled, inputs)
        if is_ours and made.is_first:
            keep_whole(file, compiled.export_model().getvalue())
        elif is_ours:
            made.unkept.append((file, compiled))
        return compiled

    def _converted(self, inputs: tuple[Tensor, ...], shape: Shape) -> Any:
        """The network as a model for any batch size, with its present weights."""
        model = self.converted.pop(shape, None)
        if model is None:
            model = convert(self.network, inputs)
        else:
            put_weights(model, self.network)
        if has_named_weights(model, self.network):
            self.converted[shape] = model
        return model

    def _compare(self, model: Any, inputs: tuple[Tensor, ...]) -> None:
        """Raise a ValueError unless the model gives for these inputs what the network gives, to within `TOLERANCES`."""
        with torch.no_grad():
            wanted = self.network.core(*inputs)
        kinds = (precision_of(model), HINTS.get(next(self.network.parameters()).dtype, "f32"))
        tolerance = max(TOLERANCES[kind] for kind in kinds)
        results = [each.float() for each in ([wanted] if isinstance(wanted, Tensor) else wanted)]
        for expected, (found,) in zip(results, _infer([Request(model)], [inputs]), strict=True):
            if found.shape != expected.shape:
                raise ValueError(
                    f"its result has shape {tuple(found.shape)}, but PyTorch's has {tuple(expected.shape)}"
                )
            error = float((found - expected).norm() / expected.norm().clamp_min(1e-20))
            if not error < tolerance:
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

    def results(self) -> list[Tensor]:
        """The model's outputs, in float32, copied out of OpenVINO's memory."""
        return [torch.from_numpy(each.data.copy()) for each in self.own.output_tensors]


def _is_same_memory(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.dtype is y.dtype and x.shape == y.shape and x.stride() == y.stride()


def _infer(requests: list[Request], parts: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Run all parts at the same time, each by a request of its own: for each output, that of every part."""
    with contextlib.ExitStack() as running:  # waits for every request that was started, even if another one fails
        for request, inputs in zip(requests, parts, strict=True):
            request.start(inputs)
            running.callback(request.own.wait)
    return list(zip(*(request.results() for request in requests), strict=True))


# --- what is kept on disk --------------------------------------------------------------------------------------------


def identity(network: nn.Module) -> str:
    """What a network computes, as a text for the name of a file: its class, config and weights, and their types.

    Its modules and what they are told are part of it, as one may be put in the place of another.
    """
    kinds = [(tensor.dtype, tuple(tensor.shape)) for tensor in network.state_dict().values()]
    built = [
        (name, type(module).__module__, type(module).__qualname__, sorted(settings(module).items()))
        for name, module in network.named_modules()
        if module is not network
    ]
    return repr((type(network).__name__, getattr(network, "config", None), kinds, built, fingerprint(network)))


@functools.cache
def _code_of_networks() -> str:
    """A hash of the files that say what the networks compute, as these may change without the package's version."""
    files = sorted(Path(ddim.models.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
