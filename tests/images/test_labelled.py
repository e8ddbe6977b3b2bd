"""A table of pictures with labels: every pixel of a cell is found where the table says that it is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ddim.images.labelled import labelled_table


def picture(side: int, seed: int, mode: str = "RGB") -> Image.Image:
    channels = (3,) if mode == "RGB" else ()
    values = np.random.default_rng(seed).integers(0, 256, (side, side, *channels), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(("side", "scale"), [(8, 16), (28, 4), (64, 2), (100, 2), (128, 2), (129, 1), (300, 1)])
def test_the_pixels_of_a_cell_are_those_of_its_picture(side: int, scale: int) -> None:
    pictures = [[picture(side, row * 3 + column) for column in range(3)] for row in range(2)]
    table, boxes = labelled_table(pictures, ["a", "b", "c"], ["one", "two"], ["what it is"])
    for row in range(2):
        for column in range(3):
            found = table.crop(boxes[row][column])
            assert found.size == (side * scale, side * scale)
            small = found.resize((side, side), Image.Resampling.NEAREST)
            assert np.array_equal(np.asarray(small), np.asarray(pictures[row][column]))
            assert np.array_equal(np.asarray(found), np.kron(np.asarray(small), np.ones((scale, scale, 1), np.uint8)))


def test_pictures_of_several_sizes_and_sentences_between_them() -> None:
    small, large, said = picture(8, 0, "L"), picture(64, 1), "order 2 needs an eta of 0, not 0.5"
    table, boxes = labelled_table([[small, said, large]], ["8", "none", "64"], [""])
    for place, image in ((0, small), (2, large)):
        found = table.crop(boxes[0][place]).resize(image.size, Image.Resampling.NEAREST)
        assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))
    written = np.asarray(table.crop(boxes[0][1]).convert("L"))
    assert written.max() == 232  # no white: it is a pale place
    assert written.min() == 0  # with words
    assert all(left < right <= table.width and top < bottom <= table.height for left, top, right, bottom in boxes[0])


def test_labels_are_written_and_long_ones_cut() -> None:
    """Where the labels are, something is written; the table is no wider for a title of any length."""
    pictures = [[picture(64, 0)], [picture(64, 1)]]
    plain, _ = labelled_table(pictures, ["steps 4"], ["", ""])
    table, boxes = labelled_table(pictures, ["steps 4"], ["seed 1", "seed 2"], ["a red heart " * 500, "eta 0.5"])
    left, top, _, bottom = boxes[0][0]
    assert np.asarray(table.crop((0, top, left, bottom)).convert("L")).min() < 100
    assert np.asarray(table.crop((left, top - 20, left + 128, top)).convert("L")).min() < 100
    assert np.asarray(table.crop((0, 0, table.width, 30)).convert("L")).min() < 100
    assert plain.width < table.width < plain.width + 130
    assert table.height < plain.height + 100


def test_cells_that_do_not_fit_the_labels() -> None:
    with pytest.raises(ValueError, match="2 rows and 1 columns"):
        labelled_table([[picture(8, 0)]], ["a"], ["b", "c"])
