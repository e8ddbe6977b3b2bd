"""The DDIM paper (Song, Meng, Ermon 2020, arXiv 2010.02502), equation by equation.

The paper's α is everybody else's ᾱ (`alphas_cumprod`), and so it is here:

    here                      paper          diffusers
    x_t                       x_t            sample
    x_prev                    x_{t-1}        prev_sample
    x0                        f_θ(x_t), (9)  pred_original_sample
    eps                       ε_θ(x_t)       the model output, if prediction_type is "epsilon"
    alpha_bar                 α_t            alphas_cumprod[timestep]
    alpha_bar_prev            α_{t-1}        alphas_cumprod[previous timestep]
    sigma                     σ_t(η), (16)   the root of `_get_variance`, times eta
    sigma_hat                 σ̂ (below 16)   none; eta="sigma_hat" here
    z                         ε_t            variance_noise
    add_noise                 (4)            add_noise
    PREDICTIONS               (9)            prediction_type
    ddim_step                 (12)           step; with σ = 0 also (13), the step of the ODE

Whatever a network predicts is a mixture of x0 and eps, so both are linear in (x_t, out), and a step is too: the
functions here take numbers, numpy arrays or tensors alike, and `plan` applies them to the coefficients alone. Where the
scheduler, the training loss and the step on tensors need a faster or more exact form of (4) or (12), a comment beside
it says why, and a test holds it equal to the one here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from ddim.errors import ConfigError

__all__ = [
    "PREDICTIONS",
    "SIGMA_HAT",
    "Eta",
    "Order",
    "Prediction",
    "PredictionType",
    "Value",
    "add_noise",
    "ddim_step",
    "prediction",
    "second_order",
    "sigma",
    "sigma_hat",
]

# A number, a numpy array or a tensor; those of one call broadcast.
Value: TypeAlias = Any

SIGMA_HAT: Final = "sigma_hat"
DAMPING = 4.0  # of steps of second order, by radian
Eta: TypeAlias = float | Literal["sigma_hat"]  # in [0, 1], or SIGMA_HAT
PredictionType: TypeAlias = Literal["epsilon", "sample", "v_prediction"]  # the keys of PREDICTIONS
Order: TypeAlias = Literal[1, 2]


def add_noise(x0: Value, eps: Value, alpha_bar: Value) -> Value:
    """x_t = √ᾱ_t x0 + √(1-ᾱ_t) ε (equation 4)."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps


@dataclass(frozen=True)
class Prediction:
    """What a network's output means.

    Attributes:
        target: ᾱ -> (u, w): the output for a known image and noise is u·x0 + w·eps.
        x0: ᾱ -> (p, q): x0 = p·x_t + q·out.
        eps: ᾱ -> (r, s): eps = r·x_t + s·out.
    """

    target: Callable[[Value], tuple[Value, Value]]
    x0: Callable[[Value], tuple[Value, Value]]
    eps: Callable[[Value], tuple[Value, Value]]


PREDICTIONS: dict[str, Prediction] = {
    # ε: the noise (Ho et al. 2020). Says nothing of x0 where ᾱ = 0.
    "epsilon": Prediction(
        target=lambda ab: (0.0 * ab, 1.0 + 0.0 * ab),
        x0=lambda ab: (ab**-0.5, -((1 - ab) ** 0.5) * ab**-0.5),
        eps=lambda ab: (0.0 * ab, 1.0 + 0.0 * ab),
    ),
    # x0: the image. Says nothing of eps where ᾱ = 1.
    "sample": Prediction(
        target=lambda ab: (1.0 + 0.0 * ab, 0.0 * ab),
        x0=lambda ab: (0.0 * ab, 1.0 + 0.0 * ab),
        eps=lambda ab: ((1 - ab) ** -0.5, -(ab**0.5) * (1 - ab) ** -0.5),
    ),
    # v = √ᾱ ε - √(1-ᾱ) x0 (Salimans and Ho 2022, appendix D). Says both, everywhere.
    "v_prediction": Prediction(
        target=lambda ab: (-((1 - ab) ** 0.5), ab**0.5),
        x0=lambda ab: (ab**0.5, -((1 - ab) ** 0.5)),
        eps=lambda ab: ((1 - ab) ** 0.5, ab**0.5),
    ),
}


