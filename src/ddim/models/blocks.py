"""What the networks are built from: residual blocks, resampling, and their stacks for one resolution.

A residual block is given the embedding of the timestep, or what was made of it for this block beforehand, by
`Block.project_time`: so a sampler can project all timesteps of a run once, before it begins.

Names of parts and arguments are diffusers', as people replace the `forward` of a part, or hook into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddim.models.activations import activation
from ddim.models.attention import KeyValue
from ddim.models.core import in_turn
from ddim.models.freeu import FreeU
from ddim.models.recompute import Recomputing
from ddim.models.settings import look_up
from ddim.models.transformer import Transformer2DModel

Size = tuple[int, int]  # height and width
AttentionFactory = Callable[[int, int], nn.Module]  # (channels, its number in the block) -> an attention layer


class Projected(NamedTuple):
    """The timestep's embedding, after its activation, as projected for one residual block."""

    vector: Tensor  # (b|1 k)


# The embedding (b e), None where there is no timestep, or what was made of it for each residual block in turn.
Times = Tensor | Iterator[Projected] | None


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
    """Two convolutions with the timestep in between, added to the input: (b in h w), (b e) -> (b out h' w').

    A linear layer makes a vector of the timestep's embedding. By default it is added to the features, and has as many
    channels as they have; with a `time_scale_shift` of "scale_shift" it has twice as many, of which one half scales the
    features and the other is added.

    Args:
        in_channels, out_channels: of what comes in, and of what comes out.
        style: what all residual blocks have in common.
        up: double height and width, of the features and of the input that they are added to.
        down: halve them.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style: Style, *, up: bool = False, down: bool = False
    ) -> None:
        super().__init__()
        shifts = look_up("resnet_time_scale_shift", style.time_scale_shift, {"default": 1, "scale_shift": 2})
        self.in_channels, self.out_channels = in_channels, out_channels
        self.time_embedding_norm = style.time_scale_shift
        self.output_scale_factor = style.output_scale
        self.upsample = double if up else None
        self.downsample = halve if down else None
        self.nonlinearity = activation(style.act_fn)
        self.norm1 = nn.GroupNorm(style.groups, in_channels, style.eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        time_channels = style.time_channels
        self.time_emb_proj = None if time_channels is None else nn.Linear(time_channels, shifts * out_channels)
        self.norm2 = nn.GroupNorm(style.groups, out_channels, style.eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, input_tensor: Tensor, temb: Tensor | Projected | None = None) -> Tensor:
        """(b in h w) -> (b out h' w').

        Args:
            input_tensor: the features.
            temb: the timestep's embedding (b e), or what was made of it for this block; None where there is none.
        """
        x = input_tensor
        h: Tensor = self.nonlinearity(self.norm1(x))
        resample = self.upsample or self.downsample
        if resample is not None:
            x, h = resample(x), resample(h)
        h = self.conv1(h)
        time = self._time(temb)
        if time is None:
            h = self.norm2(h)
        elif self.time_embedding_norm == "scale_shift":
            scale, shift = time[:, :, None, None].chunk(2, dim=1)  # (b|1 out 1 1) each
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time[:, :, None, None])  # (b out h' w') + (b|1 out 1 1)
        h = self.conv2(self.dropout(self.nonlinearity(h)))  # (b out h' w')
        h = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h
        return h if self.output_scale_factor == 1 else h / self.output_scale_factor

    def _time(self, temb: Tensor | Projected | None) -> Tensor | None:
        """The vector (b|1 k) that the block makes of the timestep's embedding."""
        if isinstance(temb, Projected):
            return temb.vector
        if temb is None or self.time_emb_proj is None:
            return None
        out: Tensor = self.time_emb_proj(self.nonlinearity(temb))
        return out


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
    """Residual blocks at one resolution, each followed by an attention layer or none, and at the end a resampling.

    Attributes:
        has_cross_attention: whether the attention layers look at a text. If so, the block is called with what
            `Transformer2DModel.forward` is told about it, by the same names: `encoder_hidden_states`,
            `encoder_attention_mask`, `attention_mask` and `cross_attention_kwargs`.
    """

    resnets: nn.ModuleList
    attentions: nn.ModuleList
    has_cross_attention = False

    def resamplers(self) -> Iterable[nn.Module]:
        """The layers at the end that change the resolution."""
        return ()

    def project_time(self, emb: Tensor) -> list[Tensor]:
        """The time embedding (b e), after its activation, projected for each residual block: (b k) each."""
        return [project(emb) for project in self.time_projections()]

    def time_projections(self) -> list[nn.Linear]:
        """The layers that project the time embedding, in the order in which the residual blocks run."""
        layers = (*self.resnets, *self.resamplers())
        return [layer.time_emb_proj for layer in layers if isinstance(layer, ResnetBlock2D) and layer.time_emb_proj]

    def project_text(self, text: Tensor) -> list[KeyValue]:
        """The keys and values that the attention layers make of a text (b s d), in the order of their use."""
        layers = (layer for layer in self.attentions if isinstance(layer, Transformer2DModel))
        return [pair for layer in layers for pair in layer.project_text(text)]

    def add_attentions(self, factory: AttentionFactory | None, channels: int, count: int) -> None:
        """Make the attention layers, if there are any."""
        self.attentions = nn.ModuleList(factory(channels, i) for i in range(count) if factory)
        self.has_cross_attention = any(isinstance(layer, Transformer2DModel) for layer in self.attentions)

    def attend(self, i: int, x: Tensor, text: Mapping[str, Any]) -> Tensor:
        """The i-th attention layer on x (b c h w), or x where the block has no attention."""
        if not self.attentions:
            return x
        layer = self.attentions[i]
        out: Tensor = layer(x, **text, return_dict=False)[0] if self.has_cross_attention else self.run(layer, x)
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
        self.add_attentions(attention, out_channels, layers)
        self.resnets = nn.ModuleList(ResnetBlock2D(width, out_channels, style) for width in widths)
        self.downsamplers = None
        if downsampler is not None:
            kinds: dict[str, Callable[[], nn.Module]] = {
                "conv": lambda: Downsample2D(out_channels, padding),
                "resnet": lambda: ResnetBlock2D(out_channels, out_channels, style, down=True),
            }
            self.downsamplers = nn.ModuleList([look_up("downsample_type", downsampler, kinds)()])

    def resamplers(self) -> Iterable[nn.Module]:
        return self.downsamplers or ()

    def forward(
        self,
        hidden_states: Tensor,
        temb: Times = None,
        additional_residuals: Tensor | None = None,
        **text: Any,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(b in h w) -> the input of the next block, and every layer's output (b out h' w'), which the way up is given.

        Args:
            hidden_states: the features.
            temb: see `Times`.
            additional_residuals: (b out h w), added before the resolution changes.
            text: see `Block`.
        """
        x, outputs = hidden_states, []
        for i, resnet in enumerate(self.resnets):
            x = self.attend(i, self.run(resnet, x, in_turn(temb)), text)
            if additional_residuals is not None and i == len(self.resnets) - 1:
                x = x + additional_residuals
            outputs.append(x)
        for layer in self.resamplers():
            x = self.run(layer, x, in_turn(temb)) if isinstance(layer, ResnetBlock2D) else layer(x)
            outputs.append(x)
        return x, tuple(outputs)


class AttnDownBlock2D(DownBlock2D):
    """The way down with attention among the positions after each residual block."""


class CrossAttnDownBlock2D(DownBlock2D):
    """The way down with a transformer after each residual block."""


class UNetMidBlock2D(Block):
    """A residual block, then `layers` times an attention layer, if there is one, and a residual block."""

    def __init__(self, channels: int, style: Style, attention: AttentionFactory | None = None, layers: int = 1) -> None:
        super().__init__()
        self.add_attentions(attention, channels, layers)
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, channels, style) for _ in range(layers + 1))

    def forward(self, hidden_states: Tensor, temb: Times = None, **text: Any) -> Tensor:
        """(b c h w) -> (b c h w); for `temb` see `Times`, for `text` see `Block`."""
        x = hidden_states
        for i, resnet in enumerate(self.resnets):
            x = self.run(resnet, self.attend(i - 1, x, text) if i else x, in_turn(temb))
        return x


class UNetMidBlock2DCrossAttn(UNetMidBlock2D):
    """The middle with a transformer between the residual blocks."""


class UpBlock2D(Block):
    """The way up at one resolution. Each residual block is also given an output of the way down.

    Args:
        in_channels, out_channels: of what comes in, and of what comes out.
        skip_channels: of the way down's output that the last residual block is given; the others have `out_channels`.
        layers: residual blocks.
        style: what all residual blocks have in common.
        attention: makes the layer after each residual block; None for none.
        upsampler: "conv" or "resnet" doubles height and width at the end; None does not.

    Attributes:
        resolution_idx: which of the network's blocks on the way up this is, from 0.
        s1, s2, b1, b2: see `UNet2DConditionModel.enable_freeu`; None without it.

    Raises:
        ConfigError: there is no such upsampler.
    """

    resolution_idx: int | None = None
    s1: float | None = None
    s2: float | None = None
    b1: float | None = None
    b2: float | None = None

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
        self.add_attentions(attention, out_channels, layers)
        self.resnets = nn.ModuleList(
            ResnetBlock2D(width + skip, out_channels, style) for width, skip in zip(widths, skips, strict=True)
        )
        self.upsamplers = None
        if upsampler is not None:
            kinds: dict[str, Callable[[], nn.Module]] = {
                "conv": lambda: Upsample2D(out_channels),
                "resnet": lambda: ResnetBlock2D(out_channels, out_channels, style, up=True),
            }
            self.upsamplers = nn.ModuleList([look_up("upsample_type", upsampler, kinds)()])

    def resamplers(self) -> Iterable[nn.Module]:
        return self.upsamplers or ()

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: Sequence[Tensor],
        temb: Times = None,
        upsample_size: Size | None = None,
        **text: Any,
    ) -> Tensor:
        """(b in h w) -> (b out h' w').

        Args:
            hidden_states: the features.
            res_hidden_states_tuple: an output of the way down for each residual block; the first block takes the last.
            temb: see `Times`.
            upsample_size: h' and w'; twice h and w unless told.
            text: see `Block`.
        """
        x, skips, freeu = hidden_states, list(res_hidden_states_tuple), self.freeu()
        for i, resnet in enumerate(self.resnets):
            skip = skips.pop()
            if freeu is not None:
                x, skip = freeu.apply(x, skip)
            x = self.attend(i, self.run(resnet, torch.cat((x, skip), dim=1), in_turn(temb)), text)
        for layer in self.resamplers():
            takes_time = isinstance(layer, ResnetBlock2D)
            x = self.run(layer, x, in_turn(temb)) if takes_time else layer(x, upsample_size)
        return x

    def freeu(self) -> FreeU | None:
        """How this block scales its inputs: the first one by `b1` and `s1`, the second by `b2` and `s2`; None: not."""
        if not (self.s1 and self.s2 and self.b1 and self.b2) or self.resolution_idx not in (0, 1):
            return None
        return FreeU(self.b1, self.s1) if self.resolution_idx == 0 else FreeU(self.b2, self.s2)


class AttnUpBlock2D(UpBlock2D):
    """The way up with attention among the positions after each residual block."""


class CrossAttnUpBlock2D(UpBlock2D):
    """The way up with a transformer after each residual block."""
