"""StableDiffusionXLPipeline: images from texts by two text encoders, and from pictures; base model and refiner."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor

from ddim.checkpoint.config import level_of_caller
from ddim.checkpoint.original_layout import XL, XL_REFINER, Family
from ddim.models import (
    AutoencoderKL,
    AutoencoderTiny,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    UNet2DConditionModel,
)
from ddim.models.tokenizer import CLIPTokenizer
from ddim.noise import Generators
from ddim.pipelines.conditions import Condition
from ddim.pipelines.control import control_request
from ddim.pipelines.denoiser import TextDenoiser
from ddim.pipelines.draws import Call, Callback, Draws
from ddim.pipelines.emphasis import Weights
from ddim.pipelines.familiar_xl import FamiliarXL
from ddim.pipelines.image_processor import ImageProcessor
from ddim.pipelines.inputs import Pictures, positive, refuse_unsupported
from ddim.pipelines.outputs import Array, Drawn, LatentOutputType, PlainOutput, StableDiffusionXLPipelineOutput
from ddim.pipelines.prompts import Prompt
from ddim.pipelines.runs import one_backend
from ddim.pipelines.single_file import FromSingleFile
from ddim.pipelines.starts import Origin
from ddim.pipelines.xl_prompts import Encoder, RequestXL, check_xl_prompts, encode_both, encode_xl_prompts
from ddim.pipelines.xl_sizes import Pair, Sizes, has_score
from ddim.plan import SamplingPlan
from ddim.process import Eta, Order

_LOADED_NEVER = ("feature_extractor", "image_encoder")


class StableDiffusionXLPipeline(FromSingleFile, FamiliarXL, Draws):
    """Images from texts, by Stable Diffusion XL and its fine-tunes, and by its refiner.

    The scheduler is taken as it is, as in diffusers, and a call changes nothing in the pipeline, so threads may share
    it. An autoencoder whose config says `force_upcast` overflows in half precision: a float32 copy of it decodes what
    a float16 pipeline draws, and encodes what a pipeline of either half precision starts from.

    Args:
        vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, unet: the networks. The refiner has the second text
            encoder alone. Without any, calls need embeddings.
        scheduler: any scheduler with a config that `DDIMScheduler.from_config` accepts.
        image_encoder, feature_extractor: must be None.
        force_zeros_for_empty_prompt: without a negative prompt, zeros are what to keep away from; otherwise it is the
            empty text.
        add_watermarker: pictures are not watermarked here; True warns of that.
        requires_aesthetics_score: kept for `from_pipe`. Whether the U-Net is told a score, its own config says.

    Of the networks, the tokenizers and the scheduler, those that are not used may be None. They may also be
    transformers' and diffusers'.
    """

    parts: ClassVar[tuple[str, ...]] = (
        "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler"
    )  # fmt: skip
    classes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "unet": ("UNet2DConditionModel",),
        "controlnet": ("ControlNetModel", "MultiControlNetModel"),
    }
    nullable: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    stated: ClassVar[tuple[str, ...]] = ("text_encoder_2", "tokenizer_2")
    single_files: ClassVar[tuple[Family, ...]] = (XL, XL_REFINER)
    left_out: ClassVar[Mapping[str, Any]] = {"feature_extractor": [None, None], "image_encoder": [None, None]}
    settings: ClassVar[Mapping[str, bool]] = {"force_zeros_for_empty_prompt": True, "requires_aesthetics_score": False}
    unsaved: ClassVar[tuple[str, ...]] = ("requires_aesthetics_score",)
    usual_guidance: ClassVar[float] = 5.0
    watermark: None = None  # what diffusers' users set to None

    text_encoder_2: CLIPTextModelWithProjection | None
    tokenizer_2: CLIPTokenizer | None

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | None,
        text_encoder: CLIPTextModel | None,
        text_encoder_2: CLIPTextModelWithProjection | None,
        tokenizer: CLIPTokenizer | None,
        tokenizer_2: CLIPTokenizer | None,
        unet: UNet2DConditionModel | None,
        scheduler: Any,
        image_encoder: None = None,
        feature_extractor: None = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        *,
        requires_aesthetics_score: bool = False,
    ) -> None:
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        if add_watermarker:
            warnings.warn(
                "add_watermarker=True has no effect: pictures are not watermarked", stacklevel=level_of_caller()
            )
        self.force_zeros_for_empty_prompt = bool(force_zeros_for_empty_prompt)
        self.requires_aesthetics_score = bool(requires_aesthetics_score)
        self.vae_scale_factor = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = ImageProcessor(self.vae_scale_factor)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _LOADED_NEVER:
            if value is not None:
                raise TypeError(f"{name} must be None: IP-Adapters are not implemented")
            self.components[name] = value
        is_tokenizer = callable(value) and hasattr(value, "model_max_length")
        if name in ("tokenizer", "tokenizer_2") and value is not None and not is_tokenizer:
            raise TypeError(f"a tokenizer is needed, such as ddim.CLIPTokenizer, not a {type(value).__name__}")
        super().__setattr__(name, value)

    # --- running -----------------------------------------------------------------------------------------------------

    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **options: Any) -> PlainOutput: ...
    @overload
    def __call__(
        self, *args: Any, output_type: Literal["np"], **options: Any
    ) -> StableDiffusionXLPipelineOutput[Array]: ...
    @overload
    def __call__(
        self, *args: Any, output_type: Literal["pt", "latent"], **options: Any
    ) -> StableDiffusionXLPipelineOutput[Tensor]: ...
    @overload
    def __call__(self, *args: Any, **options: Any) -> StableDiffusionXLPipelineOutput[Drawn]: ...
    @torch.no_grad()  # type: ignore[misc]  # the short ones above take any arguments
    @one_backend
    def __call__(
        self,
        prompt: Prompt = None,
        prompt_2: Prompt = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_end: float | None = None,
        guidance_scale: float | None = None,
        negative_prompt: Prompt = None,
        negative_prompt_2: Prompt = None,
        num_images_per_prompt: int | None = 1,
        eta: Eta = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        output_type: LatentOutputType = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guidance_rescale: float | None = None,
        original_size: Pair | None = None,
        crops_coords_top_left: Pair = (0, 0),
        target_size: Pair | None = None,
        negative_original_size: Pair | None = None,
        negative_crops_coords_top_left: Pair = (0, 0),
        negative_target_size: Pair | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        denoising_start: float | None = None,
        guidance_interval: tuple[int, int] | None = None,
        order: Order | None = None,
        seed: int | Sequence[int] | None = None,
        image: Pictures | None = None,
        strength: float = 0.3,
        mask_image: Pictures | None = None,
        masked_image_latents: Tensor | None = None,
        padding_mask_crop: int | None = None,
        control_image: Pictures | None = None,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        guess_mode: bool = False,
        control_guidance_start: float | Sequence[float] = 0.0,
        control_guidance_end: float | Sequence[float] = 1.0,
        callback: Callable[[int, Tensor, Tensor], Any] | None = None,
        callback_steps: int | None = None,
        weights: Weights | None = None,
    ) -> StableDiffusionXLPipelineOutput[Any] | PlainOutput:
        """Make images of texts; with `image` of a picture, and with `mask_image` of a part of it.

        What is not named here is as in a call of `StableDiffusionPipeline`.

        Args:
            prompt: a text, or a list of b.
            prompt_2: the texts for the second text encoder; `prompt` unless told. The refiner, which has that one
                alone, reads `prompt`.
            height, width: in pixels; what the U-Net was trained on unless told, which is 1024 by 1024.
            denoising_end: in (0, 1], the share of the way at which to stop: with output_type="latent", what comes out
                is for another model that goes on from there. See `SamplingPlan.part`.
            guidance_scale: 5 unless told or recommended.
            negative_prompt: what to keep away from. Without it and `negative_prompt_2`, these are zeros, or the empty
                text if `force_zeros_for_empty_prompt` is False.
            negative_prompt_2: the same for the second text encoder; `negative_prompt` unless told.
            prompt_embeds, negative_prompt_embeds: what `encode_prompt` gives, (b tokens channels), instead; they need
                `pooled_prompt_embeds` and `negative_pooled_prompt_embeds`, (b channels).
            original_size, target_size: (height, width), as if a picture of one size had been resized to the other;
                those of what is drawn unless told. A small original size gives a blurred picture.
            crops_coords_top_left: (top, left), as if the picture had been cut there. (0, 0) gives centred pictures.
            negative_original_size, negative_crops_coords_top_left, negative_target_size: what is told of these with the
                negative prompt; the same unless told.
            clip_skip: how many of the text encoders' last layers to leave out, beside the last one of all.
            callback_on_step_end_tensor_inputs: of "latents", "prompt_embeds", "add_text_embeds" and "add_time_ids"
                (under guidance the negative ones come first in all but the latents) and "pred_original_sample".
            aesthetic_score, negative_aesthetic_score: how good the picture is to look and how the negative one does, to
                a model that is told so, as the refiner is.
            denoising_start: in [0, 1), the share of the way that another model has gone: `image`, or `latents`, are
                what it left. `strength` is without effect then.
            strength: 0.3 unless told.
            sigmas, ip_adapter_image, ip_adapter_image_embeds: must be None.

        Raises:
            ConfigError, ValueError, TypeError: settings, shapes or types that cannot work, before anything is run.
            NonFiniteError: the network gave NaN; names the step.

        Warns:
            UserWarning: the network was distilled for other timesteps, or to need no guidance.
        """
        refuse_unsupported(
            sigmas=sigmas, ip_adapter_image=ip_adapter_image, ip_adapter_image_embeds=ip_adapter_image_embeds
        )
        sizes = Sizes(
            original_size=original_size,
            crops_coords_top_left=crops_coords_top_left,
            target_size=target_size,
            negative_original_size=negative_original_size,
            negative_crops_coords_top_left=negative_crops_coords_top_left,
            negative_target_size=negative_target_size,
            aesthetic_score=aesthetic_score,
            negative_aesthetic_score=negative_aesthetic_score,
        )
        origin = Origin(
            size=(height, width),
            latents=latents,
            image=image,
            strength=strength,
            mask_image=mask_image,
            masked_image_latents=masked_image_latents,
            padding_mask_crop=padding_mask_crop,
            is_noised=denoising_start is not None,
            takes_latents=True,
        )
        call = Call(
            prompts=lambda: self._request(
                prompt,
                prompt_2,
                negative_prompt,
                negative_prompt_2,
                prompt_embeds,
                negative_prompt_embeds,
                pooled_prompt_embeds,
                negative_pooled_prompt_embeds,
                sizes,
                weights,
            ),
            origin=origin,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            eta=eta,
            order=order,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            guidance_interval=guidance_interval,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            seed=seed,
            clip_skip=clip_skip,
            cross_attention_kwargs=cross_attention_kwargs,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            callback=callback,
            callback_steps=callback_steps,
            denoising_start=denoising_start,
            denoising_end=denoising_end,
            control=control_request(
                control_image,
                controlnet_conditioning_scale,
                guess_mode,
                control_guidance_start,
                control_guidance_end,
            ),
        )
        images, _ = self._draw(call)
        return StableDiffusionXLPipelineOutput(images) if return_dict else (images,)

    @property
    def is_xl(self) -> bool:
        return True

    # --- texts -------------------------------------------------------------------------------------------------------

    def encode_prompt(  # type: ignore[override]
        self,
        prompt: Prompt,
        prompt_2: Prompt = None,
        device: str | torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: Prompt = None,
        negative_prompt_2: Prompt = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        *,
        weights: Weights | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """What the U-Net is to be told of texts.

        Args:
            device: where the result goes; to the U-Net's device unless told.
            num_images_per_prompt: n, how often each prompt's embeddings are repeated.
            do_classifier_free_guidance: False leaves out those to keep away from, and None takes their place.
            lora_scale: must be None or 1: `set_adapters` says how strong adapters are.

        The rest is as in a call.

        Returns:
            (embeddings, negative ones, vectors, negative ones): (b·n tokens channels) twice, then (b·n channels) twice.
        """
        refuse_unsupported(lora_scale=None if lora_scale == 1 else lora_scale)
        request = self._request(
            prompt,
            prompt_2,
            negative_prompt,
            negative_prompt_2,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
            weights=weights,
        )
        images = positive(num_images_per_prompt, "num_images_per_prompt")
        found = self._encoded(request, do_classifier_free_guidance, clip_skip)
        one, other = (None if each is None else each.for_each_image(images).to(device or self.device) for each in found)
        assert one is not None
        embeds, pooled = one.tensors()
        negative, negative_pooled = (None, None) if other is None else other.tensors()
        return embeds, negative, pooled, negative_pooled

    def _request(
        self,
        prompt: Prompt,
        prompt_2: Prompt,
        negative_prompt: Prompt,
        negative_prompt_2: Prompt,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        pooled_prompt_embeds: Tensor | None,
        negative_pooled_prompt_embeds: Tensor | None,
        sizes: Sizes | None = None,
        weights: Weights | None = None,
    ) -> RequestXL:
        return check_xl_prompts(
            prompt,
            prompt_2,
            negative_prompt,
            negative_prompt_2,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
            zeros_for_none=self.force_zeros_for_empty_prompt,
            sizes=sizes,
            weights=weights or self.weights,
        )

    def _encoded(
        self, request: RequestXL, is_guided: bool, clip_skip: int | None
    ) -> tuple[Condition, Condition | None]:
        """What the U-Net is told of texts, without the sizes, on its device and of its type."""
        with ExitStack() as stack:
            needs = request.needs_text_encoder(is_guided)
            encoders = self._both_encoders(stack) if needs else (Encoder(None, None), Encoder(None, None))
            words, negative = encode_xl_prompts(request, encoders, is_guided, clip_skip)
        one, other = (
            None if each is None else Condition(each.embeds, {"text_embeds": each.pooled}).to(self.device, self.dtype)
            for each in (words, negative)
        )
        assert one is not None
        return one, other

    def _both_encoders(self, stack: ExitStack) -> tuple[Encoder, Encoder]:
        """Both text encoders, where they run until the stack ends."""
        pairs = ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2))
        one, two = (Encoder(tokenizer, stack.enter_context(self.in_use(encoder))) for tokenizer, encoder in pairs)
        return one, two

    def _conditions(  # type: ignore[override]
        self, request: RequestXL, is_guided: bool, clip_skip: int | None, size: tuple[int, int] | None = None
    ) -> tuple[Condition, Condition | None]:
        words, negative = self._encoded(request, is_guided, clip_skip)
        numbers = self.numbers(request.sizes, size, words.added["text_embeds"].shape[1])
        one = self._told(words, numbers[0])
        return one, None if negative is None else self._told(negative, numbers[1])

    def _told(self, words: Condition, numbers: Sequence[float]) -> Condition:
        """The same texts with the numbers that go with each of them; these are never rounded to half precision."""
        ids = torch.tensor([numbers], dtype=torch.float32, device=words.embeds.device).expand(len(words), -1)
        return Condition(words.embeds, {**words.added, "time_ids": ids})

    def _has_score(self, pooled: int) -> bool:
        """Whether the U-Net is told an aesthetic score, for vectors of so many channels."""
        return has_score(self.unet.config, pooled)

    def numbers(
        self, sizes: Sizes, size: tuple[int, int] | None = None, pooled: int | None = None
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The numbers that the U-Net is told with the prompt, and those with the negative one.

        Args:
            sizes: what is said of them.
            size: height and width of the pictures in pixels; what the U-Net was trained on unless told.
            pooled: the channels of a text's vector; those of the second text encoder unless told.

        Raises:
            ConfigError: the U-Net is not told such things.
        """
        if pooled is None:
            pooled = 0 if self.text_encoder_2 is None else self.text_encoder_2.config.projection_dim
        return sizes.numbers(self.picture_shape()[1:] if size is None else size, self._has_score(pooled or 0))

    def conditions(self, texts: list[str], second: list[str] | None = None) -> Condition:
        """What the U-Net is told of texts, on its device and of its type, with the sizes of what it was trained on.

        Args:
            second: the texts for the second encoder; the same unless told.

        Raises:
            ConfigError: the pipeline has no text encoder or no tokenizer.
        """
        with ExitStack() as stack:
            words = encode_both(
                self._both_encoders(stack), texts, texts if second is None else second, weights=self.weights
            )
        condition = Condition(words.embeds, {"text_embeds": words.pooled}).to(self.device, self.dtype)
        return self._told(condition, self.numbers(Sizes(), None, words.pooled.shape[1])[0])

    def denoiser(
        self,
        plan: SamplingPlan,
        count: int,
        *,
        prompt: Prompt = None,
        prompt_2: Prompt = None,
        negative_prompt: Prompt = None,
        negative_prompt_2: Prompt = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[int, int] | None = None,
        clip_skip: int | None = None,
        channels: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        sizes: Sizes | None = None,
        size: tuple[int, int] | None = None,
        weights: Weights | None = None,
    ) -> TextDenoiser:
        """The U-Net as a denoiser of `count` samples under texts; without any, under the empty text.

        Args:
            plan: of the run that it is for.
            count: how many samples it is given at a time. Each of the texts is for an equal share of them, in order.
            channels: what the U-Net is given beside the samples, (count c h w): what one that was trained to inpaint
                sees of the picture.
            sizes: what the U-Net is told of sizes, crops and aesthetics; the usual ones unless told.
            size: height and width of the pictures in pixels; what the U-Net was trained on unless told.

        The rest is as in a call, but that there is no guidance unless told.

        Raises:
            ValueError, TypeError: texts or embeddings that do not fit together or the count.

        Warns:
            UserWarning: the network was distilled for other timesteps, or to need no guidance.
        """
        if prompt is None and prompt_embeds is None:
            prompt = ""
        request = self._request(
            prompt,
            prompt_2,
            negative_prompt,
            negative_prompt_2,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
            sizes,
            weights,
        )
        if count % request.size:
            raise ValueError(f"{request.size} prompts do not fit {count} samples: give one, or one for each")
        with torch.no_grad():
            condition, negative = self._conditions(request, self.is_guided(guidance_scale), clip_skip, size)
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

    def wide_enough(self, vae: Any, encodes: bool = False) -> Any:
        """The autoencoder, or a float32 copy of one in half precision that overflows there, as its config says."""
        narrow = (torch.float16, torch.bfloat16) if encodes else (torch.float16,)
        return copy.deepcopy(vae).float() if vae.config.get("force_upcast") and vae.dtype in narrow else vae
