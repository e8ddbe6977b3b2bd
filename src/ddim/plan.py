"""SamplingPlan: a whole sampler as one table of numbers.

Without clipping, every DDIM step is linear in what it is given, whatever the network predicts:

    x_prev = a·x_t + b·out + σ·z          x0 = p·x_t + q·out          eps = r·x_t + s·out

A plan holds these numbers, computed once in float64. It never changes, so threads share it. It reads as what it is, a
table: `for row in plan` gives a `Row` for each step, `plan[3]` is one of them, `plan[2:5]` are three, a notebook shows
the table, and `pandas.DataFrame(plan)` has it with a column for each field of `Row`. Running it costs a few passes over
the tensor a step. Where x0 is clipped or thresholded a step is no longer linear, and is computed as
x_prev = √ᾱ_prev·x0' + direction·eps + σ·z, from columns of the same table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from html import escape
from itertools import pairwise
from typing import Any, SupportsIndex, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.errors import ConfigError
from ddim.noise import Generators
from ddim.process import SIGMA_HAT, Eta, Order, PredictionType, ddim_step, prediction, second_order, sigma, sigma_hat
from ddim.step import DDIMSchedulerOutput, Row, check_step, clip, step_noise, take_linear_step, take_step, threshold

__all__ = ["SamplingPlan"]


@dataclass(frozen=True)
class SamplingPlan:
    """The timesteps of a run and the numbers of each step; made by `DDIMScheduler.plan`.

    Attributes:
        timesteps: in the order in which they are visited: falling, or rising for an inverse plan.
        alphas_cumprod: ᾱ of all T timesteps.
        final_alpha_cumprod: ᾱ of what lies before the lowest timestep: 1, the image itself, unless told.
        prediction_type: a key of `process.PREDICTIONS`.
        eta: η of equation 16, or "sigma_hat".
        clip_range: x0 is clamped to ± this; None leaves it.
        thresholding: (ratio, maximum) of dynamic thresholding, which takes the place of clipping; or None.
        legacy_stride: diffusers' rule, previous = t - stride; None takes the next listed timestep.
        inverse: run from the image to the noise.
        order: 1 is DDIM; 2 adds what the change of the predicted x0 since the last step says, see
            `process.second_order`. `sample` follows it; `step`, which knows of no last step, is of first order.
        leads_to: the timestep that the last step leads to, below all others: -1 is the image itself, and a higher one
            leaves the rest of the way to another run, as `part` does.

    Raises:
        ConfigError: timesteps that are not in order or not in range, or settings under which a step has no finite
            result; names the setting that would work.
    """

    timesteps: tuple[int, ...]
    alphas_cumprod: tuple[float, ...] = field(repr=False)
    final_alpha_cumprod: float = 1.0
    prediction_type: PredictionType = "epsilon"
    eta: Eta = 0.0
    clip_range: float | None = None
    thresholding: tuple[float, float] | None = None
    legacy_stride: int | None = None
    inverse: bool = False
    order: Order = 1
    leads_to: int = -1

    def __post_init__(self) -> None:
        check_levels(self.alphas_cumprod, self.final_alpha_cumprod)
        _check_timesteps(self.timesteps, len(self.alphas_cumprod), self.inverse)
        _check_eta(self.eta)
        prediction(self.prediction_type)
        if self.inverse and self.eta != 0:
            raise ConfigError(f"an inverse plan is deterministic: eta must be 0, not {self.eta}")
        if self.clip_range is not None and not (_is_number(self.clip_range) and self.clip_range > 0):
            raise ConfigError(f"clip_sample_range must be a positive number, not {self.clip_range!r:.100}")
        if self.thresholding is not None:
            ratio, maximum = self.thresholding
            if not (_is_number(ratio) and _is_number(maximum) and 0 <= ratio <= 1 and maximum > 0):
                raise ConfigError(
                    "thresholding needs dynamic_thresholding_ratio in [0, 1] and a positive sample_max_value, "
                    f"not {ratio!r:.100} and {maximum!r:.100}"
                )
        stride = self.legacy_stride
        if stride is not None and (isinstance(stride, bool) or not isinstance(stride, int) or stride < 1):
            raise ConfigError(f"legacy_stride must be a positive int, not {stride!r:.100}")
        if self.order not in (1, 2) or isinstance(self.order, bool):
            raise ConfigError(f"order must be 1 or 2, not {self.order!r:.100}")
        if self.order == 2 and (self.eta != 0 or self.inverse or stride is not None):
            raise ConfigError("order=2 is for a plan from noise to image with eta=0 and no legacy_previous_timestep")
        lowest, last = min(self.timesteps), self.leads_to
        if (
            isinstance(last, bool)
            or not isinstance(last, int)
            or not -1 <= last < lowest
            or (self.inverse and last >= 0)
        ):
            raise ConfigError(
                f"leads_to must be -1 or, in a plan from noise to image, a timestep below {lowest}, not {last!r:.100}"
            )
        _ = self._by_timestep  # every step can be made; and a step that is being compiled could not make this table

    # --- the table ---------------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The listed steps, in order."""
        return tuple(self._made(np.array(self.timesteps)))

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.timesteps)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Row | tuple[Row, ...]:
        """The step of a place in the run; `row` finds a step by its timestep.

        A slice gives rows, as they are in this plan, and not a plan: among other timesteps a step would lead somewhere
        else, and so be another one. A plan of some of the timesteps is made by `shortened` or by the scheduler's
        `plan(timesteps=…)`.

        Raises:
            IndexError: there is no such place.
            TypeError: it is no place, such as the text or number of a timestep.
        """
        try:
            return self.rows[index]
        except IndexError:
            raise IndexError(
                f"there is no step {index!r} in a plan of {len(self)}, whose steps are 0 to {len(self) - 1}; "
                "plan.row(timestep) finds a step by its timestep"
            ) from None
        except TypeError:
            raise TypeError(f"a plan is indexed by an int or a slice, such as plan[3], not by {index!r:.100}") from None

    def row(self, timestep: int) -> Row:
        """The step at one timestep, listed or not.

        Raises:
            ConfigError: the timestep is out of range, or no step can be made at it.
        """
        known = self._by_timestep.get(timestep)
        if known is None:
            if not 0 <= timestep < len(self.alphas_cumprod):
                raise ConfigError(f"timestep {timestep} is not in 0…{len(self.alphas_cumprod) - 1}")
            (known,) = self._made(np.array([timestep]))
            self._by_timestep[timestep] = known
        return known

    @cached_property
    def _by_timestep(self) -> dict[int, Row]:
        return {row.timestep: row for row in self.rows}

    def _made(self, timesteps: NDArray[np.int64]) -> Iterator[Row]:
        for timestep, previous, *numbers in self._columns(timesteps).tolist():
            if not all(map(math.isfinite, numbers)):
                raise ConfigError(self._why_not(int(timestep)))
            yield Row(int(timestep), int(previous), *numbers)

    def _columns(self, timesteps: NDArray[np.int64]) -> NDArray[np.float64]:
        """The columns of `Row` for some timesteps, shape (n, 16); not finite where a step cannot be made."""
        levels = np.array([*self.alphas_cumprod, self.final_alpha_cumprod])  # index -1 is past the end
        previous = self._previous[timesteps]
        here, there = levels[timesteps], levels[previous]
        if self.inverse:
            here, there = there, here
        kind = prediction(self.prediction_type)
        with np.errstate(divide="ignore", invalid="ignore"):
            direction, deviation = np.sqrt(1 - there), np.zeros_like(here)
            if self.eta != 0:
                eta = 1.0 if isinstance(self.eta, str) else self.eta
                # 1-ᾱ_prev-σ² as a product: the difference would lose its digits where η=1 and ᾱ is small
                kept = np.where(here == there, 1.0, here * (1 - there) / (there * (1 - here)))
                direction = np.sqrt((1 - there) * (1 - eta**2 + eta**2 * kept))
                # σ̂ is the larger noise, in the direction of the smaller
                noise = sigma_hat(here, there) if self.eta == SIGMA_HAT else sigma(here, there, eta)
                deviation = np.where(here == there, 0.0, noise)
            p, q = kind.x0(here)
            r, s = kind.eps(here)
            row = Row(
                timestep=timesteps,
                previous_timestep=previous,
                alpha_bar=here,
                alpha_bar_prev=there,
                a=ddim_step(p, r, there, direction=direction),
                b=ddim_step(q, s, there, direction=direction),
                sigma=deviation,
                p=p,
                q=q,
                r=r,
                s=s,
                signal_rate=np.sqrt(here),
                noise_rate=np.sqrt(1 - here),
                signal_rate_prev=np.sqrt(there),
                direction=direction,
                carried=self._carried(timesteps),
            )
        return np.stack(np.broadcast_arrays(*row), axis=1)

    @cached_property
    def _previous(self) -> NDArray[np.int64]:
        """The previous timestep of every timestep 0…T-1: the next lower listed one; negative past the end."""
        every = np.arange(len(self.alphas_cumprod))
        if self.legacy_stride is not None:
            return np.maximum(every - min(self.legacy_stride, len(every)), -1)
        listed = np.array([-1, *([self.leads_to] if self.leads_to >= 0 else []), *sorted(self.timesteps)])
        return np.asarray(listed[np.searchsorted(listed, every) - 1])

    def _carried(self, timesteps: NDArray[np.int64]) -> NDArray[np.float64]:
        """The last column of `Row` for some timesteps."""
        shares = np.zeros(len(timesteps))
        if self.order == 2:
            levels = (*self.alphas_cumprod, self.final_alpha_cumprod)
            listed = {t: (before, t) for before, t in pairwise(self.timesteps)}
            for place, timestep in enumerate(timesteps.tolist()):
                if timestep in listed:
                    before, here = listed[timestep]
                    shares[place] = second_order(levels[before], levels[here], levels[self._previous[here]])
        return shares

    def _row_for(self, timestep: int | Tensor, sample: Tensor, dtype: torch.dtype, rederive: bool) -> Row:
        """One `Row`: of floats for a timestep on the host, of tensors (b 1 …) for those on a device or for a batch.

        Args:
            rederive: eps is to be derived from x0.
        """
        value: Any = timestep
        if isinstance(timestep, Tensor):
            if timestep.numel() != 1 or not timestep.is_cpu or torch.compiler.is_compiling():
                return self._device_row(timestep, sample, dtype, rederive)
            value = timestep.item()
        if type(value) is int:
            row = self._by_timestep.get(value)
            if row is not None and not rederive:  # as in every loop on the host
                return row
        elif not isinstance(value, np.integer):
            raise TypeError(f"a timestep must be an integer, not {value!r:.100}")
        return self._host_row(int(value), rederive)

    def _host_row(self, timestep: int, rederive: bool) -> Row:
        row = self.row(timestep)
        if rederive and row.noise_rate == 0:
            raise ConfigError(
                f"at timestep {timestep} the sample has no noise (alphas_cumprod is 1), so none can be derived from "
                "its clipped x0: use use_clipped_model_output=False"
            )
        return row

    def _device_row(self, timestep: Tensor, sample: Tensor, dtype: torch.dtype, rederive: bool) -> Row:
        if timestep.is_floating_point() or timestep.is_complex() or timestep.dtype == torch.bool:
            raise TypeError(f"a timestep must be an integer, not {timestep.dtype}")
        if timestep.ndim > 1 or (timestep.ndim == 1 and len(timestep) not in (1, *sample.shape[:1])):
            raise ValueError(
                f"timesteps of shape {tuple(timestep.shape)} do not fit a sample of shape {tuple(sample.shape)}: "
                "give one, or one for each sample of the batch"
            )
        if timestep.is_cpu and not torch.compiler.is_compiling():
            for value in timestep.tolist():
                self._host_row(value, rederive)
        table = self._device_table(sample.device, dtype)
        chosen = table.index_select(0, timestep.reshape(-1).to(sample.device, torch.int64))  # (b 16) or (1 16)
        return Row(*chosen.view(*chosen.shape, *[1] * (sample.ndim - 1)).unbind(1))

    def _device_table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The rows of all T timesteps on a device, (T 16), kept there after the first use."""
        key = (device, dtype)
        tables: dict[tuple[torch.device, torch.dtype], Tensor] = self.__dict__.setdefault("_tables", {})
        if key not in tables:
            tables[key] = _table_of(self).to(dtype).to(device)
        return tables[key]

    def _why_not(self, timestep: int) -> str:
        previous = int(self._previous[timestep])
        levels = (*self.alphas_cumprod, self.final_alpha_cumprod)
        here = levels[previous if self.inverse else timestep]
        if here == 0 and self.prediction_type == "epsilon":
            return (
                f"at timestep {timestep} the sample is pure noise (alphas_cumprod is 0, as rescale_betas_zero_snr "
                "makes it), from which a predicted epsilon tells nothing of the image: use "
                "prediction_type='v_prediction' or 'sample' with a model trained for it, or "
                "rescale_betas_zero_snr=False"
            )
        if here == 1 and self.prediction_type == "sample":
            return (
                f"at timestep {timestep} there is no noise to predict from a 'sample' prediction: use "
                "set_alpha_to_one=False for inversion, or a schedule whose first beta is not 0"
            )
        return (
            f"eta={self.eta} asks at timestep {timestep} for more noise than the step to {previous} has room for "
            "(1 - alphas_cumprod_prev - sigma² is negative): use eta in [0, 1], or 'sigma_hat'"
        )

    # --- stepping ----------------------------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_x0: bool = True,
        out: tuple[Tensor, Tensor | None] | None = None,
    ) -> DDIMSchedulerOutput:
        """One step from `timestep` to the previous one (equation 12). Half precision is computed in float32.

        Args:
            model_output: what the network predicted, (batch, …).
            timestep: an int, or a tensor of none or one dimension with one value or one for each sample. One that the
                plan does not list steps to the next lower listed one.
            sample: x_t, of the same shape.
            use_clipped_model_output: derive eps anew from the clipped x0.
            generator: of the noise, if eta is not 0; one, or a list with one for each sample.
            variance_noise: the noise itself, instead.
            return_x0: also return the predicted x0.
            out: buffers `(prev_sample, pred_original_sample or None)` to write into, of the sample's shape; the first
                may be `sample` itself.

        Raises:
            ValueError, TypeError: shapes or types that do not fit; generator and variance_noise together.
            ConfigError: a timestep out of range, or one at which these settings have no finite result.
        """
        dtype, wide = check_step(model_output, sample)
        clip = self.clipping
        noise = None
        if self.eta != 0:
            noise = step_noise(model_output, generator, variance_noise)
        row = self._row_for(timestep, sample, wide, use_clipped_model_output and clip is not None)
        if out is None and wide is dtype and clip is None:  # what most steps are, with nothing to decide
            return take_linear_step(row, model_output, sample, noise, return_x0)
        return take_step(
            row,
            model_output,
            sample,
            dtype,
            wide,
            noise=noise,
            clip=clip,
            output_is_eps=self.prediction_type == "epsilon",
            use_clipped_model_output=use_clipped_model_output,
            return_x0=return_x0,
            out=out,
        )

    @property
    def clipping(self) -> Callable[[Tensor], Tensor] | None:
        """What clips or thresholds a predicted x0, to which it may write; None for a plan that does neither."""
        return None if self.clip_range is None and self.thresholding is None else self._clip

    def _clip(self, original: Tensor) -> Tensor:
        if self.thresholding is not None:
            return threshold(original, *self.thresholding, out=None if original.requires_grad else original)
        assert self.clip_range is not None
        return clip(original, self.clip_range)

    # --- other views of it -------------------------------------------------------------------------------------------

    @property
    def previous_timesteps(self) -> tuple[int, ...]:
        """Where each step leads (an inverse plan: comes from); -1 is past the lowest timestep: the image itself."""
        return tuple(row.previous_timestep for row in self.rows)

    @property
    def alpha_bars(self) -> tuple[tuple[float, float], ...]:
        """(ᾱ before the step, ᾱ after it) of each listed step."""
        return tuple((row.alpha_bar, row.alpha_bar_prev) for row in self.rows)

    @property
    def carried(self) -> tuple[float, ...]:
        """How much of the change of the predicted x0 since the last step each step adds: 0 at first order."""
        return tuple(row.carried for row in self.rows)

    def with_eta(self, eta: Eta) -> SamplingPlan:
        """The same plan with another η; made once."""
        _check_eta(eta)
        plans: dict[Eta, SamplingPlan] = self.__dict__.setdefault("_with_eta", {})
        if eta not in plans:
            plans[eta] = replace(self, eta=eta)
        return plans[eta]

    def unclipped(self) -> SamplingPlan:
        """The plan without clipping and thresholding: the ODE that inversion follows, which clipping leaves."""
        return replace(self, clip_range=None, thresholding=None)

    def shortened(self, strength: float) -> SamplingPlan:
        """The last steps of the plan, a share `strength` of them: a run that begins at a picture, not at pure noise.

        Of N steps, the last int(N · strength) are left. The product is rounded down because diffusers rounds it down
        (`get_timesteps` of its pipelines for image to image and inpainting), so that a strength means as many steps
        here as there.

        Raises:
            ConfigError: the strength is no number in [0, 1], or it is so small that no step is left.
        """
        if not (_is_number(strength) and 0 <= strength <= 1):
            raise ConfigError(
                f"strength must be a number in [0, 1], the share of the steps to make, not {strength!r:.50}"
            )
        steps = int(len(self) * strength)
        if not steps:
            smallest = math.ceil(10_000 / len(self)) / 10_000  # 1/N, rounded up: N · (1/N) may be just below 1
            raise ConfigError(f"strength={strength} leaves none of {len(self)} steps: give {smallest:g} or more")
        return replace(self, timesteps=self.timesteps[-steps:])

    def part(self, start: float | None = None, end: float | None = None) -> SamplingPlan:
        """The steps between two shares of the way from noise to image, for networks that go parts of it in turn.

        `plan.part(end=0.8)` ends where `plan.part(start=0.8)` begins, and together they make the steps of `plan`. The
        shares are of the T training timesteps, as in diffusers: the first part has the timesteps from
        round(T - end·T) on, the second one those below.

        Args:
            start: in [0, 1); None is the beginning.
            end: in (0, 1]; None is the image.

        Raises:
            ConfigError: the shares are no numbers in these ranges or in this order, or no step is left between them.
        """
        for name, share in (("start", start), ("end", end)):
            inside = share is None or (_is_number(share) and 0 <= share <= 1 and share != (name == "start"))
            if not inside:
                ends = "[0, 1)" if name == "start" else "(0, 1]"
                raise ConfigError(f"denoising_{name} must be a number in {ends}, a share of the way, not {share!r:.50}")
        if start is not None and end is not None and start >= end:
            raise ConfigError(f"denoising_start={start:g} must be below denoising_end={end:g}")
        total = len(self.alphas_cumprod)
        highest = total if start is None else round(total - start * total)  # the first timestep is below it
        lowest = 0 if end is None else round(total - end * total)
        chosen = tuple(timestep for timestep in self.timesteps if lowest <= timestep < highest)
        if not chosen:
            raise ConfigError(
                f"no step of {len(self)} is between denoising_start={start or 0:g} and denoising_end="
                f"{1 if end is None else end:g}: make more steps, or move the shares apart"
            )
        later = [timestep for timestep in self.timesteps if timestep < lowest]
        return replace(self, timesteps=chosen, leads_to=max(later, default=self.leads_to))

    def inverted(self) -> SamplingPlan:
        """The plan over the reversed pairs of ᾱ: from the image to the noise, or back again."""
        return replace(self, timesteps=self.timesteps[::-1], eta=0.0, inverse=not self.inverse, order=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as JSON holds them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingPlan:
        """The plan that `to_dict` gave.

        Raises:
            ConfigError: keys that are missing or unknown, or values that make no plan.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping) or not {"timesteps", "alphas_cumprod"} <= set(values) <= names:
            raise ConfigError(f"a plan's dict has the keys {', '.join(sorted(names))}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"a plan cannot be made of this dict: {error}") from error

    def _title(self) -> str:
        clip = "no" if self.clip_range is None else f"±{self.clip_range:g}"
        if self.thresholding is not None:
            clip = f"quantile {self.thresholding[0]:g}, at most {self.thresholding[1]:g}"
        return (
            f"SamplingPlan: {len(self)} {'inverse ' if self.inverse else ''}steps of {len(self.alphas_cumprod)}, "
            f"{self.prediction_type}, eta {self.eta}, clipping {clip}{', second order' if self.order == 2 else ''}"
        )

    def __repr__(self) -> str:
        head = f"{'t':>5} {'prev':>5} {'ᾱ':>10} {'ᾱ prev':>10} {'a':>10} {'b':>10} {'σ':>9} {'p':>10} {'q':>10}"
        lines = [
            f"{row.timestep:>5} {row.previous_timestep:>5} {row.alpha_bar:>10.6f} {row.alpha_bar_prev:>10.6f} "
            f"{row.a:>10.6f} {row.b:>10.6f} {row.sigma:>9.6f} {row.p:>10.5g} {row.q:>10.5g}"
            for row in self
        ]
        return "\n".join([self._title(), head, *_both_ends(lines, "  … {} more …")])

    def _repr_html_(self) -> str:
        """The table as a notebook shows it; it has no colours of its own, so that it suits dark pages too."""
        names = "timestep previous_timestep alpha_bar alpha_bar_prev a b sigma p q".split()
        heads = "t|previous t|ᾱ|ᾱ prev|a|b|σ|p|q".split("|")
        if self.order == 2:
            names, heads = [*names, "carried"], [*heads, "second-order share"]
        head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
        lines = ["".join(f"<td>{getattr(row, name):.6g}</td>" for name in names) for row in self]
        gap = f'<td colspan="{len(names)}" style="text-align: center">… {{}} more …</td>'
        body = "\n".join(f"<tr>{line}</tr>" for line in _both_ends(lines, gap))
        return (
            '<table style="text-align: right; font-variant-numeric: tabular-nums">\n'
            f'<caption style="text-align: left">{escape(self._title())}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        )


def _both_ends(lines: list[str], gap: str) -> list[str]:
    """All lines of a table; of more than 60, the first and last 20 around a line that says how many are left out."""
    return lines if len(lines) <= 60 else [*lines[:20], gap.format(len(lines) - 40), *lines[-20:]]


def _table_of(plan: SamplingPlan) -> Tensor:
    """The rows of all T timesteps, (T 16) float64; not finite where a step cannot be made."""
    return torch.from_numpy(plan._columns(np.arange(len(plan.alphas_cumprod))))


# For a step that is being compiled this is a constant, and numpy is not traced. `torch.compiler.assume_constant_result`
# sets the same mark, but imports the compiler for it, which takes most of a second.
_table_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_number(value: Any) -> bool:
    """Whether a value is a number, and no int that no float is as large as."""
    is_float = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1023)
    return is_float and not isinstance(value, bool)


def check_levels(alphas_cumprod: Sequence[float], final: float) -> None:
    levels = np.array([final, *alphas_cumprod])
    if levels.dtype.kind not in "iuf" or not ((levels >= 0) & (levels <= 1)).all():
        raise ConfigError("alphas_cumprod and final_alpha_cumprod must be numbers in [0, 1]")
    if (levels[2:] > levels[1:-1]).any():
        raise ConfigError("alphas_cumprod must fall: a later timestep has no less noise than an earlier one")


def _check_timesteps(timesteps: Sequence[int], steps: int, inverse: bool) -> None:
    if not timesteps:
        raise ConfigError("a plan needs at least one timestep")
    if any(isinstance(t, bool) or not isinstance(t, int) for t in timesteps):
        raise ConfigError(f"timesteps must be ints, not {timesteps!r:.200}")
    if not all(0 <= t < steps for t in timesteps):
        raise ConfigError(f"timesteps must be in 0…{steps - 1}: {min(timesteps)}…{max(timesteps)} are not")
    order = sorted(set(timesteps), reverse=not inverse)
    if list(timesteps) != order:
        raise ConfigError(f"timesteps must {'rise' if inverse else 'fall'} strictly: {timesteps!r:.200}")


def as_eta(eta: Any) -> Eta:
    """η as a float or "sigma_hat", from any number, or an array or tensor of one; what is none of these as it is."""
    if type(eta) is float or isinstance(eta, (str, bool)):
        return cast(Eta, eta)
    if hasattr(eta, "item") and getattr(eta, "ndim", 1) == 0:
        eta = eta.item()
    result: Eta = float(eta) if type(eta) is int and _is_number(eta) else eta
    return result


def _check_eta(eta: Eta) -> None:
    if eta == SIGMA_HAT:
        return
    if not _is_number(eta) or not 0 <= eta < math.inf:
        raise ConfigError(f"eta must be a number of 0 or more, or 'sigma_hat', not {eta!r:.100}")
