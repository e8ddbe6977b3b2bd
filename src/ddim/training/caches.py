"""What need not be computed twice: the latents of pictures, and the vectors of captions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ddim._version import __version__
from ddim.checkpoint import fingerprint, read_tensors, save_tensors
from ddim.data import Source
from ddim.data.buckets import Buckets
from ddim.data.preparation import Choice, Preparation
from ddim.data.progress import progress
from ddim.errors import CheckpointError, NonFiniteError
from ddim.images.flat import shows_background
from ddim.images.reading import bands
from ddim.models import AutoencoderKL
from ddim.pipelines.prompts import Encoded

# How much is encoded at once: fixed, so that what is encoded again after an interruption is the same to the last bit.
BATCH = 32  # captions, or small pictures
PIXELS = 1 << 19  # of larger pictures, of which each takes more memory than a step of training otherwise
LARGEST = 1 << 30  # bytes of text vectors that are kept in memory


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
        buckets: the size of each picture; None gives all of them the preparation's.
        is_exact: see `encoded`.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        prepare: Preparation,
        buckets: Buckets | None = None,
        is_exact: bool = False,
    ) -> None:
        self.is_exact = is_exact
        largest = prepare.resolution if buckets is None else max(map(max, buckets.sizes))
        self.folder, self.source, self.prepare = folder, source.at_least(largest), prepare
        self.buckets = buckets
        # The pictures of each size together, as the autoencoder takes only such at once.
        self.groups = [range(source.count)] if buckets is None else [each.tolist() for each in buckets.members()]
        variants = prepare.variants()
        self.jobs = [[(index, choice) for index in group for choice in variants] for group in self.groups]
        self.tables: list[Tensor] = []  # of each group (n, variants, 2, z, h, w): means and deviations
        self.places: list[tuple[int, int]] = [(0, 0)] * source.count  # each picture's group, and its row in its table
        for number, group in enumerate(self.groups):
            for row, index in enumerate(group):
                self.places[index] = (number, row)
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
        told = [self.autoencoder, self.computes, self.pictures, repr(self.prepare)]
        if self.buckets is not None:
            told.append(repr((self.buckets.sizes, self.buckets.of.tolist(), self.buckets.owns)))
        path = self.folder / f"latents-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}.safetensors"
        flat = self._read(path, vae) if path.is_file() else None
        if flat is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob(".latents-*.tmp.safetensors"):  # of a process that was killed
                unfinished.unlink(missing_ok=True)
            save_tensors(path, dict(zip(self._names(), self._encode(vae), strict=True)))
            tensors = read_tensors(path)
            flat = [tensors[name] for name in self._names()]
        self.tables = [
            table.view(len(group), -1, *table.shape[-4:]) for table, group in zip(flat, self.groups, strict=True)
        ]

    def _batch(self, group: int) -> int:
        """How many pictures of a group are encoded at once."""
        square = (self.prepare.resolution, self.prepare.resolution)
        width, height = square if self.buckets is None else self.buckets.sizes[group]
        return min(BATCH, max(1, PIXELS // (width * height)))

    def _names(self) -> list[str]:
        """What the groups' tensors are called in the file."""
        return ["latents", *(f"latents.{number}" for number in range(1, len(self.groups)))]

    def _read(self, path: Path, vae: AutoencoderKL) -> list[Tensor] | None:
        """A file's tables, if their last rows are what the autoencoder gives now."""
        try:
            tensors = read_tensors(path)
        except CheckpointError:
            tensors = {}
        tables = [tensors.get(name) for name in self._names()]
        if all(table is not None and self._holds(group, table, vae) for group, table in enumerate(tables)):
            return [table for table in tables if table is not None]
        warnings.warn(f"{path} is not what this run would write there: it is made again", stacklevel=2)
        return None

    def _holds(self, group: int, table: Tensor, vae: AutoencoderKL) -> bool:
        """Whether a group's table has the right shape, and its last rows are what the autoencoder gives now."""
        if table.dtype != torch.float16:
            return False
        count = len(self.jobs[group])
        first = (count - 1) // self._batch(group) * self._batch(group)
        expected = self._rows(vae, group, first)
        if table.numel() != count * expected[0].numel() or table.shape[-4:] != expected.shape[1:]:
            return False
        rows = table.view(-1, *expected.shape[1:])[first:]
        return torch.allclose(rows.float(), expected.float(), rtol=0.05, atol=0.05)

    @torch.no_grad()
    def _rows(self, vae: AutoencoderKL, group: int, first: int) -> Tensor:
        """The rows of a batch of a group's jobs: (b 2 z h w)."""
        jobs = self.jobs[group][first : first + self._batch(group)]
        images = torch.stack([self._image(index, choice) for index, choice in jobs])
        latents = encoded(vae, images, self.is_exact)
        rows = torch.stack([latents.mean, latents.std], dim=1).half().cpu()
        if not rows.isfinite().all():
            raise NonFiniteError(
                f"the autoencoder gave NaN or infinity for one of the images {jobs[0][0]} to {jobs[-1][0]}"
            )
        return rows

    def _image(self, index: int, choice: Choice) -> Tensor:
        """A variant of a picture, as the autoencoder takes it."""
        size, own = (None, None) if self.buckets is None else (self.buckets.size(index), self.buckets.owns[index])
        return self.prepare(self.source.load(index), choice, size, own)

    def _encode(self, vae: AutoencoderKL) -> list[Tensor]:
        """The table of each group."""
        tables: list[Tensor] = []
        batches = [
            (group, first) for group, jobs in enumerate(self.jobs) for first in range(0, len(jobs), self._batch(group))
        ]
        for group, first in progress(batches, desc="encoding pictures", unit="batch"):
            rows = self._rows(vae, group, first)
            if group == len(tables):
                tables.append(torch.empty(len(self.jobs[group]), *rows.shape[1:], dtype=torch.float16))
            tables[group][first : first + len(rows)] = rows
        pairs = zip(tables, self.groups, strict=True)
        return [table.view(len(group), -1, *table.shape[1:]) for table, group in pairs]

    def rows(self, index: int, variant: int) -> Tensor:
        """What the autoencoder says of a variant of a picture: means and deviations, (2 z h w) float16."""
        group, row = self.places[index]
        return self.tables[group][row, variant]


