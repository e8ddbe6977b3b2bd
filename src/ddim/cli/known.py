"""What of a command's options cannot go with what a model's configs say of it, before it is loaded.

Of what is not known then the same is found out later, when the model is there.
"""

from __future__ import annotations

from typing import Any, Protocol

from ddim.checkpoint.known import Known
from ddim.errors import ConfigError


class Kind(Protocol):
    """What a model is for, as far as options depend on it. A pipeline says it, too."""

    @property
    def draws_texts(self) -> bool:
        """Whether it draws what a text says."""

    @property
    def class_count(self) -> int | None:
        """How many classes can be asked for; None where the model knows none."""

    @property
    def is_xl(self) -> bool | None:
        """Whether it is Stable Diffusion XL; None where that is not known."""


def check_against(model: str, found: Known, settings: Any) -> None:
    """Refuse numbers that the model cannot follow.

    Args:
        model: what the user calls it.
        found: what is known of it.
        settings: a command's settings, of which those are looked at that are named as here.

    Raises:
        ConfigError: says which option to change.
    """
    timesteps = found.timesteps
    for option, name in (("--steps", "steps"), ("--reference", "reference")):
        for value in _values(settings, name):
            if timesteps is not None and value > timesteps:
                raise ConfigError(
                    f"{option} must be from 1 to {timesteps}, the timesteps that {model} was trained on "
                    f"(num_train_timesteps), not {value}"
                )
    for option, name in (("--class-labels", "class_labels"), ("--class-label", "class_label")):
        for value in _values(settings, name):
            if found.class_count is not None and value >= found.class_count:
                raise ConfigError(f"{option} {value} is no class of {model}, which knows 0 to {found.class_count - 1}")
    for name in ("height", "width"):
        for value in _values(settings, name):
            if found.factor is not None and value % found.factor:
                raise ConfigError(f"--{name} must be a multiple of {found.factor} for {model}, not {value}")
    if getattr(settings, "zero_snr", None) and found.prediction_type == "epsilon":
        raise ConfigError(
            f"--zero-snr True needs a model that predicts v_prediction or sample; {model} predicts epsilon, which "
            "cannot be told from pure noise"
        )


def _values(settings: Any, name: str) -> tuple[int, ...]:
    value = getattr(settings, name, None)
    return () if value is None else value if isinstance(value, tuple) else (value,)
