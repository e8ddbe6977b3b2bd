"""Interpolation: paths and grids between noises, real pictures, texts and classes.

At η = 0 a sample is a function of x_T, so the points between two x_T give pictures between two pictures (section 5.3
and appendix D.5 of the DDIM paper). Gaussian noise in many dimensions lies near a sphere, which the straight line
between two noises leaves, and `slerp` does not. Texts and other vectors have no such sphere, and are interpolated in a
straight line by `lerp`.

    x = path(seed_noise(pipe, [0, 1, 2]), frames=8)             # (15 c h w)
    pictures = draw(pipe, plan, x, conditioned(pipe, plan))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.inversion import METHODS, Notice, invert_fixed_point
from ddim.noise import gaussian_noise, seeded_generators
from ddim.plan import SamplingPlan
from ddim.sampling import Denoiser, Pipeline, SampleStep, sample

__all__ = [
    "BETWEEN",
    "INVERSIONS",
    "Between",
    "Denoisers",
    "conditioned",
    "draw",
    "grid",
    "lerp",
    "mixed",
    "path",
    "picture_noise",
    "seed_noise",
    "slerp",
    "stations",
]

# (a, b, t) -> the points between a (n …) and b (n …) at t in [0, 1], which is one number or one for each sample.
Between: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]

# (start, stop) -> the denoiser for the frames with the numbers from start to stop - 1.
Denoisers: TypeAlias = Callable[[int, int], Denoiser]

_ALMOST_OPPOSITE = 1e-3  # two directions count as opposite if their angle is within so many radians of π

# --- between two points ----------------------------------------------------------------------------------------------


def slerp(a: Tensor, b: Tensor, t: float | Sequence[float] | Tensor) -> Tensor:
    """Spherical interpolation: sin((1-t)θ)/sin θ · a + sin(tθ)/sin θ · b (equation 67), θ the angle between a and b.

    Each sample has its own angle, over all its dimensions, computed in float64. The result is exactly a at 0 and b at
    1. Where a and b are parallel, or one is zero, the result is that of `lerp`, which is the equation's limit. Where
    they are opposite to within a thousandth of a radian, the equation has no limit: the direction then goes half around
    a circle, while the length changes linearly.

    Args:
        a, b: (n, …), of one shape; one of them may have n = 1.
        t: where between a (0) and b (1); one number, or one for each sample.

    Returns:
        (n, …), of the type of both. Half precision is computed in float32.

    Raises:
        ValueError: shapes do not fit, or a t is not finite.
        TypeError: a or b is no floating-point tensor.
    """
    a, b, share = _fit(a, b, t)
    u, v = (_exact(x).flatten(1) for x in (a, b))  # (n d)
    lengths = torch.stack([u.norm(dim=1), v.norm(dim=1)])  # (2 n)
    is_zero = (lengths == 0).any(dim=0)
    u, v = u / lengths[0].clamp_min(1e-300)[:, None], v / lengths[1].clamp_min(1e-300)[:, None]
    # This form is accurate for angles near 0 and π, where the arc cosine loses half of the digits (Kahan 2006).
    angle = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))
    opposite = ~is_zero & (math.pi - angle < _ALMOST_OPPOSITE) & (u.shape[1] > 1)
    sine = angle.sin()
    is_flat = is_zero | (sine < 1e-9) | opposite
    share = share.to(angle.device)
    first = torch.where(is_flat, 1 - share, ((1 - share) * angle).sin() / sine.where(~is_flat, 1.0))
    second = torch.where(is_flat, share, (share * angle).sin() / sine.where(~is_flat, 1.0))
    between = _combine(a, b, first, second)
    if bool(opposite.any()):
        length = (1 - share) * lengths[0] + share * lengths[1]
        turn = share * angle
        around = (length * turn.cos())[:, None] * u + (length * turn.sin())[:, None] * _across(u, v)  # (n d)
        around = around.to(between.dtype).to(between.device).view_as(between)
        is_inside = opposite & (share != 0) & (share != 1)
        between = torch.where(_column(is_inside, between), around, between)
    return between


def lerp(a: Tensor, b: Tensor, t: float | Sequence[float] | Tensor) -> Tensor:
    """Linear interpolation: (1-t)·a + t·b, exactly a at 0 and b at 1. Arguments, result and errors: see `slerp`."""
    a, b, share = _fit(a, b, t)
    return _combine(a, b, 1 - share, share)


BETWEEN: dict[str, Between] = {"spherical": slerp, "linear": lerp}


def _fit(a: Tensor, b: Tensor, t: Any) -> tuple[Tensor, Tensor, Tensor]:
    """a and b expanded to one shape (n, …), and t as float64 (n,)."""
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in (a, b)):
        raise TypeError("only floating-point tensors (n, …) can be interpolated")
    if a.ndim < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be interpolated: give both as (n, …), of one shape"
        )
    share = torch.as_tensor(t, dtype=torch.float64, device="cpu")
    count = max(len(a), len(b), share.numel())
    if share.ndim > 1 or len(a) not in (1, count) or len(b) not in (1, count) or share.numel() not in (1, count):
        raise ValueError(
            f"{len(a)} and {len(b)} samples and {share.numel()} values of t do not fit together: give one of each, or "
            "as many as of the others"
        )
    if not bool(share.isfinite().all()):
        raise ValueError(f"t must be finite, not {t!r:.100}")
    return a.expand(count, *a.shape[1:]), b.expand(count, *b.shape[1:]), share.expand(count)


def _exact(x: Tensor) -> Tensor:
    """A tensor in float64; it is moved to the host where the device does not have float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _combine(a: Tensor, b: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """first·a + second·b for weights (n,) and tensors (n, …), computed in float32 or float64."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    first, second = (_column(weight.to(wide).to(a.device), a) for weight in (first, second))
    return (first * a.to(wide) + second * b.to(wide)).to(dtype)


def _column(weight: Tensor, like: Tensor) -> Tensor:
    """A number for each sample, (n,), in a shape that broadcasts over a tensor (n, …)."""
    return weight.to(like.device).view(len(weight), *[1] * (like.ndim - 1))  # (n 1 …)


def _across(u: Tensor, v: Tensor) -> Tensor:
    """Unit vectors (n d) at a right angle to unit vectors u (n d), in the direction of v (n d).

    Where v is -u and so gives no direction, it is a vector that u alone decides.
    """
    rest = v - (u * v).sum(dim=1, keepdim=True) * u
    # u in reverse order, with one half negated, is at a right angle to u; and it is noise as u is noise.
    half = u.shape[1] // 2
    signs = torch.ones(u.shape[1], dtype=u.dtype, device=u.device)
    signs[half:] = -1
    signs[half : u.shape[1] - half] = 0
    mirrored = signs * u.flip(1)
    lone = torch.zeros_like(u)
    lone[:, 0] = 1  # taken where only the middle element of u is not 0, so that the reversed vector is 0
    mirrored = torch.where(mirrored.norm(dim=1, keepdim=True) < 1e-6, lone, mirrored)
    largest = mirrored.gather(1, mirrored.abs().argmax(dim=1, keepdim=True))
    mirrored = mirrored * largest.sign()  # the same for u and -u, so that paths from a to b and from b to a are one
    across = torch.where(rest.norm(dim=1, keepdim=True) < 1e-7, mirrored, rest)
    across = across - (u * across).sum(dim=1, keepdim=True) * u
    length: Tensor = across.norm(dim=1, keepdim=True)
    return across / length


# --- through several points ------------------------------------------------------------------------------------------


def path(points: Tensor, frames: int, between: Between = slerp) -> Tensor:
    """A path that leads through points, one after the other.

    Args:
        points: (p, …), two or more.
        frames: how many frames there are from each point to the next, both points included; two or more.
        between: `slerp` or `lerp`.

    Returns:
        ((p-1)·(frames-1)+1, …): all points, and `frames` - 2 frames between each two.

    Raises:
        ConfigError: there are fewer than two points or frames.
    """
    start, share = stations(len(points), frames)
    return between(points[start], points[start + 1], share)


def stations(points: int, frames: int) -> tuple[Tensor, Tensor]:
    """Where the n frames of a path lie: the point before each, and how much of the way to the next point it has.

    Args:
        points: how many points the path leads through, two or more.
        frames: how many frames there are from each point to the next, both points included; two or more.

    Returns:
        The points' numbers (n,) int64, and the shares of the way (n,) float64 in [0, 1].

    >>> [part.tolist() for part in stations(3, 3)]
    [[0, 0, 1, 1, 1], [0.0, 0.5, 0.0, 0.5, 1.0]]

    Raises:
        ConfigError: there are fewer than two points or frames.
    """
    _check_frames(frames)
    if points < 2:
        raise ConfigError(f"a path needs two or more points, not {points}")
    place = torch.arange((points - 1) * (frames - 1) + 1)
    start = (place // (frames - 1)).clamp_max(points - 2)
    return start, (place - start * (frames - 1)).double() / (frames - 1)


def grid(corners: Tensor, frames: int, between: Between = slerp) -> Tensor:
    """A square between four corners: it is interpolated down its left and its right side, and then across each row.

    Args:
        corners: (4, …): top left, top right, bottom left, bottom right.
        frames: how many frames each side has, its two corners included; two or more.
        between: `slerp` or `lerp`.

    Returns:
        (frames², …), row by row.

    Raises:
        ConfigError: there are not four corners, or fewer than two frames.
    """
    _check_frames(frames)
    if len(corners) != 4:
        raise ConfigError(f"a grid needs four corners, not {len(corners)}")
    share = torch.linspace(0, 1, frames, dtype=torch.float64)
    left, right = (between(corners[i : i + 1], corners[i + 2 : i + 3], share) for i in (0, 1))
    return between(left.repeat_interleave(frames, dim=0), right.repeat_interleave(frames, dim=0), share.repeat(frames))


def _check_frames(frames: int) -> None:
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 2:
        raise ConfigError(f"frames must be 2 or more, as both ends are counted, not {frames!r}")


# --- the points themselves -------------------------------------------------------------------------------------------


def seed_noise(pipe: Pipeline, seeds: Sequence[int], shape: Sequence[int] | None = None) -> Tensor:
    """x_T of the first picture of each seed, which `pipe(seed=…)` starts from too: (p c h w).

    Args:
        pipe: the pipeline, which says the shape, the type and the device.
        seeds: p ints of 0 or more.
        shape: of a sample, (c h w), for pictures of another size than the model's own.

    Raises:
        ValueError: a seed is below 0.
    """
    generators = seeded_generators(list(seeds), len(seeds))
    own = pipe.sample_shape(1)[1:] if shape is None else shape
    return gaussian_noise((len(seeds), *own), generators, pipe.device, pipe.dtype)


def _settle(denoiser: Denoiser, x0: Tensor, plan: SamplingPlan) -> Iterator[SampleStep]:
    """`invert_fixed_point`, as exactly as a picture can show: its shades are 2/255, about 8e-3, apart."""
    return invert_fixed_point(denoiser, x0, plan, tolerance=1e-3)


INVERSIONS = {"ddim": METHODS["ddim"], "fixed-point": dataclasses.replace(METHODS["fixed-point"], up=_settle)}


def picture_noise(
    denoiser: Denoiser,
    x0: Tensor,
    plan: SamplingPlan,
    method: Literal["ddim", "fixed-point"] = "ddim",
    notice: Notice | None = None,
) -> Tensor:
    """x_T of real pictures, (p c h w), from which the same plan leads down to them again.

    Args:
        denoiser: for `len(x0)` samples at a time, without guidance.
        x0: the pictures as `pipe.encode` gives them, (p c h w).
        plan: the plan of the way down to the pictures, as `SamplingPlan.unclipped` gives it, with η = 0.
        method: "ddim", or "fixed-point", which takes several times as long, and from whose x_T a picture comes back as
            exactly as its 256 shades can show; see `inversion`.
        notice: called after each step, with the step.

    Raises:
        ConfigError: there is no such method, or the plan cannot be inverted.
        NonFiniteError: the network gave NaN, or the iteration diverged.
    """
    if method not in INVERSIONS:
        raise ConfigError(f"method={method!r} is none of {', '.join(INVERSIONS)}")
    with torch.no_grad():
        (x,) = INVERSIONS[method].encode(denoiser, x0, plan, notice)
    return x


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw(
    plan: SamplingPlan,
    x: Tensor,
    denoisers: Denoisers,
    decode: Callable[[Tensor], list[Any]],
    *,
    batch_size: int = 16,
    progress: Callable[[], object] = lambda: None,
) -> list[Any]:
    """Draw all frames, `batch_size` at a time. How many at a time makes no difference beyond rounding.

    Args:
        plan: a plan with η = 0, as otherwise each frame would have noise of its own.
        x: x_T of each frame, (n c h w).
        denoisers: makes the denoiser for some of the frames; see `conditioned` and `mixed`.
        decode: turns samples (b c h w) into b pictures; for example `pipe.decode`.
        batch_size: how many frames are drawn at a time, 1 or more.
        progress: called after each step.

    Returns:
        n pictures.

    Raises:
        ConfigError: the plan has noise, or the batch size is below 1.
        NonFiniteError: the network gave NaN or infinity; the message names the step.
    """
    if plan.eta != 0:
        raise ConfigError(f"interpolation needs eta=0: with eta={plan.eta} each frame has noise of its own")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be 1 or more, not {batch_size!r}")
    pictures: list[Any] = []
    with torch.no_grad():
        for start in range(0, len(x), batch_size):
            frames = x[start : start + batch_size]
            denoiser = denoisers(start, start + len(frames))
            for step in sample(denoiser, frames, plan, return_x0=False):
                frames = step.sample
                progress()
            pictures += decode(frames)
    return pictures


def conditioned(
    pipe: Pipeline, plan: SamplingPlan, each: Mapping[str, Any] | None = None, **conditions: Any
) -> Denoisers:
    """A pipeline's denoiser under conditions, for some frames at a time, as `draw` needs it.

    Args:
        pipe: the pipeline.
        plan: the plan that will be run.
        each: conditions that have one entry for each of the n frames, such as {"prompt_embeds": (n s d)}.
        conditions: conditions that all frames have in common.
    """

    def some(start: int, stop: int) -> Denoiser:
        own = {name: values[start:stop] for name, values in (each or {}).items()}
        return pipe.denoiser(plan, stop - start, **own, **conditions)

    return some


def mixed(first: Denoisers, second: Denoisers, share: Tensor) -> Denoisers:
    """A denoiser between two conditions, whose prediction is (1-t)·first + t·second.

    This is for conditions that cannot be interpolated themselves, such as classes. Predictions are linear in the score,
    the gradient of the log density, so at every noise level the result is the score of the two densities' weighted
    geometric mean.

    Args:
        first, second: the denoisers under the two conditions.
        share: t in [0, 1] for each frame, (n,).
    """

    def some(start: int, stop: int) -> Denoiser:
        one, other, t = first(start, stop), second(start, stop), share[start:stop]
        return lambda x, timestep: lerp(one(x, timestep), other(x, timestep), t)

    return some
