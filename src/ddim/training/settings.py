"""The options of training. Their names are those of diffusers' training scripts, where these have the like."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from ddim.errors import ConfigError

__all__ = [
    "DiffusionSettings",
    "LatentSettings",
    "LoraSettings",
    "PictureSettings",
    "PixelSettings",
    "TextToImageSettings",
    "TrainSettings",
    "VAESettings",
]

Spacing = Literal["leading", "trailing", "linspace", "quadratic", "optimized"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


def _switch(arguments: list[str]) -> bool | None:
    """`--option` alone is True."""
    values: dict[str, bool | None] = {"": True, "True": True, "False": False, "None": None}
    given = "".join(arguments)
    if given not in values:
        raise ValueError(f"expected True, False or nothing, not {given!r}")
    return values[given]


# True, False, or whatever a pretrained model has.
Switch = Annotated[
    bool | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="[True|False]",
        instance_from_str=_switch,
        is_instance=lambda value: value is None or isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass(frozen=True)
class TrainSettings:
    """What every run has.

    Run the same command again after an interruption: it goes on from the last checkpoint, bit for bit. Several
    processes or GPUs: `accelerate launch -m ddim train …`.
    """

    output_dir: str
    """Where checkpoints, logs and at the end the model go."""

    train_batch_size: int = 64
    """Images a step and process."""
    gradient_accumulation_steps: int = 1
    """Batches before each optimizer step."""
    max_train_steps: int = 10_000
    """Optimizer steps in all."""
    num_train_epochs: int | None = None
    """Instead of max_train_steps: passes over the data."""
    learning_rate: float = 2e-4
    """At its peak."""
    scale_lr: bool = False
    """Multiply the learning rate by batch size, accumulation and processes."""
    lr_scheduler: Schedule = "cosine"
    """After the warm-up; all but the constant ones fall to zero at lr_decay_steps (polynomial: lr_power)."""
    lr_decay_steps: int | None = None
    """Where the learning rate reaches zero: max_train_steps if not given. Give it to stop before that, or to go on."""
    lr_warmup_steps: int = 500
    """The learning rate rises from zero over so many steps."""
    lr_num_cycles: int = 1
    """Of cosine_with_restarts."""
    lr_power: float = 1.0
    """Of polynomial."""
    adam_beta1: float = 0.9
    """AdamW."""
    adam_beta2: float = 0.999
    """AdamW."""
    adam_weight_decay: float = 0.0
    """AdamW."""
    adam_epsilon: float = 1e-8
    """AdamW."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this norm."""
    use_ema: bool = True
    """Average the weights over the run; the average is what is sampled and saved."""
    ema_decay: float = 0.999
    """Of that average."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    dataloader_num_workers: int = 0
    """Processes that load images."""
    seed: int = 0
    """Of everything: the weights, the order, the noise."""

    checkpointing_steps: int = 500
    """Write a checkpoint every so many steps."""
    checkpoints_total_limit: int | None = 2
    """Keep so many checkpoints."""
    resume_from_checkpoint: str = "latest"
    """`latest`, a checkpoint's folder or its name in output_dir, or `none`."""
    validation_steps: int | None = None
    """Draw samples every so many steps; with each checkpoint if not given, never if 0."""
    validation_epochs: int | None = None
    """Instead of validation_steps: every so many passes over the data."""
    logging_steps: int = 20
    """Log the loss every so many steps."""
    report_to: Literal["tensorboard", "none"] = "tensorboard"
    """Where losses and samples are shown."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """The type of the finished model's weights."""
    push_to_hub: bool = False
    """Upload the finished model, and nothing else of output_dir; it is called like that."""

    def __post_init__(self) -> None:
        counts = (
            "train_batch_size gradient_accumulation_steps max_train_steps num_train_epochs checkpointing_steps "
            "checkpoints_total_limit logging_steps lr_decay_steps lr_num_cycles validation_epochs"
        )
        require(self, counts, "must be 1 or more", lambda value: value >= 1)
        sizes = "lr_warmup_steps validation_steps dataloader_num_workers seed adam_weight_decay"
        require(self, sizes, "must be 0 or more", lambda value: 0 <= value < math.inf)
        positive = "learning_rate lr_power max_grad_norm adam_epsilon"
        require(self, positive, "must be positive", lambda value: 0 < value < math.inf)
        require(self, "ema_decay adam_beta1 adam_beta2", "must be in [0, 1)", lambda value: 0 <= value < 1)


