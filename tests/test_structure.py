"""How the package hangs together: who may import whom, what it costs to import, which names are public."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddim
from ddim.cli import RUNNERS
from ddim.settings import COMMANDS

PACKAGE = Path(ddim.__file__).parent

# A module imports only from those before it. A new module needs a place here.
ORDER = """
errors _version schedule process linear plan config files hub limits loading checkpoint scheduler models backends
tokenizer original_layout single_file lora_layout lora sampling search guidance pipelines animation inversion
interpolation editing sources data losses training evaluation plots settings cli web __main__
""".split()
# `errors` and `_version` import nothing; `settings` imports no torch, and these read their options from it.
ANYBODY = {"errors", "_version"}
READ_SETTINGS = {"data", "training", "evaluation", "plots"}

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
    assert own in ORDER, f"{own} needs a place in ORDER"
    for line, name in imports(file):
        root, _, rest = name.partition(".")
        if root != "ddim":
            continue
        other = rest.partition(".")[0]
        assert other, f"line {line} imports the whole package"
        assert other in ORDER, f"line {line} imports {name}"
        allowed = (
            other in ANYBODY
            or other == own
            or (other == "settings" and own in READ_SETTINGS)
            or ORDER.index(other) < ORDER.index(own)
        )
        assert allowed, f"{own} imports {name} in line {line}"


def test_the_walk_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_structure.PACKAGE", tmp_path)
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


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["ddim", "ddim.errors", "ddim.settings"])
def test_what_must_be_instant_imports_no_torch(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"there is no {module} yet")
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


def test_every_command_has_a_function() -> None:
    assert set(RUNNERS) == set(COMMANDS)
    for module, _, name in (where.partition(":") for where in RUNNERS.values()):
        assert callable(getattr(importlib.import_module(module), name))
