"""What the networks are built from: residual blocks, resampling, and their stacks for one resolution.

A residual block is given the timestep as a vector that was projected for it beforehand, by `Block.project_time`. So a
sampler can project all timesteps of a run once, before it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddim.models.activations import activation
from ddim.models.attention import KeyValue
from ddim.models.recompute import Recomputing
from ddim.models.settings import look_up
from ddim.models.transformer import Text, Transformer2DModel

Times = Iterator[Tensor | None]  # the timestep as projected for each residual block in order, (b|1 k)
Size = tuple[int, int]  # height and width
AttentionFactory = Callable[[int], nn.Module]  # channels -> an attention layer


class Style(NamedTuple):
    """What all residual blocks of a network have in common."""

    time_channels: int | None  # of the timestep's embedding; None if the blocks are not told the timestep
    groups: int = 32  # of the group norms
    eps: float = 1e-6  # added to the norms' variance
    act_fn: str = "silu"
    time_scale_shift: str = "default"  # how the timestep acts, see `ResnetBlock2D`
    dropout: float = 0.0
    output_scale: float = 1.0  # what each block's result is divided by


def halve(x: Tensor) -> Tensor:
    """The mean of each 2x2 square: (b c h w) -> (b c h/2 w/2)."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Each pixel as a 2x2 square: (b c h w) -> (b c 2h 2w)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResnetBlock2D(nn.Module):
    """Two convolutions with the timestep in between, added to the input: (b in h w), (b|1 k) -> (b out h' w').

    By default the timestep's vector is added to the features (k = out). With `time_scale_shift="scale_shift"` one half
    of it scales them and the other is added (k = 2·out). `resample` changes height and width, of the features and of
    the input that they are added to.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style: Style, resample: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        shifts = look_up("resnet_time_scale_shift", style.time_scale_shift, {"default": 1, "scale_shift": 2})
        self.scales = shifts == 2
        self.output_scale = style.output_scale
        self.resample = resample
        self.act = activation(style.act_fn)
        self.norm1 = nn.GroupNorm(style.groups, in_channels, style.eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if style.time_channels is not None:
            self.time_emb_proj = nn.Linear(style.time_channels, shifts * out_channels)
        self.norm2 = nn.GroupNorm(style.groups, out_channels, style.eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h: Tensor = self.act(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        if time is None:
            h = self.norm2(h)
        elif self.scales:
            scale, shift = time[:, :, None, None].chunk(2, dim=1)  # (b|1 out 1 1) each
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time[:, :, None, None])  # (b out h' w') + (b|1 out 1 1)
        h = self.conv_shortcut(x) + self.conv2(self.dropout(self.act(h)))  # (b out h' w')
        return h if self.output_scale == 1 else h / self.output_scale


class Downsample2D(nn.Module):
    """A convolution with a stride of 2: (b c h w) -> (b c h/2 w/2).

    With a padding of 0, one row and one column of zeros are added at the bottom and at the right only, as the published
    autoencoders were trained with.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample2D(nn.Module):
    """Each pixel repeated, to twice the height and width or to `size`, and a convolution: (b c h w) -> (b c h' w')."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        out: Tensor = self.conv(double(x) if size is None else F.interpolate(x, size=size, mode="nearest"))
        return out


class Block(Recomputing):
    """Residual blocks at one resolution, each followed by an attention layer or none, and at the end a resampling."""

    resnets: nn.ModuleList
    attentions: nn.ModuleList

    def resamplers(self) -> Iterable[nn.Module]:
        """The layers at the end that change the resolution."""
        return ()

    def project_time(self, emb: Tensor) -> list[Tensor]:
        """The time embedding (b e), after its activation, projected for each residual block: (b k) each."""
        return [project(emb) for project in self.time_projections()]

    def time_projections(self) -> list[nn.Linear]:
        """The layers that project the time embedding, in the order in which the residual blocks run."""
        layers = (*self.resnets, *self.resamplers())
        return [layer.time_emb_proj for layer in layers if isinstance(layer, ResnetBlock2D)]

    def project_text(self, text: Tensor) -> list[KeyValue]:
        """The keys and values that the attention layers make of a text (b s d), in the order of their use."""
        layers = (layer for layer in self.attentions if isinstance(layer, Transformer2DModel))
        return [pair for layer in layers for pair in layer.project_text(text)]

    def attend(self, i: int, x: Tensor, text: Text | None) -> Tensor:
        """The i-th attention layer on x (b c h w), or x where the block has no attention."""
        if not self.attentions:
            return x
        layer = self.attentions[i]
        out: Tensor = layer(x, text) if isinstance(layer, Transformer2DModel) else self.run(layer, x)
        return out


class DownBlock2D(Block):
    """The way down at one resolution.

    Args:
        in_channels, out_channels: of what comes in, and of all outputs.
        layers: residual blocks.
        style: what all residual blocks have in common.
        attention: makes the layer after each residual block; None for none.
        downsampler: "conv" or "resnet" halves height and width at the end; None does not.
        padding: of the "conv".

    Raises:
        ConfigError: there is no such downsampler.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        style: Style,
        attention: AttentionFactory | None = None,
        downsampler: str | None = None,
        padding: int = 1,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.attentions = nn.ModuleList(attention(out_channels) for _ in widths if attention)
        self.resnets = nn.ModuleList(ResnetBlock2D(width, out_channels, style) for width in widths)
        if downsampler is not None:
            kinds: dict[str, Callable[[], nn.Module]] = {
                "conv": lambda: Downsample2D(out_channels, padding),
                "resnet": lambda: ResnetBlock2D(out_channels, out_channels, style, halve),
            }
            self.downsamplers = nn.ModuleList([look_up("downsample_type", downsampler, kinds)()])

    def resamplers(self) -> Iterable[nn.Module]:
        return getattr(self, "downsamplers", ())

    def forward(self, x: Tensor, times: Times, text: Text | None = None) -> list[Tensor]:
        """Every layer's output (b out h w), which the way up is given; the last is the input of the next block."""
        outputs = []
        for i, resnet in enumerate(self.resnets):
            x = self.attend(i, self.run(resnet, x, next(times)), text)
            outputs.append(x)
        for layer in self.resamplers():
            x = self.run(layer, x, next(times)) if isinstance(layer, ResnetBlock2D) else layer(x)
            outputs.append(x)
        return outputs


