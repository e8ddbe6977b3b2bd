"""Attention: among the positions of an image, and from the positions of an image to the tokens of a text."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddim.errors import ConfigError

KeyValue = tuple[Tensor, Tensor]  # keys and values, each (b heads s d)

# The most scores of one head (positions times tokens) for which training on a CPU computes attention in plain steps.
# PyTorch's fused kernel is made for long sequences there: on short ones its backward pass takes ten times as long.
_SHORT = 128 * 128


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    dropout: float = 0.0,
    is_causal: bool = False,
    training: bool = False,
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1): softmax(query·keyᵀ/√d)·value, for each head.

    Args:
        query: (b heads n d).
        key, value: (b heads s d).
        mask: (b 1 n|1 s). Numbers are added to the scores; of booleans, False excludes a token. Not with `is_causal`.
        dropout: the share of attention weights that is dropped in training, 0 to 1.
        is_causal: let each position look only at itself and those before it.
        training: whether the layer is in training mode.

    Returns:
        (b heads n d).
    """
    dropout = dropout if training else 0.0
    if not training or query.device.type != "cpu" or query.shape[-2] * key.shape[-2] > _SHORT:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (b heads n s)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (F.dropout(weights, dropout) if dropout else weights) @ value


class Attention(nn.Module):
    """Multi-head attention from features to a context, such as a text, or among the features themselves.

    Keys and values depend on the context alone, so `project` can be called once and its result used for many features.

    Args:
        dim: channels of the features.
        heads: the number of heads.
        head_dim: channels of each head.
        context_dim: channels of the context; None if the features are their own context.
        qkv_bias: whether the layers that make queries, keys and values have a bias.

    Raises:
        ConfigError: there are no heads.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int, *, context_dim: int | None = None, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ConfigError(
                f"attention_head_dim={head_dim} leaves no head for a layer of {dim} channels: give {dim} or less"
            )
        self.heads = heads
        inner = heads * head_dim
        self.to_q = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_k = nn.Linear(context_dim or dim, inner, bias=qkv_bias)
        self.to_v = nn.Linear(context_dim or dim, inner, bias=qkv_bias)
        self.to_out = nn.Sequential(nn.Linear(inner, dim))

    def project(self, context: Tensor) -> KeyValue:
        """Keys and values of a context (b s c), split into heads: two of (b heads s d)."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (b s heads·d) -> (b heads s d)

    def attend(self, x: Tensor, context: KeyValue | None = None, mask: Tensor | None = None) -> Tensor:
        """Attention from x (b n c) to a context's keys and values, or to x itself where there are none: (b n c).

        `mask` (b 1 n|1 s) is added to the scores.
        """
        key, value = self.project(x) if context is None else context
        # The scores are computed in float32 whatever the inputs' type, which is all that `upcast_attention` asks for.
        out = attention(self._split(self.to_q(x)), key, value, mask, training=self.training)
        result: Tensor = self.to_out(out.transpose(1, 2).flatten(2))  # (b n c)
        return result


class SpatialAttention(Attention):
    """Self-attention among all positions of a feature map, added to it: (b c h w) -> (b c h w).

    Args:
        channels: c.
        head_dim: channels of a head; None makes one head of all channels.
        groups: of the group norm before the attention; None leaves the norm out.
        eps: added to the norm's variance.
        output_scale: what the sum is divided by.
    """

    def __init__(
        self, channels: int, head_dim: int | None, *, groups: int | None, eps: float, output_scale: float = 1.0
    ) -> None:
        head_dim = head_dim or channels
        super().__init__(channels, channels // head_dim, head_dim, qkv_bias=True)
        self.group_norm = nn.Identity() if groups is None else nn.GroupNorm(groups, channels, eps)
        self.output_scale = output_scale

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (b hw c)
        # The view costs no copy, and the sum takes the memory format of its first term, x.
        out: Tensor = x + self.attend(tokens).transpose(1, 2).view(x.shape)  # (b c h w)
        return out if self.output_scale == 1 else out / self.output_scale


# --- older names -----------------------------------------------------------------------------------------------------

_OLD_ATTENTION = re.compile(r"(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_NEW_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def convert_attention_key(key: str) -> str:
    """The present name of a weight, which the first published checkpoints call otherwise if it is attention's.

    >>> convert_attention_key("mid_block.attentions.0.proj_attn.bias")
    'mid_block.attentions.0.to_out.0.bias'
    """
    match = _OLD_ATTENTION.fullmatch(key)
    return f"{match[1]}.{_NEW_NAMES[match[2]]}.{match[3]}" if match else key
