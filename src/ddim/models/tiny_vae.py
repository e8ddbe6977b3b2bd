"""A small autoencoder that imitates a large one, such as TAESD: of convolutions and ReLUs alone, and without a norm.

It maps images to the latents that a diffusion model knows, already scaled, and back, much faster than the autoencoder
that it was distilled from and in a thirtieth of its size; the pictures lose a little of their detail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddim.checkpoint import PretrainedModel
from ddim.checkpoint.config import Config, register_to_config
from ddim.errors import ConfigError
from ddim.models.activations import activation
from ddim.models.core import HasCore
from ddim.models.recompute import CanRecompute, Recomputing
from ddim.models.settings import look_up
from ddim.models.tiling import TakesParts
from ddim.models.vae import DecoderOutput
from ddim.noise import Generators
from ddim.step import Output

UPSAMPLING = ("nearest", "nearest-exact", "bilinear", "bicubic")
TILE = 512  # pixels of a tile's side
OVERLAP = 0.125  # the share of a side that a tile has in common with the next one
SOFT_LIMIT = 3.0  # the decoder is given 3 tanh(z / 3), so that latents far outside the usual range do no harm


@dataclass(eq=False)
class AutoencoderTinyOutput(Output):
    """What `AutoencoderTiny.encode` returns: `.latents`, which is `[0]` too. There is no distribution to draw from."""

    latents: Tensor  # (b z h w)


class AutoencoderTinyBlock(nn.Module):
    """Three convolutions beside which the input goes on: (b c h w) -> (b c h w)."""

    def __init__(self, channels: int, act_fn: str) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            activation(act_fn),
            nn.Conv2d(channels, channels, 3, padding=1),
            activation(act_fn),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fuse(self.conv(x) + x)
        return out


class TinyCoder(Recomputing):
    """Layers that run one after the other."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.run(layer, x)
        return x


