"""The options of training. Their names are those of diffusers' training scripts, where these have the like."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

import tyro

from ddim.errors import ConfigError, MissingExtraError

__all__ = [
    "ControlNetSettings",
    "DiffusionSettings",
    "DistillSettings",
    "LatentSettings",
    "LoraSettings",
    "PictureSettings",
    "PixelSettings",
    "TextToImageSettings",
    "TextualInversionSettings",
    "TrainSettings",
    "VAESettings",
]

Spacing = Literal["leading", "trailing", "linspace", "quadratic", "optimized"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Interpolation = Literal["nearest", "nearest_exact", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Tracker = Literal["tensorboard", "wandb", "comet_ml", "clearml"]
Schedule = Literal[
    "constant",
    "constant_with_warmup",
    "warmup_stable_decay",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
]


def _switch(arguments: list[str]) -> bool | None:
    """The value of a switch by what stands after its name; nothing there means True."""
    values: dict[str, bool | None] = {"": True, "True": True, "False": False, "None": None}
    given = "".join(arguments)
    if given not in values:
        raise ValueError(f"expected True, False or nothing, not {given!r}")
    return values[given]


# An option that is True, False, or None for whatever a pretrained model has.
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


def _listed_sizes(arguments: list[str]) -> tuple[tuple[int, int], ...] | None:
    """The sizes that stand after --aspect-ratio-buckets as "height,width;height,width"; nothing there means ()."""
    given = "".join(arguments)
    if given in ("", "True"):
        return ()
    if given in ("None", "False"):
        return None
    if not re.fullmatch(r"\s*\d+\s*,\s*\d+\s*(;\s*\d+\s*,\s*\d+\s*)*;?\s*", given):
        raise ValueError(f"expected nothing, or sizes such as 'height,width;height,width', not {given!r:.200}")
    pairs = (pair.split(",") for pair in given.split(";") if pair.strip())
    return tuple((int(height), int(width)) for height, width in pairs)


# An option that is None, or () for sizes that are made, or sizes.
Sizes = Annotated[
    tuple[tuple[int, int], ...] | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="[H,W;H,W]",
        instance_from_str=_listed_sizes,
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: (
            [";".join(f"{height},{width}" for height, width in value)] if value else ["None"]
        ),
    ),
]


# Options that several kinds of training have, some of them with other defaults.
TrainBatchSize = Annotated[int, tyro.conf.arg(help="How many images each process takes for a step.")]
MaxTrainSteps = Annotated[
    int | None,
    tyro.conf.arg(
        help="How many optimizer steps to make in all. If not given, what --num-train-epochs says, or else 10,000, and "
        "500 for adapters and words; with --max-train-seconds as many as there is time for."
    ),
]
LearningRate = Annotated[float, tyro.conf.arg(help="The learning rate after the warm-up, where it is highest.")]
WarmupSteps = Annotated[int, tyro.conf.arg(help="The number of steps in which the learning rate rises from zero.")]
UseEMA = Annotated[
    bool,
    tyro.conf.arg(
        help="Average the weights over the run (EMA). The average is what is drawn with and saved in the end."
    ),
]
ImageColumn = Annotated[str, tyro.conf.arg(help="The column of a dataset that holds the images.")]
DatasetConfigName = Annotated[
    str | None, tyro.conf.arg(help="Which configuration of a dataset on the hub to use. If not given, its default.")
]
MaxTrainSamples = Annotated[
    int | None, tyro.conf.arg(help="Use only so many images, the first ones. If not given, all of them.")
]
CenterCrop = Annotated[
    bool, tyro.conf.arg(help="Crop the middle of each image; --no-center-crop crops anywhere, at random.")
]
RandomFlip = Annotated[bool, tyro.conf.arg(help="Mirror half of the images, chosen at random.")]
Widths = Annotated[
    tuple[int, ...],
    tyro.conf.arg(help="The network's channels at each level. Each level after the first halves the resolution."),
]


@dataclass(frozen=True)
class TrainSettings:
    """The settings that every run has.

    After an interruption, the same command goes on from the last checkpoint, bit for bit. On several GPUs, or in
    several processes, it is started by `accelerate launch -m ddim train …`.
    """

    output_dir: str
    """The folder for checkpoints, logs and, at the end, the model."""

    train_batch_size: TrainBatchSize = 64
    gradient_accumulation_steps: int = 1
    """How many batches to add up the gradients of, before each optimizer step."""
    max_train_steps: MaxTrainSteps = None
    num_train_epochs: int | None = None
    """How many times to go through the data, instead of --max-train-steps."""
    max_train_seconds: Annotated[
        float | None,
        tyro.conf.arg(
            help="End at the first step after so many seconds, if the steps have not come to their end before: with a "
            "checkpoint and the finished model, as after the last step. Encoding the pictures counts, loading the "
            "model and writing it in the end do not. A run that is resumed has so many seconds again. A learning "
            "rate that falls does so by the time then, so that such a run is not the same bit for bit. If not given, "
            "the steps alone end a run."
        ),
    ] = None
    learning_rate: LearningRate = 2e-4
    scale_lr: bool = False
    """Multiply the learning rate by the batch size, the accumulated batches and the processes."""
    lr_scheduler: Schedule = "cosine"
    """How the learning rate goes on after the warm-up. All but the constant ones fall to zero at --lr-decay-steps."""
    lr_decay_steps: int | None = None
    """The step at which the learning rate is zero. If not given, the last one; give it to train in several goes."""
    lr_warmup_steps: WarmupSteps = 500
    lr_num_cycles: int = 1
    """How many times the learning rate falls to zero, for --lr-scheduler cosine_with_restarts."""
    lr_power: float = 1.0
    """The power with which the learning rate falls to zero, for --lr-scheduler polynomial."""
    lr_decay_share: float = 0.2
    """The last share of the steps, in which the learning rate falls to zero, for --lr-scheduler warmup_stable_decay."""
    adam_beta1: float = 0.9
    """The decay of the optimizer's (AdamW's) mean of the gradients, per step."""
    adam_beta2: float = 0.999
    """The decay of the optimizer's (AdamW's) mean of the squared gradients, per step."""
    adam_weight_decay: float = 0.0
    """How strongly the optimizer (AdamW) draws the weights to zero."""
    adam_epsilon: float = 1e-8
    """What the optimizer (AdamW) adds to its divisor, so that it is never zero."""
    use_8bit_adam: bool = False
    """Keep the optimizer's means in 8 bits, a quarter of the memory; this needs the library bitsandbytes."""
    max_grad_norm: float = 1.0
    """Shorten the gradient to this norm where it is longer."""
    use_ema: UseEMA = True
    ema_decay: float = 0.999
    """The decay of the moving average of the weights, per step."""
    ema_power: Annotated[
        float | None,
        tyro.conf.arg(
            help="Let the decay rise to --ema-decay as 1 - (1 + step/ema_inv_gamma)^-power; 0.75 is usual. If not "
            "given, it is the same at all steps."
        ),
    ] = None
    ema_inv_gamma: float = 1.0
    """The number of steps in which the decay begins to rise, for --ema-power."""
    offload_ema: bool = False
    """Keep the average in the host's memory and not on the device: less of the device's, more time."""
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"] | None,
        tyro.conf.arg(
            help="The type of number that the network computes in, while its weights stay in float32; no is float32 "
            "for both. If not given, what `accelerate launch` was told, or else no."
        ),
    ] = None
    allow_tf32: bool = False
    """Let NVIDIA's cards from Ampere on multiply float32 numbers in 19 bits: faster, and a little less exact."""
    gradient_checkpointing: bool = False
    """Compute parts of the network a second time in the backward pass: less memory, more time."""
    dataloader_num_workers: int = 0
    """How many processes load images; with 0, the training process itself does."""
    seed: int = 0
    """The seed of all that is random: new weights, the order of the images, noise and timesteps."""

    checkpointing_steps: int = 500
    """Write a checkpoint each time that so many steps were made."""
    checkpoints_total_limit: int | None = 2
    """How many checkpoints to keep, the newest ones. None keeps all of them."""
    resume_from_checkpoint: str = "latest"
    """The checkpoint to go on from: `latest`, its folder, its name in --output-dir, or `none` to begin anew."""
    validation_steps: int | None = None
    """Draw samples each time that so many steps were made. If not given, with each checkpoint; if 0, never."""
    validation_epochs: int | None = None
    """Draw samples each time that the data was gone through so many times, instead of --validation-steps."""
    save_model_epochs: Annotated[
        int | None,
        tyro.conf.arg(
            help="Write the model as it is into --output-dir each time that the data was gone through so many times. "
            "If not given, it is written in the end alone."
        ),
    ] = None
    logging_steps: int = 20
    """Log the loss each time that so many steps were made."""
    report_to: Annotated[
        Tracker | Literal["all", "none"],
        tyro.conf.arg(
            help="Where losses and samples are shown: one of these services, whose library must be installed, or all "
            "that are. Samples are also written into --output-dir."
        ),
    ] = "tensorboard"
    logging_dir: str = "logs"
    """The folder of TensorBoard's files, inside --output-dir unless its path is absolute."""
    tracker_project_name: Annotated[
        str | None,
        tyro.conf.arg(
            help="The project that a service shows the run in, and a folder in --logging-dir. If not given, ddim for "
            "services, and no folder."
        ),
    ] = None
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """The type of number that the finished model's weights are saved in."""
    push_to_hub: bool = False
    """Upload the finished model to the hub, and nothing else of --output-dir."""
    hub_model_id: str | None = None
    """The repository for --push-to-hub, name or owner/name. If not given, the last part of --output-dir."""
    hub_private_repo: bool = False
    """Make the repository for --push-to-hub private, if it is made."""
    hub_token: Annotated[
        str | None,
        tyro.conf.arg(
            help="The token for --push-to-hub and for what is downloaded. It is written nowhere. If not given, the one "
            "that `hf auth login` stored."
        ),
    ] = field(default=None, repr=False)
    revision: str | None = None
    """The branch, tag or commit of the pretrained model on the hub. If not given, its main branch."""
    variant: str | None = None
    """The variant of the pretrained model's files, such as fp16. If not given, those without a variant."""
    cache_dir: str | None = None
    """The folder for what is downloaded from the hub. If not given, the hub's usual one."""
    image_interpolation_mode: Interpolation = "lanczos"
    """How pictures are resized to --resolution."""

    # How many steps are made if neither steps nor epochs are given.
    usual_steps: ClassVar[int] = 10_000

    def __post_init__(self) -> None:
        counts = (
            "train_batch_size gradient_accumulation_steps max_train_steps num_train_epochs checkpointing_steps "
            "checkpoints_total_limit logging_steps lr_decay_steps lr_num_cycles validation_epochs save_model_epochs"
        )
        check_options(self, counts, "must be 1 or more", lambda value: value >= 1)
        sizes = "lr_warmup_steps validation_steps dataloader_num_workers seed adam_weight_decay"
        check_options(self, sizes, "must be 0 or more", lambda value: 0 <= value < math.inf)
        check_options(self, "lr_decay_share", "must be in (0, 1]", lambda value: 0 < value <= 1)
        positive = "max_train_seconds learning_rate lr_power max_grad_norm adam_epsilon ema_power ema_inv_gamma"
        check_options(self, positive, "must be positive", lambda value: 0 < value < math.inf)
        check_options(self, "ema_decay adam_beta1 adam_beta2", "must be in [0, 1)", lambda value: 0 <= value < 1)

    @property
    def hub(self) -> dict[str, Any]:
        """What to give to whatever downloads from the hub."""
        return {"cache_dir": self.cache_dir, "token": self.hub_token}

    @property
    def trackers(self) -> tuple[str, ...]:
        """The services that the run is shown in."""
        if self.report_to == "none":
            return ()
        if self.report_to != "all":
            return (self.report_to,)
        return tuple(name for name in get_args(Tracker) if is_installed(name))

    def check_installed(self) -> None:
        """Check, without importing them, that the libraries are there that the settings need.

        Raises:
            MissingExtraError: one is not; the message says how to install it.
        """
        for name in self.trackers:
            if not is_installed(name):
                raise MissingExtraError(
                    f"report_to={self.report_to} needs {name}, which is not installed: pip install {LIBRARIES[name]}, "
                    "or give another report_to"
                )
        if self.use_8bit_adam and not is_installed("bitsandbytes"):
            raise MissingExtraError(
                "use_8bit_adam needs bitsandbytes, which is not installed: pip install bitsandbytes, or leave it out"
            )


