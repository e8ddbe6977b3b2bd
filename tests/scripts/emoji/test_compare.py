"""How learning rates and averages are compared: on a model that is tiny."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_goes import further, model
from tiny_training import place
from torch import nn

from ddim import DiffusionPipeline
from ddim.process import prediction

__all__ = ["further", "model", "place"]


@pytest.fixture
def compare(further: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    program = importlib.import_module("compare")
    shutil.copy(tmp_path / "runs" / "train.parquet", tmp_path / "runs" / "held-out.parquet")
    page = tmp_path / "emoji.md"
    page.write_text(f"Before.\n{program.MARKS[0]}\nold\n{program.MARKS[1]}\nAfter.\n")
    monkeypatch.setattr(program, "PAGE", page)
    monkeypatch.setattr(program, "TABLE", tmp_path / "rates.json")
    return program


def options(**given: Any) -> argparse.Namespace:
    usual = {"seconds": None, "steps": 6, "rates": [1e-3, 1e-7], "emas": [0.0, 0.5], "batch": 3, "precision": "no"}
    return argparse.Namespace(**{**usual, "anneal": None, "start": None, "count": 24, "write": True, **given})


@pytest.mark.slow
def test_rates_and_averages_are_told_beside_the_beginning(
    compare: ModuleType, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = DiffusionPipeline.from_pretrained(model)
    text = compare.compare(pipe, options())
    assert (tmp_path / "emoji.md").read_text() == f"Before.\n{compare.MARKS[0]}\n{text}\n{compare.MARKS[1]}\nAfter.\n"
    told = json.loads((tmp_path / "rates.json").read_text())
    rows = {(row["rate"], row["average"]): row for row in told["rows"]}
    assert rows.keys() == {(rate, average) for rate in (1e-3, 1e-7) for average in ("0", "0.5", "rising")}
    assert all(row["steps"] == 6 for row in rows.values())
    for which in ("held-out", "train"):  # here they are the same pictures
        for average in ("0", "0.5", "rising"):
            quick, slow = rows[1e-3, average][which], rows[1e-7, average][which]
            assert quick["loss"] < slow["loss"]
            assert quick["loss"] == pytest.approx(told["start"][which] + quick["change"], abs=2e-5)
            assert abs(slow["change"]) < 1e-4  # nothing was learnt at that rate
            assert quick["error"] > slow["error"] >= 0
        assert rows[1e-3, "0"][which] != rows[1e-3, "0.5"][which]
    best = min(rows.values(), key=lambda row: row["held-out"]["loss"])
    assert f"**{best['held-out']['loss']:.4f}**" in text

    # What is made is kept, and another length is another comparison.
    asked: list[float] = []

    def run(rate: float, pipe: Any, how: Any, judged: Any) -> dict[str, Any]:
        asked.append(rate)
        return {"steps": 1, "losses": {"0": {which: [0.0] * 24 for which in judged}}}

    monkeypatch.setattr(compare, "run", run)
    assert compare.compare(pipe, options()) == text
    compare.compare(pipe, options(rates=[1e-3, 1e-4], write=False))
    compare.compare(pipe, options(steps=7, write=False))
    assert asked == [1e-4, 1e-3, 1e-7]


def test_a_loss_is_the_mean_squared_error_of_v(compare: ModuleType, model: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(model)
    of = compare.samples(pipe, "held-out", 24)
    again = compare.samples(pipe, "held-out", 24)
    assert all(torch.equal(one, two) for one, two in zip(of, again, strict=True))
    assert sorted(of.timesteps.tolist()) == [1000 * number // 24 for number in range(24)]
    networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    found = compare.losses(nn.ModuleDict(networks), compare.DiffusionLoss(pipe.scheduler), of)
    levels = torch.tensor(pipe.scheduler.plan(1).alphas_cumprod)[of.timesteps].view(-1, 1, 1, 1)
    from_x0, from_eps = prediction("v_prediction").target(levels)
    x_t = levels.sqrt() * of.x0 + (1 - levels).sqrt() * of.eps
    with torch.no_grad():
        out = pipe.unet(x_t.float(), of.timesteps, pipe.text_encoder(of.ids)[0]).sample
    expected = (out - (from_x0 * of.x0 + from_eps * of.eps)).square().flatten(1).mean(1)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


def test_averages_are_what_their_decays_say(compare: ModuleType) -> None:
    network = nn.Linear(1, 1, bias=False)
    averages = compare.Averages(network, (0.0, 0.9))
    seen = [1.0, 2.0, 5.0, 3.0]
    fixed = rising = seen[0]
    for count, value in enumerate(seen, start=1):
        with torch.no_grad():
            network.weight.fill_(value)
        averages.update()
        if count > 1:
            fixed, rising = 0.9 * fixed + 0.1 * value, rising + (value - rising) * 10 / (10 + count)
    values = {name: float(average.module.weight.detach()) for name, average in averages.models.items()}
    assert values == pytest.approx({"0": 3.0, "0.9": fixed, "rising": rising})


def test_a_page_without_a_place_is_left_alone(compare: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("Nothing.\n")
    with pytest.raises(SystemExit, match="no place for the table"):
        compare.write_page("table", tmp_path / "other.md")
    assert (tmp_path / "other.md").read_text() == "Nothing.\n"


def test_the_length_of_a_run_has_to_be_said(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["compare.py"])
    with pytest.raises(SystemExit):
        compare.main()
    assert "--seconds or --steps" in capsys.readouterr().err
