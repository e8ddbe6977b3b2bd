"""Ctrl-C, and the signals by which clusters say that time is over: a run ends at a moment from which it can go on."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

# What Ctrl-C sends, what SLURM and `kill` send, and what `sbatch --signal=USR1@60` sends a minute before.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
SAME = 5.0  # seconds within which launchers of several processes may send the same interruption twice


class Interrupted(KeyboardInterrupt):
    """A run was interrupted. The same command goes on from what it has saved."""


class Interruption:
    """Receives the signals while it is entered, and puts the old handlers back.

    At the first signal `Interrupted` is raised at once, unless the code is within `later()`: there `asked` becomes
    True, and the code is to look at it. A second signal raises `KeyboardInterrupt` at once, wherever the code is.

    Args:
        processes: how many processes the run has.
    """

    def __init__(self, processes: int = 1) -> None:
        self.asked = False
        self._processes = processes
        self._waits = False
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as `nohup` and the like may have set
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def later(self, wait: bool = True) -> Iterator[None]:
        """Let what is within come to its end; with wait=False, a part of it may be broken off."""
        before, self._waits = self._waits, wait
        try:
            yield
        finally:
            self._waits = before

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if self._processes > 1 and time.monotonic() - self._first < SAME:
                return
            raise KeyboardInterrupt
        self.asked, self._first = True, time.monotonic()
        if self._processes == 1:
            with contextlib.suppress(RuntimeError):  # which a handler in the middle of another print raises
                print("\nddim: interrupted: saving; once more ends at once", file=sys.stderr, flush=True)
        if not self._waits:
            raise Interrupted


def ignore_signals(worker: int) -> None:
    """Make a process that loads images leave interruptions to the one that trains, which ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def go_on_command(arguments: Sequence[str]) -> str:
    """The command line that goes on with an interrupted run, as a shell takes it.

    Args:
        arguments: what the interrupted run was called with, beginning with "train".

    >>> go_on_command(["train", "lora", "--train_data_dir", "my pictures", "--resume_from_checkpoint=checkpoint-5"])
    "ddim train lora --train_data_dir 'my pictures' --resume-from-checkpoint latest"
    """
    kept: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, equals, _ = argument.partition("=")
        name = flag.replace("_", "-")
        if name == "--resume-from-checkpoint":
            rest = rest if equals else rest[1:]
        elif name == "--hub-token":  # a secret, which no log should have
            rest = rest if equals else rest[1:]
            kept.append('--hub-token "$HF_TOKEN"')
        else:
            kept.append(shlex.quote(argument))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    start = f"accelerate launch --num_processes {processes} -m ddim" if processes > 1 else "ddim"
    return " ".join([start, *kept, "--resume-from-checkpoint", "latest"])
