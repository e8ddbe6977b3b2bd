"""Every command's options, as frozen dataclasses. No torch here, so that `--help` is instant."""

from typing import Annotated

import tyro

from ddim.settings.sampling import InfoSettings, PlotSettings, SampleSettings
from ddim.settings.training import LoraSettings, PixelSettings, TextToImageSettings, TrainSettings, VAESettings

__all__ = [
    "Command",
    "InfoSettings",
    "LoraSettings",
    "PixelSettings",
    "PlotSettings",
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

Command = (
    Annotated[SampleSettings, tyro.conf.subcommand("sample")]
    | TrainCommand
    | Annotated[InfoSettings, tyro.conf.subcommand("info")]
    | Annotated[PlotSettings, tyro.conf.subcommand("plot")]
)
