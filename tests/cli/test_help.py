"""What `--help` says: options under headings, examples that run, and what to do about a misspelt command."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro
from PIL import Image

from ddim.cli import COMMANDS, GROUPS, load, main
from ddim.cli.completion import CompletionSettings, Shell, run_completion
from ddim.cli.groups import OF_DRAWING, OF_MEASURING, OF_TRAINING, OTHER, TAKES, headings
from ddim.cli.help import examples, options, summary


def settings(words: str) -> type:
    return load(COMMANDS[words].settings)  # type: ignore[no-any-return]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
    told = capsys.readouterr()
    assert not told.err
    return told.out


# --- headings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_has_a_heading_and_stands_in_the_help_once(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = shown(capsys, *words.split(), "--help")
    lines = told.splitlines()
    every = options(words, settings(words))
    assert len(every) == sum(field.init for field in dataclasses.fields(settings(words)))
    for option in every:
        assert option.heading != OTHER, f"{option.usage}: give it a heading in ddim/cli/groups.py"
        assert (
            sum(
                line.startswith((f"  {option.usage} ", f"  {option.usage}\n")) or line == f"  {option.usage}"
                for line in lines
            )
            == 1
        )
    titles = [line for line in lines if line in {each.heading for each in every}]
    assert len(titles) == len(set(titles))
    assert max(lines.count(title) for title in titles) == 1


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("width", ["80", "100", "300"])
def test_the_help_fits_the_terminal(
    words: str, width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    told = shown(capsys, *words.split(), "--help")
    longest = max(told.splitlines(), key=len)
    assert len(longest) <= min(int(width), 100) or longest.strip().startswith("--lr-scheduler {"), longest
    assert not told.startswith("\x1b")


def test_no_heading_of_training_is_a_screenful() -> None:
    every = options("train text-to-image", settings("train text-to-image"))
    headings = [option.heading for option in every]
    assert len(set(headings)) >= 8
    assert max(map(headings.count, headings)) <= 20


def test_the_tables_list_each_option_once() -> None:
    for table in (OF_DRAWING, OF_MEASURING, OF_TRAINING, TAKES):
        listed = " ".join(table.values()).split()
        assert len(listed) == len(set(listed))
    every = {field.name for words in COMMANDS for field in dataclasses.fields(settings(words))}
    for words in COMMANDS:
        assert set(" ".join(headings(words).values()).split()) <= every


# Options that may be left out, of which nothing need be said: without them, what they are about is not done.
PLAIN = {"--from", "--features-weights", "--against"}


@pytest.mark.parametrize("words", COMMANDS)
def test_no_default_is_none(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, *words.split(), "--help")
    assert "default: None" not in told
    assert "{None}" not in told
    assert "(default: )" not in told
    for option in options(words, settings(words)):
        name = option.usage.split()[0]
        has_no_default = not (option.is_required or option.is_positional or option.default)
        if has_no_default and " " in option.usage and name not in PLAIN:  # flags say by their names that they are off
            assert re.search("[Ii]f not given|instead of|Give this or", option.text), option.usage


@pytest.mark.parametrize("words", COMMANDS)
def test_what_the_help_says_an_option_takes_is_what_tyro_takes(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The names, the choices and what is required are read from the types, as tyro reads them."""
    with pytest.raises(SystemExit):
        tyro.cli(settings(words), args=["--help"])
    theirs = capsys.readouterr().out
    for option in options(words, settings(words)):
        if not option.is_positional:
            names = [name for name in option.usage.replace(",", "").split() if name.startswith("--")]
            line = next(line for line in theirs.splitlines() if f" {names[0]} " in f"{line} ".replace(",", " "))
            assert all(name in line for name in names)
            for choice in re.findall(r"[{,]([a-z]\w*)", option.usage):
                assert choice in theirs
    required = sum(option.is_required for option in options(words, settings(words)))
    several = [option for option in options(words, settings(words)) if option.is_positional and "..." in option.usage]
    assert theirs.count("(required)") == required - sum(option.is_required for option in several)  # tyro's may be none


# --- the pages -------------------------------------------------------------------------------------------------------


