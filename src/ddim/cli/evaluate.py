"""`ddim evaluate`: the trade-off of quality and steps, and the consistency of samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ddim.cli.options import Backend, Device, DType, GuidanceRescale, GuidanceScale, Model, Spacing
from ddim.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.data import Source


Clipping = Literal["model", "always", "never", "sigma_hat"]


@dataclass(frozen=True)
class EvaluateSettings:
    """Measure how far a model's samples are from data, for each number of steps and each eta (the paper's Table 1).

    Every batch is kept in --out, so the same command goes on after an interruption, and gives the same figures as if
    there had been none. The folder gets results.json, results.csv, and the trade-off as PNG and SVG.
    """

    model: tyro.conf.Positional[Model] = "digits"
    against: str | None = None
    """The data: digits (all 1,797 real ones; digits:train or digits:held-out for a part), a folder of pictures, a
    .parquet file, or the id of a dataset on the hub. A text-to-image model draws its captions."""
    steps: tuple[int, ...] = (10, 20, 50, 100)
    """Numbers of sampling steps, S."""
    eta: tuple[float | Literal["sigma_hat"], ...] = (0.0,)
    """0 is DDIM, 1 is DDPM, sigma_hat is DDPM with the larger variance, which adds no noise at the last step, as in
    the paper's code."""
    samples: int = 5000
    """To draw for each of them, and each seed."""
    batch: int = 500
    """Samples at a time."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seed"])] = (0,)
    """Of the noise and of the captions' order. Several give a mean and a standard deviation over them."""
    spacing: Spacing = None
    clip_sample: Clipping = "model"
    """Whether the predicted image is clipped: as the model's scheduler says, always, never, or only under sigma_hat,
    as in the paper's code."""
    features: str | None = None
    """What sees the pictures: digits, emoji or inception. If not given, what is shipped for pictures of this size."""
    features_weights: str | None = None
    """The file of Inception's weights."""
    guidance_scale: GuidanceScale = None
    guidance_rescale: GuidanceRescale = None
    labels: Literal["turn", "data"] = "turn"
    """Of a class-conditional model: all classes in turn, or those of the data in an order of the seed."""
    image_column: str = "image"
    """Of a dataset."""
    label_column: str = "label"
    """Of a dataset."""
    caption_column: str = "captions"
    """Of a dataset or of a folder's metadata."""
    consistency: bool = False
    """Instead of distances: draw from one noise with each number of steps, and say how alike the pictures are (the
    paper's Figure 5)."""
    dtype: DType = None
    backend: Backend = "eager"
    device: Device = None
    out: str = "evaluation"
    """The folder for all that is written."""

    def __post_init__(self) -> None:
        for name in ("steps", "eta", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} must be one or more values, none of them twice, not {values}")
        for name, least in (("samples", 4), ("batch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if min(self.steps) < 1 or min(self.seeds) < 0:
            raise ConfigError("steps must be 1 or more, and seeds 0 or more")


SHOWN = 8  # noises in the strip of pictures
_COMPARED = 200  # noises behind the figures of consistency, at most


def run_evaluate(settings: EvaluateSettings) -> str:
    """Do what the settings say; returns what to print."""
    from ddim.cli.opening import draws_texts, open_pipeline, suitable_guidance
    from ddim.evaluation.drawing import conditions, open_data
    from ddim.evaluation.features import features_for, load_features

    pipe = open_pipeline(
        settings.model, settings.dtype, settings.device, backend=settings.backend, spacing=settings.spacing
    )
    pipe.set_progress_bar_config(disable=True)
    texts = draws_texts(pipe)
    source = None
    if settings.against is not None:
        source = open_data(
            settings.against,
            captioned=texts,
            labelled=settings.labels == "data",
            image_column=settings.image_column,
            label_column=settings.label_column,
            caption_column=settings.caption_column,
        )
    elif texts or settings.labels == "data" or not settings.consistency:
        raise ConfigError("say what to compare with: --against digits, a folder of pictures or a .parquet file")
    guidance = suitable_guidance(pipe, settings.guidance_scale, settings.guidance_rescale)
    name = settings.features or features_for(pipe.picture_shape())
    extractor = load_features(name, pipe.device, settings.features_weights)
    condition = conditions(pipe, source, settings.labels, guidance)
    if settings.consistency:
        return _consistency(settings, pipe, condition, extractor)
    assert source is not None
    return _grid(settings, pipe, source, guidance, condition, extractor)


def _grid(
    settings: EvaluateSettings, pipe: Any, source: Source, guidance: tuple[float, float], condition: Any, extractor: Any
) -> str:
    from ddim.evaluation.grid import Grid
    from ddim.evaluation.report import as_text, write_results
    from ddim.evaluation.state import Cell, Folder, digest
    from ddim.plots.tradeoff import plot_tradeoff

    # All that a cell's figures depend on, but for its own eta, steps and seed.
    fixed = {
        name: getattr(settings, name)
        for name in ("model", "against", "samples", "batch", "spacing", "clip_sample", "labels")
    }
    fixed |= {"dtype": settings.dtype or "float32"} if settings.backend == "eager" else {"backend": pipe.backend}
    fixed |= {"guidance_scale": guidance[0], "guidance_rescale": guidance[1], "features": extractor.name}
    fixed |= {"digest": digest(pipe), "pictures": source.count}
    folder = Folder(settings.out, fixed)
    grid = Grid(
        pipe,
        source,
        extractor,
        folder,
        condition,
        samples=settings.samples,
        batch=settings.batch,
        clip_sample=settings.clip_sample,
    )
    cells = [Cell(eta, steps, seed) for eta in settings.eta for steps in settings.steps for seed in settings.seeds]
    ideal = grid.ideal()
    for _ in grid.run(cells):
        write_results(folder.path, fixed, extractor.name, ideal, folder.all_figures())
    results = write_results(folder.path, fixed, extractor.name, ideal, folder.all_figures())
    plots = [plot_tradeoff([results], str(folder.path / f"tradeoff.{suffix}")) for suffix in ("png", "svg")]
    files = [folder.path / "results.json", folder.path / "results.csv", *plots]
    return "\n".join([as_text(results), *map(str, files)])


def _consistency(settings: EvaluateSettings, pipe: Any, condition: Any, extractor: Any) -> str:
    from ddim.checkpoint import write_json
    from ddim.evaluation.consistency import consistency
    from ddim.evaluation.report import versions
    from ddim.plots.consistency import plot_consistency

    if settings.eta != (0.0,) or len(settings.seeds) > 1:
        raise ConfigError("consistency is of eta 0 and of one seed: leave out --eta and other seeds")
    count = min(settings.samples, _COMPARED)
    found = consistency(
        pipe,
        settings.steps,
        count,
        settings.seeds[0],
        condition,
        extractor,
        clip_sample=settings.clip_sample,
        batch=settings.batch,
    )
    folder = Path(settings.out)
    about = {"model": settings.model, "samples": count, "seed": settings.seeds[0], "features": extractor.name}
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


def _save_strips(pictures: Any, others: Tensor, folder: Path) -> list[Path]:
    """A row for each noise, a column for each number of steps; last, apart, another noise of the same condition."""
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
