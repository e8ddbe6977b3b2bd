"""DDIMScheduler and DDIMInverseScheduler: diffusers' interface, a thin shell over `SamplingPlan`."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ddim.checkpoint.config import DIFFUSERS_VERSION, Config, LiveConfig, register_to_config
from ddim.checkpoint.identity import Home, KnownToDiffusers
from ddim.checkpoint.pretrained import PretrainedMixin
from ddim.errors import ConfigError
from ddim.noise import Generators
from ddim.plan import SamplingPlan, check_levels
from ddim.process import Eta, ddim_step, prediction, sigma
from ddim.schedule import make_alphas_cumprod, make_betas, space_timesteps
from ddim.step import DDIMSchedulerOutput, check_step, step_noise, threshold

# Arguments of the schedulers whose configs a DDIMScheduler accepts; they are kept and saved again.
_FOREIGN = """
algorithm_type disable_corrector euler_at_final final_sigmas_type flow_shift interpolation_type lambda_min_clipped
lower_order_final predict_x0 rho shift_terminal sigma_data sigma_max sigma_min sigma_schedule skip_prk_steps
solver_order solver_p solver_type time_shift_type timestep_type use_beta_sigmas use_dynamic_shifting
use_exponential_sigmas use_flow_sigmas use_karras_sigmas use_lu_lambdas variance_type noise_sampler_seed
""".split()
_COMPATIBLE = """
DDIMScheduler DDPMScheduler PNDMScheduler LMSDiscreteScheduler EulerDiscreteScheduler HeunDiscreteScheduler
EulerAncestralDiscreteScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler KDPM2DiscreteScheduler
KDPM2AncestralDiscreteScheduler DEISMultistepScheduler UniPCMultistepScheduler DPMSolverSDEScheduler EDMEulerScheduler
""".split()


# What an assignment to a scheduler's config cannot change, and what to do instead.
_FIXED = dict.fromkeys(
    "num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr".split(),
    "make another scheduler with from_config(scheduler.config, …=…), or assign scheduler.alphas_cumprod",
)
# The methods that `step` goes through where a subclass, or somebody's assignment, has put another in their place.
_HOOKS = frozenset({"_get_variance", "_threshold_sample", "previous_timestep"})
_REPLACED = frozenset({*_HOOKS, "step", "set_timesteps"})


class _Scheduler(KnownToDiffusers, PretrainedMixin):
    """What the two schedulers share: the schedule, the config that is read when a plan is made, the forward process.

    Whatever can be assigned (`timesteps`, `num_inference_steps`, `alphas_cumprod`, `final_alpha_cumprod`, what stands in
    `config`) is followed by the next step, as in diffusers, by a plan that is made anew; what would have no effect is
    refused.
    """

    config_name: ClassVar[str] = "scheduler_config.json"
    foreign_keys: ClassVar[frozenset[str]] = frozenset(_FOREIGN)
    own_keys: ClassVar[frozenset[str]] = frozenset({"legacy_previous_timestep", "optimized_timesteps"})
    order: ClassVar[int] = 1
    has_compatibles: ClassVar[bool] = True
    _compatibles: ClassVar[list[str]] = _COMPATIBLE
    _inverse: ClassVar[bool] = False

    init_noise_sigma = 1.0

    @classmethod
    def make_config(cls, values: Mapping[str, Any]) -> Config:
        named = {"_class_name": cls.__name__, "_diffusers_version": DIFFUSERS_VERSION}
        return LiveConfig({**values, **named}, fixed=_FIXED)

    def _set_up(self) -> None:
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
        with torch.inference_mode(False):  # else torch does not count what is written to them
            self._betas = torch.from_numpy(1 - alphas).float()  # (T,)
            self._alphas = torch.from_numpy(alphas).float()
            self._alphas_cumprod = torch.from_numpy(alphas_cumprod).float()
            self._end = torch.tensor(1.0) if config.set_alpha_to_one else self._alphas_cumprod[0]
        self._made_with = tuple(alphas_cumprod.tolist())  # ᾱ of the config's schedule, in float64
        self._take_levels()
        self._num_inference_steps: int | None = None
        self._stride: int | None = None  # of the steps, if somebody assigned num_inference_steps
        every = range(config.num_train_timesteps)
        self._timesteps = torch.tensor(every if self._inverse else every[::-1])
        self._planned: SamplingPlan | None = None
        self._plans: dict[Any, SamplingPlan] = {}

    # --- plans -------------------------------------------------------------------------------------------------------

    def plan(
        self,
        num_inference_steps: int | None = None,
        *,
        eta: Eta = 0.0,
        timesteps: Sequence[int] | Tensor | None = None,
        order: int = 1,
    ) -> SamplingPlan:
        """The table of a run. Changes nothing here; reads `config` as it is now.

        Args:
            num_inference_steps: N, from 1 to `num_train_timesteps`; spaced as `config.timestep_spacing` says.
            eta: η of equation 16 in [0, 1], or "sigma_hat".
            timesteps: the timesteps themselves, instead of N: distinct, in the order of the run.
            order: 1 is DDIM; 2 is a multistep method of second order, for eta=0: as many evaluations, nearer the ODE.

        Raises:
            ConfigError: N, the timesteps or the settings cannot work; names the setting that would.
        """
        if self._replaces & {"step", "set_timesteps"}:
            return self._plan_by_methods(num_inference_steps, eta, timesteps, order)
        return self._plan(num_inference_steps, eta, timesteps, order)

    def _plan(
        self,
        num_inference_steps: int | None = None,
        eta: Eta = 0.0,
        timesteps: Sequence[int] | Tensor | None = None,
        order: int = 1,
        stride: int | None = None,
    ) -> SamplingPlan:
        config = self.config
        if (num_inference_steps is None) == (timesteps is None):
            raise ConfigError("give either num_inference_steps or timesteps")
        total = config.num_train_timesteps
        if timesteps is None:
            assert num_inference_steps is not None
            if config.timestep_spacing == "optimized":
                chosen = self._optimized(num_inference_steps)
            else:
                chosen = space_timesteps(num_inference_steps, total, config.timestep_spacing, config.steps_offset)
            chosen = chosen[::-1] if self._inverse else chosen
        else:
            chosen = as_timesteps(timesteps)
        thresholding = None
        if config.get("thresholding"):
            thresholding = (config.dynamic_thresholding_ratio, config.sample_max_value)
        if stride is None and config.get("legacy_previous_timestep"):
            stride = total // (len(chosen) if num_inference_steps is None else num_inference_steps)
        for name, tensor in (("betas", self._betas), ("alphas", self._alphas)):
            if tensor._version:
                raise ConfigError(f"{name} was written to, which no step follows: {_INSTEAD}")
        return SamplingPlan(
            timesteps=chosen,
            alphas_cumprod=self._current_levels(),
            final_alpha_cumprod=self._final_level(),
            prediction_type=config.prediction_type,
            eta=_as_eta(eta),
            clip_range=config.clip_sample_range if config.clip_sample else None,
            thresholding=thresholding,
            legacy_stride=stride,
            inverse=self._inverse,
            order=order,
        )

    def _optimized(self, number: int) -> tuple[int, ...]:
        """The N timesteps that the config has, the largest first."""
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
        """Make a plan for `step` and put its timesteps into `self.timesteps`.

        Args:
            num_inference_steps: N, from 1 to `num_train_timesteps`.
            device: where `self.timesteps` goes; None is the host, which is fastest.
            timesteps: the timesteps themselves, instead of N.

        Raises:
            ConfigError: as `plan`.
        """
        plan = None
        if timesteps is None and type(num_inference_steps) is int:  # a robot asks for the same plan at each tick
            plan = self._plans.get((num_inference_steps, self._state()))
        if plan is None:
            plan = self._plan(num_inference_steps, timesteps=timesteps)
            self._plans = {} if len(self._plans) > 16 else self._plans
            self._plans[num_inference_steps, self._state()] = plan
        self._planned, self._planned_from = plan, self._state()
        self._stride, self._num_inference_steps = None, len(plan)
        self._timesteps = torch.tensor(plan.timesteps, device=device)

    def _state(self) -> tuple[Any, ...]:
        """What a plan was made of, to see whether it still holds: cheap, and without a look at any device."""
        config = self._internal_dict
        return id(config), config.writes, id(self._alphas_cumprod), self._alphas_cumprod._version, id(self._end), self._end._version  # fmt: skip

    @property
    def timesteps(self) -> Tensor:
        """The timesteps of the run, (N,); all T of them before `set_timesteps`.

        What is assigned is what clients loop over. A step from one of them leads where it did before, if they are a part
        of the run's list, repeated, or in another order; other lists make a new plan, in which each timestep leads to the
        next lower listed one. `num_inference_steps` stays as it is, as in diffusers.
        """
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: Any) -> None:
        listed = as_timesteps(value)
        wanted = sorted(set(listed), reverse=not self._inverse)
        plan = self._planned
        if plan is None or not wanted or not _is_part(wanted, plan.timesteps):
            steps = self._num_inference_steps
            legacy = self.config.get("legacy_previous_timestep")
            stride = self.config.num_train_timesteps // steps if legacy and steps else self._stride
            plan = self._plan(timesteps=wanted, stride=stride)
            self._planned, self._planned_from = plan, self._state()
        if self._num_inference_steps is None:
            self._num_inference_steps = len(listed)
        is_kept = isinstance(value, Tensor) and not value.is_floating_point()
        self._timesteps = value if is_kept else torch.tensor(listed)

    @property
    def num_inference_steps(self) -> int | None:
        """N; None before `set_timesteps`. As in diffusers, assigning another one makes each step lead T // N down."""
        return self._num_inference_steps

    @num_inference_steps.setter
    def num_inference_steps(self, value: int | None) -> None:
        total = self.config.num_train_timesteps
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
            raise TypeError(f"num_inference_steps must be an int, not {value!r:.50}")
        if value is not None and not 1 <= value <= total:
            raise ConfigError(f"num_inference_steps={value} must be from 1 to num_train_timesteps={total}")
        unchanged = value == self._num_inference_steps or (self._planned is not None and value == len(self._timesteps))
        self._num_inference_steps = None if value is None else int(value)
        if value is None or unchanged:
            return
        self._stride = total // int(value)
        listed = range(total) if self._planned is None else self._planned.timesteps
        plan = self._plan(timesteps=sorted(listed, reverse=not self._inverse), stride=self._stride)
        self._planned, self._planned_from = plan, self._state()

    def _current_plan(self) -> SamplingPlan:
        plan = self._planned
        if plan is None:
            raise ConfigError("num_inference_steps is not set: call set_timesteps first")
        if not torch.compiler.is_compiling() and self._planned_from != self._state():
            plan = self._plan(timesteps=plan.timesteps, stride=plan.legacy_stride)  # something was assigned since
            self._planned, self._planned_from = plan, self._state()
        return plan

    def previous_timestep(self, timestep: int | Tensor) -> int | Tensor:
        """Where a step from `timestep` leads; -1 is the image. Before `set_timesteps`, `timestep` - 1."""
        previous = self._current_plan()._previous if self._planned else np.arange(len(self._current_levels())) - 1
        wanted = self._as_indices(timestep)
        result = torch.from_numpy(previous).to(wanted.device)[wanted]
        return result if isinstance(timestep, Tensor) else int(result)

    # --- the schedule, as others see it and change it ----------------------------------------------------------------

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of every timestep, (T,) float32; plans use the float64 values that it was rounded from.

        It may be moved to a device or converted, and then means what it meant. Other values, assigned or written into
        it, are followed from the next step on; with more or fewer of them, there are so many timesteps.
        """
        return self._alphas_cumprod

    @alphas_cumprod.setter
    def alphas_cumprod(self, value: Any) -> None:
        before = self._alphas_cumprod
        self._alphas_cumprod = _as_levels(value)
        try:
            self._take_levels()
        except ConfigError:
            self._alphas_cumprod = before
            raise

    def _take_levels(self) -> None:
        """Read ᾱ from the tensor; where it is the config's, rounded, that in float64."""
        tensor, own = self._alphas_cumprod, torch.tensor(self._made_with, dtype=torch.float64)
        found = tensor.detach().to("cpu", torch.float64)
        if tensor.shape == own.shape and any(torch.equal(found, own.to(dtype).double()) for dtype in _ROUNDED):
            self._levels = self._made_with
        else:
            self._levels = tuple(found.tolist())
            check_levels(self._levels, 1.0)
        self._levels_version = tensor._version
        self._forward_tables: dict[torch.device, Tensor] = {}

    def _current_levels(self) -> tuple[float, ...]:
        if self._alphas_cumprod._version != self._levels_version:
            self._take_levels()
        return self._levels

    def _final_level(self) -> float:
        """ᾱ of what lies before the lowest timestep."""
        value = float(self._end)
        for exact in (1.0, self._current_levels()[0]):
            if any(value == torch.tensor(exact).to(dtype).item() for dtype in _ROUNDED):
                return exact
        return value

    @property
    def betas(self) -> Tensor:
        """β of every timestep, (T,) float32. May be moved to a device, but not changed: nothing would follow from it."""
        return self._betas

    @betas.setter
    def betas(self, value: Any) -> None:
        self._betas = _moved(self._betas, value, "betas")

    @property
    def alphas(self) -> Tensor:
        """1 - β of every timestep, (T,) float32. May be moved to a device, but not changed."""
        return self._alphas

    @alphas.setter
    def alphas(self, value: Any) -> None:
        self._alphas = _moved(self._alphas, value, "alphas")

    # --- methods that others put in the place of ours ----------------------------------------------------------------

    _replaces: frozenset[str] = frozenset()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        ours = {
            name for name in _REPLACED if name in vars(cls) and "Home" not in str(type(vars(cls).get("__module__")))
        }
        cls._replaces = cls._replaces | ours

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _REPLACED:
            object.__setattr__(self, "_replaces", self._replaces | {name})
        if name == "eta":
            raise AttributeError("eta is an argument of step and of plan: scheduler.step(…, eta=…)")
        object.__setattr__(self, name, value)

    def _plan_by_methods(self, num_inference_steps: int | None, eta: Eta, timesteps: Any, order: int) -> SamplingPlan:
        """A plan whose timesteps and steps are those of methods that a subclass has put in the place of ours."""
        own = copy.copy(self)
        own.__dict__["_plans"] = {}
        if timesteps is not None:
            own.timesteps = timesteps
        else:
            own.set_timesteps(num_inference_steps)
        plan = own._plan(eta=eta, timesteps=as_timesteps(own.timesteps), order=order, stride=own._stride)
        return PlanOfMethods(**{name: getattr(plan, name) for name in SamplingPlan.__dataclass_fields__}, scheduler=own)

    # --- the forward process -----------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: int | Tensor) -> Tensor:
        """x_t = √ᾱ_t x0 + √(1-ᾱ_t) ε (equation 4). Half precision is computed in float32.

        Args:
            original_samples: (batch, …).
            noise: of the same shape.
            timesteps: one, or one for each sample.
        """
        return self._mix(original_samples, noise, timesteps, 1.0)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: int | Tensor) -> Tensor:
        """v = √ᾱ ε - √(1-ᾱ) x0: what a v-prediction network is trained to give. Arguments as `add_noise`."""
        return self._mix(noise, sample, timesteps, -1.0)

    def _mix(self, first: Tensor, second: Tensor, timesteps: int | Tensor, sign: float) -> Tensor:
        """√ᾱ·first + sign·√(1-ᾱ)·second."""
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            raise TypeError(f"needed are tensors, not {type(first).__name__} and {type(second).__name__}")
        if first.shape[1:] != second.shape[1:]:
            raise ValueError(f"sample and noise differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
        if not (first.dtype.is_floating_point and second.dtype.is_floating_point):
            raise TypeError(f"needed are floating point tensors, not {first.dtype} and {second.dtype}")
        dtype = torch.promote_types(first.dtype, second.dtype)
        timesteps = self._as_indices(timesteps)
        counts = {timesteps.numel(), *first.shape[:1], *second.shape[:1]} - {1}
        if len(counts) > 1:
            raise ValueError(
                f"{timesteps.numel()} timesteps do not fit samples of shape {tuple(first.shape)} and noise of shape "
                f"{tuple(second.shape)}: give one of each, or as many"
            )
        wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
        roots = self._forward_table(first.device).index_select(0, timesteps.reshape(-1).to(first.device)).to(wide)
        signal, deviation = (column.view(-1, *[1] * (first.ndim - 1)) for column in roots.unbind(1))
        return torch.addcmul(first.to(wide) * signal, second.to(wide), sign * deviation).to(dtype)

    def _as_indices(self, timesteps: Any) -> Tensor:
        """Timesteps as an int64 tensor; those on the host are checked."""
        indices = timesteps if isinstance(timesteps, Tensor) else torch.from_numpy(np.asarray(timesteps))
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"timesteps must be integers, not {indices.dtype}")
        if indices.numel() and indices.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(indices.min()), int(indices.max())
            count = len(self._current_levels())
            if low < 0 or high >= count:
                raise ConfigError(f"timesteps must be in 0…{count - 1}, not {low}…{high}")
        return indices.to(torch.int64)

    def _forward_table(self, device: torch.device) -> Tensor:
        """(√ᾱ, √(1-ᾱ)) of every timestep, (T 2), kept on the device after the first use."""
        levels = np.array(self._current_levels())
        if device not in self._forward_tables:
            table = torch.from_numpy(np.stack([np.sqrt(levels), np.sqrt(1 - levels)], axis=1))
            self._forward_tables[device] = (table if device.type == "cpu" else table.float()).to(device)
        return self._forward_tables[device]

    # --- what pipelines expect ---------------------------------------------------------------------------------------

    @property
    def compatibles(self) -> list[type]:
        """The classes of this package whose configs fit; those of other packages are named in `_compatibles`."""
        return [DDIMScheduler]

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The identity: a network of this family takes x_t as it is."""
        return sample

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("_internal_dict", {})
        if name not in config or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        warnings.warn(f"read {name} from the config: scheduler.config.{name}", FutureWarning, stacklevel=2)
        return config[name]


class DDIMScheduler(_Scheduler):
    """Denoising diffusion implicit models (Song, Meng, Ermon 2020), with diffusers' interface.

    Args:
        num_train_timesteps: T.
        beta_start: the first β, in [0, 1].
        beta_end: the last β.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas: T betas to use instead.
        clip_sample: clamp the predicted x0 to ± `clip_sample_range`. For pixels, not for latents.
        set_alpha_to_one: end on ᾱ = 1, the image; else on ᾱ_0.
        steps_offset: added to the timesteps of "leading" (Stable Diffusion has 1).
        prediction_type: "epsilon", "sample" or "v_prediction".
        thresholding: dynamic thresholding of the predicted x0, instead of clipping.
        dynamic_thresholding_ratio: its quantile, in [0, 1].
        clip_sample_range: the largest |x0| that `clip_sample` leaves.
        sample_max_value: the largest threshold, 1 or more.
        timestep_spacing: "leading", "trailing", "linspace", "quadratic" or "optimized".
        rescale_betas_zero_snr: make the last timestep pure noise (Lin et al. 2024); needs a v or x0 model.
        legacy_previous_timestep: step to t - T//N as diffusers does, even where that is not the next timestep.
        optimized_timesteps: for "optimized": "N" -> the N timesteps that a search found, see `ddim.search`.

    Raises:
        ConfigError: no noise schedule can be made of these. What cannot work for other reasons (zero terminal SNR with
            epsilon, say) is refused by `plan`, so that it can still be loaded, changed and saved.
    """

    __module__ = Home(__name__)
    diffusers_class: ClassVar[str] = "DDIMScheduler"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | np.ndarray[Any, Any] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        legacy_previous_timestep: bool = False,
        optimized_timesteps: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._set_up()

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """ᾱ of what lies before the lowest timestep, (): 1, the image, or ᾱ_0. What is assigned, the last step ends on."""
        return self._end

    @final_alpha_cumprod.setter
    def final_alpha_cumprod(self, value: Any) -> None:
        self._end = _as_end(value)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step from `timestep` to the one before it (equation 12); changes nothing in the scheduler.

        Under `torch.compile` give the timestep as a tensor; before the first step with an `eta` that is not 0, make one
        step with it uncompiled (or compile the step of `plan(N, eta=eta)`).

        Args:
            model_output: what the network predicted, (batch, …).
            timestep: an int, a 0-dim tensor, or one for each sample.
            sample: x_t, of the same shape.
            eta: η in [0, 1], or "sigma_hat".
            use_clipped_model_output: derive eps anew from the clipped x0.
            generator: of the noise, if `eta` is not 0; one, or a list with one for each sample.
            variance_noise: the noise itself, instead.
            return_dict: False gives a plain tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError, TypeError, ConfigError: see `SamplingPlan.step`.
        """
        plan = self._current_plan()
        eta = _as_eta(eta)
        if self._replaces and self._replaces & _HOOKS:
            arguments = (eta, use_clipped_model_output, generator, variance_noise)
            result = self._step_by_methods(model_output, timestep, sample, *arguments)
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
        """σ²(1) of a step between any two timesteps; a negative `prev_timestep` is past the end."""
        levels = self._current_levels()
        here, there = levels[timestep], levels[prev_timestep] if prev_timestep >= 0 else self._final_level()
        return torch.tensor(0.0 if here == there else sigma(here, there) ** 2)

    def _threshold_sample(self, sample: Tensor) -> Tensor:
        """Dynamic thresholding of a predicted x0, (b …), with the config's ratio and maximum; see `step.threshold`."""
        config = self.config
        wide = sample.to(torch.promote_types(sample.dtype, torch.float32))
        return threshold(wide, config.dynamic_thresholding_ratio, config.sample_max_value).to(sample.dtype)

    def _step_by_methods(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: Eta,
        use_clipped_model_output: bool,
        generator: Generators,
        variance_noise: Tensor | None,
    ) -> DDIMSchedulerOutput:
        """Equation 12 by the methods that a subclass has put in the place of ours, one timestep for all samples."""
        check_step(model_output, sample)
        config, levels = self.config, self._current_levels()
        here_at = int(timestep)
        there_at = int(self.previous_timestep(here_at))
        here, there = levels[here_at], levels[there_at] if there_at >= 0 else self._final_level()
        kind = prediction(config.prediction_type)
        wide = torch.promote_types(torch.promote_types(sample.dtype, model_output.dtype), torch.float32)
        x_t, out = sample.to(wide), model_output.to(wide)
        (p, q), (r, s) = kind.x0(here), kind.eps(here)
        x0, eps = p * x_t + q * out, r * x_t + s * out
        if config.thresholding:
            x0 = self._threshold_sample(x0)
        elif config.clip_sample:
            x0 = x0.clamp(-config.clip_sample_range, config.clip_sample_range)
        if use_clipped_model_output:
            eps = (x_t - here**0.5 * x0) / (1 - here) ** 0.5
        share = 1.0 if isinstance(eta, str) else eta
        deviation = share * float(self._get_variance(here_at, there_at)) ** 0.5
        noise = step_noise(model_output, generator, variance_noise).to(wide) if share else 0.0
        direction = max(1 - there - deviation**2, 0.0) ** 0.5
        prev = ddim_step(x0, eps, there, deviation, noise, direction=direction)
        return DDIMSchedulerOutput(prev.to(sample.dtype), x0.to(sample.dtype))


