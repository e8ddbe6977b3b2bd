"""`ddim evaluate`: the trade-off of quality and steps, and the consistency of samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ddim.cli.options import (
    AnyEta,
    Backend,
    Device,
    DType,
    GuidanceRescale,
    GuidanceScale,
    Model,
    Predicts,
    Spacing,
    TokenizerPlace,
    Variant,
)
from ddim.errors import ConfigError, check_installed

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.cli.known import Kind
    from ddim.data import Source
    from ddim.evaluation import FeatureExtractor
    from ddim.evaluation.drawing import Conditions
    from ddim.evaluation.grid import Grid
    from ddim.pipelines import DiffusionPipeline


Clipping = Literal["model", "always", "never", "sigma_hat"]


@dataclass(frozen=True)
class EvaluateSettings:
    """Measure how far a model's samples are from data, for each number of steps and each eta (the paper's Table 1).

    Every batch is kept in --out, so that the same command goes on after an interruption and gives the same figures as
    if there had been none. The folder gets results.json, results.csv, and a plot of the trade-off as PNG and SVG.

        ddim evaluate digits --against digits --steps 10 50 --samples 1000
        ddim evaluate digits --steps 10 20 50 --samples 200 --consistency
    """

    model: tyro.conf.Positional[Model] = "digits"
    variant: Variant = None
    tokenizer: TokenizerPlace = None
    prediction_type: Predicts = None
    against: Annotated[
        str | None,
        tyro.conf.arg(
            help="The data to compare with: digits (all 1,797 real ones; digits:train or digits:held-out for a part), "
            "a folder of pictures, a .parquet file, or the id of a dataset on the hub. A text-to-image model draws "
            "the captions of the data.",
        ),
    ] = None
    steps: tuple[int, ...] = (10, 20, 50, 100)
    """The numbers of sampling steps to measure, which the paper calls S."""
    eta: Annotated[
        tuple[AnyEta, ...],
        tyro.conf.arg(
            help="How much noise each step adds, one value or several to measure: 0 is DDIM, 1 is DDPM, sigma_hat is "
            "DDPM with the larger variance, which adds no noise at the last step, as in the paper's code.",
        ),
    ] = (0.0,)
    samples: int = 5000
    """How many samples to draw for each number of steps, eta and seed."""
    batch: int = 500
    """How many samples to draw at a time."""
    seeds: Annotated[
        tuple[int, ...],
        tyro.conf.arg(
            aliases=["--seed"],
            help="The seeds of the noise and of the order of captions. Several seeds give means and standard "
            "deviations over them.",
        ),
    ] = (0,)
    spacing: Spacing = None
    clip_sample: Annotated[
        Clipping,
        tyro.conf.arg(
            help="Whether to clip the predicted image: as the model's scheduler says, always, never, or with --eta "
            "sigma_hat alone, as in the paper's code.",
        ),
    ] = "model"
    features: Annotated[
        str | None,
        tyro.conf.arg(
            help="The network whose features of the pictures are compared: digits, emoji or inception. If not given, "
            "the bundled one for pictures of the model's size.",
        ),
    ] = None
    features_weights: str | None = None
    """The file with the weights of Inception, for --features inception."""
    guidance_scale: GuidanceScale = None
    guidance_rescale: GuidanceRescale = None
    labels: Annotated[
        Literal["turn", "data"],
        tyro.conf.arg(
            help="What a class-conditional model draws: all classes in turn (turn), or the classes of the data in an "
            "order that the seed decides (data).",
        ),
    ] = "turn"
    image_column: str = "image"
    """The column of a dataset that holds the pictures."""
    label_column: str = "label"
    """The column of a dataset that holds the classes."""
    caption_column: str = "captions"
    """The column of a dataset, or the entry of a folder's metadata, that holds the captions."""
    consistency: Annotated[
        bool,
        tyro.conf.arg(
            help="Do not measure distances, but draw from the same noises with each number of steps, and say how "
            "alike the pictures of one noise are (the paper's Figure 5).",
        ),
    ] = False
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    workers: Annotated[
        int | None,
        tyro.conf.arg(
            help="How many processes draw, whole batches each, which share out the cores; the figures are those of one "
            'process with as many threads as each. Needs the extra "scale", which is Ray. If not given, this process '
            "draws."
        ),
    ] = None
    ray_address: Annotated[
        str | None,
        tyro.conf.arg(
            help="The cluster of Ray that they are to run on: its address, or auto; --out must be a folder that all of "
            "its machines share. If not given, this machine."
        ),
    ] = None
    out: str = "evaluation"
    """The folder that everything is written to."""

    @property
    def is_on_ray(self) -> bool:
        """Whether processes of Ray draw."""
        return self.workers is not None or self.ray_address is not None

    def check_together(self, given: Collection[str]) -> None:
        for name in ("steps", "eta", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                said = " ".join(map(str, values)) or "none"
                raise ConfigError(f"--{name} must be one value or more, none of them twice, not {said}")
        if "features_weights" in given and self.features != "inception":
            raise ConfigError("--features-weights is for --features inception: give that too, or leave it out")
        if self.features == "inception" and self.features_weights is not None:
            check_installed("torch_fidelity", "inception")
        if self.consistency and (self.eta != (0.0,) or len(self.seeds) > 1):
            raise ConfigError(
                "--consistency compares pictures of eta 0 and of one seed: leave out --eta, and give one of --seeds"
            )
        if self.is_on_ray:
            if self.consistency:
                raise ConfigError("--consistency is drawn by one process: leave out --workers and --ray-address")
            check_installed("ray", "scale")
        if self.consistency:
            _check_folder(self)


SHOWN = 8  # how many noises the strip of pictures shows
_COMPARED = 200  # how many noises the figures of consistency are of, at most


def run_evaluate(settings: EvaluateSettings) -> str:
    """Do what the settings say; returns what to print."""
    parts = open_parts(settings)
    if settings.consistency:
        return _consistency(settings, parts)
    return _distances(settings, parts)


@dataclass(frozen=True)
class Parts:
    """What an evaluation is made of, ready to draw."""

    pipe: DiffusionPipeline
    source: Source | None
    guidance: tuple[float, float]
    condition: Conditions
    extractor: FeatureExtractor


def open_parts(settings: EvaluateSettings) -> Parts:
    """Load what the settings name."""
    from ddim.cli.opening import open_pipeline, suitable_guidance

    pipe = open_pipeline(settings, lambda kind: _check_data(kind, settings))
    from ddim.evaluation.drawing import conditions, open_data
    from ddim.evaluation.features import features_for, load_features

    pipe.set_progress_bar_config(disable=True)
    source = None
    if settings.against is not None:
        source = open_data(
            settings.against,
            captioned=pipe.draws_texts,
            labelled=settings.labels == "data",
            image_column=settings.image_column,
            label_column=settings.label_column,
            caption_column=settings.caption_column,
        )
    guidance = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale)
    name = settings.features or features_for(pipe.picture_shape())
    extractor = load_features(name, pipe.device, settings.features_weights)
    return Parts(pipe, source, guidance, conditions(pipe, source, settings.labels, guidance), extractor)


