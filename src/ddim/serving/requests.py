"""What can be asked of the engine, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ddim.pipelines.inputs import Pictures
from ddim.process import Eta, Order

__all__ = ["Picture", "Request"]


@dataclass(frozen=True)
class Request:
    """One picture, and how it is to be drawn.

    All that is left open is as in a call of the pipeline: what the model recommends, or else what is usual. The picture
    is that of the call with the same settings and the same seed, whatever else the engine draws beside it.

    Attributes:
        prompt: the text, for a model that draws texts.
        negative_prompt: what to keep away from, under guidance; the empty text unless told.
        prompt_2, negative_prompt_2: the same for the second text encoder of Stable Diffusion XL; the first's unless
            told.
        original_size, crops_coords_top_left, target_size, negative_original_size, negative_crops_coords_top_left,
            negative_target_size, aesthetic_score, negative_aesthetic_score: what Stable Diffusion XL is told, as in its
            pipeline's call.
        denoising_start, denoising_end: the shares of the way from which and to which Stable Diffusion XL goes, as in
            its pipeline's call: with a start, `image` has the noise of there, and `strength` is without effect.
        class_label: the class, for a model that knows classes; no class in particular unless told.
        seed: an int of 0 or more; chosen at random unless told. `Picture.seed` says which it was.
        number: which picture of the seed it is: number k is picture k of a call that draws several.
        steps: N, from 1 to T.
        eta: η of equation 16: 0 is DDIM, 1 is DDPM; or "sigma_hat".
        order: 2 for steps of second order, at eta=0.
        spacing: how the N timesteps are chosen, as a scheduler's `timestep_spacing` says it, or "optimized".
        timesteps: the timesteps themselves, falling, instead of `steps` and `spacing`.
        guidance_scale: how much to prefer the text or the class over none.
        guidance_rescale: φ in [0, 1], see `guidance.rescale_noise`.
        guidance_interval: guide only at timesteps from the first to the second, both included.
        width, height: in pixels, whole latents; what the model was trained on unless told. Of a start picture without a
            mask, its own.
        image: one picture to start from: a PIL image, an array (h w c) or a tensor (c h w), see `pipelines.inputs`.
        strength: in [0, 1], the share of the steps that are made from `image`, and so how much of it is lost; as the
            pipeline's call has it unless told.
        mask: one picture, white where `image` is to be painted anew.
        control_image: what the pipeline's ControlNets are shown: one picture, or of several ControlNets a list with one
            for each; None draws without them.
        controlnet_conditioning_scale, control_guidance_start, control_guidance_end: as in the pipeline's call: one
            number, or a list with one for each ControlNet; unless told as the call has them.
        guess_mode: as in the pipeline's call.
        previews: of how many steps, at most, the predicted x0 is shown on the way, evenly spread over the run.
        preview_every: show the predicted x0 of every so manieth step, instead.
        deadline: in how many seconds from now the request has to be finished; else it fails with a
            `DeadlineExceededError`. None waits for ever.
        output_type: "pil" for PIL images; "pt" for tensors (c h w) in [0, 1] on the CPU. Previews are of the same type.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    original_size: Sequence[int] | None = None
    crops_coords_top_left: Sequence[int] | None = None
    target_size: Sequence[int] | None = None
    negative_original_size: Sequence[int] | None = None
    negative_crops_coords_top_left: Sequence[int] | None = None
    negative_target_size: Sequence[int] | None = None
    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    class_label: int | None = None
    seed: int | None = None
    number: int = 0
    steps: int | None = None
    eta: Eta = 0.0
    order: Order | None = None
    spacing: str | None = None
    timesteps: Sequence[int] | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: Sequence[int] | None = None
    width: int | None = None
    height: int | None = None
    image: Pictures | None = None
    strength: float | None = None
    mask: Pictures | None = None
    control_image: Pictures | None = None
    controlnet_conditioning_scale: float | Sequence[float] | None = None
    guess_mode: bool = False
    control_guidance_start: float | Sequence[float] | None = None
    control_guidance_end: float | Sequence[float] | None = None
    previews: int = 0
    preview_every: int | None = None
    deadline: float | None = None
    output_type: Literal["pil", "pt"] = "pil"


@dataclass(frozen=True)
class Picture:
    """What a request has become.

    Attributes:
        image: a PIL image or, if the request says so, a tensor (c h w) in [0, 1] on the CPU.
        seed: of its noise; a request with this seed gives this picture again.
        settings: all that it was drawn by, with what the request left open, by the names of `Request`; no pictures.
        is_flagged: what the pipeline's safety checker says of it; None where there is none.
        seconds: from submission to the picture, of which `waited` were spent in the queue.
    """

    image: Any
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_flagged: bool | None = None
    seconds: float = 0.0
    waited: float = 0.0
