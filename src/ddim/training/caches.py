"""What need not be computed twice: the latents of pictures, and the vectors of captions."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from ddim._version import __version__
from ddim.checkpoint import fingerprint, read_tensors, save_tensors
from ddim.data import Source
from ddim.data.preparation import Preparation
from ddim.data.progress import progress
from ddim.errors import CheckpointError, NonFiniteError
from ddim.images.flat import shows_background
from ddim.images.reading import bands
from ddim.models import AutoencoderKL
from ddim.models.tokenizer import CLIPTokenizer

BATCH = 32  # fixed, so that what is encoded again after an interruption is the same to the last bit
LARGEST = 1 << 30  # bytes of text vectors that are kept


def content(image: Image.Image | Tensor) -> Iterator[bytes]:
    """What a picture shows, as bytes for a hash: its pixels, their shape, and what else decides how it looks."""
    if isinstance(image, Tensor):
        yield repr((image.dtype, tuple(image.shape))).encode()
        yield image.numpy().tobytes()
        return
    turned = image.getexif().get(ExifTags.Base.Orientation, 1)
    yield repr((image.mode, image.size, turned, image.info.get("transparency"))).encode()
    for _, band in bands(image):  # the numbers of a palette say nothing of colours
        yield (band.convert("RGBA") if band.mode in ("P", "PA") else band).tobytes()


class LatentCache:
    """What the autoencoder says of each picture and each of its variants, in float16 on disk.

    Args:
        folder: the folder of the files, whose names are hashes of the autoencoder, the preparation and the pictures.
        source: the pictures.
        prepare: what makes the variants of a picture ready for the autoencoder.
    """

    def __init__(self, folder: Path, source: Source, prepare: Preparation) -> None:
        self.folder, self.source, self.prepare = folder, source.at_least(prepare.resolution), prepare
        self.jobs = [(index, choice) for index in range(source.count) for choice in prepare.variants()]
        self.table: Tensor | None = None  # (n, variants, 2, z, h, w): means and deviations
        self.transparent: np.ndarray[Any, Any] | None = None  # (n,)
        self.pictures = self.autoencoder = ""  # hashes
        self.computes = ""  # what the autoencoder computes with its weights

    def look(self, vae: AutoencoderKL) -> None:
        """Read each picture once, to know by hashes what is to be encoded and by which autoencoder."""
        digest = hashlib.sha256()
        transparent = np.zeros(self.source.count, dtype=bool)
        for index in progress(range(self.source.count), desc="reading pictures", unit="image"):
            image = self.source.load(index)
            transparent[index] = shows_background(image)
            for piece in content(image):
                digest.update(piece)
        self.transparent, self.pictures, self.autoencoder = transparent, digest.hexdigest(), fingerprint(vae)
        told = sorted((key, value) for key, value in vae.config.items() if not key.startswith("_"))
        self.computes = repr((told, vae.dtype, __version__))

    def fill(self, vae: AutoencoderKL) -> None:
        """Read the table from disk, or make and write it; `look` must have been called before.

        A file that is broken, or does not hold what the autoencoder gives, is made again.

        Raises:
            NonFiniteError: the autoencoder gave what is no number in float16.
        """
        what = json.dumps([self.autoencoder, self.computes, self.pictures, repr(self.prepare)])
        path = self.folder / f"latents-{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"
        flat = self._read(path, vae) if path.is_file() else None
        if flat is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob(".latents-*.tmp.safetensors"):  # of a process that was killed
                unfinished.unlink(missing_ok=True)
            save_tensors(path, {"latents": self._encode(vae)})
            flat = read_tensors(path)["latents"]
        self.table = flat.view(self.source.count, -1, *flat.shape[-4:])

    def _read(self, path: Path, vae: AutoencoderKL) -> Tensor | None:
        """A file's table, if its last rows are what the autoencoder gives now."""
        try:
            table = read_tensors(path).get("latents")
        except CheckpointError:
            table = None
        if table is not None and table.dtype == torch.float16:
            first = (len(self.jobs) - 1) // BATCH * BATCH
            expected = self._rows(vae, first)
            if table.numel() == len(self.jobs) * expected[0].numel() and table.shape[-4:] == expected.shape[1:]:
                rows = table.view(-1, *expected.shape[1:])[first:]
                if torch.allclose(rows.float(), expected.float(), rtol=0.05, atol=0.05):
                    return table
        warnings.warn(f"{path} is not what this run would write there: it is made again", stacklevel=2)
        return None

    @torch.no_grad()
    def _rows(self, vae: AutoencoderKL, first: int) -> Tensor:
        """The rows of a batch of jobs: (b 2 z h w)."""
        jobs = self.jobs[first : first + BATCH]
        images = torch.stack([self.prepare(self.source.load(index), choice) for index, choice in jobs])
        latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
        rows = torch.stack([latents.mean, latents.std], dim=1).half().cpu()
        if not rows.isfinite().all():
            raise NonFiniteError(
                f"the autoencoder gave NaN or infinity for one of the images {jobs[0][0]} to {jobs[-1][0]}"
            )
        return rows

    def _encode(self, vae: AutoencoderKL) -> Tensor:
        table: Tensor | None = None
        for first in progress(range(0, len(self.jobs), BATCH), desc="encoding pictures", unit="batch"):
            rows = self._rows(vae, first)
            if table is None:
                table = torch.empty(len(self.jobs), *rows.shape[1:], dtype=torch.float16)
            table[first : first + BATCH] = rows
        assert table is not None
        return table.view(self.source.count, -1, *table.shape[1:])

    def rows(self, index: int, variant: int) -> Tensor:
        """What the autoencoder says of a variant of a picture: means and deviations, (2 z h w) float16."""
        assert self.table is not None
        return self.table[index, variant]


def draw_latents(rows: Tensor) -> Tensor:
    """Latents drawn at random from means and deviations (b 2 z h w): (b z h w) float32, not scaled."""
    mean, deviation = rows.float().unbind(1)
    return mean + deviation * torch.randn_like(mean)


class CaptionCache:
    """The text encoder's vectors of all captions, each encoded once."""

    def __init__(self, captions: list[str]) -> None:
        self.captions = captions
        self.rows = {caption: row for row, caption in enumerate(captions)}
        self.table: Tensor | None = None  # (n s d)

    @classmethod
    def of(cls, source: Source, is_varied: bool) -> CaptionCache | None:
        """A cache of a source's captions and of the empty one; None if the captions are varied at random."""
        if is_varied or source.captions is None:
            return None
        return cls(["", *sorted({caption for options in source.captions for caption in options} - {""})])

    @torch.no_grad()
    def fill(self, tokenizer: CLIPTokenizer, encoder: nn.Module) -> None:
        """Encode all captions, or none of them, if they would take more than a gibibyte."""
        device = next(encoder.parameters()).device
        parts: list[Tensor] = []
        for first in progress(range(0, len(self.captions), BATCH), desc="encoding captions", unit="batch"):
            vectors: Tensor = encoder(tokenizer.ids(self.captions[first : first + BATCH], warn=False).to(device))[0]
            if vectors[0].numel() * vectors.element_size() * len(self.captions) > LARGEST:
                return
            parts.append(vectors.float().cpu())
        self.table = torch.cat(parts)

    def embedding(self, caption: str) -> Tensor:
        """The vectors of a caption: (s d)."""
        assert self.table is not None
        return self.table[self.rows[caption]]