def _check_data(kind: Kind, settings: EvaluateSettings) -> None:
    """Raise a ConfigError if there is nothing to compare with, for a model and figures that need it."""
    if settings.against is None and (kind.draws_texts or settings.labels == "data" or not settings.consistency):
        raise ConfigError(
            "say by --against what to compare with: digits, a folder of pictures, a .parquet file, or the id of a "
            "dataset on the hub"
        )


def open_grid(settings: EvaluateSettings, parts: Parts) -> tuple[Grid, dict[str, Any]]:
    """The table of distances in its folder, and all that its figures depend on."""
    from ddim.evaluation.grid import Grid
    from ddim.evaluation.state import Folder, digest

    pipe, source, guidance = parts.pipe, parts.source, parts.guidance
    assert source is not None
    # All that a cell's figures depend on, but for its own eta, steps and seed.
    fixed = {
        name: getattr(settings, name)
        for name in ("model", "against", "samples", "batch", "spacing", "clip_sample", "labels")
    }
    fixed |= {name: value for name in ("variant", "prediction_type") if (value := getattr(settings, name)) is not None}
    fixed |= {"dtype": settings.dtype or "float32"} if settings.backend == "eager" else {"backend": pipe.backend}
    fixed |= {"guidance_scale": guidance[0], "guidance_rescale": guidance[1], "features": parts.extractor.name}
    fixed |= {"digest": digest(pipe), "pictures": source.count}
    grid = Grid(
        pipe,
        source,
        parts.extractor,
        Folder(settings.out, fixed),
        parts.condition,
        samples=settings.samples,
        batch=settings.batch,
        clip_sample=settings.clip_sample,
    )
    return grid, fixed


