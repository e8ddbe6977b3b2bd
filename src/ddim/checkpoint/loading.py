"""From a file's tensors to a network: it is built without memory, compared with the file, and filled from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ddim.errors import WeightsError

MIN_MAPPED = 4 * 2**20  # the fewest bytes of tensors that are worth a mapping of their own when they are converted
AROUND = 2**17  # bytes that the system reads into memory around a small tensor
MAX_LISTED = 500  # the most problems that an error lists


class _NoDraws(TorchFunctionMode):
    """Skips the drawing of initial values.

    On the meta device there are no values to draw, but torch would import a compiler for it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def skeleton() -> Iterator[None]:
    """A context in which networks are made with shapes and types, but without values and without memory for them."""
    with torch.device("meta"), _NoDraws():
        yield


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    read: Callable[[Collection[str]], Mapping[str, Tensor]],
    dtype: torch.dtype | None,
    what: str,
) -> None:
    """Put a file's tensors into a network that was made in `skeleton`.

    Tensors of the right type are not copied: the network uses the mapped file, which is read when a value is first
    used. The others are converted now, some at a time and the largest first. What is read of a mapped file stays in
    memory as long as the mapping, so the file is mapped anew for each group. Beside the converted weights, the memory
    needed is therefore 1/64 of what there is to convert, or the size of the largest tensor, whichever is more.

    Args:
        model: the network; its names and shapes are those of `state`.
        state: the file's tensors by the network's names; only their types and sizes are looked at.
        read: given names, maps the file anew and returns the tensors of these names.
        dtype: the floating-point type that the network gets; None is `stored_type`.
        what: the error's first words, which say what does not fit what.

    Raises:
        WeightsError: a tensor cannot be converted to `dtype`.
    """
    if dtype is None:
        dtype = stored_type(state)
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


def stored_type(state: Mapping[str, Tensor]) -> torch.dtype:
    """The type of a network that is to be of the type that it is stored in, which is that of its largest tensor.

    Networks cannot compute in 8 bits; bfloat16 has all numbers of these types.
    """
    floating = [tensor for tensor in state.values() if tensor.is_floating_point()]
    dtype = max(floating, key=torch.numel).dtype if floating else torch.float32
    return torch.bfloat16 if dtype.itemsize == 1 else dtype


def _converted(state: Mapping[str, Tensor], dtype: torch.dtype, what: str) -> dict[str, Tensor]:
    """The tensors in another type."""
    converted = {}
    for key, tensor in state.items():
        try:
            converted[key] = tensor.to(dtype)
        except (RuntimeError, NotImplementedError) as error:
            raise WeightsError(f"{what}: {key} is {tensor.dtype}, which cannot be converted to {dtype}") from error
    return converted


def check_state(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Check that two sets of tensors have the same names, shapes and kinds of number.

    Args:
        wanted: the network's tensors.
        state: what is to be put into them.
        what: the error's first words, which say what does not fit what.

    Raises:
        WeightsError: they differ; the message lists all differences.
    """
    raise_for_problems(differences(wanted, state), what)


def differences(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """The differences between two sets of tensors in names, shapes and kinds of number, each in words."""
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
    """What kind of numbers a tensor has: whether they are floating-point numbers, and whether they are complex."""
    return tensor.is_floating_point(), tensor.is_complex()


def raise_for_problems(problems: Sequence[str], what: str) -> None:
    """Do nothing if there are no problems, else raise one error that lists them all, or the first `MAX_LISTED`.

    Args:
        problems: each in words.
        what: the error's first words, which say what does not fit what.

    Raises:
        WeightsError: there is a problem.
    """
    if problems:
        listed = [*problems[:MAX_LISTED], *["…"] * (len(problems) > MAX_LISTED)]
        raise WeightsError(f"{what} ({len(problems)} differences):\n  " + "\n  ".join(listed))