def encoded(vae: AutoencoderKL, images: Tensor, is_exact: bool) -> Any:
    """What an autoencoder says of pictures (b c h w) in [-1, 1]: a distribution of latents.

    Args:
        is_exact: compute in the type of its weights, whatever autocast says, for one that overflows in half precision.
    """
    exactly = torch.autocast(vae.device.type, enabled=False) if is_exact else contextlib.nullcontext()
    with exactly:
        return vae.encode(images.to(vae.device, vae.dtype)).latent_dist


def draw_latents(rows: Tensor) -> Tensor:
    """Latents drawn at random from means and deviations (b 2 z h w): (b z h w) float32, not scaled."""
    mean, deviation = rows.float().unbind(1)
    return mean + deviation * torch.randn_like(mean)


class CaptionCache:
    """What the text encoders make of all captions, each encoded once.

    Args:
        captions: without repetitions.
        folder: where a file is made if they need more than a gibibyte, from which they are then read. It has no name
            any more as soon as it is opened, and so it is gone when the run is.
        dtype: of the numbers that are kept.
    """

    def __init__(self, captions: list[str], folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.captions, self.folder, self.dtype = captions, folder, dtype
        self.rows = {caption: row for row, caption in enumerate(captions)}
        self.tables: list[Tensor] = []  # (n s d), and of SDXL (n p)

    @classmethod
    def of(
        cls, source: Source, is_varied: bool, folder: Path, dtype: torch.dtype = torch.float32
    ) -> CaptionCache | None:
        """A cache of a source's captions and of the empty one; None if the captions are varied at random."""
        if is_varied or source.captions is None:
            return None
        captions = ["", *sorted({caption for options in source.captions for caption in options} - {""})]
        return cls(captions, folder, dtype)

    @torch.no_grad()
    def fill(self, encode: Callable[[list[str]], Encoded]) -> None:
        """Encode all captions."""
        count = len(self.captions)
        for first in progress(range(0, count, BATCH), desc="encoding captions", unit="batch"):
            found = [part for part in encode(self.captions[first : first + BATCH]) if part is not None]
            if not self.tables:
                size = sum(part[0].numel() for part in found) * count * self.dtype.itemsize
                make = self._on_disk if size > LARGEST else partial(torch.empty, dtype=self.dtype)
                self.tables = [make((count, *part.shape[1:])) for part in found]
            for table, part in zip(self.tables, found, strict=True):
                table[first : first + len(part)] = part.to(table)

    def _on_disk(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor in a file that has no name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".captions-{os.getpid()}.tmp"
        size = math.prod(shape)
        try:
            table = torch.from_file(str(path), shared=True, size=size, dtype=self.dtype)
        finally:
            with contextlib.suppress(OSError):  # where a file in use cannot be removed, it stays
                path.unlink()
        return table.view(shape)

    def embedding(self, caption: str) -> Encoded:
        """The vectors (s d) of a caption and, of SDXL, its vector (p)."""
        row = self.rows[caption]
        return Encoded(self.tables[0][row], self.tables[1][row] if len(self.tables) > 1 else None)
