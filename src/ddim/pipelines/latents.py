"""What a text-to-image pipeline on latents is made of: texts and pictures to tensors and back, and its denoiser.

It also knows how large its pictures are, and has the methods by which it needs less memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ddim.checkpoint import Saving
from ddim.errors import ConfigError, NonFiniteError
from ddim.models import AutoencoderKL, AutoencoderTiny, CLIPTextModel, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.models.vae import most_likely_latents
from ddim.pipelines.base import DiffusionPipeline
from ddim.pipelines.conditions import Condition
from ddim.pipelines.denoiser import TextDenoiser
from ddim.pipelines.emphasis import Weights
from ddim.pipelines.familiar import FamiliarLatents
from ddim.pipelines.inputs import Pictures, positive, refuse_unsupported, to_tensor
from ddim.pipelines.outputs import LatentOutputType
from ddim.pipelines.prompts import Prompt, Request, check_prompts, encode_prompts, encode_texts
from ddim.pipelines.recommended import warn_if_not_trained
from ddim.pipelines.textual_inversion import TakesWords
from ddim.pipelines.words import FILE
from ddim.plan import SamplingPlan
from ddim.scheduler import DDIMScheduler


class SavesMemoryOfPictures:
    """The methods of diffusers by which an autoencoder needs less memory."""

    vae: AutoencoderKL | AutoencoderTiny

    def enable_vae_slicing(self) -> None:
        """Encode and decode one image of a batch after another; the result is the same."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Encode and decode all images of a batch at once, as a new pipeline does."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encode and decode large images in tiles that overlap; the result differs a little."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Encode and decode every image as a whole, as a new pipeline does."""
        self.vae.disable_tiling()


