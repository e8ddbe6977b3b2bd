"""What Stable Diffusion's U-Net and a ControlNet have in common: they read a text, and are made of the same parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddim.errors import ConfigError
from ddim.models.attention import KeyValue
from ddim.models.backbone import Backbone, Level
from ddim.models.blocks import AttentionFactory, Style, UNetMidBlock2D, UNetMidBlock2DCrossAttn
from ddim.models.embeddings import TimestepEmbedding, Timesteps
from ddim.models.settings import check_levels, look_up
from ddim.models.transformer import BasicTransformerBlock, Transformer2DModel

# What a block's name in a config says: whether a transformer follows each residual block.
DOWN_BLOCKS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP_BLOCKS = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
MID_BLOCKS = {"UNetMidBlock2D": False, "UNetMidBlock2DCrossAttn": True}

TextCache = tuple[KeyValue, ...]
Depth = int | tuple[int, ...]  # the blocks of each transformer at one resolution: of all, or of one after the other


class TextBackbone(Backbone):
    """A U-Net whose transformers look at a text, or its way down alone."""

    text_dim: int
    add_time_proj: Timesteps | None
    add_embedding: TimestepEmbedding | None

    def make(self, settings: Mapping[str, Any], up_block_types: Sequence[str] = ()) -> None:
        """Make all parts from `conv_in` to the blocks.

        Args:
            settings: by their names in the config of a `UNet2DConditionModel`, which explains them. Those that a
                ControlNet has not may be left out.
            up_block_types: of the way up; none for a network without one.

        Raises:
            ConfigError: settings that do not fit together.
        """
        channels: Sequence[int] = settings["block_out_channels"]
        groups, act_fn, eps = settings["norm_num_groups"], settings["act_fn"], settings["norm_eps"]
        n = len(channels)
        depths, depths_up = _depths(settings, n)
        layers, heads, text_dims, crosses = (
            _for_each(settings[name], n)
            for name in (
                "layers_per_block",
                "attention_head_dim",
                "cross_attention_dim",
                "only_cross_attention",
            )
        )
        check_levels(
            groups,
            block_out_channels=channels,
            down_block_types=settings["down_block_types"],
            **({"up_block_types": up_block_types} if up_block_types else {}),
            layers_per_block=layers,
            transformer_layers_per_block=depths,
            **({"reverse_transformer_layers_per_block": depths_up} if up_block_types else {}),
            attention_head_dim=heads,
            cross_attention_dim=text_dims,
            only_cross_attention=crosses,
        )
        width, kernel = channels[0], settings.get("conv_in_kernel", 3)
        emb_dim = settings.get("time_embedding_dim") or 4 * width
        waves = (settings["flip_sin_to_cos"], settings["freq_shift"])
        self.in_channels = settings["in_channels"]
        self.text_dim = text_dims[0]

        self.conv_in = nn.Conv2d(self.in_channels, width, kernel, padding=(kernel - 1) // 2)
        self.time_proj = Timesteps(width, *waves)
        self.time_embedding = TimestepEmbedding(width, emb_dim, act_fn, settings.get("time_cond_proj_dim"))
        self.class_embed_type = settings["class_embed_type"]
        input_dim = settings["projection_class_embeddings_input_dim"]
        self.class_embedding = _class_embedding(
            self.class_embed_type, settings["num_class_embeds"], width, emb_dim, act_fn, input_dim
        )

        self.add_time_proj = self.add_embedding = None
        if settings["addition_embed_type"] is not None:
            look_up("addition_embed_type", settings["addition_embed_type"], {"text_time": True})
            features, added_dim = _added_dims(settings["addition_time_embed_dim"], input_dim)
            self.add_time_proj = Timesteps(features, *waves)
            self.add_embedding = TimestepEmbedding(added_dim, emb_dim)  # SiLU, whatever act_fn is

        self.class_embeddings_concat = (
            bool(settings.get("class_embeddings_concat")) and self.class_embedding is not None
        )
        time_dim = 2 * emb_dim if self.class_embeddings_concat else emb_dim
        shift = settings["resnet_time_scale_shift"]
        style = Style(time_dim, groups, eps, act_fn, shift, settings.get("dropout", 0.0))

        def transformer(i: int, depth: Depth, count: int, only_cross: bool) -> AttentionFactory:
            if not isinstance(depth, int) and len(depth) < count:
                raise ConfigError(
                    f"{list(depth)!r:.100} in transformer_layers_per_block or reverse_transformer_layers_per_block is "
                    f"for {len(depth)} transformers, but there are {count} at that place: give one number for all, or "
                    "one for each (the way up has one more than the way down, so it needs the reverse_ setting)"
                )
            return lambda channels, number: Transformer2DModel(
                channels,
                heads[i],
                layers=depth if isinstance(depth, int) else depth[number],
                context_dim=text_dims[i],
                groups=groups,
                use_linear_projection=settings["use_linear_projection"],
                only_cross_attention=only_cross,
                upcast_attention=bool(settings["upcast_attention"]),
            )

        def level(i: int, place: int, has_attention: bool, extra: int, depth: Depth) -> Level:
            count = layers[i] + extra
            attention = transformer(i, depth, count, crosses[i]) if has_attention else None
            resampler = "conv" if place < n - 1 else None
            return Level(channels[i], count, attention, "CrossAttn" if has_attention else "", resampler)

        down = [
            level(i, i, look_up("down block type", name, DOWN_BLOCKS), 0, depths[i])
            for i, name in enumerate(settings["down_block_types"])
        ]
        up = [
            level(n - 1 - i, i, look_up("up block type", name, UP_BLOCKS), 1, depths_up[i])
            for i, name in enumerate(up_block_types)
        ]
        middle = None
        if settings["mid_block_type"] is not None:
            has_attention = look_up("mid_block_type", settings["mid_block_type"], MID_BLOCKS)
            scaled = style._replace(output_scale=settings["mid_block_scale_factor"])
            attention = transformer(n - 1, depths[-1], 1, only_cross=False) if has_attention else None
            kind = UNetMidBlock2DCrossAttn if has_attention else UNetMidBlock2D
            middle = kind(channels[-1], scaled, attention, layers=1 if has_attention else 0)
        self.build(style, down, middle, up, settings["downsample_padding"])
        blocks = [module for module in self.modules() if isinstance(module, BasicTransformerBlock)]
        self.text_inputs = 2 * sum(1 + block.only_cross_attention for block in blocks)  # keys and values

    def embed(
        self,
        timesteps: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The embedding of timesteps and all that is told beside them, in one vector for each sample: (b e).

        Args:
            timesteps: (b,).
            class_labels, timestep_cond, added_cond_kwargs: as `forward` takes them.

        Raises:
            ValueError: conditions are missing, not wanted, or of a wrong shape, type or range.
        """
        emb = super().embed(timesteps, class_labels, timestep_cond)
        if self.add_embedding is None or self.add_time_proj is None:
            if added_cond_kwargs:
                names = ", ".join(added_cond_kwargs)
                raise ValueError(f"this model is not told {names}: leave added_cond_kwargs out")
            return emb
        vectors, numbers = self._added(added_cond_kwargs, len(emb))
        waves = self.add_time_proj(numbers.flatten()).view(len(emb), -1)  # (b·n d) -> (b n·d)
        added = torch.cat([vectors.to(waves), waves], dim=1)
        wanted = self.add_embedding.linear_1.in_features
        if added.shape[1] != wanted:
            raise ValueError(
                f"text_embeds of {vectors.shape[1]} channels and {numbers.shape[1]} time_ids are {added.shape[1]} "
                f"features, and this model takes {wanted}: give the vectors of its own text encoder, and as many "
                "numbers as it was trained with"
            )
        out: Tensor = emb + self.add_embedding(added.to(emb.dtype))
        return out

    def _added(self, given: Mapping[str, Tensor] | None, batch: int) -> tuple[Tensor, Tensor]:
        """The texts' vectors (b p) and the numbers (b n) of `added_cond_kwargs`; a ValueError if they are not there."""
        given = given or {}
        unknown = sorted(set(given) - {"text_embeds", "time_ids"})
        if unknown:
            raise ValueError(f"added_cond_kwargs has {', '.join(unknown)}; this model is told text_embeds and time_ids")
        for name in ("text_embeds", "time_ids"):
            value = given.get(name)
            if not isinstance(value, Tensor):
                raise ValueError(f"added_cond_kwargs needs {name}: a tensor with a row for each sample")
            if value.ndim != 2 or len(value) != batch:
                raise ValueError(f"{name} must have shape ({batch}, n), not {tuple(value.shape)}")
        return given["text_embeds"], given["time_ids"]

    def project_text(self, encoder_hidden_states: Tensor) -> TextCache:
        """The keys and values (b heads s d) that each cross-attention layer makes of a text, for a whole run.

        They are contiguous in memory, so that a backend can read them at each step without a copy.

        Args:
            encoder_hidden_states: the text encoder's output, (b s text_dim).

        Raises:
            ValueError: the text has another shape.
        """
        pairs = self._keys_and_values(self._text(encoder_hidden_states))
        return tuple((key.contiguous(), value.contiguous()) for key, value in pairs)

    def _keys_and_values(self, text: Tensor) -> TextCache:
        return tuple(pair for block in self.blocks() for pair in block.project_text(text))

    def _text(self, text: Tensor | None, batch: int | None = None) -> Tensor:
        """A text in the network's type; a ValueError if there is none, or none of the right shape for the batch."""
        if text is None:
            raise ValueError("the text is missing: give encoder_hidden_states or text_cache")
        if text.ndim != 3 or text.shape[2] != self.text_dim:
            raise ValueError(f"encoder_hidden_states must have shape (b, s, {self.text_dim}), not {tuple(text.shape)}")
        if batch is not None and text.shape[0] != batch:
            raise ValueError(f"{len(text)} texts were given for {batch} samples: give one for each sample")
        return text.to(self.dtype)

    def _for_processors(self, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """`cross_attention_kwargs` without "scale", which is not for processors; None if nothing is left.

        Raises:
            ValueError: the scale is to change the strength of adapters.
        """
        more = dict(given or {})
        scale = more.pop("scale", None)
        if scale is not None and scale != 1:
            in_training = any(hasattr(module, "scale_layer") for module in self.modules())  # peft's layers
            if in_training or self.has_adapters:
                raise ValueError(
                    f"cross_attention_kwargs={{'scale': {scale!r:.50}}} is not implemented, as adapters are part of "
                    "the weights here: say how strong they are by set_adapters(names, weights) before the call"
                )
        return more or None


def _for_each(value: Any, n: int) -> tuple[Any, ...]:
    """A setting's values for all n resolutions, whether it was one value or a list."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * n


def _depths(settings: Mapping[str, Any], n: int) -> tuple[tuple[Depth, ...], tuple[Depth, ...]]:
    """How many blocks the transformers have at all n resolutions: on the way down, and in its own order on the way up.

    Raises:
        ConfigError: they are no whole numbers and lists of such.
    """
    name, reverse = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
    down = _for_each(settings[name], n)
    up = tuple(reversed(down)) if settings.get(reverse) is None else _for_each(settings[reverse], n)
    for setting, depths in ((name, down), (reverse, up)):
        for each in depths:
            if not all(type(depth) is int and depth >= 0 for depth in (each if isinstance(each, tuple) else (each,))):
                raise ConfigError(
                    f"{setting} must hold whole numbers, one for each resolution, or lists of them with one for each "
                    f"transformer there, not {each!r:.100}"
                )
    return down, up


def _added_dims(features: int | None, channels: int | None) -> tuple[int, int]:
    """The features of one number and the channels of all that is told beside the timestep; an error if one is None."""
    if not isinstance(features, int) or not isinstance(channels, int):
        raise ConfigError(
            "addition_embed_type='text_time' needs addition_time_embed_dim and projection_class_embeddings_input_dim"
        )
    return features, channels


def as_bias(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask (b s) of ones and zeros as numbers to add to attention scores, 0 and -10,000: (b 1 s)."""
    return None if mask is None else ((1 - mask.to(like.dtype)) * -10000.0)[:, None, :]


def _class_embedding(
    kind: str | None, classes: int | None, features: int, emb_dim: int, act_fn: str, input_dim: int | None
) -> nn.Module | None:
    """The layer from class labels to the embedding, by the config's `class_embed_type`; None without classes."""
    if kind is None:
        return None if classes is None else nn.Embedding(classes, emb_dim)

    def needed() -> int:
        if input_dim is None:
            raise ConfigError(f"class_embed_type={kind!r:.100} needs projection_class_embeddings_input_dim")
        return input_dim

    kinds: dict[str, Callable[[], nn.Module]] = {
        "timestep": lambda: TimestepEmbedding(features, emb_dim, act_fn),
        "identity": nn.Identity,
        "projection": lambda: TimestepEmbedding(needed(), emb_dim),
        "simple_projection": lambda: nn.Linear(needed(), emb_dim),
    }
    return look_up("class_embed_type", kind, kinds)()
