"""Transformer layers on a feature map, which look at a text: what makes Stable Diffusion's U-Net conditional.

The text's keys and values do not depend on the image. A layer is given them, made by `project_text`, and never the text
itself; so a sampler computes them once for a whole run.
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
    """What the layers are told about the text: for every cross-attention in order, its keys and values; and masks."""

    contexts: Iterator[KeyValue]
    mask: Tensor | None = None  # added to the cross-attention's scores, (b 1 1 s)
    own_mask: Tensor | None = None  # added to the other attention's scores, (b 1 1 n)


class GEGLU(nn.Module):
    """One half of a linear layer, gated by the GELU of the other."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated


class FeedForward(nn.Module):
    """Two linear layers, four times as wide in between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The middle one is the dropout of the published layout, which is always 0 there.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each added to its input: (b n c) -> (b n c).

    With `only_cross_attention` the first looks at the text too.
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
    """Transformer blocks on all positions of a feature map, added to it: (b c h w) -> (b c h w)."""

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
            raise ConfigError(f"attention_head_dim, the number of heads, cannot be {heads} for {channels} channels")
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
            h = self.proj_in(h).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            first = next(text.contexts) if block.only_cross_attention else None
            h = self.run(block, h, first, next(text.contexts), text.mask, text.own_mask)
        if self.use_linear_projection:
            h = self.proj_out(h)
        h = h.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])  # (b c|inner h w)
        out: Tensor = x + (h if self.use_linear_projection else self.proj_out(h))  # in the memory format of x
        return out