@dataclass(frozen=True)
class DiffusionSettings(TrainSettings):
    """What every run that trains a diffusion model has."""

    prediction_type: PredictionType | None = None
    """What the network predicts: that of the pretrained model if not given; epsilon for a new one."""
    num_train_timesteps: int | None = None
    """T: that of the pretrained model if not given; 1000 for a new one."""
    beta_schedule: BetaSchedule | None = None
    """The noise schedule: that of the pretrained model if not given; linear for a new one on pixels, scaled_linear for
    a new one on latents."""
    rescale_betas_zero_snr: Switch = None
    """Let the last timestep be pure noise; needs v_prediction or sample. As the pretrained model, else not."""
    timestep_spacing: Spacing | None = None
    """Saved with the model: how to sample it. As the pretrained model; trailing if zero SNR is new, leading for another
    new model."""
    snr_gamma: float | None = None
    """Weigh the loss by min-SNR with this gamma; 5 is usual."""
    noise_offset: float = 0.0
    """Add so much noise that is the same for all pixels of a channel."""
    input_perturbation: float = 0.0
    """Perturb the network's input by so much more noise; 0.1 is usual."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "num_train_timesteps", "must be 1 or more", lambda value: value >= 1)
        require(self, "noise_offset input_perturbation", "must be 0 or more", lambda value: 0 <= value < math.inf)
        require(self, "snr_gamma", "must be positive", lambda value: 0 < value < math.inf)


@dataclass(frozen=True)
class PixelSettings(DiffusionSettings):
    """Train a U-Net on pixels, unconditional or by class, and save it as a pipeline.

    Run the same command again after an interruption: it goes on from the last checkpoint, bit for bit. Several
    processes or GPUs: `accelerate launch -m ddim train pixels …`.
    """

    data: str = "digits"
    """`digits` (scikit-learn's 8x8 digits), a folder of images (a folder for each class, or all in one), a .parquet
    file, or the id of a dataset on the hub."""
    class_conditional: bool = False
    """Learn classes: from the sub-folders' names, or from label_column."""
    image_column: str = "image"
    """Where a dataset keeps its images."""
    label_column: str = "label"
    """Where a dataset keeps its labels, if class_conditional."""
    max_train_samples: int | None = None
    """Use only so many images."""
    pretrained_model_name_or_path: str | None = None
    """Go on from this pipeline's U-Net instead of from nothing."""
    resolution: int | None = None
    """Images are resized (shorter side) and cropped to this. 8 for digits, else 32 if not given."""
    center_crop: bool = True
    """Crop the middle; --no-center-crop crops at random."""
    random_flip: bool = False
    """Mirror half of the images."""
    block_out_channels: tuple[int, ...] = (64, 128, 128)
    """The network's width at each level; each level after the first halves the resolution."""
    layers_per_block: int = 2
    """Residual blocks at each level."""
    attention_levels: tuple[int, ...] = (-1,)
    """The levels with self-attention; -1 is the lowest."""
    attention_head_dim: int = 32
    """Channels of each attention head."""
    dropout: float = 0.0
    """Of the residual blocks."""
    class_dropout: float = 0.1
    """Train this share without the class, for classifier-free guidance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = "layers_per_block attention_head_dim resolution max_train_samples"
        require(self, counts, "must be 1 or more", lambda value: value >= 1)
        require(self, "dropout class_dropout", "must be in [0, 1]", lambda value: 0 <= value <= 1)
        require(self, "block_out_channels", "must be positive widths", lambda value: bool(value) and min(value) >= 1)
        require_levels(self.attention_levels, len(self.block_out_channels))


@dataclass(frozen=True)
class PictureSettings(TrainSettings):
    """What every run on captioned pictures, or their latents, has."""

    dataset_name: str | None = None
    """A .parquet file (or a folder of them), a saved dataset, or the id of one on the hub. This or train_data_dir."""
    dataset_config_name: str | None = None
    """Which configuration of a dataset on the hub."""
    train_data_dir: str | None = None
    """A folder of pictures with their captions in metadata.jsonl (file_name and caption_column) or in .txt files."""
    image_column: str = "image"
    """Where a dataset keeps its images."""
    max_train_samples: int | None = None
    """Use only so many images."""
    resolution: int | None = None
    """Images are resized (shorter side) and cropped to this: what the model was made for, if not given."""
    center_crop: bool = True
    """Crop the middle; --no-center-crop crops at random."""
    random_flip: bool = False
    """Mirror half of the images."""
    random_background: bool = False
    """Put pictures with transparency on plain backgrounds: half of them white, an eighth black, the others colours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "resolution max_train_samples", "must be 1 or more", lambda value: value >= 1)
        if (self.dataset_name is None) == (self.train_data_dir is None):
            raise ConfigError("give dataset_name or train_data_dir, one of the two: where the pictures are")


