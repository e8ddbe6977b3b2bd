"""What a diffusion model is trained on: its noise schedule, what is drawn at random, targets, weights, the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddim.errors import ConfigError
from ddim.process import prediction
from ddim.schedule import Array, snr
from ddim.scheduler import DDIMScheduler
from ddim.training.settings import BetaSchedule, DiffusionSettings, LatentSettings

# The first and the last beta of a new model's schedule: on latents those of Stable Diffusion. A new model on pixels
# has the paper's, which are those of "linear".
BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}


def train_scheduler(
    settings: DiffusionSettings, pretrained: Mapping[str, Any] | None, schedule: BetaSchedule, **new: Any
) -> DDIMScheduler:
    """The schedule that is trained, and that is saved with the model so that sampling uses it.

    Args:
        settings: the settings of the run, which go before what the pretrained model has.
        pretrained: the config of the pretrained model's scheduler, or None for a new model.
        schedule: the beta schedule of a new model, if the settings name none.
        new: further settings of a new model's scheduler.
    """
    chosen = {
        name: getattr(settings, name)
        for name in (
            "prediction_type num_train_timesteps beta_schedule rescale_betas_zero_snr timestep_spacing".split()
        )
        if getattr(settings, name) is not None
    }
    if pretrained is not None:
        if chosen.get("rescale_betas_zero_snr") and not pretrained.get("rescale_betas_zero_snr"):
            chosen.setdefault("timestep_spacing", "trailing")
        if pretrained.get("trained_timesteps"):  # of a distilled student, which becomes a model of all timesteps
            chosen |= dict.fromkeys(
                ("trained_timesteps", "recommended_steps", "recommended_guidance_scale", "recommended_guidance_rescale")
            )
        if "beta_schedule" in chosen or "num_train_timesteps" in chosen:
            chosen["trained_betas"] = None  # else these would count, and not what was chosen
        scheduler: DDIMScheduler = DDIMScheduler.from_config(pretrained, **chosen)
        return scheduler
    name = chosen.setdefault("beta_schedule", schedule)
    spacing = "trailing" if chosen.get("rescale_betas_zero_snr") else "leading"
    betas = BETAS[name] if schedule != "linear" else BETAS["linear"]
    chosen = {"timestep_spacing": spacing, "beta_start": betas[0], "beta_end": betas[1], **new, **chosen}
    return DDIMScheduler(**chosen)


def draw_noise(settings: DiffusionSettings, x0: Tensor) -> Tensor:
    """Noise of the shape of x0 (b c h w), with an offset for each channel if the settings say so."""
    eps = torch.randn_like(x0)
    if settings.noise_offset:
        eps = eps + settings.noise_offset * torch.randn_like(x0[:, :, :1, :1])
    return eps


def draw_timesteps(num_train_timesteps: int, x0: Tensor) -> Tensor:
    """A timestep for each sample, all equally likely: (b,)."""
    return torch.randint(num_train_timesteps, (len(x0),), device=x0.device)


def timestep_weights(settings: LatentSettings, num_train_timesteps: int) -> Tensor | None:
    """How likely each timestep is to be drawn, (T,), up to a factor; None if all are equally likely.

    Raises:
        ConfigError: the range of timesteps that are to be drawn more often is not among those that there are.
    """
    if settings.timestep_bias_strategy == "none" or settings.timestep_bias_multiplier == 1:
        return None
    count = int(settings.timestep_bias_portion * num_train_timesteps)
    first, last = {
        "earlier": (0, count),
        "later": (num_train_timesteps - count, num_train_timesteps),
        "range": (settings.timestep_bias_begin, settings.timestep_bias_end),
    }[settings.timestep_bias_strategy]
    if last > num_train_timesteps:
        raise ConfigError(f"timestep_bias_end={last} is more than the {num_train_timesteps} timesteps of the model")
    weights = torch.ones(num_train_timesteps)
    weights[first:last] = settings.timestep_bias_multiplier
    return weights


def min_snr_weights(alphas_cumprod: Array, prediction_type: str, gamma: float) -> Array:
    """The weight of each timestep's squared error under min-SNR-γ (Hang et al. 2023, section 3.4), shape (T,).

    An error of the output is q times as large an error of x0 (`process.Prediction.x0`), and x0's squared error weighs
    min(SNR, γ); so the weight is min(SNR, γ)·q²: min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v and min(SNR, γ)
    for x0. Where there is no signal at all that is 0, or 0/0, and the timestep would go untrained: it is 1 there.

    Raises:
        ConfigError: γ is not positive, or there is no such prediction type.
    """
    if not gamma > 0:
        raise ConfigError(f"snr_gamma must be positive, not {gamma}; leave it out for the plain loss")
    with np.errstate(divide="ignore", invalid="ignore"):
        _, q = prediction(prediction_type).x0(alphas_cumprod)
        weights = np.minimum(snr(alphas_cumprod), gamma) * q**2
    return np.where(alphas_cumprod == 0, 1.0, weights)


class DiffusionLoss(nn.Module):
    """The loss of a diffusion model: the mean over a sample of weight(t) · (out - target)².

    The network is asked for x_t, which is x0 with so much of the noise eps as belongs to t (the paper's equation 4).

    Args:
        scheduler: gives ᾱ and the prediction type.
        snr_gamma: γ of min-SNR, or None for the plain loss.
        dream: the power p of DREAM (Zhou et al. 2023, algorithm 1), or None: the network first guesses the noise, and
            is then trained on an x_t with √(1-ᾱ)^p times its error more of it, as it meets when sampling.

    Raises:
        ConfigError: ε-prediction with zero terminal SNR: such a model could not be sampled.
    """

    signal: Tensor
    noise: Tensor
    from_x0: Tensor
    from_eps: Tensor
    weight: Tensor
    eps_of_x: Tensor
    eps_of_out: Tensor

    def __init__(self, scheduler: DDIMScheduler, snr_gamma: float | None = None, dream: float | None = None) -> None:
        super().__init__()
        self.dream = dream
        kind = scheduler.config.prediction_type
        levels = np.array(scheduler.plan(1).alphas_cumprod)
        if kind == "epsilon" and levels[-1] == 0:
            raise ConfigError(
                "rescale_betas_zero_snr with prediction_type='epsilon' trains a model that cannot be sampled: "
                "use prediction_type='v_prediction'"
            )
        weight = np.ones_like(levels) if snr_gamma is None else min_snr_weights(levels, kind, snr_gamma)
        # These columns and `forward` spell equation 4 and the targets again. `process.add_noise` is not called there,
        # because it would take the roots of a float32 ᾱ, of which 1-ᾱ has lost half of its digits at the first
        # timesteps. Roots of float64 values have all of theirs when they are rounded to float32.
        columns = (np.sqrt(levels), np.sqrt(1 - levels), *prediction(kind).target(levels), weight)
        names = ("signal", "noise", "from_x0", "from_eps", "weight", "eps_of_x", "eps_of_out")
        for name, column in zip(names, (*columns, *prediction(kind).eps(levels)), strict=True):
            self.register_buffer(name, torch.from_numpy(column).float(), persistent=False)  # (T,)

    def forward(
        self,
        denoiser: Callable[[Tensor, Tensor], Tensor],
        x0: Tensor,
        eps: Tensor,
        timesteps: Tensor,
        perturbation: Tensor | None = None,
    ) -> Tensor:
        """The loss of each sample, (batch,).

        Args:
            denoiser: the network; one that predicts its variance too is judged by the first half of its channels.
            x0: (batch, …), clean.
            eps: of the same shape, the noise.
            timesteps: (batch,).
            perturbation: more noise that the target does not tell of (Ning et al. 2023), or None.
        """
        at = (-1, *[1] * (x0.ndim - 1))
        noise = self.noise[timesteps].view(at)
        x_t = self.signal[timesteps].view(at) * x0 + noise * (eps if perturbation is None else eps + perturbation)

        def predict(x: Tensor) -> Tensor:
            out = denoiser(x, timesteps).float()
            return out[:, : x0.shape[1]] if out.shape[1] == 2 * x0.shape[1] else out

        if self.dream is not None:
            with torch.no_grad():
                guess = self.eps_of_x[timesteps].view(at) * x_t + self.eps_of_out[timesteps].view(at) * predict(x_t)
            more = noise**self.dream * (eps - guess)
            x_t, eps = x_t + noise * more, eps + more
        target = self.from_x0[timesteps].view(at) * x0 + self.from_eps[timesteps].view(at) * eps
        return (predict(x_t) - target).square().flatten(1).mean(1) * self.weight[timesteps]
