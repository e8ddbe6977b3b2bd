"""What a step does to tensors: equation 12 of the DDIM paper, in few passes over memory.

`take_step` does all of it: the conversion of types, the clipping, and a·x + b·out + σ·z. Its numbers are those of a
`Row`, which `plan` computes.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from ddim.noise import Generators, gaussian_noise

__all__ = ["DDIMSchedulerOutput", "Output", "Row", "take_step", "threshold"]

# From so many elements on, it pays to compute a·x + b·y in one pass over memory, see `combine`. For fewer, the views
# that this takes cost more than the second pass.
LARGE = 2**18
MOST = 1e38  # about the largest factor that float32 has
LOPSIDED = 1e9  # how many times a is in b where b/a·y could be infinite, though b·y is not, see `combine`
# Of so many tensors or pictures in a list, `described` says what they are.
_SHOWN = 4


if TYPE_CHECKING:  # for a type checker it is no dict, as iterating it gives values

    class _Dict: ...
else:
    _Dict = dict


class Output(_Dict):
    """What a network, a pipeline or a scheduler returns; its subclasses are dataclasses.

    It reads as diffusers' outputs do: by attribute, by key (`out["sample"]`, `out.get("sample")`, `"sample" in out`,
    `keys()`, `values()`, `items()`, `{**out}`) and by index, and what is assigned to it is what it holds from then on.
    As there, a field that is None is not among the keys. Unlike there, it unpacks into its values,
    `prev, x0 = step(…)`, with None where there is nothing.

    It is a dict so that code which asks `isinstance(out, dict)` takes it for one. What it holds are its attributes.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    _first: ClassVar[str]  # the name of the first field

    def __init_subclass__(cls) -> None:
        """Let torch look into it, as it looks into tuples: for `torch.func`, `torch.export` and the like."""
        super().__init_subclass__()
        register_pytree_node(cls, lambda output: ([*output], None), lambda values, _: cls(*values))
        cls._first = next(iter(cls.__annotations__))
        cls.__repr__ = Output.__repr__  # type: ignore[method-assign]  # so that no dataclass makes one of its own

    def __post_init__(self) -> None:
        """Take a dict of the fields for the first one, as accelerate makes an output of a changed copy of its items."""
        given = self.__dict__[self._first]
        if type(given) is dict:
            for name in self.__dataclass_fields__:
                setattr(self, name, given.get(name))

    def keys(self) -> tuple[str, ...]:
        return tuple(name for name in self.__dataclass_fields__ if getattr(self, name) is not None)

    def values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        return tuple((name, getattr(self, name)) for name in self.keys())

    def to_tuple(self) -> tuple[Any, ...]:
        """The values, without those that are None."""
        return self.values()

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key) if key in self.keys() else default

    def __iter__(self) -> Iterator[Any]:
        return iter([getattr(self, name) for name in self.__dataclass_fields__])

    def __len__(self) -> int:
        return len(self.keys())

    def __repr__(self) -> str:
        """A line for each field: of tensors and pictures, what they are and not what they hold."""
        return fields_repr(self, type(self).__name__, self.__dataclass_fields__)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self)

    def copy(self) -> Any:
        return type(self)(*self)

    def _fixed(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} has fixed keys: assign to them, out[key] = value")

    __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _fixed

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return tuple(self)[key]
        if key not in self.__dataclass_fields__:
            raise KeyError(f"{key!r:.100}; a {type(self).__name__} has {', '.join(self.__dataclass_fields__)}")
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.__dataclass_fields__:
            raise KeyError(f"{key!r:.100}; a {type(self).__name__} has {', '.join(self.__dataclass_fields__)}")
        setattr(self, key, value)


