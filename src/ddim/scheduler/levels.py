"""ᾱ of every timestep, twice: the float64 numbers that plans use, and the tensors that others read, move and change.

In diffusers these tensors are all there is, so people convert them, move them to a device, write into them and put
others in their place, and the next step follows. Here a step follows a plan. So what is done to the tensors is noticed
before the next step, by the count that torch keeps of the writes to each, and they are read back as numbers. Where they
are still what the config's schedule rounds to, the numbers stay the exact ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.plan import check_levels
from ddim.schedule import Array

# The types that a schedule is rounded to when its tensors are converted.
_ROUNDED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Levels:
    """The levels of one scheduler, never changed but by writes into its tensors: an assignment makes another one.

    Args:
        exact: ᾱ of the config's schedule, in float64, (T,).
        alphas_cumprod: the same as a tensor, or what was put in its place, (T',).
        end: ᾱ past the lowest timestep, ().

    Raises:
        ConfigError: the tensors hold no levels.
    """

    def __init__(self, exact: tuple[float, ...], alphas_cumprod: Tensor, end: Tensor) -> None:
        self.exact, self.alphas_cumprod, self.end = exact, alphas_cumprod, end
        self._numbers: tuple[float, ...] | None = None
        self._read_at = -1  # the count of writes when the tensor was read
        self._tables: dict[torch.device, Tensor] = {}
        self.numbers()

    @classmethod
    def of(cls, alphas_cumprod: Array, ends_on_image: bool) -> Levels:
        """The levels of a schedule."""
        with torch.inference_mode(False):  # in that mode torch would not count the writes
            tensor = torch.from_numpy(alphas_cumprod).float()
            return cls(tuple(alphas_cumprod.tolist()), tensor, torch.tensor(1.0) if ends_on_image else tensor[0])

    def with_alphas_cumprod(self, value: Any) -> Levels:
        """The levels with another tensor in place of ᾱ: moved, converted, or with other values, also more or fewer.

        Raises:
            ConfigError: it is not one number from 0 to 1 for each timestep, falling.
        """
        tensor = _counted(value)
        if tensor.ndim != 1 or not len(tensor):
            raise ConfigError(
                f"alphas_cumprod must be one number for each timestep, not of shape {tuple(tensor.shape)}"
            )
        return Levels(self.exact, tensor, self.end)

    def with_end(self, value: Any) -> Levels:
        """The levels with another ᾱ past the lowest timestep.

        Raises:
            ConfigError: it is not one number from 0 to 1.
        """
        tensor = _counted(value)
        if tensor.numel() != 1 or not 0 <= float(tensor) <= 1:
            raise ConfigError(f"final_alpha_cumprod must be one number in [0, 1], not {value!r:.100}")
        return Levels(self.exact, self.alphas_cumprod, tensor.reshape(()))

    def numbers(self) -> tuple[float, ...]:
        """ᾱ of each timestep, in float64."""
        if self._numbers is not None and (
            torch.compiler.is_compiling() or self.alphas_cumprod._version == self._read_at
        ):
            return self._numbers
        found, own = (
            self.alphas_cumprod.detach().to("cpu", torch.float64),
            torch.tensor(self.exact, dtype=torch.float64),
        )
        is_own = found.shape == own.shape and any(torch.equal(found, own.to(kind).double()) for kind in _ROUNDED)
        numbers = self.exact if is_own else tuple(found.tolist())
        check_levels(numbers, 1.0)
        self._numbers, self._read_at, self._tables = numbers, self.alphas_cumprod._version, {}
        return numbers

    def final(self) -> float:
        """ᾱ past the lowest timestep, in float64."""
        value = float(self.end)
        for exact in (1.0, self.numbers()[0]):
            if any(value == torch.tensor(exact, dtype=torch.float64).to(kind).item() for kind in _ROUNDED):
                return exact
        return value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Levels) or self.exact != other.exact:
            return NotImplemented if not isinstance(other, Levels) else False
        pairs = ((self.alphas_cumprod, other.alphas_cumprod), (self.end, other.end))
        return all(torch.equal(mine.cpu(), theirs.cpu()) for mine, theirs in pairs)

    __hash__ = object.__hash__

    def table(self, device: torch.device) -> Tensor:
        """(√ᾱ, √(1-ᾱ)) of every timestep, (T 2), kept on the device after the first use."""
        numbers = self.numbers()
        if device not in self._tables:
            levels = np.array(numbers)
            table = torch.from_numpy(np.stack([np.sqrt(levels), np.sqrt(1 - levels)], axis=1))
            self._tables[device] = (table if device.type == "cpu" else table.float()).to(device)
        return self._tables[device]


class Fixed:
    """A tensor that others may read, move and convert, but not change, as no step would follow.

    Args:
        name: what it is called.
        tensor: its values.
    """

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.tensor, self.own = name, tensor, tensor.clone()

    def moved(self, value: Any) -> Fixed:
        """With the same values on another device or of another type.

        Raises:
            AttributeError: the values are other ones.
        """
        found = Fixed(self.name, _counted(value))
        found.own = self.own
        if not found.is_unchanged():
            raise AttributeError(self.refusal())
        return found

    def __eq__(self, other: object) -> bool:
        return self.own.equal(other.own) if isinstance(other, Fixed) else NotImplemented

    __hash__ = object.__hash__

    def is_unchanged(self) -> bool:
        own = self.own.to(self.tensor.dtype)
        return self.tensor.shape == own.shape and torch.equal(self.tensor.detach().cpu(), own)

    def refusal(self) -> str:
        return (
            f"no step follows what is done to {self.name}: assign alphas_cumprod, or make another scheduler with "
            "trained_betas=…"
        )


def _counted(value: Any) -> Tensor:
    """A floating-point tensor of which torch counts the writes."""
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the levels of a schedule must be numbers, not {value!r:.100}") from error
    with torch.inference_mode(False):
        tensor = tensor if tensor.is_floating_point() else tensor.float()
        return tensor.clone() if tensor.is_inference() else tensor
