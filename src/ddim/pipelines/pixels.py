"""DDIMPipeline: images from a U-Net on pixels, unconditional or by class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, overload

import numpy as np
import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.guidance import guide
from ddim.images import OUTPUT_TYPES, OutputType, to_images
from ddim.models import ClassTimeCache, TimeCache, UNet2DModel
from ddim.models.core import hold
from ddim.models.replaced import is_replaced
from ddim.models.snapshot import Snapshot
from ddim.noise import Generators
from ddim.pipelines.base import DiffusionPipeline, same_shape
from ddim.pipelines.inputs import Pictures, to_tensor
from ddim.pipelines.outputs import Array, Drawn, ImagePipelineOutput, PlainOutput
from ddim.pipelines.recommended import plan_of_call, warn_if_not_trained
from ddim.pipelines.runs import one_backend
from ddim.plan import SamplingPlan
from ddim.process import Eta, Order
from ddim.sampling import Denoiser, sample
from ddim.scheduler import DDIMScheduler
from ddim.scheduler.recommended import choose_guidance

# How many numbers a run may compute of its timesteps and classes before its first step, and keep; 64 MiB in float32.
LARGEST_CACHE = 2**24


class DDIMPipeline(DiffusionPipeline):
    """Images from a U-Net on pixels.

    Args:
        unet: predicts what `scheduler.config.prediction_type` says. If it has class embeddings, the last one is taken
            for "no class": what guidance compares with, and what is drawn when no class is asked for.
        scheduler: any scheduler with a config that `DDIMScheduler.from_config` accepts.
    """

    parts: ClassVar[tuple[str, ...]] = ("unet", "scheduler")
    classes: ClassVar[Mapping[str, tuple[str, ...]]] = {"unet": ("UNet2DModel",)}
    unet: UNet2DModel
    scheduler: DDIMScheduler

    def __init__(self, unet: UNet2DModel, scheduler: Any) -> None:
        super().__init__(unet=unet, scheduler=scheduler)

    @overload  # type: ignore[override]
    def __call__(self, *args: Any, return_dict: Literal[False], **options: Any) -> PlainOutput: ...
    @overload
    def __call__(self, *args: Any, output_type: Literal["np"], **options: Any) -> ImagePipelineOutput[Array]: ...
    @overload
    def __call__(self, *args: Any, output_type: Literal["pt"], **options: Any) -> ImagePipelineOutput[Tensor]: ...
    @overload
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        eta: Eta = 0.0,
        num_inference_steps: int | None = None,
        use_clipped_model_output: bool | None = None,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[True] = True,
        *,
        class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[int, int] | None = None,
        order: Order | None = None,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        timesteps: Sequence[int] | None = None,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict[str, Any]], Any] | None = None,
    ) -> ImagePipelineOutput[Drawn]: ...
    @torch.no_grad()  # type: ignore[misc]  # the short ones above take any arguments
    @one_backend
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        eta: Eta = 0.0,
        num_inference_steps: int | None = None,
        use_clipped_model_output: bool | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        *,
        class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[int, int] | None = None,
        order: Order | None = None,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        timesteps: Sequence[int] | None = None,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict[str, Any]], Any] | None = None,
    ) -> ImagePipelineOutput[Any] | PlainOutput:
        """Make images.

        Args:
            batch_size: how many; a list of class labels, seeds or generators, or latents, say so too.
            generator: of all noise: one for the batch, or a list with one for each image.
            eta: η of equation 16: 0 is DDIM, 1 is DDPM; or "sigma_hat".
            num_inference_steps: N, from 1 to T. What the scheduler's config recommends unless told, or else 50.
            use_clipped_model_output: see `SamplingPlan.step`.
            output_type: "pil", "np" or "pt".
            return_dict: False gives a plain tuple (images,).
            class_labels: for a class-conditional model; one, or one for each image.
            guidance_scale: how much to prefer the class over none; 1 is no guidance. What the scheduler's config
                recommends unless told, or else 1.
            guidance_rescale: φ in [0, 1], see `guidance.rescale_noise`. What is recommended unless told, or else 0.
            guidance_interval: guide only at timesteps from the first to the second.
            order: 2 for steps of second order, at eta=0: as many evaluations, nearer the ODE's solution. What is
                recommended with the recommended number of steps unless told, or else 1.
            seed: instead of a generator: image k of a seed is the same whatever the batch size, device or thread
                count. A list has one for each image.
            latents: x_T, (batch, channels, height, width), instead of noise.
            timesteps: the timesteps themselves, instead of `num_inference_steps`.
            callback_on_step_end: called as (pipe, index, timestep, {"latents": …, "pred_original_sample": …}) after
                each step. A dict that it returns may have other "latents" to go on with; False stops here.

        Raises:
            ConfigError, ValueError, TypeError: settings, shapes or types that cannot work, before anything is run.
            NonFiniteError: the network gave NaN; names the step.

        Warns:
            UserWarning: the network was distilled for other timesteps, or to need no guidance.
        """
        self.require_parts("unet", "scheduler")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r} is none of {', '.join(OUTPUT_TYPES)}")
        if batch_size == 1:
            batch_size = _count(class_labels, seed, generator, latents)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive int, not {batch_size!r}")
        plan = plan_of_call(self.scheduler, num_inference_steps, eta, timesteps, order)
        guidance_scale, guidance_rescale = choose_guidance(
            self.scheduler.config, guidance_scale, guidance_rescale, usual=1.0
        )
        denoiser = self.denoiser(
            plan,
            batch_size,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            guidance_interval=guidance_interval,
        )
        hold(self.unet).is_alone = callback_on_step_end is None
        x, generator = self._initial_noise(self._shape(batch_size, latents), generator, seed, latents)
        with self.in_use(self.unet), self.progress_bar(len(plan)) as bar:
            for step in sample(
                denoiser, x, plan, generator=generator, use_clipped_model_output=bool(use_clipped_model_output)
            ):
                x = step.sample
                bar.update()
                if callback_on_step_end is not None:
                    state = {"latents": x, "pred_original_sample": step.pred_original_sample}
                    answer = callback_on_step_end(self, step.index, step.timestep, state)
                    if answer is False:
                        break
                    if isinstance(answer, dict):
                        x = step.sample = same_shape(answer.get("latents", x), x)
        images = self.decode(x, output_type)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _shape(self, batch_size: int, latents: Tensor | None) -> tuple[int, ...]:
        """The shape of a batch of samples: of the size in the U-Net's config or, if it says none, of the latents'."""
        size = self.unet.config.sample_size
        if size is None:
            if latents is None:
                raise ConfigError("the U-Net's config has no sample_size: give latents")
            size = tuple(latents.shape[2:])
        sides = (size, size) if isinstance(size, int) else size
        if (
            not isinstance(sides, (tuple, list))
            or len(sides) != 2
            or not all(isinstance(n, int) and n > 0 for n in sides)
        ):
            raise ConfigError(f"the U-Net's sample_size must be one or two positive ints, not {size!r:.100}")
        return batch_size, self.unet.config.in_channels, *sides

    def sample_shape(self, count: int) -> tuple[int, ...]:
        """The shape of `count` samples, (count c h w).

        Raises:
            ConfigError: the U-Net's config does not say it.
        """
        return self._shape(count, None)

    def picture_shape(self) -> tuple[int, int, int]:
        """What is drawn: (channels, height, width) in pixels."""
        _, channels, height, width = self.sample_shape(1)
        return channels, height, width

    @property
    def draws_texts(self) -> bool:
        return False

    @property
    def class_count(self) -> int | None:
        """How many classes can be asked for: one less than there are embeddings, as the last stands for none."""
        classes: int | None = self.unet.config.num_class_embeds
        return None if classes is None else classes - 1

    def encode(self, pictures: Pictures) -> Tensor:
        """Pictures as samples (b c h w) in [-1, 1] of the model's size."""
        _, channels, height, width = self.sample_shape(1)
        pixels = to_tensor(pictures, (height, width), factor=1, channels=channels, latents=0)
        return pixels.to(self.device, self.dtype)

    def decode(self, x: Tensor, output_type: OutputType = "pil") -> Any:
        """Samples (b c h w) as pictures; see `images.to_images`."""
        return to_images(x, output_type)

    def denoiser(
        self,
        plan: SamplingPlan,
        count: int,
        *,
        class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[int, int] | None = None,
    ) -> Denoiser:
        """The U-Net for `count` samples of these classes; fastest at the plan's timesteps. Arguments as in a call.

        Raises:
            ConfigError, ValueError: classes or guidance that are not for this model, or labels that do not fit.
        """
        labels = self.labels(class_labels, count)
        if labels is None:
            if guidance_scale != 1:
                warnings.warn("this model knows no classes: guidance_scale has no effect", stacklevel=3)
            warn_if_not_trained(self.scheduler, plan, 1.0)
            return self._predictor(plan, None)
        warn_if_not_trained(self.scheduler, plan, guidance_scale)
        none = torch.full_like(labels, self.unet.config.num_class_embeds - 1)
        conditional = self._predictor(plan, labels)
        return guide(
            both=conditional if guidance_scale == 1 else self._predictor(plan, torch.cat([none, labels])),
            conditional=conditional,
            scale=guidance_scale,
            rescale=guidance_rescale,
            interval=guidance_interval,
        )

    def labels(self, class_labels: int | Sequence[int] | Tensor | None, count: int) -> Tensor | None:
        """The class of each of `count` samples, (count) on the U-Net's device; None for a model that knows no classes.

        Args:
            class_labels: as in a call. Where none are asked for, it is the last one, which stands for no class.

        Raises:
            ConfigError, ValueError: classes that are not for this model, or labels that do not fit.
        """
        config = self.unet.config
        if config.class_embed_type is not None:
            raise ConfigError(
                f"DDIMPipeline is for integer classes, not class_embed_type={config.class_embed_type!r}: "
                "pass your own denoiser to ddim.sample"
            )
        classes = config.num_class_embeds
        if classes is None:
            if class_labels is not None:
                raise ConfigError("this model knows no classes: class_labels are not for it")
            return None
        if class_labels is None:
            return torch.full((count,), classes - 1, device=self.device)
        return _as_labels(class_labels, count, classes).to(self.device)

    def _predictor(self, plan: SamplingPlan, labels: Tensor | None) -> Denoiser:
        """The U-Net for one batch of labels (b). What it makes of the plan's timesteps and the labels is computed here,
        not at each step, unless it would be more than `LARGEST_CACHE` numbers or a part of the U-Net was replaced; it
        is made anew when weights have changed. The run keeps the backend that the U-Net has at its beginning.
        """
        unet, held = self.unet, hold(self.unet)
        given, planned = () if labels is None else (labels,), set(plan.timesteps)
        classes = rows = None
        if labels is not None:
            classes, rows = labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        count = len(plan) * (1 if classes is None else len(classes))
        can_cache = hasattr(unet, "project_time") and count * sum(unet.time_widths) <= LARGEST_CACHE
        cache: TimeCache | ClassTimeCache | None = None
        made_for: tuple[Snapshot | None, bool] = (None, False)

        def look() -> None:
            nonlocal cache, made_for
            weights = held.look()
            if weights is made_for[0] and weights is not None and not held.has_looked:
                held.is_whole = made_for[1]
                return
            state = weights, can_cache and not is_replaced(unet)
            held.is_whole = state[1]
            if state == made_for:
                return
            made_for, cache = state, None
            if state[1]:
                times = unet.project_time(torch.tensor(plan.timesteps), classes)
                cache = times if rows is None else ClassTimeCache(times, rows)

        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            look()
            is_known = cache is not None and timestep.ndim == 0 and timestep.is_cpu and int(timestep) in planned
            with held:
                out: Tensor = unet(x, timestep, *given, **({"time_cache": cache} if is_known else {})).sample
            return out.chunk(2, dim=1)[0] if out.shape[1] == 2 * x.shape[1] else out  # without a learned variance

        look()
        return predict


def _count(*given: Any) -> int:
    """How many images are asked for by arguments that may hold one thing for each."""
    several = [each for each in given if isinstance(each, (Sequence, Tensor, np.ndarray)) and np.ndim(each) > 0]
    return max(map(len, several), default=1)


def _as_labels(labels: Any, batch_size: int, classes: int) -> Tensor:
    """Class labels as a tensor (b,)."""
    try:
        tensor = torch.as_tensor(labels).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"class_labels must be ints, not {labels!r:.100}") from error
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"class_labels must be ints, not {labels!r:.100}")
    if len(tensor) not in (1, batch_size):
        raise ValueError(f"{len(tensor)} class_labels were given for {batch_size} images: give one, or one for each")
    if not bool(((tensor >= 0) & (tensor < classes)).all()):
        raise ValueError(f"class_labels must be in 0…{classes - 1}: {labels!r:.100}")
    return tensor.long().expand(batch_size)
