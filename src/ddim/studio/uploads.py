"""Pictures that visitors drop: read through the package's own door, within bounds, and gone with the session.

Gradio's own components would decode them by whatever of Pillow's formats fits.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta, updateable
from gradio.context import LocalContext
from PIL import Image, ImageChops

from ddim.errors import DataError
from ddim.images import check_picture, read_picture
from ddim.serving.limits import Limits
from ddim.serving.pictures import read_image
from ddim.serving.refusal import Refusal
from ddim.studio.desk import Studio, sentence

__all__ = ["DroppedPicture", "PaintedPicture", "dropped_file"]


class _Quiet(ComponentMeta):
    """Makes a component as gradio does, but writes no stub file beside the code, which may be anywhere."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        attributes["__init__"] = updateable(attributes["__init__"])  # type: ignore[no-untyped-call]
        return super(ComponentMeta, cls).__new__(cls, name, bases, attributes)


class DroppedPicture(gr.Image, metaclass=_Quiet):
    """A place to drop a picture. A listener gets it as an `Image.Image` of mode "L" or "RGB", upright; or None.

    Args:
        studio: whose limits count.
        more: as for `gradio.Image`.
    """

    def __init__(self, studio: Studio, **more: Any) -> None:
        self._studio = studio
        usual = {"sources": ["upload", "clipboard"], "type": "filepath", "buttons": [], "height": 240}
        super().__init__(**{**usual, **more})

    def get_block_name(self) -> str:
        return "image"

    def preprocess(self, payload: Any) -> Any:
        return None if payload is None else _read(self._studio, payload.path)


class PaintedPicture(gr.ImageEditor, metaclass=_Quiet):
    """A place to drop a picture and to paint over it. A listener gets (picture, mask), the mask in mode "L" and white
    where it was painted, or None where nowhere is; or None without a picture.

    Args:
        studio, more: as for `DroppedPicture`.
    """

    def __init__(self, studio: Studio, **more: Any) -> None:
        self._studio = studio
        usual = {
            "sources": ["upload", "clipboard"],
            "type": "filepath",
            "transforms": [],
            "layers": False,
            "brush": gr.Brush(default_size=24, colors=["#ff00ff"], color_mode="fixed"),
            "buttons": [],
            "height": 320,
        }
        super().__init__(**{**usual, **more})

    def get_block_name(self) -> str:
        return "imageeditor"

    def preprocess(self, payload: Any) -> Any:
        if payload is None:
            return None
        if payload.id is not None:
            payload = self.blob_storage.pop(payload.id, None)
            if payload is None:
                return None
        background = _read(self._studio, payload.background)
        if background is None:
            return None
        mask = Image.new("L", background.size)
        for layer in payload.layers or ():
            painted = _alpha(self._studio, layer)
            if painted is not None:
                mask = ImageChops.lighter(mask, painted.resize(background.size, Image.Resampling.NEAREST))
        return background, (None if mask.getextrema() == (0, 0) else mask)


def dropped_file(studio: Studio, path: str | None) -> bytes | None:
    """The bytes of a file that was uploaded, which goes with the session; None where there is none.

    Raises:
        gradio.Error: it is too large, in a sentence.
    """
    if path is None:
        return None
    file = Path(path)
    _own(studio, file)
    if file.stat().st_size >= studio.limits.image_bytes:
        raise gr.Error(f"The file has {file.stat().st_size:,} bytes, and {studio.limits.image_bytes:,} are too many.")
    return file.read_bytes()


def _own(studio: Studio, file: Path) -> None:
    """Let an uploaded file go with the session whose event is being handled."""
    request = LocalContext.request.get()
    studio.sessions.of(getattr(request, "session_hash", None)).own(file)


def _data(studio: Studio, given: Any) -> bytes | None:
    """The bytes of what a component sends: a file's path, a `FileData` or bytes."""
    if given is None or isinstance(given, bytes):
        return given
    return dropped_file(studio, given if isinstance(given, str) else given.path)


def _read(studio: Studio, given: Any) -> Image.Image | None:
    data = _data(studio, given)
    if data is None:
        return None
    try:
        return read_image(data, studio.limits)
    except Refusal as refusal:
        raise gr.Error(sentence(refusal)) from refusal


def _alpha(studio: Studio, given: Any) -> Image.Image | None:
    """Where a layer was painted."""
    data = _data(studio, given)
    if data is None:
        return None
    with contextlib.suppress(Refusal):
        layer = _layer(data, studio.limits)
        return layer.getchannel("A").point(lambda value: 255 * (value > 0))
    return None


def _layer(data: bytes, limits: Limits) -> Image.Image:
    """A layer of an editor, in RGBA.

    Raises:
        Refusal: it is no picture, or too large.
    """
    try:
        width, height = check_picture(data, "the layer")
        if width * height > limits.image_pixels:
            raise Refusal("the painted layer is too large", "mask")
        return read_picture(data, "the layer").convert("RGBA")
    except DataError as error:
        raise Refusal(str(error), "mask") from error
