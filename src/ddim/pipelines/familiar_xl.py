"""What scripts that were written for diffusers touch on its pipelines of Stable Diffusion XL; see `familiar`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.noise import Generators, check_generator, gaussian_noise
from ddim.pipelines.familiar import FamiliarInpaint, FamiliarLatents, FamiliarPictures
from ddim.pipelines.inputs import check_callback, check_sides, refuse_unsupported
from ddim.pipelines.prompts import Prompt
from ddim.pipelines.xl_prompts import check_xl_prompts
from ddim.pipelines.xl_sizes import Pair, Sizes


class FamiliarXL(FamiliarLatents):
    """The methods have the arguments of diffusers' StableDiffusionXLPipeline."""

    model_cpu_offload_seq: str | None = "text_encoder->text_encoder_2->image_encoder->unet->vae"
    _optional_components: list[str] = [  # noqa: RUF012
        "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "image_encoder", "feature_extractor"
    ]  # fmt: skip
    _exclude_from_cpu_offload: list[str] = []  # noqa: RUF012
    _callback_tensor_inputs: list[str] = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]  # noqa: RUF012

    @property
    def default_sample_size(self) -> Any:
        """The latents' side that the U-Net was trained on; 128 without a U-Net."""
        return 128 if self.unet is None else self.unet.config.sample_size

    @property
    def denoising_start(self) -> float | None:
        """The share of the way that the call does not go itself."""
        share: float | None = self._of_a_call("denoising_start")  # type: ignore[attr-defined]
        return share

    @property
    def denoising_end(self) -> float | None:
        """The share of the way at which the call stops."""
        share: float | None = self._of_a_call("denoising_end")  # type: ignore[attr-defined]
        return share

    def upcast_vae(self) -> None:
        """Convert the autoencoder to float32, for good. No call needs it: see `StableDiffusionXLPipeline`."""
        self.vae.to(torch.float32)

    def _get_add_time_ids(
        self,
        original_size: Pair,
        crops_coords_top_left: Pair,
        target_size: Pair,
        dtype: torch.dtype,
        text_encoder_projection_dim: int | None = None,
    ) -> Tensor:
        """The numbers that the U-Net is told of sizes, (1 6).

        Raises:
            ConfigError: the U-Net is told an aesthetic score.
        """
        pooled = 0 if text_encoder_projection_dim is None else text_encoder_projection_dim
        if self._has_score(pooled):  # type: ignore[attr-defined]
            raise ConfigError("this U-Net is told an aesthetic score: use StableDiffusionXLImg2ImgPipeline")
        return torch.tensor([[*original_size, *crops_coords_top_left, *target_size]], dtype=dtype)

    def check_inputs(  # type: ignore[override]
        self,
        prompt: Prompt,
        prompt_2: Prompt,
        height: int | None,
        width: int | None,
        callback_steps: int | None,
        negative_prompt: Prompt = None,
        negative_prompt_2: Prompt = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """Raise unless these arguments of a call go together.

        Raises:
            ValueError, TypeError: they do not.
        """
        check_sides(height, width, self.vae_scale_factor)
        check_callback(callback_steps, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        refuse_unsupported(ip_adapter_image=ip_adapter_image, ip_adapter_image_embeds=ip_adapter_image_embeds)
        check_xl_prompts(
            prompt,
            prompt_2,
            negative_prompt,
            negative_prompt_2,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
            zeros_for_none=True,
        )


class FamiliarPicturesXL(FamiliarXL, FamiliarPictures):
    """For pipelines that start from a picture."""

    def get_timesteps(
        self,
        num_inference_steps: int,
        strength: float,
        device: str | torch.device | None = None,
        denoising_start: float | None = None,
    ) -> tuple[Tensor, int]:
        """Of the scheduler's timesteps those that are left at this strength or share of the way, and their number.

        Args:
            num_inference_steps: as in the `set_timesteps` that came before.
            strength: in [0, 1], the share of the steps that are made.
            device: without effect.
            denoising_start: the share of the way that is gone, in the place of the strength.
        """
        if denoising_start is None:
            return super().get_timesteps(num_inference_steps, strength, device)
        total = self.scheduler.config.num_train_timesteps
        timesteps: Tensor = self.scheduler.timesteps
        left = timesteps[timesteps < round(total - denoising_start * total)]
        return left, len(left)

    def _get_add_time_ids(  # type: ignore[override]
        self,
        original_size: Pair,
        crops_coords_top_left: Pair,
        target_size: Pair,
        aesthetic_score: float,
        negative_aesthetic_score: float,
        negative_original_size: Pair,
        negative_crops_coords_top_left: Pair,
        negative_target_size: Pair,
        dtype: torch.dtype,
        text_encoder_projection_dim: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The numbers that the U-Net is told with the prompt and with the negative one, (1 n) each."""
        sizes = Sizes(
            original_size,
            crops_coords_top_left,
            target_size,
            negative_original_size,
            negative_crops_coords_top_left,
            negative_target_size,
            aesthetic_score,
            negative_aesthetic_score,
        )
        has_score: bool = self._has_score(text_encoder_projection_dim or 0)  # type: ignore[attr-defined]
        one, other = (torch.tensor([each], dtype=dtype) for each in sizes.numbers(original_size, has_score))
        return one, other


class FamiliarImageToImageXL(FamiliarPicturesXL):
    """With the arguments of diffusers' StableDiffusionXLImg2ImgPipeline."""

    def prepare_latents(  # type: ignore[override]
        self,
        image: Tensor,
        timestep: Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: str | torch.device,
        generator: Generators = None,
        add_noise: bool = True,
    ) -> Tensor:
        """The latents of a picture, (batch_size·num_images_per_prompt z h w), noised or, by choice, as they are.

        Args:
            image: (b c h w) in [-1, 1], as `image_processor.preprocess` gives it; or latents.
            timestep: how much noise they get.
        """
        count = batch_size * num_images_per_prompt
        check_generator(generator, count)
        latents = self._latents_of(image, count, generator, device, dtype)
        if not add_noise:
            return latents
        noise = gaussian_noise(latents.shape, generator, torch.device(device), dtype)
        return self.scheduler.add_noise(latents, noise, timestep)


class FamiliarInpaintXL(FamiliarPicturesXL, FamiliarInpaint):  # type: ignore[misc]  # two check_inputs
    """With the arguments of diffusers' StableDiffusionXLInpaintPipeline."""

    _callback_tensor_inputs: list[str] = [  # noqa: RUF012
        *FamiliarXL._callback_tensor_inputs, "mask", "masked_image_latents"
    ]  # fmt: skip
