"""Where a run of a latent model starts: from noise, from a picture, or from a picture of which a part is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ddim.errors import ConfigError
from ddim.noise import Generators, gaussian_noise
from ddim.plan import SamplingPlan


class Start(NamedTuple):
    """What a run starts from.

    Attributes:
        x: the first x_t, (b z h w).
        plan: the steps that are left.
        channels: what the U-Net is given beside x, (b c h w).
        keep: (x, index of the step) -> x with what is to be kept of the picture put back.
    """

    x: Tensor
    plan: SamplingPlan
    channels: Tensor | None = None
    keep: Callable[[Tensor, int], Tensor] | None = None


class Batch(NamedTuple):
    """What all kinds of starts need to know of a run."""

    prompts: int
    shape: tuple[int, ...]  # of x, (b z h w)
    generator: Generators
    seeded: bool  # the generators come from a seed: each image has its own stream


def begin(
    pipe: Any,
    plan: SamplingPlan,
    batch: Batch,
    latents: Tensor | None,
    picture: Tensor | None,
    strength: float,
    mask: Tensor | None,
    masked_latents: Tensor | None,
) -> Start:
    """The start that fits what is given: from noise (or the given latents), a picture, or a masked one."""
    if picture is None:
        return Start(_noise(pipe, batch) if latents is None else latents, plan)
    picture = picture.to(pipe.device)
    if mask is None:
        return from_picture(pipe, picture, plan, batch)
    mask = mask.to(pipe.device)
    return from_masked_picture(pipe, picture, mask, masked_latents, latents, strength, plan, batch)


def from_picture(pipe: Any, picture: Tensor, plan: SamplingPlan, batch: Batch) -> Start:
    """A picture (p 3 H W), or its latents, with the noise of the plan's first timestep."""
    latents = encode(pipe, picture, batch, each_its_own=True)
    noise = _noise(pipe, batch)
    return Start(pipe.scheduler.add_noise(latents, noise, plan.timesteps[0]), plan)


def from_masked_picture(
    pipe: Any,
    picture: Tensor,
    mask: Tensor,
    masked_latents: Tensor | None,
    noise: Tensor | None,
    strength: float,
    plan: SamplingPlan,
    batch: Batch,
) -> Start:
    """A picture to be painted anew where the mask is 1.

    A U-Net for inpainting has the mask and the masked picture's latents as further channels. For another one, what the
    mask leaves is put back after each step, at that step's level of noise.

    Args:
        picture: (p 3 H W), or its latents.
        mask: (m 1 H W) of zeros and ones.
        masked_latents: (p z h w), instead of those of the picture without what the mask covers.
        noise: x_T, instead of what the generator gives.
        strength: 1 starts from noise alone.

    Generators that are given are drawn from in diffusers' order, so that they give what they give there.
    """
    channels, size = batch.shape[1], batch.shape[2:]
    blends = pipe.unet.config.in_channels == channels
    is_latent = picture.shape[1] == channels
    latents = None
    if blends or (noise is None and strength < 1):
        latents = encode(pipe, picture, batch, each_its_own=batch.seeded)
    given = noise
    noise = _noise(pipe, batch) if noise is None else noise
    x = noise
    if given is None and strength < 1:
        x = pipe.scheduler.add_noise(latents, noise, plan.timesteps[0])
    small = _spread(F.interpolate(mask, size=size), batch, "masks").to(noise)

    if blends:
        assert latents is not None
        original = latents
        if masked_latents is None and not (is_latent or batch.seeded):  # of no use here, but diffusers draws for them
            pictures = max(len(picture), len(mask))
            gaussian_noise((pictures, *batch.shape[1:]), _first(batch.generator, pictures), pipe.device, pipe.vae.dtype)

        def keep(x: Tensor, index: int) -> Tensor:
            kept = original
            if index + 1 < len(plan):
                kept = pipe.scheduler.add_noise(original, noise, plan.timesteps[index + 1])
            return (1 - small) * kept + small * x

        return Start(x, plan, keep=keep)

    if masked_latents is None:
        if is_latent:
            raise ValueError("this U-Net sees the masked picture: with latents as image, give masked_image_latents")
        masked_latents = encode(pipe, picture * (mask < 0.5), batch, each_its_own=batch.seeded)
    else:
        masked_latents = _spread(masked_latents.to(noise), batch, "masked_image_latents")
    if masked_latents.shape[1:] != batch.shape[1:]:
        raise ValueError(f"masked_image_latents have shape {tuple(masked_latents.shape)}, needed is {batch.shape}")
    return Start(x, plan, channels=torch.cat([small, masked_latents], dim=1))


def encode(pipe: Any, picture: Tensor, batch: Batch, each_its_own: bool) -> Tensor:
    """The latents (b z h w) of pictures (p 3 H W), as the diffusion model knows them; latents are left as they are.

    Args:
        each_its_own: with a list of generators, copies of one picture are drawn from by a generator each.
    """
    if picture.shape[1] == batch.shape[1]:
        latents = picture.to(pipe.device, pipe.dtype)
    else:
        generator = batch.generator
        with pipe.in_use(pipe.vae) as vae:
            dist = vae.encode(picture.to(pipe.device, vae.dtype)).latent_dist
        if isinstance(generator, Sequence):
            if each_its_own:
                dist = type(dist)(_spread(dist.parameters, batch, "pictures"))
            generator = _first(generator, len(dist.parameters))
        latents = pipe.scaled(dist.sample(generator))
    if latents.shape[2:] != batch.shape[2:]:
        raise ValueError(f"image has latents of shape {tuple(latents.shape)}, needed is {batch.shape}")
    return _spread(latents, batch, "pictures")


def check_channels(unet: Any, latents: int, masked: bool) -> None:
    """Raise a ConfigError unless the U-Net takes latents, or for a masked picture also a mask and its latents."""
    channels = unet.config.in_channels
    if channels == latents or (masked and channels == 2 * latents + 1):
        return
    if channels == 2 * latents + 1:
        raise ConfigError("this U-Net is for inpainting: give image and mask_image")
    raise ConfigError(f"the U-Net takes {channels} channels, and the autoencoder's latents have {latents}")


def _noise(pipe: Any, batch: Batch) -> Tensor:
    return gaussian_noise(batch.shape, batch.generator, pipe.device, pipe.dtype)


def _first(generator: Generators, count: int) -> Generators:
    return generator[:count] if isinstance(generator, Sequence) else generator


def _spread(x: Tensor, batch: Batch, name: str) -> Tensor:
    """One for all images, one for each prompt, or one for each image: (b …)."""
    count = batch.shape[0]
    if len(x) == count:
        return x
    if len(x) == 1:
        return x.expand(count, *x.shape[1:])
    if len(x) == batch.prompts:
        return x.repeat_interleave(count // batch.prompts, dim=0)
    raise ValueError(f"{len(x)} {name} do not fit {batch.prompts} prompts and {count} images: give one, or as many")
