"""`ddim generate`: a picture for each row of a table, in one process, on one machine or on many."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ddim.checkpoint.known import SINGLE_FILE, known
from ddim.cli.adapters import listed
from ddim.cli.checks import check_order, is_single_file
from ddim.cli.controlling import check_how, how
from ddim.cli.opening import check_kind, check_model, open_pipeline
from ddim.cli.options import (
    Autoencoder,
    Backend,
    ControlEnd,
    ControlStart,
    Device,
    DType,
    Eta,
    GuessMode,
    GuidanceRescale,
    GuidanceScale,
    Loras,
    Model,
    NegativePrompt,
    Predicts,
    Side,
    Spacing,
    SuitableOrder,
    SuitableSteps,
    TextualInversions,
    TokenizerPlace,
    Variant,
    ZeroSNR,
)
from ddim.cli.xl import (
    TOLD,
    AestheticScore,
    Crop,
    DenoisingEnd,
    DenoisingStart,
    NegativeAestheticScore,
    NegativeCrop,
    NegativeOriginalSize,
    NegativeTargetSize,
    OriginalSize,
    SecondNegativePrompt,
    SecondPrompt,
    TargetSize,
    check_xl,
)
from ddim.cli.xl import given as given_of_xl
from ddim.errors import CheckpointError, ConfigError, DataError, check_installed

if TYPE_CHECKING:
    from ddim.cli.known import Kind
    from ddim.jobs.job import Job, Left
    from ddim.jobs.local import Stop


@dataclass(frozen=True)
class GenerateSettings:
    """Draw a picture for each row of a table: on this machine, or on many by Ray.

    PROMPTS is a .txt (a prompt a line), .csv, .jsonl or .parquet file. Its columns are id, prompt, negative_prompt,
    class_label, seed, steps, eta, order, spacing, guidance_scale, guidance_rescale, guidance_interval, width, height,
    image, strength, mask_image, control_image and control_scale, and further ones that docs/scale.md lists. All may be
    left out; options say what rows leave out. Rows of different settings are drawn together. The paths of pictures are
    meant from the table's folder.

    The same command goes on where it was stopped, however it was stopped, and the pictures are the same, byte for byte,
    for any number of workers. Rows that cannot be drawn are listed in errors.jsonl, and then the exit status is 1.

        ddim generate prompts.txt --out hearts --model emoji
        ddim generate prompts.csv --out hearts --format webdataset --workers 4
        ddim generate steered.csv --out cats --controlnet emoji-layout
        ddim generate prompts.parquet --out /shared/hearts --ray-address auto
        ddim generate prompts.jsonl --out /shared/hearts --shard 0/8
    """

    prompts: tyro.conf.Positional[str]
    """The table of rows."""
    out: Annotated[
        str,
        tyro.conf.arg(
            metavar="FOLDER",
            help="The folder that everything is written to. All machines that draw see it under this name.",
        ),
    ]
    model: Model = "emoji"
    lora: Loras = ()
    textual_inversion: TextualInversions = ()
    vae: Autoencoder = None
    variant: Variant = None
    tokenizer: TokenizerPlace = None
    prediction_type: Predicts = None
    negative_prompt: NegativePrompt = None
    prompt_2: SecondPrompt = None
    negative_prompt_2: SecondNegativePrompt = None
    original_size: OriginalSize = None
    crop: Crop = None
    target_size: TargetSize = None
    negative_original_size: NegativeOriginalSize = None
    negative_crop: NegativeCrop = None
    negative_target_size: NegativeTargetSize = None
    aesthetic_score: AestheticScore = None
    negative_aesthetic_score: NegativeAestheticScore = None
    denoising_start: DenoisingStart = None
    denoising_end: DenoisingEnd = None
    class_label: Annotated[
        int | None,
        tyro.conf.arg(
            help="The class to draw, with a class-conditional model. If not given, all classes in turn, row by row."
        ),
    ] = None
    guidance_scale: GuidanceScale = None
    guidance_rescale: GuidanceRescale = None
    guidance_interval: Annotated[
        tuple[int, int] | None,
        tyro.conf.arg(
            help="Guide at the timesteps from the first number to the second alone, both included. If not given, all "
            "timesteps are guided.",
        ),
    ] = None
    steps: SuitableSteps = None
    eta: Eta = 0.0
    order: SuitableOrder = None
    spacing: Spacing = None
    zero_snr: ZeroSNR = None
    seed: Annotated[
        int,
        tyro.conf.arg(
            help="Another one gives other pictures of the rows that say no seed: each of them has a seed that is made "
            "of this one and of its id."
        ),
    ] = 0
    height: Side = None
    width: Side = None
    strength: Annotated[
        float | None,
        tyro.conf.arg(
            help="How much of the picture is lost that a row starts from, from 0 (nothing) to 1 (all). If not given, "
            "0.8."
        ),
    ] = None
    controlnet: Annotated[
        tuple[tuple[str, ...], ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            metavar="PATH[=SCALE] ...",
            help="ControlNets that steer the rows that have a control_image, one or several: folders, .safetensors "
            "files or ids on the hub. A number after the sign = says how strongly one acts. If not given, 1: as it was "
            "trained; rows that say control_scale decide for themselves.",
        ),
    ] = ()
    guess_mode: GuessMode = False
    control_guidance_start: ControlStart = ()
    control_guidance_end: ControlEnd = ()
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    batch_size: Annotated[
        int | None,
        tyro.conf.arg(
            help="How many rows a worker draws at the same time, which changes no picture. If not given, what suits "
            "the device."
        ),
    ] = None
    workers: Annotated[
        int | None,
        tyro.conf.arg(
            help="How many processes to draw with, by Ray, which needs the extra scale. If not given, one without Ray; "
            "with --ray-address, as many as the cluster has GPUs, or else nodes."
        ),
    ] = None
    threads: Annotated[
        int | None,
        tyro.conf.arg(
            help="How many threads of the processor each worker has. If not given, they are shared out evenly."
        ),
    ] = None
    ray_address: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="ADDRESS",
            help="The Ray cluster to draw on: auto for the one that this machine is part of, or HOST:PORT of its head. "
            "If not given, --workers are started on this machine.",
        ),
    ] = None
    shard: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="I/N",
            help="Draw one part of the rows out of N, counted from 0, so that N machines share a job without Ray. The "
            "last one to end finishes it. If not given, all rows.",
        ),
    ] = None
    any_hardware: bool = False
    """Go on with another kind of processor or another PyTorch, though its pictures differ in the last bits."""
    format: Annotated[
        Literal["folder", "parquet", "webdataset"],
        tyro.conf.arg(
            help="What the pictures are written as: PNG files in sub-folders of 1,000, Parquet files of 1,000, or tar "
            "files of 1,000 for the webdataset library."
        ),
    ] = "folder"
    retry_errors: bool = False
    """Draw anew what has failed before."""

    def check_together(self, given: Collection[str]) -> None:
        check_order(self.order, self.eta)
        check_how(self, len(listed(self.controlnet)))
        if self.denoising_start is not None and self.strength is not None:
            raise ConfigError(
                "--strength says how much noise to add, and with --denoising-start none is: leave one of them out"
            )
        if self.guidance_interval is not None and self.guidance_interval[0] > self.guidance_interval[1]:
            first, second = self.guidance_interval
            raise ConfigError(f"--guidance-interval {first} {second} is the wrong way round: give {second} {first}")
        from ddim.checkpoint.nearby import did_you_mean

        endings = (".txt", ".csv", ".jsonl", ".parquet")
        if not self.prompts.lower().endswith(endings):
            meant = {".json": ".jsonl", ".tsv": ".csv", ".ndjson": ".jsonl"}.get(
                self.prompts[self.prompts.rfind(".") :]
            )
            raise ConfigError(
                f"PROMPTS must end in {', '.join(endings[:-1])} or {endings[-1]}, not {self.prompts!r:.200}"
                f"{did_you_mean(meant)}"
            )
        if self.prompts.lower().endswith(".parquet") or self.format == "parquet":
            check_installed("pyarrow", "data")
        shard = _shard(self.shard)
        if shard is not None and self.is_on_ray:
            raise ConfigError("--shard is for machines without Ray, which shares out the rows itself: leave it out")
        if shard is not None and self.retry_errors:
            raise ConfigError("--retry-errors draws what has failed in all shards: leave --shard out")
        if self.is_on_ray:
            check_installed("ray", "scale")

    @property
    def is_on_ray(self) -> bool:
        """Whether Ray runs it."""
        return self.workers is not None or self.ray_address is not None


# What a row may say, and what the model is loaded by: both are part of what a job is.
_OF_ROWS = (
    "negative_prompt", "class_label", "guidance_scale", "guidance_rescale", "guidance_interval", "steps", "eta",
    "order", "spacing", "seed", "width", "height", "strength", *TOLD,
)  # fmt: skip
_OF_LOADING = (
    "lora", "textual_inversion", "vae", "variant", "tokenizer", "prediction_type", "zero_snr", "dtype", "backend",
    "controlnet",
)  # fmt: skip


@dataclass(frozen=True)
class _Opening:
    """What `open_pipeline` is told, on each worker."""

    model: str
    lora: Any
    textual_inversion: Any
    vae: str | None
    variant: str | None
    tokenizer: str | None
    prediction_type: str | None
    zero_snr: bool | None
    dtype: Any
    backend: str
    controlnet: Any
    device: str | None


def _shard(given: str | None) -> tuple[int, int] | None:
    """(i, n) of "i/n".

    >>> _shard("0/8")
    (0, 8)
    """
    if given is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", given)
    if match is None or not int(match[1]) < int(match[2]):
        raise ConfigError(
            f"--shard must be the part and how many there are, counted from 0, as in 0/8; not {given!r:.50}"
        )
    return int(match[1]), int(match[2])


def run_generate(settings: GenerateSettings) -> None:
    from ddim.jobs.job import open_job
    from ddim.jobs.local import Stop
    from ddim.jobs.lock import locked

    started = time.perf_counter()
    suits = partial(_check_kind, settings=settings)
    check_model(settings, suits)
    shard = _shard(settings.shard)
    usual = {field.name: field.default for field in dataclasses.fields(settings)}
    asked = {
        "model": settings.model,
        "format": settings.format,
        "settings": {name: value for name in _OF_ROWS if (value := getattr(settings, name)) != usual[name]}
        | (how(settings) if settings.controlnet else {}),
        "loading": {name: value for name in _OF_LOADING if (value := getattr(settings, name)) != usual[name]},
    }
    stop = Stop()
    with locked(Path(settings.out), shard):
        job = open_job(settings.out, settings.prompts, asked, partial(_check_columns, settings=settings))
        if settings.retry_errors:
            _say(f"{_rows(job.reopen())} that failed before are drawn anew")
        left = job.left()
        if left.rows < job.count:
            _say(f"{job.count - left.rows} of {_rows(job.count)} are done already")
        with stop.listening():
            try:
                if left.rows:
                    _draw(settings, job, stop, shard)
            except KeyboardInterrupt:  # the second one
                stop.is_wanted = True
            except BaseException:
                with contextlib.suppress(CheckpointError):
                    job.finish()
                raise
            left = job.finish()
    _tell(settings, job.count, left, stop.is_wanted, time.perf_counter() - started)


def _draw(settings: GenerateSettings, job: Job, stop: Stop, shard: tuple[int, int] | None) -> None:
    from ddim.jobs.hardware import Hardware

    how = _Opening(*(getattr(settings, field.name) for field in dataclasses.fields(_Opening)))
    opens = partial(open_pipeline, how, partial(_check_kind, settings=settings))
    hardware = Hardware(settings.batch_size, settings.threads, settings.any_hardware)
    if settings.is_on_ray:
        from ddim.jobs.cluster import Crew, draw_on_ray

        draw_on_ray(job, opens, hardware, stop, Crew(settings.workers, settings.ray_address, settings.device))
    else:
        from ddim.jobs.local import draw_here

        draw_here(job, opens, hardware, stop, shard)


def _tell(settings: GenerateSettings, count: int, left: Left, is_stopped: bool, seconds: float) -> None:
    """Say what has become of the job.

    Raises:
        KeyboardInterrupt: it was stopped.
        DataError: rows have failed.
    """
    from ddim.data.progress import duration

    out = settings.out
    if left.rows and is_stopped:
        raise KeyboardInterrupt(f"{count - left.rows} of {_rows(count)} are done")
    if left.rows and settings.shard is None:
        _say(f"{_rows(left.rows)} of {count} are left, of which the files were cut off: run it again")
    elif left.rows:
        _say(f"shard {settings.shard} is done, and {_rows(left.rows)} of others are left")
    else:
        _say(f"all of {_rows(count)} are done, in {duration(seconds)}")
        print(Path(out) / "manifest.jsonl")
    if left.failed:
        raise DataError(
            f"{_rows(left.failed)} could not be drawn: {Path(out) / 'errors.jsonl'} says why, and --retry-errors tries "
            "again"
        )


def _check_kind(kind: Kind, settings: GenerateSettings) -> None:
    check_kind(
        kind,
        settings.model,
        for_texts={
            "--negative-prompt": settings.negative_prompt,
            "--height": settings.height,
            "--width": settings.width,
            "--strength": settings.strength,
            "--controlnet": settings.controlnet or None,
            **given_of_xl(settings),
        },
        for_classes={"--class-label": settings.class_label},
    )
    check_xl(kind.is_xl, settings.model, given_of_xl(settings))


def _check_columns(columns: Collection[str], settings: GenerateSettings) -> None:
    """Refuse a table that lacks columns that are needed, or has some that are of no use to the model, if it is known.

    Raises:
        ConfigError: says which.
    """
    for what, given in (
        ("--strength", settings.strength is not None),
        ("--denoising-start", settings.denoising_start is not None),
        ("the column mask_image", "mask_image" in columns),
    ):
        if given and "image" not in columns:
            raise ConfigError(f"{what} is for pictures to start from, and {settings.prompts} has no column image")
    found = SINGLE_FILE if is_single_file(settings.model) else known(settings.model)
    if found is None:
        return
    if found.draws_texts and "prompt" not in columns:
        raise ConfigError(f"{settings.prompts} has no column prompt, and {settings.model} draws what a text says")
    if "control_image" in columns and not settings.controlnet and not found.has_controlnet:
        raise ConfigError(
            f"{settings.prompts} has the column control_image, and {settings.model} has no ControlNet: give "
            "--controlnet"
        )
    for name in columns if found.is_xl is False else ():
        if name in TOLD:
            raise ConfigError(
                f"{settings.prompts} has the column {name}, which is for Stable Diffusion XL, and {settings.model} is "
                "none: leave it out, or give another --model"
            )
    for name, what in (("prompt", "prompts"), ("image", "pictures to start from")):
        if not found.draws_texts and name in columns:
            raise ConfigError(
                f"{settings.prompts} has {what}, and {settings.model} draws no texts: give another --model"
            )


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _say(what: str) -> None:
    print(f"ddim: {what}", file=sys.stderr)
