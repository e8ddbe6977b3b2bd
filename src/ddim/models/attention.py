"""Attention: over the positions of an image, and from them to a text."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddim.errors import ConfigError

KeyValue = tuple[Tensor, Tensor]  # each (b heads s d)


# Scores of one head up to which training on a CPU computes attention in plain steps: PyTorch's fused kernel is made for
# long sequences there, and its backward pass takes ten times as long on short ones.
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
    """Scaled dot-product attention of (b heads n d) to keys and values (b heads s d).

    Args:
        mask: added to the scores, or True where one may look: (b 1 n|1 s).
        dropout: the share of weights that is dropped in training.
        is_causal: look at what comes before only.
        training: whether the layer is in training mode.
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
    """Multi-head attention from `dim` channels to a context of `context_dim` (None: to itself).

    Keys and values are a function of the context alone, so `project` can be called once and its result used many times.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int, *, context_dim: int | None = None, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ConfigError(f"attention_head_dim={head_dim} leaves no head for a layer of {dim} channels")
        self.heads = heads
        inner = heads * head_dim
        self.to_q = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_k = nn.Linear(context_dim or dim, inner, bias=qkv_bias)
        self.to_v = nn.Linear(context_dim or dim, inner, bias=qkv_bias)
        self.to_out = nn.Sequential(nn.Linear(inner, dim))

    def project(self, context: Tensor) -> KeyValue:
        """Keys and values of a context (b s c), split into heads."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (b s heads·d) -> (b heads s d)

    def attend(self, x: Tensor, context: KeyValue | None = None, mask: Tensor | None = None) -> Tensor:
        """From x (b n c) to itself or to a projected context; `mask` is added to the scores, (b 1 n|1 s)."""
        key, value = self.project(x) if context is None else context
        # SDPA keeps the scores in float32 whatever the inputs are, which is all that `upcast_attention` asks for.
        out = attention(self._split(self.to_q(x)), key, value, mask, training=self.training)
        result: Tensor = self.to_out(out.transpose(1, 2).flatten(2))  # (b n c)
        return result


class SpatialAttention(Attention):
    """Self-attention among all positions of a feature map (b c h w), normalised before and added to its input after."""

    def __init__(
        self, channels: int, head_dim: int | None, *, groups: int | None, eps: float, output_scale: float = 1.0
    ) -> None:
        head_dim = head_dim or channels
        super().__init__(channels, channels // head_dim, head_dim, qkv_bias=True)
        self.group_norm = nn.Identity() if groups is None else nn.GroupNorm(groups, channels, eps)
        self.output_scale = output_scale

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (b hw c)
        # Seen as (b c h w) without a copy; the sum has the memory format of x, its first term.
        out: Tensor = x + self.attend(tokens).transpose(1, 2).view(x.shape)
        return out if self.output_scale == 1 else out / self.output_scale


# --- older names -----------------------------------------------------------------------------------------------------

_OLD_ATTENTION = re.compile(r"(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_NEW_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def convert_attention_key(key: str) -> str:
    """The present name of a weight of an attention layer, which the first published checkpoints call otherwise.

    >>> convert_attention_key("mid_block.attentions.0.proj_attn.bias")
    'mid_block.attentions.0.to_out.0.bias'
    """
    match = _OLD_ATTENTION.fullmatch(key)
    return f"{match[1]}.{_NEW_NAMES[match[2]]}.{match[3]}" if match else key
