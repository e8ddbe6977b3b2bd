"""The loop: from noise to a sample, one step at a time.

`sample` is a generator: progress, preview, trajectory, steering and early stop are what a `for` loop makes of it.

    for step in sample(denoiser, x, plan):
        progress.update()                      # progress
        show(step.pred_original_sample)        # preview
        step.sample = step.sample + nudge      # steering
        if good_enough(step): break            # early stop
    image = step.sample
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeAlias

import torch
from torch import Tensor

from ddim.errors import NonFiniteError
from ddim.noise import Generators
from ddim.plan import SamplingPlan
from ddim.process import Eta, Order
from ddim.step import Row, carry_on, fields_repr

__all__ = ["Denoiser", "Pipeline", "SampleStep", "Scheduler", "sample"]

# (x, timestep) -> what the network predicts for x: x (batch, …); timestep a 0-dim int64 tensor on the host.
Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Scheduler(Protocol):
    """What makes plans; `ddim.DDIMScheduler` is one."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments."""

    def from_config(self, config: Mapping[str, Any], **overrides: Any) -> Self:
        """Another one, with some arguments changed."""

    def plan(self, num_inference_steps: int | None = None, *, eta: Eta = 0.0, order: Order = 1) -> SamplingPlan:
        """The table of a run."""


class Pipeline(Protocol):
    """What interpolation, evaluation and the commands need of a pipeline, whatever it draws.

    A run of any kind is `sample(pipe.denoiser(plan, count, …), x, plan)` between `encode` and `decode`; inversion,
    editing and search need no more than the denoiser. `ddim.pipelines.DiffusionPipeline` is one.
    """

    @property
    def scheduler(self) -> Scheduler:
        """What the model was trained with."""

    @property
    def components(self) -> Mapping[str, Any]:
        """The networks and the scheduler by their names."""

    @property
    def device(self) -> torch.device:
        """Where the networks run."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the samples."""

    @property
    def draws_texts(self) -> bool:
        """Whether it draws what a text says, rather than classes or nothing in particular."""

    @property
    def class_count(self) -> int | None:
        """How many classes can be asked for; None where the model knows none."""

    def denoiser(self, *args: Any, **conditions: Any) -> Denoiser:
        """`denoiser(plan, count, …)`: the network as `sample` wants it.

        It will be asked at the plan's timesteps, about `count` samples at a time, under the conditions that the
        pipeline's call names too.
        """

    def sample_shape(self, count: int) -> tuple[int, ...]:
        """The shape of `count` samples in model space, (count c h w)."""

    def picture_shape(self) -> tuple[int, int, int]:
        """What is drawn: (channels, height, width) in pixels."""

    def encode(self, pictures: Any) -> Tensor:
        """Pictures as the clean samples (b c h w) that they are in model space; the same every time."""

    def decode(self, x: Tensor, output_type: Literal["pil", "np", "pt"] = "pil") -> Any:
        """What `encode` undoes: clean samples (b c h w) as pictures."""


@dataclass(repr=False)
class SampleStep:
    """One step of a run, after it was made.

    Attributes:
        index: 0 to len(plan) - 1.
        timestep: at which the network was asked.
        previous_timestep: where the step led; -1 is the image.
        sample: x_prev. The next step starts from it: assign another tensor to steer.
        pred_original_sample: the predicted x0, or None if it was not asked for.
        model_output: what the network predicted; None at a step that asked it nothing.
    """

    index: int
    timestep: int
    previous_timestep: int
    sample: Tensor
    pred_original_sample: Tensor | None
    model_output: Tensor | None

    def __repr__(self) -> str:
        to = "the image" if self.previous_timestep < 0 else f"timestep {self.previous_timestep}"
        title = f"SampleStep {self.index}: from timestep {self.timestep} to {to}"
        return fields_repr(self, title, ("sample", "pred_original_sample", "model_output"))

    @classmethod
    def of(
        cls, index: int, row: Row, sample: Tensor, pred_original_sample: Tensor | None, model_output: Tensor | None
    ) -> SampleStep:
        """The step that a row of a plan is."""
        return cls(index, row.timestep, row.previous_timestep, sample, pred_original_sample, model_output)


def sample(
    denoiser: Denoiser,
    x: Tensor,
    plan: SamplingPlan,
    *,
    generator: Generators = None,
    use_clipped_model_output: bool = False,
    return_x0: bool = True,
) -> Iterator[SampleStep]:
    """Run a plan.

    Args:
        denoiser: the network, or what wraps it. One that predicts its variance too (twice the channels) is cut.
        x: where to start, (batch, …): noise, or for an inverse plan the image.
        plan: from `DDIMScheduler.plan`.
        generator: of the noise, where the plan's eta is not 0: one, or a list with one for each sample.
        use_clipped_model_output: see `SamplingPlan.step`.
        return_x0: False spares the predicted x0.

    Yields:
        A `SampleStep` after each step; its tensors are never written to again.

    Raises:
        NonFiniteError: the network gave NaN or infinity; names the step. On an accelerator the check waits for the end
            of the run, so as not to hold it up.
    """
    timesteps = torch.tensor(plan.timesteps)
    sums: list[Tensor] = []  # of the network's outputs, looked at when that does not hold up the device
    last: Tensor | None = None  # the predicted x0 of the step before, for a plan of second order
    for index, row in enumerate(plan):
        output = denoiser(x, timesteps[index])
        if output.ndim == x.ndim > 1 and output.shape[1] == 2 * x.shape[1]:
            output = output[:, : x.shape[1]]
        output = output.clone()  # a denoiser may keep its buffer and write to it in the next step
        total = output.detach().sum(dtype=torch.float32)
        if x.device.type != "cpu":
            sums.append(total)
        elif not math.isfinite(total.item()):
            raise not_finite(index, plan)
        prev, original = plan.step(
            output,
            row.timestep,
            x,
            use_clipped_model_output=use_clipped_model_output,
            generator=generator,
            return_x0=return_x0 or plan.order == 2,
        )
        if original is not None and plan.order == 2:
            if last is not None:
                prev = carry_on(prev, original, last, row.carried)
            last = original
        step = SampleStep.of(index, row, prev, original, output)
        yield step
        x = step.sample
    if sums and not bool(torch.stack(sums).isfinite().all()):
        raise not_finite(next(i for i, total in enumerate(sums) if not total.isfinite()), plan)


def not_finite(index: int, plan: SamplingPlan) -> NonFiniteError:
    """The error of a run whose network gave NaN or infinity at the step of this index."""
    return NonFiniteError(
        f"the network's output is not finite at step {index + 1} of {len(plan)} "
        f"(timestep {plan.timesteps[index]}): check its input and its weights; "
        "float16 overflows in some networks: try bfloat16 or float32"
    )
