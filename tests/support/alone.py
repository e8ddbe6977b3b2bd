"""What a request of the engine has to give: the picture of the pipeline's own call, alone, with the same settings."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from ddim.serving import Request


def alone(pipe: Any, request: Request) -> Tensor:
    """The picture that a request asks for, (c h w) in [0, 1]."""
    images = 1 + request.number
    given: dict[str, Any] = {
        "num_inference_steps": request.steps,
        "eta": request.eta,
        "order": request.order,
        "timesteps": request.timesteps,
        "guidance_scale": request.guidance_scale,
        "guidance_rescale": request.guidance_rescale,
        "guidance_interval": request.guidance_interval,
        "seed": request.seed,
        "output_type": "pt",
    }
    if pipe.draws_texts:
        given |= {"prompt": request.prompt, "negative_prompt": request.negative_prompt, "image": request.image}
        given |= {"mask_image": request.mask, "width": request.width, "height": request.height}
        given |= {"num_images_per_prompt": images}
        given |= {} if request.strength is None else {"strength": request.strength}
    else:
        given |= {"class_labels": request.class_label, "batch_size": images}
    if request.control_image is not None:
        given["control_image"], given["guess_mode"] = request.control_image, request.guess_mode
        for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"):
            given |= {} if getattr(request, name) is None else {name: getattr(request, name)}
    elif pipe.components.get("controlnet") is not None:
        pipe = pipe.from_pipe(pipe, controlnet=None)
        pipe.set_progress_bar_config(disable=True)
    scheduler = pipe.scheduler
    if request.spacing is not None:
        pipe = pipe.from_pipe(pipe, scheduler=scheduler.from_config(scheduler.config, timestep_spacing=request.spacing))
        pipe.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of distilled networks at other steps; the engine's own are looked at
        picture: Tensor = pipe(**given).images[request.number]
    return picture


def assert_alone(pipe: Any, request: Request, picture: Any) -> None:
    """Check that a picture is what its request asks for, whatever ran beside it."""
    expected = alone(pipe, request)
    assert picture.image.shape == expected.shape, request
    difference = float((picture.image - expected).abs().max())
    assert difference < 1e-4, (difference, request)
