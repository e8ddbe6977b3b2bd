"""The pipelines that start from a picture, under their names and with their order of arguments in diffusers.

`StableDiffusionPipeline` does all that they do. These are for code that was written for diffusers' classes, and for
checkpoints that name them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from ddim.pipelines.familiar import FamiliarImageToImage, FamiliarInpaint
from ddim.pipelines.outputs import Array, Drawn, PlainOutput, StableDiffusionPipelineOutput
from ddim.pipelines.signatures import Call, named, signature_of, signed
from ddim.pipelines.text_to_image import StableDiffusionPipeline

# Arguments in the order of diffusers' calls: the last ones of both, and the first ones of each.
_ENDING = """
negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds output_type return_dict cross_attention_kwargs
clip_skip callback_on_step_end callback_on_step_end_tensor_inputs
""".split()
_FROM_PICTURE = """
prompt image strength num_inference_steps timesteps sigmas guidance_scale negative_prompt num_images_per_prompt eta
generator prompt_embeds
""".split()
_INPAINT = """
prompt image mask_image masked_image_latents height width padding_mask_crop strength num_inference_steps timesteps
sigmas guidance_scale negative_prompt num_images_per_prompt eta generator latents prompt_embeds
""".split()


_RETURNS = StableDiffusionPipelineOutput[Any] | PlainOutput
CallOfFamily: TypeAlias = Call[
    StableDiffusionPipelineOutput[Array], StableDiffusionPipelineOutput[Tensor], StableDiffusionPipelineOutput[Drawn]
]


def in_order(
    order: Sequence[str], without: Sequence[str] = (), **defaults: Any
) -> Callable[[Callable[..., Any]], CallOfFamily]:
    """Decorate a call that is `StableDiffusionPipeline`'s with its arguments in another order; see `signature_of`."""
    decorate: Callable[[Callable[..., Any]], CallOfFamily] = signed(
        signature_of(StableDiffusionPipeline, order, _RETURNS, without, **defaults)
    )
    return decorate


class StableDiffusionImg2ImgPipeline(FamiliarImageToImage, StableDiffusionPipeline):
    """A picture made anew from its noised self.

    The arguments of a call are those of `StableDiffusionPipeline`; in order: prompt, image, strength, …
    """

    @in_order([*_FROM_PICTURE, *_ENDING])
    def __call__(self, *args: Any, **options: Any) -> Any:
        given = named(self, args, options, "image")
        return super().__call__(**given)


class StableDiffusionInpaintPipeline(FamiliarInpaint, StableDiffusionPipeline):
    """A part of a picture made anew, where a mask is white.

    The arguments of a call are those of `StableDiffusionPipeline`; in order: prompt, image, mask_image, …; `strength`
    is 1 unless told.
    """

    @in_order([*_INPAINT, *_ENDING], strength=1.0)
    def __call__(self, *args: Any, **options: Any) -> Any:
        given = {"strength": 1.0, **named(self, args, options, "image", "mask_image")}
        return super().__call__(**given)
