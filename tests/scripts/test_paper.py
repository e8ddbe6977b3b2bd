"""`make paper`: every command that it puts together can be given; that all of them run is shown by the slow tests.

What each part computes is tested where it lies.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from PIL import Image
from program import SCRIPTS, script

from ddim.cli import COMMANDS, load

paper = script("paper")
PARTS = list(paper.parts(None))
HERE = SCRIPTS.parent


def commands(name: str) -> list[list[str]]:
    """A part's command in full and when it is quick, after the interpreter."""
    found = [paper.parts(quick)[name] for quick in (None, Path("quick"))]
    assert all(command[0] == sys.executable for command in found)
    return [command[1:] for command in found]


@pytest.mark.parametrize("name", PARTS)
def test_the_commands_of_a_part_can_be_given(name: str) -> None:
    for first, *options in commands(name):
        if first.startswith("scripts/"):
            assert (HERE / first).is_file()
            script(first.removeprefix("scripts/").removesuffix(".py")).parser().parse_args(options)
        else:
            assert [first, options.pop(0)] == ["-m", "ddim"]
            words = next(words for words in COMMANDS if options[: len(words.split())] == words.split())
            settings = load(COMMANDS[words].settings)
            assert isinstance(tyro.cli(settings, args=options[len(words.split()) :]), settings)


@pytest.mark.parametrize("name", ["table1", "editing", "trajectory"])
def test_an_option_that_is_not_there_would_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = paper.parts
    monkeypatch.setattr(paper, "parts", lambda quick: {name: [*whole(quick)[name], "--nothing"]})
    with pytest.raises(SystemExit):
        test_the_commands_of_a_part_can_be_given(name)


def test_what_is_quick_writes_into_the_folder_that_it_is_given_alone() -> None:
    """No part of it may overwrite docs/, which took hours."""
    for name, command in paper.parts(Path("quick")).items():
        if name == "reconstruction":  # prints alone
            assert command[-1] == "--quick"
        else:
            assert any(option.startswith("quick") for option in command), name
        assert not any(option.startswith(("docs", "runs")) for option in command), name


def test_a_part_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["paper.py", "table9"])
    monkeypatch.chdir(HERE)
    with pytest.raises(SystemExit) as stopped:
        paper.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "table9" in said
    assert "table1" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_shown_quickly(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "paper.py"), "--quick", "--quick-out", str(tmp_path), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "table1":
        results = json.loads((tmp_path / "table1" / "results.json").read_text(encoding="utf-8"))
        assert {(row["eta"], row["steps"]) for row in results["summary"]} == {
            (eta, steps) for eta in (0.0, 0.2, 0.5, 1.0, "sigma_hat") for steps in (10, 20, 50)
        }
    elif name == "agreement":
        assert "diffusers" in (tmp_path / "agreement.md").read_text(encoding="utf-8")
    elif name == "consistency":
        figures = json.loads((tmp_path / "consistency.json").read_text(encoding="utf-8"))["figures"]
        assert all(row["cosine"] > row["other_cosine"] for row in figures)
    elif name == "reconstruction":
        said = done.stdout.partition("\n")[2].rpartition("}")[0] + "}"
        assert {row["method"] for row in json.loads(said)["digits"]} == {"ddim", "fixed-point", "bidirectional"}
    else:
        picture = f"{'interpolation-emoji-seeds' if name == 'interpolation-seeds' else name}.png"
        with Image.open(tmp_path / picture) as image:
            assert image.size > (64, 64)
    assert not list((HERE / "docs").glob("*.tmp"))
