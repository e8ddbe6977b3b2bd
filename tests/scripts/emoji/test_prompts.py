"""The texts that a student of the emoji model is taught by."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_training import write_pictures

from ddim.data import captioned_source


def test_they_are_captions_with_backgrounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "scripts" / "emoji"))
    import prompts

    source = captioned_source(train_data_dir=str(write_pictures(tmp_path / "data")))
    monkeypatch.setattr(prompts, "captioned_source", lambda dataset_name: source)
    monkeypatch.setattr(prompts, "TRAIN", tmp_path)
    monkeypatch.setattr(sys, "argv", ["prompts.py", str(tmp_path / "out.txt"), "--count", "60"])
    prompts.main()
    lines = (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines()
    known = [caption for options in source.captions or () for caption in options]
    assert len(lines) == 60
    assert any(line in known for line in lines)
    assert any(" background" in line for line in lines)
    assert all(line.partition(" on a")[0].split(",")[0] in json.dumps(known) for line in lines)
    assert lines == prompts.prompts(60)
    assert lines != prompts.prompts(60, seed=1)
