"""What the two U-Nets share: the way down, the middle, the way up, and what can be computed once before a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ddim.checkpoint import PretrainedModel
from ddim.models.activations import activation
from ddim.models.attention import convert_attention_key
from ddim.models.blocks import (
    AttentionFactory,
    AttnDownBlock2D,
    AttnUpBlock2D,
    Block,
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    Projected,
    Style,
    Times,
    UNetMidBlock2D,
    UpBlock2D,
)
from ddim.models.core import HasCore
from ddim.models.embeddings import TimestepEmbedding, embed_labels
from ddim.models.processors import HasAttention
from ddim.models.recompute import CanRecompute
from ddim.step import Output


@dataclass(eq=False)
class UNet2DOutput(Output):
    """What a U-Net returns: `.sample`, which is `[0]` too."""

    sample: Tensor  # (b c h w)


class Level(NamedTuple):
    """The block at one resolution, on the way down or on the way up."""

    channels: int
    layers: int  # residual blocks
    attention: AttentionFactory | None  # makes the layer that follows each residual block, if one does
    kind: str  # of attention: "" for none, "Attn" or "CrossAttn"; the block's class is named by it
    resampler: str | None  # "conv" or "resnet" leads to the next resolution; None at the last one


DOWN_BLOCKS = {"": DownBlock2D, "Attn": AttnDownBlock2D, "CrossAttn": CrossAttnDownBlock2D}
UP_BLOCKS = {"": UpBlock2D, "Attn": AttnUpBlock2D, "CrossAttn": CrossAttnUpBlock2D}


class TimeCache(NamedTuple):
    """Every residual block's projection of every timestep of a run, made by `project_time`."""

    timesteps: Tensor  # (n) float32
    table: Tensor  # (n b|1 K), the projections of all blocks side by side
    places: Mapping[float, int]  # timestep -> its row of the table; empty if the timesteps are on a device

    def at(self, timestep: Tensor | float) -> Tensor:
        """The projections at a timestep, or at one for each sample: (b|1 K).

        A timestep that is not in the cache gives NaN, as looking for it on a device must not wait for the device.
        """
        on_host = not isinstance(timestep, Tensor) or (timestep.ndim == 0 and timestep.device.type == "cpu")
        if on_host and not torch.compiler.is_compiling() and float(timestep) in self.places:
            return self.table[self.places[float(timestep)]]
        if isinstance(timestep, Tensor):
            timestep = timestep.to(self.timesteps).reshape(-1, 1)  # (b|1 1)
        hit = (self.timesteps == timestep).reshape(-1, self.timesteps.shape[0])  # (b|1 n)
        index = hit.to(torch.uint8).argmax(dim=1)
        if self.table.shape[1] == 1 or index.shape[0] == 1:
            rows = self.table[index].flatten(0, 1)  # (b|1 K)
        else:
            rows = self.table[index, torch.arange(index.shape[0], device=index.device)]  # (b K)
        return rows.masked_fill(~hit.any(dim=1, keepdim=True), torch.nan)


class ClassTimeCache(NamedTuple):
    """A `TimeCache` that holds each class (or other condition) of a batch once, however many samples have it."""

    cache: TimeCache  # its table is (n u K), for the u different classes
    rows: Tensor  # (b), which of the u classes each sample has

    def at(self, timestep: Tensor | float) -> Tensor:
        """The projections of all samples at one timestep: (b K)."""
        return self.cache.at(timestep).index_select(0, self.rows)


class ChosenTimes(NamedTuple):
    """What every residual block makes of the timestep and class of each sample of a batch, each its own."""

    table: Tensor  # (n K), of all timesteps and classes that are asked for
    rows: Tensor  # (b), which of them each sample has

    def at(self, timestep: Tensor | float) -> Tensor:
        """The projections of all samples, (b K), whatever the timestep: the rows say it."""
        return self.table.index_select(0, self.rows)


class Residuals(NamedTuple):
    """What another network, such as a ControlNet (Zhang et al. 2023) or a T2I-Adapter (Mou et al. 2023), adds.

    Attributes:
        down: for each output of the way down, in the order in which they are made, `conv_in`'s first; (b c h w) each.
        middle: for the output of the middle, (b c h w).
        inside: for each block on the way down, before it changes the resolution, (b c h w) each.
    """

    down: Sequence[Tensor] | None = None
    middle: Tensor | None = None
    inside: Sequence[Tensor] = ()

    def all(self) -> list[Tensor]:
        """`down` and then `middle`, if they are there."""
        return [] if self.down is None or self.middle is None else [*self.down, self.middle]


