"""One x_T, many numbers of steps: what is compared with what, and the files that come of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline, tiny_unet
from torch import Tensor

from ddim.cli import main
from ddim.errors import ConfigError
from ddim.evaluation.consistency import consistency
from ddim.evaluation.drawing import conditions
from ddim.pipelines import DDIMPipeline
from ddim.scheduler import DDIMScheduler

CONFIG = {"in_channels": 1, "out_channels": 1, "num_class_embeds": 11}


class Shrinking(torch.nn.Module):
    """Predicts the eps for which x0 is a fifth of x: a smooth path that more steps follow more closely."""

    def __init__(self) -> None:
        super().__init__()
        self.config = tiny_unet(in_channels=1, out_channels=1).config
        self.scale = torch.nn.Parameter(torch.tensor(0.9))

    def forward(self, x: Tensor, timestep: Tensor) -> object:
        return type("Output", (), {"sample": self.scale * x + 0.1 * torch.sin(3 * x)})()


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


def test_pictures_of_one_noise_come_together_and_those_of_others_do_not() -> None:
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False), in_channels=1, out_channels=1)
    pipe.unet = Shrinking()  # type: ignore[assignment]
    found = consistency(pipe, [100, 5, 20], 40, 0, conditions(pipe, None, "turn", (1.0, 0.0)), pixels, batch=16)
    assert list(found.pictures) == [5, 20, 100]
    assert found.others.shape == (40, 1, 8, 8)
    coarse, fine, most = found.figures
    assert (most["steps"], most["rms"]) == (100, 0)
    assert most["cosine"] == pytest.approx(1)
    assert 0 < fine["rms"] < coarse["rms"] < 0.5 * coarse["other_rms"]
    assert fine["cosine"] > coarse["cosine"] > 0.8
    assert abs(coarse["other_cosine"]) < 0.2  # features about their mean: strangers have nothing in common
    expected = (found.pictures[5] - found.pictures[100]).double().square().mean((1, 2, 3)).sqrt().mean()
    assert coarse["rms"] == pytest.approx(float(expected))


def test_other_noises_are_drawn_under_the_same_conditions() -> None:
    """A network that draws its class and nothing else: another noise makes no difference then."""
    pipe = tiny_pipeline(**CONFIG)
    asked: list[tuple[int, ...]] = []
    inner = conditions(pipe, None, "turn", (1.0, 0.0))

    def recording(seed: int, numbers: range) -> dict[str, object]:
        asked.append((seed, numbers.start))
        return inner(seed, numbers)

    consistency(pipe, [2, 3], 4, 7, recording, pixels, batch=2)  # type: ignore[arg-type]
    assert set(asked) == {(7, 0), (7, 2)}


@pytest.mark.parametrize(("steps", "count"), [([5], 3), ([5, 5], 3), ([5, 6], 1)])
def test_nothing_to_compare(steps: list[int], count: int) -> None:
    pipe = tiny_pipeline(**CONFIG)
    with pytest.raises(ConfigError, match="two or more"):
        consistency(pipe, steps, count, 0, conditions(pipe, None, "turn", (1.0, 0.0)), pixels)


def test_the_command_writes_a_strip_a_plot_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DDIMPipeline(tiny_unet(**CONFIG), DDIMScheduler()).save_pretrained(tmp_path / "model")
    arguments = ["evaluate", str(tmp_path / "model"), "--consistency", "--samples", "6", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--steps", "2", "4", "8"]) == 0
    shown = capsys.readouterr().out
    for name in ("consistency.json", "consistency-strip.png", "consistency.png", "consistency.svg"):
        assert (tmp_path / "out" / name).exists()
        assert name in shown
    figures = json.loads((tmp_path / "out" / "consistency.json").read_text(encoding="utf-8"))
    assert [row["steps"] for row in figures["figures"]] == [2, 4, 8]
    with Image.open(tmp_path / "out" / "consistency-strip.png") as strip:
        assert strip.height == 6 * 66 - 2
        assert strip.width > 4 * 64
    assert main([*arguments, "--eta", "1"]) == 1
    assert "eta 0" in capsys.readouterr().err
