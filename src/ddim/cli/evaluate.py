"""`ddim evaluate`: the trade-off of quality and steps, and the consistency of samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim.errors import ConfigError
from ddim.settings import EvaluateSettings

if TYPE_CHECKING:
    from torch import Tensor

    from ddim.sources import Source

SHOWN = 8  # noises in the strip of pictures
_COMPARED = 200  # noises behind the figures of consistency, at most


def run_evaluate(settings: EvaluateSettings) -> str:
    """Do what the settings say; returns what to print."""
    from ddim.cli.opening import draws_texts, open_pipeline, suitable_guidance
    from ddim.evaluation.drawing import conditions, open_data, picture_shape
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
    name = settings.features or features_for(picture_shape(pipe))
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
    from ddim.pipelines import image_grid
    from ddim.pipelines.images import to_images

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