@dataclass(eq=False)
class DDIMSchedulerOutput(Output):
    """What a step gives; see `Output` for the ways to read it.

    Attributes:
        prev_sample: x_prev, of the sample's shape.
        pred_original_sample: the predicted x0, of the same shape, clipped if the plan says so; None if it was not asked
            for.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


def fields_repr(holder: object, title: str, names: Iterable[str]) -> str:
    """A title, and below it a line for each attribute."""
    return "\n".join([title, *(f"  {name}: {described(getattr(holder, name))}" for name in names)])


def described(value: object) -> str:
    """What a value is, in a line: of a tensor or an array its shape, type and range, and not its numbers.

    >>> described(torch.zeros(2, 3, 8, 8)), described([np.ones(4), np.ones(4)]), described(None)
    ('tensor (2 3 8 8), float32, all 0', 'list of 2: array (4), float64, all 1', 'None')
    """
    if isinstance(value, (Tensor, np.ndarray)):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        place = f" on {value.device}" if isinstance(value, Tensor) and value.device.type != "cpu" else ""
        shape, dtype = " ".join(map(str, value.shape)), str(value.dtype).removeprefix("torch.")
        return f"{kind} ({shape}), {dtype}{place}{_range(value)}"
    if hasattr(value, "mode") and hasattr(value, "size") and hasattr(value, "getbands"):  # one of PIL's pictures
        return f"picture {value.size[0]}x{value.size[1]}, {value.mode}"
    if isinstance(value, (list, tuple)) and any(hasattr(each, "shape") or hasattr(each, "getbands") for each in value):
        kinds = list(dict.fromkeys(described(each) for each in value[:_SHOWN]))
        return f"{type(value).__name__} of {len(value)}: {'; '.join(kinds)}{'; …' * (len(value) > _SHOWN)}"
    if isinstance(value, (list, tuple, dict, set, str, bytes)):
        return reprlib.repr(value)
    return " ".join(repr(value).split())[:200]


def _range(value: Any) -> str:
    """Where a tensor's or an array's numbers lie, as the end of a line; nothing where that cannot be seen."""
    try:
        tensor = torch.as_tensor(value).detach()
        if tensor.is_meta or not tensor.numel() or tensor.is_complex() or tensor.dtype == torch.bool:
            return ""
        low, high = (float(each) for each in torch.aminmax(tensor))
        holes = bool(tensor.isnan().any()) if tensor.is_floating_point() else False
    except (RuntimeError, TypeError):  # while a step is traced or mapped, a tensor has no numbers
        return ""
    if holes:
        return ", with NaN"
    low, high = low + 0.0, high + 0.0  # no -0
    return f", all {low:.4g}" if low == high else f", from {low:.4g} to {high:.4g}"


class Row(NamedTuple):
    """One step of a plan: the timesteps it leads from and to, and the numbers that it computes with.

    For one timestep on the host, these are ints (the timesteps) and floats. For timesteps on a device, or for one for
    each sample, every field is a tensor that broadcasts over the samples, (b 1 …).

    Attributes:
        timestep: t, the timestep that the network is given.
        previous_timestep: the timestep that the step leads to or, in an inverse plan, comes from; -1 is the image.
        alpha_bar: ᾱ before the step.
        alpha_bar_prev: ᾱ after the step.
        a, b, sigma: x_prev = a·x_t + b·out + σ·z, where nothing is clipped; out is the network's output, z noise.
        p, q: x0 = p·x_t + q·out.
        r, s: eps = r·x_t + s·out.
        signal_rate: √ᾱ before the step, the factor of x0 in x_t.
        noise_rate: √(1-ᾱ) before the step, the factor of eps in x_t.
        signal_rate_prev: √ᾱ_prev, the factor of x0 after the step.
        direction: √(1-ᾱ_prev-σ²), the second root in equation 12.
        carried: in a plan of second order, the factor with which the change of the predicted x0 since the last step is
            added to x_prev. It is 0 in plans of first order, at the first step, and at timesteps that the plan does not
            list.
    """

    timestep: Any
    previous_timestep: Any
    alpha_bar: Any
    alpha_bar_prev: Any
    a: Any
    b: Any
    sigma: Any
    p: Any
    q: Any
    r: Any
    s: Any
    signal_rate: Any
    noise_rate: Any
    signal_rate_prev: Any
    direction: Any
    carried: Any

    def __repr__(self) -> str:
        """All fields in a line, numbers to six digits; of tensors, what they are."""
        if isinstance(self.timestep, Tensor):
            return f"Row of tensors: timestep = {described(self.timestep)}"
        return f"Row({', '.join(f'{name}={value:.6g}' for name, value in zip(self._fields, self, strict=True))})"


# --- the step --------------------------------------------------------------------------------------------------------


def take_linear_step(
    row: Row, model_output: Tensor, sample: Tensor, noise: Tensor | None = None, return_x0: bool = True
) -> DDIMSchedulerOutput:
    """A step that is not clipped, in its tensors' own type: x_prev = a·x_t + b·out + σ·z. Arguments as `take_step`."""
    original = combine(sample, model_output, row.p, row.q) if return_x0 else None
    prev = combine(sample, model_output, row.a, row.b)
    return DDIMSchedulerOutput(prev if noise is None else _add_noise(prev, row, noise), original)


