"""Training text to image on latents: all of a new model, or more of a pretrained one."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddim.checkpoint import Savable
from ddim.data import Source, captioned_source
from ddim.data.buckets import Buckets, Rules, usual_step
from ddim.data.preparation import Preparation, say_background
from ddim.data.stream import CaptionedStream, Draw
from ddim.errors import ConfigError
from ddim.images import image_grid
from ddim.models import AutoencoderKL, UNet2DConditionModel
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines.conditions import Condition
from ddim.pipelines.prompts import Encoded
from ddim.pipelines.xl_sizes import has_score
from ddim.training.caches import CaptionCache, LatentCache, draw_latents, encoded
from ddim.training.diffusion import DiffusionLoss, draw_noise, draw_timesteps, timestep_weights
from ddim.training.frozen import Frozen
from ddim.training.objective import Losses, Objective
from ddim.training.parts import Parts, half, new_parts, pretrained_parts
from ddim.training.settings import LatentSettings, TextToImageSettings
from ddim.training.texts import Texts
from ddim.training.vocabulary import words_of

GUIDANCE = 3.0  # of a preview, whose guidance rescale is 0.7 where the terminal SNR is zero
SHOWN = 16  # how many captions a preview draws, if no prompts are given


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
        pipe = self.parts.pipeline({**frozen, **dict(networks.items())})
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


def text_to_image(settings: TextToImageSettings) -> TextToImage:
    """The objective of these settings.

    Raises:
        ConfigError, DataError: settings or data that cannot work together.
    """
    source = read_source(settings)
    new = settings.pretrained_model_name_or_path is None
    parts = new_parts(settings, source) if new else pretrained_parts(settings)
    return TextToImage(settings, source, parts, trains_text=new or settings.train_text_encoder)