class Backbone(HasAttention, HasCore, CanRecompute, PretrainedModel):
    """A U-Net (Ronneberger et al. 2015), with the timestep added in every residual block (Ho et al. 2020, appendix B).

    `UNet2DModel` and `UNet2DConditionModel` choose its parts.
    """

    time_proj: nn.Module
    time_embedding: TimestepEmbedding
    class_embedding: nn.Module | None
    class_embed_type: str | None
    class_embeddings_concat = False  # whether the classes' vector is put beside the timestep's, or added to it
    conv_in: nn.Conv2d
    conv_norm_out: nn.Module
    conv_act: nn.Module
    conv_out: nn.Conv2d
    text_inputs = 0  # how many tensors `core` is given of a text
    has_adapters = False  # `ddim.lora` says it here, which this module knows nothing of
    down_blocks: nn.ModuleList
    mid_block: UNetMidBlock2D | None
    up_blocks: nn.ModuleList

    @classmethod
    def convert_key(cls, key: str) -> str:
        return convert_attention_key(key)

    def build(
        self, style: Style, down: Sequence[Level], middle: UNetMidBlock2D | None, up: Sequence[Level], padding: int
    ) -> None:
        """Make the blocks.

        Args:
            style: what all residual blocks have in common.
            down: the way down, from the highest resolution to the lowest.
            middle: the block between the two ways, or None.
            up: the way up, from the lowest resolution to the highest; empty for a network that has none.
            padding: of the convolutions that halve the resolution.
        """
        self.time_act = activation(style.act_fn)
        self.down_blocks = nn.ModuleList(
            DOWN_BLOCKS[level.kind](
                before.channels, level.channels, level.layers, style, level.attention, level.resampler, padding
            )
            for before, level in zip([down[0], *down], down, strict=False)
        )
        self.mid_block = middle
        self.up_blocks = nn.ModuleList(
            UP_BLOCKS[level.kind](
                before.channels, level.channels, after.channels, level.layers, style, level.attention, level.resampler
            )
            for before, level, after in zip([*up[:1], *up], up, [*up[1:], *up[-1:]], strict=False)
        )
        for i, up_block in enumerate(self.up_blocks):
            cast(UpBlock2D, up_block).resolution_idx = i
        self.time_widths = [each.out_features for block in self.blocks() for each in block.time_projections()]

    def blocks(self) -> list[Block]:
        """All blocks in the order in which they run."""
        middle = [] if self.mid_block is None else [self.mid_block]
        return [*self.down_blocks, *middle, *self.up_blocks]

    def embed(
        self, timesteps: Tensor, class_labels: Tensor | None = None, timestep_cond: Tensor | None = None
    ) -> Tensor:
        """The embedding of timesteps, classes and a further condition in one vector for each sample: (b e).

        Args:
            timesteps: (b,).
            class_labels: (b,) integers, or vectors (b …) for a `class_embed_type` that takes them.
            timestep_cond: (b time_cond_proj_dim).

        Raises:
            ValueError: labels are missing, not wanted, or of a wrong shape, type or range.
        """
        emb: Tensor = self.time_embedding(self.time_proj(timesteps).to(self.dtype), timestep_cond)
        if self.class_embedding is None:
            if class_labels is not None:
                raise ValueError("class_labels were given to a model without classes: leave them out")
            return emb
        if class_labels is None:
            raise ValueError("this model is conditional on a class: class_labels are needed")
        if class_labels.shape[:1] != timesteps.shape:
            shape, batch = tuple(class_labels.shape), timesteps.shape[0]
            raise ValueError(f"class_labels must have one entry for each of {batch} samples; their shape is {shape}")
        if isinstance(self.class_embedding, nn.Embedding):
            return self._joined(emb, embed_labels(self.class_embedding, class_labels))
        if self.class_embed_type == "timestep":
            class_labels = self.time_proj(class_labels)
        vectors: Tensor = self.class_embedding(class_labels.to(self.dtype))
        if vectors.shape != emb.shape:
            raise ValueError(
                f"class_labels make {tuple(vectors.shape)} where {tuple(emb.shape)} is needed: give labels of the "
                f"shape that class_embed_type={self.class_embed_type!r} takes"
            )
        return self._joined(emb, vectors)

    def _joined(self, emb: Tensor, vectors: Tensor) -> Tensor:
        """The timestep's and the classes' vectors, (b e) each, as one vector for each sample."""
        return torch.cat([emb, vectors], dim=1) if self.class_embeddings_concat else emb + vectors

    def project(self, emb: Tensor) -> Tensor:
        """What every residual block makes of the embedding (b e), side by side in the blocks' order: (b K)."""
        emb = self.time_act(emb)
        return torch.cat([projection for block in self.blocks() for projection in block.project_time(emb)], dim=1)

    @torch.no_grad()
    def project_time(
        self,
        timesteps: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> TimeCache:
        """Compute once what every residual block makes of each timestep of a run, for `forward` to look up.

        Args:
            timesteps: (n,), all timesteps of the run.
            class_labels, timestep_cond, added_cond_kwargs: as `forward` takes them, for a batch of b; or one of a
                batch of 1, for all. They become part of the result, so `forward` is not given them again.

        Raises:
            ValueError: as `embed`.
        """
        known = timesteps.tolist() if timesteps.device.type == "cpu" else []
        timesteps = timesteps.to(self.device, torch.float32)
        n = len(timesteps)
        added = dict(added_cond_kwargs or {})
        batch = max(
            (len(given) for given in (class_labels, timestep_cond, *added.values()) if given is not None), default=1
        )

        def repeated(given: Tensor) -> Tensor:  # (b ...) or (1 ...) -> (n·b ...)
            return given.repeat(n * batch // len(given), *[1] * (given.ndim - 1))

        conditions: dict[str, Any] = {
            name: repeated(given)
            for name, given in (("class_labels", class_labels), ("timestep_cond", timestep_cond))
            if given is not None
        }
        if added:
            conditions["added_cond_kwargs"] = {name: repeated(given) for name, given in added.items()}
        emb = self.embed(timesteps.repeat_interleave(batch), **conditions)
        places = {float(timestep): place for place, timestep in enumerate(known)}
        return TimeCache(timesteps, self.project(emb).view(n, batch, -1), places)

    def core(self, *inputs: Tensor) -> Tensor:
        """`body` as a function of tensors alone: (b c h w).

        Args:
            inputs: x (b c h w); the projected timesteps (b|1 K); then, of a U-Net that reads a text, the keys and the
                values of one cross-attention after the other, (b|1 heads s d) each; then, if another network adds
                something, `Residuals.down` and `Residuals.middle`.
        """
        x, times, *rest = inputs
        more = rest[self.text_inputs :]
        added = Residuals(more[:-1], more[-1]) if more else None
        return self.body(x, self.projected(times), self.pairs(rest[: self.text_inputs]), added)

    def pairs(self, text: Sequence[Tensor]) -> dict[str, Any]:
        """What the blocks are told of a text, by the keys and values of one cross-attention after the other."""
        return {"encoder_hidden_states": zip(text[::2], text[1::2], strict=True)} if text else {}

    def projected(self, times: Tensor) -> Iterator[Projected]:
        """What `project` made (b|1 K), for one residual block after the other."""
        return map(Projected, torch.split(times, self.time_widths, dim=1))

    def body(
        self, x: Tensor, temb: Times, text: Mapping[str, Any] | None = None, added: Residuals | None = None
    ) -> Tensor:
        """The network from `conv_in` to `conv_out`: (b c h w) -> (b c h w).

        Args:
            x: the samples.
            temb: the embedding of the timestep, or what the blocks make of it.
            text: what the blocks that look at a text are told about it, see `blocks.Block`.
            added: what another network adds.
        """
        added = added or Residuals()
        skips = self.way_down(self.conv_in(x), temb, text, added.inside)
        x = skips[-1]
        if added.down is not None:
            if len(added.down) != len(skips):
                raise ValueError(
                    f"{len(added.down)} down_block_additional_residuals were given for {len(skips)} outputs of the way "
                    "down: give one for each"
                )
            skips = [skip + more for skip, more in zip(skips, added.down, strict=True)]
        if self.mid_block is not None:
            x = self.mid_block(x, temb, **self._text_for(self.mid_block, text))
        if added.middle is not None:
            x = x + added.middle
        for block in self.up_blocks:
            count = len(cast(Block, block).resnets)
            own, skips = skips[-count:], skips[:-count]
            x = block(
                hidden_states=x,
                temb=temb,
                res_hidden_states_tuple=tuple(own),
                upsample_size=skips[-1].shape[2:] if skips else None,
                **self._text_for(block, text),
            )
        out: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return out

    def way_down(
        self, x: Tensor, temb: Times, text: Mapping[str, Any] | None = None, inside: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """What `conv_in` gave (b c h w), and after it the outputs of the way down, in the order in which they are made.

        Args:
            x: what `conv_in` gave.
            temb, text: as for `body`.
            inside: what another network adds within the blocks, see `Residuals`.
        """
        outputs = [x]
        for block, more in zip_longest(self.down_blocks, inside):
            given = self._text_for(block, text)
            if more is not None:
                given = {**given, "additional_residuals": more}
            x, new = block(hidden_states=x, temb=temb, **given)
            outputs += new
        return outputs

    def _text_for(self, block: nn.Module, text: Mapping[str, Any] | None) -> Mapping[str, Any]:
        return text if text and getattr(block, "has_cross_attention", False) else {}
