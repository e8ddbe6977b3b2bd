"""What a network is trained on: targets, weights, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ddim.errors import ConfigError
from ddim.models.vae import DiagonalGaussianDistribution
from ddim.process import prediction
from ddim.schedule import Array, snr
from ddim.scheduler import DDIMScheduler


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
    """mean over a sample of weight(t) · (out - target)², with x_t = add_noise(x0, eps, t).

    Args:
        scheduler: gives ᾱ and the prediction type.
        snr_gamma: γ of min-SNR, or None for the plain loss.

    Raises:
        ConfigError: ε-prediction with zero terminal SNR: such a model could not be sampled.
    """

    signal: Tensor
    noise: Tensor
    from_x0: Tensor
    from_eps: Tensor
    weight: Tensor

    def __init__(self, scheduler: DDIMScheduler, snr_gamma: float | None = None) -> None:
        super().__init__()
        kind = scheduler.config.prediction_type
        levels = np.array(scheduler.plan(1).alphas_cumprod)
        if kind == "epsilon" and levels[-1] == 0:
            raise ConfigError(
                "rescale_betas_zero_snr with prediction_type='epsilon' trains a model that cannot be sampled: "
                "use prediction_type='v_prediction'"
            )
        weight = np.ones_like(levels) if snr_gamma is None else min_snr_weights(levels, kind, snr_gamma)
        columns = (np.sqrt(levels), np.sqrt(1 - levels), *prediction(kind).target(levels), weight)
        for name, column in zip(("signal", "noise", "from_x0", "from_eps", "weight"), columns, strict=True):
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
        x_t = self.signal[timesteps].view(at) * x0 + self.noise[timesteps].view(at) * (
            eps if perturbation is None else eps + perturbation
        )
        target = self.from_x0[timesteps].view(at) * x0 + self.from_eps[timesteps].view(at) * eps
        out = denoiser(x_t, timesteps).float()
        if out.shape[1] == 2 * x0.shape[1]:
            out = out[:, : x0.shape[1]]
        return (out - target).square().flatten(1).mean(1) * self.weight[timesteps]


def autoencoder_loss(
    images: Tensor, decoded: Tensor, latents: DiagonalGaussianDistribution, mse_weight: float, gradient_weight: float
) -> dict[str, Tensor]:
    """What an autoencoder is trained on, each part of shape (b,).

    "reconstruction" is the mean of |error| + mse_weight·error² and gradient_weight times the mean |error| of the
    differences of neighbours, which keeps edges sharp. "kl" is the divergence from N(0, 1) in nats a latent number.

    Args:
        images, decoded: (b c h w) in [-1, 1].
        latents: what the encoder said of the images.
    """
    error = decoded - images
    loss = (error.abs() + mse_weight * error.square()).flatten(1).mean(1)
    for axis in (2, 3):
        loss = loss + gradient_weight * error.diff(dim=axis).abs().flatten(1).mean(1)
    parameters = latents.parameters.float()
    kl = DiagonalGaussianDistribution(parameters).kl() / (parameters[0].numel() / 2)
    return {"reconstruction": loss, "kl": kl}
