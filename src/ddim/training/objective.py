"""What a run trains, as a module whose forward pass is the losses of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddim.checkpoint import Savable
from ddim.data import Preparation, Source
from ddim.data.buckets import Buckets
from ddim.errors import ConfigError
from ddim.training.forecast import advice, bucket_summary, summary
from ddim.training.settings import TrainSettings


class Losses(NamedTuple):
    """What an objective gives for a batch of b examples."""

    loss: Tensor  # (b,), whose mean is trained
    timesteps: Tensor | None = None  # (b,), given if the loss is to be logged by timestep
    parts: dict[str, Tensor] | None = None  # further numbers to log, such as the loss's terms, each 0-dim
    weights: Tensor | None = None  # (b,), by which the losses are multiplied before their mean is taken


class Objective(nn.Module, ABC):
    """The networks of a run, its data and its loss.

    `networks` are what the finished model is made of; what of their parameters wants a gradient is trained, averaged
    and kept in checkpoints. Everything random in `forward` comes from torch's global generator, which the trainer
    seeds for each batch.

    Attributes:
        count: how many images the data has.
        source, prepare_image: the images, and how they become tensors.
        buckets: the size of each image, and so which of them can be in a batch; None if all have the same size.
        preview_name: what the pictures of `preview` are called in logs.
        shown: how many pictures a preview shows.
        passes: how often the networks run for each of these.
    """

    preview_name: ClassVar[str] = "samples"
    networks: nn.ModuleDict
    count: int
    source: Source
    prepare_image: Preparation
    buckets: Buckets | None = None
    num_train_timesteps: int = 0
    shown: int
    passes: int

    def introduction(self, settings: TrainSettings, steps: int, per_step: int) -> list[str]:
        """What to say before a run begins: what data and settings come to, and what might be better.

        Args:
            settings: of the run.
            steps: how many steps it has.
            per_step: how many examples each of them takes.
        """
        resolution = self.prepare_image.resolution
        epochs = steps * per_step / self.count
        told = [summary(self.count, resolution, steps, per_step)]
        if self.buckets is not None:
            batch = per_step // settings.gradient_accumulation_steps
            epochs = steps * settings.gradient_accumulation_steps / self.buckets.per_epoch(batch)
            told = bucket_summary(self.buckets, steps, per_step, batch, epochs)
        return [*told, *advice(settings, self.source, resolution, steps, per_step, epochs, self.buckets)]

    @abstractmethod
    def dataset(self) -> Dataset[dict[str, Any]]:
        """Item `position` of the endless, shuffled stream of examples."""

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> Losses:
        """The losses of a batch, on the device of the networks."""

    @abstractmethod
    def finished(self, networks: nn.ModuleDict) -> Savable:
        """What is saved in the end, made of these networks (which it may keep)."""

    @abstractmethod
    def preview(self, finished: Any, most: int | None = None) -> Image.Image:
        """A picture that shows how far the training is: a grid of all it can show, or of the first `most`."""

    @abstractmethod
    def next_command(self, folder: str) -> list[str]:
        """The words of a command that uses the finished model, which is in a folder."""

    def prepare(self, began: dict[str, Any]) -> None:
        """What takes time before the first step, such as encoding the pictures.

        Args:
            began: the record of the run that goes on; empty for a new one.

        Raises:
            ConfigError: the data is not what it was then.
        """

    def record(self) -> dict[str, Any]:
        """What to write down beside the settings; what is in it may not be another when the run goes on."""
        return {"images": self.count}

    def check_unchanged(self, began: dict[str, Any]) -> None:
        """Raise a ConfigError if the data is not what a run that is to go on began with, as far as is known."""
        changed = [f"{key}: {began[key]} -> {now}" for key, now in self.record().items() if began.get(key, now) != now]
        if changed:
            raise ConfigError(
                f"the data is not what the run began with ({'; '.join(changed)}): bring that back, or give another "
                "output_dir"
            )
