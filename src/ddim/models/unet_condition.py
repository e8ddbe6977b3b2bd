"""Stable Diffusion's U-Net (Rombach et al. 2022): from noisy latents, a timestep and a text to a prediction.

Stable Diffusion XL's (Podell et al. 2024) is told more beside the timestep: the text as one vector, and numbers such as
the size that a picture had before it was made smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from ddim.checkpoint.config import register_to_config
from ddim.errors import ConfigError
from ddim.models.activations import activation
from ddim.models.backbone import ChosenTimes, ClassTimeCache, Residuals, TimeCache, UNet2DOutput
from ddim.models.blocks import Times, UpBlock2D
from ddim.models.embeddings import as_timesteps
from ddim.models.text_backbone import TextBackbone, TextCache, as_bias

# Settings of other families of models, with the only value that is implemented here.
NOT_IMPLEMENTED: dict[str, object] = {
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,  # diffusers refuses it too: the number of heads is called attention_head_dim
    "dual_cross_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "attention_type": "default",
    "cross_attention_norm": None,
}
OF_OTHERS = "it is of another family of models, which diffusers draws, if wanted with ddim's scheduler"


class UNet2DConditionModel(TextBackbone):
    """The U-Net of Stable Diffusion 1, 2 and XL; the constructor's arguments are diffusers'.

    Args:
        sample_size: height and width of the latents the model was trained on. It is kept for those who draw with the
            model: the network takes other sizes as well.
        in_channels, out_channels: of the latents, and of the prediction.
        center_input_sample: the samples are in [0, 1], and the network moves them to [-1, 1] first.
        flip_sin_to_cos, freq_shift: see `embeddings.sinusoids`.
        down_block_types: a key of DOWN_BLOCKS for each resolution, from the highest to the lowest.
        mid_block_type: a key of MID_BLOCKS, or None for no block between the two ways.
        up_block_types: a key of UP_BLOCKS for each resolution, from the lowest to the highest.
        only_cross_attention: both attentions of a transformer block look at the text.
        block_out_channels: channels at each resolution, from the highest to the lowest; multiples of `norm_num_groups`.
        layers_per_block: residual blocks at each resolution on the way down; there is one more on the way up.
        downsample_padding: of the convolutions that halve the resolution.
        mid_block_scale_factor: what the results of the residual blocks in the middle are divided by.
        dropout: the share of features that the residual blocks drop in training.
        act_fn: the activation, a key of `ACTIVATIONS`.
        norm_num_groups, norm_eps: groups of the norms, and what is added to their variance.
        cross_attention_dim: the text's channels.
        transformer_layers_per_block: how many blocks each transformer has; at a resolution of a list, another list may
            stand, with one number for each transformer there. The middle has as many as the last (first) of them says.
        reverse_transformer_layers_per_block: the same for the way up, from the lowest resolution to the highest; as on
            the way down unless told. Lists of lists need it, as the way up has one transformer more.
        attention_head_dim: the **number** of heads, whatever its name says: published configs mean the number.
        use_linear_projection: transformers begin and end with a linear layer instead of a 1x1 convolution.
        class_embed_type: None (a vector for each of `num_class_embeds` classes, or no classes if that is None),
            "timestep" (labels are numbers, embedded as timesteps are), "identity" (labels are vectors of the
            embedding's size), "projection" or "simple_projection" (labels are vectors of
            `projection_class_embeddings_input_dim` channels, through two linear layers or one).
        projection_class_embeddings_input_dim: with "text_time", the channels of the text's vector and of all numbers'
            features together.
        addition_embed_type: None, or "text_time": the network is told a text's vector and some numbers beside the
            timestep, see `forward`.
        addition_time_embed_dim: features that each of these numbers becomes, as timesteps do.
        num_class_embeds: the number of classes.
        class_embeddings_concat: the class's vector stands beside the timestep's, instead of being added to it.
        upcast_attention: for attention processors that look at it; without one, attention scores are computed in
            float32 in any case.
        resnet_time_scale_shift: "default" (the timestep is added) or "scale_shift" (it also scales).
        time_embedding_dim: channels of the timestep's embedding; 4 times the first of `block_out_channels` unless told.
        time_cond_proj_dim: channels of `timestep_cond`, which is added to the timestep's features; None for none.
        conv_in_kernel, conv_out_kernel: sides of the first and the last convolution's kernels, odd.
        mid_block_only_cross_attention, addition_embed_type_num_heads: without effect here; kept in the config.

    `only_cross_attention`, `layers_per_block`, `cross_attention_dim`, `transformer_layers_per_block` and
    `attention_head_dim` are one value, or a list with one for each resolution. The settings in NOT_IMPLEMENTED, which
    other families of models use, must have the value that is given there.

    Raises:
        ConfigError: arguments that are unknown, not implemented or do not fit together.
    """

    # Parts of other models, which code that replaces the network's `forward` asks for.
    encoder_hid_proj = time_embed_act = position_net = None

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
        transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1,
        reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None,
        encoder_hid_dim: None = None,
        encoder_hid_dim_type: None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool | None = False,
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
                instead = (
                    "say the number of heads by attention_head_dim" if name == "num_attention_heads" else OF_OTHERS
                )
                raise ConfigError(f"{name}={self.config[name]!r:.100} is not implemented, only {only!r} is: {instead}")
        self.center_input_sample = center_input_sample
        self.make(self.config, up_block_types)
        self.num_upsamplers = len(block_out_channels) - 1

        width = block_out_channels[0]
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, width, norm_eps)
        self.conv_act = activation(act_fn)
        self.conv_out = nn.Conv2d(width, out_channels, conv_out_kernel, padding=(conv_out_kernel - 1) // 2)

    def is_altered(self) -> bool:
        return super().is_altered() or any(block.freeu() for block in self.up_blocks if isinstance(block, UpBlock2D))

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Scale what the first two blocks of the way up are given (FreeU, Si et al. 2023), until `disable_freeu`.

        No backend runs the network then. The paper's authors propose s1=0.9, s2=0.2, b1=1.5, b2=1.6 for Stable
        Diffusion 1, and b1=1.4 with b2=1.6 for Stable Diffusion 2.

        Args:
            s1, s2: what the low frequencies of the skip connections are multiplied by, in the first and second block.
            b1, b2: what the first half of the features is multiplied by, in the first and second block.
        """
        self._set_freeu(s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """Undo `enable_freeu`."""
        self._set_freeu(s1=None, s2=None, b1=None, b2=None)

    def _set_freeu(self, **factors: float | None) -> None:
        for block in self.up_blocks:
            for name, value in factors.items():
                setattr(block, name, value)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        *,
        text_cache: TextCache | None = None,
        time_cache: TimeCache | ClassTimeCache | ChosenTimes | None = None,
    ) -> UNet2DOutput | Any:
        """Predict from noisy latents.

        Args:
            sample: the noisy latents, (b c h w).
            timestep: one for all samples, or one for each, (b,).
            encoder_hidden_states: the text encoder's output, (b s text_dim).
            class_labels: the class of each sample, (b,); or vectors, for a `class_embed_type` that takes them.
            timestep_cond: a further condition, (b time_cond_proj_dim).
            attention_mask: (b n), 1 where the first attention of the transformer blocks may look and 0 elsewhere; n is
                h·w, so this is for models of one resolution, or, with `only_cross_attention`, the text's length.
            cross_attention_kwargs: more arguments for attention processors. "scale", which in diffusers is the strength
                of an adapter (LoRA), must be 1 if there are adapters, as those are part of the weights here.
            added_cond_kwargs: what a model with `addition_embed_type` "text_time" is told beside the timestep:
                "text_embeds", the text's vector, (b p), and "time_ids", numbers (b n), of Stable Diffusion XL the
                original size, the corner of the crop and the target size, or the aesthetic score in its place.
            down_block_additional_residuals, mid_block_additional_residual: what a ControlNet adds to the outputs of
                the way down, as many as those, and to the output of the middle.
            down_intrablock_additional_residuals: what a T2I-Adapter adds within the blocks of the way down.
            encoder_attention_mask: (b s), 1 where cross-attention may look and 0 elsewhere.
            return_dict: False gives a plain tuple.
            text_cache: what `project_text` made of the text; it is used instead of `encoder_hidden_states`.
            time_cache: what `project_time` made of the run's timesteps, the labels, `timestep_cond` and
                `added_cond_kwargs`; these are not looked at then.

        Returns:
            The prediction `.sample`, (b out_channels h w).

        Raises:
            ValueError: a shape or the class labels do not fit, or the text is missing.
        """
        if sample.ndim != 4 or sample.shape[1] != self.in_channels:
            raise ValueError(f"sample must have shape (b, {self.in_channels}, h, w), not {tuple(sample.shape)}")
        text = self._text(encoder_hidden_states, sample.shape[0]) if text_cache is None else None
        if self.center_input_sample:
            sample = 2 * sample - 1
        more = {
            "attention_mask": as_bias(attention_mask, sample),
            "encoder_attention_mask": as_bias(encoder_attention_mask, sample),
            "cross_attention_kwargs": self._for_processors(cross_attention_kwargs),
        }
        added = Residuals(
            down_block_additional_residuals, mid_block_additional_residual, down_intrablock_additional_residuals or ()
        )
        is_plain = all(value is None for value in more.values()) and not added.inside
        is_whole = (added.down is None) == (added.middle is None)
        runner = self.active_runner() if is_plain and is_whole else None

        times = None if time_cache is None else time_cache.at(timestep)
        temb: Times = None if times is None else self.projected(times)
        if times is None:
            emb = self.embed(
                as_timesteps(timestep, sample.shape[0], sample.device), class_labels, timestep_cond, added_cond_kwargs
            )
            times, temb = None if runner is None else self.project(emb), emb
        if runner is not None and times is not None:
            pairs = text_cache if text is None else self._keys_and_values(text)
            out: Tensor = self.run_by(runner, sample, times, *chain(*(pairs or ())), *added.all())
        else:
            states = text if text_cache is None else iter(text_cache)
            out = self.body(sample, temb, {"encoder_hidden_states": states, **more}, added)
        return UNet2DOutput(out) if return_dict else (out,)