class DDIMInverseScheduler(_Scheduler):
    """The sampler run backwards, from an image to its noise: the same plan over the reversed pairs of ᾱ.

    The arguments are those of `DDIMScheduler`, without thresholding. `timesteps` rise.
    """

    foreign_keys: ClassVar[frozenset[str]] = frozenset(
        [*_FOREIGN, "thresholding", "dynamic_thresholding_ratio", "sample_max_value"]
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
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | np.ndarray[Any, Any] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        legacy_previous_timestep: bool = False,
        optimized_timesteps: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._set_up()

    @property
    def initial_alpha_cumprod(self) -> Tensor:
        """ᾱ of what the run begins with, (): 1, the image, or ᾱ_0. What is assigned, the first step starts from."""
        return self._end

    @initial_alpha_cumprod.setter
    def initial_alpha_cumprod(self, value: Any) -> None:
        self._end = _as_end(value)

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step from the timestep before `timestep` up to it.

        Args:
            model_output: what the network predicted for `sample` at `timestep`.
            timestep: where the step leads.
            sample: x at the timestep before it.
            return_dict: False gives a plain tuple.
        """
        result = self._current_plan().step(model_output, timestep, sample)
        return result if return_dict else tuple(result)


@dataclass(frozen=True, eq=False, repr=False)
class PlanOfMethods(SamplingPlan):
    """A plan whose steps are made by a scheduler's own `step`, which is not ours."""

    scheduler: Any = None

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, **options: Any) -> DDIMSchedulerOutput:
        """As `SamplingPlan.step`, by the scheduler."""
        accepted = inspect.signature(self.scheduler.step).parameters
        given = {name: value for name, value in {"eta": self.eta, **options}.items() if name in accepted}
        result = self.scheduler.step(model_output, timestep, sample, **given)
        return result if isinstance(result, DDIMSchedulerOutput) else DDIMSchedulerOutput(*result)


