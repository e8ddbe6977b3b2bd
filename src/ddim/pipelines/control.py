"""ControlNets in a run: what each is shown, how strongly and when it acts, and what it adds at a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.pipelines.conditions import Condition
from ddim.pipelines.crops import Crop
from ddim.pipelines.inputs import Pictures, picture_size, to_condition
from ddim.pipelines.told import Told
from ddim.plan import SamplingPlan

Added = dict[str, Any]  # arguments of a U-Net that say what is added to its outputs
Residuals = tuple[Sequence[Tensor], Tensor]  # what is added to the outputs of the way down, and of the middle


@dataclass(frozen=True)
class Control:
    """A ControlNet in a run.

    Attributes:
        network: a `ControlNetModel`, or one of another library.
        picture: what it is shown, (b|1 c H W).
        scale: how strongly it acts.
        start, end: the shares of the run from which and to which it acts.
        is_guessing: see `ControlNetModel.forward`; under guidance it then acts on the half with the texts alone.
    """

    network: Any
    picture: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    is_guessing: bool = False

    def acts(self, index: int, count: int) -> bool:
        """Whether it acts at step `index` of `count`."""
        return self.scale != 0 and not (index / count < self.start or (index + 1) / count > self.end)


class InControl:
    """A `Control` in a run of b samples, with what does not change between the steps computed once."""

    def __init__(self, control: Control, plan: SamplingPlan, batch: int) -> None:
        self.control, self.batch = control, batch
        self.told = Told(control.network, torch.tensor(plan.timesteps), batch)
        self._timesteps = [float(timestep) for timestep in plan.timesteps]

    def under(self, condition: Condition) -> Callable[[Tensor, Tensor], Residuals | None]:
        """What the ControlNet adds to a U-Net of b samples, or of 2·b, under a condition; None where it does not act.

        The function does not refer to this object, so that both end with the run.
        """
        control, batch, timesteps, held = self.control, self.batch, self._timesteps, self.told.held
        places = {timestep: index for index, timestep in enumerate(timesteps)}
        network, is_doubled = control.network, len(condition) == 2 * batch
        spares_half = control.is_guessing and is_doubled  # the half with the texts to keep away from
        condition = condition[batch:] if spares_half else condition
        arguments = self.told.arguments(condition)
        picture = control.picture
        if len(picture) > 1:
            picture = picture.repeat(len(condition) // batch, 1, 1, 1)
        if self.told.computes_once:
            arguments["features"] = network.read(picture)
        else:
            arguments["controlnet_cond"] = picture.expand(len(condition), -1, -1, -1)

        def add(x: Tensor, timestep: Tensor) -> Residuals | None:
            now = float(timestep)
            index = places.get(now)
            if index is None:  # it is not one of the plan's: the nearest of these decides
                index = min(places.values(), key=lambda place: abs(timesteps[place] - now))
            if not control.acts(index, len(timesteps)):
                return None
            with held:
                down, middle = network(
                    x[batch:] if spares_half else x,
                    timestep,
                    conditioning_scale=control.scale,
                    guess_mode=control.is_guessing,
                    return_dict=False,
                    **arguments,
                )
            if spares_half:
                down = [torch.cat([torch.zeros_like(each), each]) for each in down]
                middle = torch.cat([torch.zeros_like(middle), middle])
            return down, middle

        return add


def together(controls: Sequence[Callable[[Tensor, Tensor], Residuals | None]]) -> Callable[[Tensor, Tensor], Added]:
    """What several ControlNets add in sum, as arguments of the U-Net; none where none of them acts."""

    def add(x: Tensor, timestep: Tensor) -> Added:
        return summed([residuals for control in controls if (residuals := control(x, timestep)) is not None])

    return add


def summed(acting: Sequence[Residuals]) -> Added:
    """The sum of what several ControlNets add, as arguments of the U-Net; none where none of them acts."""
    if not acting:
        return {}
    downs, middles = zip(*acting, strict=True)
    return {
        "down_block_additional_residuals": [sum(each[1:], each[0]) for each in zip(*downs, strict=True)],
        "mid_block_additional_residual": sum(middles[1:], middles[0]),
    }


# --- what a call asks for ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ControlRequest:
    """The arguments of a call that are about ControlNets.

    Attributes:
        image: what they are shown: one picture or a batch, see `inputs.to_condition`; for several ControlNets a list
            with one or a batch for each.
        scale, start, end: one for all, or a list with one for each.
        guess_mode: see `ControlNetModel.forward`.
    """

    image: Pictures
    scale: float | Sequence[float] = 1.0
    guess_mode: bool = False
    start: float | Sequence[float] = 0.0
    end: float | Sequence[float] = 1.0

    def images(self, count: int) -> list[Pictures]:
        """What each of `count` ControlNets is shown.

        Raises:
            TypeError, ValueError: it is not one for each.
        """
        if count == 1:
            return [self.image[0] if _is_nested(self.image) and len(self.image) == 1 else self.image]
        if not isinstance(self.image, (list, tuple)):
            raise TypeError(f"there are {count} ControlNets: give a list with a picture for each of them")
        if len(self.image) != count:
            raise ValueError(f"there are {count} ControlNets and {len(self.image)} pictures: give one for each of them")
        return list(self.image)

    def size(self, count: int, factor: int) -> tuple[int, int]:
        """Height and width of the first picture, rounded down to multiples of `factor`."""
        return picture_size(self.images(count)[0], factor, "control_image")

    def controls(
        self,
        networks: Sequence[Any],
        size: tuple[int, int],
        spread: Callable[[Tensor, str], Tensor],
        crop: Crop | None,
    ) -> list[Control]:
        """The ControlNets of a run.

        Args:
            networks: the ControlNets.
            size: height and width of the pictures that are drawn.
            spread: makes one picture for each sample of one for each text; see `Task.spread`.
            crop: what of a larger picture is painted, which is what the ControlNets are shown too; None is all of it.

        Raises:
            TypeError, ValueError: pictures or numbers that are not what is needed, or not as many.
        """
        count = len(networks)
        scales = _each(self.scale, count, "controlnet_conditioning_scale")
        starts, ends = (_each(given, count, f"control_guidance_{name}") for name, given in self._bounds())
        for start, end in zip(starts, ends, strict=True):
            if not 0 <= start < end <= 1:
                raise ValueError(
                    f"control_guidance_start={start:g} and control_guidance_end={end:g} must be shares of the run, the "
                    "first below the second: 0 and 1 for all of it"
                )
        guesses = bool(self.guess_mode) or bool(networks[0].config.get("global_pool_conditions"))
        controls = []
        for network, image, scale, start, end in zip(networks, self.images(count), scales, starts, ends, strict=True):
            picture = image if crop is None else crop.of(image, "control_image")
            channels = int(network.config.get("conditioning_channels") or 3)
            shown = to_condition(picture, size, channels)
            if len(shown) > 1:
                shown = spread(shown, "control images")
            parameter = next(network.parameters())
            shown = shown.to(parameter.device, parameter.dtype)
            controls.append(Control(network, shown, scale, start, end, guesses))
        return controls

    def _bounds(self) -> tuple[tuple[str, Any], tuple[str, Any]]:
        return ("start", self.start), ("end", self.end)


def control_request(image: Pictures | None, *how: Any) -> ControlRequest | None:
    """What a call asks of ControlNets: nothing without a picture. `how` are the other fields of `ControlRequest`."""
    return None if image is None else ControlRequest(image, *how)


def check_fits(config: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """Raise a ConfigError unless a ControlNet's config says that it was made for U-Nets with this config."""
    for name in ("block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type"):
        own, other = config.get(name), unet.get(name)
        if own != other and list(_as_list(own)) != list(_as_list(other)):
            raise ConfigError(
                f"the ControlNet is for another model: it has {name}={own!r:.100}, and the U-Net {other!r:.100}"
            )


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def networks_of(controlnet: Any) -> list[Any]:
    """The ControlNets that a part of a pipeline is: several in a `MultiControlNetModel`, or one."""
    inner = getattr(controlnet, "_orig_mod", controlnet)
    return [*inner.nets] if hasattr(inner, "nets") else [controlnet]


def _is_nested(image: Any) -> bool:
    return isinstance(image, (list, tuple)) and bool(image) and isinstance(image[0], (list, tuple))


def _each(given: Any, count: int, name: str) -> list[float]:
    """A number for each of `count` ControlNets; an error that names the argument if there are others, or no numbers."""
    values = list(given) if isinstance(given, (list, tuple)) else [given] * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} numbers for {count} ControlNets: give one for all, or one for each")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TypeError(f"{name} must be a finite number, or a list of them, not {value!r:.50}")
    return [float(value) for value in values]
