"""Attention: among the positions of an image, and from the positions of an image to the tokens of a text."""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any

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


class AttnProcessor:
    """What an attention layer does unless it is told otherwise: see `Attention.attend`.

    A processor of one's own is called in the same way. One that only watches, or only changes what goes in or comes
    out, can be a subclass that calls this one.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """The layer's result for these inputs, which `Attention.forward` describes; `temb` is not looked at."""
        return attn.attend(hidden_states, encoder_hidden_states, attention_mask)


class Attention(nn.Module):
    """Multi-head attention from features to a context, such as a text, or among the features themselves.

    The arithmetic can be replaced by a processor, a callable with the signature of `AttnProcessor.__call__`. The names
    of layers, attributes and methods are diffusers', so that processors which were written for diffusers run here.
    Among them are `spatial_norm`, `norm_cross`, `norm_q` and `norm_k`, layers that other models have at these places;
    they are None.

    Keys and values depend on the context alone, so `project` can be called once and its result used for many features.

    Args:
        query_dim: channels of the features.
        heads: the number of heads.
        dim_head: channels of each head.
        cross_attention_dim: channels of the context; None if the features are their own context.
        bias: whether the layers that make queries, keys and values have a bias.
        norm_num_groups: of a group norm of the features before the attention; None for no norm.
        eps: added to that norm's variance.
        residual_connection: whether the features are added to the result.
        rescale_output_factor: what the result is divided by.
        upcast_attention: kept for processors that look at it; `attend` computes the scores in float32 in any case.

    Raises:
        ConfigError: there are no heads.
    """

    processor: Any
    # Layers of other models' attention, which processors look for.
    spatial_norm = norm_cross = norm_q = norm_k = norm_added_q = norm_added_k = None
    add_q_proj = add_k_proj = add_v_proj = to_add_out = None

    def __init__(
        self,
        query_dim: int,
        heads: int,
        dim_head: int,
        *,
        cross_attention_dim: int | None = None,
        bias: bool = False,
        norm_num_groups: int | None = None,
        eps: float = 1e-5,
        residual_connection: bool = False,
        rescale_output_factor: float = 1.0,
        upcast_attention: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ConfigError(
                f"attention_head_dim={dim_head} leaves no head for a layer of {query_dim} channels: give {query_dim} "
                "or less"
            )
        self.heads = self.sliceable_head_dim = heads
        self.scale = dim_head**-0.5
        self.scale_qk, self.is_causal, self.fused_projections = True, False, False
        self.query_dim = self.out_dim = query_dim
        self.inner_dim = self.inner_kv_dim = inner = heads * dim_head
        self.is_cross_attention = cross_attention_dim is not None
        self.cross_attention_dim = cross_attention_dim or query_dim
        self.use_bias = bias
        self.dropout = 0.0
        self.residual_connection = residual_connection
        self.rescale_output_factor = rescale_output_factor
        self.upcast_attention = upcast_attention
        self.upcast_softmax = True
        self.group_norm = None if norm_num_groups is None else nn.GroupNorm(norm_num_groups, query_dim, eps)
        self.to_q = nn.Linear(query_dim, inner, bias=bias)
        self.to_k = nn.Linear(self.cross_attention_dim, inner, bias=bias)
        self.to_v = nn.Linear(self.cross_attention_dim, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, query_dim), nn.Dropout(self.dropout)])
        self.processor = AttnProcessor()

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | KeyValue | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """Attention from the features to a context, by the processor.

        Args:
            hidden_states: the features, (b n c), or a feature map (b c h w).
            encoder_hidden_states: the context, (b s d); what `project` made of it, where the layer has no processor
                of the user's; or None, for attention among the features themselves.
            attention_mask: (b 1|n s), added to the scores.
            cross_attention_kwargs: more arguments for the processor. Those that it does not name are left out.

        Returns:
            The features' shape.

        Raises:
            ValueError: a processor would need the context, of which only the keys and values are given.

        Warns:
            UserWarning: the processor has no such argument.
        """
        if type(self.processor) is AttnProcessor and not cross_attention_kwargs:
            return self.attend(hidden_states, encoder_hidden_states, attention_mask)
        if isinstance(encoder_hidden_states, tuple):
            raise ValueError(
                "an attention processor needs the text itself: give encoder_hidden_states instead of text_cache"
            )
        out: Tensor = self.processor(
            self,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **_known_arguments(self.processor, cross_attention_kwargs),
        )
        return out

    def attend(
        self, x: Tensor, context: Tensor | KeyValue | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """What `forward` returns where no other processor is set; its arguments are those of `forward`."""
        tokens = self._normed(x) if x.ndim == 3 else self._normed(x).flatten(2).transpose(1, 2)  # (b n c)
        if not isinstance(context, tuple):
            context = self.project(tokens if context is None else context)
        mask = None if attention_mask is None else attention_mask[:, None]  # (b 1 1|n s)
        # The scores are computed in float32 whatever the inputs' type, which is all that `upcast_attention` asks for.
        out = attention(self._split(self.to_q(tokens)), *context, mask, training=self.training)
        linear, dropout = self.to_out
        out = dropout(linear(out.transpose(1, 2).flatten(2)))  # (b n c)
        if x.ndim == 4:
            out = out.transpose(1, 2).view(x.shape)  # this view costs no copy
        if self.residual_connection:
            out = x + out  # in the memory format of the first term, x
        result: Tensor = out if self.rescale_output_factor == 1 else out / self.rescale_output_factor
        return result

    def project(self, context: Tensor) -> KeyValue:
        """Keys and values of a context (b s c), split into heads: two of (b heads s d)."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def _normed(self, x: Tensor) -> Tensor:
        if self.group_norm is None:
            return x
        out: Tensor = self.group_norm(x) if x.ndim == 4 else self.group_norm(x.transpose(1, 2)).transpose(1, 2)
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (b s heads·d) -> (b heads s d)

    # --- for processors ----------------------------------------------------------------------------------------------

    def get_processor(self) -> Any:
        """The processor in use."""
        return self.processor

    def set_processor(self, processor: Any) -> None:
        """Have a processor do the layer's arithmetic from now on.

        Args:
            processor: called as `AttnProcessor.__call__` is; a `torch.nn.Module` becomes a part of the layer.
        """
        if not callable(processor):
            raise TypeError(f"a processor is called, as AttnProcessor.__call__ is, and {processor!r:.100} cannot be")
        self._modules.pop("processor", None)
        self.processor = processor

    def head_to_batch_dim(self, tensor: Tensor, out_dim: int = 3) -> Tensor:
        """(b s heads·d) to (b·heads s d), or to (b heads s d) with an `out_dim` of 4."""
        split = tensor.reshape(tensor.shape[0], -1, self.heads, tensor.shape[-1] // self.heads).transpose(1, 2)
        return split.flatten(0, 1) if out_dim == 3 else split

    def batch_to_head_dim(self, tensor: Tensor) -> Tensor:
        """(b·heads s d) to (b s heads·d)."""
        return tensor.reshape(-1, self.heads, *tensor.shape[1:]).transpose(1, 2).flatten(2)

    def get_attention_scores(self, query: Tensor, key: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The share that each position gives to each token, softmax(query·keyᵀ·scale + mask), in the query's type.

        Args:
            query: (b·heads n d).
            key: (b·heads s d).
            attention_mask: (b·heads 1|n s), added to the scores, as `prepare_attention_mask` makes it.

        Returns:
            (b·heads n s), whose rows sum to 1.
        """
        given = query.dtype
        if self.upcast_attention:
            query, key = query.float(), key.float()
        scores = (query @ key.transpose(-1, -2)) * self.scale
        scores = scores if attention_mask is None else scores + attention_mask
        shares: Tensor = scores.softmax(dim=-1, dtype=torch.float32 if self.upcast_softmax else None)
        return shares.to(given)

    def prepare_attention_mask(
        self, attention_mask: Tensor | None, target_length: int, batch_size: int, out_dim: int = 3
    ) -> Tensor | None:
        """A mask (b 1|n s) repeated for the heads: (b·heads 1|n s), or (b heads 1|n s) with an `out_dim` of 4.

        Args:
            attention_mask: the mask, or None.
            target_length: how many tokens there are. As in diffusers, a mask of another length gets so many zeros at
                its end.
            batch_size: b; a mask that is repeated already, and so has more entries, is not repeated again.
            out_dim: 3 or 4.
        """
        if attention_mask is None:
            return None
        if attention_mask.shape[-1] != target_length:
            attention_mask = F.pad(attention_mask, (0, target_length))
        if out_dim == 4:
            return attention_mask[:, None].repeat_interleave(self.heads, dim=1)
        is_repeated = attention_mask.shape[0] >= batch_size * self.heads
        return attention_mask if is_repeated else attention_mask.repeat_interleave(self.heads, dim=0)

    def norm_encoder_hidden_states(self, encoder_hidden_states: Tensor) -> Tensor:
        """The context itself: no network here has a norm for it, so `norm_cross` is None."""
        return encoder_hidden_states


def spatial_attention(
    channels: int, head_dim: int | None, *, groups: int | None, eps: float, output_scale: float = 1.0
) -> Attention:
    """Self-attention among all positions of a feature map, added to it: (b c h w) -> (b c h w).

    Args:
        channels: c.
        head_dim: channels of a head; None makes one head of all channels.
        groups: of the group norm before the attention; None leaves the norm out.
        eps: added to the norm's variance.
        output_scale: what the sum is divided by.
    """
    head_dim = head_dim or channels
    return Attention(
        channels,
        channels // head_dim,
        head_dim,
        bias=True,
        norm_num_groups=groups,
        eps=eps,
        residual_connection=True,
        rescale_output_factor=output_scale,
    )


def _known_arguments(processor: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Of `cross_attention_kwargs`, those that a processor has arguments for; the others are warned of."""
    is_plain_module = isinstance(processor, nn.Module) and type(processor).__call__ is nn.Module.__call__
    known = set(inspect.signature(processor.forward if is_plain_module else processor).parameters)
    unknown = sorted(set(given) - known)
    if unknown:
        warnings.warn(
            f"cross_attention_kwargs {unknown} are not expected by {type(processor).__name__} and will be ignored",
            stacklevel=4,
        )
    return {name: value for name, value in given.items() if name in known}


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
