"""What `ddim sample` draws, and where it goes: into one file, or each picture into a file as soon as it is drawn."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim.cli.batches import chunk_size, chunks, picture_bar, pictures_of
from ddim.cli.controlling import controlled, files_shown
from ddim.cli.fitting import fit_start, warn_of_size
from ddim.cli.pictures import choose_scale, made_by, save_picture, save_pictures
from ddim.cli.places import is_folder
from ddim.cli.xl import told

if TYPE_CHECKING:
    from PIL import Image
    from tqdm.std import tqdm as Bar

    from ddim.cli.sample import SampleSettings
    from ddim.pipelines import DiffusionPipeline

_SHOWN = 20  # how many names of files a terminal is shown
FROM_FILES = ("image", "mask_image")  # the settings that name the files of pictures to start from


class Drawing:
    """All images that settings ask for, or the one with the number `only`.

    Args:
        settings: in which the steps, their order and the guidance are chosen.
        only: a number; None for all.
        refiner: a pipeline that makes the last steps, from `settings.refiner_start` of the way on; None for none.

    Attributes:
        settings: with the scale that was chosen.
        numbers: of the images.
        at_a_time: how many to draw together.
        made: what each picture says of how it was made.

    Raises:
        ConfigError: a picture to start from that cannot be used, or pictures too large for one file.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        settings: SampleSettings,
        only: int | None,
        refiner: Any = None,
    ) -> None:
        from ddim.pipelines.recommended import plan_of_call

        self.pipe, self.only, self.refiner = pipe, only, refiner
        self._labels = settings.class_labels or range(pipe.class_count or 0)
        count = settings.batch or len(self._labels) or (1 if pipe.draws_texts else 16)
        self.numbers = range(count) if only is None else range(only, only + 1)
        if len(self.numbers) > 1:
            pipe.set_progress_bar_config(disable=True)  # progress is by pictures then, not by the steps of each batch
        starts_whole = settings.image is None or settings.denoising_start is not None
        share = 1.0 if starts_whole else settings.strength
        plan = plan_of_call(pipe.scheduler, settings.steps, settings.eta, None, settings.order, share)
        self._steps = len(plan.part(settings.denoising_start, settings.denoising_end))
        self._request: dict[str, Any] = {
            "num_inference_steps": settings.steps,
            "eta": settings.eta,
            "order": settings.order,
            "guidance_scale": settings.guidance_scale,
            "guidance_rescale": settings.guidance_rescale,
            "guidance_interval": settings.guidance_interval,
        }
        if pipe.draws_texts:
            names = ("prompt", "negative_prompt", "height", "width", "strength")
            self._request |= {name: getattr(settings, name) for name in names}
            self._request |= self._start(settings)
            self._request |= told(settings)
            start = self._request.get("image")
            self._request |= controlled(settings, pipe, None if start is None else start.size)
            warn_of_size(pipe, str(settings.model), (self._request["height"], self._request["width"]))
        size = self._size()
        scale = choose_scale(settings.scale, size, len(self.numbers), settings.out, labels=settings.labels)
        self.settings = dataclasses.replace(settings, scale=scale)
        self.made = made_by("sample", self.settings, **self._of_what())
        self.at_a_time = chunk_size(pipe, size)

    def _start(self, settings: SampleSettings) -> dict[str, Any]:
        """The picture to start from and its mask, in the size that is drawn."""
        if settings.image is None:
            return {}
        image, mask = fit_start(settings.image, settings.mask_image, self.pipe, settings.height, settings.width)
        return {"image": image, "mask_image": mask, "height": image.height, "width": image.width}

    def _of_what(self) -> dict[str, Any]:
        """What a picture depends on beside the settings: files, and of one among many also the weights.

        By these a command that goes on knows its own pictures, though the model may have been trained since.
        """
        given = [path for name in FROM_FILES if (path := getattr(self.settings, name)) is not None]
        given += files_shown(self.settings)
        about: dict[str, Any] = {"files": [_hash(path) for path in given]} if given else {}
        if self.only is not None or is_folder(self.settings.out):
            from ddim.evaluation.state import digest

            about["weights"] = digest(self.pipe)
            if self.refiner is not None:
                about["refiner"] = digest(self.refiner)
        return about

    def _size(self) -> tuple[int, int]:
        """Width and height of each picture."""
        height, width = self._request.get("height"), self._request.get("width")
        if height is None or width is None:
            _, trained_height, trained_width = self.pipe.picture_shape()
            height, width = height or trained_height, width or trained_width
        return width, height

    def draw(self, numbers: range, progress: Callable[[float], object] | None = None) -> list[Image.Image]:
        """The images with these numbers; after each step, `progress` is told the share of the work that it was."""
        import torch

        from ddim.noise import seeded_generators

        request = dict(self._request)
        request["generator"] = seeded_generators(self.settings.seed, len(numbers), numbers.start)
        request["num_images_per_prompt" if self.pipe.draws_texts else "batch_size"] = len(numbers)
        if self._labels:
            request["class_labels"] = [self._labels[number % len(self._labels)] for number in numbers]
        if progress is not None:
            request["callback_on_step_end"] = lambda pipe, *step: progress(1 / self._steps)
            if self.pipe.draws_texts:
                request["callback_on_step_end_tensor_inputs"] = ()
        with torch.inference_mode():
            if self.refiner is not None:
                return self._refined(request)
            images: list[Image.Image] = self.pipe(**request).images
        return images

    def _refined(self, request: dict[str, Any]) -> list[Image.Image]:
        """What the model begins and the refiner finishes; the noise of both is drawn by the same generators."""
        start = self.settings.refiner_start
        begun = self.pipe(**request, denoising_end=start, output_type="latent").images
        without = {"image", "strength"}
        without |= {name for name in request if name == "guess_mode" or name.startswith("control")}  # it is not steered
        without |= set() if self.settings.mask_image else {"height", "width"}
        rest = {name: value for name, value in request.items() if name not in without}
        images: list[Image.Image] = self.refiner(**rest, image=begun, denoising_start=start).images
        return images

    def label(self, number: int) -> str:
        """What is written under an image."""
        about = f"seed {self.settings.seed}, number {number}"
        if self._labels:
            return f"class {self._labels[number % len(self._labels)]}: {about}"
        return about if self.settings.prompt is None else f"{about}: {self.settings.prompt}"


