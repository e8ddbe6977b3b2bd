"""Pictures that visitors drop, which may be anything."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from evil_pictures import bomb, broken, poisoned
from PIL import Image

from ddim.serving.limits import Limits
from ddim.serving.pool import Pool
from ddim.serving.refusal import Refusal
from ddim.studio import uploads
from ddim.studio.desk import Studio
from ddim.studio.uploads import PaintedPicture, dropped_file, read_dropped


@pytest.fixture
def studio() -> Iterator[Studio]:
    found = Studio(Pool(["digits"], lambda name: None), {}, Limits(image_bytes=100_000))  # type: ignore[arg-type]
    yield found
    found.sessions.close()


@pytest.fixture
def painted(studio: Studio) -> PaintedPicture:
    async def build() -> PaintedPicture:  # within a loop, as gradio would leave one open that it makes itself
        with gr.Blocks(analytics_enabled=False):
            return PaintedPicture(studio, "Picture", "start")

    return asyncio.run(build())


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def address(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_a_picture_is_read_and_goes_with_the_session(studio: Studio, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(png(Image.new("RGBA", (6, 4), (255, 0, 0, 0))))
    image = read_dropped(studio, studio.sessions.of("one"), str(file))
    assert image is not None
    assert (image.size, image.mode) == ((6, 4), "RGB")
    assert image.getextrema() == ((255, 255),) * 3  # white, as nothing shows
    assert read_dropped(studio, studio.sessions.of("one"), None) is None
    studio.sessions.leave("one")
    assert not file.exists()
    with pytest.raises(Refusal, match="drop it again"):
        dropped_file(studio, studio.sessions.of("one"), str(file))


@pytest.mark.parametrize("kind", ["nothing", "text", "bomb", "large", *list(broken())[:8], *list(poisoned())[:8]])
def test_what_is_no_good_picture_is_refused_in_words(kind: str, studio: Studio, tmp_path: Path) -> None:
    own = {"nothing": b"", "text": b"<svg onload=alert(1)>", "bomb": bomb(), "large": b"x" * 100_000}
    file = tmp_path / "x.png"
    file.write_bytes({**broken(), **poisoned(), **own}[kind])
    session = studio.sessions.of("one")
    with contextlib.suppress(Refusal):
        read_dropped(studio, session, str(file))
        assert kind in poisoned()  # what is dangerous in others' hands alone
    studio.sessions.leave("one")
    assert not file.exists()


def test_where_it_was_painted(studio: Studio, painted: PaintedPicture, tmp_path: Path) -> None:
    file, session = tmp_path / "x.png", studio.sessions.of("one")
    file.write_bytes(png(Image.new("RGB", (8, 8), "red")))
    mask = Image.new("RGBA", (8, 8))
    mask.paste((255, 255, 255, 200), (2, 2, 5, 5))
    found = painted.read(session, str(file), {"image": "…", "mask": address(png(mask))})
    assert found is not None
    image, where = found
    assert image.mode == "RGB"
    assert where is not None
    assert where.mode == "L"
    assert where.getbbox() == (2, 2, 5, 5)
    assert set(where.tobytes()) == {0, 255}
    for nothing in (None, {}, {"mask": None}, {"mask": 5}, {"mask": "http://example.org"}, "text"):
        assert painted.read(session, str(file), nothing) == (image, None)
    assert painted.read(session, str(file), {"mask": address(png(Image.new("RGBA", (8, 8))))}) == (image, None)
    assert painted.read(session, None, {"mask": address(png(mask))}) is None


def test_a_large_picture_is_painted_over_in_a_smaller_size(
    studio: Studio, painted: PaintedPicture, tmp_path: Path
) -> None:
    file, session = tmp_path / "x.png", studio.sessions.of("one")
    file.write_bytes(png(Image.new("RGB", (4096, 2048), "red")))
    mask = Image.new("RGBA", (1024, 512))
    mask.paste((255, 255, 255, 255), (0, 0, 512, 512))
    found = painted.read(session, str(file), {"mask": address(png(mask))})
    assert found is not None
    assert found[1] is not None
    assert found[1].size == (4096, 2048)
    assert found[1].getbbox() == (0, 0, 2048, 2048)


def test_masks_of_strangers(studio: Studio, painted: PaintedPicture, tmp_path: Path) -> None:
    file, session = tmp_path / "x.png", studio.sessions.of("one")
    file.write_bytes(png(Image.new("RGB", (8, 8), "red")))
    wrong: list[Any] = [png(Image.new("RGBA", (9, 9))), b"no picture", bomb(), b"x" * 4_000_001]
    for data in wrong:
        with pytest.raises(Refusal):
            painted.read(session, str(file), {"mask": address(data)})
    with pytest.raises(Refusal):
        painted.read(session, str(file), {"mask": "data:image/png;base64,%%%"})


def test_gradio_writes_no_file_beside_the_code() -> None:
    assert not Path(uploads.__file__).with_suffix(".pyi").exists()
