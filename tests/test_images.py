"""Tensors to pictures, and pictures to a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.images import image_grid, to_images, to_pil


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