def draw_into_file(drawing: Drawing) -> int:
    """Write one picture, or a grid of all, and print where; returns how many were drawn."""
    settings, numbers = drawing.settings, drawing.numbers
    if len(numbers) == 1:
        images = drawing.draw(numbers)
    else:
        with picture_bar(len(numbers)) as bar:
            parts = chunks(numbers, drawing.at_a_time)
            images = [image for part in parts for image in drawing.draw(part, _counting(bar, len(part)))]
    (path,) = save_pictures(
        images,
        settings.out,
        drawing.made,
        overwrite=settings.overwrite,
        scale=settings.scale or 1,
        labels=[drawing.label(number) for number in numbers] if settings.labels else None,
        first=drawing.only,
    )
    print(path)
    return len(images)


def draw_into_folder(drawing: Drawing) -> int:
    """Write each picture into a file as soon as it is drawn, but for those that are there already, and print where.

    Returns:
        How many were written.

    Raises:
        KeyboardInterrupt: says how many are there.
    """
    from ddim.images import enlarge

    settings, numbers = drawing.settings, drawing.numbers
    there = pictures_of(settings.out, numbers, drawing.made, settings.overwrite)
    written: list[Path] = []
    try:
        with picture_bar(len(numbers) - len(there.done)) as bar:
            for part in chunks(numbers, drawing.at_a_time):
                missing = [number for number in part if number not in there.done]
                if not missing:
                    continue
                progress = None if len(numbers) == 1 else _counting(bar, len(missing))
                for number, image in zip(part, drawing.draw(part, progress), strict=True):
                    if number in missing:
                        path = there.path(number)
                        save_picture(enlarge(image, settings.scale), path, {**drawing.made, "image": number})
                        written.append(path)
    except KeyboardInterrupt:
        count = len(there.done) + len(written)
        raise KeyboardInterrupt(f"{count} of {len(numbers)} pictures are in {settings.out}") from None
    finally:
        _print(written)
    return len(written)


def _print(files: list[Path]) -> None:
    """Print the names of files; where somebody looks on, the first and the last of many."""
    if len(files) > _SHOWN and sys.stdout.isatty():
        print(f"{files[0]}\n…\n{files[-1]}")
        return
    for file in files:
        print(file)


def _counting(bar: Bar[Any], pictures: int) -> Callable[[float], object]:
    """What counts a share of so many pictures."""
    return lambda share: bar.update(share * pictures)


def _hash(path: str) -> str:
    """Of a file's bytes, by which a picture knows what it was started from."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:24]
