"""Training text to image on latents: all of a new model, or more of a pretrained one, or low-rank adapters of it."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddim.checkpoint import Savable, Saving
from ddim.data import Source, captioned_source
from ddim.data.buckets import Buckets, Rules, usual_step
from ddim.data.preparation import Preparation, say_background
from ddim.data.stream import CaptionedStream, Draw
from ddim.errors import ConfigError, require
from ddim.images import image_grid
from ddim.lora import TEXT_TARGETS, add_lora, lora_state, save_lora
from ddim.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines import StableDiffusionPipeline
from ddim.pipelines.words import WordList
from ddim.scheduler import DDIMScheduler
from ddim.training.autoencoder import load_vae
from ddim.training.caches import CaptionCache, LatentCache, draw_latents
from ddim.training.diffusion import DiffusionLoss, draw_noise, draw_timesteps, train_scheduler
from ddim.training.objective import Losses, Objective
from ddim.training.settings import (
    ControlNetSettings,
    LatentSettings,
    LoraSettings,
    TextToImageSettings,
    TextualInversionSettings,
)
from ddim.training.vocabulary import learn_tokenizer, words_of

GUIDANCE = 3.0  # of a preview, whose guidance rescale is 0.7 where the terminal SNR is zero
SHOWN = 16  # how many captions a preview draws, if no prompts are given


class Parts(NamedTuple):
    """What a text-to-image pipeline is made of."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    scheduler: DDIMScheduler
    words: WordList | None  # that were seen before; None if it is not known which


def new_parts(settings: TextToImageSettings, source: Source) -> Parts:
    """A new U-Net, text encoder and tokenizer for the captions of the source, on an autoencoder that is there."""
    vae = load_vae(settings.pretrained_vae_model_name_or_path or "emoji", **settings.hub)
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
    return Parts(vae, tokenizer, text_encoder, unet, scheduler, WordList(frozenset()))


def pretrained_parts(
    settings: TextToImageSettings | LoraSettings | TextualInversionSettings | ControlNetSettings,
) -> Parts:
    """The parts of a pipeline, with the noise schedule that the settings ask for."""
    name, hub = str(settings.pretrained_model_name_or_path), settings.hub
    options: dict[str, Any] = {**hub, "revision": settings.revision, "variant": settings.variant}
    if isinstance(settings, TextToImageSettings) and settings.non_ema_revision is not None:
        of_unet = {**options, "revision": settings.non_ema_revision}
        options["unet"] = UNet2DConditionModel.from_pretrained(name, subfolder="unet", **of_unet)
    pipe = StableDiffusionPipeline.from_pretrained(name, **options)
    if pipe.tokenizer is None or pipe.text_encoder is None:
        raise ConfigError(f"{settings.pretrained_model_name_or_path} has no text encoder: there is nothing to train by")
    vae: Any = pipe.vae
    if isinstance(settings, TextToImageSettings) and settings.pretrained_vae_model_name_or_path is not None:
        vae = load_vae(settings.pretrained_vae_model_name_or_path, **hub)
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
            f"{settings.pretrained_model_name_or_path} takes {pipe.unet.config.in_channels} channels, not the "
            f"{vae.config.latent_channels} of the latents: {wrong}"
        )
    scheduler = train_scheduler(settings, pipe.scheduler.config, "scaled_linear")
    return Parts(vae, pipe.tokenizer, pipe.text_encoder, pipe.unet, scheduler, pipe.words)


class Ready(Dataset[dict[str, Any]]):
    """A stream whose items have all that a step computes with, so that it never waits for what the device is doing.

    To an item of the stream come "weight", that of its loss, if its place says one; "latents", what the autoencoder
    says of the picture (2 z h w), if that is known; and "text" (s d), the vectors of the caption, if these are, or else
    "ids" (s), its tokens.

    Args:
        stream: pictures with captions.
        tokenizer: makes tokens of captions.
        latents, texts: what was computed beforehand, or None.
    """

    def __init__(
        self,
        stream: CaptionedStream,
        tokenizer: CLIPTokenizer,
        latents: LatentCache | None,
        texts: CaptionCache | None,
    ) -> None:
        self.stream, self.tokenizer = stream, tokenizer
        self.latents = latents
        self.texts = None if texts is None or texts.table is None else texts

    def __getitem__(self, place: int | Draw) -> dict[str, Any]:
        item = self.stream[place]
        if isinstance(place, Draw):
            item["weight"] = torch.tensor(place.weight)
        if self.latents is not None:
            item["latents"] = self.latents.rows(item["index"], item["variant"])
        if self.texts is not None:
            item["text"] = self.texts.embedding(item["caption"])
        else:
            item["ids"] = self.tokenizer.ids(item["caption"], warn=False)[0]
        return item