class MidBlock2D(Block):
    """A residual block, then `layers` times an attention layer, if there is one, and a residual block."""

    def __init__(self, channels: int, style: Style, attention: AttentionFactory | None = None, layers: int = 1) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attention(channels) for _ in range(layers) if attention)
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, channels, style) for _ in range(layers + 1))

    def forward(self, x: Tensor, times: Times, text: Text | None = None) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = self.run(resnet, self.attend(i - 1, x, text) if i else x, next(times))
        return x


class UpBlock2D(Block):
    """The way up at one resolution. Each residual block is also given an output of the way down.

    Args:
        in_channels, out_channels: of what comes in, and of what comes out.
        skip_channels: of the way down's output that the last residual block is given; the others have `out_channels`.
        layers: residual blocks.
        style: what all residual blocks have in common.
        attention: makes the layer after each residual block; None for none.
        upsampler: "conv" or "resnet" doubles height and width at the end; None does not.

    Raises:
        ConfigError: there is no such upsampler.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        skip_channels: int,
        layers: int,
        style: Style,
        attention: AttentionFactory | None = None,
        upsampler: str | None = None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        skips = [out_channels] * (layers - 1) + [skip_channels]
        self.attentions = nn.ModuleList(attention(out_channels) for _ in widths if attention)
        self.resnets = nn.ModuleList(
            ResnetBlock2D(width + skip, out_channels, style) for width, skip in zip(widths, skips, strict=True)
        )
        if upsampler is not None:
            kinds: dict[str, Callable[[], nn.Module]] = {
                "conv": lambda: Upsample2D(out_channels),
                "resnet": lambda: ResnetBlock2D(out_channels, out_channels, style, double),
            }
            self.upsamplers = nn.ModuleList([look_up("upsample_type", upsampler, kinds)()])

    def resamplers(self) -> Iterable[nn.Module]:
        return getattr(self, "upsamplers", ())

    def forward(self, x: Tensor, skips: list[Tensor], times: Times, text: Text | None = None) -> Tensor:
        """x (b in h w) -> (b out h' w'); the outputs of the way down that are used are taken off the end of `skips`."""
        for i, resnet in enumerate(self.resnets):  # each is given (b in+skip h w)
            x = self.attend(i, self.run(resnet, torch.cat((x, skips.pop()), dim=1), next(times)), text)
        for layer in self.resamplers():
            takes_time = isinstance(layer, ResnetBlock2D)
            x = self.run(layer, x, next(times)) if takes_time else layer(x, skips[-1].shape[-2:])
        return x