# Types that a schedule's numbers are rounded to when it is moved or converted.
_ROUNDED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INSTEAD = "make a scheduler with trained_betas=…, or assign alphas_cumprod"


def as_timesteps(timesteps: Any) -> tuple[int, ...]:
    """Timesteps as ints, from a list, a range, an array of any strides, or a tensor of any integer type.

    Raises:
        ConfigError: it is none of these, or a number in it is not whole.
    """
    try:
        values = timesteps.tolist() if isinstance(timesteps, (Tensor, np.ndarray)) else list(timesteps)
    except TypeError as error:
        raise ConfigError(f"timesteps must be a list of ints, not {timesteps!r:.100}") from error
    if not isinstance(values, list):
        raise ConfigError(f"timesteps must be a list of ints, not {timesteps!r:.100}")
    for value in values:
        is_number = isinstance(value, (int, float, np.integer, np.floating, Tensor)) and not isinstance(value, bool)
        if not is_number or value != value or int(value) != value:
            raise ConfigError(f"timesteps must be whole numbers, not {value!r:.50}")
    return tuple(int(value) for value in values)


def _is_part(wanted: Sequence[int], listed: Sequence[int]) -> bool:
    """Whether all of `wanted` follow one another in `listed`; both in the order of a run."""
    if wanted[0] not in listed:
        return False
    start = listed.index(wanted[0])
    return tuple(wanted) == tuple(listed[start : start + len(wanted)])


