"""What one call of a pipeline on latents does, whatever its family: the steps from what is asked for to pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ddim.errors import ConfigError
from ddim.models import MultiControlNetModel
from ddim.noise import Generators
from ddim.pipelines.adapters import TakesAdapters
from ddim.pipelines.base import same_shape
from ddim.pipelines.control import Control, ControlRequest, check_fits, networks_of
from ddim.pipelines.denoiser import TextDenoiser
from ddim.pipelines.inputs import check_callback
from ddim.pipelines.outputs import LatentOutputType
from ddim.pipelines.recommended import plan_of_call
from ddim.pipelines.runs import Run, Runs
from ddim.pipelines.starts import Origin, Start, StartsFromPictures, Task
from ddim.plan import SamplingPlan
from ddim.process import Eta, Order
from ddim.sampling import SampleStep, sample
from ddim.scheduler.recommended import choose_guidance

_OUTPUT_TYPES = get_args(LatentOutputType)

# (pipeline, index of the step, timestep, what was asked for by its names) -> what to change, by the same names; or
# False to stop.
Callback: TypeAlias = Callable[[Any, int, Tensor, dict[str, Any]], Any]


# Under which names pipelines are saved that were given a ControlNet.
CONTROLLED = {
    f"{family}{task}Pipeline": f"{family}ControlNet{task}Pipeline"
    for family in ("StableDiffusion", "StableDiffusionXL")
    for task in ("", "Img2Img", "Inpaint")
}


@dataclass(frozen=True)
class Call:
    """What a call asks for. The arguments are documented at the calls of the pipelines.

    Attributes:
        prompts: checks the prompts, and gives the request that the pipeline's `_conditions` takes.
        origin: where to start.
        control: what is asked of ControlNets; None where there is no picture for them.
    """

    prompts: Callable[[], Any]
    origin: Origin
    num_inference_steps: int | None
    timesteps: Sequence[int] | None
    eta: Eta
    order: Order | None
    guidance_scale: float | None
    guidance_rescale: float | None
    guidance_interval: tuple[int, int] | None
    num_images_per_prompt: int | None
    generator: Generators
    seed: int | Sequence[int] | None
    clip_skip: int | None
    cross_attention_kwargs: Mapping[str, Any] | None
    output_type: LatentOutputType
    callback_on_step_end: Callback | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    callback: Callable[[int, Tensor, Tensor], Any] | None
    callback_steps: int | None
    denoising_start: float | None = None
    denoising_end: float | None = None
    control: ControlRequest | None = None


class Draws(Runs, TakesAdapters, StartsFromPictures):
    """A pipeline on latents whose calls are `Call`s."""

    usual_guidance: ClassVar[float] = 7.5  # the scale of a call that says none, of a model that recommends none
    extra: ClassVar[tuple[str, ...]] = ("controlnet",)
    controlnet: Any = None  # a ControlNetModel or a MultiControlNetModel

    def __init__(self, **components: Any) -> None:
        super().__init__(**components)
        self._running = []

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "controlnet":
            if isinstance(value, (list, tuple)):
                value = MultiControlNetModel(value)
            if value is not None and not isinstance(value, nn.Module):
                raise TypeError(
                    f"controlnet must be a ControlNetModel, a list of them or None, not {type(value).__name__}"
                )
            if value is not None or name in self.parts:
                self.components[name] = value
            else:
                self.components.pop(name, None)
        super().__setattr__(name, value)

    @property
    def _networks(self) -> list[nn.Module]:
        return [network for part in super()._networks for network in networks_of(part)]

    def _class_name(self) -> str:
        own = super()._class_name()
        return CONTROLLED.get(own, own) if self.controlnet is not None else own

    def _draw(self, call: Call) -> tuple[Any, list[bool] | None]:
        """Pictures as the call wants them, and what the safety checker says of each; errors as those of a call."""
        self.require_parts("unet", "vae", "scheduler")
        attention_kwargs = self._attention_kwargs(call.cross_attention_kwargs)
        given = call.callback_on_step_end
        wanted = tuple(getattr(given, "tensor_inputs", call.callback_on_step_end_tensor_inputs) or ())
        if call.output_type not in _OUTPUT_TYPES:
            raise ValueError(f"output_type={call.output_type!r} is none of {', '.join(_OUTPUT_TYPES)}")
        check_callback(call.callback_steps, wanted, self._callback_tensor_inputs)
        if call.callback is not None:
            if given is not None:
                raise ValueError("give callback_on_step_end or callback, which is its older kind, not both")
            given, wanted = _old_callback(call.callback, call.callback_steps), ("latents",)
        call.origin.check(call.output_type)
        networks = self._networks_in_control(call.control)
        origin = self.sized(call.origin, call.control, len(networks))
        request = call.prompts()
        scale, rescale = choose_guidance(
            self.scheduler.config, call.guidance_scale, call.guidance_rescale, usual=self.usual_guidance
        )
        plan = self._plan_of(call)
        task = self.task(origin, plan, request.size, call.num_images_per_prompt, call.generator, call.seed)

        is_guided = self.is_guided(scale)
        rows, columns = (side * self.vae_scale_factor for side in task.shape[2:])
        condition, negative = self._conditions(request, is_guided, call.clip_skip, (rows, columns))
        start = self.start(task)
        with self.in_use(self.controlnet), self.in_use(self.unet):
            controls: list[Control] = []
            if call.control is not None:
                controls = call.control.controls(networks, (rows, columns), task.spread, task.canvas.crop)
            denoiser = self.denoiser_under(
                plan,
                len(start.x),
                condition,
                negative,
                scale=scale,
                rescale=rescale,
                interval=call.guidance_interval,
                channels=start.channels,
                cross_attention_kwargs=attention_kwargs,
                controls=controls,
            )
            about = Run(
                len(plan),
                scale,
                is_guided,
                rescale,
                call.clip_skip,
                call.cross_attention_kwargs,
                call.denoising_start,
                call.denoising_end,
            )
            denoiser.is_alone(given is None)
            with self._run(about) as run:
                x = self._sample(run, task, start, denoiser, given, wanted)
            # They keep the networks' weights where they are now, and offloaded networks are about to go.
            del denoiser, controls
        drawn, found = self.drawn(x, call.output_type)
        return task.canvas.put_back(drawn), found

    def _networks_in_control(self, control: ControlRequest | None) -> list[Any]:
        """The ControlNets that a call uses.

        Raises:
            ConfigError: there are some and no picture for them, or a picture and none of them; or one does not fit.
        """
        if (self.controlnet is None) == (control is None):
            networks = [] if control is None else networks_of(self.controlnet)
            for network in networks:
                check_fits(network.config, self.unet.config)
            return networks
        if control is None:
            raise ConfigError(
                "this pipeline has a ControlNet, which needs a picture: give control_image, or set pipe.controlnet=None"
            )
        raise ConfigError("control_image is for a ControlNet, and this pipeline has none: assign pipe.controlnet")

    def sized(self, origin: Origin, control: ControlRequest | None, networks: int) -> Origin:
        """An origin that says its size: where nothing else does, that of the picture for the ControlNet."""
        if control is None or origin.image is not None or origin.latents is not None or None not in origin.size:
            return origin
        height, width = origin.size
        own = control.size(networks, self.vae_scale_factor)
        return replace(origin, size=(own[0] if height is None else height, own[1] if width is None else width))

    def _plan_of(self, call: Call) -> SamplingPlan:
        """The steps that a call makes."""
        starts_whole = call.origin.image is None or call.denoising_start is not None
        share = 1.0 if starts_whole else call.origin.strength
        plan = plan_of_call(self.scheduler, call.num_inference_steps, call.eta, call.timesteps, call.order, share)
        is_part = call.denoising_start is not None or call.denoising_end is not None
        return plan.part(call.denoising_start, call.denoising_end) if is_part else plan

    def _attention_kwargs(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """What is handed on to attention processors: what is given, without the strength of adapters.

        Raises:
            TypeError: it is no dict.
            ValueError: it weakens adapters that are in use.
        """
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"cross_attention_kwargs must be a dict, not {type(given).__name__}")
        given = dict(given or {})
        if given.pop("scale", 1) != 1 and self.get_active_adapters():
            raise ValueError("cross_attention_kwargs has a scale: how strong an adapter is, set_adapters says")
        return given

    def _sample(
        self,
        run: Run,
        task: Task,
        start: Start,
        denoiser: TextDenoiser,
        callback: Callback | None,
        wanted: tuple[str, ...],
    ) -> Tensor:
        """The latents after the last step, or after the one that the run was stopped at."""
        x = start.x
        return_x0 = "pred_original_sample" in wanted
        with self.progress_bar(len(task.plan)) as bar:
            for step in sample(denoiser, x, task.plan, generator=task.generator, return_x0=return_x0):
                if start.keep is not None:
                    step.sample = start.keep(step.sample, step.index)
                bar.update()
                scale = run.guidance_scale
                going_on = True
                if callback is not None:
                    going_on, start = self._call_back(callback, step, start, denoiser, wanted)
                if run.guidance_scale != scale:
                    denoiser.weigh(run.guidance_scale if self.is_guided(run.guidance_scale) else 1.0)
                x = step.sample
                if not going_on or run.interrupted:
                    break
        return x

    def _call_back(
        self,
        callback: Callback,
        step: SampleStep,
        start: Start,
        denoiser: TextDenoiser,
        wanted: tuple[str, ...],
    ) -> tuple[bool, Start]:
        """Show a step to the caller and take over what comes back: whether to go on, and with which mask."""
        masks = (
            start.shown(1 if denoiser.negative is None else 2) if {"mask", "masked_image_latents"} & {*wanted} else {}
        )
        shown = {
            **denoiser.shown(),
            **masks,
            "latents": step.sample,
            "pred_original_sample": step.pred_original_sample,
        }
        missing = [name for name in wanted if name not in shown]
        if missing:
            raise ValueError(f"there is no {' and no '.join(missing)} in this run to be shown to the callback")
        answer = callback(self, step.index, torch.tensor(step.timestep), {name: shown[name] for name in wanted})
        if isinstance(answer, Mapping):
            step.sample = same_shape(answer.get("latents", step.sample), step.sample)
            denoiser.change(answer)
            others = {name: answer[name] for name in masks if answer.get(name, masks[name]) is not masks[name]}
            if others:
                start = start.changed(others)
                if start.channels is not None:
                    denoiser.see(start.channels)
        return answer is not False, start


def _old_callback(callback: Callable[[int, Tensor, Tensor], Any], every: int | None) -> Callback:
    """A callback of diffusers' older kind, (index, timestep, latents), as one of the newer kind."""

    def adapted(pipe: Any, index: int, timestep: Tensor, values: dict[str, Any]) -> None:
        if index % (every or 1) == 0:
            callback(index, timestep, values["latents"])

    return adapted