@dataclass(frozen=True)
class DiffusionSettings(TrainSettings):
    """The settings that every run that trains a diffusion model has."""

    prediction_type: PredictionType | None = None
    """What the network predicts. If not given, what the pretrained model does; epsilon for a new one."""
    num_train_timesteps: int | None = None
    """The number of timesteps, T. If not given, that of the pretrained model; 1000 for a new one."""
    beta_schedule: Annotated[
        BetaSchedule | None,
        tyro.conf.arg(
            help="The noise schedule. If not given, that of the pretrained model; a new model has linear on pixels "
            "and scaled_linear on latents.",
        ),
    ] = None
    rescale_betas_zero_snr: Annotated[
        Switch,
        tyro.conf.arg(
            help="Rescale the noise schedule so that the last timestep is pure noise; this needs v_prediction or "
            "sample. If not given, as the pretrained model; a new model is not rescaled.",
        ),
    ] = None
    timestep_spacing: Annotated[
        Spacing | None,
        tyro.conf.arg(
            help="How to choose among the timesteps when sampling, which is saved with the model. If not given, as "
            "the pretrained model; trailing if zero SNR is new; leading for any other new model.",
        ),
    ] = None
    snr_gamma: float | None = None
    """Weigh each timestep's loss by min-SNR with this gamma; 5 is usual. If not given, all weigh the same."""
    noise_offset: float = 0.0
    """Add so much noise that is the same for all pixels of a channel, to learn very dark and bright pictures."""
    input_perturbation: float = 0.0
    """Add so much more noise to what the network is given, but not to what it is to predict; 0.1 is usual."""
    dream_training: bool = False
    """Train on what the network's own errors make of its input (DREAM), at the price of one more pass a step."""
    dream_detail_preservation: float = 1.0
    """How much --dream-training is left out where there is little noise: the power of its share, 0 for nowhere."""
    validation_inference_steps: int = 25
    """The number of sampling steps of the samples that are drawn while training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = "num_train_timesteps validation_inference_steps num_validation_images"
        check_options(self, counts, "must be 1 or more", lambda value: value >= 1)
        sizes = "noise_offset input_perturbation dream_detail_preservation"
        check_options(self, sizes, "must be 0 or more", lambda value: 0 <= value < math.inf)
        check_options(self, "snr_gamma", "must be positive", lambda value: 0 < value < math.inf)


@dataclass(frozen=True)
class PixelSettings(DiffusionSettings):
    """Train a U-Net on pixels, with classes or without, and save it as a pipeline.

    After an interruption, the same command goes on from the last checkpoint, bit for bit. On several GPUs, or in
    several processes, it is started by `accelerate launch -m ddim train pixels …`.

        ddim train pixels --output-dir runs/digits --class-conditional
        ddim train pixels --output-dir runs/pixels --data pictures --resolution 32
    """

    data: Annotated[
        str,
        tyro.conf.arg(
            help="The images: `digits` (scikit-learn's 8x8 digits), a folder (with a folder for each class, or all in "
            "one), a .parquet file, or the id of a dataset on the hub.",
        ),
    ] = "digits"
    class_conditional: bool = False
    """Learn to draw classes, which the names of the sub-folders or --label-column give."""
    image_column: ImageColumn = "image"
    label_column: str = "label"
    """The column of a dataset that holds the classes, for --class-conditional."""
    dataset_config_name: DatasetConfigName = None
    max_train_samples: MaxTrainSamples = None
    pretrained_model_name_or_path: str | None = None
    """The pipeline whose U-Net to train further. If not given, a new U-Net is trained."""
    model_config_name_or_path: str | None = None
    """The U-Net or pipeline whose config.json describes a new U-Net. If not given, the options below do."""
    num_validation_images: int | None = None
    """How many samples are drawn while training. If not given, 2 of each class but not over 32; 16 without classes."""
    resolution: int | None = None
    """Resize (the shorter side) and crop images to so many pixels. If not given, 8 for digits, else 32."""
    center_crop: CenterCrop = True
    random_flip: RandomFlip = False
    block_out_channels: Widths = (64, 128, 128)
    layers_per_block: int = 2
    """The number of residual blocks at each level."""
    attention_levels: tuple[int, ...] = (-1,)
    """The levels that have self-attention, counted from 0; -1 is the last one, which has the lowest resolution."""
    attention_head_dim: int = 32
    """The number of channels of each attention head."""
    dropout: float = 0.0
    """The share of activations that the residual blocks drop at random in training."""
    class_dropout: float = 0.1
    """The share of images that are trained without their class, for classifier-free guidance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = "layers_per_block attention_head_dim resolution max_train_samples"
        check_options(self, counts, "must be 1 or more", lambda value: value >= 1)
        check_options(self, "dropout class_dropout", "must be in [0, 1]", lambda value: 0 <= value <= 1)
        check_widths(self, "block_out_channels")
        check_levels(self.attention_levels, len(self.block_out_channels))


