"""Pictures like another one, drawn beside the engine, which knows neither noise that was found nor pictures of pixels.

- "inversion": the picture's own noise is found by going the sampler's steps backwards, as in section 5.4 of the DDIM
  paper; then it is turned on the sphere towards fresh noise, by the share that `strength` says, and drawn of.
- "noise", of a model of pixels: noise is added up to the level that `strength` says, and the sampler goes on from
  there. Latent models start from pictures in the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddim.interpolation import slerp
from ddim.inversion import METHODS, keeping, widened
from ddim.noise import gaussian_noise, seeded_generators
from ddim.pipelines import DiffusionPipeline
from ddim.pipelines.recommended import plan_of_call
from ddim.pipelines.xl_sizes import Sizes
from ddim.plan import SamplingPlan
from ddim.sampling import sample
from ddim.scheduler.recommended import choose_guidance, choose_steps
from ddim.serving.models import SIZES, uncontrolled
from ddim.serving.parameters import Variation
from ddim.serving.refusal import Refusal
from ddim.serving.wishes import Wish, is_unsaid, told

__all__ = ["check_inversion", "vary"]

_AT_A_TIME = 4  # pictures
_STEPS = 50  # of an inversion, unless told


def check_inversion(asked: Variation, is_steered: bool = False) -> None:
    """Raise a `Refusal` for what an inversion cannot follow: its steps have no noise, and are of first order.

    Args:
        is_steered: whether there are pictures for ControlNets.
    """
    if asked.method != "inversion":
        return
    if is_steered:
        raise Refusal("the method inversion goes steps without ControlNets backwards: leave it out", "control_image")
    if asked.eta != 0:
        raise Refusal("the method inversion goes steps without noise backwards: leave eta out", "eta")
    if asked.order == 2:
        raise Refusal("the method inversion goes steps of first order backwards: leave order out", "order")
    if asked.spacing == "optimized":
        raise Refusal("the method inversion needs timesteps that are evenly apart: give another spacing", "spacing")


@torch.no_grad()
def vary(
    pipe: DiffusionPipeline, wish: Wish, notice: Callable[[], object] = lambda: None
) -> tuple[list[Image.Image], dict[str, Any]]:
    """The pictures that a wish for a variation asks for.

    Args:
        wish: with a picture to start from.
        notice: called after each step; it may raise to end the run.

    Returns:
        The pictures, and the settings that they were drawn by.

    Raises:
        ConfigError: settings that cannot be followed.
    """
    asked = wish.asked
    assert isinstance(asked, Variation)
    assert wish.start is not None
    pipe = uncontrolled(pipe)
    scheduler = pipe.scheduler
    if asked.spacing is not None:
        scheduler = scheduler.from_config(scheduler.config, timestep_spacing=asked.spacing)
    scale, rescale = _guidance(pipe, asked)
    settings: dict[str, Any] = {
        "prompt": (asked.prompt or "") if pipe.draws_texts else None,
        "negative_prompt": asked.negative_prompt,
        **told(asked),
        "eta": asked.eta,
        "guidance_scale": scale,
        "guidance_rescale": rescale,
        "guidance_interval": asked.guidance_interval,
        "seed": wish.seed,
        "strength": asked.strength,
        "method": asked.method,
    }
    if asked.method == "inversion":
        steps = _STEPS if asked.steps is None else asked.steps
        plan = scheduler.plan(steps).unclipped()
        settings |= {"steps": steps, "order": 1, "spacing": scheduler.config.timestep_spacing}
    else:
        plan = plan_of_call(scheduler, asked.steps, asked.eta, None, asked.order, asked.strength)
        chosen = choose_steps(scheduler.config, asked.steps, asked.order, eta=asked.eta)
        settings |= {"steps": chosen.number, "order": chosen.order, "spacing": chosen.spacing}
    x0 = pipe.encode([wish.start.image])
    numbers, images = range(asked.n), list[Image.Image]()
    found: Tensor | None = None
    for first in numbers[::_AT_A_TIME]:
        part = numbers[first : first + _AT_A_TIME]
        generators = seeded_generators(wish.seed, len(part), first)
        fresh = gaussian_noise((len(part), *x0.shape[1:]), generators, pipe.device, pipe.dtype)
        if asked.method == "inversion":
            if found is None:
                found = _noise_of(pipe, wish, x0, plan, scale, rescale, notice)
            x = slerp(found.to(fresh), fresh, asked.strength)
        else:
            x = scheduler.add_noise(x0.expand(fresh.shape), fresh, plan.timesteps[0])
        denoiser = pipe.denoiser(plan, len(part), **_conditions(pipe, wish, part, scale, rescale))
        for step in sample(denoiser, x, plan, generator=generators, return_x0=plan.order == 2):
            x = step.sample
            notice()
        images += pipe.decode(x)
    return images, settings


def _noise_of(
    pipe: DiffusionPipeline,
    wish: Wish,
    x0: Tensor,
    plan: SamplingPlan,
    scale: float,
    rescale: float,
    notice: Callable[[], object],
) -> Tensor:
    """The noise of the picture, (1 …)."""
    denoiser = pipe.denoiser(plan, 1, **_conditions(pipe, wish, range(1), scale, rescale))
    (found,) = METHODS["ddim"].encode(keeping(denoiser, pipe.dtype), widened(x0), plan, lambda step: notice())
    return found


def _guidance(pipe: DiffusionPipeline, asked: Variation) -> tuple[float, float]:
    """(scale, rescale): none where nothing is said of the picture, or where its noise is to be found exactly."""
    if asked.guidance_scale is None and (asked.method == "inversion" or is_unsaid(asked)):
        return 1.0, 0.0
    usual = getattr(pipe, "usual_guidance", 1.0)
    return choose_guidance(pipe.scheduler.config, asked.guidance_scale, asked.guidance_rescale, usual)


def _conditions(pipe: DiffusionPipeline, wish: Wish, numbers: range, scale: float, rescale: float) -> dict[str, Any]:
    """The arguments of `pipe.denoiser` for some of the pictures."""
    asked = wish.asked
    given: dict[str, Any] = {"guidance_scale": scale, "guidance_rescale": rescale}
    if asked.guidance_interval is not None:
        given["guidance_interval"] = tuple(asked.guidance_interval)
    if pipe.draws_texts:
        prompt = getattr(asked, "prompt", None) or ""
        xl = told(asked)
        sizes = {name: xl.pop(name) for name in SIZES if name in xl}
        more = {"sizes": Sizes(**sizes), "size": wish.size[::-1]} if sizes else {}
        return {**given, "prompt": prompt, "negative_prompt": asked.negative_prompt, **xl, **more}
    if asked.class_label is not None:
        given["class_labels"] = [asked.class_label] * len(numbers)
    return given
