"""What people give to a pipeline: pictures and masks, as tensors, and numbers, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddim.images.flat import flatten, is_deep
from ddim.images.reading import loaded, shrunk

# A picture or a list of them: PIL images; arrays (h w c) or (b h w c); tensors (c h w) or (b c h w).
Pictures: TypeAlias = Any

# Arguments that diffusers has and this package has not, and what to use instead.
_INSTEAD = {
    "lora_scale": "how strong an adapter is, set_adapters says",
    "sigmas": "DDIM's steps are timesteps, which timesteps= takes, and no custom sigmas",
}

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def to_tensor(
    pictures: Pictures, size: tuple[int | None, int | None], factor: int, channels: int, latents: int
) -> Tensor:
    """Pictures as (b channels h w) float32 in [-1, 1]; latents, which a tensor may hold instead, as they are.

    Args:
        pictures: PIL images are resized with Lanczos' filter, and arrays and tensors by taking the nearest pixel. Their
            numbers are bytes, or in [0, 1], or if one of them is negative in [-1, 1].
        size: (height, width); None takes the first picture's, rounded down to a multiple of `factor`.
        factor: how many pixels a latent stands for, on each axis.
        channels: how many the result has; the one channel of grey pictures is copied to all.
        latents: how many channels latents have. A tensor with so many holds latents.

    Raises:
        TypeError, ValueError: what is given is no picture, or has other channels or numbers.
    """
    listed = _as_list(pictures, "image")
    if isinstance(listed[0], Image.Image):
        sides, mode = _sides(size, listed[0].size[::-1], factor), _MODES.get(channels, "RGB")
        tensor = _from_pil([_converted(picture, mode, sides) for picture in listed], sides)
    else:
        tensor = _from_numbers(listed, "image")
        if isinstance(listed[0], Tensor) and tensor.shape[1] == latents:
            return tensor
        tensor = _nearest(tensor, _sides(size, tensor.shape[2:], factor))
    if tensor.shape[1] not in (1, channels):
        raise ValueError(f"image has {tensor.shape[1]} channels; needed are {channels}, or 1 for grey")
    low, high = float(tensor.min()), float(tensor.max())
    if not (low >= -1 and high <= 1):
        raise ValueError(f"image has numbers from {low:g} to {high:g}: give bytes, or numbers in [0, 1]")
    return (tensor if low < 0 else 2 * tensor - 1).expand(-1, channels, -1, -1)


def to_mask(pictures: Pictures | None, size: tuple[int, int]) -> Tensor | None:
    """A mask as (b 1 height width) float32: 1, where the picture is a half or more, is what is painted anew.

    Args:
        pictures: as in `to_tensor`, but an array or tensor may be without its channel; None is no mask.
        size: (height, width).

    Raises:
        TypeError, ValueError: what is given is no picture, or has several channels or other numbers.
    """
    if pictures is None:
        return None
    listed = _as_list(pictures, "mask_image", dimensions=2)
    if isinstance(listed[0], Image.Image):
        tensor = _from_pil([shrunk(picture, max(size)) for picture in listed], size, "L")
    else:
        tensor = _nearest(_from_numbers(listed, "mask_image"), size)
    if tensor.shape[1] != 1:
        raise ValueError(f"mask_image has {tensor.shape[1]} channels; needed is 1")
    low, high = float(tensor.min()), float(tensor.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"mask_image has numbers from {low:g} to {high:g}: give bytes, or numbers in [0, 1]")
    return (tensor >= 0.5).float()


def to_condition(pictures: Pictures, size: tuple[int, int], channels: int, name: str = "control_image") -> Tensor:
    """What a ControlNet is shown, as (b channels height width) float32.

    Args:
        pictures: as in `to_tensor`, but that numbers are taken as they are: some ControlNets are shown -1 where nothing
            is known. Those of PIL images, and bytes, come to [0, 1].
        size: (height, width).
        channels: how many the result has; the one channel of grey pictures is copied to all.
        name: what errors call it.

    Raises:
        TypeError, ValueError: what is given is no picture, or has other channels, or is not finite.
    """
    if pictures is None:
        raise ValueError(f"{name} is missing: a ControlNet needs a picture")
    listed = _as_list(pictures, name)
    if isinstance(listed[0], Image.Image):
        mode = _MODES.get(channels, "RGB")
        tensor = _from_pil([_converted(loaded(picture, name), mode, size) for picture in listed], size)
    else:
        tensor = _nearest(_from_numbers(listed, name), size)
    if tensor.shape[1] not in (1, channels):
        raise ValueError(f"{name} has {tensor.shape[1]} channels; needed are {channels}, or 1 for grey")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} has NaN or infinity in it")
    return tensor.expand(-1, channels, -1, -1)


def picture_size(pictures: Pictures, factor: int, name: str = "image") -> tuple[int, int]:
    """Height and width of the first of some pictures, rounded down to multiples of `factor`.

    Raises:
        TypeError, ValueError: what is given is no picture, or one that is too small.
    """
    if pictures is None:
        raise ValueError(f"{name} is missing")
    first = _as_list(pictures, name)[0]
    if isinstance(first, Image.Image):
        own: Sequence[int] = first.size[::-1]
    elif isinstance(first, np.ndarray):
        own = first.shape[-3:-1] if first.ndim > 2 else first.shape
    else:
        own = first.shape[-2:]
    return _sides((None, None), own, factor)


def positive(value: Any, name: str) -> int:
    """A positive int, or a ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, not {value!r:.50}")
    return value


