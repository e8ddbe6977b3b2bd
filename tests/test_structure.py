"""How the package hangs together: who may import whom, what it costs to import, which names are public."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import mypy.api
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


@functools.cache
def imports(file: Path) -> list[tuple[int, str]]:
    """(line, full name) of whatever a file imports, also inside functions and by name."""
    return list(_imports(file))


def _imports(file: Path) -> Iterator[tuple[int, str]]:
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
    assert len(there) + 1 <= 30  # modules and rooms at the top; with the weights and py.typed, all that lies there
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


def public_modules() -> list[str]:
    """Whatever users import from: each flat module, each room but the command line, and what else has a list."""
    found = []
    for file in FILES:
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        is_front = len(parts) == 1 or parts[1:] == ("__init__",)
        is_program = parts[0] in ("__main__", "_version") or parts == ("cli", "__init__")
        has_list = any(line.startswith("__all__") for line in file.read_text(encoding="utf-8").splitlines())
        if has_list or (is_front and not is_program):
            found.append(".".join(part for part in ("ddim", *parts) if part != "__init__"))
    return found


def as_ruff_sorts(names: list[str]) -> list[str]:
    """Constants, classes, the rest; each by the alphabet."""
    return sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))


@pytest.mark.parametrize("module", public_modules())
def test_a_public_module_lists_its_names_sorted_and_once(module: str) -> None:
    there = importlib.import_module(module)
    assert there.__all__ == as_ruff_sorts(list(set(there.__all__)))
    for name in there.__all__:
        assert getattr(there, name) is not None
        assert not name.startswith("_") or name == "__version__"


def test_names_at_the_top_come_from_where_they_are_public() -> None:
    for name in ddim.__all__:
        if name != "__version__":
            home = importlib.import_module(ddim._HOMES[name])
            assert name in home.__all__
            assert getattr(ddim, name) is getattr(home, name)
    assert set(ddim.__all__) <= set(dir(ddim))
    with pytest.raises(AttributeError, match="colour"):
        _ = ddim.colour
    with pytest.raises(ImportError):
        importlib.import_module("ddim.colour")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        seen.update({alias.name: node.module for alias in node.names})
        assert all(alias.asname is None for alias in node.names)
    assert seen == ddim._HOMES
    # `__all__` is written out, since type checkers read it and do not compute it: what is in it is exported
    (written,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"]  # type: ignore[attr-defined]
    assert ast.literal_eval(written) == ddim.__all__
    assert set(ddim.__all__) == {*seen, "__version__"}
    # to a type checker, a module with this function has every name
    assert [n.name for n in block.orelse if isinstance(n, ast.FunctionDef)] == ["__getattr__"]
    assert "__getattr__" not in [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]


@pytest.mark.slow
def test_a_type_checker_knows_what_each_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYPYPATH", str(PACKAGE.parent))
    file = tmp_path / "snippet.py"
    file.write_text(
        "from ddim import DDIMScheduler, sample, smaple\nreveal_type(DDIMScheduler().plan(5))\nreveal_type(sample)\n"
    )
    said, _, status = mypy.api.run(
        ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path}", str(file)]
    )
    assert status == 1
    assert 'has no attribute "smaple"' in said
    assert 'Revealed type is "ddim.plan.SamplingPlan"' in said
    assert re.search(r"Revealed type is \"def \(denoiser: .*\) -> .*Iterator\[ddim.sampling.SampleStep\]\"", said)
    assert "Found 1 error in 1 file" in said


# --- what it costs to import -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["ddim", "ddim.errors", "ddim.cli", "ddim.training.settings"])
def test_what_must_be_instant_imports_no_torch(module: str) -> None:
    heavy = {"torch", "numpy", "PIL", "huggingface_hub", "safetensors", "diffusers", "transformers", "accelerate"}
    loaded = python(f"import sys, {module}; print(*sys.modules)").split()
    assert not heavy & set(loaded)


# The fast test beside it is test_the_help_of_every_command_is_instant.
@pytest.mark.slow
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
    code = "import sys\nfrom ddim.cli import main\ntry: main(['--help'])\nexcept SystemExit: print()\n"
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


def choices(command: str, option: str) -> set[str]:
    """What an option of a command may be, by its type."""
    found, open_types = set(), [typing.get_type_hints(load(COMMANDS[command].settings))[option]]
    while open_types:
        kind = open_types.pop()
        inside = typing.get_args(kind)
        if typing.get_origin(kind) is typing.Literal:
            found |= set(inside)
        else:
            open_types += inside
    return found


def test_the_choices_of_options_are_what_there_is() -> None:
    """They are written out as types, since `--help` must not import the modules that have them."""
    from ddim.backends import BACKENDS
    from ddim.interpolation import BETWEEN, INVERSIONS
    from ddim.inversion import METHODS
    from ddim.process import PREDICTIONS
    from ddim.schedule import BETA_SCHEDULES, SPACINGS

    spacings = {*SPACINGS, "optimized"}
    for command in ("train pixels", "train text-to-image", "train lora", "train textual-inversion"):
        assert choices(command, "prediction_type") == set(PREDICTIONS)
        assert choices(command, "beta_schedule") == set(BETA_SCHEDULES)
        assert choices(command, "timestep_spacing") == spacings
    assert choices("sample", "spacing") == spacings
    assert choices("sample", "backend") == {*BACKENDS, "auto"}
    assert choices("invert", "method") == set(METHODS)
    assert choices("edit", "method") == {"cycle", *METHODS}
    assert choices("interpolate", "method") == set(INVERSIONS)
    assert choices("interpolate", "between_texts") == set(BETWEEN)


# --- what stands alone -----------------------------------------------------------------------------------------------

ALONE = ("errors", "process", "noise", "schedule", "step", "plan", "sampling")


@pytest.mark.slow
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
