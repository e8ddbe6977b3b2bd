"""What a latent pipeline can do to need less memory, and where its networks are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class SavesMemory:
    """For pipelines with a `vae` and a `unet`, whose networks are used one after another."""

    vae: Any
    unet: Any
    _offload: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        device: torch.device = self.unet.device if self._offload is None else self._offload
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the U-Net's parameters, and so of the latents."""
        dtype: torch.dtype = self.unet.dtype
        return dtype

    @contextmanager
    def in_use(self, network: Any) -> Iterator[Any]:
        """The network where it runs, brought there and back if the pipeline is offloaded."""
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

        A pipeline whose networks come and go is for one thread at a time.

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
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.to("cpu")

    def enable_vae_slicing(self) -> None:
        """Encode and decode one image of a batch after another; the result is the same."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encode and decode large images in tiles that overlap; the result differs a little."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        self.vae.disable_tiling()

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Without effect: PyTorch's attention never holds all scores in memory, so there is nothing to slice."""

    def disable_attention_slicing(self) -> None:
        """Without effect, as `enable_attention_slicing`."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Without effect: PyTorch's attention does the same."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Without effect, as `enable_xformers_memory_efficient_attention`."""
