"""The bundled ControlNet for the emoji model: that it is small, and that pictures have the colours that it is shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ddim import ControlNetModel, DiffusionPipeline
from ddim.checkpoint import bundled_controlnets, bundled_models, read_json, read_tensors
from ddim.checkpoint.hub import BUNDLED
from ddim.cli import main
from ddim.images import condition_image

DATA = Path(__file__).parent.parent.parent / "data" / "emoji.parquet"
FOLDER = BUNDLED / "emoji-layout"
COUNT = 6


@pytest.fixture(scope="module")
def pipe() -> Any:
    found: Any = DiffusionPipeline.from_pretrained("emoji", controlnet=ControlNetModel.from_pretrained("emoji-layout"))
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def layouts() -> list[Image.Image]:
    """The colours, in 8x8 cells, of drawings that nothing was trained on."""
    rows = [row for row in pq.read_table(DATA).to_pylist() if row["split"] == "held-out"]
    rows = rows[:: len(rows) // COUNT][:COUNT]
    pictures = []
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA").resize((64, 64))
        pictures.append(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
    assert len(pictures) == COUNT
    return [condition_image(picture, "layout", 8) for picture in pictures]


def far(images: list[Image.Image], layouts: list[Image.Image]) -> float:
    """The root mean square, in [0, 1], between the colours of pictures and those asked for."""
    own = [np.asarray(condition_image(image.resize((64, 64)), "layout", 8), dtype=float) for image in images]
    asked = [np.asarray(layout, dtype=float) for layout in layouts]
    return float(np.mean([np.sqrt(np.mean((a - b) ** 2)) / 255 for a, b in zip(own, asked, strict=True)]))


def test_it_is_a_small_difference_to_the_emoji_unet() -> None:
    assert "emoji-layout" in bundled_controlnets()
    assert "emoji-layout" not in bundled_models()
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1e6
    assert read_json(FOLDER / "base.json") == {"base": "emoji"}
    tensors = read_tensors(FOLDER / "difference.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.int8, torch.float16}
    record = read_json(FOLDER / "training.json")
    assert record["step"] > 0
    assert (record["settings"]["condition"], record["settings"]["condition_cells"]) == ("layout", 8)
    assert "python scripts/emoji/control.py ship" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("prompt", ["", "a grinning face", "a house, twemoji style"])
@pytest.mark.thin(every=3)
def test_pictures_have_the_colours_that_it_is_shown(prompt: str, pipe: Any, layouts: list[Image.Image]) -> None:
    asked = {"prompt": [prompt] * COUNT, "seed": [*range(COUNT)], "control_image": layouts}
    steered = far(pipe(**asked).images, layouts)
    without = far(pipe(**asked, controlnet_conditioning_scale=0.0).images, layouts)
    assert steered < 0.09
    assert steered < without / 3


def test_two_layouts_differ_by_their_colours_alone(pipe: Any) -> None:
    """The same noise and text, a red half here and there: red is where it was asked for."""
    left, right = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "white")
    left.paste((200, 30, 30), (8, 8, 32, 56))
    right.paste((200, 30, 30), (32, 8, 56, 56))
    images = pipe([""] * 2, seed=[0, 0], control_image=[left, right], output_type="np").images
    redness = images[..., 0] - images[..., 2]
    assert redness[0, 12:52, 10:30].mean() > 0.3 > redness[0, 12:52, 34:54].mean() + 0.2
    assert redness[1, 12:52, 34:54].mean() > 0.3 > redness[1, 12:52, 10:30].mean() + 0.2


def test_the_command_line_knows_it_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layouts: list[Image.Image]
) -> None:
    layouts[0].save(tmp_path / "layout.png")
    shown = ["--control-image", str(tmp_path / "layout.png"), "--out", str(tmp_path / "x.png")]
    assert main(["sample", "a cat face", "--controlnet", "emoji-layout", *shown]) == 0
    with Image.open(tmp_path / "x.png") as image:
        assert far([image.convert("RGB")], layouts[:1]) < 0.15
    assert main(["sample", "a cat face", "--controlnet", "emoji-layot", *shown]) == 1
    assert "did you mean emoji-layout?" in capsys.readouterr().err
    assert main(["sample", "a cat face", "--model", "emoji-layout", "--out", str(tmp_path / "y.png")]) == 1
    assert "a part of one, a ControlNetModel" in capsys.readouterr().err
