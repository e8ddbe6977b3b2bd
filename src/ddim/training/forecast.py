"""What a run comes to before it begins, advice by its data, and how long it will take."""

from __future__ import annotations

import math
import statistics
import time

from PIL import Image

from ddim.data import Source
from ddim.data.buckets import Buckets
from ddim.data.progress import duration
from ddim.training.settings import (
    ControlNetSettings,
    LatentSettings,
    LoraSettings,
    TextToImageSettings,
    TextualInversionSettings,
    TrainSettings,
    VAESettings,
)

FEW = 300  # pictures: of fewer, a whole model learns little but them
LOOKED_AT = 32  # how many pictures' sizes are looked at
PATIENCE = 3.0  # seconds that this may take
ENDLESS = 1_000_000_000  # steps of a run that nothing but the time ends
SHOWN_BUCKETS = 8  # how many buckets are told of
MEASURED = 5  # how many steps are timed before the time for all is said


def summary(count: int, resolution: int, steps: int, per_step: int) -> str:
    """What data and settings come to.

    >>> summary(5209, 64, 10_000, 64)
    '5,209 pictures of 64x64, 10,000 steps of 64: 123 epochs'
    >>> summary(5209, 64, ENDLESS, 64)
    '5,209 pictures of 64x64, steps of 64'
    """
    pictures = f"{count:,} picture{'s' * (count != 1)} of {resolution}x{resolution}"
    return f"{pictures}, {_steps(steps, per_step, steps * per_step / count)}"


def bucket_summary(buckets: Buckets, steps: int, per_step: int, batch: int, epochs: float) -> list[str]:
    """What buckets and settings come to: the run, and how many pictures each of the largest buckets has.

    Args:
        batch: how many pictures a batch that is not short has, of all processes together.
        epochs: how often the run shows each picture.
    """
    counts = sorted(
        ((len(each), size) for each, size in zip(buckets.members(), buckets.sizes, strict=True)), reverse=True
    )
    pictures = f"{len(buckets.of):,} pictures in {len(counts)} bucket{'s' * (len(counts) > 1)}"
    shown = ", ".join(f"{width}x{height} ({count:,})" for count, (width, height) in counts[:SHOWN_BUCKETS])
    more = f" and {len(counts) - SHOWN_BUCKETS} more" * (len(counts) > SHOWN_BUCKETS)
    mean, most = buckets.cropped()
    width, height = max(buckets.sizes, key=math.prod)
    lines = [
        f"{pictures}, {_steps(steps, per_step, epochs)}",
        f"buckets, with their pictures: {shown}{more}. {width}x{height}, the largest, decides how much memory is "
        "needed. "
        f"{mean:.1%} of a picture is cropped on average, {most:.1%} at most",
    ]
    if len(counts) > 1:
        per_epoch = buckets.per_epoch(batch)
        lines.append(
            f"an epoch is {per_epoch:,} batches, of {len(buckets.of) / per_epoch:.3g} pictures on average: a bucket's "
            "last one has those that are left"
        )
    return lines


def _steps(steps: int, per_step: int, epochs: float) -> str:
    """How many steps a run has, and what they come to."""
    told = f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"
    if steps >= ENDLESS:
        return f"steps of {per_step}"
    return f"{steps:,} steps of {per_step}: {told} epoch{'s' * (told != '1')}"


def advice(
    settings: TrainSettings,
    source: Source,
    resolution: int,
    steps: int,
    per_step: int,
    epochs: float,
    buckets: Buckets | None = None,
) -> list[str]:
    """What somebody who knows would say of these settings for these data; often nothing.

    Args:
        settings, source: of the run.
        resolution: of a square picture.
        steps: how many there are.
        per_step: the most pictures of a step.
        epochs: how often the run shows each picture.
        buckets: the pictures' sizes, if they are not all squares.
    """
    count, epoch_steps = source.count, steps / epochs
    is_whole = not isinstance(settings, (LoraSettings, TextualInversionSettings))
    is_new = getattr(settings, "pretrained_model_name_or_path", None) is None
    said: list[str] = []
    is_control = isinstance(settings, ControlNetSettings)
    if isinstance(settings, LatentSettings) and is_whole and not is_control and count < FEW:
        said.append(f"{count} pictures: `ddim train lora` suits, which learns a thing or a style from as few")
    elif is_whole and is_new and count < FEW:
        said.append(f"{count} pictures are few for a new model, which will know little but them: some thousands suit")
    said += _of_sizes(source, resolution) if buckets is None else _of_buckets(buckets)
    if buckets is not None and 2 * epoch_steps * per_step > 4 * count:
        said.append(
            f"most batches have fewer pictures than there is room for: --train-batch-size "
            f"{max(1, round(settings.train_batch_size * count / (epoch_steps * per_step)))} makes more of the steps"
        )
    if buckets is None and per_step > count:
        said.append(
            f"a step of {per_step} is more than all {count} pictures: each is in it {per_step / count:.3g} times; "
            f"--train-batch-size {count} or less takes less time"
        )
    if epochs < 1:
        said.append(
            f"the run ends after {epochs:.0%} of the pictures: --max-train-steps {math.ceil(epoch_steps):,} or "
            "more shows it all of them"
        )
    elif isinstance(settings, (TextToImageSettings, VAESettings)) and is_new and steps * per_step < 20_000:
        said.append(f"a new model learns little from {steps * per_step:,} pictures seen: 500,000 and more are usual")
    most = 2_000 if is_whole else 1_000
    if epochs > most and settings.max_train_seconds is None:
        suits = max(1, round(most / 4 * epoch_steps))
        said.append(
            f"{epochs:,.0f} epochs: each picture is seen so often that it is learnt by heart; --max-train-steps "
            f"{suits:,} is {round(suits / epoch_steps):,} epochs"
        )
    return said


