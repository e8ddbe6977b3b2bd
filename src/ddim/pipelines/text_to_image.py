"""StableDiffusionPipeline: images from texts, by a U-Net on latents; and from pictures, whole or under a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor

from ddim.checkpoint.original_layout import SD, Family
from ddim.models import AutoencoderKL, AutoencoderTiny, CLIPTextModel, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.noise import Generators
from ddim.pipelines.base import as_ddim
from ddim.pipelines.control import control_request
from ddim.pipelines.draws import Call, Callback, Draws
from ddim.pipelines.emphasis import Weights
from ddim.pipelines.image_processor import ImageProcessor
from ddim.pipelines.inputs import Pictures, refuse_unsupported
from ddim.pipelines.outputs import Array, Drawn, LatentOutputType, PlainOutput, StableDiffusionPipelineOutput
from ddim.pipelines.prompts import Prompt, check_prompts
from ddim.pipelines.runs import one_backend
from ddim.pipelines.single_file import FromSingleFile
from ddim.pipelines.starts import Origin
from ddim.process import Eta, Order
from ddim.scheduler import DDIMScheduler

_LOADED_NEVER = ("safety_checker", "feature_extractor", "image_encoder")


class StableDiffusionPipeline(FromSingleFile, Draws):
    """Images from texts, by Stable Diffusion 1, 2 and their like.

    As in diffusers, the scheduler that is given at construction gets steps_offset=1 and clip_sample=False (in a copy,
    if need be): what these models were trained for, whatever their first configs say. One that is assigned later
    (`pipe.scheduler = …`) is taken as it is. A call changes nothing in the pipeline, so threads may share it.

    Args:
        vae, text_encoder, tokenizer, unet: the networks. Without a text encoder and its tokenizer, calls need
            `prompt_embeds`.
        scheduler: any scheduler with a config that `DDIMScheduler.from_config` accepts.
        safety_checker: None, or what is called with pictures after each run, as diffusers' safety checker is. None is
            ever loaded.
        feature_extractor: what makes of pictures what the safety checker looks at.
        image_encoder: must be None.
        requires_safety_checker: without effect.

    Of the networks, the tokenizer and the scheduler, those that are not used may be None. A tokenizer and a text
    encoder may also be transformers', and the networks diffusers'.
    """

    parts: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    classes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "unet": ("UNet2DConditionModel",),
        "controlnet": ("ControlNetModel", "MultiControlNetModel"),
    }
    nullable: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    single_files: ClassVar[tuple[Family, ...]] = (SD,)
    left_out: ClassVar[Mapping[str, Any]] = {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        unet: UNet2DConditionModel | None,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: None = None,
        requires_safety_checker: bool = False,
    ) -> None:
        if scheduler is not None:
            scheduler = as_ddim(scheduler)
            if scheduler.config.steps_offset != 1 or scheduler.config.clip_sample:
                scheduler = DDIMScheduler.from_config(scheduler.config, steps_offset=1, clip_sample=False)
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        self.vae_scale_factor = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = ImageProcessor(self.vae_scale_factor)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "image_encoder" and value is not None:
            raise TypeError("image_encoder must be None: IP-Adapters are not implemented")
        if name == "safety_checker" and value is not None and not callable(value):
            raise TypeError(f"safety_checker must be None, or called with images=, not a {type(value).__name__}")
        if name == "tokenizer" and value is not None and not (callable(value) and hasattr(value, "model_max_length")):
            raise TypeError(f"a tokenizer is needed, such as ddim.CLIPTokenizer, not a {type(value).__name__}")
        if name in self.left_out and name in _LOADED_NEVER:
            self.components[name] = value
        super().__setattr__(name, value)

    # --- running -----------------------------------------------------------------------------------------------------

    @overload
    def __call__(self, *args: Any, return_dict: Literal[False], **options: Any) -> PlainOutput: ...
    @overload
    def __call__(
        self, *args: Any, output_type: Literal["np"], **options: Any
    ) -> StableDiffusionPipelineOutput[Array]: ...
    @overload
    def __call__(
        self, *args: Any, output_type: Literal["pt", "latent"], **options: Any
    ) -> StableDiffusionPipelineOutput[Tensor]: ...
    @overload
    def __call__(
        self,
        prompt: Prompt = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: Prompt = None,
        num_images_per_prompt: int | None = 1,
        eta: Eta = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[True] = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guidance_rescale: float | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        guidance_interval: tuple[int, int] | None = None,
        order: Order | None = None,
        seed: int | Sequence[int] | None = None,
        image: Pictures | None = None,
        strength: float = 0.8,
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
    ) -> StableDiffusionPipelineOutput[Drawn]: ...
    @torch.no_grad()  # type: ignore[misc]  # the short ones above take any arguments
    @one_backend
    def __call__(
        self,
        prompt: Prompt = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: Prompt = None,
        num_images_per_prompt: int | None = 1,
        eta: Eta = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        output_type: LatentOutputType = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guidance_rescale: float | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        guidance_interval: tuple[int, int] | None = None,
        order: Order | None = None,
        seed: int | Sequence[int] | None = None,
        image: Pictures | None = None,
        strength: float = 0.8,
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
    ) -> StableDiffusionPipelineOutput[Any] | PlainOutput:
        """Make images of texts; with `image` of a picture, and with `mask_image` of a part of it.

        Args:
            prompt: a text, or a list of b.
            height, width: in pixels, multiples of `vae_scale_factor`. What the U-Net was trained on unless told; that
                of `image`, if there is one without a mask, or else of `control_image`.
            num_inference_steps: N, from 1 to T. What the scheduler's config recommends unless told, or else 50.
            timesteps: the timesteps themselves, instead of N.
            guidance_scale: how much to prefer the text over the negative one; 1 or less is no guidance. What the
                scheduler's config recommends unless told, or else 7.5.
            negative_prompt: what to keep away from; one for all, or a list of b. The empty text unless told.
            num_images_per_prompt: n; the images of one prompt follow one another.
            eta: η of equation 16: 0 is DDIM, 1 is DDPM; or "sigma_hat".
            generator: of all noise: one, or a list with one for each of the b·n images.
            latents: x_T, (b·n channels height/f width/f), instead of noise.
            prompt_embeds, negative_prompt_embeds: what the text encoder would give, (b tokens channels), instead.
            output_type: "pil", "np" (b h w c) or "pt" (b c h w), both in [0, 1], or "latent".
            return_dict: False gives a plain tuple (images, nsfw_content_detected).
            cross_attention_kwargs: what the U-Net hands on to its attention processors. A "scale" in it, by which
                diffusers weakens adapters, is refused if adapters are in use: `set_adapters` does so here.
            guidance_rescale: φ in [0, 1], see `guidance.rescale_noise`; 0.7 suits zero terminal SNR. What is
                recommended unless told, or else 0.
            clip_skip: how many of the text encoder's last layers to leave out, for the prompt alone.
            callback_on_step_end: called as (pipe, index, timestep, a dict of what the next argument names) after each
                step. The run goes on with what it returns in a dict; False stops it here, as `pipe._interrupt = True`
                does. `pipe._guidance_scale = …` changes the scale. One that has `tensor_inputs` says itself what it is
                to be shown, as diffusers' do.
            callback_on_step_end_tensor_inputs: of "latents", "prompt_embeds" (under guidance the negative ones come
                first), "negative_prompt_embeds" and "pred_original_sample".
            guidance_interval: guide only at timesteps from the first to the second.
            order: 2 for steps of second order, at eta=0: as many evaluations, nearer the ODE's solution. What is
                recommended with the recommended number of steps unless told, or else 1.
            seed: instead of a generator: image k of a seed is the same whatever the batch size, device or thread
                count. A list has one for each image.
            image: a picture to start from, or a list with one for each prompt or image; see `inputs.to_tensor`. A
                tensor may hold latents.
            strength: in [0, 1], the share of the steps that are made, and so how much of the picture is lost; see
                `SamplingPlan.shortened`, and of searched timesteps `recommended.plan_of_call`.
            mask_image: white where the picture is to be painted anew; see `inputs.to_mask`.
            masked_image_latents: of the picture without what the mask covers, for a U-Net that looks at them.
            padding_mask_crop: paint what the mask covers and so many pixels around it in the full size, then put it
                back. For one PIL image and PIL output.
            control_image: what the pipeline's ControlNet is shown: a picture, or a list with one for each prompt or
                image; for several ControlNets a list with one of these for each. See `inputs.to_condition`.
            controlnet_conditioning_scale: how strongly the ControlNet acts; of several a number for all, or a list.
            guess_mode: let the ControlNet act on the prediction under the prompt alone, and less at high resolutions:
                for use without a prompt.
            control_guidance_start, control_guidance_end: the shares of the run from which and to which the ControlNet
                acts; of several numbers for all, or lists.
            callback, callback_steps: the older way: every `callback_steps` steps, each unless told, `callback` is
                called as (index, timestep, latents). What it returns is ignored.
            weights: how the prompts say what weighs how much: "a1111" for `(word:1.3)` as AUTOMATIC1111's web UI reads
                it, and texts of more than 75 tokens; "compel" for `word++` and `(word)1.3`. What `pipe.weights` says
                unless told, which is None: brackets and signs are what they are. See docs/prompts.md.
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
        origin = Origin(
            size=(height, width),
            latents=latents,
            image=image,
            strength=strength,
            mask_image=mask_image,
            masked_image_latents=masked_image_latents,
            padding_mask_crop=padding_mask_crop,
        )
        call = Call(
            prompts=lambda: check_prompts(
                prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, weights or self.weights
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
            control=control_request(
                control_image,
                controlnet_conditioning_scale,
                guess_mode,
                control_guidance_start,
                control_guidance_end,
            ),
        )
        images, found = self._draw(call)
        return StableDiffusionPipelineOutput(images, found) if return_dict else (images, found)