@dataclass(frozen=True)
class PictureSettings(TrainSettings):
    """The settings that every run on captioned pictures, or on their latents, has."""

    dataset_name: Annotated[
        str | None,
        tyro.conf.arg(
            help="The captioned pictures: a .parquet file or a folder of them, a saved dataset, or the id of a "
            "dataset on the hub. Give this or --train-data-dir.",
        ),
    ] = None
    dataset_config_name: DatasetConfigName = None
    train_data_dir: Annotated[
        str | None,
        tyro.conf.arg(
            help="A folder of pictures with their captions in metadata.jsonl (entries file_name and the one that "
            "--caption-column says) or in .txt files beside them. Give this or --dataset-name.",
        ),
    ] = None
    image_column: ImageColumn = "image"
    max_train_samples: MaxTrainSamples = None
    resolution: int | None = None
    """Resize (the shorter side) and crop images to so many pixels. If not given, what the model is made for."""
    center_crop: CenterCrop = True
    random_flip: RandomFlip = False
    random_background: bool = False
    """Put transparent pictures on backgrounds: half on white, an eighth on black, the others on colours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, "resolution max_train_samples", "must be 1 or more", lambda value: value >= 1)
        if (self.dataset_name is None) == (self.train_data_dir is None):
            raise ConfigError(
                "give dataset_name or train_data_dir, but not both: one of them says where the pictures are"
            )


@dataclass(frozen=True)
class VAESettings(PictureSettings):
    """Train an autoencoder (AutoencoderKL) that turns pictures into latents for `ddim train text-to-image`.

    The loss is |error| + mse_weight·error² + gradient_weight·|error of the differences of neighbours|, and
    kl_weight times the divergence of a latent number from the standard normal distribution. Captions are not needed.

        ddim train vae --output-dir runs/vae --train-data-dir pictures --resolution 64
    """

    pretrained_model_name_or_path: str | None = None
    """The autoencoder to train further, or the pipeline that has it. If not given, a new one is trained."""
    block_out_channels: Widths = (32, 64, 64)
    layers_per_block: int = 1
    """The number of residual blocks at each level."""
    latent_channels: int = 4
    """The number of channels of the latents."""
    mid_block_add_attention: bool = False
    """Let all positions of the latents attend to each other, in the middle of the network."""
    kl_weight: float = 1e-4
    """The weight in the loss of each latent number's divergence from the standard normal distribution."""
    mse_weight: float = 1.0
    """The weight in the loss of the mean squared error, beside the mean absolute error, whose weight is 1."""
    gradient_weight: float = 1.0
    """The weight in the loss of the error of differences between neighbouring pixels, which keeps edges sharp."""
    permute_colors: bool = False
    """Exchange red, green and blue at random in half of the pictures, so that every colour becomes equally frequent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, "layers_per_block latent_channels", "must be 1 or more", lambda value: value >= 1)
        weights = "kl_weight mse_weight gradient_weight"
        check_options(self, weights, "must be 0 or more", lambda value: 0 <= value < math.inf)
        check_widths(self, "block_out_channels")


@dataclass(frozen=True)
class LatentSettings(DiffusionSettings, PictureSettings):
    """The settings that training text to image and training its adapters have in common."""

    caption_column: str = "text"
    """The column of a dataset that holds the captions; of several for a picture, one is taken at random."""
    aspect_ratio_buckets: Annotated[
        Sizes,
        tyro.conf.arg(
            help="Keep the pictures' shapes: each is resized and cropped to the size, of several, that has the nearest "
            "proportions, and a batch has pictures of one size. If nothing follows, the sizes are made, each with at "
            "most the area of a square of --resolution; a list such as '512,512;640,384', heights first, is taken as "
            "it is. If not given, all pictures become squares.",
        ),
    ] = None
    min_bucket_reso: int | None = None
    """The smallest side of --aspect-ratio-buckets, in pixels. If not given, half of --resolution."""
    max_bucket_reso: int | None = None
    """The largest side of --aspect-ratio-buckets, in pixels. If not given, twice --resolution."""
    bucket_reso_steps: Annotated[
        int | None,
        tyro.conf.arg(
            help="The sides of --aspect-ratio-buckets are multiples of so many pixels. If not given, 64, or what suits "
            "a model of small pictures.",
        ),
    ] = None
    bucket_no_upscale: bool = False
    """With --aspect-ratio-buckets, give pictures that would be enlarged sizes of their own, rounded down."""
    caption_dropout: float = 0.1
    """The share of pictures that are trained without their caption, for classifier-free guidance."""
    cache_latents: bool = True
    """Encode each picture once, where nothing random changes it but mirroring and the background."""
    cache_text_embeddings: bool = True
    """Encode each caption once and keep its embedding, where the text encoder is not trained."""
    train_text_encoder: bool = False
    """Train the text encoder, too, or both of Stable Diffusion XL. A new one is trained in any case."""
    pretrained_vae_model_name_or_path: Annotated[
        str | None,
        tyro.conf.arg(
            help="The autoencoder to use: its folder, or a pipeline that has it. If not given, the one of the "
            "pipeline; for a new model that of the bundled emoji model.",
        ),
    ] = None
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = "none"
    """Draw some timesteps more often: the first, or the last and noisiest, --timestep-bias-portion, or a range."""
    timestep_bias_multiplier: float = 1.0
    """How many times as often the timesteps of --timestep-bias-strategy are drawn."""
    timestep_bias_portion: float = 0.25
    """The share of the timesteps that --timestep-bias-strategy earlier or later means."""
    timestep_bias_begin: int = 0
    """The first timestep of --timestep-bias-strategy range."""
    timestep_bias_end: int = 1000
    """The timestep at which --timestep-bias-strategy range ends; it is none of them."""
    validation_prompts: tuple[str, ...] = ()
    """The texts that are drawn at each validation. If not given, some captions of the data."""
    num_validation_images: int = 1
    """How many samples of each of --validation-prompts are drawn while training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = "caption_dropout timestep_bias_portion"
        check_options(self, shares, "must be in [0, 1]", lambda value: 0 <= value <= 1)
        check_options(self, "timestep_bias_multiplier", "must be positive", lambda value: 0 < value < math.inf)
        if not 0 <= self.timestep_bias_begin < self.timestep_bias_end:
            raise ConfigError(
                f"timestep_bias_begin={self.timestep_bias_begin} must be 0 or more, and below timestep_bias_end="
                f"{self.timestep_bias_end}"
            )
        if self.timestep_bias_strategy == "none" and self.timestep_bias_multiplier != 1:
            raise ConfigError("timestep_bias_multiplier needs a timestep_bias_strategy: earlier, later or range")
        self._check_buckets()

    def _check_buckets(self) -> None:
        """Raise a ConfigError if the options of buckets do not go together."""
        sides = "min_bucket_reso max_bucket_reso bucket_reso_steps"
        check_options(self, sides, "must be 1 or more", lambda value: value >= 1)
        given = [name for name in sides.split() if getattr(self, name) is not None]
        given += ["bucket_no_upscale"] if self.bucket_no_upscale else []
        if self.aspect_ratio_buckets is None and given:
            raise ConfigError(f"{given[0]} is for aspect_ratio_buckets: give that, too, or leave out {given[0]}")
        if self.aspect_ratio_buckets and given:
            raise ConfigError(
                f"{given[0]} says how buckets are made, and aspect_ratio_buckets lists them: leave out one of them"
            )
        if self.aspect_ratio_buckets and min(map(min, self.aspect_ratio_buckets)) < 1:
            raise ConfigError("the sides in aspect_ratio_buckets must be 1 or more")
        least, most, middle = self.min_bucket_reso, self.max_bucket_reso, self.resolution
        if middle is not None and not (least or 1) <= middle <= (most or math.inf):
            raise ConfigError(
                f"resolution={middle} must be between min_bucket_reso={least or 1} and "
                f"max_bucket_reso={most or 'any'}, as it is the side of the square bucket"
            )
        if least is not None and most is not None and least > most:
            raise ConfigError(f"min_bucket_reso={least} is above max_bucket_reso={most}: exchange them")


