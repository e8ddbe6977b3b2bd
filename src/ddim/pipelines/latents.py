"""What a text-to-image pipeline on latents is made of: texts and pictures to tensors and back, and its denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddim.errors import NonFiniteError
from ddim.pipelines.base import DiffusionPipeline
from ddim.pipelines.conditioning import TextDenoiser
from ddim.pipelines.images import to_images
from ddim.pipelines.inputs import Pictures, to_tensor
from ddim.pipelines.memory import SavesMemory
from ddim.pipelines.prompts import Prompt, check_prompts, encode, for_each_image
from ddim.pipelines.sizes import pixels, positive
from ddim.plan import SamplingPlan


class LatentPipeline(SavesMemory, DiffusionPipeline):
    """A pipeline with an autoencoder, a text encoder and a U-Net between latents."""

    vae_scale_factor: int  # pixels of a latent, on each axis

    def encode_prompt(
        self,
        prompt: Prompt,
        device: str | torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Prompt = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What the U-Net is to look at, and to keep away from: (b·n tokens channels) each.

        Args:
            device: where the result goes; to the U-Net unless told.
            num_images_per_prompt: n.
            do_classifier_free_guidance: False spares the second, which is None then.
            lora_scale: must be None.

        The rest is as in a call.
        """
        refuse(lora_scale=lora_scale)
        request = check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        images = positive(num_images_per_prompt, "num_images_per_prompt")
        embeds, negative = encode(self, request, do_classifier_free_guidance, clip_skip)
        embeds = for_each_image(embeds, images).to(device or self.device)
        return embeds, None if negative is None else for_each_image(negative, images).to(device or self.device)

    def sample_shape(self, count: int) -> tuple[int, ...]:
        """The shape of `count` latents of the size that the U-Net was trained on, (count z h w)."""
        height, width = pixels(None, None, self.unet.config, None, self.vae_scale_factor)
        return count, self.vae.config.latent_channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    def encode(self, pictures: Pictures) -> Tensor:
        """Pictures as latents (b z h w): the autoencoder's mean, of pictures resized to what the U-Net draws."""
        shape = self.sample_shape(1)
        size = (shape[2] * self.vae_scale_factor, shape[3] * self.vae_scale_factor)
        config = self.vae.config
        tensor = to_tensor(pictures, size, self.vae_scale_factor, config.in_channels, config.latent_channels)
        if tensor.shape[1] == config.latent_channels:
            return tensor.to(self.device, self.dtype)
        with self.in_use(self.vae) as vae, torch.no_grad():
            mean = vae.encode(tensor.to(self.device, vae.dtype)).latent_dist.mode()
        return self.scaled(mean)

    def scaled(self, z: Tensor) -> Tensor:
        """What the autoencoder gives, (b z h w), as the U-Net knows it."""
        config = self.vae.config
        latents: Tensor = (z.to(self.dtype) - (config.shift_factor or 0.0)) * config.scaling_factor
        return latents

    def is_guided(self, guidance_scale: float) -> bool:
        """Whether two predictions are to be made: not for a U-Net that takes the scale as an input."""
        return not guidance_scale <= 1 and self.unet.config.get("time_cond_proj_dim") is None

    def denoiser(
        self,
        plan: SamplingPlan,
        count: int,
        *,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[int, int] | None = None,
        clip_skip: int | None = None,
    ) -> TextDenoiser:
        """The U-Net for `count` samples of one text, or of so many; without one, of the empty text.

        Arguments as in a call, but without guidance unless told.

        Raises:
            ValueError, TypeError: texts or embeddings that do not fit together or the count.
        """
        if prompt is None and prompt_embeds is None:
            prompt = ""
        request = check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        if count % request.size:
            raise ValueError(f"{request.size} prompts do not fit {count} samples: give one, or one for each")
        with torch.no_grad():
            embeds, negative = encode(self, request, self.is_guided(guidance_scale), clip_skip)
        images = count // request.size
        return TextDenoiser(
            self.unet,
            plan,
            for_each_image(embeds, images),
            None if negative is None else for_each_image(negative, images),
            scale=guidance_scale,
            rescale=guidance_rescale,
            interval=guidance_interval,
        )

    def decode(self, x: Tensor, output_type: str = "pil") -> Any:
        """Latents (b c h w) as pictures; see `images.to_images`; "latent" gives them back.

        Raises:
            NonFiniteError: the autoencoder gave NaN or infinity.
        """
        if output_type == "latent":
            return x
        config = self.vae.config
        with self.in_use(self.vae) as vae:
            latents = x / config.scaling_factor + (config.shift_factor or 0.0)
            decoded = vae.decode(latents.to(vae.device, vae.dtype)).sample
        if not decoded.isfinite().all():
            half = "; in half precision, some need pipe.vae.to(torch.float32)" * (decoded.dtype == torch.float16)
            raise NonFiniteError(f"the autoencoder gave NaN or infinity{half}")
        return to_images(decoded, output_type)


def refuse(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            instead = "; how strong an adapter is, set_adapters says" * (
                name in ("cross_attention_kwargs", "lora_scale")
            )
            raise ValueError(f"{name} is not implemented: leave it at None{instead}")
