"""What the README and the page of all commands show can be done as it stands.

What is quick is done here, and all of it by scripts/newcomer.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import tyro
from program import script

from ddim.cli import COMMANDS, load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS_PAGE = (ROOT / "docs" / "tasks" / "commands.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def newcomer() -> ModuleType:
    return script("newcomer")


def commands() -> list[list[str]]:
    """The words of every `ddim …` line, without comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README + COMMANDS_PAGE, flags=re.DOTALL | re.MULTILINE)
    lines = "".join(code for language, code in blocks if language in ("", "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("ddim ")]


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)  # the other needs Stable Diffusion
    names: dict[str, object] = {}
    exec(code, names)
    assert len(names["images"]) == 3  # type: ignore[arg-type]
    assert len(capsys.readouterr().out.splitlines()) == 10


@pytest.mark.parametrize(
    "page", ["README.md", *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), link


def test_the_makefile_has_what_the_readme_promises() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_what_is_said_of_the_core_is_so() -> None:
    """How many lines it has, and how many of them are code: to ten."""
    said = re.search(r"six files of\s+([\d,]+) lines, of which ([\d,]+) are code", README)
    assert said
    lines = code = 0
    for name in ("process", "noise", "schedule", "step", "plan", "sampling"):
        text = (ROOT / "src" / "ddim" / f"{name}.py").read_text(encoding="utf-8")
        lines += len(text.splitlines())
        code += len(code_lines(text))
    assert [round(count, -1) for count in (lines, code)] == [int(number.replace(",", "")) for number in said.groups()]


def code_lines(text: str) -> list[str]:
    """Without blank lines, comments and docstrings."""
    explained: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            explained |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    numbered = enumerate(text.splitlines(), start=1)
    return [line for number, line in numbered if number not in explained and re.match(r"\s*[^\s#]", line)]


# --- the commands ----------------------------------------------------------------------------------------------------


def test_every_command_can_be_parsed() -> None:
    assert len(commands()) > 20
    for program, *given in commands():
        words = next(words for words in (" ".join(given[:2]), given[0]) if words in COMMANDS)
        assert program == "ddim"
        tyro.cli(load(COMMANDS[words].settings), args=given[len(words.split()) :])


def test_every_kind_of_command_is_shown() -> None:
    shown = {" ".join(given[:2]) for _, *given in commands()} | {given[0] for _, *given in commands()}
    missing = set(COMMANDS) - shown
    # In docs/training.md, docs/tasks/install.md, docs/prompts.md and docs/controlnet.md.
    assert missing == {"train vae", "completion", "train textual-inversion", "train controlnet"}


def test_what_a_command_reads_was_written_by_one_before_it(newcomer: ModuleType) -> None:
    """In an empty folder: every picture, model and folder that stands in a command that is run."""
    written: set[str] = set()
    for step in newcomer.steps(COMMANDS_PAGE):
        if step.why_not is not None or step.language in newcomer.PYTHON:
            continue
        words = shlex.split(step.code.split(";")[0], comments=True)
        outs = set(newcomer.outs(step.code)) if words[0] == "ddim" else set()
        for word in words[1:]:
            if (
                word not in outs
                and re.fullmatch(r"[\w-]+(/\S*)?(\.(png|safetensors|gif|json))?", word)
                and ("/" in word or "." in word or word in ("pictures", "evaluation"))
            ):
                assert any(word == out.rstrip("/") or word.startswith(out) for out in written), step.code
        written |= outs


def test_what_is_left_out_is_marked_as_the_readers_own(newcomer: ModuleType) -> None:
    steps = [step for page in (README, COMMANDS_PAGE) for step in newcomer.steps(page)]
    left_out = [step for step in steps if step.why_not is not None]
    run = [step for step in steps if step.why_not is None]
    assert len(run) > 20
    for step in left_out:
        assert step.code.startswith(("make ", "pip ", "source ", "ddim serve ", "ddim studio")) or "my-" in step.code, (
            step
        )


# --- scripts/newcomer -------------------------------------------------------------------------------------------------

PAGE = """
# A page

Run these:

```
echo one > one.txt            # not two
# a comment

cat one.txt \\
  one.txt
```

With a model of your own:

```sh
cat nothing
```

```python
print(open("one.txt").read())
```

```toml
key = 1
```

And then:

```
make test
```
"""


def test_the_steps_of_a_page(newcomer: ModuleType) -> None:
    found = [(step.line, step.language, step.code, step.why_not) for step in newcomer.steps(PAGE)]
    assert found == [
        (7, "", "echo one > one.txt            # not two", None),
        (11, "", "cat one.txt   one.txt", None),
        (17, "sh", "cat nothing", "it is for what is your own"),
        (21, "python", 'print(open("one.txt").read())', "it is for what is your own"),
        (31, "", "make test", "it runs by itself"),
    ]


def test_a_page_that_runs(newcomer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("your own", "no"), encoding="utf-8")
    assert newcomer.main(page) == 1  # as there is no file called nothing
    told = capsys.readouterr()
    assert "This failed, with status 1:\ncat nothing" in told.err
    assert "nothing: No such file" in told.err
    page.write_text(PAGE, encoding="utf-8")
    assert newcomer.main(page) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:1] != " "] == [
        "page.md:7",
        "page.md:11",
        "page.md:17",
        "page.md:21",
        "page.md:31",
        "page.md:",
    ]


@pytest.mark.parametrize(
    "code", ["exit 3", "false; true", "echo $undefined", "cat missing && true", "echo x > x.png # --out y"]
)
def test_a_command_fails_by_its_status(newcomer: ModuleType, tmp_path: Path, code: str) -> None:
    done = newcomer.run(newcomer.Step(1, "sh", code), tmp_path)
    assert (done.returncode != 0) == ("x.png" not in code)


def test_a_command_that_does_not_write_what_it_says_fails(newcomer: ModuleType, tmp_path: Path) -> None:
    done = newcomer.run(newcomer.Step(1, "sh", "echo --out x.png"), tmp_path)
    assert done.returncode == 1
    assert "it did not write x.png" in done.stdout


def test_the_hub_is_out_of_reach(newcomer: ModuleType, tmp_path: Path) -> None:
    done = newcomer.run(
        newcomer.Step(1, "python", "import os; print(os.environ['HF_HUB_OFFLINE'], os.getcwd())"), tmp_path
    )
    assert done.stdout.split() == ["1", str(tmp_path)]


def test_test_all_runs_it() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^test-all:.*\n\t.*\n\t@\$\(BIN\)/python scripts/newcomer ", makefile, flags=re.MULTILINE)