@dataclass(frozen=True)
class TextToImageSettings(LatentSettings):
    """Train text to image on latents, from nothing or from a pipeline, and save the pipeline.

    Without --pretrained-model-name-or-path the U-Net, the text encoder and its tokenizer are new and learn from the
    data alone; only the autoencoder must have been trained before.

        ddim train text-to-image --output-dir runs/mine --train-data-dir pictures
    """

    pretrained_model_name_or_path: str | None = None
    """The pipeline to train further. If not given, everything but the autoencoder is made anew."""
    non_ema_revision: str | None = None
    """The revision of the U-Net alone, such as a branch whose weights are no average. If not given, --revision."""
    block_out_channels: tuple[int, ...] = (64, 128, 192)
    """The channels of a new U-Net at each level. Each level after the first halves the resolution of the latents."""
    layers_per_block: int = 1
    """The number of residual blocks at each level of a new U-Net."""
    attention_levels: tuple[int, ...] = (-2, -1)
    """The levels of a new U-Net that attend to the text, counted from 0; -1 has the lowest resolution."""
    attention_heads: int = 4
    """The number of attention heads of a new U-Net."""
    dropout: float = 0.0
    """The share of activations that the residual blocks of a new U-Net drop at random in training."""
    text_dim: int = 192
    """The number of channels of a new text encoder."""
    text_layers: int = 2
    """The number of layers of a new text encoder."""
    text_heads: int = 6
    """The number of attention heads of a new text encoder."""
    vocab_size: int = 4096
    """How many tokens a new tokenizer has, at most."""
    max_tokens: int = 24
    """The longest text in tokens that a new text encoder takes, with the tokens of its start and its end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = "layers_per_block attention_heads text_dim text_layers text_heads"
        check_options(self, counts, "must be 1 or more", lambda value: value >= 1)
        check_options(
            self, "vocab_size", "must be 514 or more: all bytes, twice, and two tokens", lambda value: value >= 514
        )
        check_options(self, "max_tokens", "must be 3 or more", lambda value: value >= 3)
        check_options(self, "dropout", "must be in [0, 1]", lambda value: 0 <= value <= 1)
        check_widths(self, "block_out_channels")
        check_levels(self.attention_levels, len(self.block_out_channels))


@dataclass(frozen=True)
class LoraSettings(LatentSettings):
    """Fine-tune a text-to-image pipeline by low-rank adaptation, and save `pytorch_lora_weights.safetensors`.

    `pipe.load_lora_weights(output_dir)` uses it, here and in diffusers.

        ddim train lora --output-dir runs/lora --train-data-dir pictures --rank 8
    """

    pretrained_model_name_or_path: str = "emoji"
    """The pipeline to train adapters for."""
    rank: int = 4
    """The rank of the adapters' matrices, which is also their alpha: more learns more, in a larger file."""
    train_batch_size: TrainBatchSize = 16
    learning_rate: LearningRate = 1e-3
    lr_warmup_steps: WarmupSteps = 20
    use_ema: UseEMA = False

    usual_steps: ClassVar[int] = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, "rank", "must be 1 or more", lambda value: value >= 1)


