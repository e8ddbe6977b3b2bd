"""The methods of diffusers by which a pipeline, whose networks are used one after another, needs less memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

N = TypeVar("N")  # a network, or None where a pipeline is without one


class SavesMemory:
    """For pipelines whose networks are in `components`."""

    components: dict[str, Any]
    _offload: torch.device | None = None  # where the networks run, if they are kept in the host's memory

    @property
    def _networks(self) -> list[nn.Module]:
        return [component for component in self.components.values() if isinstance(component, nn.Module)]

    @contextmanager
    def in_use(self, network: N) -> Iterator[N]:
        """The network on the device where it runs; if the pipeline is offloaded, it is brought there and back."""
        if self._offload is None or not isinstance(network, nn.Module):
            yield network
            return
        network.to(self._offload)
        try:
            yield network
        finally:
            network.to("cpu")

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: str | torch.device | None = None) -> None:
        """Keep the networks in the host's memory, each on the accelerator only while it is used.

        Only one thread at a time may use a pipeline whose networks come and go.

        Args:
            gpu_id: which accelerator; the current one unless told.
            device: the accelerator itself, such as "cuda:1".

        Raises:
            RuntimeError: there is no accelerator.
        """
        here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        chosen = here if device is None else torch.device(device)
        if here is None or chosen is None or chosen.type == "cpu":
            raise RuntimeError("model offload moves networks between the host and an accelerator: there is none here")
        self._offload = chosen if gpu_id is None else torch.device(chosen.type, gpu_id)
        for network in self._networks:
            network.to("cpu")

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """The same as `enable_model_cpu_offload`: whole networks are moved here, and never single layers."""
        self.enable_model_cpu_offload(gpu_id, device)

    def remove_all_hooks(self) -> None:
        """Undo `enable_model_cpu_offload`: the networks stay in the host's memory until `to` moves them."""
        self._offload = None

    def maybe_free_model_hooks(self) -> None:
        """This has no effect: an offloaded network goes back to the host's memory as soon as it has been used."""

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """This has no effect: PyTorch's attention never holds all scores in memory, so there is nothing to slice."""

    def disable_attention_slicing(self) -> None:
        """This has no effect, as `enable_attention_slicing` has none."""

    def set_attention_slice(self, slice_size: str | int | None) -> None:
        """This has no effect, as `enable_attention_slicing` has none."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """This has no effect: PyTorch's attention does the same."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """This has no effect, as `enable_xformers_memory_efficient_attention` has none."""

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Any = None) -> None:
        """This has no effect, as `enable_xformers_memory_efficient_attention` has none."""
