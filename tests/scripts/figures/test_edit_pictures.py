"""The script of the edited emoji: a small sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import script


def test_a_small_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_pictures = script("figures/edit_pictures")
    monkeypatch.setattr(edit_pictures, "EDITS", edit_pictures.EDITS[2:3])  # a heart, red to blue
    monkeypatch.setattr(edit_pictures, "STEPS", 2)
    # At so few steps the fixed point takes hundreds of evaluations. It is tested with the other inversions.
    whole = edit_pictures.edit
    monkeypatch.setattr(edit_pictures, "edit", lambda *arguments: whole(*arguments[:-1], "ddim"))
    edit_pictures.main(["--out", str(tmp_path / "sheet.png")])
    side, gap, text = edit_pictures.SIDE, edit_pictures.GAP, edit_pictures.TEXT
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet, int)
    shown = [pixels[28 : 28 + side, left : left + side] for left in range(text, pixels.shape[1], side + gap)]
    assert len(shown) == len(edit_pictures.HEADS) == 5
    middle = [picture[side // 3 : side // 2, side // 3 : 2 * side // 3].mean((0, 1)) for picture in shown]
    assert all(red > blue + 50 for red, _, blue in middle[:2])  # the drawing, and what the autoencoder makes of it
    assert all(np.abs(picture - shown[1]).mean() > 5 for picture in shown[2:])  # the edits differ from it