def prediction(prediction_type: str) -> Prediction:
    """The entry of `PREDICTIONS`, or a `ConfigError` that lists them."""
    try:
        return PREDICTIONS[prediction_type]
    except (KeyError, TypeError):
        raise ConfigError(f"prediction_type={prediction_type!r:.100} is none of {', '.join(PREDICTIONS)}") from None


def sigma(alpha_bar: Value, alpha_bar_prev: Value, eta: float = 1.0) -> Value:
    """σ(η) = η √((1-ᾱ_prev)/(1-ᾱ)) √(1-ᾱ/ᾱ_prev) (equation 16); η=0 is DDIM, η=1 the posterior of DDPM."""
    return eta * ((1 - alpha_bar_prev) / (1 - alpha_bar)) ** 0.5 * sigma_hat(alpha_bar, alpha_bar_prev)


def sigma_hat(alpha_bar: Value, alpha_bar_prev: Value) -> Value:
    """σ̂ = √(1-ᾱ/ᾱ_prev): the larger variance of DDPM (section 5, below equation 16)."""
    return (1 - alpha_bar / alpha_bar_prev) ** 0.5


def ddim_step(
    x0: Value, eps: Value, alpha_bar_prev: Value, sigma: Value = 0.0, z: Value = 0.0, *, direction: Value | None = None
) -> Value:
    """x_prev = √ᾱ_prev x0 + √(1-ᾱ_prev-σ²) eps + σ z (equation 12).

    Args:
        x0, eps: what a prediction makes of x_t: the image and the noise in it.
        alpha_bar_prev: ᾱ where the step leads; with σ = 0 that may be any level, also a noisier one (equation 13).
        sigma: σ, see `sigma` above; 0 is DDIM.
        z: standard normal noise.
        direction: the second root, where the caller knows it more exactly: for η = 1 its radicand is a difference of
            numbers that are nearly equal.
    """
    if direction is None:
        direction = (1 - alpha_bar_prev - sigma**2) ** 0.5
    return alpha_bar_prev**0.5 * x0 + direction * eps + sigma * z


def second_order(alpha_bar_before: float, alpha_bar: float, alpha_bar_prev: float) -> float:
    """What to add of x0 - x0_before, the change of the predicted x0 since the last step, for a step of second order.

    A DDIM step takes x0 to be constant on the way. Here it goes on as it went, in a straight line over the angle
    φ = arctan √((1-ᾱ)/ᾱ) from the image (0) to the noise (π/2). With α = cos φ and σ = sin φ the ODE has the exact
    solution x(φ') = σ'/σ x + σ' ∫ x0 d(cot φ), which gives

        (α'·(φ' - φ) - σ'·ln(σ'/σ)) / (φ - φ_before)

    It is finite at both ends, ᾱ = 0 and ᾱ = 1, where multistep methods over log SNR (Lu et al. 2022, DPM-Solver++)
    have to fall back to first order. In a large step x0 does not go on as it went, so this is divided by
    1 + 4·(φ - φ'): the order stays two, and few steps come nearer.
    """
    before, here, there = (math.atan2((1 - ab) ** 0.5, ab**0.5) for ab in (alpha_bar_before, alpha_bar, alpha_bar_prev))
    if before == here or here == 0:
        return 0.0
    logarithm = math.sin(there) * math.log(math.sin(there) / math.sin(here)) if there > 0 else 0.0
    full = (math.cos(there) * (there - here) - logarithm) / (here - before)
    return full / (1 + DAMPING * (here - there))
