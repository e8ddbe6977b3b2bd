"""Training text to image on latents: all of a new model, or more of a pretrained one, or low-rank adapters of it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import partial
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
from ddim.models import AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from ddim.pipelines.conditions import Condition
from ddim.pipelines.prompts import Encoded
from ddim.pipelines.words import WordList
from ddim.pipelines.xl_sizes import has_score
from ddim.scheduler import DDIMScheduler
from ddim.training.autoencoder import load_vae
from ddim.training.caches import CaptionCache, LatentCache, draw_latents, encoded
from ddim.training.diffusion import DiffusionLoss, draw_noise, draw_timesteps, timestep_weights, train_scheduler
from ddim.training.frozen import Frozen, Reload
from ddim.training.objective import Losses, Objective
from ddim.training.settings import (
    ControlNetSettings,
    LatentSettings,
    LoraSettings,
    TextToImageSettings,
    TextualInversionSettings,
    TrainSettings,
)
from ddim.training.texts import Texts
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
    tokenizer_2: CLIPTokenizer | None = None  # these two of Stable Diffusion XL
    text_encoder_2: CLIPTextModelWithProjection | None = None
    kind: type[DiffusionPipeline] = StableDiffusionPipeline
    settings: Mapping[str, Any] = {}  # what else the pipeline is made with
    reload: Reload | None = None  # reads the autoencoder and the text encoders once more

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


def pretrained_parts(
    settings: TextToImageSettings | LoraSettings | TextualInversionSettings | ControlNetSettings,
) -> Parts:
    """The parts of a pipeline, with the noise schedule that the settings ask for."""
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
    encoders = [part for part in kind.parts if part.startswith("text_encoder")]
    if any(pipe.components.get(part) is None for part in (*encoders, "tokenizer", "vae")):
        missing = "has no text encoder: there is nothing to train by"
        if pipe.components.get("text_encoder_2") is not None:
            missing = "is a refiner, which is not trained here: give the base model"
        raise ConfigError(f"{settings.pretrained_model_name_or_path} {missing}")
    vae: Any = pipe.vae
    readers: dict[str, Callable[[], nn.Module]] = {}
    if settings.pretrained_vae_model_name_or_path is not None:
        of_vae = settings.pretrained_vae_model_name_or_path
        vae, readers["vae"] = load_vae(of_vae, **hub), lambda: load_vae(of_vae, **hub)
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

    def reload(names: Collection[str]) -> dict[str, nn.Module]:
        others = {part: None for part in kind.parts if part not in names or part in readers}
        again: Any = type(pipe).from_pretrained(name, **{**only, **others}) if {*names} - {*readers} else None
        return {part: readers[part]() if part in readers else again.components[part] for part in names}

    return Parts(
        vae,
        pipe.tokenizer,
        pipe.text_encoder,
        pipe.unet,
        scheduler,
        getattr(pipe, "words", None),
        pipe.components.get("tokenizer_2"),
        pipe.components.get("text_encoder_2"),
        kind,
        {setting: getattr(pipe, setting) for setting in getattr(kind, "settings", ())},
        reload,
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


class Ready(Dataset[dict[str, Any]]):
    """A stream whose items have all that a step computes with, so that it never waits for what the device is doing.

    To an item of the stream come "weight", that of its loss, if its place says one; "latents", what the autoencoder
    says of the picture (2 z h w), if that is known; and "text" (s d), the vectors of the caption, if these are, with
    "pooled" (p), the second text encoder's vector, or else what `Texts.tokens` makes of it, such as "ids" (s).

    Args:
        stream: pictures with captions.
        texts: makes tokens of captions.
        latents, known: what was computed of pictures and captions beforehand, or None.
    """

    def __init__(
        self,
        stream: CaptionedStream,
        texts: Texts,
        latents: LatentCache | None,
        known: CaptionCache | None,
    ) -> None:
        self.stream, self.texts = stream, texts
        self.latents, self.known = latents, known

    def __getitem__(self, place: int | Draw) -> dict[str, Any]:
        item = self.stream[place]
        if isinstance(place, Draw):
            item["weight"] = torch.tensor(place.weight)
        if self.latents is not None:
            item["latents"] = self.latents.rows(item["index"], item["variant"])
        if self.known is not None:
            item["text"], pooled = self.known.embedding(item["caption"])
            item |= {} if pooled is None else {"pooled": pooled}
        else:
            item |= {name: tokens[0] for name, tokens in self.texts.tokens([item["caption"]]).items()}
        return item


class TextToImage(Objective):
    """The loss of a U-Net on latents (b z h w), given texts.

    Args:
        settings: of the run.
        source: pictures with captions.
        parts: what is trained, and what is used as it is.
        trains_text: whether the text encoders are trained.
    """

    def __init__(self, settings: LatentSettings, source: Source, parts: Parts, trains_text: bool) -> None:
        super().__init__()
        self.settings, self.source = settings, source
        self.count = source.count
        self.parts, self.scheduler = parts, parts.scheduler
        self.told = Texts(parts.tokenizers, parts.settings.get("force_zeros_for_empty_prompt", False))
        self._check_conditions()
        self.new_words = words_of(source.captions or (), with_backgrounds=settings.random_background)
        self.words = parts.words and self.new_words and parts.words.joined(self.new_words)  # that are seen in the end
        if settings.gradient_checkpointing:
            for network in (parts.unet, *parts.encoders.values()):
                network.enable_gradient_checkpointing()
        self.networks = nn.ModuleDict({"unet": parts.unet, **(parts.encoders if trains_text else {})})
        self.frozen = Frozen({"vae": parts.vae, **({} if trains_text else parts.encoders)}, parts.reload)
        dream = settings.dream_detail_preservation if settings.dream_training else None
        self.loss = DiffusionLoss(self.scheduler, settings.snr_gamma, dream)
        self.num_train_timesteps = self.scheduler.config.num_train_timesteps
        self.likely = timestep_weights(settings, self.num_train_timesteps)
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
        self.sizes = self.buckets  # of all pictures; SDXL is told of them, buckets or not
        if self.told.is_xl and self.sizes is None:
            self.sizes = Rules(resolution, 1, 1, 1, given=((resolution, resolution),)).buckets(source)
        self.latents: LatentCache | None = None
        if settings.cache_latents and settings.center_crop:
            self.latents = LatentCache(self.cache, source, self.prepare_image, self.sizes, self.is_exact)
        self.texts: CaptionCache | None = None

    @property
    def learns_texts(self) -> bool:
        """Whether what a text becomes changes as the run goes on."""
        return "text_encoder" in self.networks

    @property
    def cache(self) -> Path:
        """The folder for what is computed beforehand."""
        return Path(self.settings.output_dir) / "cache"

    @property
    def tokenizer(self) -> CLIPTokenizer:
        return self.parts.tokenizer

    @property
    def is_exact(self) -> bool:
        """Whether the autoencoder overflows in half precision, and so always computes in float32."""
        return self.told.is_xl and bool(self.parts.vae.config.force_upcast)

    def _check_conditions(self) -> None:
        """Raise a ConfigError if the U-Net is not told what a pipeline of this kind tells it."""
        if not self.told.is_xl:
            return
        assert self.parts.text_encoder_2 is not None
        if has_score(self.parts.unet.config, self.parts.text_encoder_2.config.projection_dim or 0):
            raise ConfigError("a U-Net that is told how good pictures look, as a refiner's is, is not trained here")

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
        return self

    def prepare(self, began: dict[str, Any]) -> None:
        """Encode what can be encoded once: pictures, and captions if the text encoders are not trained.

        Networks that are not needed any more then leave the memory.
        """
        if self.latents is not None and not self.latents.tables:
            self.latents.look(self.vae)
            self.check_unchanged(began)
            self.latents.fill(self.vae)
            self.frozen.put_away("vae")
        encoders = [name for name in self.parts.encoders if name in self.frozen]
        if encoders and self.settings.cache_text_embeddings and self.texts is None:
            varied = self.settings.random_background
            self.texts = CaptionCache.of(self.source, varied, self.cache, half(self.settings))
        if self.texts is not None and not self.texts.tables:
            self.texts.fill(self._encode)
            self.frozen.put_away(*encoders)
        elif self.texts is None and encoders and half(self.settings) != torch.float32:
            self.frozen.keep_as(half(self.settings), *encoders)
        self._warn_of_long_captions()

    def _encode(self, captions: list[str]) -> Encoded:
        """What the text encoders make of captions."""
        tokens = {name: ids.to(self.loss.weight.device) for name, ids in self.told.tokens(captions).items()}
        return self.told.encode({name: self.frozen[name] for name in self.parts.encoders}, tokens)

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
            buckets=self.sizes,
        )
        return Ready(stream, self.told, self.latents, self.texts)

    # --- the loss ----------------------------------------------------------------------------------------------------

    def encode_images(self, batch: dict[str, Any]) -> Tensor:
        """Latents of a batch, drawn from what the autoencoder says of the pictures, scaled: (b z h w) float32."""
        config = self.vae.config
        if self.latents is not None:
            latents = draw_latents(batch["latents"])
        else:
            with torch.no_grad():
                latents = encoded(self.vae, batch["image"], self.is_exact).sample().float()
        if self.told.is_xl and config.latents_mean is not None and config.latents_std is not None:
            mean, std = (
                torch.tensor(x).to(latents).view(1, -1, 1, 1) for x in (config.latents_mean, config.latents_std)
            )
            latents = (latents - mean) / std
        scaled: Tensor = (latents - (config.shift_factor or 0.0)) * config.scaling_factor
        return scaled

    def encode_captions(self, batch: dict[str, Any]) -> Condition:
        """What the U-Net is told of a batch of b: the texts and, of SDXL, what stands beside the timestep."""
        if "text" in batch:
            found = Encoded(batch["text"], batch.get("pooled"))
        else:
            encoders = self.networks if "text_encoder" in self.networks else self.frozen
            with torch.set_grad_enabled(self.learns_texts and torch.is_grad_enabled()):
                found = self.told.encode({name: encoders[name] for name in self.parts.encoders}, batch)
        if found.pooled is None:
            return Condition(found.states)
        return Condition(found.states, {"text_embeds": found.pooled, "time_ids": batch["sizes"]})

    def forward(self, batch: dict[str, Any]) -> Losses:
        x0 = self.encode_images(batch)
        eps = draw_noise(self.settings, x0)
        timesteps = draw_timesteps(self.num_train_timesteps, x0)
        if self.likely is not None:
            timesteps = torch.multinomial(self.likely.to(x0.device), len(x0), replacement=True)
        perturbation = None
        if self.settings.input_perturbation:
            perturbation = self.settings.input_perturbation * torch.randn_like(x0)
        denoiser = self.denoiser(self.encode_captions(batch), batch)
        losses = self.loss(denoiser, x0, eps, timesteps, perturbation)
        return Losses(losses, timesteps, weights=batch.get("weight"))

    def denoiser(self, told: Condition, batch: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """What predicts, of noisy latents (b z h w) and their timesteps (b,)."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.unet(x, t, told.embeds, added_cond_kwargs=told.added or None).sample
            return out

        return predict

    # --- what comes of it --------------------------------------------------------------------------------------------

    def finished(self, networks: nn.ModuleDict) -> Savable:
        """The pipeline of these networks."""
        made: Savable = self.pipeline(networks)
        return made

    def pipeline(self, networks: nn.ModuleDict) -> Any:
        """The pipeline of these networks, and of the others as they were loaded."""
        parameter = next(networks.parameters())
        frozen = self.frozen.whole([*self.frozen], parameter.device, parameter.dtype)
        tokenizers = {"tokenizer": self.parts.tokenizer}
        if self.told.is_xl:
            tokenizers["tokenizer_2"] = cast(CLIPTokenizer, self.parts.tokenizer_2)
        others = {**tokenizers, "scheduler": self.scheduler, **self.parts.settings}
        pipe = self.parts.kind(**{**frozen, **dict(networks.items()), **others})
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

    def preview(self, finished: Any, most: int | None = None) -> Image.Image:
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
    """The same loss, of low-rank adapters in the U-Net (and, if asked, in the text encoders)."""

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
