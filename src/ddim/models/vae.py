"""The autoencoder of latent diffusion (Rombach et al. 2022): from images in [-1, 1] to smaller latents, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddim.checkpoint import PretrainedModel
from ddim.checkpoint.config import register_to_config
from ddim.models.attention import convert_attention_key, spatial_attention
from ddim.models.blocks import Downsample2D, ResnetBlock2D, Style, UNetMidBlock2D, Upsample2D
from ddim.models.core import HasCore
from ddim.models.processors import HasAttention
from ddim.models.recompute import CanRecompute, Recomputing
from ddim.models.settings import check_levels, look_up
from ddim.models.tiling import TakesParts, Tiles, in_tiles
from ddim.noise import Generators
from ddim.step import Output, described


@dataclass(frozen=True, repr=False)
class DiagonalGaussianDistribution:
    """What the encoder makes of images: for each number of the latents, a normal distribution of its own.

    Attributes:
        parameters: the means and then the logarithms of the variances, (b 2·z h w).
    """

    parameters: Tensor

    def __repr__(self) -> str:
        return f"DiagonalGaussianDistribution of parameters: {described(self.parameters)}"

    @property
    def mean(self) -> Tensor:
        """The means: (b z h w)."""
        return self.parameters.chunk(2, dim=1)[0]

    @property
    def logvar(self) -> Tensor:
        """The logarithms of the variances, kept in [-30, 20]: (b z h w)."""
        return self.parameters.chunk(2, dim=1)[1].clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """The standard deviations: (b z h w)."""
        return (0.5 * self.logvar).exp()

    @property
    def var(self) -> Tensor:
        """The variances: (b z h w)."""
        return self.logvar.exp()

    def mode(self) -> Tensor:
        """The most likely latents, which are the mean: (b z h w)."""
        return self.mean

    def sample(self, generator: Generators = None) -> Tensor:
        """Latents drawn at random from the distribution: (b z h w).

        Args:
            generator: of the random numbers: one for the batch, a list with one for each image, or None for torch's.

        Raises:
            ValueError: the list is not as long as there are images.
        """
        mean = self.mean
        if not isinstance(generator, Sequence):
            return mean + self.std * _randn(mean, generator)
        if len(generator) != len(mean):
            raise ValueError(f"{len(generator)} generators were given for {len(mean)} images: give one for each image")
        noise = [_randn(one, its_own) for one, its_own in zip(torch.split(mean, 1), generator, strict=True)]
        return mean + self.std * torch.cat(noise)

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """The Kullback-Leibler divergence from `other`, or from the standard normal distribution, in nats: (b,)."""
        if other is None:
            terms = self.mean**2 + self.var - 1 - self.logvar
        else:
            terms = ((self.mean - other.mean) ** 2 + self.var) / other.var - 1 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor) -> Tensor:
        """The negative log likelihood of latents (b z h w), in nats: (b,)."""
        terms = math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * terms.sum(dim=(1, 2, 3))


def _randn(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers in the shape of `like`, drawn on the generator's device and moved to that of `like`."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


@dataclass(eq=False)
class AutoencoderKLOutput(Output):
    """What `AutoencoderKL.encode` returns: `.latent_dist`, which is `[0]` too."""

    latent_dist: DiagonalGaussianDistribution


def most_likely_latents(encoded: Any) -> Tensor:
    """The latents (b z h w) of what an autoencoder's `encode` returned; of a distribution, its mode.

    Args:
        encoded: with `.latent_dist`, as of AutoencoderKL, or with `.latents`, as of AutoencoderTiny.
    """
    latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return latents


def drawn_latents(encoded: Any, generator: Generators = None) -> Tensor:
    """Latents (b z h w) drawn at random from the distribution that an autoencoder's `encode` returned.

    Args:
        encoded: as of `most_likely_latents`. Where there is no distribution, nothing is drawn.
        generator: as of `DiagonalGaussianDistribution.sample`.
    """
    latents: Tensor = encoded.latent_dist.sample(generator) if hasattr(encoded, "latent_dist") else encoded.latents
    return latents


@dataclass(eq=False)
class DecoderOutput(Output):
    """What the `decode` of an autoencoder returns: `.sample`, which is `[0]` too."""

    sample: Tensor  # (b c h w)


class DownEncoderBlock2D(Recomputing):
    """Residual blocks at one resolution and, with `resample`, a step to half of it: (b in h w) -> (b out h' w')."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, style: Style, resample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock2D(width, out_channels, style) for width in widths)
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)] if resample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = self.run(layer, x)
        return x


