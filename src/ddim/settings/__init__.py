"""Every command's options, as frozen dataclasses. No torch here, so that `--help` is instant."""

import functools
import operator
from collections.abc import Iterable
from typing import Annotated, Any

import tyro

from ddim.settings.editing import EditSettings, InvertSettings
from ddim.settings.evaluation import EvaluateSettings
from ddim.settings.interpolation import InterpolateSettings
from ddim.settings.optimizing import OptimizeSettings
from ddim.settings.plotting import PlotScheduleSettings, PlotTradeoffSettings, PlotTrajectorySettings
from ddim.settings.sampling import InfoSettings, SampleSettings
from ddim.settings.training import LoraSettings, PixelSettings, TextToImageSettings, TrainSettings, VAESettings

__all__ = [
    "COMMANDS",
    "Command",
    "EditSettings",
    "EvaluateSettings",
    "InfoSettings",
    "InterpolateSettings",
    "InvertSettings",
    "LoraSettings",
    "OptimizeSettings",
    "PixelSettings",
    "PlotScheduleSettings",
    "PlotTradeoffSettings",
    "PlotTrajectorySettings",
    "SampleSettings",
    "TextToImageSettings",
    "TrainSettings",
    "VAESettings",
]

COMMANDS: dict[str, Any] = {
    "sample": SampleSettings,
    "train pixels": PixelSettings,
    "train vae": VAESettings,
    "train text-to-image": TextToImageSettings,
    "train lora": LoraSettings,
    "interpolate": InterpolateSettings,
    "invert": InvertSettings,
    "edit": EditSettings,
    "evaluate": EvaluateSettings,
    "optimize": OptimizeSettings,
    "info": InfoSettings,
    "plot schedule": PlotScheduleSettings,
    "plot trajectory": PlotTrajectorySettings,
    "plot tradeoff": PlotTradeoffSettings,
}

# What the first words of two stand for.
GROUPS = {
    "train": "Train a model: `ddim train WHAT --help` lists each one's options.",
    "plot": "Draw what a sampler does: `ddim plot WHAT --help` lists the options.",
}


def _command() -> Any:
    """All of them, as tyro takes them: a union, in which each group is one more."""
    groups: dict[str, list[Any]] = {}
    for words, kind in COMMANDS.items():
        first, _, second = words.partition(" ")
        groups.setdefault(first, []).append(Annotated[kind, tyro.conf.subcommand(second or first)])
    return _any_of(
        Annotated[_any_of(kinds), tyro.conf.subcommand(first, description=GROUPS[first])]
        if first in GROUPS
        else kinds[0]
        for first, kinds in groups.items()
    )


def _any_of(kinds: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, kinds)


Command = _command()
