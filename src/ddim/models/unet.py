"""The U-Net of DDPM and DDIM: from a noisy image, a timestep and, of some models, a class to a prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ddim.checkpoint.config import register_to_config
from ddim.errors import ConfigError
from ddim.models.attention import spatial_attention
from ddim.models.backbone import Backbone, ChosenTimes, ClassTimeCache, Level, TimeCache, UNet2DOutput
from ddim.models.blocks import Style, UNetMidBlock2D
from ddim.models.embeddings import (
    GaussianFourierProjection,
    LearnedTimesteps,
    TimestepEmbedding,
    Timesteps,
    as_timesteps,
)
from ddim.models.settings import check_levels, look_up

# What a block's name in a config says: whether an attention layer follows each residual block, and which layer changes
# the resolution; where that is None, `downsample_type` and `upsample_type` of the config say it.
DOWN_BLOCKS: dict[str, tuple[bool, str | None]] = {
    "DownBlock2D": (False, "conv"),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "AttnDownBlock2D": (True, None),
}
UP_BLOCKS: dict[str, tuple[bool, str | None]] = {
    "UpBlock2D": (False, "conv"),
    "ResnetUpsampleBlock2D": (False, "resnet"),
    "AttnUpBlock2D": (True, None),
}


class UNet2DModel(Backbone):
    """The unconditional or class-conditional U-Net; the constructor's arguments are diffusers'.

    Args:
        sample_size: height and width of the samples the model was trained on, or a pair of them. It is kept for those
            who draw with the model: the network takes other sizes as well.
        in_channels, out_channels: of the samples, and of the prediction.
        center_input_sample: the samples are in [0, 1], and the network moves them to [-1, 1] first.
        time_embedding_type: "positional" (sines and cosines), "fourier" (the timestep is a noise level, and the output
            is divided by it) or "learned" (a vector for each of `num_train_timesteps`).
        time_embedding_dim: channels of the timestep's embedding; 4 times the first of `block_out_channels` unless told.
        freq_shift, flip_sin_to_cos: see `embeddings.sinusoids`.
        down_block_types: a key of DOWN_BLOCKS for each resolution, from the highest to the lowest.
        mid_block_type: "UNetMidBlock2D", or None for no block between the two ways.
        up_block_types: a key of UP_BLOCKS for each resolution, from the lowest to the highest.
        block_out_channels: channels at each resolution, from the highest to the lowest; multiples of `norm_num_groups`.
        layers_per_block: residual blocks at each resolution on the way down; there is one more on the way up.
        mid_block_scale_factor: what the results of the layers in the middle are divided by.
        downsample_padding: of the convolutions that halve the resolution.
        downsample_type, upsample_type: "conv" or "resnet", for blocks whose name does not say it.
        dropout: the share of features that the residual blocks drop in training.
        act_fn: the residual blocks' activation, a key of `ACTIVATIONS`.
        attention_head_dim: channels of an attention head; None makes one head of all channels.
        norm_num_groups, norm_eps: groups of the norms, and what is added to their variance.
        attn_norm_num_groups: groups of the norm in the middle's attention, if they differ from `norm_num_groups`.
        resnet_time_scale_shift: "default" (the timestep is added) or "scale_shift" (it also scales).
        add_attention: whether there is attention in the middle.
        class_embed_type: None (a vector for each of `num_class_embeds` classes, or no classes if that is None),
            "timestep" (labels are numbers, embedded as timesteps are) or "identity" (labels are vectors already).
        num_class_embeds: the number of classes.
        num_train_timesteps: the number of timesteps, for "learned".

    Raises:
        ConfigError: arguments that are unknown or do not fit together.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        super().__init__()
        check_levels(
            norm_num_groups,
            block_out_channels=block_out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
        )
        if mid_block_type not in (None, "UNetMidBlock2D"):
            raise ConfigError(f"unknown mid_block_type {mid_block_type!r:.100}; known are UNetMidBlock2D and None")
        width = block_out_channels[0]
        emb_dim = time_embedding_dim or 4 * width
        self.center_input_sample = center_input_sample
        self.divides_by_timestep = time_embedding_type == "fourier"
        self.multiple = 2 ** (len(block_out_channels) - 1)
        self.in_channels = in_channels

        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.time_proj = _time_features(time_embedding_type, width, flip_sin_to_cos, freq_shift, num_train_timesteps)
        features = 2 * width if self.divides_by_timestep else width
        self.time_embedding = TimestepEmbedding(features, emb_dim)
        self.class_embed_type = class_embed_type
        self.class_embedding = _class_embedding(class_embed_type, num_class_embeds, features, emb_dim)

        style = Style(emb_dim, norm_num_groups, norm_eps, act_fn, resnet_time_scale_shift, dropout)

        def attention(channels: int, _: int) -> nn.Module:
            return spatial_attention(channels, attention_head_dim, groups=norm_num_groups, eps=norm_eps)

        def middle_attention(channels: int, _: int) -> nn.Module:
            groups = attn_norm_num_groups
            if groups is None and resnet_time_scale_shift == "default":
                groups = norm_num_groups
            scale = mid_block_scale_factor
            return spatial_attention(channels, attention_head_dim, groups=groups, eps=norm_eps, output_scale=scale)

        def level(channels: int, layers: int, has_attention: bool, resampler: str | None) -> Level:
            return Level(
                channels, layers, attention if has_attention else None, "Attn" if has_attention else "", resampler
            )

        down, up = [], []
        for i, (channels, name) in enumerate(zip(block_out_channels, down_block_types, strict=True)):
            has_attention, resampler = look_up("down block type", name.removeprefix("UNetRes"), DOWN_BLOCKS)
            last = i == len(block_out_channels) - 1
            down.append(
                level(channels, layers_per_block, has_attention, None if last else resampler or downsample_type)
            )
        for i, (channels, name) in enumerate(zip(reversed(block_out_channels), up_block_types, strict=True)):
            has_attention, resampler = look_up("up block type", name.removeprefix("UNetRes"), UP_BLOCKS)
            last = i == len(block_out_channels) - 1
            up.append(
                level(channels, layers_per_block + 1, has_attention, None if last else resampler or upsample_type)
            )
        middle = None
        if mid_block_type is not None:
            scaled = style._replace(output_scale=mid_block_scale_factor)
            middle = UNetMidBlock2D(block_out_channels[-1], scaled, middle_attention if add_attention else None)
        self.build(style, down, middle, up, downsample_padding)

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, width, norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        *,
        time_cache: TimeCache | ClassTimeCache | ChosenTimes | None = None,
    ) -> UNet2DOutput | Any:
        """Predict from noisy samples.

        Args:
            sample: (b c h w), with h and w multiples of 2^(n-1) for a network of n resolutions.
            timestep: one for all samples, or one for each, (b,).
            class_labels: the class of each sample, (b,); with `class_embed_type="identity"`, vectors (b e).
            return_dict: False gives a plain tuple.
            time_cache: what `project_time` made of the run's timesteps and the class labels; `class_labels` is not
                looked at then.

        Returns:
            The prediction `.sample`, (b out_channels h w).

        Raises:
            ValueError: the sample's shape or the class labels do not fit.
        """
        if sample.ndim != 4 or sample.shape[1] != self.in_channels:
            raise ValueError(f"sample must have shape (b, {self.in_channels}, h, w), not {tuple(sample.shape)}")
        if sample.shape[2] % self.multiple or sample.shape[3] % self.multiple:
            raise ValueError(f"height and width must be multiples of {self.multiple}, not {tuple(sample.shape[2:])}")
        if self.center_input_sample:
            sample = 2 * sample - 1
        timesteps = as_timesteps(timestep, sample.shape[0], sample.device)  # (b)
        runner = self.active_runner()
        if time_cache is not None:
            out = self.run_by(runner, sample, time_cache.at(timestep))
        elif runner is not None:
            out = self.run_by(runner, sample, self.project(self.embed(timesteps, class_labels)))
        else:
            out = self.body(sample, self.embed(timesteps, class_labels))
        if self.divides_by_timestep:
            out = out / timesteps[:, None, None, None].to(out.dtype)
        return UNet2DOutput(out) if return_dict else (out,)


def _time_features(kind: str, dim: int, flip_sin_to_cos: bool, freq_shift: int, timesteps: int | None) -> nn.Module:
    """The layer from timesteps (b,) to features, by the config's `time_embedding_type`."""

    def learned() -> nn.Module:
        if timesteps is None:
            raise ConfigError("time_embedding_type='learned' needs num_train_timesteps, the number of timesteps")
        return LearnedTimesteps(timesteps, dim)

    kinds: dict[str, Callable[[], nn.Module]] = {
        "positional": lambda: Timesteps(dim, flip_sin_to_cos, freq_shift),
        "fourier": lambda: GaussianFourierProjection(dim, scale=16),
        "learned": learned,
    }
    return look_up("time_embedding_type", kind, kinds)()


def _class_embedding(kind: str | None, classes: int | None, features: int, emb_dim: int) -> nn.Module | None:
    """The layer from class labels to the embedding, by the config's `class_embed_type`; None without classes."""
    if kind is None:
        return None if classes is None else nn.Embedding(classes, emb_dim)
    kinds: dict[str, Callable[[], nn.Module]] = {
        "timestep": lambda: TimestepEmbedding(features, emb_dim),
        "identity": nn.Identity,
    }
    return look_up("class_embed_type", kind, kinds)()
