"""How the package hangs together: who may import whom, what it costs to import, which names are public."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fresh import python

import ddim
from ddim.cli import COMMANDS, load

PACKAGE = Path(ddim.__file__).parent
DESIGN = Path(__file__).parent.parent / "docs" / "design.md"


def order() -> list[str]:
    """The modules and rooms as docs/design.md lists them under "Layout": each imports only from those before it."""
    layout = DESIGN.read_text(encoding="utf-8").partition("## Layout")[2]
    block = layout.split("```")[1]
    return [name.rstrip("/") for line in block.splitlines() if line.strip() for name in line.split("  ")[0].split()]


ORDER = order()
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    """The name in `ORDER` of a file: a folder is one module."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of whatever a file imports, also inside functions and by name."""
    package = ["ddim", *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            base = (start + (node.module or "")).rstrip(".")
            if base == "ddim":  # `from ddim import x`: x may be a module, or a name that is loaded lazily
                yield from ((node.lineno, home(alias.name)) for alias in node.names)
            else:
                yield node.lineno, base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__", "require") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def home(name: str) -> str:
    if name == "__version__":
        return "ddim._version"
    return ddim._HOMES.get(name, f"ddim.{name}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_from_those_before_it(file: Path) -> None:
    own = module_of(file)
    if own == "__init__":
        return
    assert own in ORDER, f"{own} needs a place in the layout of docs/design.md"
    for line, name in imports(file):
        root, _, rest = name.partition(".")
        if root != "ddim":
            continue
        other = rest.partition(".")[0]
        assert other, f"line {line} imports the whole package"
        assert other in ORDER, f"line {line} imports {name}"
        assert ORDER.index(other) <= ORDER.index(own), f"{own} imports {name} in line {line}"


def test_the_layout_lists_what_is_there_and_nothing_else() -> None:
    there = {module_of(file) for file in FILES} - {"__init__"}
    assert sorted(ORDER) == sorted(there)
    assert len(there) + 1 <= 27  # modules and rooms at the top; with the weights and py.typed, all that lies there
    assert {path.name for path in PACKAGE.iterdir()} <= {
        *(f"{name}.py" for name in there), *there, "__init__.py", "weights", "py.typed", "__pycache__"
    }  # fmt: skip


def test_the_walk_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "file.py"
    file.write_text(
        "import ddim.a\nfrom ddim.b import x\nfrom ddim import c, sample\nfrom . import d\nfrom .e import y\n"
        "from ..f import z\nif 1:\n def g():\n  import ddim.g.h\nimportlib.import_module('i')\nrequire('j', 'extra')\n"
    )
    found = [name for _, name in imports(file)]
    for name in [
        "ddim.a",
        "ddim.b",
        "ddim.c",
        "ddim.sampling",
        "ddim.models",
        "ddim.models.e",
        "ddim.f",
        "ddim.g.h",
        "i",
        "j",
    ]:
        assert name in found, name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_imports_diffusers_or_transformers(file: Path) -> None:
    roots = {name.partition(".")[0] for _, name in imports(file)}
    assert not roots & {"diffusers", "transformers"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("models", {"schedule", "process", "plan", "scheduler", "sampling"}),
        ("sampling", {"models", "scheduler", "pipelines"}),
        ("guidance", {"models", "scheduler", "plan", "pipelines"}),
        ("schedule", {"process"}),
        ("process", {"schedule"}),
    ],
)
def test_ideas_that_know_nothing_of_each_other(module: str, forbidden: set[str]) -> None:
    for file in FILES:
        if module_of(file) == module:
            used = {name.split(".")[1] for _, name in imports(file) if name.startswith("ddim.")}
            assert not used & forbidden, file


def test_there_is_no_file_for_everything_else() -> None:
    names = {path.stem for path in PACKAGE.rglob("*")}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


# --- public names ----------------------------------------------------------------------------------------------------


def test_public_names_are_sorted_and_can_be_imported() -> None:
    assert ddim.__all__ == sorted(set(ddim.__all__))
    for name in ddim.__all__:
        assert getattr(ddim, name) is not None
        if name != "__version__":
            value = getattr(importlib.import_module(ddim._HOMES[name]), name)
            assert getattr(ddim, name) is value
    assert set(ddim.__all__) <= set(dir(ddim))
    with pytest.raises(AttributeError, match="colour"):
        _ = ddim.colour
    with pytest.raises(ImportError):
        importlib.import_module("ddim.colour")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    seen = set()
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module
        for alias in node.names:
            assert alias.name == alias.asname  # the form that re-exports
            assert getattr(importlib.import_module(node.module), alias.name) is getattr(ddim, alias.name)
            seen.add(alias.name)
    assert seen == set(ddim._HOMES)


# --- what it costs to import -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["ddim", "ddim.errors", "ddim.cli", "ddim.training.settings"])
def test_what_must_be_instant_imports_no_torch(module: str) -> None:
    heavy = {"torch", "numpy", "PIL", "huggingface_hub", "safetensors", "diffusers", "transformers", "accelerate"}
    loaded = python(f"import sys, {module}; print(*sys.modules)").split()
    assert not heavy & set(loaded)


def test_a_scheduler_costs_little_more_than_torch() -> None:
    code = (
        "import time, sys, torch\n"
        "start = time.process_time()\n"  # not the clock's: the machine may be busy
        "import ddim; ddim.DDIMScheduler\n"
        "print(time.process_time() - start, *sys.modules)"
    )
    costs = []
    for _ in range(5):
        cost, *loaded = python(code).split()
        assert not {"PIL", "huggingface_hub", "diffusers", "transformers", "accelerate", "tyro"} & set(loaded)
        costs.append(float(cost))
        if costs[-1] <= 0.15:
            return
    pytest.fail(f"import ddim; ddim.DDIMScheduler took {min(costs):.2f} s after torch")


def test_help_imports_no_torch() -> None:
    """All commands' options are read to say what commands there are."""
    heavy = {"torch", "numpy", "PIL", "huggingface_hub", "safetensors", "tokenizers"}
    code = "import sys\nfrom ddim.cli import COMMANDS, every_command, load\nevery_command()\n"
    loaded = python(code + "print(*sys.modules)").split()
    assert not heavy & set(loaded)


FORKS = """
import os, sys, time
from ddim.cli import COMMANDS, main
for words in ("", *COMMANDS):
    child = os.fork()
    if not child:
        sys.stdout = open(os.devnull, "w")
        try:
            main([*words.split(), "--help"])
        except SystemExit:
            print(words.replace(" ", "-") or "ddim", time.process_time(), *sys.modules, file=sys.__stdout__, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print("parent", time.process_time())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_help_of_every_command_is_instant() -> None:
    """Each by a process of its own: one that has read no options yet is forked for each command, which is soon done."""
    heavy = {"torch", "numpy", "PIL", "huggingface_hub", "safetensors", "tokenizers", "accelerate", "matplotlib"}
    lines = [line.split() for line in python(FORKS).splitlines()]
    start = float(lines[-1][1])  # what each command would have spent before it was forked, and a little more
    commands = {name: (float(seconds), set(modules)) for name, seconds, *modules in lines[:-1]}
    assert list(commands) == ["ddim", *(words.replace(" ", "-") for words in COMMANDS)]
    for name, (seconds, modules) in commands.items():
        assert not heavy & modules, name
        assert seconds + start < 0.5, name  # of the processor's time, as the machine may be busy


def test_every_command_has_settings_and_a_function() -> None:
    for words, command in COMMANDS.items():
        assert dataclasses.is_dataclass(load(command.settings)), words
        assert callable(load(command.run)), words


# --- what stands alone -----------------------------------------------------------------------------------------------

ALONE = ("errors", "process", "noise", "schedule", "step", "plan", "sampling")


def test_the_sampler_can_be_copied_out_alone(tmp_path: Path) -> None:
    """By these files and nothing else of the package a Gaussian, whose prediction is known, is sampled."""
    (tmp_path / "ddim").mkdir()
    (tmp_path / "ddim" / "__init__.py").touch()
    for name in ALONE:
        shutil.copy(PACKAGE / f"{name}.py", tmp_path / "ddim")
    (tmp_path / "run.py").write_text(
        "import torch\n"
        "from ddim.plan import SamplingPlan\n"
        "from ddim.sampling import sample\n"
        "from ddim.schedule import make_alphas_cumprod, make_betas, space_timesteps\n"
        "levels = make_alphas_cumprod(make_betas(1000))\n"
        "plan = SamplingPlan(space_timesteps(1000, 1000, 'trailing'), tuple(levels.tolist()))\n"
        "def denoiser(x, t):  # of data with a standard deviation of 0.5\n"
        "    ab = levels[int(t)]\n"
        "    return (1 - ab) ** 0.5 / (0.25 * ab + 1 - ab) * x\n"
        "*_, last = sample(denoiser, torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)), plan)\n"
        "print(float(last.sample.std()))\n"
        "import sys; print(sorted(n for n in sys.modules if n.startswith('ddim')))\n"
    )
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spread, modules = done.stdout.splitlines()
    assert float(spread) == pytest.approx(0.5, rel=0.02)
    assert modules == str(["ddim", *sorted(f"ddim.{name}" for name in ALONE)])
