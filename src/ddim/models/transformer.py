"""Transformer layers on a feature map that look at a text, by which Stable Diffusion's U-Net is conditional.

The text's keys and values do not depend on the image. So a layer is given these, as `project_text` made them, and never
the text itself, and a sampler computes them once for a whole run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ddim.errors import ConfigError
from ddim.models.attention import Attention, KeyValue
from ddim.models.recompute import Recomputing


class Text(NamedTuple):
    """What the layers are told about the text, and which tokens and positions they may look at."""

    contexts: Iterator[KeyValue]  # the keys and values of each cross-attention, in the order in which they run
    mask: Tensor | None = None  # added to the scores of each block's second attention, (b 1 1 s)
    own_mask: Tensor | None = None  # added to the scores of its first one, (b 1 1 n)


class GEGLU(nn.Module):
    """One half of a linear layer's output, times the GELU of the other (Shazeer 2020): (b n dim) -> (b n inner)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)  # (b n inner) each
        gated: Tensor = value * F.gelu(gate)
        return gated


class FeedForward(nn.Module):
    """Two linear layers with four times as many channels in between: (b n c) -> (b n c)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The identity keeps the published numbering of the layers, where a dropout stands that is always 0.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each added to its input: (b n c) -> (b n c).

    With `only_cross_attention` the first attention looks at the text as well, in place of the positions.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int, only_cross_attention: bool) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads, head_dim, context_dim=context_dim if only_cross_attention else None)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, head_dim, context_dim=context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def project_text(self, text: Tensor) -> list[KeyValue]:
        """The keys and values that the block's attentions make of a text (b s d), in the order of their use."""
        layers = (self.attn1, self.attn2) if self.only_cross_attention else (self.attn2,)
        return [layer.project(text) for layer in layers]

    def forward(
        self, x: Tensor, first: KeyValue | None, second: KeyValue, mask: Tensor | None, own_mask: Tensor | None
    ) -> Tensor:
        x = x + self.attn1.attend(self.norm1(x), first, own_mask)
        x = x + self.attn2.attend(self.norm2(x), second, mask)
        fed: Tensor = self.ff(self.norm3(x))
        return x + fed


class Transformer2DModel(Recomputing):
    """Transformer blocks on all positions of a feature map, added to it: (b c h w) -> (b c h w).

    Args:
        channels: c.
        heads: heads of every attention.
        layers: how many blocks there are.
        context_dim: channels of the text.
        groups: of the group norm at the beginning.
        use_linear_projection: begin and end with a linear layer instead of a 1x1 convolution.
        only_cross_attention: see `BasicTransformerBlock`.

    Raises:
        ConfigError: fewer than one head, or more heads than channels.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        layers: int,
        context_dim: int,
        groups: int,
        use_linear_projection: bool,
        only_cross_attention: bool,
    ) -> None:
        super().__init__()
        if not 1 <= heads <= channels:
            raise ConfigError(
                f"attention_head_dim, the number of heads, cannot be {heads} for {channels} channels: give a number "
                f"from 1 to {channels}"
            )
        head_dim = channels // heads
        inner = heads * head_dim
        self.use_linear_projection = use_linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if use_linear_projection else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, head_dim, context_dim, only_cross_attention) for _ in range(layers)
        )
        self.proj_out = nn.Linear(inner, channels) if use_linear_projection else nn.Conv2d(inner, channels, 1)

    def project_text(self, text: Tensor) -> list[KeyValue]:
        """The keys and values that the blocks make of a text (b s d), in the order of their use."""
        blocks = (block for block in self.transformer_blocks if isinstance(block, BasicTransformerBlock))
        return [pair for block in blocks for pair in block.project_text(text)]

    def forward(self, x: Tensor, text: Text) -> Tensor:
        h = self.norm(x)
        if self.use_linear_projection:
            h = self.proj_in(h.flatten(2).transpose(1, 2))  # (b hw inner)
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2)  # (b hw inner)
        for block in self.transformer_blocks:
            first = next(text.contexts) if block.only_cross_attention else None
            h = self.run(block, h, first, next(text.contexts), text.mask, text.own_mask)
        if self.use_linear_projection:
            h = self.proj_out(h)  # (b hw c)
        h = h.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])  # (b c|inner h w)
        # The sum takes the memory format of its first term, x.
        out: Tensor = x + (h if self.use_linear_projection else self.proj_out(h))  # (b c h w)
        return out
