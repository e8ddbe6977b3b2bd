"""Transformer layers on a feature map that look at a text, by which Stable Diffusion's U-Net is conditional.

The text's keys and values do not depend on the image. So a sampler may compute them once for a whole run, by
`project_text`, and a layer is given these, or else the text itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ddim.errors import ConfigError
from ddim.models.attention import Attention, KeyValue
from ddim.models.recompute import Recomputing
from ddim.step import Output


class Contexts(NamedTuple):
    """The keys and values of one block's attentions, made of the text beforehand."""

    first: KeyValue | None  # None: the first attention looks at the positions
    second: KeyValue


@dataclass(eq=False)
class Transformer2DModelOutput(Output):
    """What a transformer returns: `.sample`, which is `[0]` too."""

    sample: Tensor  # (b c h w)


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

    # Kinds of norms that other models have, which code that replaces a block's `forward` asks for.
    use_ada_layer_norm = use_ada_layer_norm_zero = False

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        context_dim: int,
        only_cross_attention: bool,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention

        def attention(context_dim: int | None) -> Attention:
            return Attention(dim, heads, head_dim, cross_attention_dim=context_dim, upcast_attention=upcast_attention)

        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = attention(context_dim if only_cross_attention else None)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = attention(context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def project_text(self, text: Tensor) -> list[KeyValue]:
        """The keys and values that the block's attentions make of a text (b s d), in the order of their use."""
        layers = (self.attn1, self.attn2) if self.only_cross_attention else (self.attn2,)
        return [layer.project(text) for layer in layers]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | Contexts | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """(b n c) -> (b n c).

        Args:
            hidden_states: (b n c).
            attention_mask: added to the scores of the first attention, (b 1|n n).
            encoder_hidden_states: the text (b s d), or what `project_text` made of it for this block.
            encoder_attention_mask: added to the scores of the second attention, (b 1|n s).
            timestep: not looked at.
            cross_attention_kwargs: more arguments for the attentions' processors.
        """
        text = encoder_hidden_states
        first: Any = text if self.only_cross_attention else None
        second: Any = text
        if isinstance(text, Contexts):
            first, second = text
        more = cross_attention_kwargs or {}
        x = hidden_states
        x = x + self.attn1(self.norm1(x), encoder_hidden_states=first, attention_mask=attention_mask, **more)
        x = x + self.attn2(self.norm2(x), encoder_hidden_states=second, attention_mask=encoder_attention_mask, **more)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


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
        upcast_attention: see `Attention`.

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
        upcast_attention: bool = False,
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
            BasicTransformerBlock(inner, heads, head_dim, context_dim, only_cross_attention, upcast_attention)
            for _ in range(layers)
        )
        self.proj_out = nn.Linear(inner, channels) if use_linear_projection else nn.Conv2d(inner, channels, 1)

    def project_text(self, text: Tensor) -> list[KeyValue]:
        """The keys and values that the blocks make of a text (b s d), in the order of their use."""
        blocks = (block for block in self.transformer_blocks if isinstance(block, BasicTransformerBlock))
        return [pair for block in blocks for pair in block.project_text(text)]

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | Iterator[KeyValue] | None = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """(b c h w) -> `.sample` (b c h w).

        Args:
            hidden_states: the feature map.
            encoder_hidden_states: the text (b s d), or what `project_text` made of it, in the order of its use.
            timestep, added_cond_kwargs, class_labels: not looked at.
            cross_attention_kwargs, attention_mask, encoder_attention_mask: see `BasicTransformerBlock.forward`.
            return_dict: False gives a plain tuple.
        """
        x, text = hidden_states, encoder_hidden_states
        h = self.norm(x)
        if self.use_linear_projection:
            h = self.proj_in(h.flatten(2).transpose(1, 2))  # (b hw inner)
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2)  # (b hw inner)
        for block in self.transformer_blocks:
            h = self.run(
                block,
                h,
                attention_mask=attention_mask,
                encoder_hidden_states=text if text is None or isinstance(text, Tensor) else _contexts(block, text),
                encoder_attention_mask=encoder_attention_mask,
                timestep=timestep,
                cross_attention_kwargs=cross_attention_kwargs,
            )
        if self.use_linear_projection:
            h = self.proj_out(h)  # (b hw c)
        h = h.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])  # (b c|inner h w)
        # The sum takes the memory format of its first term, x.
        out: Tensor = x + (h if self.use_linear_projection else self.proj_out(h))  # (b c h w)
        return Transformer2DModelOutput(out) if return_dict else (out,)


def _contexts(block: nn.Module, text: Iterator[KeyValue]) -> Contexts:
    """What a block is given of the keys and values that were made for all blocks."""
    first = next(text) if block.only_cross_attention else None
    return Contexts(first, next(text))