@dataclass(frozen=True)
class VAESettings(PictureSettings):
    """Train an autoencoder (AutoencoderKL) that turns pictures into latents for `ddim train text-to-image`.

    The loss is |error| + mse_weight·error² + gradient_weight·|error of the differences of neighbours|, and
    kl_weight times the divergence of a latent number from the standard normal distribution. Captions are not needed.
    """

    pretrained_model_name_or_path: str | None = None
    """Go on from this autoencoder, or from the one of this pipeline, instead of from nothing."""
    block_out_channels: tuple[int, ...] = (32, 64, 64)
    """The network's width at each level; each level after the first halves the resolution."""
    layers_per_block: int = 1
    """Residual blocks at each level."""
    latent_channels: int = 4
    """Channels of the latents."""
    mid_block_add_attention: bool = False
    """Attention among all positions of the latents."""
    kl_weight: float = 1e-4
    """For each latent number."""
    mse_weight: float = 1.0
    """Beside the mean absolute error."""
    gradient_weight: float = 1.0
    """Sharp edges."""
    permute_colors: bool = False
    """Exchange red, green and blue at random in half of the pictures: every colour becomes equally frequent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "layers_per_block latent_channels", "must be 1 or more", lambda value: value >= 1)
        weights = "kl_weight mse_weight gradient_weight"
        require(self, weights, "must be 0 or more", lambda value: 0 <= value < math.inf)
        require(self, "block_out_channels", "must be positive widths", lambda value: bool(value) and min(value) >= 1)


@dataclass(frozen=True)
class LatentSettings(DiffusionSettings, PictureSettings):
    """What text to image and its low-rank adaptation have in common."""

    caption_column: str = "text"
    """Where a dataset keeps its captions: a text, or several of which one is taken at random each time."""
    caption_dropout: float = 0.1
    """Train this share without the caption, for classifier-free guidance."""
    cache_latents: bool = True
    """Encode each picture once, where nothing random changes it but mirroring and the background."""
    cache_text_embeddings: bool = True
    """Encode each caption once, where the text encoder is not trained."""
    train_text_encoder: bool = False
    """Train the text encoder, too. A new one is trained in any case."""
    validation_prompts: tuple[str, ...] = ()
    """Drawn at each validation. The first captions of the data if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "caption_dropout", "must be in [0, 1]", lambda value: 0 <= value <= 1)


@dataclass(frozen=True)
class TextToImageSettings(LatentSettings):
    """Train text to image on latents, from nothing or from a pipeline, and save the pipeline.

    Without pretrained_model_name_or_path the U-Net, the text encoder and its tokenizer are new and learn from the data
    alone; only the autoencoder must be there.
    """

    pretrained_model_name_or_path: str | None = None
    """The pipeline to fine-tune. If not given, everything but the autoencoder is made anew."""
    pretrained_vae_model_name_or_path: str | None = None
    """The autoencoder, if it is not the pipeline's: a folder, or a pipeline with a vae. The bundled emoji model's for a
    new model."""
    block_out_channels: tuple[int, ...] = (64, 128, 192)
    """A new U-Net's width at each level; each level after the first halves the latents' resolution."""
    layers_per_block: int = 1
    """A new U-Net's residual blocks at each level."""
    attention_levels: tuple[int, ...] = (-2, -1)
    """A new U-Net's levels with attention to the text; -1 is the lowest."""
    attention_heads: int = 4
    """A new U-Net's attention heads."""
    dropout: float = 0.0
    """A new U-Net's."""
    text_dim: int = 192
    """A new text encoder's width."""
    text_layers: int = 2
    """A new text encoder's depth."""
    text_heads: int = 6
    """A new text encoder's attention heads."""
    vocab_size: int = 4096
    """A new tokenizer's tokens, at most."""
    max_tokens: int = 24
    """A new text encoder's longest text, with its start and its end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = "layers_per_block attention_heads text_dim text_layers text_heads"
        require(self, counts, "must be 1 or more", lambda value: value >= 1)
        require(self, "vocab_size", "must be 514 or more: all bytes, twice, and two tokens", lambda value: value >= 514)
        require(self, "max_tokens", "must be 3 or more", lambda value: value >= 3)
        require(self, "dropout", "must be in [0, 1]", lambda value: 0 <= value <= 1)
        require(self, "block_out_channels", "must be positive widths", lambda value: bool(value) and min(value) >= 1)
        require_levels(self.attention_levels, len(self.block_out_channels))


@dataclass(frozen=True)
class LoraSettings(LatentSettings):
    """Fine-tune a text-to-image pipeline by low-rank adaptation, and save `pytorch_lora_weights.safetensors`.

    `pipe.load_lora_weights(output_dir)` uses it, here and in diffusers.
    """

    pretrained_model_name_or_path: str = "emoji"
    """The pipeline to fine-tune."""
    rank: int = 4
    """Of the adapters' matrices; alpha is the same."""
    train_batch_size: int = 16
    """Images a step and process."""
    max_train_steps: int = 500
    """Optimizer steps in all."""
    learning_rate: float = 1e-3
    """At its peak."""
    lr_warmup_steps: int = 20
    """The learning rate rises from zero over so many steps."""
    use_ema: bool = False
    """Average the weights over the run; the average is what is sampled and saved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "rank", "must be 1 or more", lambda value: value >= 1)


def require(settings: object, names: str, what: str, holds: Callable[[Any], bool]) -> None:
    """Raise a ConfigError for the first of these options that is given and wrong."""
    for name in names.split():
        value = getattr(settings, name)
        if value is not None and not holds(value):
            raise ConfigError(f"{name} {what}, not {value}")


def require_levels(levels: tuple[int, ...], count: int) -> None:
    """Raise a ConfigError if there are no such levels among `count`."""
    for level in levels:
        if not -count <= level < count:
            raise ConfigError(f"attention_levels has {level}, but block_out_channels has the levels 0 to {count - 1}")
