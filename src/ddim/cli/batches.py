"""Many pictures by one command: a few at a time, each saved when it is drawn, and progress by picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim.checkpoint.said import LONGEST, parse
from ddim.cli.places import Places, places

if TYPE_CHECKING:
    from tqdm.std import tqdm as Bar

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


def picture_bar(total: int) -> Bar[Any]:
    """Progress by picture, of which a part may be done: a bar or, where stderr is no terminal, a line now and then."""
    from ddim.data.progress import progress

    shown = "{percentage:3.0f}%|{bar}| {n:.0f} of {total} pictures [{elapsed}<{remaining}]"
    return progress(total=total, desc="drawing", unit="picture", bar_format=shown)