def _of_sizes(source: Source, resolution: int) -> list[str]:
    """What is to be said of the sizes of pictures that become squares."""
    sizes = picture_sizes(source.at_least(resolution))  # of larger ones it does not matter how large they are
    side = round(statistics.median(sizes)) if sizes else resolution
    if side >= resolution:
        return []
    smaller = sum(size < resolution for size in sizes)
    return [
        f"--resolution {resolution} is larger than {smaller} of {len(sizes)} pictures that were looked at, whose "
        f"shorter side is mostly {side}: these are enlarged and stay blurred"
    ]


def _of_buckets(buckets: Buckets) -> list[str]:
    """What is to be said of the sizes of pictures that go into buckets."""
    enlarged = buckets.enlarged()
    if 2 * enlarged <= len(buckets.of):
        return []
    return [
        f"{enlarged:,} of {len(buckets.of):,} pictures are smaller than their bucket: these are enlarged and stay "
        "blurred; --bucket-no-upscale gives them sizes of their own"
    ]


def picture_sizes(source: Source) -> list[int]:
    """The shorter sides, in pixels, of some pictures all over a source; of none if they cannot be resized."""
    sizes: list[int] = []
    stride, began = max(1, source.count // LOOKED_AT), time.monotonic()
    for number in range(0, source.count, stride)[:LOOKED_AT]:
        image = source.load(number)
        if not isinstance(image, Image.Image) or time.monotonic() - began > PATIENCE:
            break
        sizes.append(min(image.size))
    return sizes


class Forecast:
    """How long a run takes, by the first steps; checkpoints and previews are guessed until one was timed.

    Args:
        steps: how many are to be made.
        previews, checkpoints: how many there will be.
        share: how many steps' time a preview takes, as a guess.
        limit: seconds after which the run ends if it has not before, or None.
    """

    def __init__(self, steps: int, previews: int, checkpoints: int, share: float, limit: float | None = None) -> None:
        self.limit = math.inf if limit is None else limit
        self.steps, self.previews, self.checkpoints, self.share = steps, previews, checkpoints, share
        self.seconds: list[float] = []  # of the first steps
        self.preview: float | None = None  # seconds
        self.checkpoint: float | None = None
        self.told = 0.0  # what was said last, in seconds

    def step(self, seconds: float) -> bool:
        """Note how long a step took; whether this is the moment to say how long all will take."""
        self.seconds.append(seconds)
        made = len(self.seconds)
        return made == MEASURED or (made < MEASURED and sum(self.seconds) > 10 and not self.told)

    @property
    def measures(self) -> bool:
        """Whether more steps are to be timed."""
        return len(self.seconds) < MEASURED

    @property
    def a_step(self) -> float:
        """Seconds. The first step is left out if there are others, as it takes longer."""
        return statistics.median(self.seconds[1:] or self.seconds)

    def total(self) -> float:
        """Seconds that all steps, previews and checkpoints take."""
        preview = self.share * self.a_step if self.preview is None else self.preview
        return self.steps * self.a_step + self.previews * preview + self.checkpoints * (self.checkpoint or 0.0)

    def say(self, before: float) -> str | None:
        """The time for the whole run in a sentence; None if it is about what was said before.

        Args:
            before: seconds that went by before the first step, such as for encoding the pictures.
        """
        total = before + self.total()
        if total > self.limit:
            if self.told:
                return None
            self.told = self.limit
            steps = max(1, int((self.limit - before) / (self.total() / self.steps)))
            return (
                f"here the run ends by the time, {duration(self.limit)} after it began, in about {steps:,} steps of "
                f"{self._each()}. Ctrl-C saves what was learnt and ends it"
            )
        if self.told and abs(total - self.told) < max(0.2 * self.told, 60):
            return None
        parts = [f"{self.steps:,} steps of {self._each()}"]
        if self.previews:
            cost = "" if self.preview is None else f" of {duration(self.preview)}"
            parts.append(f"{self.previews} preview{'s' * (self.previews > 1)}{cost}")
        if self.checkpoint is not None and self.checkpoint >= 1:
            parts.append(f"{self.checkpoints} checkpoints of {duration(self.checkpoint)}")
        again = "it is rather" if self.told else "here the whole run takes"
        self.told = total
        return f"{again} about {duration(total)}: {', '.join(parts)}. Ctrl-C saves what was learnt and ends it"

    def _each(self) -> str:
        """The time of a step."""
        return f"{self.a_step:.2g} s" if self.a_step < 10 else f"{self.a_step:.0f} s"