class EncoderTiny(TinyCoder):
    """Images (b c H W) in [-1, 1] to latents (b z h w)."""

    def __init__(self, channels: int, latents: int, blocks: Sequence[int], width: int, act_fn: str) -> None:
        layers: list[nn.Module] = []
        for level, count in enumerate(blocks):
            layers.append(
                nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
                if level
                else nn.Conv2d(channels, width, 3, padding=1)
            )
            layers += [AutoencoderTinyBlock(width, act_fn) for _ in range(count)]
        super().__init__([*layers, nn.Conv2d(width, latents, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x + 1) / 2)


class DecoderTiny(TinyCoder):
    """Latents (b z h w) to images (b c H W) in about [-1, 1]."""

    def __init__(
        self,
        channels: int,
        latents: int,
        blocks: Sequence[int],
        width: int,
        act_fn: str,
        enlarge: Callable[[], nn.Module],
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(latents, width, 3, padding=1), activation(act_fn)]
        for level, count in enumerate(blocks):
            layers += [AutoencoderTinyBlock(width, act_fn) for _ in range(count)]
            if level < len(blocks) - 1:
                layers += [enlarge(), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        super().__init__([*layers, nn.Conv2d(width, channels, 3, padding=1)])

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(SOFT_LIMIT * torch.tanh(z / SOFT_LIMIT)) * 2 - 1


class AutoencoderTiny(HasCore, CanRecompute, TakesParts, PretrainedModel):
    """The autoencoder of madebyollin/taesd, taesdxl and their like; the constructor's arguments are diffusers'.

    Args:
        in_channels, out_channels: of the images that are encoded, and of those that are decoded.
        encoder_block_out_channels, decoder_block_out_channels: channels at each resolution, which are all the same: at
            the encoder's from the highest to the lowest, at the decoder's from the lowest to the highest. With n
            resolutions, latents have 1/2^(n-1) of the images' height and width.
        act_fn: the blocks' activation, a key of `ACTIVATIONS`.
        upsample_fn: how the decoder enlarges, one of UPSAMPLING.
        latent_channels: channels of the latents.
        upsampling_scaling_factor: how many times the decoder enlarges from one resolution to the next.
        num_encoder_blocks, num_decoder_blocks: residual blocks at each resolution.
        latent_magnitude, latent_shift: by these, `scale_latents` takes latents to [0, 1].
        force_upcast: without effect; the config always says false.
        scaling_factor, shift_factor: as of `AutoencoderKL`; 1 and 0, as the latents are scaled already.

    Raises:
        ConfigError: arguments that are unknown or do not fit together.
    """

    foreign_keys: ClassVar[frozenset[str]] = frozenset({"block_out_channels"})  # diffusers writes it; see make_config

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
        latent_channels: int = 4,
        upsampling_scaling_factor: int = 2,
        num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3),
        num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1),
        latent_magnitude: int = 3,
        latent_shift: float = 0.5,
        force_upcast: bool = False,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        look_up("way to enlarge", upsample_fn, dict.fromkeys(UPSAMPLING))
        widths = {
            "encoder": _width("encoder", encoder_block_out_channels, num_encoder_blocks),
            "decoder": _width("decoder", decoder_block_out_channels, num_decoder_blocks),
        }

        def enlarge() -> nn.Module:
            return nn.Upsample(scale_factor=upsampling_scaling_factor, mode=upsample_fn)

        self.encoder = EncoderTiny(in_channels, latent_channels, num_encoder_blocks, widths["encoder"], act_fn)
        self.decoder = DecoderTiny(
            out_channels, latent_channels, num_decoder_blocks, widths["decoder"], act_fn, enlarge
        )
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.latent_magnitude, self.latent_shift = latent_magnitude, latent_shift
        self.spatial_scale_factor = 2 ** (len(num_encoder_blocks) - 1)
        self.tile_sample_min_size, self.tile_overlap_factor = TILE, OVERLAP
        self.tile_latent_min_size = TILE // self.spatial_scale_factor

    @classmethod
    def make_config(cls, values: Mapping[str, Any]) -> Config:
        """With `block_out_channels`, by whose number pipelines know how many pixels a latent stands for."""
        widths = values["decoder_block_out_channels"]
        return super().make_config({**values, "block_out_channels": widths, "force_upcast": False})

    def scale_latents(self, x: Tensor) -> Tensor:
        """Latents as numbers in [0, 1], in the same shape, such as an image file can hold."""
        return (x / (2 * self.latent_magnitude) + self.latent_shift).clamp(0, 1)

    def unscale_latents(self, x: Tensor) -> Tensor:
        """What `scale_latents` undoes: numbers in [0, 1] as latents, in the same shape."""
        return (x - self.latent_shift) * (2 * self.latent_magnitude)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | Any:
        """The latents of images, `.latents`, as the diffusion model knows them.

        Args:
            x: images in [-1, 1], (b c H W).
            return_dict: False gives a plain tuple.

        Raises:
            ValueError: the images have another shape.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"images must have shape (b, {self.in_channels}, h, w), not {tuple(x.shape)}")
        latents = self._in_parts(self.encoder, x, self.tile_sample_min_size, 1, self.spatial_scale_factor)
        return AutoencoderTinyOutput(latents) if return_dict else (latents,)

    def decode(self, x: Tensor, generator: Generators = None, return_dict: bool = True) -> DecoderOutput | Any:
        """The images `.sample` of latents, (b c H W), in about [-1, 1].

        Args:
            x: latents as `encode` gives them, (b z h w).
            generator: not looked at, as nothing is drawn at random.
            return_dict: False gives a plain tuple.

        Raises:
            ValueError: the latents have another shape.
        """
        if x.ndim != 4 or x.shape[1] != self.latent_channels:
            raise ValueError(f"latents must have shape (b, {self.latent_channels}, h, w), not {tuple(x.shape)}")
        images = self._in_parts(self.run_core, x, self.tile_latent_min_size, self.spatial_scale_factor, 1)
        return DecoderOutput(images) if return_dict else (images,)

    def core(self, *inputs: Tensor) -> Tensor:
        """The decoder: latents (b z h w) to images (b c H W)."""
        out: Tensor = self.decoder(*inputs)
        return out

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | Any:
        """Encode images, round their latents to 256 levels, as if they were stored in an image file, and decode them.

        Args:
            sample: images in [-1, 1], (b c H W).
            return_dict: False gives a plain tuple.
        """
        stored = (self.scale_latents(self.encode(sample).latents) * 255).round().byte()
        return self.decode(self.unscale_latents(stored / 255).to(sample.dtype), return_dict=return_dict)

    def _in_parts(self, function: Callable[[Tensor], Tensor], x: Tensor, tile: int, times: int, part: int) -> Tensor:
        """`function(x)` for x (b c h w), one image and one tile after another where that was asked for.

        Args:
            tile: the side of the tiles of x.
            times, part: the result has times/part of the height and width of x.
        """
        if not self.use_tiling:
            return self.each(function, x)
        overlap = int(tile * self.tile_overlap_factor)
        return self.each(lambda image: _blended(function, image, tile, overlap, times, part), x)


def _width(coder: str, widths: Sequence[int], blocks: Sequence[int]) -> int:
    """The number of channels of an encoder or decoder.

    Raises:
        ConfigError: its settings do not fit together, as no layer changes the number of channels.
    """
    names = f"{coder}_block_out_channels and num_{coder}_blocks"
    if len(widths) != len(blocks) or not blocks:
        raise ConfigError(f"{names} must have one entry for each resolution, not {len(widths)} and {len(blocks)}")
    if len(set(widths)) != 1 or not isinstance(widths[0], int) or widths[0] < 1:
        raise ConfigError(
            f"{coder}_block_out_channels must be one positive number at all resolutions, not {list(widths)!r:.100}"
        )
    if not all(isinstance(count, int) and count >= 0 for count in blocks):
        raise ConfigError(f"num_{coder}_blocks must be whole numbers of 0 or more, not {list(blocks)!r:.100}")
    return widths[0]


def _blended(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, times: int, part: int) -> Tensor:
    """`function(x)` for x (b c h w) on tiles, each laid over those before it with an edge that fades in.

    Args:
        tile: the side of the tiles, in pixels of x.
        overlap: how many of these pixels a tile has in common with the next one.
        times, part: the result has times/part of the height and width of x.
    """
    height, width = (-(-side * times // part) for side in x.shape[2:])
    edge = max(1, overlap * times // part - 1)
    fade = (torch.arange(tile * times // part, device=x.device, dtype=x.dtype) / edge).clamp(0, 1)
    out: Tensor | None = None
    for top in range(0, x.shape[2], tile - overlap):
        for left in range(0, x.shape[3], tile - overlap):
            new = function(x[:, :, top : top + tile, left : left + tile])
            if out is None:
                out = new.new_zeros(*new.shape[:2], height, width)
            y, z = top * times // part, left * times // part
            below = out[:, :, y : y + new.shape[2], z : z + new.shape[3]]
            down = fade[: new.shape[2], None] if top else torch.ones_like(fade[: new.shape[2], None])
            right = fade[None, : new.shape[3]] if left else torch.ones_like(fade[None, : new.shape[3]])
            below.copy_(torch.lerp(below, new, (down * right).expand_as(new)))
    assert out is not None  # as x has at least one pixel
    return out
