"""What need not be computed twice: the latents of pictures, and the vectors of captions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddim.checkpoint import read_tensors, save_tensors
from ddim.data import Choice, Preparation, has_alpha
from ddim.errors import NonFiniteError
from ddim.models import AutoencoderKL
from ddim.sources import Source
from ddim.tokenizer import CLIPTokenizer

BATCH = 32  # fixed, so that what is encoded again after an interruption is the same to the last bit
LARGEST = 1 << 30  # bytes of text vectors that are kept


def fingerprint(module: nn.Module) -> str:
    """A hash of a network's weights."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class LatentCache:
    """For each picture and each of its variants, what the autoencoder says of it, in float16 on disk.

    Args:
        folder: where the files go. Their name is a hash of the autoencoder, the preparation and the pictures.
        source: the pictures.
        prepare: how they are prepared.
    """

    def __init__(self, folder: Path, source: Source, prepare: Preparation) -> None:
        self.folder, self.source, self.prepare = folder, source, prepare
        self.variants = prepare.variants()
        self.table: Tensor | None = None  # (n, variants, 2, z, h, w): means and deviations
        self.transparent: np.ndarray[Any, Any] | None = None  # (n,)

    def fill(self, vae: AutoencoderKL) -> None:
        """Read the table, or make and write it.

        Raises:
            NonFiniteError: the autoencoder gave NaN.
        """
        pictures = hashlib.sha256()
        transparent = np.zeros(self.source.count, dtype=bool)
        for index in tqdm(range(self.source.count), desc="reading pictures", unit="image", delay=1):
            image = self.source.load(index)
            transparent[index] = has_alpha(image)
            pictures.update(image.numpy().tobytes() if isinstance(image, Tensor) else image.tobytes())
        self.transparent = transparent
        what = json.dumps([fingerprint(vae), pictures.hexdigest(), repr(self.prepare)])
        path = self.folder / f"latents-{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            save_tensors(path, {"latents": self._encode(vae)})
        self.table = read_tensors(path)["latents"]

    @torch.no_grad()
    def _encode(self, vae: AutoencoderKL) -> Tensor:
        jobs = [(index, choice) for index in range(self.source.count) for choice in self.variants]
        table: Tensor | None = None
        for first in tqdm(range(0, len(jobs), BATCH), desc="encoding pictures", unit="batch"):
            images = torch.stack([self._prepared(*job) for job in jobs[first : first + BATCH]])
            latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
            rows = torch.stack([latents.mean, latents.std], dim=1)  # (b 2 z h w)
            if not rows.isfinite().all():
                raise NonFiniteError(f"the autoencoder gave NaN for one of the images {jobs[first][0]} and following")
            if table is None:
                table = torch.empty(len(jobs), *rows.shape[1:], dtype=torch.float16)
            table[first : first + BATCH] = rows.half().cpu()
        assert table is not None
        return table.view(self.source.count, len(self.variants), *table.shape[1:])

    def _prepared(self, index: int, choice: Choice) -> Tensor:
        return self.prepare(self.source.load(index), choice)

    def sample(self, index: Tensor, variant: Tensor, device: torch.device) -> Tensor:
        """Latents of pictures, drawn at random: (b z h w) float32, not scaled."""
        assert self.table is not None
        rows = self.table[index.cpu(), variant.cpu()].to(device).float()  # (b 2 z h w)
        return rows[:, 0] + rows[:, 1] * torch.randn_like(rows[:, 0])


class CaptionCache:
    """The text encoder's vectors of all captions, each encoded once."""

    def __init__(self, captions: list[str]) -> None:
        self.captions = captions
        self.rows = {caption: row for row, caption in enumerate(captions)}
        self.table: Tensor | None = None  # (n s d)

    @classmethod
    def of(cls, source: Source, is_varied: bool) -> CaptionCache | None:
        """For a source's captions and the empty one; None if captions are varied at random."""
        if is_varied or source.captions is None:
            return None
        return cls(["", *sorted({caption for options in source.captions for caption in options} - {""})])

    @torch.no_grad()
    def fill(self, tokenizer: CLIPTokenizer, encoder: nn.Module) -> None:
        """Encode all captions; none, if that would take more than a gibibyte."""
        device = next(encoder.parameters()).device
        parts: list[Tensor] = []
        for first in tqdm(range(0, len(self.captions), BATCH), desc="encoding captions", unit="batch", delay=1):
            vectors: Tensor = encoder(tokenizer(self.captions[first : first + BATCH], warn=False).to(device))[0]
            if vectors[0].numel() * vectors.element_size() * len(self.captions) > LARGEST:
                return
            parts.append(vectors.float().cpu())
        self.table = torch.cat(parts)

    def embeddings(self, captions: list[str], device: torch.device) -> Tensor:
        """The vectors of captions: (b s d)."""
        assert self.table is not None
        return self.table[[self.rows[caption] for caption in captions]].to(device)
