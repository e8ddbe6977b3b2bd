"""What scripts that were written for diffusers touch on a pipeline, beside its calls, loading and saving.

Nothing in this package uses these names. They have the arguments and the results that they have in diffusers, so that
inversion and editing scripts, courses and training loops run with another import. A name of diffusers' pipelines that
is not here raises an AttributeError that says what to use instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddim.checkpoint.config import DIFFUSERS_VERSION, Config
from ddim.models import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from ddim.models.embeddings import sinusoids
from ddim.models.vae import drawn_latents
from ddim.noise import Generators, check_generator, gaussian_noise
from ddim.pipelines.image_processor import ImageProcessor
from ddim.pipelines.inputs import check_callback, check_sides, refuse_unsupported
from ddim.pipelines.prompts import Prompt, check_prompts
from ddim.scheduler import DDIMScheduler

# Names that diffusers' pipelines have and these have not: what to use instead.
INSTEAD = {
    "apply_layerwise_casting": "convert the networks with pipe.to(torch.float16) or pipe.to(torch.bfloat16)",
    "download": "from_pretrained downloads what it needs, and huggingface_hub.snapshot_download a whole repository",
    "enable_group_offload": "enable_model_cpu_offload keeps whole networks in the host's memory",
    "enable_lora_hotswap": "load_lora_weights and set_adapters change adapters at any time between two calls",
    "enable_pag": "perturbed attention guidance is not implemented",
    "encode_image": "IP-Adapters are not implemented",
    "fused_loras": "get_active_adapters names the adapters in use",
    "generate_caption": "give the caption as the prompt",
    "get_epsilon": "ddim.invert takes what the network predicts",
    "invert": "use ddim.invert(pipe.denoiser(plan, …), pipe.encode(picture), plan)",
    "load_ip_adapter": "IP-Adapters are not implemented",
    "load_lora_into_text_encoder": "use load_lora_weights",
    "load_lora_into_unet": "use load_lora_weights",
    "lora_scale": "set_adapters says how strong an adapter is",
    "lora_state_dict": "ddim.lora.read_lora reads an adapter, and ddim.lora.lora_state gives one that is trained",
    "num_fused_loras": "get_active_adapters names the adapters in use",
    "prepare_image_latents": "use pipe.encode(picture) or prepare_latents of StableDiffusionImg2ImgPipeline",
    "prepare_ip_adapter_image_embeds": "IP-Adapters are not implemented",
    "reset_device_map": "use pipe.to(device)",
    "set_ip_adapter_scale": "IP-Adapters are not implemented",
    "set_lora_device": "adapters are where the networks are: use pipe.to(device)",
    "text_encoder_2": "this is no pipeline of Stable Diffusion XL",
    "tokenizer_2": "this is no pipeline of Stable Diffusion XL",
    "transformer": "the network is pipe.unet",
    "unload_ip_adapter": "IP-Adapters are not implemented",
    "vqvae": "the autoencoder is pipe.vae",
}


class Familiar:
    """For every pipeline."""

    config_name = "model_index.json"
    model_cpu_offload_seq: str | None = None
    hf_device_map: None = None
    name_or_path: str = ""
    _optional_components: list[str] = []  # noqa: RUF012
    _exclude_from_cpu_offload: list[str] = []  # noqa: RUF012
    _load_connected_pipes = False
    _is_onnx = False

    components: dict[str, Any]
    scheduler: DDIMScheduler

    @property
    def config(self) -> Config:
        """What `save_pretrained` writes into model_index.json: for each part (library, class)."""
        return Config(
            {
                "_class_name": self._class_name(),
                "_diffusers_version": DIFFUSERS_VERSION,
                "_name_or_path": self.name_or_path,
                **self._index(),
            }
        )

    def _class_name(self) -> str:
        raise NotImplementedError

    def _index(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def _execution_device(self) -> torch.device:
        """Where the networks run."""
        device: torch.device = self.device
        return device

    def register_modules(self, **parts: Any) -> None:
        """Give the pipeline parts by their names, as the constructors of diffusers' pipelines do."""
        for name, part in parts.items():
            self.components.setdefault(name, None)
            setattr(self, name, part)

    @staticmethod
    def numpy_to_pil(images: np.ndarray[Any, Any]) -> list[Image.Image]:
        """Pictures from an array (b h w c), or (h w c), in [0, 1]."""
        return ImageProcessor.numpy_to_pil(images)

    def __getattr__(self, name: str) -> Any:
        instead = INSTEAD.get(name)
        raise AttributeError(
            f"{type(self).__name__} has no attribute {name!r}" + (f": {instead}" if instead else ""),
            name=name,
            obj=self,
        )


