"""Every command's options, as frozen dataclasses. No torch here, so that `--help` is instant."""

from typing import Annotated

import tyro

from ddim.settings.editing import EditSettings, InvertSettings
from ddim.settings.evaluation import EvaluateSettings
from ddim.settings.interpolation import InterpolateSettings
from ddim.settings.optimizing import OptimizeSettings
from ddim.settings.plotting import PlotScheduleSettings, PlotTradeoffSettings, PlotTrajectorySettings
from ddim.settings.sampling import InfoSettings, SampleSettings
from ddim.settings.training import LoraSettings, PixelSettings, TextToImageSettings, TrainSettings, VAESettings

__all__ = [
    "Command",
    "EditSettings",
    "EvaluateSettings",
    "InfoSettings",
    "InterpolateSettings",
    "InvertSettings",
    "LoraSettings",
    "OptimizeSettings",
    "PixelSettings",
    "PlotCommand",
    "PlotScheduleSettings",
    "PlotTradeoffSettings",
    "PlotTrajectorySettings",
    "SampleSettings",
    "TextToImageSettings",
    "TrainCommand",
    "TrainSettings",
    "VAESettings",
]

TrainCommand = Annotated[
    Annotated[PixelSettings, tyro.conf.subcommand("pixels")]
    | Annotated[VAESettings, tyro.conf.subcommand("vae")]
    | Annotated[TextToImageSettings, tyro.conf.subcommand("text-to-image")]
    | Annotated[LoraSettings, tyro.conf.subcommand("lora")],
    tyro.conf.subcommand("train", description="Train a model: `ddim train WHAT --help` lists each one's options."),
]

PlotCommand = Annotated[
    Annotated[PlotScheduleSettings, tyro.conf.subcommand("schedule")]
    | Annotated[PlotTrajectorySettings, tyro.conf.subcommand("trajectory")]
    | Annotated[PlotTradeoffSettings, tyro.conf.subcommand("tradeoff")],
    tyro.conf.subcommand("plot", description="Draw what a sampler does: `ddim plot WHAT --help` lists the options."),
]

Command = (
    Annotated[SampleSettings, tyro.conf.subcommand("sample")]
    | TrainCommand
    | Annotated[InterpolateSettings, tyro.conf.subcommand("interpolate")]
    | Annotated[InvertSettings, tyro.conf.subcommand("invert")]
    | Annotated[EditSettings, tyro.conf.subcommand("edit")]
    | Annotated[EvaluateSettings, tyro.conf.subcommand("evaluate")]
    | Annotated[OptimizeSettings, tyro.conf.subcommand("optimize")]
    | Annotated[InfoSettings, tyro.conf.subcommand("info")]
    | PlotCommand
)
