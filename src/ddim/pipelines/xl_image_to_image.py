"""The pipelines of Stable Diffusion XL that start from a picture, with their order of arguments in diffusers.

`StableDiffusionXLPipeline` does all that they do. These are for code that was written for diffusers' classes, and for
checkpoints that name them, as the refiner does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from ddim.pipelines.familiar_xl import FamiliarImageToImageXL, FamiliarInpaintXL
from ddim.pipelines.outputs import Array, Drawn, PlainOutput, StableDiffusionXLPipelineOutput
from ddim.pipelines.signatures import Call, named, signature_of, signed
from ddim.pipelines.xl import StableDiffusionXLPipeline

# Arguments in the order of diffusers' calls: the first ones of each, and those that both go on with.
_FROM_PICTURE = "prompt prompt_2 image strength".split()
_INPAINT = """
prompt prompt_2 image mask_image masked_image_latents height width padding_mask_crop strength
""".split()
_ENDING = """
num_inference_steps timesteps sigmas denoising_start denoising_end guidance_scale negative_prompt negative_prompt_2
num_images_per_prompt eta generator latents prompt_embeds negative_prompt_embeds pooled_prompt_embeds
negative_pooled_prompt_embeds ip_adapter_image ip_adapter_image_embeds output_type return_dict cross_attention_kwargs
guidance_rescale original_size crops_coords_top_left target_size negative_original_size negative_crops_coords_top_left
negative_target_size aesthetic_score negative_aesthetic_score clip_skip callback_on_step_end
callback_on_step_end_tensor_inputs
""".split()
_RETURNS = StableDiffusionXLPipelineOutput[Any] | PlainOutput
CallOfFamily: TypeAlias = Call[
    StableDiffusionXLPipelineOutput[Array],
    StableDiffusionXLPipelineOutput[Tensor],
    StableDiffusionXLPipelineOutput[Drawn],
]


def in_order(
    order: Sequence[str], without: Sequence[str] = (), **defaults: Any
) -> Callable[[Callable[..., Any]], CallOfFamily]:
    """Decorate a call that is `StableDiffusionXLPipeline`'s with its arguments in another order; see `signature_of`."""
    decorate: Callable[[Callable[..., Any]], CallOfFamily] = signed(
        signature_of(StableDiffusionXLPipeline, order, _RETURNS, without, **defaults)
    )
    return decorate


class _FromPicture(StableDiffusionXLPipeline):
    """With the constructor of diffusers' pipelines that start from a picture."""

    unsaved: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        scheduler: Any,
        image_encoder: None = None,
        feature_extractor: None = None,
        requires_aesthetics_score: bool = False,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
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


class StableDiffusionXLImg2ImgPipeline(FamiliarImageToImageXL, _FromPicture):
    """A picture made anew from its noised self, or finished by the refiner.

    The arguments of a call are those of `StableDiffusionXLPipeline`; in order: prompt, prompt_2, image, strength, …
    """

    @in_order([*_FROM_PICTURE, *_ENDING])
    def __call__(self, *args: Any, **options: Any) -> Any:
        given = named(self, args, options, "image")
        return super().__call__(**given)


class StableDiffusionXLInpaintPipeline(FamiliarInpaintXL, _FromPicture):  # type: ignore[misc]  # two check_inputs
    """A part of a picture made anew, where a mask is white.

    The arguments of a call are those of `StableDiffusionXLPipeline`; in order: prompt, prompt_2, image, mask_image, …;
    `strength` is 0.9999 and `guidance_scale` 7.5 unless told.
    """

    usual_guidance: ClassVar[float] = 7.5

    @in_order([*_INPAINT, *_ENDING], strength=0.9999)
    def __call__(self, *args: Any, **options: Any) -> Any:
        given = {"strength": 0.9999, **named(self, args, options, "image", "mask_image")}
        return super().__call__(**given)
