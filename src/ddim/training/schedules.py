"""The noise schedule to train with, and what is drawn at random at each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddim.scheduler import DDIMScheduler
from ddim.settings.training import BetaSchedule, DiffusionSettings

# Stable Diffusion's betas, for what is new and works on latents; pixels have the paper's.
BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}


def train_scheduler(
    settings: DiffusionSettings, pretrained: Mapping[str, Any] | None, schedule: BetaSchedule, **new: Any
) -> DDIMScheduler:
    """The schedule that is trained, and that is saved with the model so that sampling uses it.

    Args:
        settings: what it says goes before what the pretrained model has.
        pretrained: the config of the pretrained model's scheduler, or None for a new model.
        schedule: a new model's, unless told.
        new: more of a new model's config.
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
        if "beta_schedule" in chosen or "num_train_timesteps" in chosen:
            chosen["trained_betas"] = None  # which would count more
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
