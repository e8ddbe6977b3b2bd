"""The `ddim` command. What takes time to import is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ddim._version import __version__
from ddim.errors import ConfigError, DDIMError
from ddim.settings import Command, InfoSettings, PlotSettings, SampleSettings, TrainSettings

if TYPE_CHECKING:
    from PIL import Image

    from ddim.pipelines import DiffusionPipeline


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 for an error that is explained, 130 for an interruption."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"ddim {__version__}")
        return 0
    commands: dict[type, Callable[[Any], None]] = {
        SampleSettings: run_sample,
        TrainSettings: run_train,
        InfoSettings: run_info,
        PlotSettings: run_plot,
    }
    try:
        settings = tyro.cli(
            Command,
            prog="ddim",
            description="Denoising diffusion implicit models: sample, train, look inside.",
            args=arguments,
        )
        commands[type(settings)](settings)
    except KeyboardInterrupt:
        print("ddim: interrupted", file=sys.stderr)
        return 130
    except (DDIMError, ValueError, OSError) as error:
        print(f"ddim: {error}", file=sys.stderr)
        return 1
    return 0


# --- sample ----------------------------------------------------------------------------------------------------------


def run_sample(settings: SampleSettings) -> None:
    import torch

    pipe = _open_pipeline(settings)
    classes = pipe.unet.config.num_class_embeds  # the last one stands for no class
    labels = None
    if classes is not None:
        count = settings.batch or len(settings.class_labels) or classes - 1
        chosen = settings.class_labels or range(classes - 1)
        labels = [chosen[index % len(chosen)] for index in range(count)]
    elif settings.class_labels:
        raise ConfigError(f"{settings.model} knows no classes: leave out --class-labels")
    else:
        count = settings.batch or 16
    with torch.inference_mode():
        images = pipe(
            batch_size=count,
            class_labels=labels,
            guidance_scale=settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
            num_inference_steps=settings.steps,
            eta=settings.eta,
            seed=settings.seed,
        ).images
    for path in _write_images(images, settings, labels):
        print(path)


def _open_pipeline(settings: SampleSettings) -> Any:
    import torch

    from ddim.pipelines import DDIMPipeline
    from ddim.scheduler import DDIMScheduler

    pipe = DDIMPipeline.from_pretrained(settings.model, dtype=getattr(torch, settings.dtype))
    changes: dict[str, Any] = {}
    if settings.spacing is not None:
        changes["timestep_spacing"] = settings.spacing
    if settings.zero_snr is not None:
        changes["rescale_betas_zero_snr"] = settings.zero_snr
    if changes:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **changes)
    try:
        return pipe.to(settings.device or _best_device())
    except (RuntimeError, AssertionError) as error:  # torch's words for a device that is not there
        raise ConfigError(f"--device {settings.device} cannot be used: {str(error).splitlines()[0]}") from error


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _write_images(images: Sequence[Image.Image], settings: SampleSettings, labels: list[int] | None) -> list[Path]:
    """One grid, or one file for each image; each PNG says how it was made."""
    from PIL.PngImagePlugin import PngInfo

    from ddim.checkpoint import atomic_write
    from ddim.pipelines import image_grid

    made = {"version": __version__, "model": settings.model, "class_labels": labels, "seed": settings.seed}
    made |= {name: getattr(settings, name) for name in ("steps", "eta", "guidance_scale", "guidance_rescale", "dtype")}
    out = Path(settings.out)
    if out.is_dir() or settings.out.endswith(("/", os.sep)):
        files = {out / f"{index:05d}.png": image for index, image in enumerate(images)}
    else:
        columns = min(len(images), 10) if labels else None
        files = {out: image_grid(images, columns=columns)}
    for index, (path, image) in enumerate(files.items()):
        note = PngInfo()
        note.add_text("ddim", json.dumps(made if len(files) == 1 else {**made, "image": index}))
        with atomic_write(path) as temporary:
            if path.suffix.lower() == ".png":
                image.save(temporary, pnginfo=note)
            else:
                image.save(temporary)
    return list(files)


# --- train, info, plot -----------------------------------------------------------------------------------------------


def run_train(settings: TrainSettings) -> None:
    from ddim.training import train

    print(train(settings))


def run_info(settings: InfoSettings) -> None:
    from ddim.checkpoint import bundled_models
    from ddim.pipelines import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(settings.model)
    print(f"{settings.model}: {type(pipe).__name__} (bundled models: {', '.join(bundled_models())})\n")
    for line in _describe(pipe):
        print(line)
    scheduler = pipe.components["scheduler"]
    print(f"\n{scheduler.plan(settings.steps, eta=settings.eta)!r}")


def _describe(pipe: DiffusionPipeline) -> list[str]:
    lines = []
    for name, part in pipe.components.items():
        lines.append(f"{name}: {type(part).__name__}")
        if hasattr(part, "parameters"):
            weights = list(part.parameters())
            total = sum(weight.numel() for weight in weights)
            size = sum(weight.numel() * weight.element_size() for weight in weights)
            lines.append(f"  {total:,} parameters, {size / 2**20:.1f} MiB as {weights[0].dtype}")
        settings = {key: value for key, value in part.config.items() if not key.startswith("_") and value is not None}
        lines += [f"  {key} = {value}" for key, value in sorted(settings.items())]
    return lines


def run_plot(settings: PlotSettings) -> None:
    from ddim.plots import plot_schedule

    print(plot_schedule(settings))


if __name__ == "__main__":
    sys.exit(main())