class TextToImage(Objective):
    """The loss of a U-Net on latents (b z h w), given texts.

    Args:
        settings: of the run.
        source: pictures with captions.
        parts: what is trained, and what is used as it is.
        trains_text: whether the text encoder is trained.
    """

    def __init__(self, settings: LatentSettings, source: Source, parts: Parts, trains_text: bool) -> None:
        super().__init__()
        self.settings, self.source = settings, source
        self.count = source.count
        self.tokenizer, self.scheduler = parts.tokenizer, parts.scheduler
        self.new_words = words_of(source.captions or (), with_backgrounds=settings.random_background)
        self.words = parts.words and self.new_words and parts.words.joined(self.new_words)  # that are seen in the end
        vae, text_encoder, unet = parts.vae, parts.text_encoder, parts.unet
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            text_encoder.enable_gradient_checkpointing()
        self.networks = nn.ModuleDict({"unet": unet, **({"text_encoder": text_encoder} if trains_text else {})})
        self.frozen = nn.ModuleDict({"vae": vae, **({} if trains_text else {"text_encoder": text_encoder})})
        self.frozen.requires_grad_(False)
        dream = settings.dream_detail_preservation if settings.dream_training else None
        self.loss = DiffusionLoss(self.scheduler, settings.snr_gamma, dream)
        self.num_train_timesteps = self.scheduler.config.num_train_timesteps
        resolution = settings.resolution or self._native_resolution()
        self._check_resolution(resolution)
        self.prepare_image = Preparation(
            resolution,
            3,
            settings.center_crop,
            settings.random_flip,
            "named" if settings.random_background else "white",
            settings.image_interpolation_mode,
        )
        self.buckets = self._make_buckets(resolution)
        self.latents: LatentCache | None = None
        if settings.cache_latents and settings.center_crop:
            self.latents = LatentCache(Path(settings.output_dir) / "cache", source, self.prepare_image, self.buckets)
        self.texts: CaptionCache | None = None

    @property
    def vae(self) -> AutoencoderKL:
        return cast(AutoencoderKL, self.frozen["vae"])

    @property
    def unet(self) -> UNet2DConditionModel:
        return cast(UNet2DConditionModel, (self.networks if "unet" in self.networks else self.frozen)["unet"])

    @property
    def factor(self) -> int:
        """How much smaller than pictures latents are."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def _native_resolution(self) -> int:
        size = self.unet.config.sample_size
        if size is None:
            raise ConfigError("the U-Net does not say what size it is for: give resolution")
        return int(size if isinstance(size, int) else min(size)) * self.factor

    @property
    def multiple(self) -> int:
        """What the sides of pictures are multiples of, in pixels."""
        return int(self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    def _check_resolution(self, resolution: int) -> None:
        if resolution % self.multiple:
            raise ConfigError(f"resolution must be a multiple of {self.multiple} for this model, not {resolution}")

    def _make_buckets(self, resolution: int) -> Buckets | None:
        """The size of each picture; None where all become squares."""
        settings = self.settings
        if settings.aspect_ratio_buckets is None:
            return None
        step = settings.bucket_reso_steps or usual_step(resolution, self.multiple)
        if step % self.multiple:
            raise ConfigError(f"bucket_reso_steps must be a multiple of {self.multiple} for this model, not {step}")
        for side in (side for size in settings.aspect_ratio_buckets for side in size):
            if side % self.multiple:
                raise ConfigError(
                    f"the sides in aspect_ratio_buckets must be multiples of {self.multiple} for this model, not {side}"
                )
        least = min(resolution, settings.min_bucket_reso or max(step, resolution // 2))
        most = max(resolution, settings.max_bucket_reso or 2 * resolution)
        if (least, most) != (settings.min_bucket_reso or least, settings.max_bucket_reso or most):
            raise ConfigError(
                f"resolution={resolution}, which is what the model is made for, must be between min_bucket_reso="
                f"{settings.min_bucket_reso or 1} and max_bucket_reso={settings.max_bucket_reso or 'any'}"
            )
        given = tuple((width, height) for height, width in settings.aspect_ratio_buckets)
        rules = Rules(resolution, step, least, most, given, settings.bucket_no_upscale)
        buckets = rules.buckets(self.source)
        return None if buckets.sizes == ((resolution, resolution),) else buckets

    def train(self, mode: bool = True) -> TextToImage:
        super().train(mode)
        self.frozen.eval()
        return self

    def prepare(self, began: dict[str, Any]) -> None:
        """Encode what can be encoded once: pictures, and captions if the text encoder is not trained."""
        if self.latents is not None:
            self.latents.look(self.vae)
            self.check_unchanged(began)
            self.latents.fill(self.vae)
        if "text_encoder" in self.frozen and self.settings.cache_text_embeddings:
            self.texts = CaptionCache.of(self.source, self.settings.random_background)
            if self.texts is not None:
                self.texts.fill(self.tokenizer, self.frozen["text_encoder"])
        self._warn_of_long_captions()

    def _warn_of_long_captions(self) -> None:
        """Warn of captions that the tokenizer cuts.

        Where backgrounds are named at random, each caption is measured with a background whose name is long.
        """
        captions = {caption for options in self.source.captions or () for caption in options}
        if self.settings.random_background:
            captions = {say_background(caption, "light green") for caption in captions}
        most = self.tokenizer.model_max_length
        long = sorted(caption for caption in captions if len(self.tokenizer.encode(caption)) > most)
        if long:
            warnings.warn(
                f"{len(long)} of {len(captions)} captions have more than {most} tokens and lose their end, for example "
                f"{long[0]!r:.200}",
                stacklevel=2,
            )

    def dataset(self) -> Ready:
        stream = CaptionedStream(
            self.source,
            self.prepare_image,
            self.settings.seed,
            dropout=self.settings.caption_dropout,
            encoded=self.latents is not None,
            transparent=None if self.latents is None else self.latents.transparent,
            buckets=self.buckets,
        )
        return Ready(stream, self.tokenizer, self.latents, self.texts)

    # --- the loss ----------------------------------------------------------------------------------------------------

    def encode_images(self, batch: dict[str, Any]) -> Tensor:
        """Latents of a batch, drawn from what the autoencoder says of the pictures, scaled: (b z h w) float32."""
        vae = self.vae
        if self.latents is not None:
            latents = draw_latents(batch["latents"])
        else:
            with torch.no_grad():
                latents = vae.encode(batch["image"].to(vae.dtype)).latent_dist.sample().float()
        scaled: Tensor = (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        return scaled

    def encode_captions(self, batch: dict[str, Any]) -> Tensor:
        """The text encoder's vectors for the captions of a batch: (b s d)."""
        if "text" in batch:
            known: Tensor = batch["text"]
            return known
        trains = "text_encoder" in self.networks
        encoder = self.networks["text_encoder"] if trains else self.frozen["text_encoder"]
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            text: Tensor = encoder(batch["ids"])[0]
        return text

    def forward(self, batch: dict[str, Any]) -> Losses:
        x0 = self.encode_images(batch)
        eps = draw_noise(self.settings, x0)
        timesteps = draw_timesteps(self.num_train_timesteps, x0)
        perturbation = None
        if self.settings.input_perturbation:
            perturbation = self.settings.input_perturbation * torch.randn_like(x0)
        text = self.encode_captions(batch)

        losses = self.loss(self.denoiser(text, batch), x0, eps, timesteps, perturbation)
        return Losses(losses, timesteps, weights=batch.get("weight"))

    def denoiser(self, text: Tensor, batch: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """What predicts, of noisy latents (b z h w) and their timesteps (b,), given texts (b s d) and the batch."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.unet(x, t, text).sample
            return out

        return predict

    # --- what comes of it --------------------------------------------------------------------------------------------

    def finished(self, networks: nn.ModuleDict) -> Savable:
        """The pipeline of these networks."""
        dtype = next(networks.parameters()).dtype
        parts = {**{name: copy_as(module, dtype) for name, module in self.frozen.items()}, **dict(networks.items())}
        pipe = StableDiffusionPipeline(tokenizer=self.tokenizer, scheduler=self.scheduler, **parts)  # type: ignore[arg-type]
        pipe.words = self.words
        return pipe

    def prompts(self) -> list[str]:
        """What a preview draws: each of the prompts so many times as the settings say, or some captions."""
        if self.settings.validation_prompts:
            times = self.settings.num_validation_images
            return [prompt for prompt in self.settings.validation_prompts for _ in range(times)]
        stride = max(1, self.count // SHOWN)
        return [options[0] for options in (self.source.captions or ())[::stride][:SHOWN]]

    @property
    def shown(self) -> int:  # type: ignore[override]
        return len(self.prompts())

    @property
    def passes(self) -> int:  # type: ignore[override]
        return 2 * self.settings.validation_inference_steps  # each step is guided

    def preview(self, finished: StableDiffusionPipeline, most: int | None = None) -> Image.Image:
        finished.set_progress_bar_config(disable=True)
        prompts = self.prompts()[:most]
        steps = self.settings.validation_inference_steps
        images: list[Image.Image] = []
        rescale = 0.7 if self.scheduler.config.rescale_betas_zero_snr else 0.0
        for first in range(0, len(prompts), 8):
            chosen = prompts[first : first + 8]
            seeds = list(range(first, first + len(chosen)))
            images += finished(
                chosen, seed=seeds, guidance_scale=GUIDANCE, guidance_rescale=rescale, num_inference_steps=steps
            )[0]
        return image_grid(images, columns=min(8, len(images)), captions=prompts)

    def next_command(self, folder: str) -> list[str]:
        return ["ddim", "sample", self.prompts()[0], "--model", folder, "--out", f"{folder}/try.png"]

    def record(self) -> dict[str, Any]:
        captions = self.source.captions or ()
        known: dict[str, Any] = {"images": self.count, "captions": sum(map(len, captions))}
        if self.buckets is not None:
            told = [self.buckets.sizes, self.buckets.of.tolist()]
            known["buckets_sha256"] = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        known["captions_sha256"] = hashlib.sha256(json.dumps([*captions]).encode()).hexdigest()[:16]
        if self.latents is not None and self.latents.pictures:
            known["pictures_sha256"] = self.latents.pictures[:16]
            known["autoencoder_sha256"] = self.latents.autoencoder[:16]
        return known


def copy_as(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself if it is of that type, else a copy that is."""
    return module if next(module.parameters()).dtype == dtype else copy.deepcopy(module).to(dtype)


class Adapters(Savable):
    """What a LoRA run saves: the adapters and the words of their captions. `pipe` has them in use, for pictures."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
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
    """The same loss, of low-rank adapters in the U-Net (and, if asked, in the text encoder)."""

    settings: LoraSettings

    def __init__(self, settings: LoraSettings, source: Source, parts: Parts) -> None:
        parts.unet.requires_grad_(False)
        add_lora(parts.unet, settings.rank)
        if settings.train_text_encoder:
            parts.text_encoder.requires_grad_(False)
            add_lora(parts.text_encoder, settings.rank, targets=TEXT_TARGETS)
        super().__init__(settings, source, parts, trains_text=settings.train_text_encoder)

    def finished(self, networks: nn.ModuleDict) -> Adapters:
        pipe = super().finished(networks)
        assert isinstance(pipe, StableDiffusionPipeline)
        states = {name: lora_state(module) for name, module in networks.items()}
        return Adapters(pipe, states, self.settings.rank, self.new_words)

    def preview(self, finished: Any, most: int | None = None) -> Image.Image:
        return super().preview(finished.pipe, most)

    def next_command(self, folder: str) -> list[str]:
        base = self.settings.pretrained_model_name_or_path
        return ["ddim", "sample", self.prompts()[0], "--model", base, "--lora", folder, "--out", f"{folder}/try.png"]


def read_source(settings: LatentSettings, **conditions: Any) -> Source:
    """The captioned pictures that the settings name.

    Args:
        conditions: where what they are conditioned on is, as `captioned_source` takes it.

    Raises:
        ConfigError, DataError: as `captioned_source`.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns when the loader's processes are forked
    return captioned_source(
        train_data_dir=settings.train_data_dir,
        dataset_name=settings.dataset_name,
        dataset_config_name=settings.dataset_config_name,
        image_column=settings.image_column,
        caption_column=settings.caption_column,
        max_train_samples=settings.max_train_samples,
        **conditions,
        **settings.hub,
    )


def text_to_image(settings: Any) -> TextToImage:
    """The objective of these settings.

    Raises:
        ConfigError, DataError: settings or data that cannot work together.
        MissingExtraError: peft, for adapters, is not installed.
    """
    if isinstance(settings, LoraSettings):
        require("peft", "train")
    source = read_source(settings)
    if isinstance(settings, LoraSettings):
        return Lora(settings, source, pretrained_parts(settings))
    new = settings.pretrained_model_name_or_path is None
    parts = new_parts(settings, source) if new else pretrained_parts(settings)
    return TextToImage(settings, source, parts, trains_text=new or settings.train_text_encoder)
