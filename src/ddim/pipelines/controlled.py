"""The pipelines with a ControlNet, under their names and with their order of arguments in diffusers.

`StableDiffusionPipeline` does all that they do, once it is given a `controlnet`. These are for code that was written
for diffusers' classes, and for checkpoints that name them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from ddim.models import AutoencoderKL, AutoencoderTiny, CLIPTextModel, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines.familiar import FamiliarImageToImage, FamiliarInpaint
from ddim.pipelines.image_to_image import in_order
from ddim.pipelines.inputs import Pictures, picture_size
from ddim.pipelines.signatures import named
from ddim.pipelines.text_to_image import StableDiffusionPipeline

# Arguments in the order of diffusers' calls: the last ones of all, and the first ones of each.
_ENDING = """
guidance_scale negative_prompt num_images_per_prompt eta generator latents prompt_embeds negative_prompt_embeds
ip_adapter_image ip_adapter_image_embeds output_type return_dict cross_attention_kwargs controlnet_conditioning_scale
guess_mode control_guidance_start control_guidance_end clip_skip callback_on_step_end
callback_on_step_end_tensor_inputs
""".split()
_FROM_TEXT = "prompt image height width num_inference_steps timesteps sigmas".split()
_FROM_PICTURE = "prompt image control_image height width strength num_inference_steps".split()
_INPAINT = """
prompt image mask_image control_image height width padding_mask_crop strength num_inference_steps
""".split()
_OF_STARTS = "strength mask_image masked_image_latents padding_mask_crop".split()


class _Controlled(StableDiffusionPipeline):
    """A pipeline with a ControlNet among its parts.

    Args:
        controlnet: a `ControlNetModel`, or a list of several.

    The others are those of `StableDiffusionPipeline`.
    """

    parts: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer", "unet", "controlnet", "scheduler")
    nullable: ClassVar[tuple[str, ...]] = (*StableDiffusionPipeline.nullable, "controlnet")

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        unet: UNet2DConditionModel | None,
        controlnet: nn.Module | list[nn.Module] | tuple[nn.Module, ...] | None,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: None = None,
        requires_safety_checker: bool = False,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder,
            requires_safety_checker,
        )
        self.controlnet = controlnet


def by_network(image: Pictures) -> Pictures:
    """Pictures for several ControlNets and prompts: the list that has a list for each prompt, as one for each network.

    Raises:
        ValueError: the prompts have not as many pictures each.
    """
    if not isinstance(image, (list, tuple)) or not any(isinstance(each, (list, tuple)) for each in image):
        return image
    if len({len(each) if isinstance(each, (list, tuple)) else None for each in image}) != 1:
        raise ValueError("image must have as many pictures for each prompt: one for each ControlNet")
    return [list(of_one) for of_one in zip(*image, strict=True)]


def own_size(given: dict[str, Any], factor: int) -> dict[str, int]:
    """The height and the width of a call, which are those of its image unless it says so."""
    height, width = picture_size(given["image"], factor)
    return {
        "height": height if given.get("height") is None else given["height"],
        "width": width if given.get("width") is None else given["width"],
    }


class StableDiffusionControlNetPipeline(_Controlled):
    """Images from texts and from what a ControlNet is shown, the `image` of a call.

    The arguments of a call are those of `StableDiffusionPipeline`; in order: prompt, image, height, width, … For
    several ControlNets, `image` is a list with a picture for each; or for several prompts a list of such lists.
    """

    @in_order([*_FROM_TEXT, *_ENDING], without=["control_image", *_OF_STARTS])
    def __call__(self, *args: Any, **options: Any) -> Any:
        given = named(self, args, options, "image")
        image = by_network(given.pop("image", None))
        return super().__call__(**given, control_image=image)


class StableDiffusionControlNetImg2ImgPipeline(FamiliarImageToImage, _Controlled):
    """A picture made anew from its noised self, steered by what a ControlNet is shown, the `control_image` of a call.

    The arguments of a call are those of `StableDiffusionPipeline`; in order: prompt, image, control_image, …;
    `controlnet_conditioning_scale` is 0.8 unless told.
    """

    @in_order([*_FROM_PICTURE, *_ENDING], controlnet_conditioning_scale=0.8)
    def __call__(self, *args: Any, **options: Any) -> Any:
        given = {"controlnet_conditioning_scale": 0.8, **named(self, args, options, "image", "control_image")}
        return super().__call__(**given)


class StableDiffusionControlNetInpaintPipeline(FamiliarInpaint, _Controlled):
    """A part of a picture made anew, where a mask is white, steered by what a ControlNet is shown.

    The arguments of a call are those of `StableDiffusionPipeline`; in order: prompt, image, mask_image, control_image,
    …; `strength` is 1 and `controlnet_conditioning_scale` 0.5 unless told, and pictures have the size of `image`.
    """

    @in_order([*_INPAINT, *_ENDING], strength=1.0, controlnet_conditioning_scale=0.5)
    def __call__(self, *args: Any, **options: Any) -> Any:
        given = named(self, args, options, "image", "mask_image", "control_image")
        given = {"strength": 1.0, "controlnet_conditioning_scale": 0.5, **given}
        given |= own_size(given, self.vae_scale_factor)
        return super().__call__(**given)
