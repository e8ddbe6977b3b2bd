"""The pipelines of Stable Diffusion XL with a ControlNet, with their order of arguments in diffusers.

`StableDiffusionXLPipeline` does all that they do, once it is given a `controlnet`. These are for code that was written
for diffusers' classes, and for checkpoints that name them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ddim.pipelines.controlled import by_network, own_size
from ddim.pipelines.familiar_xl import FamiliarImageToImageXL, FamiliarInpaintXL
from ddim.pipelines.signatures import named
from ddim.pipelines.xl import StableDiffusionXLPipeline
from ddim.pipelines.xl_image_to_image import in_order

# Arguments in the order of diffusers' calls: the first ones of each, and those that all go on with.
_FROM_TEXT = "prompt prompt_2 image height width num_inference_steps timesteps sigmas denoising_end".split()
_FROM_PICTURE = "prompt prompt_2 image control_image height width strength num_inference_steps".split()
_INPAINT = """
prompt prompt_2 image mask_image control_image height width padding_mask_crop strength num_inference_steps
denoising_start denoising_end
""".split()
_GUIDED = "guidance_scale negative_prompt negative_prompt_2 num_images_per_prompt eta generator latents".split()
_EMBEDS = "prompt_embeds negative_prompt_embeds".split()
_POOLED = "pooled_prompt_embeds negative_pooled_prompt_embeds".split()
_ADAPTER = "ip_adapter_image ip_adapter_image_embeds".split()
_CONTROL = """
output_type return_dict cross_attention_kwargs controlnet_conditioning_scale guess_mode control_guidance_start
control_guidance_end
""".split()
_SIZES = """
original_size crops_coords_top_left target_size negative_original_size negative_crops_coords_top_left
negative_target_size
""".split()
_SCORES = "aesthetic_score negative_aesthetic_score".split()
_CALLBACKS = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs".split()
_OF_STARTS = "strength mask_image masked_image_latents padding_mask_crop denoising_start".split()
_PARTS = (
    "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "controlnet", "scheduler"
)  # fmt: skip


class StableDiffusionXLControlNetPipeline(StableDiffusionXLPipeline):
    """Images from texts and from what a ControlNet is shown, the `image` of a call.

    The arguments of a call are those of `StableDiffusionXLPipeline`; in order: prompt, prompt_2, image, height, … For
    several ControlNets, `image` is a list with a picture for each; or for several prompts a list of such lists.

    Args:
        controlnet: a `ControlNetModel`, or a list of several.

    The others are those of `StableDiffusionXLPipeline`.
    """

    parts: ClassVar[tuple[str, ...]] = _PARTS
    nullable: ClassVar[tuple[str, ...]] = (*StableDiffusionXLPipeline.nullable, "controlnet")

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        feature_extractor: None = None,
        image_encoder: None = None,
        *,
        requires_aesthetics_score: bool = False,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer,
            tokenizer_2,
            unet,
            scheduler,
            image_encoder,
            feature_extractor,
            force_zeros_for_empty_prompt,
            add_watermarker,
            requires_aesthetics_score=requires_aesthetics_score,
        )
        self.controlnet = controlnet

    @in_order(
        [*_FROM_TEXT, *_GUIDED, *_EMBEDS, *_POOLED, *_ADAPTER, *_CONTROL, *_SIZES, *_CALLBACKS],
        without=["control_image", *_OF_STARTS],
    )
    def __call__(self, *args: Any, **options: Any) -> Any:
        given = named(self, args, options, "image")
        image = by_network(given.pop("image"))
        return super().__call__(**given, control_image=image)


class _FromPicture(StableDiffusionXLPipeline):
    """With the constructor of diffusers' pipelines that start from a picture."""

    parts: ClassVar[tuple[str, ...]] = _PARTS
    nullable: ClassVar[tuple[str, ...]] = (*StableDiffusionXLPipeline.nullable, "controlnet")
    unsaved: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        requires_aesthetics_score: bool = False,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        feature_extractor: None = None,
        image_encoder: None = None,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer,
            tokenizer_2,
            unet,
            scheduler,
            image_encoder,
            feature_extractor,
            force_zeros_for_empty_prompt,
            add_watermarker,
            requires_aesthetics_score=requires_aesthetics_score,
        )
        self.controlnet = controlnet


class StableDiffusionXLControlNetImg2ImgPipeline(FamiliarImageToImageXL, _FromPicture):
    """A picture made anew from its noised self, steered by what a ControlNet is shown, the `control_image` of a call.

    The arguments of a call are those of `StableDiffusionXLPipeline`; in order: prompt, prompt_2, image, control_image,
    …; `strength` and `controlnet_conditioning_scale` are 0.8 unless told.
    """

    @in_order(
        [*_FROM_PICTURE, *_GUIDED, *_EMBEDS, *_POOLED, *_ADAPTER, *_CONTROL, *_SIZES, *_SCORES, *_CALLBACKS],
        strength=0.8,
        controlnet_conditioning_scale=0.8,
    )
    def __call__(self, *args: Any, **options: Any) -> Any:
        given = named(self, args, options, "image", "control_image")
        given = {"strength": 0.8, "controlnet_conditioning_scale": 0.8, **given}
        return super().__call__(**given)


class StableDiffusionXLControlNetInpaintPipeline(FamiliarInpaintXL, _FromPicture):  # type: ignore[misc]
    """A part of a picture made anew, where a mask is white, steered by what a ControlNet is shown.

    The arguments of a call are those of `StableDiffusionXLPipeline`; in order: prompt, prompt_2, image, mask_image,
    control_image, …; `strength` is 0.9999 unless told, and pictures have the size of `image`.
    """

    @in_order(
        [
            *(*_INPAINT, *_GUIDED, *_EMBEDS, *_ADAPTER, *_POOLED, *_CONTROL, "guidance_rescale"),
            *("original_size", "crops_coords_top_left", "target_size", *_SCORES, *_CALLBACKS),
        ],
        strength=0.9999,
    )
    def __call__(self, *args: Any, **options: Any) -> Any:
        given = {"strength": 0.9999, **named(self, args, options, "image", "mask_image", "control_image")}
        given |= own_size(given, self.vae_scale_factor)
        return super().__call__(**given)
