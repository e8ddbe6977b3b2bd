"""What pipelines return shows itself in a notebook."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ddim.pipelines.outputs import ImagePipelineOutput, StableDiffusionPipelineOutput


def shown(images: list[Image.Image]) -> Image.Image:
    png = StableDiffusionPipelineOutput(images)._repr_png_()
    assert png is not None
    return Image.open(io.BytesIO(png))


def test_a_small_picture_is_enlarged_and_a_large_one_stays() -> None:
    assert shown([Image.new("RGB", (64, 64), "red")]).size == (256, 256)
    assert shown([Image.new("L", (8, 8))]).size == (256, 256)
    assert shown([Image.new("RGB", (1200, 600))]).size == (1200, 600)


def test_several_are_a_grid_with_nothing_between_them() -> None:
    grid = shown([Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")])
    assert (grid.size, grid.mode) == ((516, 516), "RGBA")
    assert [grid.getpixel(place) for place in ((0, 0), (515, 0), (0, 515))] == [
        (255, 0, 0, 255),
        (0, 255, 0, 255),
        (0, 0, 255, 255),
    ]
    assert [grid.getpixel(place)[3] for place in ((257, 10), (10, 257), (515, 515))] == [0, 0, 0]  # type: ignore[index]


def test_many_large_ones_are_made_smaller_and_left_as_they_were() -> None:
    images = [Image.new("RGB", (1024, 512)) for _ in range(100)]
    assert max(shown(images).size) <= 1100
    assert {image.size for image in images} == {(1024, 512)}


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8, 3)), [], [np.zeros((8, 8))]])
def test_what_is_no_picture_is_shown_as_text(images: object) -> None:
    assert ImagePipelineOutput(images)._repr_png_() is None
