"""What is chosen on the Plan tab: the plan that it makes, its JSON and its Python, and what the Draw tab can follow."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from ddim.errors import ConfigError
from ddim.plan import SamplingPlan
from ddim.process import SIGMA_HAT, Eta, Order, PredictionType
from ddim.schedule import SPACINGS, Spacing
from ddim.scheduler import DDIMScheduler
from ddim.scheduler.recommended import choose_steps, not_trained_for

__all__ = ["OWN", "PREDICTIONS", "SCHEDULES", "Choice", "as_json", "as_python", "notes", "searched", "spaced"]

OWN = "own"  # what the model's own config says

# The usual schedules, with the betas that are usual for each; the cosine has none.
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
}
PREDICTIONS: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")

# The settings of a scheduler that a plan depends on, and what they are where nothing is said.
_SETTINGS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "legacy_previous_timestep": False,
}


@dataclass(frozen=True)
class Choice:
    """A plan as it is chosen.

    Attributes:
        steps: N.
        spacing: of the timesteps; "optimized" are those that were found by search for the model.
        eta: η, or "sigma_hat".
        order: of the steps.
        zero_snr: whether the last timestep is pure noise; None as the model has it.
        schedule: a key of `SCHEDULES`, or OWN.
        prediction_type: what the network predicts, or OWN.
    """

    steps: int
    spacing: Spacing | Literal["optimized"] = "leading"
    eta: Eta = 0.0
    order: Order = 1
    zero_snr: bool | None = None
    schedule: str = OWN
    prediction_type: str = OWN

    @classmethod
    def usual(cls, own: DDIMScheduler) -> Choice:
        """What a model recommends."""
        steps = choose_steps(own.config)
        return cls(steps.number, steps.spacing, 0.0, steps.order, bool(own.config.rescale_betas_zero_snr))

    def scheduler(self, own: DDIMScheduler) -> DDIMScheduler:
        """The model's scheduler, with the schedule and the prediction that were chosen.

        Raises:
            ConfigError: there is no such scheduler.
        """
        config = own.config
        changes: dict[str, Any] = {}
        if self.schedule != OWN:
            changes |= {**SCHEDULES[self.schedule], "trained_betas": None}
        if self.prediction_type not in (OWN, config.prediction_type):
            changes["prediction_type"] = self.prediction_type
        if self.zero_snr not in (None, config.rescale_betas_zero_snr):
            changes["rescale_betas_zero_snr"] = self.zero_snr
        return DDIMScheduler.from_config(config, **changes) if changes else own

    def plan(self, own: DDIMScheduler) -> SamplingPlan:
        """The plan.

        Raises:
            ConfigError: the settings cannot work; the message says which would.
        """
        return self.scheduler(own).plan(self.steps, eta=self.eta, order=self.order, spacing=self.spacing)

    def drawn_by(self) -> dict[str, Any]:
        """What of this the Draw tab can follow, by the names of `serving.parameters.Generation`."""
        return {"steps": self.steps, "spacing": self.spacing, "eta": self.eta, "order": self.order}


# --- what is said of it ----------------------------------------------------------------------------------------------


def notes(own: DDIMScheduler, choice: Choice, plan: SamplingPlan, model: str) -> list[str]:
    """Sentences that one ought to read before drawing with a plan.

    Args:
        own: the model's scheduler.
        choice, plan: what was chosen, and what it makes.
        model: its name.
    """
    said = []
    if len(plan) < choice.steps:
        said.append(
            f"{choice.spacing.capitalize()} spacing has only {len(plan)} different timesteps for {choice.steps} steps; "
            "the repeated ones are dropped."
        )
    others = _others(own.config, choice)
    if others:
        said.append(
            f"{model} has learnt its own schedule and prediction and can follow no other: “Draw with this” leaves out "
            f"{', '.join(others)}."
        )
    untrained = not_trained_for(own.config, plan.timesteps, 1.0, takes_scale=True)
    if untrained is not None:
        said.append(f"{untrained[0].upper()}{untrained[1:]}.")
    return said


def _others(config: Mapping[str, Any], choice: Choice) -> list[str]:
    """What was chosen that is not the model's own."""
    found = []
    if choice.schedule != OWN and any(config[key] != value for key, value in SCHEDULES[choice.schedule].items()):
        found.append(f"the schedule {choice.schedule}")
    if choice.zero_snr not in (None, config["rescale_betas_zero_snr"]):
        found.append("zero SNR" if choice.zero_snr else "a schedule without zero SNR")
    if choice.prediction_type not in (OWN, config["prediction_type"]):
        found.append(f"the prediction {choice.prediction_type}")
    return found


