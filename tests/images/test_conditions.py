"""Conditions that are made of pictures: edges where there are edges, colours where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ddim.errors import ConfigError
from ddim.images.conditions import CONDITIONS, condition_image, condition_of, edges, layout


def square(low: float = 0.0, high: float = 1.0, side: int = 32) -> torch.Tensor:
    """A square of a quarter of the picture in its middle: (1 3 h w)."""
    picture = torch.full((1, 3, side, side), float(low))
    picture[..., side // 4 : -side // 4, side // 4 : -side // 4] = high
    return picture


def test_the_edge_of_a_square_is_one_closed_line_of_one_pixel() -> None:
    found = edges(square())
    assert found.shape == (1, 3, 32, 32)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    rows = found[0, 0, 12:20]  # between the corners
    assert (rows.sum(1) == 2).all()
    assert found[0, 0, :6].sum() == 0
    assert found[0, 0, 14:18, 14:18].sum() == 0
    assert 50 < found[0, 0].sum() < 70  # four sides of sixteen pixels


@pytest.mark.parametrize(("height", "is_found"), [(0.05, False), (0.9, True)])
def test_a_faint_step_is_no_edge(height: float, is_found: bool) -> None:
    assert bool(edges(square(0, height)).any()) == is_found


def test_a_line_goes_on_where_it_grows_faint_but_does_not_begin_there() -> None:
    picture = torch.zeros(1, 3, 32, 32)
    picture[..., 16:] = torch.linspace(0.9, 0.2, 32)[:, None]  # a strong step that grows faint
    alone = picture.clone()
    alone[..., :28, :] = 0
    assert (edges(picture)[0, 0].sum(1) == 1).all()
    assert not edges(alone)[..., 30, 10:22].any()


def test_colours_of_one_brightness_have_an_edge_between_them() -> None:
    picture = torch.zeros(1, 3, 32, 32)
    picture[:, 0, :, :16], picture[:, 2, :, 16:] = 0.8, 0.8
    found = edges(picture)[0, 0]
    assert (found[4:-4].sum(1) == 1).all()


def test_edges_turn_and_mirror_with_the_picture() -> None:
    image = Image.new("L", (64, 64), 255)
    ImageDraw.Draw(image).polygon([(10, 50), (30, 8), (57, 44)], fill=30)
    picture = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).expand(1, 3, 64, 64)
    whole = edges(picture)
    for change in (lambda x: x.flip(-1), lambda x: x.transpose(-1, -2)):
        apart = (change(whole) != edges(change(picture))).float().mean()  # ties go to one side
        assert apart < 0.02


def test_a_layout_is_the_mean_of_each_cell() -> None:
    torch.manual_seed(0)
    picture = torch.rand(2, 3, 32, 64)
    made = layout(picture, 4)  # 4 x 8 cells of 8 x 8 pixels
    assert made.shape == picture.shape
    assert torch.allclose(made[0, :, 8:16, 24:32], picture[0, :, 8:16, 24:32].mean((1, 2), keepdim=True))
    assert len(made[0, 0].unique()) == 32
    assert torch.allclose(layout(made, 4), made, atol=1e-6)


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("size", [(64, 48), (17, 33), (1, 1), (3, 200)])
def test_any_size_and_mode_gives_an_rgb_picture_of_that_size(name: str, size: tuple[int, int]) -> None:
    for mode in ("RGB", "L", "RGBA", "P", "I;16", "1"):
        made = condition_image(Image.new(mode, size), name)
        assert (made.mode, made.size) == ("RGB", size)


def test_what_is_transparent_is_white() -> None:
    assert condition_image(Image.new("RGBA", (8, 8)), "layout").getpixel((3, 3)) == (255, 255, 255)


def test_a_picture_and_its_tensor_give_the_same() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))[None] / 255
    for name in CONDITIONS:
        drawn = np.asarray(condition_image(Image.fromarray(pixels), name)).transpose(2, 0, 1)
        assert np.abs(condition_of(tensor, name)[0].numpy() * 255 - drawn).max() <= 0.501


def test_another_name_is_an_error_that_lists_them() -> None:
    with pytest.raises(ConfigError, match="unknown condition 'depth'; known are edges, layout"):
        condition_image(Image.new("RGB", (8, 8)), "depth")