def take_step(
    row: Row,
    model_output: Tensor,
    sample: Tensor,
    dtype: torch.dtype,
    wide: torch.dtype,
    *,
    noise: Tensor | None = None,
    clip: Callable[[Tensor], Tensor] | None = None,
    output_is_eps: bool = False,
    use_clipped_model_output: bool = False,
    return_x0: bool = True,
    out: tuple[Tensor, Tensor | None] | None = None,
) -> DDIMSchedulerOutput:
    """One step of equation 12. Half precision is computed in float32 and rounded once.

    `process.ddim_step` is not called on the tensors, because it would make x0 and eps first, and read and write each
    number several times over. The plan has applied it to the coefficients; so a step that is not clipped is one sum
    a·x + b·out, and a clipped one is two sums, or three where eps has to be made.

    Args:
        row: the numbers of the step.
        model_output, sample: the network's output and x_t, (batch, …), which `check_step` has checked.
        dtype, wide: of the result and of the computation, as `check_step` gives them.
        noise: z, of the sample's shape; None for a step without noise.
        clip: a function that clips the predicted x0 and may write to it; None leaves the step linear.
        output_is_eps: whether the network's output is eps, which then need not be computed.
        use_clipped_model_output: compute eps again from x_t and the clipped x0.
        return_x0: also return the predicted x0.
        out: tensors to write the results to, see `check_buffers`.

    Returns:
        x_prev and the predicted x0, of the sample's shape and the type that the two inputs promote to.

    Raises:
        TypeError, ValueError: as `check_buffers`.
    """
    if out is not None:
        check_buffers(out, sample, (model_output, noise), dtype)
        return_x0 = out[1] is not None
    if wide is not model_output.dtype or wide is not sample.dtype:
        model_output, sample = model_output.to(wide), sample.to(wide)
    prev_into, x0_into = (out if wide is dtype else None) or (None, None)
    original = None
    if clip is None:
        if return_x0:
            original = combine(sample, model_output, row.p, row.q, x0_into)
        prev = combine(sample, model_output, row.a, row.b, prev_into)
    else:
        original = clip(combine(sample, model_output, row.p, row.q, x0_into))
        if use_clipped_model_output:  # eps = (x_t - √ᾱ x0) / √(1-ᾱ)
            share = row.direction / row.noise_rate
            prev = combine(sample, original, share, row.signal_rate_prev - share * row.signal_rate, prev_into)
        elif output_is_eps:  # eps need not be computed, which saves a pass over memory
            prev = combine(model_output, original, row.direction, row.signal_rate_prev, prev_into)
        else:
            eps = combine(sample, model_output, row.r, row.s, prev_into)
            prev = combine(eps, original, row.direction, row.signal_rate_prev, prev_into)
    if noise is not None:
        prev = _add_noise(prev, row, noise)
    if not return_x0:
        original = None
    if wide is dtype:
        return DDIMSchedulerOutput(prev, original)
    if out is not None:
        prev = out[0].copy_(prev)
        original = out[1] if out[1] is None or original is None else out[1].copy_(original)
    return DDIMSchedulerOutput(prev.to(dtype), None if original is None else original.to(dtype))


def carry_on(prev: Tensor, x0: Tensor, last: Tensor, share: Any) -> Tensor:
    """prev + share·(x0 - last), what second order adds to a step; half precision is computed in float32.

    Args:
        prev: x_prev, as a step of first order gives it.
        x0, last: the predicted x0 of this step and of the one before.
        share: the row's `carried`.
    """
    wide = torch.promote_types(prev.dtype, torch.float32)
    change = x0.to(wide) - last.to(wide)
    if isinstance(share, Tensor):
        return torch.addcmul(prev.to(wide), change, share).to(prev.dtype)
    return torch.add(prev.to(wide), change, alpha=share).to(prev.dtype)


def check_step(model_output: Any, sample: Any) -> tuple[torch.dtype, torch.dtype]:
    """Check that a network's output and a sample fit each other, and say in which types their step is made.

    Returns:
        (the type of the result, which the two promote to; the type to compute in: float32 where that has less).

    Raises:
        TypeError: they are no tensors of floating-point numbers.
        ValueError: they differ in shape, or one is on the CPU and the other is not.
    """
    if not (isinstance(model_output, Tensor) and isinstance(sample, Tensor)):
        raise TypeError(
            f"model_output and sample must be tensors, not {type(model_output).__name__} and {type(sample).__name__}"
        )
    if model_output.shape != sample.shape:
        raise ValueError(shape_message(model_output, sample))
    if model_output.is_cpu is not sample.is_cpu:  # to compare the devices would take three times as long
        raise ValueError(
            f"model_output is on {model_output.device}, the sample on {sample.device}: move one to the other"
        )
    dtype, other = sample.dtype, model_output.dtype
    if dtype is torch.float32 and other is dtype:  # as most are
        return dtype, dtype
    if not (dtype.is_floating_point and other.is_floating_point):
        raise TypeError(f"model_output and sample must be floating point tensors, not {other} and {dtype}")
    dtype = torch.promote_types(dtype, other)
    return dtype, torch.float64 if dtype is torch.float64 else torch.float32


