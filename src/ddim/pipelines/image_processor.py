"""Pictures to tensors and back, by the methods of diffusers' VaeImageProcessor that scripts call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddim.checkpoint.config import Config
from ddim.images import to_images, to_pil
from ddim.pipelines.inputs import Pictures, to_mask, to_tensor
from ddim.pipelines.outputs import LatentOutputType


class ImageProcessor:
    """What a pipeline's `image_processor` and `mask_processor` are.

    Args:
        vae_scale_factor: how many pixels a latent stands for, on each axis.
        channels: how many pictures have.
        latent_channels: how many latents have. A tensor with so many holds latents, which are left as they are.
        is_mask: pictures are masks: grey, of zeros and ones.
    """

    def __init__(
        self, vae_scale_factor: int = 8, *, channels: int = 3, latent_channels: int = 4, is_mask: bool = False
    ) -> None:
        self.channels = channels
        self.config = Config(
            vae_scale_factor=vae_scale_factor,
            vae_latent_channels=latent_channels,
            do_resize=True,
            resample="lanczos",
            do_normalize=not is_mask,
            do_binarize=is_mask,
            do_convert_grayscale=is_mask,
        )

    def preprocess(
        self,
        image: Pictures,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: None = None,
    ) -> Tensor:
        """Pictures as a tensor (b c h w) in [-1, 1]; masks as one of zeros and ones.

        Args:
            image: see `inputs.to_tensor`; for a mask `inputs.to_mask`.
            height, width: in pixels; the first picture's own, rounded down to whole latents, unless told.
            resize_mode: only "default" is implemented.
            crops_coords: must be None.

        Raises:
            ValueError, TypeError: what is given is no picture, or another mode is asked for.
        """
        if resize_mode != "default" or crops_coords is not None:
            raise ValueError("resize_mode and crops_coords are not implemented: a call's padding_mask_crop cuts out")
        if self.config.do_binarize:
            rows, columns = self.get_default_height_width(image, height, width)
            mask = to_mask(image, (rows, columns))
            assert mask is not None
            return mask
        size, latents = (height, width), self.config.vae_latent_channels
        return to_tensor(image, size, self.config.vae_scale_factor, self.channels, latents)

    def postprocess(
        self, image: Tensor, output_type: LatentOutputType = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> Any:
        """Pictures from a tensor (b c h w); see `images.to_images`.

        Args:
            image: in [-1, 1]; what lies outside is clamped.
            output_type: "pil", "np" or "pt"; "latent" gives the tensor back as it is.
            do_denormalize: for each picture, whether it is in [-1, 1]. Where it is False, it is in [0, 1] already.
        """
        if output_type == "latent":
            return image
        if do_denormalize is not None and not all(do_denormalize):
            known = torch.tensor(list(do_denormalize), device=image.device)[:, None, None, None]
            image = torch.where(known, image, self.normalize(image))
        return to_images(image, output_type)

    def get_default_height_width(
        self, image: Pictures, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """Height and width in pixels, rounded down to whole latents: those given or, in their place, the picture's."""
        first = image[0] if isinstance(image, (list, tuple)) else image
        if isinstance(first, Image.Image):
            rows, columns = first.height, first.width
        elif isinstance(first, np.ndarray):
            rows, columns = first.shape[:2] if first.ndim < 4 else first.shape[1:3]
        else:
            rows, columns = first.shape[-2:]
        factor = self.config.vae_scale_factor
        rows, columns = (own if side is None else side for own, side in ((rows, height), (columns, width)))
        return rows - rows % factor, columns - columns % factor

    @staticmethod
    def normalize(images: Any) -> Any:
        """[0, 1] to [-1, 1]."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: Any) -> Any:
        """[-1, 1] to [0, 1], clamped."""
        return (images * 0.5 + 0.5).clip(0, 1)

    @staticmethod
    def binarize(image: Tensor) -> Tensor:
        """1 where a mask is a half or more, and 0 elsewhere."""
        return (image >= 0.5).to(image.dtype)

    @staticmethod
    def numpy_to_pil(images: np.ndarray[Any, Any]) -> list[Image.Image]:
        """Pictures from an array (b h w c), or (h w c), in [0, 1]."""
        return [to_pil(image) for image in (images[None] if images.ndim == 3 else images)]

    @staticmethod
    def pil_to_numpy(images: Image.Image | Sequence[Image.Image]) -> np.ndarray[Any, Any]:
        """An array (b h w c) in [0, 1] from pictures of one size."""
        listed = images if isinstance(images, (list, tuple)) else [images]
        arrays = [np.asarray(image, np.float32) / 255 for image in listed]
        return np.stack([array[..., None] if array.ndim == 2 else array for array in arrays])

    @staticmethod
    def numpy_to_pt(images: np.ndarray[Any, Any]) -> Tensor:
        """A tensor (b c h w) from an array (b h w c)."""
        return torch.from_numpy((images[..., None] if images.ndim == 3 else images).transpose(0, 3, 1, 2))

    @staticmethod
    def pt_to_numpy(images: Tensor) -> np.ndarray[Any, Any]:
        """An array (b h w c) from a tensor (b c h w)."""
        array: np.ndarray[Any, Any] = images.detach().cpu().permute(0, 2, 3, 1).float().numpy()
        return array
