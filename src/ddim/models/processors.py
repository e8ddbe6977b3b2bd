"""What networks with attention offer to those who replace it, under diffusers' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ddim.models.attention import Attention, AttnProcessor


class HasAttention(nn.Module):
    """A network whose attention layers can be given processors, see `Attention`."""

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Each attention layer's processor, by the layer's name and ".processor", in diffusers' order."""
        return {f"{name}.processor": layer.get_processor() for name, layer in _attention_layers(self)}

    def set_attn_processor(self, processor: Any) -> None:
        """Have processors do the attention layers' arithmetic from now on.

        Samplers then give each layer the text at each step, and no backend runs the network: so it is slower.

        Args:
            processor: one for all layers; or a dict with one for each, with the keys of `attn_processors`. See
                `AttnProcessor.__call__` for how it is called.

        Raises:
            ValueError: the dict has not as many entries as there are attention layers, or not their names.
            TypeError: a processor cannot be called.
        """
        layers = dict(_attention_layers(self))
        if not isinstance(processor, Mapping):
            chosen = dict.fromkeys(layers, processor)
        else:
            chosen = {name.removesuffix(".processor"): value for name, value in processor.items()}
            if len(chosen) != len(layers):
                raise ValueError(
                    f"the number of processors, {len(chosen)}, is not that of attention layers, {len(layers)}: give "
                    "one for each name in attn_processors"
                )
            unknown = sorted(set(chosen) - set(layers))
            if unknown:
                raise ValueError(f"there are no attention layers {', '.join(unknown)}: see attn_processors")
        for name, value in chosen.items():
            if not callable(value):
                raise TypeError(f"the attention processor of {name} cannot be called: {value!r:.100}")
        for name, value in chosen.items():
            layers[name].set_processor(value)

    def set_default_attn_processor(self) -> None:
        """Remove all attention processors that were set. Samplers and backends then run at full speed again."""
        for _, layer in _attention_layers(self):
            layer.set_processor(AttnProcessor())

    def set_attention_slice(self, slice_size: Any = "auto") -> None:
        """Has no effect: PyTorch's attention needs no more memory than attention in slices would."""

    def enable_forward_chunking(self, chunk_size: int | None = None, dim: int = 0) -> None:
        """Has no effect: feed-forward layers run in one piece."""
        if dim not in (0, 1):
            raise ValueError(f"dim must be 0 or 1, not {dim}")

    def disable_forward_chunking(self) -> None:
        """Has no effect, as `enable_forward_chunking` has none."""

    def fuse_qkv_projections(self) -> None:
        """Has no effect: the layers that make queries, keys and values stay apart, and the result is the same."""

    def unfuse_qkv_projections(self) -> None:
        """Has no effect, as `fuse_qkv_projections` has none."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Has no effect: PyTorch's own attention is as sparing of memory as xFormers'."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Has no effect, as `enable_xformers_memory_efficient_attention` has none."""


def _attention_layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Attention]]:
    """All attention layers by their names, those of a block in the middle last, as diffusers has them.

    The order matters to files that number the layers, such as those of an IP-Adapter.
    """
    children = sorted(module.named_children(), key=lambda named: named[0] == "mid_block")
    for name, child in children:
        if isinstance(child, Attention):
            yield f"{prefix}{name}", child
        else:
            yield from _attention_layers(child, f"{prefix}{name}.")
