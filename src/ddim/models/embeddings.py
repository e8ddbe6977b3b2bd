"""What a network is told besides the sample, as a vector: the timestep and, of some models, a class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddim.models.activations import activation


def as_timesteps(timestep: Tensor | float, batch: int, device: torch.device) -> Tensor:
    """Timesteps as a float32 tensor of shape (b,).

    Args:
        timestep: a number, which costs no copy from host to device; a tensor () or (1,); or one for each sample, (b,).
        batch: b.
        device: where the result goes.

    Raises:
        ValueError: a tensor of another shape.
    """
    if not isinstance(timestep, Tensor):
        return torch.full((batch,), timestep, dtype=torch.float32, device=device)
    if timestep.ndim > 1 or (timestep.ndim == 1 and timestep.shape[0] not in (1, batch)):
        raise ValueError(f"timestep must have shape () or ({batch},), not {tuple(timestep.shape)}")
    on_host = timestep.device.type == "cpu" and device.type != "cpu"
    if on_host and timestep.numel() == 1 and not torch.compiler.is_compiling():
        # Copying it would make the host wait for all that the device still has to do.
        return torch.full((batch,), timestep.item(), dtype=torch.float32, device=device)
    return timestep.to(device=device, dtype=torch.float32).expand(batch)


def sinusoids(t: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sines and cosines of the timestep at many frequencies (Vaswani et al. 2017, section 3.5), in float32.

    Args:
        t: timesteps, (b,).
        dim: the number of features; there are dim/2 frequencies, from 1 down to about 1/10000.
        flip_sin_to_cos: cosines come first; otherwise sines do.
        freq_shift: with 1 the last frequency is 1/10000 exactly, with 0 it is a little larger.

    Returns:
        (b dim).
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t.float()[:, None] * exponent.exp()  # (b half)
    waves = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return F.pad(torch.cat(waves, dim=-1), (0, dim % 2))  # (b dim); an odd dim ends in a zero


def guidance_condition(scale: Tensor, width: int) -> Tensor:
    """Guidance scales as the input of a U-Net that was distilled under guidance: (b,) -> (b width).

    Such a U-Net has `time_cond_proj_dim` (Meng et al. 2023; the numbers are those of latent consistency models).
    """
    return sinusoids(1000 * (scale - 1), width, flip_sin_to_cos=False, freq_shift=1)


class Timesteps(nn.Module):
    """`sinusoids` as a layer; it has no parameters."""

    def __init__(self, dim: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.dim, self.flip_sin_to_cos, self.freq_shift = dim, flip_sin_to_cos, freq_shift

    def forward(self, t: Tensor) -> Tensor:
        return sinusoids(t, self.dim, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift)


class GaussianFourierProjection(nn.Module):
    """Sines and cosines of log t at random frequencies that stay fixed (Song et al. 2021): (b,) -> (b 2·dim), t > 0."""

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim) * scale, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.float().log()[:, None] * self.weight.float() * 2 * math.pi  # (b dim)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class LearnedTimesteps(nn.Embedding):
    """One learned vector for each timestep: (b,) -> (b dim)."""

    def forward(self, t: Tensor) -> Tensor:
        return super().forward(t.long())


class TimestepEmbedding(nn.Module):
    """Two linear layers on top of the timestep's features: (b in) -> (b out).

    With `condition_dim`, a condition (b condition_dim) may be given: what a linear layer makes of it, (b in), is added
    to the features first.
    """

    def __init__(
        self, in_channels: int, out_channels: int, act_fn: str = "silu", condition_dim: int | None = None
    ) -> None:
        super().__init__()
        self.cond_proj = None if condition_dim is None else nn.Linear(condition_dim, in_channels, bias=False)
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.act = activation(act_fn)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            if self.cond_proj is None:
                raise ValueError("timestep_cond was given to a model without time_cond_proj_dim: leave it out")
            features = features + self.cond_proj(condition.to(features.dtype))
        out: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return out


def embed_labels(table: nn.Embedding, labels: Tensor) -> Tensor:
    """The vectors of integer class labels: (b,) -> (b e).

    Raises:
        ValueError: the labels are no integers (b,), or out of range. The range is checked on a CPU only, because on
            another device that would mean waiting for it.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"class_labels must be integers of shape (b,), not {labels.dtype} {tuple(labels.shape)}")
    try:
        vectors: Tensor = table(labels.long())
    except IndexError as error:
        raise ValueError(f"class_labels must be in 0..{table.num_embeddings - 1}") from error
    return vectors