def _distances(settings: EvaluateSettings, parts: Parts) -> str:
    """Measure distances; returns what to print."""
    from ddim.evaluation.report import as_text, write_results
    from ddim.evaluation.state import Cell
    from ddim.plots.tradeoff import plot_tradeoff

    grid, fixed = open_grid(settings, parts)
    folder, name = grid.folder, parts.extractor.name
    cells = [Cell(eta, steps, seed) for eta in settings.eta for steps in settings.steps for seed in settings.seeds]
    if settings.is_on_ray:
        from ddim.cli.evaluating import draw_by_workers

        draw_by_workers(settings, grid.open_parts(cells))
    ideal = grid.ideal()
    for _ in grid.run(cells):
        write_results(folder.path, fixed, name, ideal, folder.all_figures())
    results = write_results(folder.path, fixed, name, ideal, folder.all_figures())
    plots = [plot_tradeoff([results], str(folder.path / f"tradeoff.{suffix}")) for suffix in ("png", "svg")]
    files = [folder.path / "results.json", folder.path / "results.csv", *plots]
    return "\n".join([as_text(results), *map(str, files)])


def _check_folder(settings: EvaluateSettings) -> None:
    """Raise a ConfigError if the folder has the consistency of other pictures, which would be lost."""
    from ddim.checkpoint import read_json

    file = Path(settings.out) / "consistency.json"
    if not file.exists():
        return
    found = read_json(file)
    wanted = {"model": settings.model, "samples": min(settings.samples, _COMPARED), "seed": settings.seeds[0]}
    if any(found.get(name) != value for name, value in wanted.items()):
        told = ", ".join(f"{name} {found.get(name)!r}" for name in wanted)
        raise ConfigError(f"{file} has the consistency of other pictures ({told}): give another --out")


def _consistency(settings: EvaluateSettings, parts: Parts) -> str:
    """Compare the pictures of one noise by different numbers of steps; returns what to print."""
    from ddim.checkpoint import write_json
    from ddim.evaluation.consistency import consistency
    from ddim.evaluation.report import versions
    from ddim.plots.consistency import plot_consistency

    count = min(settings.samples, _COMPARED)
    found = consistency(
        parts.pipe,
        settings.steps,
        count,
        settings.seeds[0],
        parts.condition,
        parts.extractor,
        clip_sample=settings.clip_sample,
        batch=settings.batch,
    )
    folder = Path(settings.out)
    about = {"model": settings.model, "samples": count, "seed": settings.seeds[0], "features": parts.extractor.name}
    write_json(folder / "consistency.json", {**about, "versions": versions(), "figures": found.figures})
    strips = _save_strips(found.pictures, found.others, folder)
    plots = [plot_consistency(found.figures, str(folder / f"consistency.{suffix}")) for suffix in ("png", "svg")]
    lines = [f"{'S':>5} {'cosine':>8} {'rms':>8}   to another x_T: {'cosine':>8} {'rms':>8}"]
    lines += [
        f"{row['steps']:>5} {row['cosine']:>8.4f} {row['rms']:>8.4f}   {'':>15} {row['other_cosine']:>8.4f} "
        f"{row['other_rms']:>8.4f}"
        for row in found.figures
    ]
    return "\n".join([*lines, *map(str, [folder / "consistency.json", *strips, *plots])])


def _save_strips(pictures: Mapping[int, Tensor], others: Tensor, folder: Path) -> list[Path]:
    """Write a picture with a row for each noise and a column for each number of steps.

    The last column, which stands apart, has another noise under the same condition.
    """
    from PIL import Image

    from ddim.checkpoint import atomic_write
    from ddim.images import image_grid, to_images

    shown = min(SHOWN, len(others))
    columns = [to_images(pictures[steps][:shown]) for steps in sorted(pictures)]
    strip = image_grid([column[row] for row in range(shown) for column in columns], len(columns))
    apart = image_grid(to_images(others[:shown]), 1)
    gap = apart.width // 3
    whole = Image.new("RGB", (strip.width + gap + apart.width, strip.height), "white")
    whole.paste(strip, (0, 0))
    whole.paste(apart, (strip.width + gap, 0))
    path = folder / "consistency-strip.png"
    with atomic_write(path) as temporary:
        whole.save(temporary)
    return [path]
