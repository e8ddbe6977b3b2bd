"""What a network's weights are at one moment, by which a later change of them is noticed.

A tensor may be changed in three ways, and each leaves another trace:

- it, or a module, is put in the place of another (`load_state_dict(assign=True)`, `setattr`): it is another object;
- it is given other memory (`p.data = x`, `to(dtype)`): its memory begins at another address. The snapshot keeps the old
  memory alive, so that its address cannot be given to another tensor;
- its memory is written to (`copy_`, `load_state_dict`, most optimizers): PyTorch raises a counter.

Some writes raise no counter: through `p.data` and `.numpy()`, by fused optimizers, and all writes to tensors that were
made in inference mode. These leave no trace but the numbers themselves. `is_current`, which is for every step, looks at
a few numbers of each tensor, and at all of those that have no counter; `is_unchanged`, for the beginning of a run,
looks at every number.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

GLANCE = 16  # bytes in the middle of a tensor that `is_current` looks at


class Snapshot:
    """The weights, buffers, modules and settings of a network, as they are when this is made.

    It is not copied or pickled with a network: None takes its place.
    """

    def __init__(self, network: nn.Module) -> None:
        modules = list(network.modules())
        self._modules = modules[1:]  # without the network itself, which shall end when nobody else has it
        owned = [module.__dict__ for module in modules]
        self._dicts = [own[kind] for kind in ("_parameters", "_buffers", "_modules") for own in owned if own[kind]]
        self._objects = [each for one in self._dicts for each in one.values()]
        tensors = [each for each in self._objects if isinstance(each, Tensor)]
        self._tensors = tensors
        self._aliases = [tensor.detach() for tensor in tensors]  # they have the same memory and counter, and keep both
        self._addresses = [tensor.data_ptr() for tensor in tensors]
        self._counted = [tensor for tensor in tensors if not tensor.is_inference()]
        self._writes = sum([tensor._version for tensor in self._counted])
        self._bytes = [_bytes(alias) for alias in self._aliases if _is_readable(alias)]
        self._uncounted = [_bytes(alias) for alias in self._aliases if alias.is_inference() and _is_readable(alias)]
        self._spots = [each[len(each) // 2 :][:GLANCE] for each in self._bytes]
        self._seen = b"".join(self._spots)
        self._seen_uncounted = _checksums(self._uncounted)
        self._seen_whole: Any = None

    def is_current(self) -> bool:
        """Whether nothing has changed since, as far as can be told in a hundredth of a step; see above."""
        objects = [each for one in self._dicts for each in one.values()]
        return (
            len(objects) == len(self._objects)
            and all(map(is_, objects, self._objects))
            and [tensor.data_ptr() for tensor in self._tensors] == self._addresses
            and sum([tensor._version for tensor in self._counted]) == self._writes
            and b"".join(self._spots) == self._seen
            and (not self._uncounted or _checksums(self._uncounted) == self._seen_uncounted)
        )

    def memorize(self) -> None:
        """Look at every number, for `is_unchanged` to compare with."""
        self._seen_whole = self._whole()

    def is_unchanged(self) -> bool:
        """Whether nothing has changed since `memorize`; it reads the whole memory of the weights once."""
        if not self.is_current():
            return False
        whole: Any = self._whole()
        return bool(whole == self._seen_whole)

    def _whole(self) -> Any:
        layouts = [(tensor.dtype, tensor.shape, tensor.stride()) for tensor in self._tensors]
        return _checksums(self._bytes), layouts, [settings(module) for module in self._modules]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class Written:
    """Tells whether somebody wrote into a tensor since this was made or was last asked."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._before = self._state()

    def has_changed(self) -> bool:
        now = self._state()
        self._before, before = now, self._before
        return bool(now != before)

    def _state(self) -> Any:
        tensor = self._tensor
        if not tensor.is_inference():
            return tensor._version, tensor.data_ptr()
        return _checksums([_bytes(tensor.detach())]) if _is_readable(tensor) else object()


def settings(module: nn.Module) -> dict[str, Any]:
    """What a module is told by plain values, such as a convolution's padding, and whether it is in training."""
    plain = (bool, int, float, str, tuple, type(None))
    return {name: value for name, value in module.__dict__.items() if type(value) in plain}


def _is_readable(tensor: Tensor) -> bool:
    """Whether a tensor's numbers lie in the host's memory and can be read there."""
    return tensor.device.type == "cpu" and tensor.layout is torch.strided and tensor.numel() > 0


def _bytes(tensor: Tensor) -> memoryview:
    """The memory from a tensor's first number to its last; it is shared, and so follows what is written there."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return memoryview(tensor.as_strided((length,), (1,)).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _checksums(parts: Iterable[memoryview]) -> list[int]:
    return [zlib.crc32(part) for part in parts]
