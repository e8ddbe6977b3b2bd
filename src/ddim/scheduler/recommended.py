"""What a model's folder recommends for its own sampling, and what a call that leaves settings open takes of it.

The recommendation stands in the scheduler's config, in keys that diffusers does not know and ignores; see the arguments
of `DDIMScheduler`. The number of steps, their order and their spacing belong together: they are used where a call says
neither the number nor the order, or where its number is the recommended one and it says no order. Guidance stands by
itself. All of this is read from a config alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, cast

from ddim.errors import ConfigError
from ddim.plan import as_eta
from ddim.process import Order
from ddim.schedule import Spacing

# The keys that belong together, and all keys of a recommendation.
OF_STEPS = frozenset({"recommended_steps", "recommended_order", "recommended_spacing"})
KEYS = OF_STEPS | {"recommended_guidance_scale", "recommended_guidance_rescale", "trained_timesteps"}

USUAL_STEPS = 50  # where neither a call nor the model says how many


class Steps(NamedTuple):
    """How a run goes through the timesteps.

    Attributes:
        number: N.
        order: of the steps, 1 or 2.
        spacing: how the N timesteps are chosen, as `timestep_spacing` says it.
    """

    number: int
    order: Order
    spacing: Spacing | Literal["optimized"]

    def __str__(self) -> str:
        """
        >>> print(Steps(8, 2, "optimized"))
        8 steps of second order at searched timesteps
        >>> print(Steps(1, 1, "trailing"))
        1 step of first order at trailing timesteps
        """
        order = "second" if self.order == 2 else "first"
        where = "searched" if self.spacing == "optimized" else self.spacing
        return f"{self.number} step{'s' * (self.number != 1)} of {order} order at {where} timesteps"


def recommended_steps(config: Mapping[str, Any]) -> Steps | None:
    """The steps that a scheduler's config recommends; None where it says nothing of them.

    Raises:
        ConfigError: what it says cannot be followed; names the key.
    """
    number, order, spacing = (config.get(f"recommended_{name}") for name in ("steps", "order", "spacing"))
    if number is None and order is None and spacing is None:
        return None
    if number is not None and (type(number) is not int or number < 1):
        raise _refusal("recommended_steps", number, "a positive int", "num_inference_steps")
    if order not in (None, 1, 2) or isinstance(order, bool):
        raise _refusal("recommended_order", order, "1 or 2", "num_inference_steps and order")
    if spacing is not None and not isinstance(spacing, str):
        raise _refusal("recommended_spacing", spacing, "a text", "num_inference_steps")
    return Steps(
        USUAL_STEPS if number is None else number,
        cast(Order, 1 if order is None else order),
        config["timestep_spacing"] if spacing is None else cast(Spacing, spacing),
    )


def choose_steps(
    config: Mapping[str, Any], number: int | None = None, order: Order | None = None, *, eta: Any = 0.0
) -> Steps:
    """The steps of a run: what is given, and what the model recommends or is usual where nothing is.

    Args:
        config: of the scheduler.
        number, order: as they were given; None was not.
        eta: η of the run. Steps of second order are for 0 alone: where they are only recommended, it gets the first.

    Raises:
        ConfigError: the config's recommendation is to be used, and cannot be.
    """
    usual = Steps(USUAL_STEPS if number is None else number, 1 if order is None else order, config["timestep_spacing"])
    is_open = order is None and (number is None or number == config.get("recommended_steps"))
    suited = recommended_steps(config) if is_open else None
    if suited is None:
        return usual
    eta = as_eta(eta)
    return suited if isinstance(eta, float) and eta == 0 else suited._replace(order=1)


def choose_guidance(
    config: Mapping[str, Any], scale: float | None, rescale: float | None, usual: float
) -> tuple[float, float]:
    """(guidance_scale, guidance_rescale): what is given, and what the model recommends or is usual where nothing is.

    Args:
        config: of the scheduler.
        scale, rescale: as they were given; None was not.
        usual: the scale where neither was given nor is recommended. The usual rescale is 0.

    Raises:
        ConfigError: what was given is no number; or the config's recommendation is to be used, and is no number in the
            range.
    """
    every: dict[str, Any] = {"guidance_scale": scale, "guidance_rescale": rescale}
    for name, given in every.items():
        if given is not None and (isinstance(given, (str, bytes)) or not hasattr(given, "__float__")):
            raise ConfigError(f"{name} must be a number, not {given!r:.50}")
    if scale is None:
        scale = _number(config, "guidance_scale", -math.inf, math.inf)
    scale = usual if scale is None else scale
    if rescale is None and scale != 1:
        rescale = _number(config, "guidance_rescale", 0, 1)
    return scale, 0.0 if rescale is None else rescale


def suitable_guidance(
    config: Mapping[str, Any],
    draws_texts: bool,
    scale: float | None,
    rescale: float | None,
    usual_for_texts: float = 7.5,
) -> tuple[float, float]:
    """(guidance_scale, guidance_rescale): what is given, and what suits the model where nothing is.

    That is what its folder recommends. Where it says nothing, for texts at zero terminal SNR it is 3 and 0.7; for other
    texts what is usual for them, and 0; without texts 1 and 0, which is no guidance.

    Raises:
        ConfigError: what the folder recommends cannot be followed.
    """
    is_zero_snr = config["rescale_betas_zero_snr"] and draws_texts
    usual = 1.0 if not draws_texts else 3.0 if is_zero_snr else usual_for_texts
    chosen, less = choose_guidance(config, scale, rescale, usual)
    if rescale is None and config.get("recommended_guidance_rescale") is None and chosen != 1 and is_zero_snr:
        less = 0.7
    return chosen, less


def guidance_in_words(scale: float, rescale: float) -> str:
    """
    >>> guidance_in_words(3.0, 0.7), guidance_in_words(1.0, 0.0)
    ('guidance 3, rescale 0.7', 'guidance 1, rescale 0')
    """
    return f"guidance {scale:g}, rescale {rescale:g}"


def recommendation(config: Mapping[str, Any]) -> str:
    """All that a scheduler's config recommends, in words; empty where it recommends nothing.

    Raises:
        ConfigError: what it says cannot be followed; names the key.
    """
    steps = recommended_steps(config)
    scale = _number(config, "guidance_scale", -math.inf, math.inf)
    rescale = _number(config, "guidance_rescale", 0, 1)
    said = [] if steps is None else [str(steps)]
    said += [] if scale is None else [f"guidance {scale:g}"]
    said += [] if rescale is None else [f"rescale {rescale:g}"]
    return ", ".join(said)


def not_trained_for(
    config: Mapping[str, Any], timesteps: Collection[int], scale: float, *, takes_scale: bool
) -> str | None:
    """A sentence that says what of a run its network was not trained for; None where it was trained for all of it.

    Args:
        config: of the scheduler. A model that was distilled names its `trained_timesteps`; of one that was distilled
            under guidance the recommended scale is 1.
        timesteps: of the run.
        scale: of its guidance.
        takes_scale: whether the network takes the scale as an input, so that it may be any.
    """
    trained, count = config.get("trained_timesteps"), len(timesteps)
    asked = []
    if isinstance(trained, (list, tuple)) and not set(timesteps) <= set(trained):
        asked.append(f"{count} step{'s' * (count != 1)} through timesteps that it was not trained at")
    if config.get("recommended_guidance_scale") == 1 and scale > 1 and not takes_scale:
        asked.append(f"guidance {scale:g}, which it has learnt already")
    if not asked:
        return None
    suited = recommendation(config) or f"the timesteps {', '.join(map(str, trained or ()))}"
    return (
        f"expect worse pictures: this model was made for {suited}, and is asked for {' and for '.join(asked)}; what it "
        "was made for is used where num_inference_steps and guidance_scale are not given"
    )


def _number(config: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    """A number of the recommendation; None where the config does not say it."""
    value = config.get(f"recommended_{name}")
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or not abs(value) < math.inf:
        wanted = "a finite number" if most == math.inf else f"a number from {least:g} to {most:g}"
        raise _refusal(f"recommended_{name}", value, wanted, name)
    return float(value)


def _refusal(key: str, value: Any, wanted: str, instead: str) -> ConfigError:
    return ConfigError(f"the scheduler's config has {key}={value!r:.50}, where {wanted} is needed: give {instead}")
