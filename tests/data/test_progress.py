"""Progress: a bar where somebody looks at it, whole lines in a log."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import tqdm.std

from ddim.data import progress as module
from ddim.data.progress import Lines, duration, progress, say


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(tqdm.std, "time", clock)
    yield clock


def run(clock: Clock, steps: int, each: float, **options: object) -> None:
    with progress(total=steps, desc="training", unit="step", **options) as bar:
        for number in range(steps):
            clock.now += each
            bar.update()
            bar.set_postfix(loss=f"{number}")


def test_a_log_has_whole_lines_that_become_rare(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 86_400, 1.0)  # a day
    written = capsys.readouterr().err
    assert "\r" not in written
    lines = written.splitlines()
    assert 100 < len(lines) < 400
    assert re.fullmatch(r"training: 1/86,400 steps, 24 hours left", lines[0])
    assert re.fullmatch(r"training: [\d,]+/86,400 steps, loss=\d+, 12 hours left", lines[len(lines) // 2])
    assert lines[-1] == "training: 86,400/86,400 steps, loss=86399, 24 hours"
    steps = [int(re.sub(r"\D", "", line.partition("/")[0])) for line in lines]
    gaps = [later - before for before, later in zip(steps, steps[1:], strict=False)]
    assert max(gaps) <= 301
    assert gaps[:3] == [1, 1, 2]


def test_what_takes_less_than_a_second_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 9, 0.1)
    assert capsys.readouterr().err == ""
    run(clock, 35, 0.1)
    assert capsys.readouterr().err.splitlines()[-1] == "training: 35/35 steps, loss=34, 4 seconds"
    run(clock, 35, 0.1, leave=False)
    assert "35/35" not in capsys.readouterr().err
    run(clock, 35, 0.1, disable=True)
    assert capsys.readouterr().err == ""


def test_an_iterable_is_gone_through_and_counted(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for number in progress(range(100), desc="encoding", unit="batch"):
        clock.now += 0.5
        seen.append(number)
    assert seen == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    counts = [int(line.split()[1].partition("/")[0]) for line in lines]
    assert counts == sorted(set(counts))
    assert lines[-1] == "encoding: 100/100 batches, 50 seconds"


def test_a_run_that_goes_on_reckons_with_its_own_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(total=1000, initial=900, desc="training", unit="step") as bar:
        clock.now += 10
        bar.update()
    assert capsys.readouterr().err.splitlines()[0] == "training: 901/1,000 steps, 16 minutes left"


def test_what_is_said_in_between_is_a_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(total=10, desc="training") as bar:
        for _ in range(3):
            clock.now += 1
            bar.update()
            say("hello")
    assert capsys.readouterr().err.splitlines()[:4] == [
        "training: 1/10, 9 seconds left",
        "ddim: hello",
        "training: 2/10, 8 seconds left",
        "ddim: hello",
    ]


@pytest.mark.parametrize(("terminal", "notebook"), [(True, False), (False, True), (False, False)])
def test_a_terminal_and_a_notebook_get_a_bar(terminal: bool, notebook: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    modules = {**module.sys.modules, "ipykernel": None} if notebook else dict(module.sys.modules)
    monkeypatch.setattr(module.sys, "modules", modules)
    bar = progress(total=3)
    assert isinstance(bar, Lines) is not (terminal or notebook)
    bar.close()


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "1 second"), (59.6, "60 seconds"), (150, "2.5 minutes"), (3600 * 24, "24 hours")]
)
def test_times_are_told_in_words(seconds: float, told: str) -> None:
    assert duration(seconds) == told