@dataclass(frozen=True)
class TextualInversionSettings(LatentSettings):
    """Teach a text-to-image pipeline a new word by some pictures, and save `learned_embeds.safetensors`.

    Only the word's vectors are trained (textual inversion). Captions are not needed: templates make texts of the word.
    `pipe.load_textual_inversion(output_dir)` uses it, here and in diffusers.

        ddim train textual-inversion --output-dir runs/word --train-data-dir pictures --placeholder-token "<toy>" \\
            --initializer-token cat
    """

    placeholder_token: str = field(kw_only=True)
    """The new word, as prompts are to say it, such as <toy>."""
    initializer_token: str = field(kw_only=True)
    """A word that the model knows and that comes near: the new word begins as it."""
    learnable_property: Literal["object", "style"] = "object"
    """Whether the word is a thing or a style, which decides the templates."""
    num_vectors: int = 1
    """How many vectors the word has: more learn more, and take more of the room that a prompt has."""
    templates_file: str | None = None
    """A text file with a template a line, with {} in the place of the word. If not given, some of ours."""
    pretrained_model_name_or_path: str = "emoji"
    """The pipeline to teach."""
    train_batch_size: TrainBatchSize = 16
    learning_rate: LearningRate = 5e-3
    lr_scheduler: Schedule = "constant_with_warmup"
    """How the learning rate goes on after the warm-up. All but the constant ones fall to zero at --lr-decay-steps."""
    lr_warmup_steps: WarmupSteps = 20
    use_ema: UseEMA = False
    caption_column: str = field(default="text", init=False)
    caption_dropout: float = field(default=0.0, init=False)
    cache_text_embeddings: bool = field(default=False, init=False)
    train_text_encoder: bool = field(default=False, init=False)

    usual_steps: ClassVar[int] = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, "num_vectors", "must be 1 or more", lambda value: value >= 1)