class LatentPipeline(TakesWords, FamiliarLatents, SavesMemoryOfPictures, DiffusionPipeline):
    """A pipeline with an autoencoder, a text encoder and a U-Net between latents."""

    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel | None
    tokenizer: CLIPTokenizer | None
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    weights: Weights | None = None  # how prompts say what weighs how much, where a call does not say
    vae_scale_factor: int  # how many pixels a latent stands for, on each axis

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **parts: Any) -> Self:
        made = super().from_pipe(pipeline, **parts)
        if isinstance(pipeline, LatentPipeline) and pipeline._words_are_read:
            made.words = pipeline.words
        if isinstance(pipeline, LatentPipeline):
            made.weights = pipeline.weights
        return made

    def write(self, folder: Path, saving: Saving) -> None:
        super().write(folder, saving)
        if self.words is not None:
            self.words.write(folder)
        else:
            (folder / FILE).unlink(missing_ok=True)  # what an earlier model that was saved there had seen

    def encode_prompt(
        self,
        prompt: Prompt,
        device: str | torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Prompt = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        *,
        weights: Weights | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The embeddings that the U-Net is to look at, and those to keep away from: (b·n tokens channels) each.

        Args:
            device: where the result goes; to the U-Net's device unless told.
            num_images_per_prompt: n, how often each prompt's embeddings are repeated.
            do_classifier_free_guidance: False leaves out those to keep away from, and None takes their place.
            lora_scale: must be None or 1: `set_adapters` says how strong adapters are.

        The rest is as in a call.
        """
        refuse_unsupported(lora_scale=None if lora_scale == 1 else lora_scale)
        weights = weights or self.weights
        request = check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, weights)
        images = positive(num_images_per_prompt, "num_images_per_prompt")
        found = self._conditions(request, do_classifier_free_guidance, clip_skip)
        embeds, negative = (
            None if each is None else each.for_each_image(images).embeds.to(device or self.device) for each in found
        )
        assert embeds is not None
        return embeds, negative

    def _conditions(
        self, request: Request, is_guided: bool, clip_skip: int | None, size: tuple[int, int] | None = None
    ) -> tuple[Condition, Condition | None]:
        """What the U-Net is told of the prompts and, under guidance, of the negative ones; else None.

        All of it is on the U-Net's device and of its type.

        Args:
            size: height and width of the pictures, in pixels; None is what the U-Net was trained on.
        """
        with self.in_use(self.text_encoder if request.needs_text_encoder(is_guided) else None) as text_encoder:
            embeds, negative = encode_prompts(request, self.tokenizer, text_encoder, is_guided, clip_skip)
        embeds = embeds.to(self.device, self.dtype)
        return Condition(embeds), None if negative is None else Condition(negative.to(embeds))

    def conditions(self, texts: list[str]) -> Condition:
        """What the U-Net is told of texts, on its device and of its type.

        Raises:
            ConfigError: the pipeline has no text encoder or no tokenizer.
        """
        return Condition(self.embed(texts))

    def embed(self, texts: list[str]) -> Tensor:
        """What the U-Net looks at of texts, on its device and of its type: (b s d).

        Raises:
            ConfigError: the pipeline has no text encoder or no tokenizer.
        """
        with self.in_use(self.text_encoder) as text_encoder:
            found = encode_texts(self.tokenizer, text_encoder, texts, weights=self.weights)
        return found.states.to(self.device, self.dtype)

    def sample_shape(self, count: int) -> tuple[int, ...]:
        """The shape of `count` latents of the size that the U-Net was trained on, (count z h w)."""
        height, width = pixels(None, None, self.unet.config, None, self.vae_scale_factor)
        return count, self.vae.config.latent_channels, height // self.vae_scale_factor, width // self.vae_scale_factor

    def picture_shape(self) -> tuple[int, int, int]:
        """What is drawn: (channels, height, width) in pixels."""
        _, _, height, width = self.sample_shape(1)
        return self.vae.config.out_channels, height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def draws_texts(self) -> bool:
        return True

    def encode(self, pictures: Pictures) -> Tensor:
        """Pictures as latents (b z h w): the autoencoder's mean, of pictures resized to what the U-Net draws."""
        shape = self.sample_shape(1)
        size = (shape[2] * self.vae_scale_factor, shape[3] * self.vae_scale_factor)
        config = self.vae.config
        tensor = to_tensor(pictures, size, self.vae_scale_factor, config.in_channels, config.latent_channels)
        if tensor.shape[1] == config.latent_channels:
            return tensor.to(self.device, self.dtype)
        with self.in_use(self.vae) as own, torch.no_grad():
            vae = self.wide_enough(own, encodes=True)
            latents = most_likely_latents(vae.encode(tensor.to(self.device, vae.dtype)))
        return self.scaled(latents)

    def scaled(self, z: Tensor) -> Tensor:
        """Latents as the autoencoder gives them, (b z h w), shifted and scaled to what the U-Net was trained on."""
        z, scale = z.to(self.dtype), self.vae.config.scaling_factor
        mean, deviation = self._statistics(z)
        latents: Tensor = (z - mean) * scale / deviation
        return latents

    def _statistics(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Mean and deviation of an autoencoder's latents, before the scaling; its config may have them by channel."""
        config = self.vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None or deviation is None:
            return config.get("shift_factor") or 0.0, 1.0
        return torch.tensor(mean).view(1, -1, 1, 1).to(z), torch.tensor(deviation).view(1, -1, 1, 1).to(z)

    def wide_enough(self, vae: Any, encodes: bool = False) -> Any:
        """The autoencoder, or a copy of it of a type in which its numbers do not overflow."""
        return vae

    def is_guided(self, guidance_scale: float) -> bool:
        """Whether each step needs two predictions: at a scale above 1, unless the U-Net takes the scale as an input."""
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
        channels: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        weights: Weights | None = None,
    ) -> TextDenoiser:
        """The U-Net as a denoiser of `count` samples under texts; without any, under the empty text.

        Args:
            plan: of the run that it is for.
            count: how many samples it is given at a time. Each of the texts is for an equal share of them, in order.
            channels: what the U-Net is given beside the samples, (count c h w): what one that was trained to inpaint
                sees of the picture.

        The rest is as in a call, but that there is no guidance unless told.

        Raises:
            ValueError, TypeError: texts or embeddings that do not fit together or the count.

        Warns:
            UserWarning: the network was distilled for other timesteps, or to need no guidance.
        """
        if prompt is None and prompt_embeds is None:
            prompt = ""
        weights = weights or self.weights
        request = check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, weights)
        if count % request.size:
            raise ValueError(f"{request.size} prompts do not fit {count} samples: give one, or one for each")
        with torch.no_grad():
            condition, negative = self._conditions(request, self.is_guided(guidance_scale), clip_skip)
        return self.denoiser_under(
            plan,
            count,
            condition,
            negative,
            scale=guidance_scale,
            rescale=guidance_rescale,
            interval=guidance_interval,
            channels=channels,
            cross_attention_kwargs=cross_attention_kwargs,
        )

    def denoiser_under(
        self,
        plan: SamplingPlan,
        count: int,
        condition: Condition,
        negative: Condition | None,
        *,
        scale: float,
        **options: Any,
    ) -> TextDenoiser:
        """The U-Net as a denoiser of `count` samples under conditions, each for an equal share of them, in order.

        Args:
            plan, count: as of `denoiser`.
            condition, negative: what the U-Net is told; without a negative one there is no guidance.
            scale, options: see `TextDenoiser`.

        Warns:
            UserWarning: as `denoiser`.
        """
        if self.components.get("controlnet") is not None and "controls" not in options:
            raise ConfigError(
                "this pipeline has a ControlNet, which needs a picture: call the pipeline with control_image, or set "
                "pipe.controlnet=None"
            )
        images = count // len(condition)
        takes_scale = self.unet.config.get("time_cond_proj_dim") is not None
        warn_if_not_trained(self.scheduler, plan, scale, takes_scale=takes_scale)
        return TextDenoiser(
            self.unet,
            plan,
            condition.for_each_image(images),
            None if negative is None else negative.for_each_image(images),
            scale=scale,
            **options,
        )

    def decode(self, x: Tensor, output_type: LatentOutputType = "pil") -> Any:
        """Latents (b z h w) as pictures; see `images.to_images`. The output type "latent" gives them back as they are.

        Raises:
            NonFiniteError: the autoencoder gave NaN or infinity.
        """
        return x if output_type == "latent" else self.image_processor.postprocess(self._decoded(x), output_type)

    def _decoded(self, x: Tensor) -> Tensor:
        """Latents (b z h w) as pictures (b c H W) in about [-1, 1]."""
        scale = self.vae.config.scaling_factor
        with self.in_use(self.vae) as own:
            vae = self.wide_enough(own)
            z = x.to(vae.device, torch.promote_types(x.dtype, vae.dtype))
            mean, deviation = self._statistics(z)
            latents = z * deviation / scale + mean
            decoded: Tensor = vae.decode(latents.to(vae.dtype)).sample
        if not decoded.isfinite().all():
            half = "; in half precision, some need pipe.vae.to(torch.float32)" * (decoded.dtype == torch.float16)
            raise NonFiniteError(f"the autoencoder gave NaN or infinity{half}")
        return decoded

    def drawn(self, x: Tensor, output_type: LatentOutputType) -> tuple[Any, list[bool] | None]:
        """Latents as pictures, after the safety checker, if one was given; and what it says of each, else None."""
        if getattr(self, "safety_checker", None) is None or output_type == "latent":
            return self.decode(x, output_type), None
        decoded, found = self.run_safety_checker(self._decoded(x), self.device, self.dtype)
        harmless = None if found is None else [not each for each in found]
        return self.image_processor.postprocess(decoded, output_type, harmless), found


# --- sizes ------------------------------------------------------------------------------------------------------------


def pixels(
    height: int | None, width: int | None, config: Mapping[str, Any], latents: Tensor | None, factor: int
) -> tuple[int, int]:
    """Height and width in pixels: what is given, else those of the given latents, else what the U-Net was trained on.

    `config` is the U-Net's, and `factor` is how many pixels a latent stands for on each axis.
    """
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


def _is_before_0_9(version: Any) -> bool:
    """Whether a config was written by a version of diffusers older than 0.9."""
    return isinstance(version, str) and re.match(r"0\.[0-8](\.|$)", version) is not None
