"""Pictures that visitors drop: read through the package's own door, within bounds, and gone with the session.

Gradio's own components would decode them by whatever of Pillow's formats fits.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta
from PIL import Image

from ddim.errors import DataError
from ddim.images import check_picture, read_picture
from ddim.serving.pictures import read_image
from ddim.serving.refusal import Refusal
from ddim.studio.desk import Studio, sentence
from ddim.studio.sessions import Session
from ddim.studio.stage import image_source

__all__ = ["DroppedPicture", "PaintedPicture", "dropped_file", "dropped_picture", "read_dropped"]


class _Quiet(ComponentMeta):
    """Makes a component as gradio does, but writes no stub file beside the code, which may be anywhere."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        return super(ComponentMeta, cls).__new__(cls, name, bases, attributes)


class DroppedPicture(gr.Image, metaclass=_Quiet):
    """A place to drop a picture. A listener gets its file, unread, which `read_dropped` reads; or None."""

    def get_block_name(self) -> str:
        return "image"

    def preprocess(self, payload: Any) -> Any:
        return None if payload is None else payload.path


def dropped_picture(**more: Any) -> gr.Image:
    """A `DroppedPicture` with the properties that suit all tabs.

    Args:
        more: as for `gradio.Image`.
    """
    usual: dict[str, Any] = {"sources": ["upload", "clipboard"], "type": "filepath", "buttons": [], "height": 240}
    return DroppedPicture(**{**usual, **more})


def read_dropped(studio: Studio, session: Session, path: str | None) -> Image.Image | None:
    """A picture that was dropped, upright, of mode "L" or "RGB"; None where none was. Its file goes with the session.

    Raises:
        Refusal: it is none that can be read, or too large; a sentence.
    """
    data = dropped_file(studio, session, path)
    return None if data is None else read_image(data, studio.limits)


_CANVAS = 1024  # pixels of the longer side of a picture that is painted over
_PAINTER = """
<div class="painter" hidden>
  <canvas tabindex="0" role="img" aria-label="The picture. Paint with the mouse, or with arrow keys and the space bar,
where it is to be drawn anew."></canvas>
  <div class="tools">
    <label>Brush <input type="range" min="4" max="60" value="20" aria-label="Size of the brush"></label>
    <button type="button" data-do="undo">Undo</button>
    <button type="button" data-do="clear">Clear</button>
  </div>
</div>
"""


class PaintedPicture:
    """A place to drop a picture and to paint over it.

    Args:
        studio: whose limits count.
        label: of the place.
        name: by which a page finds it: its HTML id.

    Attributes:
        inputs: the components that a listener takes, whose two values `read` takes.
        picture: where the picture is dropped; a listener may set it to the path of a file.
    """

    def __init__(self, studio: Studio, label: str, name: str) -> None:
        self._studio = studio
        self.picture = dropped_picture(label=label, elem_id=name, height=160)
        self.painter = gr.HTML(
            {"image": None, "mask": None},
            html_template=_PAINTER,
            js_on_load=(Path(__file__).parent / "painter.js").read_text(encoding="utf-8"),
            elem_id=f"{name}-painter",
            elem_classes="bare",
        )
        self.wrong = gr.Markdown("", elem_classes="hint")
        self.inputs: list[gr.components.Component] = [self.picture, self.painter]
        self.picture.change(
            self._shown, self.picture, [self.painter, self.wrong], show_progress="hidden", api_visibility="private"
        )

    def _shown(self, request: gr.Request, path: str | None) -> tuple[dict[str, Any], str]:
        try:
            image = read_dropped(self._studio, self._studio.sessions.of(request.session_hash), path)
        except Refusal as refusal:
            return {"image": None, "mask": None}, sentence(refusal)
        return {"image": None if image is None else image_source(_canvas(image)), "mask": None}, ""

    def read(self, session: Session, path: str | None, painted: Any) -> tuple[Image.Image, Image.Image | None] | None:
        """(picture, mask in mode "L", white where it was painted, or None where nowhere is); None without a picture.

        Raises:
            Refusal: the picture cannot be read, or the mask is none of the picture's size; a sentence.
        """
        image = read_dropped(self._studio, session, path)
        if image is None:
            return None
        said = painted.get("mask") if isinstance(painted, dict) else None
        if not isinstance(said, str) or not said.startswith("data:image/png;base64,"):
            return image, None
        data = base64.b64decode(said.partition(",")[2] + "==")
        if len(data) >= self._studio.limits.mask_bytes:
            raise Refusal("the painted mask is too large: start from a smaller picture", "mask")
        try:
            if check_picture(data, "the mask") != _canvas(image).size:
                raise Refusal("what was painted does not belong to this picture: paint again", "mask")
            mask = read_picture(data, "the mask").convert("RGBA").getchannel("A").point([0] * 128 + [255] * 128)
        except DataError as error:
            raise Refusal(str(error), "mask") from error
        return image, (None if mask.getextrema() == (0, 0) else mask.resize(image.size, Image.Resampling.NEAREST))


def _canvas(image: Image.Image) -> Image.Image:
    """A picture in the size in which it is painted over."""
    if max(image.size) <= _CANVAS:
        return image
    share = _CANVAS / max(image.size)
    width, height = (max(1, round(side * share)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def dropped_file(studio: Studio, session: Session, path: str | None) -> bytes | None:
    """The bytes of a file that was uploaded, which goes with the session; None where there is none.

    Raises:
        Refusal: it is too large, or gone; a sentence.
    """
    if path is None:
        return None
    file = Path(path)
    session.own(file)
    try:
        size = file.stat().st_size
        if size >= studio.limits.image_bytes:
            raise Refusal(f"the file has {size:,} bytes, and must have fewer than {studio.limits.image_bytes:,}")
        return file.read_bytes()
    except OSError as error:
        raise Refusal("the file is not there any more: drop it again") from error
