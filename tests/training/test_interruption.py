"""Ctrl-C and the signals of clusters: what was learnt is saved, and the command that is printed goes on bit for bit."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_training import Place, as_options, assert_same_runs, place, text_settings

from ddim.cli import main
from ddim.training import train
from ddim.training.checkpoints import checkpoints
from ddim.training.interruption import SIGNALS, Interrupted, Interruption, go_on_command
from ddim.training.run import make_trainer
from ddim.training.trainer import Trainer

__all__ = ["place"]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, number: int, times: int = 1) -> None:
    """Send this process a signal within a step."""
    accumulate = Trainer._accumulate

    def interrupted(self: Trainer, *arguments: Any) -> None:
        accumulate(self, *arguments)
        if self.step + 1 == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "_accumulate", interrupted)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_asks_once_and_then_ends(number: int) -> None:
    with Interruption() as interruption, interruption.later():
        os.kill(os.getpid(), number)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    with Interruption(), pytest.raises(Interrupted):
        os.kill(os.getpid(), number)


# The others only repeat the first.
@pytest.mark.parametrize("number", [SIGNALS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in SIGNALS[1:])])
def test_a_signal_saves_and_the_printed_command_goes_on_bit_for_bit(
    number: int, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a run"
    settings = text_settings(folder, place, checkpointing_steps=100)
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patched:
        at_step(patched, 4, number)
        assert main(["train", "text-to-image", *as_options(settings)]) == 130
    assert [signal.getsignal(each) for each in SIGNALS] == before
    said = capsys.readouterr().err.splitlines()
    assert "ddim: interrupted: saving; once more ends at once" in said
    assert said[-2] == f"ddim: interrupted: step 4 of 6 is saved in {folder / 'checkpoint-4'}"
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-4"]
    words = shlex.split(said[-1].removeprefix("ddim: to go on: "))
    assert words[0] == "ddim"
    assert words[-2:] == ["--resume-from-checkpoint", "latest"]
    assert main(words[1:]) == 0
    assert_same_runs(folder, train(text_settings(tmp_path / "whole", place, checkpointing_steps=100)))


def test_a_second_signal_ends_at_once(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step(monkeypatch, 4, signal.SIGINT, times=2)
    assert main(["train", "text-to-image", *as_options(text_settings(tmp_path, place, checkpointing_steps=100))]) == 130
    assert checkpoints(tmp_path) == []
    assert "ddim: interrupted\n" in capsys.readouterr().err


def test_a_preview_is_broken_off_and_the_step_is_saved(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(text_settings(tmp_path, place, checkpointing_steps=100, validation_steps=2))
    came: list[str] = []

    def endless(finished: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        came.append("further")

    monkeypatch.setattr(trainer.objective, "preview", endless)
    with pytest.raises(Interrupted, match="step 2 of 6 is saved"):
        trainer.run()
    assert came == []
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]


def test_before_the_first_step_there_is_nothing_to_save(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "ddim.training.caches.LatentCache._encode", lambda self, vae: os.kill(os.getpid(), signal.SIGINT)
    )
    assert main(["train", "text-to-image", *as_options(text_settings(tmp_path, place))]) == 130
    assert "ddim: interrupted: no step was made yet" in capsys.readouterr().err
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_that_is_there_is_not_written_again(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 3, signal.SIGINT)
    written: list[int] = []
    write = Trainer._write

    def watched(self: Trainer) -> None:
        written.append(self.step)
        write(self)

    monkeypatch.setattr(Trainer, "_write", watched)
    with pytest.raises(Interrupted):
        train(text_settings(tmp_path, place, checkpointing_steps=3))
    assert written == [3]


def test_signals_that_are_ignored_stay_so_and_other_threads_get_none() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not interruption.asked
    finally:
        signal.signal(signal.SIGUSR1, before)
    handlers: list[Any] = []

    def elsewhere() -> None:
        with Interruption():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


def test_of_several_processes_one_interruption_may_arrive_twice() -> None:
    with Interruption(processes=2) as interruption, interruption.later():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked
        interruption._first -= 60
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "pixels", "--resume-from-checkpoint", "none"], "ddim train pixels"),
        (
            ["train", "lora", "--validation-prompts", "a b", "it's $5"],
            "ddim train lora --validation-prompts 'a b' 'it'\"'\"'s $5'",
        ),
        (["train", "vae", "--hub_token=hf_x"], 'ddim train vae --hub-token "$HF_TOKEN"'),
        (["train", "vae", "--hub-token", "hf_x", "--seed", "1"], 'ddim train vae --hub-token "$HF_TOKEN" --seed 1'),
    ],
)
def test_the_command_to_go_on(arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert go_on_command(arguments) == f"{expected} --resume-from-checkpoint latest"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert go_on_command(arguments).startswith("accelerate launch --num_processes 4 -m ddim train ")


@pytest.mark.slow  # starts a process, whose worker gets the terminal's Ctrl-C too
def test_ctrl_c_in_a_terminal_reaches_the_workers_too(tmp_path: Path) -> None:
    options = "--block-out-channels 8 --layers-per-block 1 --attention-head-dim 8 --report-to none --train-batch-size 4"
    command = [sys.executable, "-m", "ddim", "train", "pixels", "--output-dir", str(tmp_path), *options.split()]
    with subprocess.Popen(
        [*command, "--dataloader-num-workers", "2"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("training:"))
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        rest = process.stderr.read()
        assert process.wait() == 130
    assert time.monotonic() - began < 60
    assert "Traceback" not in rest
    assert len(checkpoints(tmp_path)) == 1
