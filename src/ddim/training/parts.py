"""What a text-to-image pipeline is made of, and where a run has it from: loaded, or made anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ddim.checkpoint import Repository
from ddim.data import Source
from ddim.errors import ConfigError
from ddim.models import AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from ddim.pipelines.words import WordList
from ddim.scheduler import DDIMScheduler
from ddim.training.diffusion import train_scheduler
from ddim.training.frozen import Reload
from ddim.training.settings import (
    ControlNetSettings,
    LatentSettings,
    LoraSettings,
    TextToImageSettings,
    TextualInversionSettings,
    TrainSettings,
)
from ddim.training.vocabulary import learn_tokenizer


class Parts(NamedTuple):
    """What a text-to-image pipeline is made of."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    words: WordList | None  # that were seen before; None if it is not known which
    tokenizer_2: CLIPTokenizer | None = None  # these two of Stable Diffusion XL
    text_encoder_2: CLIPTextModelWithProjection | None = None
    kind: type[DiffusionPipeline] = StableDiffusionPipeline
    settings: Mapping[str, Any] = {}  # what else the pipeline is made with
    reload: Reload | None = None  # reads networks once more, by their names, as they were loaded

    @property
    def encoders(self) -> dict[str, CLIPTextModel]:
        """The text encoders by their names."""
        both = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {name: encoder for name, encoder in both.items() if encoder is not None}

    @property
    def tokenizers(self) -> dict[str, CLIPTokenizer]:
        """The tokenizers by the names of their text encoders."""
        both = {"text_encoder": self.tokenizer, "text_encoder_2": self.tokenizer_2}
        return {name: tokenizer for name, tokenizer in both.items() if tokenizer is not None}

    def pipeline(self, networks: Mapping[str, nn.Module]) -> Any:
        """The pipeline of these networks, by their names, and of all else as it is here."""
        tokenizers = {"tokenizer": self.tokenizer}
        if self.tokenizer_2 is not None:
            tokenizers["tokenizer_2"] = self.tokenizer_2
        return self.kind(**{**networks, **tokenizers, "scheduler": self.scheduler, **self.settings})


# --- that are there --------------------------------------------------------------------------------------------------


def load_vae(name: str, *, variant: str | None = None, **hub: Any) -> AutoencoderKL:
    """An autoencoder: a folder or repository that is one, or that has one in its `vae` folder."""
    repository = Repository.open(name, dict(hub))
    is_pipeline = repository.find("model_index.json") is not None
    folder = "vae" if is_pipeline else None
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(name, subfolder=folder, variant=variant, **hub)
    return vae


def pretrained_parts(
    settings: TextToImageSettings | LoraSettings | TextualInversionSettings | ControlNetSettings,
) -> Parts:
    """The parts of a pipeline, with the noise schedule that the settings ask for.

    Raises:
        ConfigError: a pipeline of this kind cannot be trained, or its parts do not fit together.
        CheckpointError, WeightsError: as `DiffusionPipeline.from_pretrained`.
    """
    name, hub = str(settings.pretrained_model_name_or_path), settings.hub
    options: dict[str, Any] = {**hub, "revision": settings.revision, "variant": settings.variant}
    only = dict(options)
    if isinstance(settings, TextToImageSettings) and settings.non_ema_revision is not None:
        of_unet = {**options, "revision": settings.non_ema_revision}
        options["unet"] = UNet2DConditionModel.from_pretrained(name, subfolder="unet", **of_unet)
    if isinstance(settings, (LoraSettings, TextualInversionSettings)):
        options["dtype"] = types_beside(settings)
    pipe: Any = DiffusionPipeline.from_pretrained(name, **options)
    kind: type[Any] = StableDiffusionXLPipeline if "text_encoder_2" in pipe.parts else StableDiffusionPipeline
    vae: Any = pipe.components.get("vae")
    readers: dict[str, Callable[[], nn.Module]] = {}
    if settings.pretrained_vae_model_name_or_path is not None:
        of_vae = settings.pretrained_vae_model_name_or_path
        vae, readers["vae"] = load_vae(of_vae, **hub), lambda: load_vae(of_vae, **hub)
    _check(name, pipe, kind, vae)

    def reload(names: Collection[str]) -> dict[str, nn.Module]:
        others = {part: None for part in kind.parts if part not in names or part in readers}
        again: Any = type(pipe).from_pretrained(name, **{**only, **others}) if {*names} - {*readers} else None
        return {part: readers[part]() if part in readers else again.components[part] for part in names}

    return Parts(
        vae,
        pipe.tokenizer,
        pipe.text_encoder,
        pipe.unet,
        train_scheduler(settings, pipe.scheduler.config, "scaled_linear"),
        getattr(pipe, "words", None),
        pipe.components.get("tokenizer_2"),
        pipe.components.get("text_encoder_2"),
        kind,
        {setting: getattr(pipe, setting) for setting in getattr(kind, "settings", ())},
        reload,
    )


