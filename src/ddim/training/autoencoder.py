"""Training an autoencoder: pictures to latents of a fraction of their width and height, and back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ddim.data import Source, hf_dataset, image_folder
from ddim.data.preparation import Preparation
from ddim.data.progress import progress
from ddim.data.stream import Stream
from ddim.errors import ConfigError
from ddim.images import image_grid
from ddim.models import AutoencoderKL
from ddim.models.vae import DiagonalGaussianDistribution
from ddim.training.objective import Losses, Objective
from ddim.training.parts import load_vae
from ddim.training.settings import PictureSettings, VAESettings

SHOWN = 8  # how many pictures a preview shows
MEASURED = 1024  # how many pictures the scale of the latents is measured on


def pictures(settings: PictureSettings) -> Source:
    """The images to train on; their captions are not read."""
    if settings.train_data_dir is not None:
        source = image_folder(settings.train_data_dir)
    else:
        name, config = settings.dataset_name or "", settings.dataset_config_name
        source = hf_dataset(name, settings.image_column, None, config, **settings.hub)
    most = settings.max_train_samples
    return source if most is None else dataclasses.replace(source, count=min(source.count, most))


def build_vae(settings: VAESettings, resolution: int) -> AutoencoderKL:
    """A new autoencoder, of the settings' size, with random weights."""
    widths = settings.block_out_channels
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        norm_num_groups=math.gcd(16, *widths),
        sample_size=resolution,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=settings.mid_block_add_attention,
    )


class Autoencoder(Objective):
    """The loss of an autoencoder on images (b 3 h w) in [-1, 1]."""

    preview_name: ClassVar[str] = "reconstructions"
    shown = SHOWN
    passes = 1

    def __init__(self, settings: VAESettings) -> None:
        super().__init__()
        self.settings = settings
        self.source = pictures(settings)
        self.count = self.source.count
        if settings.pretrained_model_name_or_path is None:
            resolution = settings.resolution or 64
            vae = build_vae(settings, resolution)
        else:
            options = {**settings.hub, "revision": settings.revision, "variant": settings.variant}
            vae = load_vae(settings.pretrained_model_name_or_path, **options)
            resolution = settings.resolution or vae.tile_sample_min_size
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if resolution % factor:
            raise ConfigError(f"resolution must be a multiple of {factor} for this autoencoder, not {resolution}")
        self.prepare_image = Preparation(
            resolution,
            3,
            settings.center_crop,
            settings.random_flip,
            "any" if settings.random_background else "white",
            settings.image_interpolation_mode,
        )
        if settings.gradient_checkpointing:
            vae.enable_gradient_checkpointing()
        self.networks = nn.ModuleDict({"vae": vae})

    def dataset(self) -> Stream:
        return Stream(self.source, self.prepare_image, self.settings.seed)

    def forward(self, batch: dict[str, Any]) -> Losses:
        vae, settings = cast(AutoencoderKL, self.networks["vae"]), self.settings
        images: Tensor = batch["image"]
        if settings.permute_colors:
            images = permute_colors(images)
        latents = vae.encode(images).latent_dist
        decoded = vae.decode(latents.sample()).sample.float()
        parts = autoencoder_loss(images, decoded, latents, settings.mse_weight, settings.gradient_weight)
        loss = parts["reconstruction"] + settings.kl_weight * parts["kl"]
        return Losses(loss, None, {name: value.mean() for name, value in parts.items()})

    @torch.no_grad()
    def finished(self, networks: nn.ModuleDict) -> AutoencoderKL:
        """The autoencoder, with the scaling factor that gives latents of the data a standard deviation of 1.

        The latents are those that text to image is trained on, drawn from what the encoder says: their variance is
        that of the means and the mean of the variances.
        """
        vae = cast(AutoencoderKL, networks["vae"])
        measured = Subset(self.dataset(), range(min(self.count, MEASURED)))
        total, square, count = 0.0, 0.0, 0
        for batch in progress(DataLoader(measured, batch_size=32), desc="measuring latents"):
            latents = vae.encode(batch["image"].to(vae.device, vae.dtype)).latent_dist
            mean, variance = latents.mean.double().cpu(), latents.var.double().cpu()
            total, square = total + mean.sum().item(), square + (mean**2 + variance).sum().item()
            count += mean.numel()
        deviation = math.sqrt(square / count - (total / count) ** 2)
        vae.register_to_config(scaling_factor=round(1 / deviation, 5))
        return vae

    @torch.no_grad()
    def preview(self, finished: AutoencoderKL, most: int | None = None) -> Image.Image:
        """A row of pictures, above what the autoencoder makes of them."""
        stream, count = self.dataset(), min(SHOWN, most or SHOWN)
        images = torch.stack([stream[position]["image"] for position in range(count)])
        decoded = finished(images.to(finished.device)).sample.cpu()
        pixels = (torch.cat([images, decoded]).clamp(-1, 1) + 1) * 127.5
        arrays = pixels.permute(0, 2, 3, 1).round().byte().numpy()
        captions = ["picture"] * count + ["reconstruction"] * count
        pictures = [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
        return image_grid(pictures, columns=count, captions=captions)

    def next_command(self, folder: str) -> list[str]:
        settings = self.settings
        data = ["--train-data-dir", settings.train_data_dir or ""]
        if settings.train_data_dir is None:
            data = ["--dataset-name", settings.dataset_name or ""]
            data += ["--dataset-config-name", settings.dataset_config_name] if settings.dataset_config_name else []
            data += ["--image-column", settings.image_column] if settings.image_column != "image" else []
        used = ["--pretrained-vae-model-name-or-path", folder, "--output-dir", f"{folder}-text-to-image"]
        return ["ddim", "train", "text-to-image", *data, *used]


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


def permute_colors(images: Tensor) -> Tensor:
    """Images (b 3 h w), half of them with red, green and blue in another order."""
    order = torch.stack([torch.randperm(3) for _ in range(len(images))])
    order[: len(images) // 2] = torch.arange(3)  # the stream is shuffled, so that any half will do
    return images.gather(1, order.to(images.device)[:, :, None, None].expand_as(images))