def _add_noise(prev: Tensor, row: Row, noise: Tensor) -> Tensor:
    """x_prev + σ·z, in the memory of x_prev."""
    if isinstance(row.sigma, Tensor):
        return prev.addcmul_(noise, row.sigma)
    return prev.add_(noise, alpha=row.sigma)


def step_noise(like: Tensor, generator: Generators, given: Tensor | None) -> Tensor:
    """The noise z of a step: the noise that the caller gave, or else what the generator draws.

    Args:
        like: says the shape, the type and the device.
        generator: one, a list with one for each sample, or None for torch's global one.
        given: the caller's noise, which may have one entry where the sample has several; or None.

    Raises:
        ValueError: both are given, or the noise does not broadcast to the sample, or the list is not as long as the
            batch.
        TypeError: the noise is no tensor, or the generator no generator.
    """
    if given is None:
        return gaussian_noise(like.shape, generator, like.device, like.dtype)
    if generator is not None:
        raise ValueError("give a generator or variance_noise, not both")
    if not isinstance(given, Tensor):
        raise TypeError(f"variance_noise must be a tensor, not {type(given).__name__}")
    if given.shape != like.shape:
        fits = given.ndim == like.ndim and all(n in (1, m) for n, m in zip(given.shape, like.shape, strict=True))
        if not fits:
            raise ValueError(shape_message(given, like, "variance_noise"))
        given = given.expand(like.shape)
    return given.to(like.device)


def shape_message(given: Tensor, sample: Tensor, name: str = "model_output") -> str:
    """The words of an error about a tensor whose shape is not the sample's."""
    message = f"{name} has shape {tuple(given.shape)}, the sample {tuple(sample.shape)}"
    if given.ndim == sample.ndim > 1 and given.shape[1] == 2 * sample.shape[1]:
        message += ": the model also predicts its variance, so pass model_output.chunk(2, dim=1)[0]"
    return message


def check_buffers(
    out: tuple[Tensor, Tensor | None], sample: Tensor, others: Sequence[Tensor | None], dtype: torch.dtype
) -> None:
    """Check that a step's results can be written to a caller's tensors.

    Args:
        out: the tensors for prev_sample and for pred_original_sample; None in the second place computes no x0.
        sample: x_t, whose shape and device they need.
        others: the tensors that the step reads beside x_t.
        dtype: the type that they need.

    Raises:
        TypeError: `out` is no such pair.
        ValueError: a tensor has another shape, type or device, or shares memory with one that is read or written.
    """
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[0], Tensor):
        raise TypeError("out must be (a buffer for prev_sample, a buffer for pred_original_sample or None)")
    for name, buffer in zip(("prev_sample", "pred_original_sample"), out, strict=True):
        if buffer is None:
            continue
        if buffer.shape != sample.shape or buffer.dtype is not dtype or buffer.device != sample.device:
            raise ValueError(
                f"the buffer for {name} is {buffer.dtype} {tuple(buffer.shape)} on {buffer.device}, but must be "
                f"{dtype} {tuple(sample.shape)} on {sample.device}"
            )
    read = {tensor.data_ptr() for tensor in others if tensor is not None}
    first, second = (None if buffer is None else buffer.data_ptr() for buffer in out)
    if first == second or first in read or second in (*read, sample.data_ptr()):
        raise ValueError(
            "the buffers must be apart from each other and from the inputs; only prev_sample may be sample"
        )


# --- arithmetic ------------------------------------------------------------------------------------------------------


