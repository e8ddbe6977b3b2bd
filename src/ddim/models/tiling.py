"""A function of images, applied to one tile after another, where the whole image would need too much memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class TakesParts(nn.Module):
    """An autoencoder that can take its images one after another, and each of them in tiles."""

    use_slicing = use_tiling = False

    def enable_slicing(self) -> None:
        """Save memory by taking one image of a batch after another. The result is the same."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Take all images of a batch at once again."""
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Save memory by taking images in tiles of `tile_sample_min_size`, which overlap and are blended.

        The result differs a little: where tiles meet, and of an autoencoder with norms everywhere, as each tile is
        normalised by itself. False is the same as `disable_tiling`.
        """
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Take each image as a whole again."""
        self.use_tiling = False

    def each(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function(x)` for x (b c h w), one image after another where that was asked for."""
        if not self.use_slicing or len(x) <= 1:
            return function(x)
        return torch.cat([function(image) for image in torch.split(x, 1)])


class Tiles(NamedTuple):
    """How an image is cut into square tiles."""

    before: int  # the side of a tile that the function is given
    after: int  # the side of what the function makes of it
    overlap: float  # the share of a side that a tile has in common with the next one, 0 to below 1


def in_tiles(function: Callable[[Tensor], Tensor], x: Tensor, tiles: Tiles) -> Tensor:
    """`function(x)` for x (b c h w), computed on tiles that overlap and fade into each other there.

    Where the function looks further than a tile, as norms and attention do, the result differs from `function(x)`.
    """
    stride = int(tiles.before * (1 - tiles.overlap))
    fade = int(tiles.after * tiles.overlap)
    kept = tiles.after - fade
    rows: list[list[Tensor]] = []
    for top in range(0, x.shape[2], stride):
        row: list[Tensor] = []
        for left in range(0, x.shape[3], stride):
            tile = function(x[:, :, top : top + tiles.before, left : left + tiles.before])
            if rows:
                tile = faded(rows[-1][len(row)], tile, fade, dim=2)
            if row:
                tile = faded(row[-1], tile, fade, dim=3)
            row.append(tile)
        rows.append(row)
    return torch.cat([torch.cat([tile[:, :, :kept, :kept] for tile in row], dim=3) for row in rows], dim=2)


def faded(before: Tensor, tile: Tensor, extent: int, dim: int) -> Tensor:
    """A tile (b c h w) whose first rows (dim 2) or columns (dim 3) fade from the last ones of the tile before it.

    Args:
        before: the tile above (dim 2) or to the left (dim 3).
        tile: the tile.
        extent: how many rows or columns the fade takes.
        dim: 2 or 3.
    """
    extent = min(extent, before.shape[dim], tile.shape[dim])
    weight = torch.arange(extent, device=tile.device, dtype=tile.dtype) / max(extent, 1)
    weight = weight.view(-1, 1) if dim == 2 else weight
    last = before.narrow(dim, before.shape[dim] - extent, extent)
    first, rest = torch.split(tile, [extent, tile.shape[dim] - extent], dim)
    return torch.cat((last * (1 - weight) + first * weight, rest), dim)