@dataclass(frozen=True)
class ControlNetSettings(LatentSettings):
    """Train a ControlNet for a pipeline of Stable Diffusion 1, 2 or XL, and save it in diffusers' layout.

    Give pictures to condition on, a column of the data, or the name of a condition that is made of the pictures.

        ddim train controlnet --output-dir runs/edges --train-data-dir pictures --condition edges
        ddim train controlnet --output-dir runs/pose --dataset-name data.parquet --conditioning-image-column pose
    """

    pretrained_model_name_or_path: str = "emoji"
    """The pipeline to train a ControlNet for. It stays as it is."""
    controlnet_model_name_or_path: Annotated[
        str | None,
        tyro.conf.arg(
            help="The ControlNet to train further: a folder, a .safetensors file or a hub id. If not given, a new one "
            "begins with the weights of the pipeline's U-Net."
        ),
    ] = None
    condition: Annotated[
        Literal["edges", "layout"] | None,
        tyro.conf.arg(
            help="Condition on something made of each picture: its edges as white lines on black, or its colours in "
            "coarse cells (layout). Give this or --conditioning-image-column."
        ),
    ] = None
    condition_cells: int = 8
    """How many cells the shorter side has, for --condition layout."""
    conditioning_image_column: Annotated[
        str | None,
        tyro.conf.arg(
            help="The column of a dataset, or of a folder's metadata, that holds the pictures to condition on, each in "
            "the proportions of its picture. Give this or --condition."
        ),
    ] = None
    conditioning_data_dir: Annotated[
        str | None,
        tyro.conf.arg(
            help="A folder that has these pictures under the same names as --train-data-dir has its own, instead of "
            "--conditioning-image-column."
        ),
    ] = None
    conditioning_embedding_out_channels: Annotated[
        tuple[int, ...] | None,
        tyro.conf.arg(
            help="The channels in which a new ControlNet reads its condition. Each after the first halves the "
            "resolution, from that of the pictures to that of the latents. If not given, 16, 32, 96 and 256, as many "
            "of these as it needs."
        ),
    ] = None
    rank: int | None = None
    """Train the copy of the U-Net by matrices of this rank (LoRA), which takes less memory. If not given, all of it."""
    validation_images: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help="Files of conditions for --validation-prompts: one for each or for all, or several for one prompt. "
            "If not given, some of the data."
        ),
    ] = ()
    learning_rate: LearningRate = 1e-4
    lr_scheduler: Schedule = "constant_with_warmup"
    """How the learning rate goes on after the warm-up. All but the constant ones fall to zero at --lr-decay-steps."""
    train_text_encoder: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, "condition_cells rank", "must be 1 or more", lambda value: value >= 1)
        if self.condition != "layout" and self.condition_cells != type(self).condition_cells:
            raise ConfigError("condition_cells is for condition=layout: give that, or leave out condition_cells")
        told = (self.condition, self.conditioning_image_column, self.conditioning_data_dir)
        if sum(value is not None for value in told) != 1:
            raise ConfigError(
                "give one of condition, conditioning_image_column and conditioning_data_dir: it says what the "
                "ControlNet is shown"
            )
        if self.conditioning_embedding_out_channels is not None:
            check_widths(self, "conditioning_embedding_out_channels")
        images, prompts = len(self.validation_images), len(self.validation_prompts)
        if images and not prompts:
            raise ConfigError(
                "validation_images needs validation_prompts: give a text for each of them, or one for all"
            )
        if images > 1 and prompts > 1 and images != prompts:
            raise ConfigError(
                f"there are {images} validation_images and {prompts} validation_prompts: give one for each, or one "
                "for all"
            )