def _as_eta(eta: Any) -> Eta:
    """η as a float (or "sigma_hat"), from any number or tensor of one."""
    if type(eta) is float or isinstance(eta, (str, bool)):
        return eta
    if isinstance(eta, (Tensor, np.ndarray)) and eta.size == 1 if isinstance(eta, np.ndarray) else False:
        return float(eta.item())
    if isinstance(eta, Tensor) and eta.numel() == 1:
        return float(eta)
    return float(eta) if isinstance(eta, (int, np.number)) else eta


def _as_levels(value: Any) -> Tensor:
    """ᾱ that somebody assigns, as a tensor that torch counts the writes to."""
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    if tensor.ndim != 1 or not len(tensor) or not tensor.is_floating_point():
        raise ConfigError(
            f"alphas_cumprod must be one number for each timestep, not {tensor.dtype} {tuple(tensor.shape)}"
        )
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor


def _as_end(value: Any) -> Tensor:
    """ᾱ past the lowest timestep that somebody assigns, as a tensor () that torch counts the writes to."""
    with torch.inference_mode(False):
        tensor = value.clone() if isinstance(value, Tensor) and value.is_inference() else torch.as_tensor(value)
    if tensor.numel() != 1 or not 0 <= float(tensor) <= 1:
        raise ConfigError(f"the last level of alpha must be one number in [0, 1], not {value!r:.100}")
    return tensor.float() if not tensor.is_floating_point() else tensor


def _moved(own: Tensor, value: Any, name: str) -> Tensor:
    """A tensor on another device or of another type; an error if it is another one."""
    found = torch.as_tensor(value)
    if found.shape != own.shape or not torch.equal(found.cpu(), own.cpu().to(found.dtype)):
        raise AttributeError(f"no step follows {name}: {_INSTEAD}")
    with torch.inference_mode(False):
        return found.clone() if found.is_inference() else found