def test_ddim_alone_prints_the_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = shown(capsys)
    assert told == shown(capsys, "--help") == shown(capsys, "-h") == shown(capsys, "help")
    for words in COMMANDS:
        assert f"\n  {words} " in told, words
        assert summary(settings(words)).split(maxsplit=3)[:3] == summary(settings(words)).split()[:3]
    assert "--version" in told
    assert "completion bash" in told
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_alone_prints_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, group)
    assert told == shown(capsys, group, "--help") == shown(capsys, "help", group)
    for words in COMMANDS:
        assert (f"\n  {words} " in told) == words.startswith(f"{group} ")


def test_help_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, "sample", "--help")
    assert told == shown(capsys, "sample", "a red heart", "--steps", "4", "-h") == shown(capsys, "help", "sample")


def test_headings_are_bold_in_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in shown(capsys, "sample", "--help")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b[1mGuidance\x1b[0m" in shown(capsys, "sample", "--help")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(capsys, "sample", "--help")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["smaple", "a cat"], "there is no command smaple: did you mean `ddim sample`?"),
        (["evalaute"], "did you mean `ddim evaluate`?"),
        (["lora"], "there is no command lora: did you mean `ddim train lora`?"),
        (
            ["train", "text_to_image"],
            "there is no command train text_to_image: did you mean `ddim train text-to-image`?",
        ),
        (["train", "lroa", "--help"], "did you mean `ddim train lora`?"),
        (["plot", "schedules"], "did you mean `ddim plot schedule`?"),
        (["trian"], "did you mean `ddim train`?"),
        (["a red heart"], 'did you mean `ddim sample "a red heart"`?'),
        (["xyzzy"], "there is no command xyzzy. `ddim --help` lists all"),
        (["--steps", "4"], "there is no command --steps. `ddim --help` lists all"),
    ],
)
def test_an_unknown_command_is_one_line(arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    told = capsys.readouterr()
    assert not told.out
    (line,) = told.err.splitlines()
    assert line.startswith("ddim: ")
    assert meant in line
    assert line.endswith("`ddim --help` lists all")


def test_a_reader_that_leaves_is_no_error() -> None:
    """As `ddim train lora --help | head -1` does."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ddim", "sample", "--help"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.stderr == b""


# --- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS)
def test_each_command_has_examples_that_can_be_parsed(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = re.sub(r" \\\n +", " ", shown(capsys, *words.split(), "--help"))  # without the breaks of long ones
    commands = examples(settings(words))
    assert commands
    for line in commands:
        assert f"\n  {line}" in told
        program, *given = shlex.split(line)
        assert program == "ddim"
        assert given[: len(words.split())] == words.split()
        tyro.cli(settings(words), args=given[len(words.split()) :])


# What makes an example short, after its own options.
SHORTER = {
    "sample": "--steps 2",
    "interpolate": "--steps 2",
    "invert": "--steps 2 --method ddim",
    "edit": "--steps 4",
    "evaluate": "--steps 2 3 --samples 12 --batch 6",
    "optimize": "--reference 9 --samples 2",
    "plot trajectory": "--steps 3",
    "train pixels": "--max-train-steps 1 --train-batch-size 2 --block-out-channels 32 --validation-steps 0",
    "train vae": "--max-train-steps 1 --train-batch-size 2 --validation-steps 0",
    "train text-to-image": "--max-train-steps 1 --train-batch-size 2 --validation-steps 0",
    "train lora": "--max-train-steps 1 --train-batch-size 2 --validation-steps 0",
    "train textual-inversion": "--max-train-steps 1 --train-batch-size 2 --validation-steps 0",
    "train controlnet": "--max-train-steps 1 --train-batch-size 2 --validation-steps 0",
    "distill": "--max-train-steps 1 --train-batch-size 2 --trajectories 4 --teacher-steps 4 --validation-steps 0",
}
# Commands that are tried elsewhere: servers run until somebody ends them, and jobs may want several machines.
ELSEWHERE = {"serve", "studio", "generate", "completion"}


@pytest.mark.slow  # half a minute
def test_the_examples_run_in_their_order_in_a_folder_with_a_few_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    rows = []
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (64, 64), colour).save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text(colour, encoding="utf-8")
        picture = {"bytes": Path(f"pictures/{number}.png").read_bytes()}
        rows.append({"image": picture, "pose": picture, "text": colour})
    pq.write_table(pa.Table.from_pylist(rows), "data.parquet")
    Path("captions.txt").write_text("a red heart\na blue heart\n", encoding="utf-8")
    found = [(words, line) for words in COMMANDS if words not in ELSEWHERE for line in examples(settings(words))]
    # What was trained is there for those that draw with it.
    for words, line in sorted(found, key=lambda each: "--controlnet runs/" in each[1]):
        assert main([*shlex.split(line)[1:], *SHORTER.get(words, "").split()]) == 0, line


def test_every_shortened_command_is_one() -> None:
    assert set(SHORTER) <= set(COMMANDS)
    for words, given in SHORTER.items():
        names = {"--" + name.replace("_", "-") for name in get_type_hints(settings(words))}
        assert {word for word in given.split() if word.startswith("--")} <= names


# --- completion ------------------------------------------------------------------------------------------------------

TYPED = [
    ("ddim sa", {"sample"}),
    ("ddim --v", {"--version"}),
    ("ddim train lo", {"lora"}),
    ("ddim plot ", {"schedule", "trajectory", "tradeoff", "--help"}),
    ("ddim completion z", {"zsh"}),
    ("ddim sample --gui", {"--guidance-scale", "--guidance-rescale", "--guidance-interval"}),
    ("ddim sample --backend open", {"openvino"}),
    ("ddim sample --eta s", {"sigma_hat"}),
    ("ddim train lora --mixed-precision b", {"bf16"}),
    ("ddim train lora --out", {"--output-dir"}),
    ("ddim train lora --no-use-e", {"--no-use-ema"}),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    commands = {words: settings(words) for words in COMMANDS}
    for shell in get_args(Shell):
        script = run_completion(CompletionSettings(shell))
        assert script == run_completion(CompletionSettings(shell))
        assert all(words.split()[-1] in script for words in commands)
        (folder / shell).write_text(script, encoding="utf-8")
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(scripts: Path) -> None:
    code = [f"source {scripts / 'bash'}"]
    for typed, _ in TYPED:
        words = [*typed.split(), *([""] if typed.endswith(" ") else [])]
        code.append(f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}")
        code.append("_ddim; echo ${COMPREPLY[@]}")
    done = subprocess.run(["bash", "-euc", "\n".join(code)], capture_output=True, text=True, check=True)
    offered = [set(line.split()) for line in done.stdout.split("\n")[:-1]]
    for (typed, wanted), found in zip(TYPED, offered, strict=True):
        assert found == wanted, typed
    done = subprocess.run(
        ["bash", "-c", f"source {scripts / 'bash'}; complete -p ddim"], capture_output=True, text=True
    )
    assert done.stdout == "complete -o default -F _ddim ddim\n"  # files where there are no words


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(scripts: Path) -> None:
    for typed, wanted in TYPED:
        code = f"source {scripts / 'fish'}; complete -C {shlex.quote(typed)}"
        done = subprocess.run(["fish", "-c", code], capture_output=True, text=True, check=True)
        assert {line.split("\t")[0] for line in done.stdout.splitlines()} == wanted - {"--help"}, typed


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_its_script(scripts: Path) -> None:
    subprocess.run(["zsh", "-n", str(scripts / "zsh")], check=True)


def test_the_script_is_printed(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out.strip() == (scripts / "bash").read_text(encoding="utf-8").strip()


# --- what cannot be parsed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["sample", "--sed", "3"], "`ddim sample` has no option --sed: did you mean --seed?"),
        (["sample", "a cat", "--guidance_scal=3"], "has no option --guidance_scal: did you mean --guidance-scale?"),
        (["train", "lora", "--output-dir", "x", "--rnak", "4"], "has no option --rnak: did you mean --rank?"),
        (["sample", "--qwertyuiop"], "`ddim sample` has no option --qwertyuiop. `ddim sample --help` lists"),
        (
            ["sample", "a", "red", "heart"],
            'no place for red heart: put a text of several words in quotes, as in `ddim sample "a',
        ),
        (["info", "emoji", "digits"], "`ddim info` has no place for digits. `ddim info --help` lists"),
    ],
)
def test_what_cannot_be_parsed_is_one_line(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ddim: ")
    assert why in line
