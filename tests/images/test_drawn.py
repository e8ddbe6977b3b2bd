"""Tensors to pictures, pictures to a grid, and animations, which are written and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from ddim.errors import ConfigError, MissingExtraError
from ddim.images import image_grid, there_and_back, to_images, to_pil, write_animation


def test_every_type_holds_the_same_picture() -> None:
    x = torch.rand(2, 3, 4, 5) * 3 - 1.5
    tensor, array, images = (to_images(x, kind) for kind in ("pt", "np", "pil"))
    assert tensor.shape == (2, 3, 4, 5)
    assert array.shape == (2, 4, 5, 3)
    assert [image.size for image in images] == [(5, 4), (5, 4)]
    torch.testing.assert_close(tensor, ((x + 1) / 2).clamp(0, 1))
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), np.round(array * 255).astype(np.uint8))


def test_the_ends_of_the_range() -> None:
    x = torch.tensor([-2.0, -1, 0, 1, 2]).view(1, 1, 1, 5)
    (image,) = to_images(x)
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing_on_the_way(dtype: torch.dtype) -> None:
    """1 + x needs more digits than x has: it is computed in float32."""
    x = (torch.arange(256) / 255 * 2 - 1).view(1, 1, 16, 16).to(dtype)
    exact = ((x.double() + 1) / 2).permute(0, 2, 3, 1).numpy()
    assert np.abs(to_images(x, "np") - exact).max() < 1e-7
    assert to_images(x, "pt").dtype == dtype


def test_gradients_and_the_input_are_left_alone() -> None:
    x = torch.full((1, 3, 2, 2), 3.0, requires_grad=True)
    assert not to_images(x, "pt").requires_grad
    to_images(x, "pil")
    assert bool((x == 3).all())


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="output_type='jpeg' is none of pil, np, pt"):
        to_images(torch.zeros(1, 3, 2, 2), "jpeg")
    with pytest.raises(ValueError, match="use output_type='np'"):
        to_images(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="no picture has the shape"):
        to_pil(np.zeros((4, 4)))
    assert to_images(torch.zeros(1, 2, 4, 4), "np").shape == (1, 4, 4, 2)


def pictures(count: int, size: tuple[int, int] = (8, 6)) -> list[Image.Image]:
    return [Image.new("RGB", size, (k, 0, 0)) for k in range(count)]


def test_a_grid_goes_row_by_row() -> None:
    grid = image_grid(pictures(5), columns=3, scale=2, gap=1)
    assert grid.size == (3 * 16 + 2, 2 * 12 + 1)
    seen = [grid.getpixel((17 * column, 13 * row)) for row in range(2) for column in range(3)]
    assert seen == [*((k, 0, 0) for k in range(5)), (255, 255, 255)]
    assert grid.getpixel((16, 0)) == (255, 255, 255)
    assert grid.getpixel((15, 11)) == (0, 0, 0)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2), (10, 4, 3)])
def test_a_grid_is_as_square_as_can_be(count: int, columns: int, rows: int) -> None:
    assert image_grid(pictures(count), scale=1, gap=0).size == (columns * 8, rows * 6)


def test_small_pictures_are_enlarged_and_large_ones_not() -> None:
    assert image_grid(pictures(1)).size == (64, 48)
    assert image_grid(pictures(1, (100, 100))).size == (100, 100)
    assert image_grid([Image.new("L", (4, 4), 7)]).getpixel((63, 63)) == (7, 7, 7)


def test_a_grid_of_nothing_or_of_several_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="images of one size"):
        image_grid([])
    with pytest.raises(ValueError, match="images of one size"):
        image_grid([*pictures(1), *pictures(1, (3, 3))])


def ink(grid: Image.Image, box: tuple[int, int, int, int]) -> int:
    """How many pixels of a part of a grid are dark."""
    return sum(grid.crop(box).convert("L").histogram()[:100])


def test_captions_stand_under_their_pictures() -> None:
    white = [Image.new("RGB", (64, 64), "white")] * 3
    grid = image_grid(white, columns=3, captions=["", "a red heart", "two words " * 40])
    assert grid.size == (3 * 130 - 2, 128 + 45)  # small pictures are enlarged, so that words can be read
    assert ink(grid, (0, 0, 388, 128)) == 0  # nothing is written on the pictures
    empty, short, long = (ink(grid, (130 * k, 128, 130 * k + 128, 173)) for k in range(3))
    assert empty == 0 < 40 < short < long
    assert all(ink(grid, (x, 0, x + 2, 173)) == 0 for x in (128, 258))  # nor over a neighbour's
    assert ink(grid, (130, 143, 258, 173)) == 0  # a short caption is one line


@pytest.mark.parametrize("caption", ["é" * 50, "漢字 🎈", "x" * 10_000, "tab\tand\nline", "  "], ids=range(5))
@pytest.mark.parametrize("size", [1, 8, 64, 300])
def test_any_text_is_a_caption_of_any_picture(caption: str, size: int) -> None:
    images = [Image.new("L", (size, size))] * 2
    one, two = (image_grid(images, scale=scale, captions=[caption, "x"]) for scale in (1, None))
    assert one.width == 2 * size + 2
    assert two.width >= one.width


def test_a_caption_for_each_picture_or_none() -> None:
    with pytest.raises(ValueError, match="as many captions"):
        image_grid(pictures(2), captions=["one"])


# --- animations -------------------------------------------------------------------------------------------------------


def frames(count: int = 7, mode: str = "RGB", size: tuple[int, int] = (18, 12)) -> list[Image.Image]:
    """Each with a bar at another place, on a ground of another shade."""
    made = []
    for i in range(count):
        pixels = np.full((size[1], size[0], 3), (20 * i, 100, 250 - 20 * i), np.uint8)
        pixels[:, 2 * i : 2 * i + 2] = (255, 20 * i, 0)
        made.append(Image.fromarray(pixels).convert(mode))
    return made


def read(path: Path) -> tuple[list[Any], list[int]]:
    """(frames as arrays, durations in ms) by Pillow."""
    with Image.open(path) as image:
        shown = [
            (np.asarray(frame.convert("RGB"), int), frame.info["duration"]) for frame in ImageSequence.Iterator(image)
        ]
    return [pixels for pixels, _ in shown], [duration for _, duration in shown]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("suffix", "error"), [("gif", 12), ("webp", 0)])
@pytest.mark.parametrize("fps", [12, 7.5])
def test_gif_and_webp_keep_frames_times_and_note(
    tmp_path: Path, mode: str, suffix: str, error: int, fps: float
) -> None:
    path, given = tmp_path / "new" / f"x.{suffix}", frames(mode=mode)
    write_animation(path, given, fps=fps, note={"seed": 3})
    found, durations = read(path)
    assert len(found) == 7
    assert sum(durations) == pytest.approx(7000 / fps, abs=10)
    assert max(durations) - min(durations) <= 10
    for frame, original in zip(found, given, strict=True):
        difference = np.abs(frame - np.asarray(original.convert("RGB"), int))
        assert difference.max() <= (0 if mode == "L" else error)
    with Image.open(path) as image:
        assert image.info["loop"] == 0  # without end
        note = image.info["comment"] if suffix == "gif" else image.getexif()[0x010E]
    assert json.loads(note) == {"seed": 3}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("size", [(18, 12), (19, 13)])
def test_mp4_keeps_frames_times_and_note(tmp_path: Path, size: tuple[int, int]) -> None:
    av = pytest.importorskip("av")
    path, given = tmp_path / "x.mp4", [frame.resize((size[0] * 4, size[1] * 4)) for frame in frames(size=size)]
    given = [frame.crop((0, 0, frame.width - size[0] % 2, frame.height)) for frame in given]
    write_animation(path, given, fps=12, note={"seed": 3})
    with av.open(str(path)) as file:
        (stream,) = file.streams
        found = [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 12
        assert file.duration / 1e6 == pytest.approx(7 / 12, abs=0.01)
        assert json.loads(file.metadata["comment"]) == {"seed": 3}
    assert len(found) == 7
    for frame, original in zip(found, given, strict=True):
        pixels = np.asarray(original, int)
        assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
        assert 0 <= frame.shape[1] - pixels.shape[1] <= 1
        assert np.abs(frame[: pixels.shape[0], : pixels.shape[1]] - pixels).mean() < 12
    assert len(list(tmp_path.iterdir())) == 1


def test_all_frames_of_a_gif_have_one_palette(tmp_path: Path) -> None:
    """A ground that stays the same must not flicker: it is the same colour in each frame."""
    rng = np.random.default_rng(0)
    given = []
    for _ in range(5):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)  # more colours than a palette has
        pixels[:8] = (200, 120, 40)
        given.append(Image.fromarray(pixels))
    write_animation(tmp_path / "x.gif", given)
    found, _ = read(tmp_path / "x.gif")
    assert len({tuple(frame[0, 0]) for frame in found}) == 1


def test_equal_frames_take_their_time(tmp_path: Path) -> None:
    first, second = frames(2)
    for suffix in ("gif", "webp"):
        write_animation(tmp_path / f"x.{suffix}", [first, first, first, second], fps=10)
        _, durations = read(tmp_path / f"x.{suffix}")
        assert sum(durations) == 400


def test_there_and_back() -> None:
    given = frames(4)
    assert there_and_back(given) == [given[i] for i in (0, 1, 2, 3, 2, 1)]
    assert there_and_back(given[:2]) == given[:2]


@pytest.mark.parametrize(
    ("name", "count", "fps"), [("x.png", 3, 12), ("x.gif", 1, 12), ("x.gif", 3, 0), ("x.webp", 3, 61)]
)
def test_what_makes_no_animation_is_refused(tmp_path: Path, name: str, count: int, fps: float) -> None:
    with pytest.raises(ConfigError):
        write_animation(tmp_path / name, frames(count), fps=fps)
    assert not list(tmp_path.iterdir())


def test_several_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one size"):
        write_animation(tmp_path / "x.gif", [*frames(2), *frames(1, size=(20, 12))])


def test_without_the_library_the_pip_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ddim\[video\]'"):
        write_animation(tmp_path / "x.mp4", frames())
    assert not list(tmp_path.iterdir())