class FamiliarLatents:
    """For pipelines on latents; the methods have the arguments of diffusers' StableDiffusionPipeline."""

    model_cpu_offload_seq: str | None = "text_encoder->image_encoder->unet->vae"
    _optional_components: list[str] = ["safety_checker", "feature_extractor", "image_encoder"]  # noqa: RUF012
    _exclude_from_cpu_offload: list[str] = ["safety_checker"]  # noqa: RUF012
    _callback_tensor_inputs: list[str] = ["latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012
    unet_name = "unet"
    text_encoder_name = "text_encoder"

    vae: AutoencoderKL | AutoencoderTiny
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    vae_scale_factor: int
    image_processor: ImageProcessor
    safety_checker: Any
    feature_extractor: Any

    @property
    def mask_processor(self) -> ImageProcessor:
        """What makes tensors of masks."""
        return ImageProcessor(self.vae_scale_factor, is_mask=True)

    def _encode_prompt(
        self,
        prompt: Prompt,
        device: str | torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Prompt = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        **options: Any,
    ) -> Tensor:
        """What `encode_prompt` gives, as one tensor with the negative embeddings first, (2·b·n s d)."""
        embeds, negative = self.encode_prompt(  # type: ignore[attr-defined]
            prompt,
            device,
            num_images_per_prompt,
            do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            lora_scale,
            **options,
        )
        joined: Tensor = embeds if negative is None else torch.cat([negative, embeds])
        return joined

    def decode_latents(self, latents: Tensor) -> np.ndarray[Any, Any]:
        """Latents (b z h w), as a run ends with them, as an array (b h w c) in [0, 1]."""
        with torch.no_grad():
            array: np.ndarray[Any, Any] = self.decode(latents, "np")  # type: ignore[attr-defined]
        return array

    def run_safety_checker(self, image: Any, device: Any, dtype: torch.dtype) -> tuple[Any, Any]:
        """The pictures after the safety checker that was given, and what it says of each; without one, (image, None).

        Args:
            image: a tensor (b c h w) in [-1, 1], or an array (b h w c) in [0, 1].
            device, dtype: of what the feature extractor makes of the pictures for the checker.
        """
        if self.safety_checker is None:
            return image, None
        seen = None
        if self.feature_extractor is not None:
            is_tensor = isinstance(image, Tensor)
            pictures = self.image_processor.postprocess(image) if is_tensor else ImageProcessor.numpy_to_pil(image)
            seen = self.feature_extractor(pictures, return_tensors="pt").pixel_values.to(device, dtype)
        image, found = self.safety_checker(images=image, clip_input=seen)
        return image, [bool(found)] * len(image) if isinstance(found, bool) else found

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: str | torch.device,
        generator: Generators = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """x_T, (batch_size num_channels_latents height/f width/f): drawn, or what is given."""
        factor = self.vae_scale_factor
        shape = (batch_size, num_channels_latents, int(height) // factor, int(width) // factor)
        check_generator(generator, batch_size)
        if latents is None:
            latents = gaussian_noise(shape, generator, torch.device(device), dtype)
        return latents.to(device) * self.scheduler.init_noise_sigma

    def prepare_extra_step_kwargs(self, generator: Generators, eta: float) -> dict[str, Any]:
        """The further arguments of a scheduler's step."""
        return {"eta": eta, "generator": generator}

    def check_inputs(
        self,
        prompt: Prompt,
        height: int | None,
        width: int | None,
        callback_steps: int | None = None,
        negative_prompt: Prompt = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
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
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)

    def get_guidance_scale_embedding(
        self, w: Tensor, embedding_dim: int = 512, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """What a U-Net that was distilled under guidance takes of the scale: (b embedding_dim) for w (b), scale - 1."""
        return sinusoids(w.to(dtype) * 1000.0, embedding_dim, flip_sin_to_cos=False, freq_shift=1).to(dtype)

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Scale what the U-Net's decoder gets (FreeU, Si et al. 2024): its skips by s1, s2, its features by b1, b2."""
        self._ask_unet("enable_freeu", s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """Undo `enable_freeu`."""
        self._ask_unet("disable_freeu")

    def _ask_unet(self, name: str, **arguments: float) -> None:
        method = getattr(self.unet, name, None)
        if method is None:
            raise AttributeError(f"the U-Net, a {type(self.unet).__name__}, has no {name}")
        method(**arguments)

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Have networks that can do so compute queries, keys and values at once; the results are the same."""
        self._fuse("fuse_qkv_projections", unet, vae)

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Undo `fuse_qkv_projections`."""
        self._fuse("unfuse_qkv_projections", unet, vae)

    def _fuse(self, name: str, unet: bool, vae: bool) -> None:
        for network, is_wanted in ((self.unet, unet), (self.vae, vae)):
            if is_wanted and hasattr(network, name):
                getattr(network, name)()


class FamiliarPictures(FamiliarLatents):
    """For pipelines that start from a picture."""

    def get_timesteps(
        self, num_inference_steps: int, strength: float, device: str | torch.device | None = None
    ) -> tuple[Tensor, int]:
        """Of the scheduler's timesteps those that are left at this strength, and their number.

        Args:
            num_inference_steps: as in the `set_timesteps` that came before.
            strength: in [0, 1], the share of the steps that are made.
            device: without effect.
        """
        left = min(int(num_inference_steps * strength), num_inference_steps)
        return self.scheduler.timesteps[num_inference_steps - left :], left

    def _encode_vae_image(self, image: Tensor, generator: Generators = None) -> Tensor:
        """Latents, as the U-Net knows them, drawn from what the autoencoder says of pictures (b c h w) in [-1, 1]."""
        with torch.no_grad(), self.in_use(self.vae) as vae:  # type: ignore[attr-defined]
            encoded = vae.encode(image)
        latents: Tensor = self.scaled(drawn_latents(encoded, generator))  # type: ignore[attr-defined]
        return latents

    def _latents_of(self, image: Tensor, count: int, generator: Generators, device: Any, dtype: torch.dtype) -> Tensor:
        """Latents of pictures, or latents that are given, repeated so that there are `count`."""
        image = image.to(device, dtype)
        is_latent = image.shape[1] == self.vae.config.latent_channels
        if not is_latent and isinstance(generator, list) and len(image) < count:
            image = _repeated(image, count, "images")
        return _repeated(image if is_latent else self._encode_vae_image(image, generator), count, "images")


class FamiliarImageToImage(FamiliarPictures):
    """With the arguments of diffusers' StableDiffusionImg2ImgPipeline."""

    def prepare_latents(  # type: ignore[override]
        self,
        image: Tensor,
        timestep: Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: str | torch.device,
        generator: Generators = None,
    ) -> Tensor:
        """The noised latents of a picture, (batch_size·num_images_per_prompt z h w).

        Args:
            image: (b c h w) in [-1, 1], as `image_processor.preprocess` gives it; or latents.
            timestep: how much noise they get.
        """
        count = batch_size * num_images_per_prompt
        check_generator(generator, count)
        latents = self._latents_of(image, count, generator, device, dtype)
        noise = gaussian_noise(latents.shape, generator, torch.device(device), dtype)
        return self.scheduler.add_noise(latents, noise, timestep)

    def check_inputs(  # type: ignore[override]
        self,
        prompt: Prompt,
        strength: float,
        callback_steps: int | None = None,
        negative_prompt: Prompt = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> None:
        """Raise unless these arguments of a call go together.

        Raises:
            ValueError, TypeError: they do not.
        """
        _check_strength(strength)
        super().check_inputs(
            prompt,
            None,
            None,
            callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            callback_on_step_end_tensor_inputs,
        )


class FamiliarInpaint(FamiliarPictures):
    """With the arguments of diffusers' StableDiffusionInpaintPipeline."""

    _callback_tensor_inputs: list[str] = [  # noqa: RUF012
        *FamiliarLatents._callback_tensor_inputs, "mask", "masked_image_latents"
    ]  # fmt: skip

    def prepare_latents(  # type: ignore[override]
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: str | torch.device,
        generator: Generators = None,
        latents: Tensor | None = None,
        image: Tensor | None = None,
        timestep: Tensor | None = None,
        is_strength_max: bool = True,
        return_noise: bool = False,
        return_image_latents: bool = False,
    ) -> tuple[Tensor, ...]:
        """What a run starts from, (batch_size z h w): noise or, below the largest strength, the noised picture.

        Returns:
            The latents; then, if asked for, the noise; then, if asked for, the picture's latents.

        Raises:
            ValueError: the picture or the timestep is missing below the largest strength.
        """
        check_generator(generator, batch_size)
        if not is_strength_max and (image is None or timestep is None):
            raise ValueError("below strength=1 a run starts from the noised picture: give image and timestep")
        own: Tensor | None = None
        if image is not None and (return_image_latents or (latents is None and not is_strength_max)):
            own = self._latents_of(image, batch_size, generator, device, dtype)
        start = noise = super().prepare_latents(
            batch_size, num_channels_latents, height, width, dtype, device, generator, latents
        )
        if latents is None and own is not None and not is_strength_max and timestep is not None:
            start = self.scheduler.add_noise(own, noise, timestep)
        result = [start, *[noise] * return_noise]
        return (*result, own) if return_image_latents and own is not None else tuple(result)

    def prepare_mask_latents(
        self,
        mask: Tensor,
        masked_image: Tensor,
        batch_size: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: str | torch.device,
        generator: Generators,
        do_classifier_free_guidance: bool,
    ) -> tuple[Tensor, Tensor]:
        """The mask and the masked picture's latents as a U-Net that was trained to inpaint takes them.

        Args:
            mask: (m 1 H W) of zeros and ones.
            masked_image: (p c H W) in [-1, 1], or latents.

        Returns:
            (batch_size 1 h w) and (batch_size z h w), both twice as many under guidance.
        """
        factor = self.vae_scale_factor
        small = F.interpolate(mask, size=(height // factor, width // factor)).to(device, dtype)
        masked = masked_image.to(device, dtype)
        if masked.shape[1] != self.vae.config.latent_channels:
            masked = self._encode_vae_image(masked, generator)
        small, masked = _repeated(small, batch_size, "masks"), _repeated(masked, batch_size, "masked images")
        if do_classifier_free_guidance:
            small, masked = torch.cat([small] * 2), torch.cat([masked] * 2)
        return small, masked.to(device, dtype)

    def check_inputs(  # type: ignore[override]
        self,
        prompt: Prompt,
        image: Any,
        mask_image: Any,
        height: int,
        width: int,
        strength: float,
        callback_steps: int | None = None,
        output_type: str = "pil",
        negative_prompt: Prompt = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        padding_mask_crop: int | None = None,
    ) -> None:
        """Raise unless these arguments of a call go together.

        Raises:
            ValueError, TypeError: they do not.
        """
        _check_strength(strength)
        super().check_inputs(
            prompt,
            height,
            width,
            callback_steps,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            ip_adapter_image,
            ip_adapter_image_embeds,
            callback_on_step_end_tensor_inputs,
        )
        if padding_mask_crop is not None and not (
            isinstance(image, Image.Image) and isinstance(mask_image, Image.Image) and output_type == "pil"
        ):
            raise ValueError("padding_mask_crop is for one PIL image, one PIL mask and output_type='pil'")


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], not {strength}")


def _repeated(x: Tensor, count: int, what: str) -> Tensor:
    """A tensor (n …) repeated as a whole so that there are `count`, as diffusers repeats what it starts from."""
    if len(x) < count and count % len(x):
        raise ValueError(f"{len(x)} {what} do not fit {count}: give one, or as many")
    return x.repeat(count // len(x), *[1] * (x.ndim - 1)) if len(x) < count else x
