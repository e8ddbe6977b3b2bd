"""Every command's options. No torch here, so that `--help` is instant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from ddim.errors import ConfigError

Spacing = Literal["leading", "trailing", "linspace", "quadratic"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]


@dataclass(frozen=True)
class SampleSettings:
    """Draw images from a model: of a text, of a class, or of nothing in particular.

    One picture with all of them in a grid is written, or, if --out is a folder, one file for each. A PNG says how it
    was made; --from makes it again.
    """

    prompt: tyro.conf.Positional[str | None] = None
    """What to draw, for a text-to-image model."""
    model: str = "digits"
    """A folder in diffusers' layout, the name of a bundled model (see `ddim info`), or an id on the hub."""
    negative_prompt: str | None = None
    """What to keep away from, for a text-to-image model."""
    class_labels: tuple[int, ...] = ()
    """Classes to draw, for a class-conditional model; repeated to fill the batch. All of them in turn if not given."""
    guidance_scale: float | None = None
    """How much to prefer the text or class over none; 1 is no guidance. If not given, 7.5 for texts, 1 for classes."""
    guidance_rescale: float = 0.0
    """In [0, 1]: how much of the contrast that guidance adds to take back; 0.7 suits zero terminal SNR."""
    steps: int = 50
    """Sampling steps, 1 to the model's training timesteps."""
    eta: float | Literal["sigma_hat"] = 0.0
    """Noise added on the way: 0 is DDIM, 1 is DDPM, sigma_hat is DDPM with the larger variance."""
    spacing: Spacing | None = None
    """Which of the training timesteps to use. The model's own choice if not given."""
    zero_snr: bool | None = None
    """Rescale the schedule to zero terminal SNR (needs a v-prediction model). The model's own choice if not given."""
    seed: int = 0
    """Image k of a seed is the same whatever the batch size."""
    batch: int | None = None
    """How many images. If not given, the number of class labels, or all classes, or 1 for a text, or 16."""
    height: int | None = None
    """In pixels, for a text-to-image model. What it was trained on if not given."""
    width: int | None = None
    """In pixels, for a text-to-image model."""
    image: str | None = None
    """A picture to start from, for a text-to-image model."""
    strength: float = 0.8
    """In [0, 1]: how much of --image is lost."""
    mask_image: str | None = None
    """White where --image is to be painted anew."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The type to run in."""
    device: str | None = None
    """For example cuda, cuda:1, mps or cpu. The best there is if not given."""
    from_image: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """A PNG that this command wrote: make it again with its settings, except for --out and --device."""
    out: str = "samples.png"
    """A file for a grid of all images, or a folder (existing, or ending in /) for one file each."""


@dataclass(frozen=True)
class TrainSettings:
    """Train a U-Net on pixels, unconditional or by class, and save it as a pipeline.

    Run the same command again after an interruption: it goes on from the last checkpoint, bit for bit. Several
    processes or GPUs: `accelerate launch -m ddim train …`.
    """

    output_dir: str
    """Where checkpoints, logs and at the end the pipeline go."""
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

    prediction_type: PredictionType = "epsilon"
    """What the network predicts."""
    num_train_timesteps: int = 1000
    """T."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    """The noise schedule."""
    rescale_betas_zero_snr: bool = False
    """Let the last timestep be pure noise; needs v_prediction or sample."""
    timestep_spacing: Spacing = "leading"
    """Saved with the model: how to sample it."""
    snr_gamma: float | None = None
    """Weigh the loss by min-SNR with this gamma; 5 is usual."""
    noise_offset: float = 0.0
    """Add so much noise that is the same for all pixels of a channel."""
    input_perturbation: float = 0.0
    """Perturb the network's input by so much more noise; 0.1 is usual."""
    class_dropout: float = 0.1
    """Train this share without the class, for classifier-free guidance."""

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
    lr_scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    """After the warm-up; linear and cosine fall to zero at lr_decay_steps."""
    lr_decay_steps: int | None = None
    """Where the learning rate reaches zero: max_train_steps if not given. Give it to stop before that, or to go on."""
    lr_warmup_steps: int = 500
    """The learning rate rises from zero over so many steps."""
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
    """`latest`, a checkpoint's folder, or `none`."""
    validation_steps: int | None = None
    """Draw samples every so many steps; with each checkpoint if not given, never if 0."""
    logging_steps: int = 20
    """Log the loss every so many steps."""
    report_to: Literal["tensorboard", "none"] = "tensorboard"
    """Where losses and samples are shown."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """The type of the finished pipeline's weights."""
    push_to_hub: bool = False
    """Upload the finished pipeline; named like output_dir."""

    def __post_init__(self) -> None:
        counts = (
            "train_batch_size gradient_accumulation_steps max_train_steps num_train_epochs checkpointing_steps "
            "checkpoints_total_limit logging_steps num_train_timesteps layers_per_block attention_head_dim resolution "
            "max_train_samples lr_decay_steps"
        )
        _require(self, counts, "must be 1 or more", lambda value: value >= 1)
        sizes = "noise_offset input_perturbation lr_warmup_steps validation_steps dataloader_num_workers seed"
        _require(self, f"{sizes} adam_weight_decay", "must be 0 or more", lambda value: 0 <= value < math.inf)
        positive = "learning_rate max_grad_norm adam_epsilon snr_gamma"
        _require(self, positive, "must be positive", lambda value: 0 < value < math.inf)
        _require(self, "dropout class_dropout", "must be in [0, 1]", lambda value: 0 <= value <= 1)
        _require(self, "ema_decay adam_beta1 adam_beta2", "must be in [0, 1)", lambda value: 0 <= value < 1)
        _require(self, "block_out_channels", "must be positive widths", lambda value: bool(value) and min(value) >= 1)


def _require(settings: object, names: str, what: str, holds: Callable[[Any], bool]) -> None:
    """Raise a ConfigError for the first of these options that is given and wrong."""
    for name in names.split():
        value = getattr(settings, name)
        if value is not None and not holds(value):
            raise ConfigError(f"{name} {what}, not {value}")


@dataclass(frozen=True)
class InfoSettings:
    """Say what a model is: its parts and sizes, and the plan that its scheduler makes."""

    model: tyro.conf.Positional[str] = "digits"
    """A folder, the name of a bundled model, or an id on the hub."""
    steps: int = 10
    """Of the plan to show."""
    eta: float | Literal["sigma_hat"] = 0.0
    """Of the plan to show."""


@dataclass(frozen=True)
class PlotSettings:
    """Draw what a sampler does."""

    what: tyro.conf.Positional[Literal["schedule"]] = "schedule"
    """schedule: the noise level and SNR of every timestep, and which timesteps each spacing picks."""
    model: str | None = None
    """Draw this model's schedule instead of the three usual ones."""
    steps: int = 10
    """How many timesteps each spacing picks."""
    zero_snr: bool = False
    """Rescale to zero terminal SNR."""
    out: str = "schedule.png"
    """A .png, .svg or .pdf."""


Command = (
    Annotated[SampleSettings, tyro.conf.subcommand("sample")]
    | Annotated[TrainSettings, tyro.conf.subcommand("train")]
    | Annotated[InfoSettings, tyro.conf.subcommand("info")]
    | Annotated[PlotSettings, tyro.conf.subcommand("plot")]
)
