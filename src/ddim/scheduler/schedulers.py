"""DDIMScheduler and DDIMInverseScheduler, and what they share: plans, the forward process, what pipelines expect."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, overload

import numpy as np
import torch
from torch import Tensor

from ddim.checkpoint.config import DIFFUSERS_VERSION, Config, LiveConfig, register_to_config
from ddim.checkpoint.pretrained import PretrainedMixin
from ddim.errors import ConfigError
from ddim.plan import SamplingPlan, as_eta
from ddim.process import Eta, Order, PredictionType, sigma
from ddim.schedule import BetaSchedule, Spacing, as_timesteps, is_part, make_alphas_cumprod, make_betas, space_timesteps
from ddim.scheduler.identity import Home, KnownToDiffusers, classes_of_diffusers
from ddim.scheduler.levels import Fixed, Levels
from ddim.scheduler.methods import OF_A_RUN, OF_A_STEP, PlanOfMethods, step_by_methods
from ddim.scheduler.recommended import KEYS, OF_STEPS
from ddim.step import DDIMSchedulerOutput, threshold

__all__ = ["DDIMInverseScheduler", "DDIMScheduler"]

# Settings of the other schedulers whose configs a DDIMScheduler accepts. They have no effect, but are kept and saved.
_FOREIGN = """
algorithm_type disable_corrector euler_at_final final_sigmas_type flow_shift interpolation_type lambda_min_clipped
lower_order_final predict_x0 rho shift_terminal sigma_data sigma_max sigma_min sigma_schedule skip_prk_steps
solver_order solver_p solver_type time_shift_type timestep_type use_beta_sigmas use_dynamic_shifting
use_exponential_sigmas use_flow_sigmas use_karras_sigmas use_lu_lambdas variance_type noise_sampler_seed snr_shift_scale
""".split()
# The classes of diffusers whose configs a DDIMScheduler accepts.
_COMPATIBLE = """
DDIMScheduler DDPMScheduler PNDMScheduler LMSDiscreteScheduler EulerDiscreteScheduler HeunDiscreteScheduler
EulerAncestralDiscreteScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler KDPM2DiscreteScheduler
KDPM2AncestralDiscreteScheduler DEISMultistepScheduler UniPCMultistepScheduler DPMSolverSDEScheduler EDMEulerScheduler
""".split()
# Entries of the config that have had their effect when the scheduler was made, and what to do instead.
_FIXED = dict.fromkeys(
    "num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr".split(),
    "make another scheduler with from_config(scheduler.config, …), or assign scheduler.alphas_cumprod",
)
# Settings by which the config of a scheduler without betas is known, if it does not name its class.
_OF_OTHER_NOISE = ("rho", "shift", "sigma_data", "sigma_max", "sigma_min")
_KEPT_PLANS = 16  # of different numbers of steps, by `set_timesteps`


class _Scheduler(KnownToDiffusers, PretrainedMixin):
    """What the two schedulers share.

    Whatever can be assigned (`timesteps`, `num_inference_steps`, `alphas_cumprod`, `final_alpha_cumprod`, an entry of
    `config`) is followed from the next step on, as in diffusers, by a plan that is made anew; what would have no effect
    is refused.
    """

    config_name: ClassVar[str] = "scheduler_config.json"
    foreign_keys: ClassVar[frozenset[str]] = frozenset(_FOREIGN)
    own_keys: ClassVar[frozenset[str]] = frozenset({"legacy_previous_timestep", "optimized_timesteps"}) | KEYS
    order: ClassVar[int] = 1
    has_compatibles: ClassVar[bool] = True
    _deprecated_kwargs: ClassVar[list[str]] = []
    _compatibles: ClassVar[list[str]] = _COMPATIBLE
    _inverse: ClassVar[bool] = False

    init_noise_sigma = 1.0

    # The methods that are not ours: of a step, and of a run.
    _replaced: frozenset[str] = frozenset()
    _replaced_of_a_run: frozenset[str] = frozenset()

    @classmethod
    def make_config(cls, values: Mapping[str, Any]) -> Config:
        named = {"_class_name": cls.__name__, "_diffusers_version": DIFFUSERS_VERSION}
        return LiveConfig({**values, **named}, fixed=_FIXED)

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        _check_betas(config, cls.__name__)

    @classmethod
    def _sort_settings(
        cls, config: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """As of any config; but another spacing than the recommended one is not for the steps that were recommended."""
        spacing = overrides.get("timestep_spacing")
        suited = config.get("recommended_spacing") or config.get("timestep_spacing", "leading")
        if spacing not in (None, suited) and not OF_STEPS & set(overrides):
            config = {key: value for key, value in config.items() if key not in OF_STEPS}
        return super()._sort_settings(config, overrides)

    def _set_up(self) -> None:
        """Make the noise schedule that the config describes."""
        config = self.config
        betas = make_betas(
            config.num_train_timesteps,
            config.beta_start,
            config.beta_end,
            config.beta_schedule,
            config.trained_betas,
        )
        alphas_cumprod = make_alphas_cumprod(betas, config.rescale_betas_zero_snr)
        before = np.concatenate([[1.0], alphas_cumprod[:-1]])
        alphas = np.divide(alphas_cumprod, before, out=np.zeros_like(before), where=before > 0)
        self._levels = Levels.of(alphas_cumprod, config.set_alpha_to_one)
        self._betas = Fixed("betas", torch.from_numpy(1 - alphas).float())
        self._alphas = Fixed("alphas", torch.from_numpy(alphas).float())
        self._num_inference_steps: int | None = None
        every = range(config.num_train_timesteps)
        self._timesteps = torch.tensor(every if self._inverse else every[::-1])
        self._planned: SamplingPlan | None = None
        self._planned_from = self._state()
        self._kept: dict[int, SamplingPlan] = {}  # by N, of the same state as `_planned`

    # --- plans -------------------------------------------------------------------------------------------------------

    def plan(
        self,
        num_inference_steps: int | None = None,
        *,
        eta: Eta = 0.0,
        timesteps: Sequence[int] | Tensor | None = None,
        order: Order = 1,
        spacing: Spacing | Literal["optimized"] | None = None,
    ) -> SamplingPlan:
        """The table of a run, made from `config` as it is now. The scheduler is not changed.

        Args:
            num_inference_steps: N, from 1 to `num_train_timesteps`; `config.timestep_spacing` says which timesteps.
            eta: η of equation 16, in [0, 1], or "sigma_hat".
            timesteps: the timesteps themselves, instead of N: all different, in the order of the run.
            order: 1 is DDIM. 2 is a multistep method of second order, for eta=0, which evaluates the network as often
                and follows the ODE more closely.
            spacing: which N timesteps, instead of what `config.timestep_spacing` says.

        Raises:
            ConfigError: N, the timesteps or the settings cannot work; the message names a setting that would.
        """
        if spacing is not None and spacing != self.config.timestep_spacing:
            spaced = copy.copy(self)
            spaced._kept = {}
            spaced.register_to_config(timestep_spacing=spacing)
            return spaced.plan(num_inference_steps, eta=eta, timesteps=timesteps, order=order)
        if not self._replaced_of_a_run:
            return self._plan(num_inference_steps, eta, timesteps, order)
        own = copy.copy(self)  # a method of somebody else's may change what it likes
        own._kept = {}
        if num_inference_steps is not None:
            own.set_timesteps(num_inference_steps)
        listed = own.timesteps if timesteps is None else timesteps
        stride = None if own._planned is None else own._planned.legacy_stride
        return PlanOfMethods.of(own._plan(eta=eta, timesteps=listed, order=order, stride=stride), own)

    def _plan(
        self,
        num_inference_steps: int | None = None,
        eta: Eta = 0.0,
        timesteps: Any = None,
        order: Order = 1,
        stride: int | None = None,
    ) -> SamplingPlan:
        config = self.config
        if (num_inference_steps is None) == (timesteps is None):
            raise ConfigError("give either num_inference_steps or timesteps")
        total = config.num_train_timesteps
        if timesteps is not None:
            chosen = as_timesteps(timesteps)
        elif config.timestep_spacing == "optimized":
            chosen = self._optimized(num_inference_steps)
        else:
            assert num_inference_steps is not None
            chosen = space_timesteps(num_inference_steps, total, config.timestep_spacing, config.steps_offset)
        if timesteps is None and self._inverse:
            chosen = chosen[::-1]
        thresholding = None
        if config.get("thresholding") and not self._inverse:
            thresholding = (config.dynamic_thresholding_ratio, config.sample_max_value)
        if stride is None and config.get("legacy_previous_timestep"):
            stride = total // max(1, len(chosen) if num_inference_steps is None else num_inference_steps)
        for tensor in (self._betas, self._alphas):
            if not tensor.is_unchanged():
                raise ConfigError(tensor.refusal())
        return SamplingPlan(
            timesteps=chosen,
            alphas_cumprod=self._levels.numbers(),
            final_alpha_cumprod=self._levels.final(),
            prediction_type=config.prediction_type,
            eta=as_eta(eta),
            clip_range=config.clip_sample_range if config.clip_sample else None,
            thresholding=thresholding,
            legacy_stride=stride,
            inverse=self._inverse,
            order=order,
        )

    def _optimized(self, number: Any) -> tuple[int, ...]:
        """The N timesteps that the config's `optimized_timesteps` has for N, the largest first."""
        known = self.config.get("optimized_timesteps") or {}
        if not isinstance(known, Mapping) or str(number) not in known:
            numbers = sorted(map(str, known), key=lambda n: (len(n), n)) if isinstance(known, Mapping) else []
            there = f"there are some for {', '.join(numbers)}" if numbers else "there are none yet"
            raise ConfigError(
                f"timestep_spacing='optimized' has no timesteps for num_inference_steps={number}: {there}; "
                "`ddim optimize` finds them, or use another spacing"
            )
        return as_timesteps(known[str(number)])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Make a plan for `step` to follow, and put its timesteps into `self.timesteps`.

        Args:
            num_inference_steps: N, from 1 to `num_train_timesteps`.
            device: the device of `self.timesteps`; None is the host, with which steps are fastest.
            timesteps: the timesteps themselves, instead of N.

        Raises:
            ConfigError: as `plan`.
        """
        if not self._is_current():
            self._kept = {}
        plan = self._kept.get(num_inference_steps) if timesteps is None and type(num_inference_steps) is int else None
        if plan is None:
            plan = self._plan(num_inference_steps, timesteps=timesteps)
        self._follow(plan)
        self._num_inference_steps = len(plan)
        self._timesteps = torch.tensor(plan.timesteps, device=device)
        if timesteps is None and len(self._kept) < _KEPT_PLANS:  # a robot asks for the same plan at each tick
            self._kept[int(num_inference_steps or 0)] = plan

    def _follow(self, plan: SamplingPlan) -> None:
        self._planned, self._planned_from = plan, self._state()

    def _state(self) -> tuple[Any, ...]:
        """What plans are made of, besides N: they hold as long as it is the same."""
        config, levels = self.config, self._levels
        return config, config.writes, levels, levels.alphas_cumprod._version, levels.end._version

    def _is_current(self) -> bool:
        """Whether the plan still holds; a step that is being compiled takes it that it does."""
        if torch.compiler.is_compiling():
            return True
        config, writes, levels, of_levels, of_end = self._planned_from
        now = self._internal_dict
        return (
            now is config
            and now.writes == writes
            and self._levels is levels
            and levels.alphas_cumprod._version == of_levels
            and levels.end._version == of_end
        )

    def _current_plan(self) -> SamplingPlan:
        """The plan of the run, made anew if anything that it was made of has changed.

        Raises:
            ConfigError: there is none yet, or none can be made any more.
        """
        plan = self._planned
        if plan is None:
            raise ConfigError("num_inference_steps is not set: call set_timesteps first")
        if not self._is_current():
            plan = self._plan(timesteps=plan.timesteps, stride=plan.legacy_stride)
            self._kept = {}
            self._follow(plan)
        return plan

    @property
    def timesteps(self) -> Tensor:
        """The timesteps of the run, (N,); all T of them before `set_timesteps`.

        What is assigned is what clients loop over. If it is a part of the run's list, or that repeated or in another
        order, each timestep leads where it led before. Another list makes a new plan, in which a timestep leads to the
        next lower listed one. `num_inference_steps` stays as it is, as in diffusers.
        """
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: Any) -> None:
        listed = as_timesteps(value)
        wanted = sorted(set(listed), reverse=not self._inverse)
        plan, steps = self._planned, self._num_inference_steps
        if wanted and (plan is None or not is_part(wanted, plan.timesteps)):
            stride = None
            if steps and (self.config.get("legacy_previous_timestep") or (plan and plan.legacy_stride)):
                stride = self.config.num_train_timesteps // steps
            self._follow(self._plan(timesteps=wanted, stride=stride))
        self._num_inference_steps = len(listed) if steps is None else steps
        is_kept = isinstance(value, Tensor) and not value.is_floating_point()
        self._timesteps = value if is_kept else torch.tensor(listed, dtype=torch.int64)

    @property
    def num_inference_steps(self) -> int | None:
        """N; None before `set_timesteps`. With another one assigned, each step leads T // N down, as in diffusers."""
        return self._num_inference_steps

    @num_inference_steps.setter
    def num_inference_steps(self, value: int | None) -> None:
        total = self.config.num_train_timesteps
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
            raise TypeError(f"num_inference_steps must be an int, not {value!r:.50}")
        if value is not None and not 1 <= value <= total:
            raise ConfigError(f"num_inference_steps={value} must be from 1 to num_train_timesteps={total}")
        plan, before = self._planned, self._num_inference_steps
        self._num_inference_steps = None if value is None else int(value)
        if value is None or value == before or (plan is not None and value == len(self._timesteps)):
            return
        listed = plan.timesteps if plan is not None else sorted(range(total), reverse=not self._inverse)
        self._follow(self._plan(timesteps=listed, stride=total // int(value)))

    def previous_timestep(self, timestep: int | Tensor) -> int | Tensor:
        """The timestep that a step from `timestep` leads to; -1 is the image. Before `set_timesteps`, `timestep` - 1.

        Args:
            timestep: an int, or a tensor of ints; the result is of the same kind.

        Raises:
            TypeError: the timesteps are no integers.
            ConfigError: a timestep on the host is out of range.
        """
        previous = self._current_plan()._previous if self._planned else np.arange(len(self._levels.numbers())) - 1
        wanted = self._as_indices(timestep)
        result = torch.from_numpy(previous).to(wanted.device)[wanted]
        return result if isinstance(timestep, Tensor) else int(result)

    # --- the schedule, as others see it and change it: see `levels` --------------------------------------------------

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of every timestep, (T,) float32; plans use the float64 values that it was rounded from.

        It may be moved to a device or converted, and then means what it meant. Other values, assigned or written into
        it, are followed from the next step on; with more or fewer of them, there are so many timesteps.
        """
        return self._levels.alphas_cumprod

    @alphas_cumprod.setter
    def alphas_cumprod(self, value: Any) -> None:
        self._levels = self._levels.with_alphas_cumprod(value)

    @property
    def betas(self) -> Tensor:
        """β of every timestep, (T,) float32. It may be moved or converted, but not changed."""
        return self._betas.tensor

    @betas.setter
    def betas(self, value: Any) -> None:
        self._betas = self._betas.moved(value)

    @property
    def alphas(self) -> Tensor:
        """1 - β of every timestep, (T,) float32. It may be moved or converted, but not changed."""
        return self._alphas.tensor

    @alphas.setter
    def alphas(self, value: Any) -> None:
        self._alphas = self._alphas.moved(value)

    # --- methods that are not ours: see `methods` --------------------------------------------------------------------

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.__module__.startswith(f"{__package__}."):
            cls._replaced |= OF_A_STEP & set(vars(cls))
            cls._replaced_of_a_run |= OF_A_RUN & set(vars(cls))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OF_A_RUN:
            object.__setattr__(self, "_replaced_of_a_run", self._replaced_of_a_run | {name})
            object.__setattr__(self, "_replaced", self._replaced | OF_A_STEP & {name})
        elif name == "eta":
            raise AttributeError("eta is an argument of step, and of plan: scheduler.step(…, eta=…)")
        elif name == "_internal_dict" and not isinstance(
            value, LiveConfig
        ):  # as some pipelines of diffusers put it there
            value = self.make_config(value)
        object.__setattr__(self, name, value)

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: int | Tensor) -> Tensor:
        """x_t = √ᾱ_t x0 + √(1-ᾱ_t) ε (equation 4). Half precision is computed in float32.

        Args:
            original_samples: x0, (batch, …).
            noise: ε, of the same shape, or of one that broadcasts with it: one noise for all frames of a video is
                (batch, channels, 1, height, width).
            timesteps: t, one for all samples or one for each, (batch,): they go along the first dimension of x0.

        Returns:
            x_t, of the same shape.

        Raises:
            TypeError: samples or noise are no floating-point tensors, or the timesteps no integers.
            ValueError: the shapes do not broadcast, or the timesteps are not as many as the samples.
            ConfigError: a timestep on the host is out of range.
        """
        return self._mix(original_samples, noise, timesteps, 1.0, original_samples)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: int | Tensor) -> Tensor:
        """v = √ᾱ ε - √(1-ᾱ) x0, which a v-prediction network is trained to predict (Salimans and Ho 2022, appendix D).

        Args:
            sample: x0, (batch, …).
            noise: ε, of the same shape, or of one that broadcasts with it.
            timesteps: t, one for all samples or one for each, (batch,).

        Raises:
            TypeError, ValueError, ConfigError: as `add_noise`.
        """
        return self._mix(noise, sample, timesteps, -1.0, sample)

    def _mix(self, first: Tensor, second: Tensor, timesteps: int | Tensor, sign: float, samples: Tensor) -> Tensor:
        """√ᾱ·first + sign·√(1-ᾱ)·second; ᾱ goes along the first dimension of `samples`, which is one of the two.

        `process.add_noise` is not called, because it takes the roots of the ᾱ that it is given. A device has ᾱ in
        float32, of which 1-ᾱ has lost half of its digits at the first timesteps. The roots in the table are made of
        float64 values; and each sample's are looked up on its device, which has to wait for nothing.
        """
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            raise TypeError(f"sample and noise must be tensors, not {type(first).__name__} and {type(second).__name__}")
        if not (first.dtype.is_floating_point and second.dtype.is_floating_point):
            raise TypeError(f"sample and noise must be floating point tensors, not {first.dtype} and {second.dtype}")
        if first.device != second.device:
            raise ValueError(f"sample and noise are on {first.device} and {second.device}: move one to the other")
        dtype = torch.promote_types(first.dtype, second.dtype)
        timesteps = self._as_indices(timesteps)
        if timesteps.is_meta and not first.is_meta:
            raise ValueError("timesteps on the meta device have no values")
        _check_shapes(samples, second if samples is first else first, timesteps.numel())
        wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
        shape = (-1, *[1] * (samples.ndim - 1)) if samples.ndim else ()
        table, at = self._levels.table(first.device), timesteps.reshape(-1)
        if at.numel() == 1 and at.device.type == "cpu" and not torch.compiler.is_compiling():
            roots = table.narrow(0, int(at), 1)  # a view, as copying the timestep would make the host wait for a device
        else:
            roots = table.index_select(0, at.to(first.device))
        signal, deviation = (column.view(shape) for column in roots.to(wide).unbind(1))
        return torch.addcmul(first.to(wide) * signal, second.to(wide), sign * deviation).to(dtype)

    def _as_indices(self, timesteps: Any) -> Tensor:
        """Timesteps as an int64 tensor. Their range is checked on the host only, since a device would make us wait."""
        indices = timesteps if isinstance(timesteps, Tensor) else torch.from_numpy(np.asarray(timesteps))
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"timesteps must be integers, not {indices.dtype}")
        if indices.numel() and indices.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(indices.min()), int(indices.max())
            count = len(self._levels.numbers())
            if low < 0 or high >= count:
                raise ConfigError(f"timesteps must be in 0…{count - 1}, not {low}…{high}")
        return indices.to(torch.int64)

    # --- what pipelines expect ---------------------------------------------------------------------------------------

    @property
    def compatibles(self) -> list[type]:
        """The classes whose configs this scheduler accepts: ours, and diffusers' if diffusers has been imported."""
        return [DDIMScheduler, *classes_of_diffusers(self._compatibles)]

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The sample unchanged, since these networks take x_t as it is; other schedulers of diffusers scale it here."""
        return sample

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("_internal_dict", {})
        if name not in config or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(f"read {name} from the config: scheduler.config.{name}", FutureWarning, stacklevel=2)
        return config[name]


def _check_shapes(samples: Tensor, noise: Tensor, count: int) -> None:
    """Raise a ValueError if samples, their noise and so many timesteps do not broadcast, as they do in diffusers."""
    if samples.shape == noise.shape and count in (1, *samples.shape[:1]):
        return
    try:
        at = (count, *[1] * (samples.ndim - 1))
        torch.broadcast_shapes(samples.shape, noise.shape, at)  # type: ignore[no-untyped-call]
        fits = count == 1 or samples.ndim > 0
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"samples of shape {tuple(samples.shape)}, noise of shape {tuple(noise.shape)} and {count} timesteps do "
            "not fit: give noise of the samples' shape, or of one that broadcasts with it, and one timestep or one "
            "for each sample"
        )


def _check_betas(config: Mapping[str, Any], own_name: str) -> None:
    """Raise a ConfigError if a config is of a scheduler whose noise is not that of its betas, or of a flow.

    Such a config (of EDM, Stable Audio, UnCLIP, flow matching) would otherwise be filled up with default betas, on
    which its network was not trained. CogVideoX has betas, but changes what is made of them.
    """
    named = config.get("_class_name", own_name)
    if "_class_name" not in config and any(config.get(key) is not None for key in _OF_OTHER_NOISE):
        named = "scheduler of another kind"  # diffusers' objects do not say it in their configs
    if config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas") or "FlowMatch" in str(named):
        raise ConfigError(
            f"the config is of a {named!s:.100} for flow matching, which DDIM does not sample: draw it in diffusers, "
            "with its own scheduler"
        )
    shift = config.get("snr_shift_scale", 3.0 if str(named).startswith("CogVideoX") else 1)  # as its classes have it
    if shift is not None and shift != 1:
        raise ConfigError(
            f"the config (of a {named!s:.100}) has snr_shift_scale={shift!r:.50}, which shifts the noise away from "
            "that of its betas and is not implemented: draw it in diffusers, with its own scheduler, or leave the "
            "setting out and assign the shifted levels: scheduler.alphas_cumprod = its.alphas_cumprod"
        )
    has_betas = {"beta_start", "beta_schedule"} & set(config) or config.get("trained_betas") is not None
    if not has_betas and named not in ("DDIMScheduler", "DDIMInverseScheduler", own_name):
        raise ConfigError(
            f"the config is of a {named!s:.100}, which has no betas that DDIM could use (as in EDM, its levels of "
            "noise are no table of timesteps): draw it in diffusers, with its own scheduler"
        )


class DDIMScheduler(_Scheduler):
    """Denoising diffusion implicit models (Song, Meng, Ermon 2020), with diffusers' interface.

    Args:
        num_train_timesteps: T, the number of timesteps that the model was trained with.
        beta_start: the first β, in [0, 1].
        beta_end: the last β, in [0, 1].
        beta_schedule: how β grows: "linear", "scaled_linear" or "squaredcos_cap_v2"; see `ddim.schedule`.
        trained_betas: T betas, used instead of the last three.
        clip_sample: clamp the predicted x0 to ± `clip_sample_range`. This is for pixels, not for latents.
        set_alpha_to_one: the last step leads to ᾱ = 1, which is the image itself; otherwise to ᾱ_0.
        steps_offset: is added to the timesteps of "leading", 0 or more; Stable Diffusion has 1.
        prediction_type: what the network predicts: "epsilon", "sample" or "v_prediction".
        thresholding: use dynamic thresholding of the predicted x0 (Saharia et al. 2022) instead of clipping.
        dynamic_thresholding_ratio: the quantile of |x0| that is the threshold, in [0, 1].
        clip_sample_range: the largest |x0| that `clip_sample` leaves.
        sample_max_value: the largest threshold of dynamic thresholding, which is positive.
        timestep_spacing: which timesteps a run uses: "leading", "trailing", "linspace", "quadratic" or "optimized".
        rescale_betas_zero_snr: change the schedule so that the last timestep is pure noise (Lin et al. 2024). That
            needs a network that predicts v or x0.
        legacy_previous_timestep: step to t - T//N as diffusers does, even where that is not the run's next timestep.
        optimized_timesteps: for "optimized", {"N": the N timesteps that a search found}; see `ddim.search`.
        recommended_steps: the number of steps that suits the model. Pipelines and commands use it, with the next two,
            where they are told neither the number nor the order of the steps; see `scheduler.recommended`.
        recommended_order: the order of these steps, 1 or 2.
        recommended_spacing: which timesteps they are at, where `timestep_spacing` says what diffusers is to use.
        recommended_guidance_scale: the guidance that suits the model; 1 for one that has learnt its guidance.
        recommended_guidance_rescale: φ in [0, 1] beside it.
        trained_timesteps: the only timesteps that the network was trained at, if it was distilled for few steps. A run
            at others works, and warns.

    Raises:
        ConfigError: no noise schedule can be made of these settings. Those that cannot work for other reasons, such as
            zero terminal SNR with "epsilon", are refused by `plan`, so that they can be loaded, changed and saved.
    """

    __module__ = Home(__name__)
    diffusers_class: ClassVar[str] = "DDIMScheduler"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: BetaSchedule = "linear",
        trained_betas: Sequence[float] | np.ndarray[Any, Any] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: PredictionType = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Spacing | Literal["optimized"] = "leading",
        rescale_betas_zero_snr: bool = False,
        legacy_previous_timestep: bool = False,
        optimized_timesteps: Mapping[str, Sequence[int]] | None = None,
        recommended_steps: int | None = None,
        recommended_order: Order | None = None,
        recommended_spacing: Spacing | Literal["optimized"] | None = None,
        recommended_guidance_scale: float | None = None,
        recommended_guidance_rescale: float | None = None,
        trained_timesteps: Sequence[int] | None = None,
    ) -> None:
        self._set_up()

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """ᾱ past the lowest timestep, (): 1, the image, or ᾱ_0. The last step ends on what is assigned."""
        return self._levels.end

    @final_alpha_cumprod.setter
    def final_alpha_cumprod(self, value: Any) -> None:
        self._levels = self._levels.with_end(value)

    @overload
    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: Any = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        *,
        return_dict: Literal[False],
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: Any = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: Literal[True] = True,
    ) -> DDIMSchedulerOutput: ...
    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: Any = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step from `timestep` to the one before it (equation 12). The scheduler is not changed.

        Under `torch.compile`, give the timestep as a tensor. If `eta` is not 0, make one step with it before compiling,
        or compile the step of `plan(N, eta=eta)` instead.

        Args:
            model_output: what the network predicted, (batch, …).
            timestep: t: an int, a tensor (), or one for each sample, (batch,).
            sample: x_t, of the same shape.
            eta: η in [0, 1], or "sigma_hat".
            use_clipped_model_output: compute eps again from x_t and the clipped x0.
            generator: draws the noise if `eta` is not 0: one generator, or a list with one for each sample.
            variance_noise: the noise itself, of the same shape, instead.
            return_dict: False gives a plain tuple (prev_sample, pred_original_sample).

        Returns:
            x_prev and the predicted x0, both of the sample's shape.

        Raises:
            ValueError, TypeError, ConfigError: see `SamplingPlan.step`.
        """
        plan = self._current_plan()
        if type(eta) is not float:
            eta = as_eta(eta)
        if self._replaced:  # by a subclass, of whose methods one is part of a step
            arguments = (model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise)
            result = step_by_methods(self, *arguments)
            return result if return_dict else tuple(result)
        if eta != plan.eta:
            plan = plan.with_eta(eta)
        result = plan.step(
            model_output,
            timestep,
            sample,
            use_clipped_model_output=use_clipped_model_output,
            generator=generator,
            variance_noise=variance_noise,
        )
        return result if return_dict else tuple(result)

    def _get_variance(self, timestep: int, prev_timestep: int) -> Tensor:
        """σ² at η = 1 (equation 16) of a step between any two timesteps; a negative `prev_timestep` ends the run."""
        levels = self._levels.numbers()
        here, there = levels[timestep], levels[prev_timestep] if prev_timestep >= 0 else self._levels.final()
        return torch.tensor(0.0 if here == there else sigma(here, there) ** 2)

    def _threshold_sample(self, sample: Tensor) -> Tensor:
        """Dynamic thresholding of a predicted x0, (b …), with the config's ratio and maximum; see `step.threshold`."""
        config = self.config
        wide = sample.to(torch.promote_types(sample.dtype, torch.float32))
        return threshold(wide, config.dynamic_thresholding_ratio, config.sample_max_value).to(sample.dtype)


class DDIMInverseScheduler(_Scheduler):
    """The sampler run backwards, from an image to its noise: each step leads from ᾱ_prev to ᾱ of a sampling step.

    The arguments are those of `DDIMScheduler`, except those of thresholding and of what is recommended for sampling.
    What the config of any scheduler has besides is taken and has no effect, as in diffusers. `timesteps` rise.

    Raises:
        ConfigError: as `DDIMScheduler`.
        TypeError: an argument that no scheduler has.
    """

    foreign_keys: ClassVar[frozenset[str]] = frozenset(
        [*_FOREIGN, *KEYS, "thresholding", "dynamic_thresholding_ratio", "sample_max_value"]
    )
    _inverse: ClassVar[bool] = True

    __module__ = Home(__name__)
    diffusers_class: ClassVar[str] = "DDIMInverseScheduler"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: BetaSchedule = "linear",
        trained_betas: Sequence[float] | np.ndarray[Any, Any] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: PredictionType = "epsilon",
        clip_sample_range: float = 1.0,
        timestep_spacing: Spacing | Literal["optimized"] = "leading",
        rescale_betas_zero_snr: bool = False,
        legacy_previous_timestep: bool = False,
        optimized_timesteps: Mapping[str, Sequence[int]] | None = None,
        **others: Any,
    ) -> None:
        unknown = sorted(set(others) - self.foreign_keys)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {', '.join(unknown)}")
        self._set_up()

    @property
    def initial_alpha_cumprod(self) -> Tensor:
        """ᾱ of what the run begins with, (): 1, the image, or ᾱ_0. The first step starts from what is assigned."""
        return self._levels.end

    @initial_alpha_cumprod.setter
    def initial_alpha_cumprod(self, value: Any) -> None:
        self._levels = self._levels.with_end(value)

    @overload
    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, *, return_dict: Literal[False]
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: Literal[True] = True
    ) -> DDIMSchedulerOutput: ...
    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step from the timestep before `timestep` up to it.

        Args:
            model_output: what the network predicted for `sample` at `timestep`, (batch, …).
            timestep: the timestep that the step leads to: an int, a tensor (), or one for each sample, (batch,).
            sample: x at the timestep before it, of the same shape.
            return_dict: False gives a plain tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError, TypeError, ConfigError: see `SamplingPlan.step`.
        """
        result = self._current_plan().step(model_output, timestep, sample)
        return result if return_dict else tuple(result)
