"""a·x + b·y on tensors: all the arithmetic of a step, in as few passes over memory as there can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LARGE = 2**18  # elements; from here on one pass over memory costs more than the views that make it possible


def combine(x: Tensor, y: Tensor, a: Any, b: Any, into: Tensor | None = None) -> Tensor:
    """a·x + b·y, for floats or broadcastable tensors a and b."""
    if isinstance(a, Tensor):
        return torch.addcmul(x * a, y, b) if into is None else torch.addcmul(x * a, y, b, out=into)
    if a == 0.0:  # an x that is not finite has no say
        return torch.mul(y, b, out=into)
    if x.numel() >= LARGE and _one_pass(x, y, into):
        column = None if into is None else into.view(-1, 1)
        column = torch.addr(x.view(-1, 1), y.view(-1), x.new_ones(1), beta=a, alpha=b, out=column)
        return column.view(x.shape) if into is None else into
    # as a·(x + b/a·y): where the two cancel, as they do in x0 at high noise, this rounds less than a·x + b·y
    return torch.add(x, y, alpha=b / a, out=into).mul_(a)


def _one_pass(x: Tensor, y: Tensor, into: Tensor | None) -> bool:
    """Can a·x + b·y be had as a rank-one update of a column, which reads and writes each number once?"""
    return x.dtype is y.dtype and x.is_contiguous() and y.is_contiguous() and (into is None or into.is_contiguous())


def shape_message(given: Tensor, sample: Tensor, name: str = "model_output") -> str:
    """What to say of a tensor that does not fit the sample."""
    message = f"{name} has shape {tuple(given.shape)}, the sample {tuple(sample.shape)}"
    if given.ndim == sample.ndim > 1 and given.shape[1] == 2 * sample.shape[1]:
        message += ": a model that also predicts its variance; pass model_output.chunk(2, dim=1)[0]"
    return message


def check_buffers(
    out: tuple[Tensor, Tensor | None], sample: Tensor, others: Sequence[Tensor | None], dtype: torch.dtype
) -> None:
    """Raise unless the caller's buffers can take a step's results.

    Raises:
        TypeError, ValueError: no pair of tensors, or of another shape, type or device, or in the way of each other.
    """
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[0], Tensor):
        raise TypeError("out must be (a buffer for prev_sample, a buffer for pred_original_sample or None)")
    for name, buffer in zip(("prev_sample", "pred_original_sample"), out, strict=True):
        if buffer is None:
            continue
        if buffer.shape != sample.shape or buffer.dtype is not dtype or buffer.device != sample.device:
            raise ValueError(
                f"the buffer for {name} is {buffer.dtype} {tuple(buffer.shape)} on {buffer.device}; needed is "
                f"{dtype} {tuple(sample.shape)} on {sample.device}"
            )
    read = {tensor.data_ptr() for tensor in others if tensor is not None}
    first, second = (None if buffer is None else buffer.data_ptr() for buffer in out)
    if first == second or first in read or second in (*read, sample.data_ptr()):
        raise ValueError(
            "the buffers must be apart from each other and from the inputs; only prev_sample may be sample"
        )
