"""The pictures that rows start from or show to ControlNets: files beside the table, which may be anyone's, fitted as in
`ddim sample`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ddim.errors import DataError
from ddim.images import check_picture
from ddim.jobs.prompts import file_digest
from ddim.pipelines import DiffusionPipeline
from ddim.pipelines.fitting import Size, are_alike, read_fitted, start_size
from ddim.serving.refusal import Refusal
from ddim.serving.wishes import is_for_inpainting

__all__ = ["Begun", "Named", "begun_from", "told_of"]

_HASH = 24  # hexadecimal digits, as many as `ddim sample` notes of a file


@dataclass(frozen=True)
class Named:
    """What a row names to start from.

    Attributes:
        image, mask_image: as the table has them; a path that is not absolute is meant from the table's folder.
        controls: what each ControlNet is shown, likewise.
        height, width: in pixels, where they are said.
    """

    image: str | None = None
    mask_image: str | None = None
    controls: tuple[str, ...] = ()
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Begun:
    """What a row starts from: noise alone, unless there is a picture.

    Attributes:
        image: in the size that is drawn.
        mask: of its size, white where it is painted anew.
        controls: what each ControlNet is shown, of this size as well.
        files: a hash of the bytes of each file that was read.
    """

    image: Image.Image | None = None
    mask: Image.Image | None = None
    controls: tuple[Image.Image, ...] = ()
    files: tuple[str, ...] = field(default=())

    @property
    def size(self) -> Size | None:
        """That is drawn; None where there is no picture that it follows from."""
        first = self.image or next(iter(self.controls), None)
        return None if first is None else first.size


def begun_from(named: Named, folder: Path, model: str, pipe: DiffusionPipeline) -> Begun:
    """The pictures that a row names.

    Args:
        folder: of the table.
        model: what the user calls the model.

    Raises:
        Refusal: they cannot be used; names the setting.
    """
    begun = _begun(named, folder, model, pipe)
    size, shown = begun.size, []
    for given in named.controls:
        path, own = _looked_at(folder, given, "control_image")
        size = size or start_size(own, pipe, named.height, named.width)
        shown.append(_fitted(path, "control_image", own, size, 3))
    hashes = (file_digest(folder / given)[:_HASH] for given in named.controls)
    return replace(begun, controls=tuple(shown), files=(*begun.files, *hashes))


def _begun(named: Named, folder: Path, model: str, pipe: DiffusionPipeline) -> Begun:
    """The same without what is shown to ControlNets."""
    if named.image is None:
        if named.mask_image is not None:
            raise Refusal("mask_image says where image is to be painted anew: give one, or leave it out", "mask_image")
        return Begun()
    if not pipe.draws_texts:
        raise Refusal(f"image: {model} starts from noise alone: leave it out, or use a text-to-image model", "image")
    if named.mask_image is None and is_for_inpainting(pipe):
        raise Refusal(f"{model} paints parts of pictures anew: give mask_image too", "mask_image")
    path, own = _looked_at(folder, named.image, "image")
    size = start_size(own, pipe, named.height, named.width)
    if named.mask_image is None:
        return Begun(_fitted(path, "image", own, size, 3), files=(file_digest(path)[:_HASH],))
    over, its_own = _looked_at(folder, named.mask_image, "mask_image")
    if not are_alike(its_own, own):
        raise Refusal(
            f"mask_image is {its_own[0]}x{its_own[1]} and image {own[0]}x{own[1]}: as the mask lies over the whole "
            "picture, give one of the picture's size, or of its proportions",
            "mask_image",
        )
    pictures = _fitted(path, "image", own, size, 3), _fitted(over, "mask_image", its_own, size, 1)
    return Begun(*pictures, files=tuple(file_digest(each)[:_HASH] for each in (path, over)))


def told_of(named: Named, begun: Begun) -> dict[str, Any]:
    """What a picture says of the files that it was started from, by the names of the options of `ddim sample`."""
    given = {"image": named.image, "mask_image": named.mask_image, "control_image": list(named.controls) or None}
    return {name: path for name, path in given.items() if path is not None} if begun.files else {}


def _looked_at(folder: Path, given: str, name: str) -> tuple[Path, Size]:
    """The file that a row names, and the size of its picture; it is not decoded."""
    path = folder / given
    try:
        return path, check_picture(path, f"{name} {given}")
    except DataError as error:
        raise Refusal(str(error), name) from error


def _fitted(path: Path, name: str, own: Size, size: Size, channels: int) -> Image.Image:
    try:
        return read_fitted(path, f"{name} {path.name}", own, size, channels)
    except DataError as error:
        raise Refusal(str(error), name) from error