class UpDecoderBlock2D(Recomputing):
    """Residual blocks at one resolution and, with `resample`, a step to twice of it: (b in h w) -> (b out h' w')."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, style: Style, resample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock2D(width, out_channels, style) for width in widths)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)] if resample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = self.run(layer, x)
        return x


DOWN_BLOCKS = {"DownEncoderBlock2D": DownEncoderBlock2D}
UP_BLOCKS = {"UpDecoderBlock2D": UpDecoderBlock2D}


class Coder(nn.Module):
    """What encoder and decoder have in common: the layers at both ends, and blocks in the middle.

    Args:
        ends: channels of what comes in and of what comes out.
        widths: channels after the first layer and before the last one.
        deepest: channels in the middle, at the lowest resolution.
        style: what all residual blocks have in common.
        attend: whether there is attention in the middle.
    """

    def __init__(
        self, ends: tuple[int, int], widths: tuple[int, int], deepest: int, style: Style, attend: bool
    ) -> None:
        super().__init__()

        def attention(channels: int, _: int) -> nn.Module:
            return spatial_attention(channels, None, groups=style.groups, eps=style.eps)

        self.conv_in = nn.Conv2d(ends[0], widths[0], 3, padding=1)
        self.mid_block = UNetMidBlock2D(deepest, style, attention if attend else None)
        self.conv_norm_out = nn.GroupNorm(style.groups, widths[1], style.eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[1], ends[1], 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        """The blocks at the lowest resolution: (b deepest h w) -> (b deepest h w)."""
        out: Tensor = self.mid_block(x)
        return out

    def finish(self, x: Tensor) -> Tensor:
        """The last norm, activation and convolution: (b widths[1] h w) -> (b ends[1] h w)."""
        out: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return out


class Encoder(Coder):
    """Images (b c H W) to the parameters of a distribution (b 2·z h w)."""

    def __init__(
        self,
        channels: int,
        latents: int,
        types: Sequence[str],
        widths: Sequence[int],
        layers: int,
        style: Style,
        attend: bool,
    ) -> None:
        super().__init__((channels, 2 * latents), (widths[0], widths[-1]), widths[-1], style, attend)
        self.down_blocks = nn.ModuleList(
            look_up("down block type", name, DOWN_BLOCKS)(before, width, layers, style, resample=i < len(widths) - 1)
            for i, (name, before, width) in enumerate(zip(types, [widths[0], *widths], widths, strict=False))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.finish(self.middle(x))


class Decoder(Coder):
    """Latents (b z h w) to images (b c H W)."""

    def __init__(
        self,
        channels: int,
        latents: int,
        types: Sequence[str],
        widths: Sequence[int],
        layers: int,
        style: Style,
        attend: bool,
    ) -> None:
        super().__init__((latents, channels), (widths[-1], widths[0]), widths[-1], style, attend)
        upwards = list(reversed(widths))
        self.up_blocks = nn.ModuleList(
            look_up("up block type", name, UP_BLOCKS)(before, width, layers + 1, style, resample=i < len(widths) - 1)
            for i, (name, before, width) in enumerate(zip(types, [upwards[0], *upwards], upwards, strict=False))
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.finish(x)


class AutoencoderKL(HasAttention, HasCore, CanRecompute, TakesParts, PretrainedModel):
    """Stable Diffusion's autoencoder; the constructor's arguments are diffusers'.

    Args:
        in_channels, out_channels: of the images that are encoded, and of those that are decoded.
        down_block_types: a key of DOWN_BLOCKS for each resolution, from the highest to the lowest.
        up_block_types: a key of UP_BLOCKS for each resolution, from the lowest to the highest.
        block_out_channels: channels at each resolution, from the highest to the lowest; multiples of `norm_num_groups`.
            With n resolutions, latents have 1/2^(n-1) of the images' height and width.
        layers_per_block: residual blocks at each resolution of the encoder; the decoder has one more.
        act_fn: the residual blocks' activation, a key of `ACTIVATIONS`.
        latent_channels: channels of the latents.
        norm_num_groups: groups of the norms.
        sample_size: height and width of the images it was trained on, or a pair of them; the side of a tile.
        scaling_factor, shift_factor: a diffusion model is given (latents - shift) · scaling. This class leaves that to
            its caller, and so it does with `latents_mean`, `latents_std` and `force_upcast`.
        use_quant_conv, use_post_quant_conv: whether there is a 1x1 convolution after the encoder, before the decoder.
        mid_block_add_attention: whether there is attention in the middle of encoder and decoder.

    Raises:
        ConfigError: arguments that are unknown or do not fit together.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int | tuple[int, int] = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        check_levels(
            norm_num_groups,
            block_out_channels=block_out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
        )
        style = Style(None, norm_num_groups, 1e-6, act_fn)
        rest = (block_out_channels, layers_per_block, style, mid_block_add_attention)
        self.encoder = Encoder(in_channels, latent_channels, down_block_types, *rest)
        self.decoder = Decoder(out_channels, latent_channels, up_block_types, *rest)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else nn.Identity()

        size = sample_size if isinstance(sample_size, int) else sample_size[0]
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.tile_sample_min_size = size
        self.tile_latent_min_size = size // 2 ** (len(block_out_channels) - 1)
        self.tile_overlap_factor = 0.25

    @classmethod
    def convert_key(cls, key: str) -> str:
        return convert_attention_key(key)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | Any:
        """The distribution of images' latents, `.latent_dist`.

        Args:
            x: images in [-1, 1], (b c H W).
            return_dict: False gives a plain tuple.

        Raises:
            ValueError: the images have another shape.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"images must have shape (b, {self.in_channels}, h, w), not {tuple(x.shape)}")
        posterior = DiagonalGaussianDistribution(self.each(self._encode, x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Generators = None) -> DecoderOutput | Any:
        """The images `.sample` of latents, (b c H W), in about [-1, 1].

        Args:
            z: latents as `encode` gives them, without `scaling_factor` and `shift_factor`, (b z h w).
            return_dict: False gives a plain tuple.
            generator: not looked at, as nothing is drawn at random.

        Raises:
            ValueError: the latents have another shape.
        """
        if z.ndim != 4 or z.shape[1] != self.latent_channels:
            raise ValueError(f"latents must have shape (b, {self.latent_channels}, h, w), not {tuple(z.shape)}")
        images = self.each(self._decode, z)
        return DecoderOutput(images) if return_dict else (images,)

    def core(self, *inputs: Tensor) -> Tensor:
        """The decoder: latents (b z h w) to images (b c H W)."""
        (z,) = inputs
        if z.device.type == "cpu":  # on CPUs this memory format makes the decoder a sixth faster, but not the U-Nets
            z = z.contiguous(memory_format=torch.channels_last)
        out: Tensor = self.decoder(self.post_quant_conv(z))
        return out.contiguous()

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput | Any:
        """Encode images and decode their latents again.

        Args:
            sample: images in [-1, 1], (b c H W).
            sample_posterior: draw the latents at random; otherwise take the most likely ones.
            return_dict: False gives a plain tuple.
            generator: of the random latents, see `DiagonalGaussianDistribution.sample`.
        """
        latents = self.encode(sample).latent_dist
        return self.decode(latents.sample(generator) if sample_posterior else latents.mode(), return_dict)

    def _encode(self, x: Tensor) -> Tensor:
        def encode(tile: Tensor) -> Tensor:
            out: Tensor = self.quant_conv(self.encoder(tile))  # (b 2·z h w)
            return out

        size = self.tile_sample_min_size
        if self.use_tiling and max(x.shape[2:]) > size:
            return in_tiles(encode, x, Tiles(size, self.tile_latent_min_size, self.tile_overlap_factor))
        return encode(x)

    def _decode(self, z: Tensor) -> Tensor:
        size = self.tile_latent_min_size
        if self.use_tiling and max(z.shape[2:]) > size:
            return in_tiles(self.run_core, z, Tiles(size, self.tile_sample_min_size, self.tile_overlap_factor))
        out: Tensor = self.run_core(z)
        return out
