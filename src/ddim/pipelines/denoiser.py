"""The U-Net as a denoiser that looks at a text, with all that does not change between steps computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddim.guidance import guide
from ddim.models.core import hold
from ddim.models.embeddings import guidance_condition
from ddim.models.replaced import is_replaced
from ddim.models.snapshot import Snapshot, Written
from ddim.plan import SamplingPlan
from ddim.sampling import Denoiser


class TextDenoiser:
    """A denoiser for one run.

    The keys and values of every cross-attention and every timestep's embedding are made here and not at each step. A
    U-Net that cannot do so (one of another library, or one that is exported) is given the text and the timestep, and so
    is one of which a part is replaced (`models.replaced`): what was put there is to be called at each step, with the
    text. If weights or parts of the U-Net change on the way, in a callback or another thread, or if a callback writes
    into the text, all of this is made anew. The run keeps the backend that the U-Net has at its beginning.

    Args:
        unet: a `UNet2DConditionModel`, or a network of another library that is called as one is; so it has no type.
        plan: of the run; the embeddings of its timesteps are made beforehand.
        embeds: the text, (b s d).
        negative: the text to keep away from, (b s d); None is no guidance.
        scale, rescale, interval: see `guidance.guide`.
        channels: what the U-Net is given beside the sample, (b c h w).
        cross_attention_kwargs: more arguments for the U-Net's attention processors.
    """

    def __init__(
        self,
        unet: Any,
        plan: SamplingPlan,
        embeds: Tensor,
        negative: Tensor | None,
        *,
        scale: float,
        rescale: float = 0.0,
        interval: tuple[int, int] | None = None,
        channels: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.unet = unet
        self._held = hold(unet)
        self.channels = channels
        self._attention = {"cross_attention_kwargs": cross_attention_kwargs} if cross_attention_kwargs else {}
        self._batch = len(embeds)
        self._guidance = (scale, rescale, interval)
        self._timesteps = torch.tensor(plan.timesteps)
        width = unet.config.get("time_cond_proj_dim")
        self._cond: Tensor | None = None
        if width is not None:  # a U-Net distilled under guidance (Meng et al. 2023) takes the scale as an input
            self._cond = guidance_condition(torch.tensor([scale], dtype=torch.float64), width).to(embeds)  # (1 width)
        self._made_for = self._state_of_unet()
        self._time = self._project_time()
        self.negative: Tensor | None = None
        self.look_at(embeds if negative is None else torch.cat([negative, embeds]))

    def change(self, embeds: Tensor | None, negative: Tensor | None) -> None:
        """Take what a callback returned: other texts, as in `look_at`, or other negative ones alone, (b s d)."""
        if embeds is not None and embeds is not self.embeds:
            self.look_at(embeds)
        elif negative is not None and negative is not self.negative and self.negative is not None:
            self.look_at(torch.cat([negative.to(self.embeds), self.embeds[self._batch :]]))

    def look_at(self, embeds: Tensor) -> None:
        """Take another text from now on: (b s d), or (2·b s d) with the negative one first, under guidance.

        Raises:
            ValueError: neither b nor 2·b texts.
        """
        if not isinstance(embeds, Tensor) or len(embeds) not in (self._batch, 2 * self._batch):
            found = len(embeds) if isinstance(embeds, Tensor) else type(embeds).__name__
            raise ValueError(f"needed are {self._batch} texts, or twice as many under guidance, not {found}")
        scale, rescale, interval = self._guidance
        is_guided = len(embeds) == 2 * self._batch
        every = self._text(embeds)
        is_halved = is_guided and (interval is not None or scale == 1)
        within = self._text(embeds[self._batch :]) if is_halved else every
        self.embeds = embeds
        self._written = Written(embeds)
        self.negative = embeds[: self._batch] if is_guided else None
        self._denoise: Denoiser = guide(
            both=self._predictor(every),
            conditional=self._predictor(within),
            scale=scale if is_guided else 1.0,
            rescale=rescale,
            interval=interval,
        )

    def weigh(self, scale: float) -> None:
        """Take another guidance scale from now on; 1 is no guidance.

        Raises:
            ValueError: it asks for guidance of a run that began without.
        """
        if scale != 1 and self.negative is None:
            raise ValueError(f"guidance_scale={scale} cannot be set in a run without negative embeddings")
        self._guidance = (scale, *self._guidance[1:])
        self.look_at(self.embeds)

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        state = self._state_of_unet()
        if state != self._made_for:
            self._made_for = state
            self._time = self._project_time()
            self.look_at(self.embeds)
        elif self._written.has_changed():
            self.look_at(self.embeds)
        with self._held:
            return self._denoise(x, timestep)

    def _state_of_unet(self) -> tuple[Snapshot | None, bool]:
        """What the arguments are made for: the weights as they are, and whether they may be made beforehand."""
        weights, has_caches = self._held.look(), hasattr(self.unet, "project_text")
        self._held.is_whole = has_caches and not self._attention and not is_replaced(self.unet)
        return weights, self._held.is_whole

    @property
    def _caches(self) -> bool:
        return self._made_for[1]

    def _project_time(self) -> dict[str, Any]:
        """The U-Net's arguments that say the timestep, but for the timestep itself."""
        if self._caches:
            return {"time_cache": self.unet.project_time(self._timesteps, timestep_cond=self._cond)}
        return {} if self._cond is None else {"timestep_cond": self._cond.expand(self._batch, -1)}

    def _text(self, embeds: Tensor) -> dict[str, Any]:
        """The U-Net's arguments that say the text."""
        return {"text_cache": self.unet.project_text(embeds)} if self._caches else {"encoder_hidden_states": embeds}

    def _predictor(self, text: dict[str, Any]) -> Denoiser:
        """The U-Net under these arguments. It does not refer to this object, so that both end with the run."""
        unet, channels, arguments = self.unet, self.channels, {**text, **self._time, **self._attention}

        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            if channels is not None:
                beside = channels if len(x) == len(channels) else torch.cat([channels, channels])
                x = torch.cat([x, beside], dim=1)
            out: Tensor = unet(x, timestep, **arguments).sample
            return out

        return predict
