"""`--controlnet PATH[=SCALE]` and what it is shown: read, checked, and made arguments of a pipeline's call."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ddim.checkpoint.hub import bundled_controlnets
from ddim.checkpoint.nearby import alike, did_you_mean, nearby
from ddim.cli.adapters import listed
from ddim.cli.fitting import fit_shown
from ddim.cli.pictures import size_of
from ddim.errors import CheckpointError, ConfigError, WeightsError

if TYPE_CHECKING:
    from ddim.cli.sample import SampleSettings
    from ddim.pipelines import DiffusionPipeline


class Asked(NamedTuple):
    """One ControlNet as it was asked for.

    Attributes:
        place: a folder, the name of a bundled one, a `.safetensors` file, or an id on the hub.
        scale: how strongly it acts; 1 is as it was trained.
    """

    place: str
    scale: float


def controlnet(text: str) -> Asked:
    """What PATH[=SCALE] asks for.

    >>> controlnet("runs/edges=0.6"), controlnet("owner/name")
    (Asked(place='runs/edges', scale=0.6), Asked(place='owner/name', scale=1.0))

    Raises:
        ConfigError: the scale is no finite number.
    """
    place, sign, after = text.rpartition("=")
    is_query = "?" in place and "=" not in place.partition("?")[2]  # as in "…/x.safetensors?download=true"
    if not sign or os.path.exists(text) or is_query:
        place, after = text, "1"
    try:
        scale = float(after)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale) or not place:
        raise ConfigError(
            f"--controlnet {text} has {after!r} where its scale should be: give a number, such as {place}=0.8"
        )
    return Asked(place, scale)


def check_controlnet(given: str | Sequence[str], option: str) -> None:
    """The rule of --controlnet: a folder or file that is there, a bundled one, or what the hub may have, not asked.

    Raises:
        ConfigError: there is no such folder or file, or its scale is no number.
    """
    if not isinstance(given, str):
        for one in given:
            check_controlnet(one, option)
        return
    place = controlnet(given).place
    if os.path.isfile(place):
        if _is_file(place):
            return
        raise ConfigError(f"{option} {place} is no .safetensors file: give one, or the folder of a ControlNet")
    is_there = os.path.isdir(place) or place in bundled_controlnets()
    if not is_there and not _is_address(place) and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", place):
        kind = "file" if _is_file(place) else "folder"
        meant = nearby(place, Path.is_file if kind == "file" else Path.is_dir) or alike(place, bundled_controlnets())
        raise ConfigError(f"there is no {kind} {place[:300]!r}, given as {option}{did_you_mean(meant)}")


def _is_file(place: str) -> bool:
    return place.lower().partition("?")[0].endswith(".safetensors") and not os.path.isdir(place)


def _is_address(place: str) -> bool:
    """Whether this is the address of a file at huggingface.co."""
    return _is_file(place) and bool(re.match(r"(https://)?(huggingface\.co|hf\.co)/", place))


def check_together(settings: SampleSettings) -> None:
    """Raise a ConfigError unless there is something to show to each ControlNet, and a ControlNet for each picture."""
    networks, shown = len(listed(settings.controlnet)), len(listed(settings.control_image))
    check_how(settings, networks)
    if settings.control_from is not None and settings.condition is None:
        raise ConfigError("--control-from needs --condition, which says what is made of the picture")
    if settings.control_from is None and settings.condition is not None:
        raise ConfigError("--condition says what is made of --control-from: give one, or leave it out")
    pictures = shown + (settings.control_from is not None)
    if networks == pictures:
        return
    if not networks:
        raise ConfigError("--control-image and --control-from are for --controlnet: give one, or leave them out")
    if networks > 1:
        counted = f"are {networks} ControlNets and {pictures} picture{'s' * (pictures != 1)} for them"
    else:
        counted = "is no picture for it" if not pictures else f"are {pictures} pictures for one ControlNet"
    raise ConfigError(f"--controlnet: there {counted}: give one --control-image for each, or --control-from")


def check_how(settings: Any, networks: int) -> None:
    """Raise a ConfigError unless what is said of how ControlNets act is for as many as there are.

    Args:
        settings: with `guess_mode`, `control_guidance_start` and `control_guidance_end`.
    """
    starts, ends = settings.control_guidance_start, settings.control_guidance_end
    given = {"guess-mode": settings.guess_mode, "control-guidance-start": starts, "control-guidance-end": ends}
    for option, value in given.items():
        if value and not networks:
            raise ConfigError(f"--{option} is for --controlnet: give one, or leave it out")
        if isinstance(value, tuple) and len(value) not in (0, 1, networks):
            raise ConfigError(
                f"--{option} has {len(value)} numbers for {networks} ControlNets: give one, or one for each"
            )
    for start, end in zip(spread(starts or (0.0,), networks), spread(ends or (1.0,), networks), strict=True):
        if start >= end:
            raise ConfigError(f"--control-guidance-start {start:g} must be below --control-guidance-end {end:g}")


def spread(numbers: Sequence[float], count: int) -> list[float]:
    """A number for each of so many ControlNets: the ones that were given, or one for all.

    >>> spread((0.5,), 2), spread((0.5, 1.0), 2)
    ([0.5, 0.5], [0.5, 1.0])
    """
    return [*numbers] * (count if len(numbers) == 1 else 1)


def how(settings: Any) -> dict[str, Any]:
    """What is said of how ControlNets act, as arguments of a call: their strengths, and what else was given."""
    said: dict[str, Any] = {"controlnet_conditioning_scale": [one.scale for one in asked(settings.controlnet)]}
    said |= {"guess_mode": True} if settings.guess_mode else {}
    for name in ("control_guidance_start", "control_guidance_end"):
        if getattr(settings, name):
            said[name] = spread(getattr(settings, name), len(asked(settings.controlnet)))
    return said


def absolute(text: str) -> str:
    """PATH[=SCALE] with the whole path, for processes that may be elsewhere."""
    place, scale = controlnet(text)
    return f"{os.path.abspath(place) if os.path.exists(place) else place}={scale!r}"


def asked(given: Any) -> list[Asked]:
    """The ControlNets that are asked for."""
    return [controlnet(text) for text in listed(given)]


def add_controls(pipe: DiffusionPipeline, model: str, given: Sequence[str | Sequence[str]] | None) -> None:
    """Load ControlNets into a pipeline.

    Raises:
        ConfigError: the pipeline takes none, or one is for another model.
        CheckpointError, WeightsError: one is not there or is broken; the message names it.
    """
    wanted = asked(given)
    if not wanted:
        return
    from ddim.models import ControlNetModel
    from ddim.pipelines.control import check_fits
    from ddim.pipelines.draws import Draws

    if not isinstance(pipe, Draws):
        raise ConfigError(f"{model} takes no ControlNet: leave out --controlnet, or use a text-to-image model")
    networks = []
    for each in wanted:
        try:
            if _is_file(each.place) or _is_address(each.place):
                network = ControlNetModel.from_single_file(each.place, dtype=pipe.dtype, like=pipe.unet.config)
            else:
                network = ControlNetModel.from_pretrained(each.place, dtype=pipe.dtype)
            check_fits(network.config, pipe.unet.config)
        except (CheckpointError, ConfigError, WeightsError) as error:
            raise type(error)(f"--controlnet {each.place}: {error}") from error
        networks.append(network)
    pipe.controlnet = networks if len(networks) > 1 else networks[0]


def files_shown(settings: SampleSettings) -> list[str]:
    """The files that ControlNets are shown, or that their conditions are made of."""
    return [*listed(settings.control_image), *([settings.control_from] if settings.control_from else [])]


def controlled(settings: SampleSettings, pipe: DiffusionPipeline, size: tuple[int, int] | None) -> dict[str, Any]:
    """What a call is given for its ControlNets; nothing without one.

    Args:
        size: (width, height) of what is drawn, where that is settled; else it follows from the first picture.

    Raises:
        DataError: a file is no picture, or too large.
    """
    files = files_shown(settings)
    if not files:
        return {}
    from ddim.images import condition_image
    from ddim.pipelines.fitting import start_size

    width, height = size or start_size(size_of(files[0]), pipe, settings.height, settings.width)
    options = ["--control-image"] * len(files)
    if settings.control_from is not None:
        options[-1] = "--control-from"
    pictures = [fit_shown(path, option, (width, height)) for path, option in zip(files, options, strict=True)]
    if settings.control_from is not None and settings.condition is not None:
        pictures[-1] = condition_image(pictures[-1], settings.condition, settings.condition_cells)
    return {
        "control_image": pictures if len(pictures) > 1 else pictures[0],
        **how(settings),
        "height": height,
        "width": width,
    }
