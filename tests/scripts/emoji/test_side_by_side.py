"""A student beside its teacher: every picture stands at its prompt, seed and number of steps."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from program import SCRIPTS

pytest.importorskip("pyarrow.parquet")
pytest.importorskip("accelerate")  # judge.py imports the trainer


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS / "emoji"))
    return importlib.import_module("side_by_side")


def place(program: ModuleType, block: int, prompt: int, seed: int) -> tuple[int, int]:
    """The middle of a picture."""
    side = program.SIZE + program.GAP
    left = program.LABEL + block * (len(program.SEEDS) * side + program.BETWEEN)
    return left + seed * side + program.SIZE // 2, program.TOP + prompt * side + program.SIZE // 2


def test_every_picture_is_at_its_place(program: ModuleType) -> None:
    prompts = program.GALLERY[-3:]
    count = len(prompts) * len(program.SEEDS)
    shades = torch.linspace(-1, 1, 2 * count).view(2, count, 1, 1, 1).expand(2, count, 3, 64, 64)
    canvas = program.draw_blocks([program.Block("one", shades[0]), program.Block("two", shades[1])], prompts)
    found = [
        canvas.getpixel(place(program, block, *divmod(number, len(program.SEEDS))))[0]
        for block in range(2)
        for number in range(count)
    ]
    assert found == [round((float(shade) + 1) * 127.5) for shade in shades[:, :, 0, 0, 0].flatten()]
    assert canvas.crop((0, program.TOP, program.LABEL, canvas.height)).convert("L").getextrema()[0] < 100  # the prompts


def test_who_draws_what(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def generate(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> torch.Tensor:
        assert len(prompts) == len(seeds) == 100
        assert list(seeds[:4]) == [0, 1, 2, 3]
        assert len({*prompts[:4]}) == 1
        asked.append((pipe.scheduler.config.timestep_spacing, options))
        return torch.full((100, 3, 64, 64), len(asked) / 5)

    monkeypatch.setattr(program, "generate", generate)
    out = tmp_path / "seen.webp"
    monkeypatch.setattr("sys.argv", ["side_by_side.py", "--student", "emoji", "--out", str(out)])
    program.main()
    guided = {"num_inference_steps": 50, "order": 1, "guidance_scale": 3.0, "guidance_rescale": 0.7}
    assert asked[0] == ("trailing", guided)
    assert [options for _, options in asked[1:]] == [{"num_inference_steps": steps} for steps in (4, 2, 1)]
    with Image.open(out) as picture:
        assert picture.format == "WEBP"
        drawn = [picture.convert("RGB").getpixel(place(program, block, 7, 2))[0] for block in range(4)]
    assert drawn == pytest.approx([(k / 5 + 1) * 127.5 for k in (1, 2, 3, 4)], abs=6)