def searched(own: DDIMScheduler) -> tuple[int, ...]:
    """The numbers of steps for which a model has timesteps that were found by search."""
    known = own.config.get("optimized_timesteps")
    return tuple(sorted(int(n) for n in known if str(n).isdigit())) if isinstance(known, Mapping) else ()


def spaced(own: DDIMScheduler, steps: int) -> dict[str, tuple[int, ...]]:
    """The timesteps of each spacing, as far as it has some for this number of steps."""
    total, offset = own.config.num_train_timesteps, own.config.steps_offset
    found: dict[str, tuple[int, ...]] = {}
    if steps <= total:
        found = {name: tuple(map(int, way(steps, total, offset))) for name, way in SPACINGS.items()}
    if steps in searched(own):
        found["optimized"] = own.plan(steps, spacing="optimized").timesteps
    return found


# --- to copy ---------------------------------------------------------------------------------------------------------


def as_json(plan: SamplingPlan) -> str:
    """A plan as `SamplingPlan.from_dict` reads it, a line for each key and more for long lists."""
    lines = []
    for key, value in plan.to_dict().items():
        text = json.dumps(value)
        if len(text) > 100:
            text = "[\n" + textwrap.indent(textwrap.fill(text[1:-1], 100), "    ") + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def as_python(own: DDIMScheduler, choice: Choice) -> str:
    """A program that makes the plan of a choice, and needs nothing but this package."""
    config = choice.scheduler(own).config
    changed = {key: config[key] for key, usual in _SETTINGS.items() if config.get(key, usual) != usual}
    settings = ",\n".join(f"    {key}={_written(value)}" for key, value in changed.items())
    call: dict[str, Any] = {"eta": choice.eta} if choice.eta != 0 else {}
    call |= {"order": choice.order} if choice.order != 1 else {}
    if choice.spacing == "optimized":
        first = f"timesteps={_written(list(choice.plan(own).timesteps))}"
    else:
        first, call = f"{choice.steps}", {"spacing": choice.spacing, **call}
    arguments = ", ".join([first, *(f"{key}={_written(value)}" for key, value in call.items())])
    return (
        "from ddim import DDIMScheduler\n\n"
        f"scheduler = DDIMScheduler({f'{chr(10)}{settings},{chr(10)}' if changed else ''})\n"
        f"plan = scheduler.plan({arguments})\n"
        "print(plan)\n"
    )


def _written(value: Any) -> str:
    """A value as Python has it, in lines of about a hundred letters."""
    if isinstance(value, str):
        return json.dumps(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    text = repr(list(value) if isinstance(value, tuple) else value)
    if len(text) <= 100:
        return text
    return "[\n" + textwrap.indent(textwrap.fill(text[1:-1], 100), " " * 8) + "\n    ]"


def as_choice(
    steps: Any, spacing: Any, eta: Any, sigma_hat: Any, order: Any, zero_snr: Any, schedule: Any, predicts: Any
) -> Choice:
    """A choice of what the page's fields have.

    Raises:
        ConfigError: a field is empty.
    """
    for name, value in (("steps", steps), ("spacing", spacing), ("eta", eta), ("order", order)):
        if value is None:
            raise ConfigError(f"{name} is empty: give one")
    return Choice(
        int(steps),
        cast(Any, str(spacing)),
        SIGMA_HAT if sigma_hat else float(eta),
        cast(Order, int(order)),
        bool(zero_snr),
        str(schedule or OWN),
        str(predicts or OWN),
    )


def as_fields(choice: Choice) -> list[Any]:
    """What the page's fields have for a choice, in the order of the arguments of `as_choice`."""
    is_hat = choice.eta == SIGMA_HAT
    return [
        choice.steps,
        choice.spacing,
        0 if is_hat else choice.eta,
        is_hat,
        choice.order,
        bool(choice.zero_snr),
        choice.schedule,
        choice.prediction_type,
    ]
