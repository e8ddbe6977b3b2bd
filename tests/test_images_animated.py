"""Animations are written and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ddim.errors import ConfigError, MissingExtraError
from ddim.images import there_and_back, write_animation


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
