"""Put a student into the package: whole in float16, or as its difference to a bundled model.

    python scripts/ship_student.py runs/digits-fast digits-fast
    python scripts/ship_student.py runs/emoji-fast emoji-fast --base emoji

A student is a folder that `ddim distill` wrote. As a difference, src/ddim/weights/NAME gets the files that the base has
not, and a difference.safetensors for each network that is not the same. It ends with the size, and with how far the
pictures are from those of the student's own folder.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim import DiffusionPipeline
from ddim.checkpoint import read_json, read_tensors, write_json
from ddim.checkpoint.difference import DIFFERENCE, save_difference
from ddim.checkpoint.hub import BASE, BUNDLED
from ddim.errors import CheckpointError

INDEX = "model_index.json"  # by which a bundled model is found
RECORD = "training.json"
KEPT = ("README.md",)  # written by hand
TEXTS = ("a red heart", "a grinning face", "a cat face on a blue background", "a robot, noto style")


def ship(student: Path, folder: Path, base: str | None = None) -> None:
    """Write a student's files into a folder of the package, in place of those that are there.

    Args:
        student: its folder, with the training.json that says how it was made.
        folder: src/ddim/weights/NAME.
        base: the bundled model that it is a difference to; None writes it whole.

    Raises:
        CheckpointError: it has no such record, or one of its networks is not like the base's.
    """
    told = read_json(student / RECORD)
    pipe = DiffusionPipeline.from_pretrained(student)
    exact = {
        name: dict(part.state_dict()) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
    }
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place)
        pipe.to(torch.float16).save_pretrained(whole)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in KEPT:
                path.unlink()
        for path in sorted(each for each in whole.rglob("*") if each.is_file()):
            name = path.relative_to(whole)
            theirs = None if base is None else BUNDLED / base / name
            if theirs is not None and path.name != INDEX and theirs.is_file() and is_same(path, theirs):
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if theirs is not None and path.suffix == ".safetensors":
                save_difference((folder / name).with_name(DIFFERENCE), read_tensors(theirs), exact[name.parts[0]])
            else:
                shutil.copyfile(path, folder / name)
    write_json(folder / RECORD, told)
    if base is not None:
        write_json(folder / BASE, {"base": base})


def is_same(path: Path, other: Path) -> bool:
    """Whether two files have the same tensors or, of other files, the same bytes."""
    if path.suffix != ".safetensors":
        return path.read_bytes() == other.read_bytes()
    mine, theirs = read_tensors(path), read_tensors(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def drawn(folder: Path) -> Tensor:
    """Some pictures of a model, (b c h w) in [0, 1], drawn as it recommends."""
    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    what = {"prompt": list(TEXTS)} if pipe.draws_texts else {"class_labels": list(range(pipe.class_count))}
    count = len(next(iter(what.values())))
    images: Tensor = pipe(**what, seed=list(range(count)), output_type="pt").images
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path, help="the folder that ddim distill wrote")
    parser.add_argument("name", help="the name to ship it under")
    parser.add_argument(
        "--base", help="the bundled model that it is to be a difference to; it is written whole if none"
    )
    options = parser.parse_args()
    folder = BUNDLED / options.name
    try:
        ship(options.student, folder, options.base)
    except CheckpointError as error:
        parser.error(str(error))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    apart = 255 * float((drawn(folder) - drawn(options.student)).square().mean().sqrt())
    print(f"{folder}: {size / 1e6:.2f} MB; pictures are {apart:.2f} of 255 from the student's, as a root mean square")


if __name__ == "__main__":
    main()
