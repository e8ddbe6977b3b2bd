"""From names and tensors to a network: built without memory, compared, filled with what a file holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ddim.errors import WeightsError

MIN_MAPPED = 4 * 2**20  # bytes to convert from one mapping, at least
AROUND = 2**17  # bytes that the system maps around a small tensor that is read
MAX_LISTED = 500  # differences between weights and network that an error spells out


class _NoDraws(TorchFunctionMode):
    """Leaves out drawing initial values: on the meta device there are none, but torch imports a compiler for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def skeleton() -> Iterator[None]:
    """Networks that are made in this context have shapes and types, but no values and no memory."""
    with torch.device("meta"), _NoDraws():
        yield


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    read: Callable[[Collection[str]], Mapping[str, Tensor]],
    dtype: torch.dtype,
    what: str,
) -> None:
    """Put a file's tensors into a network that was made in `skeleton`.

    What has the right type is mapped, not copied: it is read when it is first used. The rest is converted now, the
    largest first, some at a time, and each time the file is mapped anew: what was read of it stays in memory as long
    as its mapping. So what is held beside the converted weights is 1/64 of what there is to convert, or the largest
    tensor while there is little else.

    Args:
        state: the file's tensors by the network's names; only their types and sizes are looked at.
        read: maps those of the given names, from a mapping of its own.
        what: begins the error.

    Raises:
        WeightsError: a tensor cannot be converted.
    """
    others = {
        key: tensor.nbytes + AROUND for key, tensor in state.items() if _kind(tensor)[0] and tensor.dtype != dtype
    }
    ready = dict(read(state.keys() - others.keys()))
    limit = max(sum(others.values()) // 64, MIN_MAPPED)
    batch: list[str] = []
    size = 0
    for key in sorted(others, key=others.__getitem__, reverse=True):
        if batch and size + others[key] > limit:
            ready |= _converted(read(batch), dtype, what)
            batch, size = [], 0
        batch.append(key)
        size += others[key]
    ready |= _converted(read(batch), dtype, what)
    model.load_state_dict(ready, strict=True, assign=True)


def _converted(state: Mapping[str, Tensor], dtype: torch.dtype, what: str) -> dict[str, Tensor]:
    converted = {}
    for key, tensor in state.items():
        try:
            converted[key] = tensor.to(dtype)
        except (RuntimeError, NotImplementedError) as error:
            raise WeightsError(f"{what}: {key} is {tensor.dtype}, which cannot be made {dtype}") from error
    return converted


def check_state(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Raise one `WeightsError` that lists all that differs between two sets of names, shapes and kinds of number."""
    raise_for_problems(differences(wanted, state), what)


def differences(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """All that differs between two sets of names, shapes and kinds of number, in words."""
    problems = [f"missing: {key} {tuple(wanted[key].shape)}" for key in wanted if key not in state]
    problems += [f"unexpected: {key[:200]} {tuple(state[key].shape)}" for key in state if key not in wanted]
    problems += [
        f"wrong shape: {key} is {tuple(state[key].shape)}, the config asks for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems += [
        f"wrong type: {key} is {state[key].dtype}, needed is {wanted[key].dtype}"
        for key in wanted
        if key in state and _kind(state[key]) != _kind(wanted[key])
    ]
    return problems


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def raise_for_problems(problems: Sequence[str], what: str) -> None:
    """Raise one `WeightsError` that lists all problems, if there are any."""
    if problems:
        listed = [*problems[:MAX_LISTED], *["…"] * (len(problems) > MAX_LISTED)]
        raise WeightsError(f"{what} ({len(problems)} differences):\n  " + "\n  ".join(listed))
