"""The U-Net as a denoiser that looks at a text, with all that does not change between steps computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddim.guidance import guide
from ddim.models.embeddings import guidance_condition
from ddim.models.snapshot import Written
from ddim.pipelines.conditions import Condition, joined
from ddim.pipelines.control import Control, InControl, together
from ddim.pipelines.told import Told
from ddim.plan import SamplingPlan
from ddim.sampling import Denoiser

# What diffusers' callbacks call what a U-Net is told beside the timestep.
SHOWN = {"text_embeds": "add_text_embeds", "time_ids": "add_time_ids"}


class TextDenoiser:
    """A denoiser for one run.

    What does not change between the steps is computed once, see `Told`. If weights or parts of the U-Net change on the
    way, in a callback or another thread, or if a callback writes into the text, all of this is made anew.

    Args:
        unet: a `UNet2DConditionModel`, or a network of another library that is called as one is; so it has no type.
        plan: of the run; the embeddings of its timesteps are made beforehand.
        condition: what the U-Net is told of the texts of b samples.
        negative: the same of the texts to keep away from; None is no guidance.
        scale, rescale, interval: see `guidance.guide`.
        channels: what the U-Net is given beside the sample, (b c h w).
        cross_attention_kwargs: more arguments for the U-Net's attention processors.
        controls: the ControlNets that steer it.
    """

    def __init__(
        self,
        unet: Any,
        plan: SamplingPlan,
        condition: Condition,
        negative: Condition | None,
        *,
        scale: float,
        rescale: float = 0.0,
        interval: tuple[int, int] | None = None,
        channels: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        controls: Sequence[Control] = (),
    ) -> None:
        self.unet = unet
        self.channels = channels
        self._attention = {"cross_attention_kwargs": cross_attention_kwargs} if cross_attention_kwargs else {}
        self._batch = len(condition)
        self._guidance = (scale, rescale, interval)
        timesteps = torch.tensor(plan.timesteps)
        width = unet.config.get("time_cond_proj_dim")
        cond: Tensor | None = None
        if width is not None:  # a U-Net distilled under guidance (Meng et al. 2023) takes the scale as an input
            cond = guidance_condition(torch.tensor([scale], dtype=torch.float64), width)
            cond = cond.to(condition.embeds)  # (1 width)
        self._told = Told(unet, timesteps, self._batch, cond, is_plain=not self._attention)
        self._controls = [InControl(control, plan, self._batch) for control in controls]
        self.negative: Tensor | None = None
        self.look_at(condition if negative is None else joined([negative, condition]))

    @property
    def embeds(self) -> Tensor:
        """What the U-Net's cross-attention looks at: (b s d), or (2·b s d) under guidance, the negative texts first."""
        return self.condition.embeds

    def shown(self) -> dict[str, Tensor | None]:
        """What a callback may see, by diffusers' names; of all of it the negative half comes first under guidance."""
        added = {SHOWN[name]: value for name, value in self.condition.added.items() if name in SHOWN}
        return {"prompt_embeds": self.embeds, "negative_prompt_embeds": self.negative, **added}

    def change(self, given: Mapping[str, Any]) -> None:
        """Take what a callback returned by the names of `shown`: other tensors of the same shapes, or the same.

        Negative embeddings alone change that half.

        Raises:
            ValueError: what is given is not of the shape of what it is to replace.
        """
        embeds, negative = given.get("prompt_embeds"), given.get("negative_prompt_embeds")
        if embeds is None or embeds is self.embeds:
            embeds = self.embeds
            if negative is not None and self.negative is not None and negative is not self.negative:
                embeds = torch.cat([negative.to(embeds), embeds[self._batch :]])
        added = {
            name: value if given.get(SHOWN.get(name, "")) is None else _like(given[SHOWN[name]], value, SHOWN[name])
            for name, value in self.condition.added.items()
        }
        is_same = all(value is added[name] for name, value in self.condition.added.items())
        if embeds is not self.embeds or not is_same:
            self.look_at(Condition(embeds, added))

    def look_at(self, condition: Condition) -> None:
        """Take other texts from now on: b of them, or 2·b with the negative ones first, under guidance.

        Raises:
            ValueError: neither b nor 2·b texts.
        """
        if not isinstance(condition.embeds, Tensor) or len(condition) not in (self._batch, 2 * self._batch):
            found = len(condition) if isinstance(condition.embeds, Tensor) else type(condition.embeds).__name__
            raise ValueError(f"needed are {self._batch} texts, or twice as many under guidance, not {found}")
        scale, rescale, interval = self._guidance
        is_guided = len(condition) == 2 * self._batch
        if any(len(value) != len(condition) for value in condition.added.values()):
            condition = Condition(condition.embeds, {n: v[-len(condition) :] for n, v in condition.added.items()})
        is_halved = is_guided and (interval is not None or scale == 1)
        every = self._predictor(condition)
        within = self._predictor(condition[self._batch :]) if is_halved else every
        self.condition = condition
        self.negative = condition.embeds[: self._batch] if is_guided else None  # of `embeds` those to keep away from
        self._written = [Written(tensor) for tensor in condition.tensors()]
        self._denoise: Denoiser = guide(
            both=every,
            conditional=within,
            scale=scale if is_guided else 1.0,
            rescale=rescale,
            interval=interval,
        )

    def see(self, channels: Tensor) -> None:
        """Give the U-Net other channels beside the sample from now on, (b c h w)."""
        self.channels = channels
        self.look_at(self.condition)

    def weigh(self, scale: float) -> None:
        """Take another guidance scale from now on; 1 is no guidance.

        Raises:
            ValueError: it asks for guidance of a run that began without.
        """
        if scale != 1 and self.negative is None:
            raise ValueError(f"guidance_scale={scale} cannot be set in a run without negative embeddings")
        self._guidance = (scale, *self._guidance[1:])
        self.look_at(self.condition)

    def is_alone(self, is_so: bool) -> None:
        """Say whether no callback runs between the steps, so that only other threads can change weights."""
        for told in (self._told, *(control.told for control in self._controls)):
            told.held.is_alone = is_so

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        changed = [told.has_changed() for told in (self._told, *(control.told for control in self._controls))]
        if any(changed) or any(written.has_changed() for written in self._written):
            self.look_at(self.condition)
        with self._told.held:
            return self._denoise(x, timestep)

    def _predictor(self, condition: Condition) -> Denoiser:
        """The U-Net under a condition. It does not refer to this object, so that both end with the run."""
        unet, channels, arguments = self.unet, self.channels, {**self._told.arguments(condition), **self._attention}
        controlled = together([control.under(condition) for control in self._controls])

        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            added = controlled(x, timestep)
            if channels is not None:
                beside = channels if len(x) == len(channels) else torch.cat([channels, channels])
                x = torch.cat([x, beside], dim=1)
            out: Tensor = unet(x, timestep, **arguments, **added).sample
            return out

        return predict


def _like(given: Any, value: Tensor, name: str) -> Tensor:
    """What a callback returned in the place of `value`; an error unless it has its columns, of all or of one half."""
    if not isinstance(given, Tensor) or given.ndim != 2 or given.shape[1] != value.shape[1]:
        what = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"the callback's {name} must be a tensor of shape {tuple(value.shape)}, not {what}")
    return given if given is value else given.to(value)
