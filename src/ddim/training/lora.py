"""Training low-rank adapters (LoRA) of a text-to-image pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from ddim.checkpoint import Savable, Saving
from ddim.data import Source
from ddim.errors import require
from ddim.lora import TEXT_TARGETS, add_lora, lora_state, save_lora
from ddim.pipelines.words import WordList
from ddim.training.parts import Parts, pretrained_parts
from ddim.training.settings import LoraSettings
from ddim.training.text_to_image import TextToImage, read_source


class Adapters(Savable):
    """What a LoRA run saves: the adapters and the words of their captions.

    Args:
        pipe: makes a pipeline that has them in use, for pictures.
    """

    def __init__(
        self,
        pipe: Callable[[], Any],
        states: dict[str, dict[str, Tensor]],
        rank: int,
        words: WordList | None,
    ) -> None:
        self.pipe, self.states, self.rank, self.words = pipe, states, rank, words

    def write(self, folder: Path, saving: Saving) -> None:
        save_lora(folder, self.states, self.rank, self.rank)
        if self.words is not None:
            self.words.write(folder)


class Lora(TextToImage):
    """The loss of text to image, of low-rank adapters in the U-Net (and, if asked, in the text encoders)."""

    settings: LoraSettings

    def __init__(self, settings: LoraSettings, source: Source, parts: Parts) -> None:
        parts.unet.requires_grad_(False)
        add_lora(parts.unet, settings.rank)
        for encoder in parts.encoders.values() if settings.train_text_encoder else ():
            encoder.requires_grad_(False)
            add_lora(encoder, settings.rank, targets=TEXT_TARGETS)
        super().__init__(settings, source, parts, trains_text=settings.train_text_encoder)

    def finished(self, networks: nn.ModuleDict) -> Adapters:
        states = {name: lora_state(module) for name, module in networks.items()}
        return Adapters(lambda: self.pipeline(networks), states, self.settings.rank, self.new_words)

    def preview(self, finished: Any, most: int | None = None) -> Image.Image:
        return super().preview(finished.pipe(), most)

    def next_command(self, folder: str) -> list[str]:
        base = self.settings.pretrained_model_name_or_path
        return ["ddim", "sample", self.prompts()[0], "--model", base, "--lora", folder, "--out", f"{folder}/try.png"]


def lora(settings: LoraSettings) -> Lora:
    """The objective of these settings.

    Raises:
        ConfigError, DataError: settings or data that cannot work together.
        MissingExtraError: peft is not installed.
    """
    require("peft", "train")
    source = read_source(settings)
    return Lora(settings, source, pretrained_parts(settings))
