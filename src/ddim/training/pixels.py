"""Training a U-Net on pixels, unconditional or by class."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from ddim.checkpoint import Repository
from ddim.data import open_source
from ddim.data.preparation import Choice, Preparation
from ddim.data.stream import Stream
from ddim.errors import ConfigError
from ddim.images import image_grid
from ddim.models import UNet2DModel
from ddim.pipelines import DDIMPipeline
from ddim.training.diffusion import DiffusionLoss, draw_noise, draw_timesteps, train_scheduler
from ddim.training.objective import Losses, Objective
from ddim.training.settings import PixelSettings


def build_unet(settings: PixelSettings, resolution: int, channels: int, classes: int | None) -> UNet2DModel:
    """A new U-Net with random weights. It has one class more than the data, which stands for no class."""
    widths = settings.block_out_channels
    levels = {level % len(widths) for level in settings.attention_levels}
    attention = [level in levels for level in range(len(widths))]
    return UNet2DModel(
        sample_size=resolution,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=settings.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        attention_head_dim=settings.attention_head_dim,
        norm_num_groups=math.gcd(32, *widths),
        dropout=settings.dropout,
        num_class_embeds=None if classes is None else classes + 1,
    )


class Pixels(Objective):
    """The loss of a U-Net on images (b c h w) in [-1, 1]."""

    def __init__(self, settings: PixelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.source = open_source(
            settings.data,
            settings.class_conditional,
            settings.image_column,
            settings.label_column,
            settings.dataset_config_name,
            **settings.hub,
        )
        if settings.max_train_samples is not None:
            self.source = dataclasses.replace(self.source, count=min(self.source.count, settings.max_train_samples))
        classes = len(self.source.class_names) if settings.class_conditional else None
        if classes == 0:
            raise ConfigError(f"{settings.data} has no classes: leave out class_conditional")
        self.none = classes  # the label that stands for no class
        self.count = self.source.count
        resolution = settings.resolution or (8 if settings.data == "digits" else 32)
        self.prepare_image = Preparation(
            resolution,
            self.source.channels,
            settings.center_crop,
            settings.random_flip,
            interpolation=settings.image_interpolation_mode,
        )
        pipeline = None
        if settings.pretrained_model_name_or_path is not None:
            pipeline = DDIMPipeline.from_pretrained(
                settings.pretrained_model_name_or_path,
                revision=settings.revision,
                variant=settings.variant,
                **settings.hub,
            )
        self.scheduler = train_scheduler(settings, None if pipeline is None else pipeline.scheduler.config, "linear")
        if pipeline is not None:
            unet = pipeline.unet
            self._check_fit(settings.pretrained_model_name_or_path, unet)
        elif settings.model_config_name_or_path is not None:
            options = {**settings.hub, "revision": settings.revision}
            repository = Repository.open(settings.model_config_name_or_path, options)
            unet = UNet2DModel.construct(*UNet2DModel.read_config(repository, "unet"))
            self._check_fit(settings.model_config_name_or_path, unet)
        else:
            unet = build_unet(settings, resolution, self.source.channels, classes)
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if resolution % unet.multiple:
            raise ConfigError(f"resolution must be a multiple of {unet.multiple} for this model, not {resolution}")
        self.networks = nn.ModuleDict({"unet": unet})
        dream = settings.dream_detail_preservation if settings.dream_training else None
        self.loss = DiffusionLoss(self.scheduler, settings.snr_gamma, dream)
        self.num_train_timesteps = self.scheduler.config.num_train_timesteps
        self.dataset().image(0, Choice())  # fails at once, if the images are not of this resolution

    def _check_fit(self, name: str | None, unet: UNet2DModel) -> None:
        config, channels = unet.config, self.source.channels
        wanted = None if self.none is None else self.none + 1
        if config.in_channels != channels or config.num_class_embeds != wanted:
            raise ConfigError(
                f"{name} has {config.in_channels} channels and "
                f"{config.num_class_embeds} class embeddings; the data asks for {channels} and {wanted}"
            )

    def dataset(self) -> Stream:
        return Stream(self.source, self.prepare_image, self.settings.seed)

    def forward(self, batch: dict[str, Any]) -> Losses:
        x0: Tensor = batch["image"]
        eps = draw_noise(self.settings, x0)
        timesteps = draw_timesteps(self.num_train_timesteps, x0)
        perturbation = None
        if self.settings.input_perturbation:
            perturbation = self.settings.input_perturbation * torch.randn_like(x0)
        labels = None
        if self.none is not None:
            dropped = torch.rand(len(x0), device=x0.device) < self.settings.class_dropout
            labels = batch["label"].masked_fill(dropped, self.none)

        def denoiser(x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.networks["unet"](x, t, labels).sample
            return out

        return Losses(self.loss(denoiser, x0, eps, timesteps, perturbation), timesteps)

    def finished(self, networks: nn.ModuleDict) -> DDIMPipeline:
        return DDIMPipeline(cast(UNet2DModel, networks["unet"]), self.scheduler)

    @property
    def shown(self) -> int:  # type: ignore[override]
        return self.settings.num_validation_images or (16 if self.none is None else min(2 * self.none, 32))

    @property
    def passes(self) -> int:  # type: ignore[override]
        return self.settings.validation_inference_steps

    def preview(self, finished: DDIMPipeline, most: int | None = None) -> Image.Image:
        finished.set_progress_bar_config(disable=True)
        count = min(self.shown, most or self.shown)
        labels = None if self.none is None else [number % self.none for number in range(count)]
        names = None if labels is None else [self.source.class_names[label] for label in labels]
        images = finished(count, class_labels=labels, num_inference_steps=self.passes, seed=0)[0]
        columns = 8 if self.none is None else min(self.none, 16)
        return image_grid(images, columns=min(columns, count), captions=names)

    def next_command(self, folder: str) -> list[str]:
        return ["ddim", "sample", "--model", folder, "--out", f"{folder}/try.png"]

    def record(self) -> dict[str, Any]:
        return {"images": self.count, "class_names": list(self.source.class_names)}