# The libraries of what has another name than the pip package, or that are asked for by the name of a service.
LIBRARIES = {"tensorboard": "'ddim[train]'", "wandb": "wandb", "comet_ml": "comet-ml", "clearml": "clearml"}


def is_installed(module: str) -> bool:
    """Whether a library is there, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@dataclass(frozen=True)
class DistillSettings(TrainSettings):
    """Teach a student to draw in few steps, and without guidance, what a model draws in many; save it as a pipeline.

    The student starts from the model's weights and learns to make each of its steps from runs of the model, which are
    made once and kept in --output-dir. No pictures are needed: only texts, for a text-to-image model.

        ddim distill digits --output-dir runs/digits-fast --steps 4
        ddim distill emoji --output-dir runs/emoji-fast --steps 4 --prompts-file captions.txt
    """

    model: tyro.conf.Positional[str] = "emoji"
    """The model to learn from, the teacher: a folder in diffusers' layout, a bundled model, or an id on the hub."""
    steps: int = 4
    """How many steps the student is to make."""
    timesteps: Annotated[
        tuple[int, ...] | None,
        tyro.conf.arg(
            help="The timesteps of these steps, the noisiest first. If not given, evenly spaced ones, which diffusers "
            "has too. With method direct, and a whole U-Net, only."
        ),
    ] = None
    method: Literal["direct", "progressive"] = "direct"
    """Learn from the model's own steps at once (direct), or halve the steps again and again (progressive)."""
    teacher_steps: Annotated[
        int | None,
        tyro.conf.arg(
            help="How many steps the model makes, a multiple of --steps; with progressive also a power of 2 times it. "
            "If not given, the multiple of --steps that is nearest to 16, or for progressive from 16 on.",
        ),
    ] = None
    trajectories: int = 12_800
    """How many runs of the model to learn from, for each stage."""
    prompts_file: Annotated[
        str | None,
        tyro.conf.arg(
            help="A text file with a prompt a line, for a text-to-image model. Give this or data with captions."
        ),
    ] = None
    dataset_name: str | None = None
    """Data whose captions are the prompts, instead of --prompts-file: a .parquet file, a folder of them, a hub id."""
    train_data_dir: str | None = None
    """A folder of pictures whose captions are the prompts, instead of --prompts-file."""
    caption_column: str = "text"
    """The column of a dataset that holds the captions; of several for a picture, the first is taken."""
    caption_dropout: float = 0.05
    """The share of runs without a prompt or class, so that the student knows these too."""
    guidance_scale: Annotated[
        float | None,
        tyro.conf.arg(help="The model's guidance that the student learns. If not given, what suits the model."),
    ] = None
    guidance_rescale: Annotated[
        float | None,
        tyro.conf.arg(
            help="How much of the contrast that guidance adds the student is to take back. If not given, what suits "
            "the model."
        ),
    ] = None
    guidance_range: Annotated[
        tuple[float, float] | None,
        tyro.conf.arg(
            help="Learn all guidance scales between these two, instead of one: the student's U-Net gets an input for "
            "the scale, as those of latent consistency models have it. Text-to-image models only."
        ),
    ] = None
    prediction_type: PredictionType | None = None
    """What the student predicts. If not given, v_prediction where the model predicts epsilon, else as the model."""
    rank: int | None = None
    """Train low-rank adapters of this rank (LoRA), and save them alone. If not given, a whole U-Net is trained."""
    backend: Literal["eager", "compile", "openvino", "auto"] = "auto"
    """What runs the model that is learnt from."""
    validation_prompts: tuple[str, ...] = ()
    """The texts that previews show. If not given, the first prompts."""
    learning_rate: LearningRate = 2e-4
    lr_warmup_steps: WarmupSteps = 100
    ema_decay: float = 0.998
    """The decay of the moving average of the weights, per step."""

    usual_steps: ClassVar[int] = 4_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, "steps teacher_steps trajectories rank", "must be 1 or more", lambda value: value >= 1)
        check_options(self, "caption_dropout guidance_rescale", "must be in [0, 1]", lambda value: 0 <= value <= 1)
        check_options(self, "guidance_scale", "must be a finite number", math.isfinite)
        if self.guidance_range is not None and not 1 <= self.guidance_range[0] < self.guidance_range[1] < math.inf:
            raise ConfigError(f"guidance_range must be two numbers from 1 up, the smaller first: {self.guidance_range}")
        if self.guidance_range is not None and self.guidance_scale is not None:
            raise ConfigError("give guidance_scale or guidance_range, not both: the student learns one or all of them")
        if sum(value is not None for value in (self.prompts_file, self.dataset_name, self.train_data_dir)) > 1:
            raise ConfigError("give one of prompts_file, dataset_name and train_data_dir: they all say what is drawn")
        if self.teacher_steps is not None and self.teacher_steps % self.steps:
            raise ConfigError(
                f"teacher_steps must be a multiple of the {self.steps} steps of the student, not {self.teacher_steps}"
            )
        if self.timesteps is not None:
            self._check_timesteps(self.timesteps)
        if self.method == "progressive" and self.rank is not None:
            raise ConfigError("rank is for method direct: the students on the way would have to be whole")
        if self.method == "progressive" and ((self.teacher_steps or self.steps) // self.steps).bit_count() != 1:
            raise ConfigError(
                f"progressive halves the steps: teacher_steps must be {self.steps} times a power of 2, not "
                f"{self.teacher_steps}"
            )

    def _check_timesteps(self, timesteps: tuple[int, ...]) -> None:
        if len(timesteps) != self.steps:
            raise ConfigError(f"timesteps has {len(timesteps)} for {self.steps} steps: give as many as steps says")
        if any(low >= high for high, low in itertools.pairwise(timesteps)) or timesteps[-1] < 0:
            raise ConfigError(f"timesteps must fall, the noisiest first, and end at 0 or more: {timesteps}")
        if self.method == "progressive":
            raise ConfigError("timesteps is for method direct: progressive halves evenly spaced ones")
        if self.rank is not None:
            raise ConfigError("timesteps is for a whole U-Net: leave out rank, whose adapters say no timesteps")


def check_options(settings: object, names: str, what: str, holds: Callable[[Any], bool]) -> None:
    """Raise a ConfigError for the first of these options that is given and wrong."""
    for name in names.split():
        value = getattr(settings, name)
        if value is not None and not holds(value):
            raise ConfigError(f"{name} {what}, not {value}")


def check_widths(settings: object, name: str) -> None:
    """Raise a ConfigError unless an option is one positive number of channels or more."""
    check_options(settings, name, "must be positive widths", lambda value: bool(value) and min(value) >= 1)


def check_levels(levels: tuple[int, ...], count: int) -> None:
    """Raise a ConfigError if there are no such levels among `count`."""
    for level in levels:
        if not -count <= level < count:
            raise ConfigError(f"attention_levels has {level}, but block_out_channels has the levels 0 to {count - 1}")
