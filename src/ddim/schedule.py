"""Noise schedules and timestep spacings: functions on float64 numpy arrays.

A schedule is ᾱ_0 > ᾱ_1 > … > ᾱ_{T-1}: the share of the image's variance that is left at each of the T timesteps
(diffusers calls it `alphas_cumprod`, and the DDIM paper α). A spacing picks N of the T timesteps, the largest first.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ddim.errors import ConfigError

__all__ = [
    "BETA_SCHEDULES",
    "SPACINGS",
    "Array",
    "BetaSchedule",
    "Spacing",
    "make_alphas_cumprod",
    "make_betas",
    "snr",
    "space_timesteps",
    "zero_terminal_snr",
]

Array = NDArray[np.float64]
BetaSchedule: TypeAlias = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]  # the keys of BETA_SCHEDULES
Spacing: TypeAlias = Literal["leading", "trailing", "linspace", "quadratic"]  # the keys of SPACINGS


# --- betas -----------------------------------------------------------------------------------------------------------


def _linear(steps: int, start: float, end: float) -> Array:
    """β grows linearly (Ho et al. 2020, section 4)."""
    return np.linspace(start, end, steps)


def _scaled_linear(steps: int, start: float, end: float) -> Array:
    """√β grows linearly, as in latent diffusion (Rombach et al. 2022)."""
    return np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2


def _squared_cosine(steps: int, start: float, end: float) -> Array:
    """ᾱ(t) = cos²((t + 0.008)/1.008 · π/2) and β at most 0.999 (Nichol and Dhariwal 2021, equation 17).

    `start` and `end` have no effect.
    """
    edges: Array = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.asarray(np.minimum(1 - edges[1:] / edges[:-1], 0.999))


BETA_SCHEDULES: dict[BetaSchedule, Callable[[int, float, float], Array]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _squared_cosine,
}


def make_betas(
    num_train_timesteps: int,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    beta_schedule: BetaSchedule = "linear",
    trained_betas: Sequence[float] | Array | None = None,
) -> Array:
    """The variances β_t of the forward process.

    Args:
        num_train_timesteps: T, 1 or more.
        beta_start, beta_end: the first and the last β of schedules that have them, in [0, 1].
        beta_schedule: a key of `BETA_SCHEDULES`.
        trained_betas: the T variances themselves, instead.

    Returns:
        (T,), each in [0, 1].

    Raises:
        ConfigError: there is no such schedule, a β is outside [0, 1], or `trained_betas` are not T numbers.
    """
    if isinstance(num_train_timesteps, bool) or not isinstance(num_train_timesteps, int) or num_train_timesteps < 1:
        raise ConfigError(f"num_train_timesteps must be a positive int, not {num_train_timesteps!r:.100}")
    if trained_betas is not None:
        try:
            betas = np.asarray(trained_betas, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"trained_betas must be numbers: {error}") from error
        if betas.shape != (num_train_timesteps,):
            raise ConfigError(
                f"trained_betas has shape {betas.shape}, but num_train_timesteps={num_train_timesteps} "
                f"asks for ({num_train_timesteps},): give num_train_timesteps={betas.size}"
            )
    else:
        if not isinstance(beta_schedule, str) or beta_schedule not in BETA_SCHEDULES:
            raise ConfigError(f"beta_schedule={beta_schedule!r:.100} is none of {', '.join(BETA_SCHEDULES)}")
        for name, value in (("beta_start", beta_start), ("beta_end", beta_end)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ConfigError(f"{name} must be a number in [0, 1], not {value!r:.100}")
        betas = BETA_SCHEDULES[beta_schedule](num_train_timesteps, beta_start, beta_end)
    if not ((betas >= 0) & (betas <= 1)).all():
        bad = int(np.flatnonzero(~((betas >= 0) & (betas <= 1)))[0])
        raise ConfigError(f"every beta must be in [0, 1], but beta[{bad}] = {betas[bad]}")
    return betas


def make_alphas_cumprod(betas: Array, rescale_betas_zero_snr: bool = False) -> Array:
    """ᾱ_t, the product of 1 - β over all timesteps up to t.

    Args:
        betas: (T,).
        rescale_betas_zero_snr: change the schedule so that its last ᾱ is exactly 0, see `zero_terminal_snr`.

    Returns:
        (T,), in [0, 1].

    Raises:
        ConfigError: as `zero_terminal_snr`.
    """
    alphas_cumprod: Array = np.cumprod(1 - betas, dtype=np.float64)
    return zero_terminal_snr(alphas_cumprod) if rescale_betas_zero_snr else alphas_cumprod


def zero_terminal_snr(alphas_cumprod: Array) -> Array:
    """Shift and scale √ᾱ so that its last value is 0 and its first one stays (Lin et al. 2024, algorithm 1).

    Args:
        alphas_cumprod: ᾱ, (T,).

    Returns:
        ᾱ, (T,), with a signal-to-noise ratio of 0 at the last timestep.

    Raises:
        ConfigError: the first and the last ᾱ are equal.
    """
    root = np.sqrt(alphas_cumprod)
    if root[0] == root[-1]:
        raise ConfigError(
            "rescale_betas_zero_snr needs a schedule of more than one noise level: give two timesteps or more, and "
            "betas above 0"
        )
    return np.asarray(((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2, dtype=np.float64)


def snr(alphas_cumprod: Array) -> Array:
    """The signal-to-noise ratio ᾱ/(1 - ᾱ), in the shape of `alphas_cumprod`; infinite where there is no noise."""
    with np.errstate(divide="ignore"):
        return np.asarray(alphas_cumprod / (1 - alphas_cumprod), dtype=np.float64)


# --- spacings --------------------------------------------------------------------------------------------------------


def _leading(count: int, steps: int, offset: int) -> Array:
    """0, c, 2c, … with c = ⌊T/N⌋, all plus the offset, which is reduced where the largest would reach T."""
    ratio = steps // count
    return np.arange(count, dtype=np.float64)[::-1] * ratio + min(offset, steps - 1 - (count - 1) * ratio)


def _trailing(count: int, steps: int, offset: int) -> Array:
    """From T-1 down in steps of T/N, so that the noisiest timestep is among them (Lin et al. 2024, section 3.3)."""
    return np.asarray(np.round(np.arange(steps, 0, -steps / count))[:count] - 1)


def _linspace(count: int, steps: int, offset: int) -> Array:
    """Evenly from T-1 to 0, both included, and rounded."""
    return np.asarray(np.round(np.linspace(0, steps - 1, count))[::-1])


def _quadratic(count: int, steps: int, offset: int) -> Array:
    """⌊c·i²⌋ up to 0.8·T, denser near the image (DDIM paper, appendix D.2). Repeated values are dropped."""
    return np.unique(np.linspace(0, math.sqrt(0.8 * steps), count).astype(np.float64) ** 2 // 1)[::-1]


SPACINGS: dict[Spacing, Callable[[int, int, int], Array]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "quadratic": _quadratic,
}


def space_timesteps(
    num_inference_steps: int, num_train_timesteps: int, spacing: Spacing = "leading", steps_offset: int = 0
) -> tuple[int, ...]:
    """Pick N of the T timesteps, the largest first.

    Args:
        num_inference_steps: N, from 1 to T.
        num_train_timesteps: T.
        spacing: a key of `SPACINGS`.
        steps_offset: what "leading" adds to its timesteps, 0 or more; reduced where the largest would be past T-1. The
            other spacings ignore it.

    Returns:
        N timesteps in 0…T-1, or fewer with "quadratic", where several would be equal.

    >>> space_timesteps(4, 1000, "leading", steps_offset=1), space_timesteps(4, 1000, "trailing")
    ((751, 501, 251, 1), (999, 749, 499, 249))

    Raises:
        ConfigError: N is no int from 1 to T, the offset is no int of 0 or more, or there is no such spacing.

    Warns:
        UserWarning: "quadratic" has fewer than N different timesteps.
    """
    if isinstance(num_inference_steps, (bool, np.bool_)) or not isinstance(num_inference_steps, (int, np.integer)):
        raise ConfigError(f"num_inference_steps must be an int, not {num_inference_steps!r:.100}")
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ConfigError(
            f"num_inference_steps={num_inference_steps} must be from 1 to num_train_timesteps={num_train_timesteps}"
        )
    if not isinstance(spacing, str) or spacing not in SPACINGS:
        raise ConfigError(f"timestep_spacing={spacing!r:.100} is none of {', '.join(SPACINGS)}")
    if isinstance(steps_offset, bool) or not isinstance(steps_offset, int) or steps_offset < 0:
        raise ConfigError(f"steps_offset must be an int of 0 or more, not {steps_offset!r:.100}")
    chosen = SPACINGS[spacing](int(num_inference_steps), num_train_timesteps, steps_offset)
    if len(chosen) < num_inference_steps:
        warnings.warn(
            f"{spacing} spacing has only {len(chosen)} different timesteps for "
            f"num_inference_steps={num_inference_steps}; the repeated ones are dropped",
            stacklevel=4,
        )
    return tuple(chosen.astype(np.int64).tolist())


def as_timesteps(timesteps: Any) -> tuple[int, ...]:
    """Timesteps as ints, from a list, a range, an array of any strides, or a tensor of any type of whole numbers.

    >>> as_timesteps(np.arange(0, 1000, 250)[::-1]), as_timesteps([2.0, 1])
    ((750, 500, 250, 0), (2, 1))

    Raises:
        ConfigError: it is none of these, or a number in it is not whole.
    """
    try:
        values = timesteps.tolist() if hasattr(timesteps, "tolist") else list(timesteps)
    except (TypeError, NotImplementedError) as error:  # a tensor on the meta device has no values
        raise ConfigError(f"timesteps must be a list of ints, not {timesteps!r:.100}") from error
    if not isinstance(values, list):
        raise ConfigError(f"timesteps must be a list of ints, not {timesteps!r:.100}")
    chosen = []
    for value in values:
        number = value.item() if hasattr(value, "item") and getattr(value, "size", 1) != 0 else value
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number // 1:
            raise ConfigError(f"timesteps must be whole numbers, not {value!r:.50}")
        chosen.append(int(number))
    return tuple(chosen)


def is_part(wanted: Sequence[int], listed: Sequence[int]) -> bool:
    """Whether all of `wanted`, of which there is one at least, follow one another in `listed`.

    >>> is_part([3, 2], [4, 3, 2, 1]), is_part([4, 2], [4, 3, 2, 1])
    (True, False)
    """
    if wanted[0] not in listed:
        return False
    start = listed.index(wanted[0])
    return tuple(wanted) == tuple(listed[start : start + len(wanted)])
