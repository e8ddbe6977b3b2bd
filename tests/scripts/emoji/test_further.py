"""How the emoji model is trained further: goes that follow each other, on a model that is tiny."""

from __future__ import annotations

import importlib
import json
import os
import signal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_goes import further, model, options
from tiny_training import place

from ddim import DiffusionPipeline
from ddim.checkpoint import read_tensors
from ddim.training.checkpoints import checkpoints, read_state
from ddim.training.trainer import Trainer

__all__ = ["further", "model", "place"]


def weight(folder: Path) -> torch.Tensor:
    found: torch.Tensor = DiffusionPipeline.from_pretrained(folder).unet.conv_in.weight
    return found


def average(folder: Path) -> torch.Tensor:
    return read_tensors(checkpoints(folder)[-1] / "average.safetensors")["unet.conv_in.weight"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("further"))


# The fast test beside it is test_an_interrupted_go_leaves_its_average_and_goes_on.
@pytest.mark.slow
def test_the_same_options_go_on_and_others_begin_the_next_go(further: ModuleType, model: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, second, third = (runs / name for name in ("further", "further-2", "further-3"))
    further.further(options(steps=2))
    assert checkpoints(first)[-1].name == "checkpoint-2"
    assert torch.equal(weight(first / "start"), weight(model))
    assert torch.equal(weight(first), average(first))
    assert not torch.equal(weight(first), weight(model))
    further.further(options(steps=3))  # more steps are the same go
    assert names(runs) == ["further"]
    assert checkpoints(first)[-1].name == "checkpoint-3"
    further.further(options(steps=2, batch=3))
    assert names(runs) == ["further", "further-2"]
    assert torch.equal(weight(second / "start"), average(first))  # from the average, and neither more nor less
    (latents,) = (first / "cache").iterdir()
    assert os.path.samefile(latents, second / "cache" / latents.name)  # pictures are encoded once
    further.further(options(steps=4, batch=3, anneal=1.0))
    assert read_state(checkpoints(third)[-1])["settings"]["lr_scheduler"] == "warmup_stable_decay"
    further.further(options(steps=4, batch=3, anneal=1.0))  # the last was annealed to its end
    assert names(runs)[-1] == "further-4"
    assert len({read_state(checkpoints(runs / name)[-1])["settings"]["seed"] for name in names(runs)}) == 4
    told = further.record(runs / "further-4")
    assert [each["step"] for each in told["goes"]] == [3, 2, 4, 4]
    assert told["samples"] == 3 * 2 + 10 * 3
    assert str(tmp_path) not in json.dumps(told["settings"])  # a go can go on in another copy of the project


def test_a_go_ends_by_the_time_and_leaves_a_model(
    further: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []

    def clock(trainer: Trainer) -> Any:
        return lambda: 10.0 * trainer.step

    init = Trainer.__init__

    def timed(trainer: Trainer, *given: Any) -> None:
        init(trainer, *given)
        trainer.clock = clock(trainer)
        step = trainer.optimizer.step

        def noted(*_: Any) -> None:
            made.append(trainer.optimizer.param_groups[0]["lr"])
            step()

        trainer.optimizer.step = noted

    monkeypatch.setattr(Trainer, "__init__", timed)
    further.further(options(seconds=45.0, anneal=0.5, rate=1.0e-3, out=tmp_path / "out"))
    folder = tmp_path / "runs" / "further"
    assert checkpoints(folder)[-1].name == "checkpoint-5"
    assert made == pytest.approx([1e-3 * (step + 1) / 301 for step in range(5)])  # all of these are of the warm-up
    assert weight(tmp_path / "out").dtype == torch.float32  # as it is loaded
    stored = read_tensors(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert torch.equal(stored, average(folder).half())


def test_an_interrupted_go_leaves_its_average_and_goes_on(
    further: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, signalled = tmp_path / "runs" / "further", []
    update = torch.optim.AdamW.step

    def interrupting(optimizer: Any, *given: Any) -> Any:
        if len(signalled) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        signalled.append(True)
        return update(optimizer, *given)

    given = options(steps=6, anneal=0.5, out=tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupting)
        with pytest.raises(SystemExit) as ended:
            further.further(given)
    assert ended.value.code == 130
    assert checkpoints(folder)[-1].name == "checkpoint-2"
    assert torch.equal(weight(folder), average(folder))
    assert (tmp_path / "out" / "model_index.json").exists()
    further.further(given)
    assert names(tmp_path / "runs") == ["further"]
    assert checkpoints(folder)[-1].name == "checkpoint-6"


# The fast test beside it is test_a_go_ends_by_the_time_and_leaves_a_model.
@pytest.mark.slow
def test_a_go_begins_from_where_it_is_told(further: ModuleType, model: Path, tmp_path: Path) -> None:
    further.further(options(steps=1))
    told = options(steps=1, start=str(tmp_path / "runs" / "further" / "start"))
    further.further(told)
    second = tmp_path / "runs" / "further-2"
    assert torch.equal(weight(second / "start"), weight(model))
    further.further(told)  # the same command is the same go
    assert names(tmp_path / "runs") == ["further", "further-2"]
    for path in second.glob("checkpoint-*"):  # what came back from another machine may be a model alone
        path.rename(tmp_path / path.name)
    further.further(options(steps=1))
    assert torch.equal(weight(tmp_path / "runs" / "further-3" / "start"), weight(second))


def test_settings_are_by_the_device(further: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, usual = tmp_path / "runs" / "further", options(batch=None, precision=None)
    on_cpu = further.go_settings(folder, usual)
    assert (on_cpu.train_batch_size, on_cpu.learning_rate, on_cpu.dataloader_num_workers) == (64, 3e-4, 0)
    stub = SimpleNamespace(is_available=lambda: True, is_bf16_supported=lambda including_emulation: True)
    monkeypatch.setattr(torch, "cuda", stub)
    on_gpu = further.go_settings(folder, usual)
    assert (on_gpu.train_batch_size, on_gpu.mixed_precision, on_gpu.allow_tf32) == (2048, "bf16", True)
    assert on_gpu.learning_rate == 1.6e-3  # the root of 32 would make it 1.7e-3
    some = further.go_settings(folder, options(batch=512, precision=None))
    assert some.learning_rate == pytest.approx(3e-4 * 8**0.5)
    assert on_gpu.dataloader_num_workers >= 1
    larger = further.go_settings(folder, options(batch=1024, rate=1e-3, precision=None))
    assert (larger.train_batch_size, larger.learning_rate) == (1024, 1e-3)


# The fast test beside it is test_an_interrupted_go_leaves_its_average_and_goes_on.
@pytest.mark.slow
def test_the_newest_average_is_shipped(further: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = importlib.import_module("words")
    monkeypatch.setattr(words, "word_list", lambda: SimpleNamespace(write=lambda folder: None))
    monkeypatch.setattr(further.stages, "WEIGHTS", tmp_path / "weights")
    further.further(options(steps=1))
    further.further(options(steps=2, batch=3))
    further.stages.ship()
    folder = tmp_path / "runs" / "further-2"
    assert torch.equal(weight(tmp_path / "weights"), average(folder).half().float())
    told = json.loads((tmp_path / "weights" / "training.json").read_text())
    assert (told["step"], told["samples"]) == (2, 8)
    assert str(tmp_path) not in json.dumps(told)


def test_annealing_without_an_end_is_refused(
    further: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "further", "--anneal"])
    with pytest.raises(SystemExit):
        further.stages.main()
    assert "--anneal needs --seconds or --steps" in capsys.readouterr().err
