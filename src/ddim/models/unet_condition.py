"""Stable Diffusion's U-Net: noisy latents, a timestep and a text to a prediction."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from torch import Tensor, nn

from ddim.checkpoint.config import register_to_config
from ddim.errors import ConfigError
from ddim.models.activations import activation
from ddim.models.attention import KeyValue
from ddim.models.backbone import Backbone, Level, TimeCache, UNet2DOutput
from ddim.models.blocks import AttentionFactory, MidBlock2D, Style
from ddim.models.embeddings import TimestepEmbedding, Timesteps, as_timesteps
from ddim.models.settings import check_levels, look_up
from ddim.models.transformer import Text, Transformer2DModel

# Name in a config -> does a transformer follow each residual block?
DOWN_BLOCKS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP_BLOCKS = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
MID_BLOCKS = {"UNetMidBlock2D": False, "UNetMidBlock2DCrossAttn": True}

# What other families of models use; each must have this value.
NOT_IMPLEMENTED: dict[str, object] = {
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,  # refused by diffusers too: the number of heads is called attention_head_dim
    "dual_cross_attention": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}

TextCache = tuple[KeyValue, ...]


class UNet2DConditionModel(Backbone):
    """The U-Net of Stable Diffusion 1 and 2; the constructor's arguments are diffusers'.

    Args:
        sample_size: height and width of the latents; for information, any size will do.
        center_input_sample: the input is in [0, 1] and is moved to [-1, 1] first.
        flip_sin_to_cos, freq_shift: see `embeddings.sinusoids`.
        down_block_types, mid_block_type, up_block_types: keys of DOWN_BLOCKS, MID_BLOCKS (or None), UP_BLOCKS.
        only_cross_attention: both attentions of a transformer block look at the text.
        layers_per_block: residual blocks at each resolution on the way down; there is one more on the way up.
        cross_attention_dim: the text's channels.
        transformer_layers_per_block: depth of each transformer.
        attention_head_dim: the **number** of heads, whatever its name says; published configs mean that.
        use_linear_projection: transformers begin and end with a linear layer instead of a 1x1 convolution.
        upcast_attention: without effect, as the scores are computed in float32 in any case.
        class_embed_type: None (a table, if `num_class_embeds` is given), "timestep", "identity", "projection" or
            "simple_projection" (the last two from `projection_class_embeddings_input_dim` channels).
        time_cond_proj_dim: channels of `timestep_cond`, which is added to the timestep's features.

    `only_cross_attention`, `layers_per_block`, `cross_attention_dim`, `transformer_layers_per_block` and
    `attention_head_dim` are one value, or one for each resolution. What is in NOT_IMPLEMENTED must be at its default.

    Raises:
        ConfigError: arguments that are unknown, not implemented or do not fit together.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        reverse_transformer_layers_per_block: None = None,
        encoder_hid_dim: None = None,
        encoder_hid_dim_type: None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: None = None,
        addition_time_embed_dim: None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: None = None,
        timestep_post_act: None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: None = None,
        addition_embed_type_num_heads: int = 64,
    ) -> None:
        super().__init__()
        for name, only in NOT_IMPLEMENTED.items():
            if self.config[name] != only:
                raise ConfigError(f"{name}={self.config[name]!r} is not implemented, only {only!r} is")
        n = len(block_out_channels)
        layers = _for_each(layers_per_block, n)
        depths = _for_each(transformer_layers_per_block, n)
        heads = _for_each(attention_head_dim, n)
        text_dims = _for_each(cross_attention_dim, n)
        crosses = _for_each(only_cross_attention, n)
        check_levels(
            norm_num_groups,
            block_out_channels=block_out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            layers_per_block=layers,
            transformer_layers_per_block=depths,
            attention_head_dim=heads,
            cross_attention_dim=text_dims,
            only_cross_attention=crosses,
        )
        if not all(isinstance(depth, int) for depth in depths):
            raise ConfigError(f"transformer_layers_per_block must hold whole numbers, not {depths}")
        width = block_out_channels[0]
        emb_dim = time_embedding_dim or 4 * width
        self.in_channels = in_channels
        self.text_dim = text_dims[0]
        self.center_input_sample = center_input_sample

        self.conv_in = nn.Conv2d(in_channels, width, conv_in_kernel, padding=(conv_in_kernel - 1) // 2)
        self.time_proj = Timesteps(width, flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(width, emb_dim, act_fn, time_cond_proj_dim)
        self.class_embed_type = class_embed_type
        self.class_embedding = _class_embedding(
            class_embed_type, num_class_embeds, width, emb_dim, act_fn, projection_class_embeddings_input_dim
        )

        style = Style(emb_dim, norm_num_groups, norm_eps, act_fn, resnet_time_scale_shift, dropout)

        def transformer(i: int, only_cross: bool) -> AttentionFactory:
            return lambda channels: Transformer2DModel(
                channels,
                heads[i],
                layers=depths[i],
                context_dim=text_dims[i],
                groups=norm_num_groups,
                use_linear_projection=use_linear_projection,
                only_cross_attention=only_cross,
            )

        def level(i: int, has_attention: bool, extra: int, resampler: str | None) -> Level:
            attention = transformer(i, crosses[i]) if has_attention else None
            return Level(block_out_channels[i], layers[i] + extra, attention, resampler)

        down = [
            level(i, look_up("down block type", name, DOWN_BLOCKS), 0, "conv" if i < n - 1 else None)
            for i, name in enumerate(down_block_types)
        ]
        up = [
            level(n - 1 - i, look_up("up block type", name, UP_BLOCKS), 1, "conv" if i < n - 1 else None)
            for i, name in enumerate(up_block_types)
        ]
        middle = None
        if mid_block_type is not None:
            has_attention = look_up("mid_block_type", mid_block_type, MID_BLOCKS)
            scaled = style._replace(output_scale=mid_block_scale_factor)
            attention = transformer(n - 1, only_cross=False) if has_attention else None
            middle = MidBlock2D(block_out_channels[-1], scaled, attention, layers=1 if has_attention else 0)
        self.build(style, down, middle, up, downsample_padding)

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, width, norm_eps)
        self.conv_act = activation(act_fn)
        self.conv_out = nn.Conv2d(width, out_channels, conv_out_kernel, padding=(conv_out_kernel - 1) // 2)

    def project_text(self, encoder_hidden_states: Tensor) -> TextCache:
        """The keys and values (b heads s d) that every cross-attention layer makes of a text (b s text_dim).

        They lie in memory as a backend takes them at each step without a copy.

        Raises:
            ValueError: the text has another number of channels.
        """
        pairs = self._keys_and_values(encoder_hidden_states)
        return tuple((key.contiguous(), value.contiguous()) for key, value in pairs)

    def _keys_and_values(self, text: Tensor) -> TextCache:
        if text.ndim != 3 or text.shape[2] != self.text_dim:
            raise ValueError(f"encoder_hidden_states must have shape (b, s, {self.text_dim}), not {tuple(text.shape)}")
        text = text.to(self.dtype)
        return tuple(pair for block in self.blocks() for pair in block.project_text(text))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        text_cache: TextCache | None = None,
        time_cache: TimeCache | None = None,
    ) -> UNet2DOutput:
        """Predict from noisy latents.

        Args:
            sample: (b c h w).
            timestep: one for all, or (b,).
            encoder_hidden_states: the text, (b s text_dim).
            class_labels: (b,), or (b projection_class_embeddings_input_dim) for a projection.
            timestep_cond: (b time_cond_proj_dim).
            attention_mask: (b n), 1 where self-attention may look, for models with one resolution; with
                `only_cross_attention` (b s).
            encoder_attention_mask: (b s), 1 where cross-attention may look.
            return_dict: without effect: the result is a tuple of one either way, and has `.sample`.
            text_cache: what `project_text` made of the text; it is used instead of `encoder_hidden_states`.
            time_cache: what `project_time` made of the run's timesteps, the labels and `timestep_cond`.

        Raises:
            ValueError: a shape, or class labels, do not fit.
        """
        if sample.ndim != 4 or sample.shape[1] != self.in_channels:
            raise ValueError(f"sample must have shape (b, {self.in_channels}, h, w), not {tuple(sample.shape)}")
        if text_cache is None:
            if encoder_hidden_states is None:
                raise ValueError("the text is missing: give encoder_hidden_states or text_cache")
            if encoder_hidden_states.shape[0] != sample.shape[0]:
                raise ValueError(f"{len(encoder_hidden_states)} texts were given for {len(sample)} samples")
            text_cache = self._keys_and_values(encoder_hidden_states)
        if self.center_input_sample:
            sample = 2 * sample - 1
        if time_cache is None:
            timesteps = as_timesteps(timestep, sample.shape[0], sample.device)
            times = self.project(self.embed(timesteps, class_labels, timestep_cond))
        else:
            times = time_cache.at(timestep)
        if encoder_attention_mask is attention_mask is None:
            return UNet2DOutput(self.run_core(sample, times, *chain(*text_cache)))
        masks = (_as_bias(mask, sample) for mask in (encoder_attention_mask, attention_mask))
        return UNet2DOutput(self.body(sample, times, Text(iter(text_cache), *masks)))


def _for_each(value: Any, n: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * n


def _as_bias(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask (b s) of ones and zeros as what is added to attention scores, (b 1 1 s)."""
    return None if mask is None else ((1 - mask.to(like.dtype)) * -10000.0)[:, None, None, :]


def _class_embedding(
    kind: str | None, classes: int | None, features: int, emb_dim: int, act_fn: str, input_dim: int | None
) -> nn.Module | None:
    if kind is None:
        return None if classes is None else nn.Embedding(classes, emb_dim)

    def needed() -> int:
        if input_dim is None:
            raise ConfigError(f"class_embed_type={kind!r} needs projection_class_embeddings_input_dim")
        return input_dim

    kinds: dict[str, Callable[[], nn.Module]] = {
        "timestep": lambda: TimestepEmbedding(features, emb_dim, act_fn),
        "identity": nn.Identity,
        "projection": lambda: TimestepEmbedding(needed(), emb_dim),
        "simple_projection": lambda: nn.Linear(needed(), emb_dim),
    }
    return look_up("class_embed_type", kind, kinds)()