def combine(x: Tensor, y: Tensor, a: Any, b: Any, into: Tensor | None = None) -> Tensor:
    """a·x + b·y.

    Large tensors are added as a rank-one update of a column (`addr`), which reads and writes each number once, where
    other ways take two passes over memory.

    Args:
        x, y: tensors of one shape, (batch, …).
        a, b: floats, or tensors that broadcast over x and y. Where a is the float 0, x is left out altogether, so that
            an infinity or NaN in x does not spread.
        into: a tensor for the result; None makes one.
    """
    if isinstance(a, Tensor):
        return torch.addcmul(x * a, y, b) if into is None else torch.addcmul(x * a, y, b, out=into)
    if a == 0.0:  # 0·x would be NaN where x is not finite
        return torch.mul(y, b, out=into)
    if (abs(a) > MOST or abs(b) > MOST) and x.dtype is torch.float32:
        wide = torch.add(x.double() * a, y.double(), alpha=b).to(x.dtype)
        return wide if into is None else into.copy_(wide)
    if x.numel() >= LARGE and _one_pass(x, y, into):
        column = None if into is None else into.view(-1, 1)
        column = torch.addr(x.view(-1, 1), y.view(-1), x.new_ones(1), beta=a, alpha=b, out=column)
        return column.view(x.shape) if into is None else into
    if abs(b) > abs(a) * LOPSIDED:
        return torch.add(y * b, x, alpha=a, out=into)
    # This is computed as a·(x + b/a·y), which rounds less than a·x + b·y where the two terms almost cancel each other,
    # as they do in x0 at high noise.
    return torch.add(x, y, alpha=b / a, out=into).mul_(a)


def _one_pass(x: Tensor, y: Tensor, into: Tensor | None) -> bool:
    """Whether a·x + b·y can be computed as a rank-one update of a column: one type, and all contiguous in memory."""
    return x.dtype is y.dtype and x.is_contiguous() and y.is_contiguous() and (into is None or into.is_contiguous())


def threshold(x0: Tensor, ratio: float, maximum: float, out: Tensor | None = None) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): clamp each sample to ±s and divide by s.

    s is the quantile `ratio` of the sample's |x0| (linearly interpolated), clamped to [1, maximum]; or `maximum`, if
    that is less than 1.

    Args:
        x0: the predicted images, (batch, …), float32 or float64.
        ratio: in [0, 1].
        maximum: the largest s, which is positive.
        out: a tensor that may be used for the result, such as x0 itself; None makes one.

    Returns:
        (batch, …), in [-1, 1].
    """
    if not x0.numel():
        return x0
    maximum = _in_range(maximum, x0.dtype)
    samples = x0.reshape(x0.shape[0] if x0.ndim else 1, -1)  # (b n)
    if x0.is_cpu and not x0.requires_grad and not torch.compiler.is_compiling():
        scale = torch.stack([_quantile_below(sample, ratio, maximum) for sample in samples])
    else:
        scale = _quantile(samples.abs(), ratio)
    scale = scale.clamp(1, maximum).view((*x0.shape[:1], *[1] * (x0.ndim - 1)))  # (b 1 …)
    if torch.compiler.is_compiling():  # it refuses an `out` that is not contiguous, and needs none
        out = None
    return torch.div(torch.clamp(x0, -scale, scale, out=out), scale, out=out)


def clip(x0: Tensor, limit: float) -> Tensor:
    """Clamp a predicted image to ± a positive limit, in place."""
    limit = _in_range(limit, x0.dtype)
    return x0.clamp_(-limit, limit)


def _in_range(limit: float, dtype: torch.dtype) -> float:
    """A positive limit as a type has it: infinite above all its numbers, and never 0 below them."""
    info = torch.finfo(dtype)
    return math.inf if limit > info.max else max(limit, info.tiny * info.eps)


def _quantile_below(sample: Tensor, ratio: float, maximum: float) -> Tensor:
    """The quantile of one sample's |x|, or `maximum` if that is smaller: a 0-dim tensor.

    Most of the time would go into sorting. Counting the values below `maximum` is faster, and decides alone where the
    quantile is not below it.
    """
    values = sample.abs()
    position = ratio * (len(values) - 1)
    low = int(position)
    if int(torch.count_nonzero(values < maximum)) <= low:
        return values.new_tensor(maximum)
    high = min(low + 1, len(values) - 1)
    part = torch.from_numpy(np.partition(values.numpy(), [low, high]))
    return torch.lerp(part[low], part[high], position - low)


def _quantile(values: Tensor, ratio: float) -> Tensor:
    """The quantile of each row of (b n), for which only the values above it are sorted: (b,)."""
    position = ratio * (values.shape[1] - 1)
    low = int(position)
    top = values.topk(values.shape[1] - low, dim=1).values  # the largest first, so that the last has the rank `low`
    return torch.lerp(top[:, -1], top[:, max(top.shape[1] - 2, 0)], position - low)