def _check(name: str, pipe: Any, kind: type[Any], vae: Any) -> None:
    """Raise a ConfigError if a pipeline, loaded from a name, cannot be trained, or not with this autoencoder."""
    encoders = [part for part in kind.parts if part.startswith("text_encoder")]
    if any(pipe.components.get(part) is None for part in (*encoders, "tokenizer", "vae")):
        missing = "has no text encoder: there is nothing to train by"
        if pipe.components.get("text_encoder_2") is not None:
            missing = "is a refiner, which is not trained here: give the base model"
        raise ConfigError(f"{name} {missing}")
    if not isinstance(vae, AutoencoderKL):
        raise ConfigError(
            f"{name} has an {type(vae).__name__}, which only imitates the autoencoder that the model was trained with: "
            "train a folder that has that one, and put the small one in its place afterwards"
        )
    if pipe.unet.config.in_channels != vae.config.latent_channels:
        wrong = "inpainting models cannot be trained here"
        if vae is not pipe.vae:
            wrong = "leave out pretrained_vae_model_name_or_path, or give one like the pipeline's"
        raise ConfigError(
            f"{name} takes {pipe.unet.config.in_channels} channels, not the {vae.config.latent_channels} of the "
            f"latents: {wrong}"
        )


def half(settings: TrainSettings) -> torch.dtype:
    """The type of number that the networks compute in."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(settings.mixed_precision or "no", torch.float32)


def types_beside(settings: LatentSettings) -> dict[str, torch.dtype]:
    """The types of a pipeline's weights where they stay as they are and something is trained beside them.

    What does not change, or only by adapters, takes half the memory where it computes in half precision.
    """
    adapted = ("unet", "text_encoder", "text_encoder_2") if settings.train_text_encoder else ("unet",)
    return {"default": torch.float32, **dict.fromkeys(adapted, half(settings))}


# --- that are new ----------------------------------------------------------------------------------------------------


def new_parts(settings: TextToImageSettings, source: Source) -> Parts:
    """A new U-Net, text encoder and tokenizer for the captions of the source, on an autoencoder that is there."""
    of_vae = settings.pretrained_vae_model_name_or_path or "emoji"
    vae = load_vae(of_vae, **settings.hub)
    captions = [caption for options in source.captions or () for caption in options]
    tokenizer = learn_tokenizer(captions, settings.vocab_size, settings.max_tokens)
    widths = settings.block_out_channels
    levels = {level % len(widths) for level in settings.attention_levels}
    attention = [level in levels for level in range(len(widths))]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    unet = UNet2DConditionModel(
        sample_size=(settings.resolution or vae.tile_sample_min_size) // factor,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=widths,
        layers_per_block=settings.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        attention_head_dim=settings.attention_heads,
        cross_attention_dim=settings.text_dim,
        norm_num_groups=math.gcd(16, *widths),
        dropout=settings.dropout,
    )
    text_encoder = CLIPTextModel(
        vocab_size=len(tokenizer),
        hidden_size=settings.text_dim,
        intermediate_size=4 * settings.text_dim,
        projection_dim=settings.text_dim,
        num_hidden_layers=settings.text_layers,
        num_attention_heads=settings.text_heads,
        max_position_embeddings=settings.max_tokens,
        hidden_act="gelu",
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=cast(int, tokenizer.eos_token_id),
    )
    scheduler = train_scheduler(
        settings, None, "scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    words = WordList(frozenset())
    reload = partial(_read_again, {"vae": lambda: load_vae(of_vae, **settings.hub)})
    return Parts(vae, tokenizer, text_encoder, unet, scheduler, words, reload=reload)


def _read_again(readers: Mapping[str, Callable[[], nn.Module]], names: Collection[str]) -> dict[str, nn.Module]:
    """Networks, read by the reader of each."""
    return {name: readers[name]() for name in names}