def check_sides(height: int | None, width: int | None, factor: int) -> None:
    """Raise a ValueError unless the sides that are given are whole latents."""
    for name, side in (("height", height), ("width", width)):
        if side is not None and positive(side, name) % factor:
            raise ValueError(f"{name} must be a multiple of {factor}, the pixels of a latent, not {side}")


def check_callback(steps: int | None, wanted: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raise a ValueError unless `callback_steps` and `callback_on_step_end_tensor_inputs` are what a run can serve.

    Args:
        known: the names of the tensors that a callback may see, beside "pred_original_sample".
    """
    if steps is not None:
        positive(steps, "callback_steps")
    if any(name not in (*known, "pred_original_sample") for name in wanted or ()):
        raise ValueError(f"callback_on_step_end_tensor_inputs={wanted!r} are not all of {known}")


def refuse_unsupported(**given: Any) -> None:
    """Raise a ValueError if one of these arguments, which diffusers has and this package has not, is not None."""
    for name, value in given.items():
        if value is not None:
            instead = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise ValueError(f"{name} is not implemented: leave it at None{instead}")


def _as_list(pictures: Pictures, name: str, dimensions: int = 3) -> list[Any]:
    """One entry for each picture, or one array or tensor that is a batch."""
    listed = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    if not listed:
        raise ValueError(f"{name} is an empty list")
    kinds = {
        next((kind for kind in (Image.Image, np.ndarray, Tensor) if isinstance(picture, kind)), None)
        for picture in listed
    }
    if len(kinds) != 1 or None in kinds:
        found = ", ".join(sorted({type(picture).__name__ for picture in listed}))
        raise TypeError(f"{name} must be a PIL image, an array, a tensor, or a list of one kind of them, not {found}")
    for index, picture in enumerate(listed):
        if isinstance(picture, Image.Image):
            listed[index] = flatten(picture, "L") if is_deep(loaded(picture, name)) else picture
        elif not dimensions <= picture.ndim <= 4:
            raise ValueError(f"{name} has shape {tuple(picture.shape)}: give one picture or a batch of them")
    return listed


def _converted(picture: Image.Image, mode: str, sides: tuple[int, int]) -> Image.Image:
    """A picture in a mode; a large one already smaller, if it is to become much smaller than it is."""
    small = shrunk(picture, max(sides))
    return small if small.mode == mode else small.convert(mode)


def _from_pil(pictures: Sequence[Image.Image], size: tuple[int, int], mode: str | None = None) -> Tensor:
    """PIL images, resized and then converted to `mode`, as a tensor (b c h w) in [0, 1]."""
    height, width = size
    resized = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
    arrays = [np.asarray(picture if mode is None else picture.convert(mode), np.float32) / 255 for picture in resized]
    return _from_numbers(arrays, "image")


def _from_numbers(pictures: Sequence[Any], name: str) -> Tensor:
    """Arrays (h w), (h w c) or (b h w c), or tensors with the channel before h, as one tensor (b c h w)."""
    batches = []
    for picture in pictures:
        is_array = isinstance(picture, np.ndarray)
        tensor = torch.tensor(np.ascontiguousarray(picture)) if is_array else picture
        if not (tensor.is_floating_point() or tensor.dtype in (torch.uint8, torch.bool)):
            raise TypeError(f"{name} must hold bytes or floating-point numbers, not {tensor.dtype}")
        tensor = tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()
        if name == "mask_image" and tensor.ndim == 3 and tensor.shape[-1 if is_array else 0] != 1:
            tensor = tensor[:, None]  # (b h w): a batch without channels
        elif is_array:
            tensor = tensor[None] if tensor.ndim == 2 else tensor.movedim(-1, -3)
        elif tensor.ndim == 2:
            tensor = tensor[None]
        batches.append(tensor if tensor.ndim == 4 else tensor[None])
    if len({batch.shape[1:] for batch in batches}) != 1:
        raise ValueError(f"the pictures of {name} differ in shape: {sorted({tuple(b.shape[1:]) for b in batches})}")
    return torch.cat(batches)


def _nearest(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """A tensor (b c h w) resized to (height, width) by taking the nearest pixel."""
    return tensor if tuple(tensor.shape[2:]) == size else F.interpolate(tensor, size=size)


def _sides(wanted: tuple[int | None, int | None], own: Sequence[int], factor: int) -> tuple[int, int]:
    """The wanted height and width; in the place of None a picture's own, rounded down to a multiple of `factor`."""
    height, width = (own - own % factor if side is None else side for side, own in zip(wanted, own, strict=True))
    if not (height and width):
        raise ValueError(f"an image of {own[0]}x{own[1]} is smaller than {factor}x{factor}, which is one latent")
    return height, width
