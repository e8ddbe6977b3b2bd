"""scripts/emoji/further.py on a model, and on pictures, that are tiny."""

from __future__ import annotations

import argparse
import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from program import SCRIPTS
from tiny_training import Place, drawing, text_settings

from ddim.training import train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, place: Place) -> Path:
    """What stands for the shipped model."""
    folder = tmp_path_factory.mktemp("shipped")
    kind: dict[str, Any] = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    train(text_settings(folder, place, max_train_steps=1, **kind))
    return folder


@pytest.fixture
def further(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    monkeypatch.syspath_prepend(str(SCRIPTS / "emoji"))
    program = importlib.import_module("further")
    stages = program.stages
    rows = []
    for color in ("red", "green", "blue"):
        file = io.BytesIO()
        drawing(color, True).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "text": [f"a {color} square, flat style"]})
    runs = tmp_path / "runs"
    runs.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), runs / "train.parquet")
    monkeypatch.setattr(stages, "HERE", tmp_path)
    monkeypatch.setattr(stages, "RUNS", runs)
    monkeypatch.setattr(stages, "TRAIN", runs / "train.parquet")
    monkeypatch.setattr(program, "SHIPPED", str(model))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return program


def options(**given: Any) -> argparse.Namespace:
    usual = {"seconds": None, "steps": None, "batch": 2, "rate": None, "ema": 0.9995, "precision": "no"}
    return argparse.Namespace(**{**usual, "anneal": None, "start": None, "out": None, **given})
