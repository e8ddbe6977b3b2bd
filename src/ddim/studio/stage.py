"""What a tab shows while it draws: pictures as they become clear, how far they are, and what is to be said."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

__all__ = ["figure", "image_source", "message", "stage"]

_LARGE = 256  # pixels of the longer side, up to which a picture on its way is sent without loss


def image_source(image: Image.Image, *, exact: bool = True, small: int = _LARGE) -> str:
    """A picture as the address of an <img>.

    Args:
        exact: without loss; pictures on their way may be sent with less.
        small: pixels of the longer side, up to which they are sent without loss, too.
    """
    file, kind = io.BytesIO(), "png"
    if not exact and max(image.size) > small:
        kind = "jpeg"
        image.save(file, "JPEG", quality=85)
    else:
        image.save(file, "PNG", compress_level=1)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def figure(source: str, size: tuple[int, int], about: str, caption: str = "") -> str:
    """A picture for a page.

    Args:
        source: its address.
        size: (width, height). Small pictures are enlarged by whole pixels.
        about: what a screen reader says of it.
        caption: under it, as text.
    """
    pixels = " pixels" if max(size) <= _LARGE // 2 else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="picture{pixels}"><img src="{escape(source)}" alt="{escape(about)}" '
        f'width="{size[0]}" height="{size[1]}">{below}</figure>'
    )


def stage(figures: Sequence[str], status: str, share: float | None = None, notes: Sequence[str] = ()) -> str:
    """The part of a page where a run shows.

    Args:
        figures: of `figure`, or other HTML; what is not there yet is an empty text, which gets a place.
        status: how far it is, a few words, which screen readers say as they change.
        share: of the work that is done, from 0 to 1; None where nothing is being done.
        notes: sentences that the visitor ought to read.
    """
    tiles = "".join(each or '<figure class="picture waiting"></figure>' for each in figures)
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}" aria-label="How far it is"></progress>'
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        f'<div class="stage"><div class="status" role="status" aria-live="polite">{escape(status)}</div>{bar}{said}'
        f'<div class="pictures of-{min(len(figures), 16)}">{tiles}</div></div>'
    )


def message(text: str) -> str:
    """What went wrong, where pictures would be."""
    return f'<div class="stage"><div class="wrong" role="alert">{escape(text)}</div></div>'
