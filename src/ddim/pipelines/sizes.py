"""How large a picture of a latent model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddim.errors import ConfigError


def pixels(
    height: int | None, width: int | None, config: Mapping[str, Any], latents: Tensor | None, factor: int
) -> tuple[int, int]:
    """Height and width: what is given, or that of the given latents, or what the U-Net was trained on."""
    if height is not None and width is not None:
        return height, width
    rows, columns = usual_size(config) if latents is None else latents.shape[-2:]
    return rows * factor if height is None else height, columns * factor if width is None else width


def usual_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the latents that a U-Net with this config was trained on.

    Raises:
        ConfigError: the config does not say.
    """
    size = config.get("sample_size")
    if isinstance(size, int) and size < 64 and _is_before_0_9(config.get("_diffusers_version")):
        size = 64  # the first checkpoints of Stable Diffusion say 32
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        raise ConfigError(f"the U-Net's config says sample_size={size!r:.50}: give height and width")
    return sides[0], sides[1]


def check_sides(height: int | None, width: int | None, factor: int) -> None:
    """Raise a ValueError unless the sides that are given are whole latents."""
    for name, side in (("height", height), ("width", width)):
        if side is not None and positive(side, name) % factor:
            raise ValueError(f"{name} must be a multiple of {factor}, the pixels of a latent, not {side}")


def positive(value: Any, name: str) -> int:
    """A positive int, or a ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, not {value!r:.50}")
    return value


def _is_before_0_9(version: Any) -> bool:
    """Was a config written by a diffusers older than 0.9?"""
    parts = version.split(".") if isinstance(version, str) else []
    return len(parts) > 1 and parts[0] == "0" and parts[1].isdigit() and int(parts[1]) < 9
