"""The figures of the emoji ControlNet: what is measured, of which drawings."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from program import SCRIPTS

pytest.importorskip("pyarrow.parquet")
pytest.importorskip("accelerate")  # train.py imports the trainer


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS / "emoji"))
        for name in ("train", "control"):
            patch.delitem(sys.modules, name, raising=False)
        return importlib.import_module("control")


def test_the_distance_is_of_the_colours_of_cells(script: ModuleType) -> None:
    grey, white = Image.new("RGB", (64, 64), (51, 51, 51)), Image.new("RGB", (64, 64), "white")
    found = script.distance([grey, white], [white, white])
    assert found == pytest.approx([0.8, 0.0])
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    fine = Image.fromarray(pixels)
    coarse = script.condition_image(fine, "layout", script.CELLS)
    assert script.distance([fine], [coarse])[0] < 1e-9  # what is within a cell does not count


def test_it_is_measured_on_drawings_that_were_held_out(script: ModuleType) -> None:
    drawings = script.held_out(3)
    assert [image.size for image, _ in drawings] == [(64, 64)] * 3
    assert all(caption.endswith(" style") for _, caption in drawings)
    trained = {row["icon"] for row in script.pq.read_table(script.stages.DATA).to_pylist() if row["split"] == "train"}
    rows = [row for row in script.pq.read_table(script.stages.DATA).to_pylist() if row["split"] == "held-out"]
    assert not trained & {row["icon"] for row in rows}
