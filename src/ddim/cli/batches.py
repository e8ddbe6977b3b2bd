"""Many pictures by one command: a few at a time, each saved when it is drawn, and progress by picture."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ddim.cli.places import Places, places
from ddim.cli.recipe import LONGEST, parse

if TYPE_CHECKING:
    from tqdm import tqdm as Bar

    from ddim.pipelines import DiffusionPipeline

# --- how many at a time -----------------------------------------------------------------------------------------------

_MOST = 64  # more at a time are hardly faster, even of the smallest pictures
_LAYERS = 8  # how many layers' outputs, at the full resolution, a network has in memory at a time, about
_MEMORY = 2**26  # bytes for them on a CPU, where more at a time soon spill over its caches
_SHARE = 8  # on an accelerator, the part of its memory that they may take: one in so many


def chunk_size(pipe: DiffusionPipeline, size: tuple[int, int]) -> int:
    """How many pictures to draw at a time: the same number whenever a command is run again on the same machine.

    Args:
        size: of the pictures, (width, height).
    """
    import torch

    network = pipe.components.get("vae") or pipe.components["unet"]
    channels = int(network.config.block_out_channels[0])
    each = size[0] * size[1] * channels * _LAYERS * (torch.finfo(pipe.dtype).bits // 8)
    memory = _MEMORY
    if pipe.device.type == "cuda":
        memory = torch.cuda.get_device_properties(pipe.device).total_memory // _SHARE
    return max(1, min(_MOST, memory // each))


def chunks(numbers: range, size: int) -> Iterator[range]:
    """The numbers in ranges of `size`, which begin at its multiples.

    So a picture is drawn beside the same others wherever a command goes on, and comes out the same to the bit.

    >>> list(chunks(range(0, 10), 4)), list(chunks(range(6, 7), 4))
    ([range(0, 4), range(4, 8), range(8, 10)], [range(6, 7)])
    """
    first = numbers.start
    while first < numbers.stop:
        last = min(first - first % size + size, numbers.stop)
        yield range(first, last)
        first = last


# --- going on where a command stopped ---------------------------------------------------------------------------------

# Settings that a picture in a folder of pictures does not depend on.
_WITHOUT_EFFECT = ("batch", "device", "labels")


def pictures_of(folder: str, numbers: range, made: Mapping[str, Any], overwrite: bool) -> Places:
    """Where the pictures of one recipe go in a folder, and which of them are there already.

    Says on stderr what it found, if anything.

    Args:
        made: what each picture says of how it was made, but for its number.
    """
    found = places(folder, numbers, overwrite, ours=lambda path, number: _is_made_so(path, {**made, "image": number}))
    if found.suffix:
        print(
            f"ddim: {folder} has pictures of other settings, which are kept: the new ones are {found.path(0).name} and "
            "so on (--overwrite replaces those that are there)",
            file=sys.stderr,
        )
    if found.done:
        left = len(numbers) - len(found.done)
        print(
            f"ddim: {len(found.done)} of the {len(numbers)} pictures are in {folder} already, "
            + (f"{left} are left to draw" if left else "so there is nothing to draw"),
            file=sys.stderr,
        )
    return found


def _is_made_so(path: Path, made: Mapping[str, Any]) -> bool:
    """Whether a picture says that it was made in this way."""
    from ddim.images import png_text

    try:
        note = parse(png_text(path, "ddim", LONGEST) or "")
        return bool(_recipe(note) == _recipe(json.loads(json.dumps(made))))
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError):  # it is not one of ours
        return False


def _recipe(note: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in note["settings"].items() if name not in _WITHOUT_EFFECT}
    return {**note, "settings": kept}


# --- progress ---------------------------------------------------------------------------------------------------------


class PictureProgress:
    """Says on stderr how many pictures are drawn: by a bar or, where it is no terminal, by a line now and then."""

    _EVERY = 10.0  # seconds between two lines

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0.0
        self._bar: Bar[Any] | None = None
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Self:
        from tqdm.auto import tqdm

        if sys.stderr.isatty():
            shown = "{percentage:3.0f}%|{bar}| {n:.0f} of {total} pictures [{elapsed}<{remaining}]"
            self._bar = tqdm(total=self._total, bar_format=shown)
        return self

    def update(self, pictures: float) -> None:
        """Count so many more pictures, or so much of one."""
        before, self._done = self._done, min(self._done + pictures, self._total)
        if self._bar is not None:
            self._bar.update(self._done - before)
            return
        now = time.monotonic()
        if now - self._said >= self._EVERY:
            self._said = now
            left = (now - self._started) * (self._total / self._done - 1)
            print(f"ddim: {self._done:.0f} of {self._total} pictures, about {_spelt(left)} left", file=sys.stderr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _spelt(seconds: float) -> str:
    """
    >>> _spelt(4.2), _spelt(200), _spelt(7300)
    ('5 s', '4 min', '2.1 h')
    """
    if seconds < 90:
        return f"{int(seconds) + 1} s"
    return f"{int(seconds / 60) + 1} min" if seconds < 5400 else f"{seconds / 3600 + 0.05:.1f} h"
